"""What is known of each model family, as data. A new family is one entry here and its golden token ids in the tests.

Sources, cited below by short name:

* QWEN: https://github.com/QwenLM/Qwen3-Embedding, commit f4ad0c43 (2025-06-13): README and `examples/`.
* VLLM: https://github.com/vllm-project/vllm, `examples/pooling/score/template/qwen3_reranker.jinja`.
* MTEB: https://github.com/embeddings-benchmark/mteb, `models/model_implementations/qwen3_models.py` (parameter counts).
* PAPER: "Qwen3 Embedding: Advancing Text Embedding and Reranking Through Foundation Models", arXiv 2506.05176.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from qwen_retrieval.errors import CorruptCheckpointError, UnsupportedModelError
from qwen_retrieval.types import Tokenizer

Side = Literal["query", "document"]
"""Which of the two roles a text plays."""

Pooling = Literal["last_token", "mean"]
"""How one vector comes out of the hidden states of a text."""

Attention = Literal["causal", "bidirectional"]
"""Whether a token sees only what stands before it, or everything."""

ModelKind = Literal["embedding", "reranking"]
"""What a checkpoint is for."""

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
"""The default instruction of both model families (QWEN, README)."""


@dataclass(frozen=True, slots=True)
class EmbeddingFamily:
    """Embedding models that share a template, a tokenizer and a way of pooling.

    Attributes:
        name: Name of the family, for messages.
        model_type: `model_type` of `config.json`.
        end_token: Token that closes every input; its hidden state is the vector if `pooling` is ``last_token``.
        end_token_id: The id of `end_token`; with `model_type`, what a checkpoint is recognised by.
        query_template: A text with an instruction: ``{instruction}`` and ``{query}``.
        document_template: A text without an instruction of the caller's: ``{document}``, and ``{instruction}``
            in families whose documents always have one.
        default_instruction: The instruction if the caller names none.
        instructed_sides: The sides that take `default_instruction` if the caller names none.
        pooling: How one vector comes out of the hidden states.
        attention: What a token sees.
        min_dimensions: The shortest vector that the family was trained for (Matryoshka); the longest is the
            hidden size of the checkpoint.
        control_tokens: Control tokens of the templates, each with its id.
    """

    name: str
    model_type: str
    end_token: str
    end_token_id: int
    query_template: str
    document_template: str
    default_instruction: str
    instructed_sides: tuple[Side, ...]
    pooling: Pooling
    attention: Attention
    min_dimensions: int
    control_tokens: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RerankTemplate:
    """One way to write a query and a document into one input.

    The whole input is prefix + instruction + query + document + suffix. `instruction`, `query` and `document`
    each begin at a point where cutting the text does not change its tokens.

    Attributes:
        name: The name it is chosen by.
        prefix: Everything before the instruction.
        instruction: ``{instruction}`` with its label and what parts it from the query.
        query: ``{query}`` with its label and what parts it from the document.
        document: ``{document}`` with its label.
        suffix: Everything after the document.
        prefix_ids: The ids of `prefix`, or None if they differ from checkpoint to checkpoint.
        suffix_ids: The ids of `suffix`, or None likewise.
    """

    name: str
    prefix: str
    instruction: str
    query: str
    document: str
    suffix: str
    prefix_ids: tuple[int, ...] | None = None
    suffix_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class RerankingFamily:
    """Reranking models that share templates, a tokenizer and the two answers that are weighed.

    The score of a pair is ``sigmoid(logit[yes] - logit[no])`` after the last token of the input (QWEN, README).

    Attributes:
        name: Name of the family, for messages.
        model_type: `model_type` of `config.json`.
        end_token: A token whose id tells this family from others of the same `model_type`.
        end_token_id: The id of `end_token`.
        templates: The templates in circulation; the first is the default.
        default_instruction: The instruction if the caller names none.
        yes_token: The answer that means relevant; one token.
        no_token: The answer that means irrelevant; one token.
        yes_id: The id of `yes_token`, or None if it differs from checkpoint to checkpoint.
        no_id: The id of `no_token`, or None likewise.
        attention: What a token sees.
        control_tokens: Control tokens of the templates, each with its id.
    """

    name: str
    model_type: str
    end_token: str
    end_token_id: int
    templates: tuple[RerankTemplate, ...]
    default_instruction: str
    yes_token: str
    no_token: str
    yes_id: int | None
    no_id: int | None
    attention: Attention
    control_tokens: tuple[tuple[str, int], ...] = ()

    def template(self, name: str) -> RerankTemplate:
        """The template called `name`.

        Raises:
            ValueError: This family has no such template.
        """
        for template in self.templates:
            if template.name == name:
                return template
        known = ", ".join(repr(template.name) for template in self.templates)
        raise ValueError(f"template must be one of {known}, but got {name!r}")


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """An embedding family bound to one checkpoint.

    Attributes:
        model: What the caller named: a repository, a folder, a short name.
        family: What all checkpoints of its kind share.
        hidden_size: Length of a full vector.
        max_length: The most tokens that one input may have, end token included.
    """

    model: str
    family: EmbeddingFamily
    hidden_size: int
    max_length: int

    @property
    def name(self) -> str:
        """The last part of `model`, for messages."""
        return _short(self.model)


@dataclass(frozen=True, slots=True)
class RerankingSpec:
    """A reranking family bound to one checkpoint.

    Attributes:
        model: What the caller named: a repository, a folder, a short name.
        family: What all checkpoints of its kind share.
        max_length: The most tokens that one input may have, template included.
    """

    model: str
    family: RerankingFamily
    max_length: int

    @property
    def name(self) -> str:
        """The last part of `model`, for messages."""
        return _short(self.model)


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1] or model


# The system message is the model card's, quotation marks included (QWEN, README, "Transformers Usage", rerankers).
_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
# An empty thought, so that the model answers at once. The last newline pair is one token, 271, in the Qwen vocabulary.
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

# fmt: off
_PREFIX_IDS = (
    151644, 8948, 198, 60256, 3425, 279, 11789, 20027, 279, 8502, 3118, 389, 279, 11361, 323, 279, 758, 1235, 3897,
    13, 7036, 429, 279, 4226, 646, 1172, 387, 330, 9693, 1, 476, 330, 2152, 3263, 151645, 198, 151644, 872, 198,
)
# fmt: on
_SUFFIX_IDS = (151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271)

# The published code disagrees with itself; each variant gives other tokens, and so other scores.
_QWEN3_TEMPLATES = (
    # QWEN, README "Transformers Usage" and examples/qwen3_reranker_transformers.py; the figure in PAPER.
    RerankTemplate(
        name="canonical",
        prefix=_PREFIX,
        instruction="<Instruct>: {instruction}\n",
        query="<Query>: {query}\n",
        document="<Document>: {document}",
        suffix=_SUFFIX,
        prefix_ids=_PREFIX_IDS,
        suffix_ids=_SUFFIX_IDS,
    ),
    # QWEN, README "vLLM Usage" and evaluation/qwen3_reranker_model.py, so the published evaluation: empty lines
    # between the fields, and `<|im_end|>` twice (the chat template closes the message, then the suffix does).
    RerankTemplate(
        name="vllm",
        prefix=_PREFIX,
        instruction="<Instruct>: {instruction}\n\n",
        query="<Query>: {query}\n\n",
        document="<Document>: {document}",
        suffix="<|im_end|>\n" + _SUFFIX,
        prefix_ids=_PREFIX_IDS,
        suffix_ids=(151645, 198, *_SUFFIX_IDS),
    ),
    # VLLM: the last newline of the file is eaten when the template is rendered, so inputs end in 198, not 271.
    RerankTemplate(
        name="jinja",
        prefix=_PREFIX,
        instruction="<Instruct>: {instruction}\n",
        query="<Query>: {query}\n",
        document="<Document>: {document}",
        suffix=_SUFFIX.removesuffix("\n"),
        prefix_ids=_PREFIX_IDS,
        suffix_ids=(*_SUFFIX_IDS[:-1], 198),
    ),
)


QWEN3_EMBEDDING = EmbeddingFamily(
    name="Qwen3-Embedding",
    model_type="qwen3",
    # The token that the tokenizer's post-processor appends; not `eos_token`, which is <|im_end|> (QWEN, issue 122).
    end_token="<|endoftext|>",
    end_token_id=151643,
    # QWEN, README, `get_detailed_instruct`: no space after "Query:". A space changes the first token of the query.
    query_template="Instruct: {instruction}\nQuery:{query}",
    document_template="{document}",
    default_instruction=WEB_SEARCH,
    instructed_sides=("query",),
    pooling="last_token",
    attention="causal",
    # QWEN, README: "user-defined output dimensions ranging from 32 to" the hidden size.
    min_dimensions=32,
)
"""https://huggingface.co/collections/Qwen/qwen3-embedding"""

QWEN3_RERANKER = RerankingFamily(
    name="Qwen3-Reranker",
    model_type="qwen3",
    end_token="<|endoftext|>",
    end_token_id=151643,
    templates=_QWEN3_TEMPLATES,
    # QWEN, README. The examples and the evaluation have another one: `instructions.PRESETS["rerank_evaluation"]`.
    default_instruction=WEB_SEARCH,
    # QWEN, README: lower case, no space before it (" yes", "Yes" and "YES" are other tokens).
    yes_token="yes",
    no_token="no",
    yes_id=9693,
    no_id=2152,
    attention="causal",
    control_tokens=(("<|im_start|>", 151644), ("<|im_end|>", 151645), ("<think>", 151667), ("</think>", 151668)),
)
"""https://huggingface.co/collections/Qwen/qwen3-reranker"""

# The demo pair is this project's own (demo/ in the repository): the same architecture and templates on a vocabulary of
# 8,192 entries, so that everything can be tried in seconds on any machine.
DEMO_EMBEDDING = replace(QWEN3_EMBEDDING, name="demo embedding", end_token_id=8192)
"""The embedding half of the demo pair."""

DEMO_RERANKER = replace(
    QWEN3_RERANKER,
    name="demo reranker",
    end_token_id=8192,
    templates=tuple(replace(template, prefix_ids=None, suffix_ids=None) for template in _QWEN3_TEMPLATES),
    yes_id=None,
    no_id=None,
    control_tokens=(("<|im_start|>", 8193), ("<|im_end|>", 8194), ("<think>", 8195), ("</think>", 8196)),
)
"""The reranking half of the demo pair."""

EMBEDDING_FAMILIES: tuple[EmbeddingFamily, ...] = (QWEN3_EMBEDDING, DEMO_EMBEDDING)
"""Every embedding family that can be loaded."""

RERANKING_FAMILIES: tuple[RerankingFamily, ...] = (QWEN3_RERANKER, DEMO_RERANKER)
"""Every reranking family that can be loaded."""


class _Family(Protocol):
    """What both kinds of family are recognised by."""

    @property
    def name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def end_token(self) -> str: ...
    @property
    def end_token_id(self) -> int: ...


_F = TypeVar("_F", bound=_Family)


def match_embedding(model: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> EmbeddingSpec:
    """Find the family of an embedding checkpoint, and bind it to that checkpoint.

    A checkpoint is recognised by the `model_type` of its configuration and the id of the end token in its own
    tokenizer, so that fine-tunes and tiny random models of a known family match too.

    Args:
        model: What the caller named, for messages.
        config: The checkpoint's `config.json`.
        tokenizer: The checkpoint's tokenizer.

    Returns:
        The family with this checkpoint's sizes.

    Raises:
        UnsupportedModelError: No entry matches, or the checkpoint is a sequence classifier.
        CorruptCheckpointError: The configuration lacks a size, or the tokenizer does not fit the embedding table.
    """
    family = _match(model, config, tokenizer, EMBEDDING_FAMILIES)
    return EmbeddingSpec(model, family, _size(config, "hidden_size"), _size(config, "max_position_embeddings"))


def match_reranking(model: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> RerankingSpec:
    """Find the family of a reranking checkpoint, and bind it to that checkpoint.

    Args:
        model: What the caller named, for messages.
        config: The checkpoint's `config.json`.
        tokenizer: The checkpoint's tokenizer.

    Returns:
        The family with this checkpoint's sizes.

    Raises:
        UnsupportedModelError: No entry matches, or the checkpoint is a sequence classifier.
        CorruptCheckpointError: The configuration lacks a size, or the tokenizer does not fit the embedding table.
    """
    family = _match(model, config, tokenizer, RERANKING_FAMILIES)
    return RerankingSpec(model, family, _size(config, "max_position_embeddings"))


def _match(model: str, config: Mapping[str, Any], tokenizer: Tokenizer, families: Sequence[_F]) -> _F:
    _refuse_classifier(model, config)
    for family in families:
        fits = config.get("model_type") == family.model_type
        if fits and tokenizer.token_id(family.end_token) == family.end_token_id:
            _check_table(model, config, tokenizer)
            return family
    known = "; ".join(f"{f.name}: model_type {f.model_type!r}, {f.end_token} = {f.end_token_id}" for f in families)
    ends = {family.end_token: tokenizer.token_id(family.end_token) for family in families}
    found = ", ".join([f"model_type {config.get('model_type')!r}", *(f"{end} = {id_}" for end, id_ in ends.items())])
    raise UnsupportedModelError(f"{model} is not a model known here: it has {found}; known are {known}")


def _refuse_classifier(model: str, config: Mapping[str, Any]) -> None:
    architectures = [str(name) for name in config.get("architectures") or ()]
    if "num_labels" not in config and not any(name.endswith("ForSequenceClassification") for name in architectures):
        return
    raise UnsupportedModelError(
        f"{model} is a sequence classifier ({', '.join(architectures) or 'num_labels in config.json'}). A Qwen3 "
        'reranker weighs "yes" against "no" with its language-model head; loading it as a classifier replaces that '
        "head by a random or converted one. Use the original checkpoint, such as Qwen/Qwen3-Reranker-0.6B"
    )


def _check_table(model: str, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    # Qwen3-Embedding-4B and -8B have 151,665 rows, 0.6B has 151,669 (MTEB: parameters / hidden size): with the
    # tokenizer of the other, a document that contains "<think>" would read beyond the table.
    rows = _size(config, "vocab_size")
    if tokenizer.size > rows:
        raise CorruptCheckpointError(
            f"the tokenizer of {model} has {tokenizer.size} ids, but its embedding table has only {rows} rows "
            "(vocab_size in config.json); use the tokenizer that was published with these weights"
        )


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CorruptCheckpointError(f"{name} in config.json must be a positive integer, but is {value!r}")
    return value


def check_dimensions(spec: EmbeddingSpec, dimensions: int | None) -> int:
    """The length of the vectors, checked against what the model was trained for.

    Args:
        spec: The model.
        dimensions: The length asked for, or None for the full length.

    Returns:
        `dimensions`, or the hidden size of the model if it is None.

    Raises:
        TypeError: `dimensions` is not an integer.
        ValueError: The model cannot give that length.
    """
    if dimensions is None:
        return spec.hidden_size
    return check_vector_length(spec.name, spec.hidden_size, spec.family.min_dimensions, dimensions)


def check_vector_length(model: str, full: int, least: int, dimensions: int) -> int:
    """The length of a vector, if a model can give it.

    Args:
        model: What to call the model.
        full: The length of its full vector.
        least: The shortest that its family was trained for.
        dimensions: The length asked for.

    Returns:
        `dimensions`.

    Raises:
        TypeError: `dimensions` is not an integer.
        ValueError: The model cannot give that length.
    """
    if isinstance(dimensions, bool):
        raise TypeError(f"dimensions must be an integer, but got {dimensions}")
    try:
        asked = operator.index(dimensions)
    except TypeError as exc:
        raise TypeError(f"dimensions must be an integer, but got {dimensions!r}") from exc
    if not min(least, full) <= asked <= full:
        raise ValueError(f"dimensions must be between {min(least, full)} and {full} for {model}, but got {asked}")
    return asked


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a published checkpoint without downloading it.

    Attributes:
        size: Short name, such as ``0.6B``.
        kind: What it is for.
        repository: Where it is published.
        parameters: Number of weights, a tied head counted once.
        layers: Decoder layers.
        hidden_size: Width of the model, and length of a full vector.
        heads: Attention heads of the queries.
        kv_heads: Attention heads of the keys and values.
        head_dim: Width of one head.
        ffn_size: Width of the feed-forward layers.
        max_length: Longest input in tokens: `max_position_embeddings` of the embedding models, the context length
            that the model card promises (32K) of the rerankers.
        rows: Rows of the embedding table.
        tied_head: Whether the language-model head is the embedding table; embedding models have no head.
    """

    size: str
    kind: ModelKind
    repository: str
    parameters: int
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    max_length: int
    rows: int
    tied_head: bool


# Parameter counts: MTEB. Sizes: the checkpoints' config.json; the tests compute each count from the sizes beside it.
# fmt: off
CHECKPOINTS: tuple[Checkpoint, ...] = (
    Checkpoint("0.6B", "embedding", "Qwen/Qwen3-Embedding-0.6B", 595_776_512, 28, 1024, 16, 8, 128, 3072, 32_768,
               151_669, True),
    Checkpoint("4B", "embedding", "Qwen/Qwen3-Embedding-4B", 4_021_774_336, 36, 2560, 32, 8, 128, 9728, 40_960,
               151_665, True),
    Checkpoint("8B", "embedding", "Qwen/Qwen3-Embedding-8B", 7_567_295_488, 36, 4096, 32, 8, 128, 12_288, 40_960,
               151_665, True),
    Checkpoint("0.6B", "reranking", "Qwen/Qwen3-Reranker-0.6B", 595_776_512, 28, 1024, 16, 8, 128, 3072, 32_768,
               151_669, True),
    Checkpoint("4B", "reranking", "Qwen/Qwen3-Reranker-4B", 4_021_784_576, 36, 2560, 32, 8, 128, 9728, 32_768,
               151_669, True),
    Checkpoint("8B", "reranking", "Qwen/Qwen3-Reranker-8B", 8_188_548_096, 36, 4096, 32, 8, 128, 12_288, 32_768,
               151_669, False),
)
# fmt: on
"""The published checkpoints; the demo pair is described by its own `config.json`."""

DEMO = "demo"
"""Name of the demo pair, in either kind."""


def resolve_model(name: str, kind: ModelKind) -> str:
    """The repository of a short name.

    Args:
        name: ``0.6B``, ``4B`` or ``8B`` in either case, ``demo``, a repository, or a folder. A folder that is called
            like a short name is written ``./4B``.
        kind: Which of the two checkpoints of that size is meant.

    Returns:
        The repository; ``demo`` and everything that is no short name are returned unchanged.

    Raises:
        ValueError: `name` is empty.
    """
    if not name.strip():
        raise ValueError("model must be a repository, a folder or one of 0.6B, 4B, 8B and demo, but got an empty name")
    for checkpoint in CHECKPOINTS:
        if checkpoint.kind == kind and checkpoint.size.lower() == name.lower():
            return checkpoint.repository
    return name
