"""Texts to token ids: the right template, the end token, and truncation that never cuts what the model waits for.

Users' text and instructions are encoded so that they cannot contain a control token (see `ControlTokens`); only the
templates of `specs` can. No function here touches a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, get_args

from qwen_retrieval.errors import ControlTokenError, CorruptCheckpointError, InputError, InputTooLongError
from qwen_retrieval.specs import EmbeddingSpec, RerankingSpec
from qwen_retrieval.types import ControlTokens, OnOverflow, TokenIds, Tokenizer

DEFAULT_MAX_LENGTH = 8192
"""Longest input in tokens unless the caller says otherwise: `max_length` of the README's examples
(https://github.com/QwenLM/Qwen3-Embedding, commit f4ad0c43). The models allow more, at the price of memory."""

VERSION = 1
"""Raised when the token ids of any text change, because vectors that were kept then no longer fit new ones."""

_SHORTEST_EMBEDDING_INPUT = 8
_SHORTEST_RERANKING_BODY = 16

_LAST_LINE = re.compile(r"(?<=\n)[A-Za-z][^\n]*\Z")
"""A template's last line before the text, if it begins with a letter: there every tokenizer that we know cuts, whatever
stands around it, so what comes before can be encoded once for all texts."""

_KEPT_CONTENT = 32
"""Truncating a pair leaves at least this many tokens of a query or document: with less, its score says nothing."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One complete input of a model.

    Attributes:
        ids: What the model sees, from the first token to the last.
        dropped: How many tokens of the caller's text were cut; 0 if everything is there.
        head: How many of the first ids are template and instruction, and so the same in all inputs of a call.
    """

    ids: TokenIds
    dropped: int = 0
    head: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Exactly what the model sees of one input.

    Attributes:
        text: The text of `token_ids`, template and control tokens included.
        token_ids: What the model is given.
        tokens: The text of each id.
        truncated_tokens: How many tokens of the user's text were cut; 0 if nothing was.
    """

    text: str
    token_ids: TokenIds
    tokens: list[str]
    truncated_tokens: int


def _explain(encoded: Encoded, rendered: str, tokenizer: Tokenizer) -> Explanation:
    return Explanation(
        text=tokenizer.decode(encoded.ids) if encoded.dropped else rendered,
        token_ids=list(encoded.ids),
        tokens=[tokenizer.decode([token_id]) for token_id in encoded.ids],
        truncated_tokens=encoded.dropped,
    )


def check_texts(name: str, texts: Iterable[str]) -> list[str]:
    """Refuse what is no list of encodable texts, before anything expensive happens.

    Args:
        name: What the caller calls `texts`, for messages.
        texts: A list, a tuple, a numpy array of strings: anything that yields texts in order.

    Returns:
        The texts as plain strings, in order; ``[]`` for none.

    Raises:
        TypeError: `texts` is None, one single string, unordered, or contains something that is no string.
        InputError: A text contains half of a surrogate pair, which no encoding can express.
    """
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of strings, but got a single string; write [text]")
    if isinstance(texts, bytes | bytearray | Mapping | Set) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of strings, but got {type(texts).__name__}")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of strings, but {name}[{index}] is {type(text).__name__}")
        if not text.isascii():
            _check_encodable(f"{name}[{index}]", text)
    return [str(text) for text in checked]


def _check_encodable(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InputError(
            f"{name} contains the lone surrogate U+{ord(text[exc.start]):04X} at position {exc.start}; it was decoded "
            "wrongly: read it with its true encoding, or with errors='replace'"
        ) from exc


def _check_instruction(instruction: str) -> str:
    if not isinstance(instruction, str):
        raise TypeError(f"instruction must be a string, but got {type(instruction).__name__}")
    _check_encodable("instruction", instruction)
    return str(instruction)


_Frame = tuple[TokenIds, str, TokenIds]


class EmbeddingTemplate:
    """Queries and documents to the inputs of an embedding model.

    Args:
        tokenizer: The tokenizer of the checkpoint.
        spec: The model.
        max_length: Most tokens of one input, end token included; None for 8192 or what the model allows, if less.
        on_overflow: Whether a longer text is cut at its end, or refused.
        control_tokens: What happens to control tokens in texts and instructions.

    Raises:
        ValueError: An option is unknown, or `max_length` is out of range.
        CorruptCheckpointError: The tokenizer gives other ids than the model was trained with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spec: EmbeddingSpec,
        *,
        max_length: int | None = None,
        on_overflow: OnOverflow = "truncate",
        control_tokens: ControlTokens = "escape",
    ) -> None:
        family = spec.family
        _check_option("on_overflow", on_overflow, OnOverflow)
        self._max_length = _check_max_length(max_length, _SHORTEST_EMBEDDING_INPUT, spec)
        self._refuses = on_overflow == "error"
        _check_control_ids(tokenizer, ((family.end_token, family.end_token_id), *family.control_tokens), spec)
        self._tokenizer = tokenizer
        self._text = _UserText(tokenizer, control_tokens)
        self._family = family
        self._frame_of: tuple[str, _Frame] | None = None

    @property
    def max_length(self) -> int:
        """Most tokens of one input, end token included."""
        return self._max_length

    def encode_queries(self, queries: Iterable[str], instruction: str) -> list[Encoded]:
        """Encode queries with an instruction.

        Args:
            queries: n texts.
            instruction: What the queries are for, in one sentence; blank for none at all.

        Returns:
            n inputs in the order of `queries`, each closed by the end token exactly once.

        Raises:
            InputTooLongError: A query, or the instruction alone, does not fit.
            ControlTokenError: A text contains a control token, and ``control_tokens="error"``.
        """
        return self._encode("queries", queries, instruction)

    def encode_documents(self, documents: Iterable[str], instruction: str = "") -> list[Encoded]:
        """Encode documents.

        Args:
            documents: n texts.
            instruction: Blank, except in symmetric tasks (similarity, clustering, …), where the documents have the
                template and the instruction of queries.

        Returns:
            n inputs in the order of `documents`, each closed by the end token exactly once.

        Raises:
            InputTooLongError: A document, or the instruction alone, does not fit.
            ControlTokenError: A text contains a control token, and ``control_tokens="error"``.
        """
        return self._encode("documents", documents, instruction)

    def render_query(self, query: str, instruction: str) -> str:
        """The whole input of a query as text, not truncated."""
        return self._render(query, instruction)

    def render_document(self, document: str, instruction: str = "") -> str:
        """The whole input of a document as text, not truncated."""
        return self._render(document, instruction)

    def explain_query(self, query: str, instruction: str) -> Explanation:
        """Exactly what the model sees of a query."""
        encoded = self.encode_queries([query], instruction)[0]
        return _explain(encoded, self.render_query(query, instruction), self._tokenizer)

    def explain_document(self, document: str, instruction: str = "") -> Explanation:
        """Exactly what the model sees of a document."""
        encoded = self.encode_documents([document], instruction)[0]
        return _explain(encoded, self.render_document(document, instruction), self._tokenizer)

    def _render(self, text: str, instruction: str) -> str:
        template, instruction = self._choose(instruction)
        return template.format(instruction=instruction, query=text, document=text) + self._family.end_token

    def _choose(self, instruction: str) -> tuple[str, str]:
        # A text without an instruction is raw on both sides: README, `queries` with, `documents` without a prefix.
        if instruction.strip():
            return self._family.query_template, instruction
        return self._family.document_template, self._family.default_instruction

    def _encode(self, name: str, texts: Iterable[str], instruction: str) -> list[Encoded]:
        checked = check_texts(name, texts)
        instruction = _check_instruction(instruction)
        self._text.refuse_control_tokens(name, checked)
        self._text.refuse_control_tokens("instruction", [instruction])
        if not checked:
            return []
        head, label, tail = self._frame(instruction)
        contents = self._text.encode([label + text for text in checked] if label else checked)
        room = self._max_length - len(head) - len(tail)
        if max(map(len, contents)) > room:
            return self._fit(name, contents, head, label, tail)
        return [Encoded([*head, *ids, *tail], head=len(head)) for ids in contents]

    def _frame(self, instruction: str) -> _Frame:
        """Ids before the text, the label that must be encoded together with it, and ids after it.

        The last one is kept: calls with one query each have the same instruction.
        """
        kept = self._frame_of
        if kept is None or kept[0] != instruction:
            self._frame_of = kept = instruction, self._make_frame(instruction)
        return kept[1]

    def _make_frame(self, instruction: str) -> _Frame:
        template, instruction = self._choose(instruction)
        before, after = re.split(r"\{(?:query|document)\}", template)
        *pieces, last = _split_at(before, [token for token, _ in self._family.control_tokens])
        line = _LAST_LINE.search(last)
        label = last[line.start() if line else 0 :]
        head: TokenIds = []
        # Control tokens of the template stand at the odd places.
        for i, piece in enumerate([*pieces, last.removesuffix(label)]):
            if i % 2:
                head += self._tokenizer.encode([piece], control_tokens=True)[0]
            else:
                head += self._text.encode([piece.format(instruction=instruction)])[0]
        tail = self._tokenizer.encode([after], control_tokens=True)[0]
        return head, label.format(instruction=instruction), [*tail, self._family.end_token_id]

    def _fit(self, name: str, contents: list[TokenIds], head: TokenIds, label: str, tail: TokenIds) -> list[Encoded]:
        """Cut the end of every content that is too long, so that the tail stays."""
        room = self._max_length - len(head) - len(tail)
        needed = len(self._text.encode([label])[0])
        fitted: list[Encoded] = []
        for index, ids in enumerate(contents):
            dropped = max(0, len(ids) - room)
            if dropped and (self._refuses or needed >= room):
                self._refuse(name, index, self._max_length + dropped, needed - room + 1)
            fitted.append(Encoded([*head, *ids[:room], *tail], dropped, len(head)))
        return fitted

    def _refuse(self, name: str, index: int, length: int, instruction_excess: int) -> None:
        if instruction_excess > 0:
            raise InputTooLongError(
                f"the instruction leaves no room for {name} in max_length={self._max_length}: it is at least "
                f"{instruction_excess} token(s) too long; shorten it, or raise max_length"
            )
        raise InputTooLongError(
            f"{name}[{index}] has {length} tokens with its template, but max_length is {self._max_length}"
        )


class RerankingTemplate:
    """Pairs of a query and a document to the inputs of a reranking model.

    Args:
        tokenizer: The tokenizer of the checkpoint.
        spec: The model.
        template: Name of the template: ``canonical`` (model card), ``vllm`` or ``jinja``; see `specs`.
        max_length: Most tokens of one input, template included; None for 8192 or what the model allows, if less.
        on_overflow: Whether a longer pair is cut, or refused. First the end of the document is cut, then the end of
            the query, and 32 tokens of each stay; labels, instruction and suffix are never cut.
        control_tokens: What happens to control tokens in texts and instructions.

    Raises:
        ValueError: An option is unknown, or `max_length` is out of range.
        CorruptCheckpointError: The tokenizer gives other ids than the model was trained with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spec: RerankingSpec,
        *,
        template: str = "canonical",
        max_length: int | None = None,
        on_overflow: OnOverflow = "truncate",
        control_tokens: ControlTokens = "escape",
    ) -> None:
        family = spec.family
        _check_option("on_overflow", on_overflow, OnOverflow)
        self._template = family.template(template)
        _check_control_ids(tokenizer, ((family.end_token, family.end_token_id), *family.control_tokens), spec)
        self._prefix = _fixed_ids(tokenizer, self._template.prefix, self._template.prefix_ids, spec)
        self._suffix = _fixed_ids(tokenizer, self._template.suffix, self._template.suffix_ids, spec)
        shortest = len(self._prefix) + len(self._suffix) + _SHORTEST_RERANKING_BODY
        self._max_length = _check_max_length(max_length, shortest, spec)
        self._refuses = on_overflow == "error"
        self._yes_id = _answer_id(tokenizer, family.yes_token, family.yes_id, spec)
        self._no_id = _answer_id(tokenizer, family.no_token, family.no_id, spec)
        self._text = _UserText(tokenizer, control_tokens)
        self._query_label, self._query_end = self._edges(self._template.query, "{query}")
        self._document_label, _ = self._edges(self._template.document, "{document}")
        self._head_of: tuple[str, TokenIds] | None = None

    @property
    def max_length(self) -> int:
        """Most tokens of one input, template included."""
        return self._max_length

    @property
    def yes_id(self) -> int:
        """Id of the answer that means relevant."""
        return self._yes_id

    @property
    def no_id(self) -> int:
        """Id of the answer that means irrelevant."""
        return self._no_id

    def encode_pairs(self, queries: Iterable[str], documents: Iterable[str], instruction: str) -> list[Encoded]:
        """Encode pairs. Each distinct query and document is tokenised once.

        Args:
            queries: n texts.
            documents: n texts; the i-th belongs to the i-th query.
            instruction: What the queries are for, in one sentence. Blank leaves the field in the template empty, as
                the published code does.

        Returns:
            n inputs in the order given, each complete with the suffix.

        Raises:
            ValueError: There are not as many queries as documents.
            InputTooLongError: A pair does not fit.
            ControlTokenError: A text contains a control token, and ``control_tokens="error"``.
        """
        asked, answers = check_texts("queries", queries), check_texts("documents", documents)
        if len(asked) != len(answers):
            raise ValueError(
                f"queries and documents must have the same length, but got {len(asked)} and {len(answers)}"
            )
        instruction = _check_instruction(instruction)
        for name, texts in (("queries", asked), ("documents", answers), ("instruction", [instruction])):
            self._text.refuse_control_tokens(name, texts)
        head = self._head(instruction)
        query_ids, document_ids = self._parts(asked, answers)
        pairs = zip(asked, answers, strict=True)
        return [self._join(index, head, query_ids[q], document_ids[d]) for index, (q, d) in enumerate(pairs)]

    def render_pair(self, query: str, document: str, instruction: str) -> str:
        """The whole input of a pair as text, not truncated."""
        template = self._template
        body = (
            template.instruction.format(instruction=instruction),
            template.query.format(query=query),
            template.document.format(document=document),
        )
        return "".join((template.prefix, *body, template.suffix))

    def explain(self, query: str, document: str, instruction: str) -> Explanation:
        """Exactly what the model sees of a pair."""
        encoded = self.encode_pairs([query], [document], instruction)[0]
        return _explain(encoded, self.render_pair(query, document, instruction), self._text.tokenizer)

    def _edges(self, template: str, placeholder: str) -> tuple[int, TokenIds]:
        """Length of a part's label in tokens, and the ids of what closes the part.

        The space at the end of a label belongs to the first token of the text, so the label is measured without it.
        """
        label, end = template.split(placeholder)
        label_ids, end_ids = self._text.encode([label.rstrip(), end])
        return len(label_ids), end_ids

    def _head(self, instruction: str) -> TokenIds:
        """Ids before the query. Those of the last instruction are kept: most calls have the same."""
        kept = self._head_of
        if kept is None or kept[0] != instruction:
            body = self._text.encode([self._template.instruction.format(instruction=instruction)])[0]
            self._head_of = kept = instruction, [*self._prefix, *body]
        return kept[1]

    def _parts(self, queries: list[str], documents: list[str]) -> tuple[dict[str, TokenIds], dict[str, TokenIds]]:
        """Ids of each distinct query and of each distinct document, with their labels."""
        # The parts are encoded apart. That gives the ids of the whole, because each begins with "<" after a line break
        # or a control token, where the tokenizer cuts the text anyway; after a label it would not.
        asked, answers = dict.fromkeys(queries), dict.fromkeys(documents)
        before, after = self._template.query.split("{query}")
        texts = [before + query + after for query in asked]
        before, after = self._template.document.split("{document}")
        texts += [before + document + after for document in answers]
        ids = self._text.encode(texts)  # in one call, which may use all cores
        return dict(zip(asked, ids, strict=False)), dict(zip(answers, ids[len(asked) :], strict=True))

    def _join(self, index: int, head: TokenIds, query: TokenIds, document: TokenIds) -> Encoded:
        over = len(head) + len(query) + len(document) + len(self._suffix) - self._max_length
        if over <= 0:
            return Encoded([*head, *query, *document, *self._suffix], head=len(head))
        if self._refuses:
            raise InputTooLongError(
                f"pair {index} has {self._max_length + over} tokens ({len(query)} of them in queries[{index}] and "
                f"{len(document)} in documents[{index}], labels included), but max_length is {self._max_length}"
            )
        from_document = min(over, max(0, len(document) - self._document_label - _KEPT_CONTENT))
        query_floor = self._query_label + _KEPT_CONTENT + len(self._query_end)
        from_query = min(over - from_document, max(0, len(query) - query_floor))
        missing = over - from_document - from_query
        if missing:
            self._refuse(missing, len(head) - len(self._prefix))
        if from_query:
            query = query[: len(query) - from_query - len(self._query_end)] + self._query_end
        return Encoded([*head, *query, *document[: len(document) - from_document], *self._suffix], over, len(head))

    def _refuse(self, missing: int, instruction_length: int) -> None:
        raise InputTooLongError(
            f"a pair does not fit into max_length={self._max_length}: with {_KEPT_CONTENT} tokens of its query and of "
            f"its document at most, the instruction ({instruction_length} tokens with its label) is {missing} token(s) "
            f"too long; shorten it, or raise max_length to {self._max_length + missing}"
        )


class _UserText:
    """Texts that are not ours to ids, under one policy for the control tokens in them."""

    def __init__(self, tokenizer: Tokenizer, control_tokens: ControlTokens) -> None:
        _check_option("control_tokens", control_tokens, ControlTokens)
        self.tokenizer = tokenizer
        self._parses = control_tokens == "keep"
        tokens = tokenizer.control_tokens if control_tokens == "error" else ()
        self._refused = re.compile("|".join(map(re.escape, tokens))) if tokens else None

    def encode(self, texts: list[str]) -> list[TokenIds]:
        return self.tokenizer.encode(texts, control_tokens=self._parses)

    def refuse_control_tokens(self, name: str, texts: list[str]) -> None:
        if self._refused is None:
            return
        for index, text in enumerate(texts):
            if found := self._refused.search(text):
                place = name if name == "instruction" else f"{name}[{index}]"
                raise ControlTokenError(f"{place} contains the control token {found[0]!r} at position {found.start()}")


def _split_at(text: str, tokens: list[str]) -> list[str]:
    return re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]


def _check_option(name: str, value: str, choices: Any) -> None:  # noqa: ANN401 - a Literal has no type of its own
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, but got {value!r}")


def _check_max_length(max_length: int | None, least: int, spec: EmbeddingSpec | RerankingSpec) -> int:
    if max_length is None:
        max_length = min(DEFAULT_MAX_LENGTH, spec.max_length)
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise TypeError(f"max_length must be an integer, but got {max_length!r}")
    if not least <= max_length <= spec.max_length:
        raise ValueError(
            f"max_length must be between {least} and {spec.max_length} for {spec.name}, but got {max_length}"
        )
    return max_length


def _check_control_ids(
    tokenizer: Tokenizer, expected: Iterable[tuple[str, int]], spec: EmbeddingSpec | RerankingSpec
) -> None:
    for token, id_ in expected:
        found = tokenizer.encode([token], control_tokens=True)[0]
        if found != [id_]:
            raise CorruptCheckpointError(
                f"the tokenizer of {spec.model} gives {found} for {token!r}, but {spec.family.name} has [{id_}]; use "
                "the tokenizer that was published with these weights"
            )


def _fixed_ids(tokenizer: Tokenizer, text: str, expected: tuple[int, ...] | None, spec: RerankingSpec) -> TokenIds:
    found = tokenizer.encode([text], control_tokens=True)[0]
    if expected is not None and tuple(found) != expected:
        raise CorruptCheckpointError(
            f"the tokenizer of {spec.model} gives {found} for {text!r}, but {spec.family.name} has {list(expected)}; "
            "use the tokenizer that was published with these weights"
        )
    return found


def _answer_id(tokenizer: Tokenizer, word: str, expected: int | None, spec: RerankingSpec) -> int:
    found = tokenizer.encode([word], control_tokens=False)[0]
    if len(found) != 1 or expected not in (None, found[0]):
        wanted = "one token" if expected is None else str([expected])
        raise CorruptCheckpointError(
            f"the tokenizer of {spec.model} gives {found} for the answer {word!r}, but {spec.family.name} has {wanted}"
        )
    return found[0]
