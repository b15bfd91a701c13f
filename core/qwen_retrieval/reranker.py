"""Queries and documents to relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.loading import LoadConfig, LoadedModel, load_reranking
from qwen_retrieval.model import Flow, Model, arun_flow, run_flow
from qwen_retrieval.ranking import check_count, check_threshold, rank
from qwen_retrieval.specs import RerankingSpec
from qwen_retrieval.templates import Encoded, Explanation, RerankingTemplate, check_texts
from qwen_retrieval.types import (
    ControlTokens,
    FloatArray,
    OnOverflow,
    RerankingEngine,
    RerankResult,
    Scale,
    Tokenizer,
)
from qwen_retrieval.vectors import sigmoid

Pair = tuple[str, str]


class Reranker(Model):
    """Scores how well documents meet a query, with a Qwen3-Reranker model.

    The model card's template is applied here and never cut. What documents have in common (system prompt, instruction,
    query) is computed once per batch.

    Build it with `from_pretrained`; the constructor takes the parts, for tests and for engines of your own.

    Args:
        engine: What computes log-odds.
        tokenizer: The tokenizer of the checkpoint.
        spec: The model family and the checkpoint's limits.
        instruction: The task that documents are judged for, in one English sentence, or the name of a preset or of a
            task of the paper's evaluation (see `qwen_retrieval.instructions`). By default the model card's.
        template: "canonical" (the model card's), "vllm" (the one of the published evaluation, with blank lines) or
            "jinja" (vLLM's example file, which loses the last line break).
        max_length: Longest input in tokens, template included; None for 8192, or the model's own limit if less.
        max_batch_tokens: Tokens computed in one forward pass.
        batch_size: Most inputs of one call in a forward pass; None for as many as `max_batch_tokens` allows, which is
            faster.
        on_overflow: What to do with a longer pair: "truncate" (cut the end of the document, then of the query, and
            warn once per call) or "error".
        control_tokens: What to do with strings such as ``<|im_end|>`` in texts: "escape" (spell them out as plain
            text, so that a document cannot close the template), "keep" (let them act) or "error".
        show_progress: Show a progress bar for more than 64 pairs.
        loaded: The model of this process's cache that `engine` belongs to, as `from_pretrained` passes it.

    Raises:
        ValueError: An option is out of range.
        CorruptCheckpointError: The tokenizer gives other ids for the template than the model was trained with.
    """

    def __init__(
        self,
        engine: RerankingEngine,
        tokenizer: Tokenizer,
        spec: RerankingSpec,
        *,
        instruction: str | None = None,
        template: str = "canonical",
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        on_overflow: OnOverflow = "truncate",
        control_tokens: ControlTokens = "escape",
        show_progress: bool = False,
        loaded: LoadedModel[RerankingSpec] | None = None,
    ) -> None:
        self.spec = spec
        default = spec.family.default_instruction
        self.instruction = resolve_instruction(default if instruction is None else instruction)
        self.template = template
        self._template = RerankingTemplate(
            tokenizer,
            spec,
            template=template,
            max_length=max_length,
            on_overflow=on_overflow,
            control_tokens=control_tokens,
        )
        super().__init__(
            engine.score,
            tokenizer,
            name=spec.model,
            loaded=loaded,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            max_length=max_length,
            on_overflow=on_overflow,
            control_tokens=control_tokens,
            show_progress=show_progress,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        instruction: str | None = None,
        template: str = "canonical",
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        on_overflow: OnOverflow = "truncate",
        control_tokens: ControlTokens = "escape",
        show_progress: bool = False,
        device: str | Sequence[str] = "auto",
        dtype: str = "auto",
        batch_invariant: bool = False,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a model, or share it if this process has loaded it already.

        Args:
            model: "Qwen/Qwen3-Reranker-0.6B" (or "0.6B", "4B", "8B"), the path of a checkpoint folder, or "demo" for
                the tiny model that comes with this package.
            instruction: See the class, as for all options up to `show_progress`.
            template: See the class.
            max_length: See the class.
            max_batch_tokens: See the class; None for what suits the device.
            batch_size: See the class.
            on_overflow: See the class.
            control_tokens: See the class.
            show_progress: See the class.
            device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:N" or "mps". A list, such as
                ``["cuda:0", "cuda:1"]``, loads a copy of the weights on each, and calls keep all of them busy; which
                device computes which row varies, so results vary as much as with what shares a batch.
            dtype: "auto" (bfloat16 where the device computes it natively, else float32), "float32", "bfloat16",
                "float16", or matrices in 8 bits: "int8" (CPUs with AVX-512 VNNI) or "float8" (NVIDIA GPUs from Ada and
                Hopper on), half the memory of bfloat16 and faster; scores differ by more than rounding.
            batch_invariant: The same pair gets the same score to the last bit whatever shares its batch, which is
                otherwise true up to rounding; slower, because what pairs have in common is computed in each. On the
                CPU, in "float32" and "bfloat16"; see `Embedder.from_pretrained` for what it takes.
            revision: Branch, tag or commit of the repository.
            token: Access token for a gated or private repository.
            cache_dir: Where downloads are kept; by default the hub's own cache.
            local_files_only: Never ask the hub.

        Raises:
            ModelError: The model cannot be found, reached, opened or used; its subclasses in
                `qwen_retrieval.errors` say which.
            ValueError: An option is out of range.
        """
        config = LoadConfig(
            model=model,
            kind="reranking",
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            device=device,
            dtype=dtype,
            batch_invariant=batch_invariant,
            token=token,
        )
        loaded = load_reranking(config)
        try:
            return cls(
                loaded.engine,
                loaded.tokenizer,
                loaded.spec,
                instruction=instruction,
                template=template,
                max_length=max_length,
                max_batch_tokens=max_batch_tokens,
                batch_size=batch_size,
                on_overflow=on_overflow,
                control_tokens=control_tokens,
                show_progress=show_progress,
                loaded=loaded,
            )
        except BaseException:
            loaded.release()
            raise

    def score(self, query: str, documents: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        """The probability that each document meets the query, as the model sees it.

        Args:
            query: The query.
            documents: n texts.
            instruction: The task of this query, instead of the reranker's own.

        Returns:
            (n,) float32 in [0, 1], in input order; (0,) for no documents. Scores near 0 and 1 saturate: use
            `log_odds` to tell them apart.

        Raises:
            TypeError: `query` is not a string, or `documents` not a list of strings.
            InputError: A text is not valid, too long for ``on_overflow="error"``, or contains a control token that
                ``control_tokens="error"`` refuses; or the instruction alone does not fit.
            NonFiniteError: The model gives NaN for a pair.
            ModelClosedError: After `close`.
        """
        return sigmoid(self.log_odds(query, documents, instruction=instruction))

    async def ascore(self, query: str, documents: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        """The same as `score`, without blocking the event loop."""
        return sigmoid(await self.alog_odds(query, documents, instruction=instruction))

    def log_odds(self, query: str, documents: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        """The log-odds of "yes" over "no" for each document; `score` is their sigmoid.

        Args:
            query: The query.
            documents: n texts.
            instruction: The task of this query, instead of the reranker's own.

        Returns:
            (n,) float32, any real number, in input order; (0,) for no documents.

        Raises:
            InputError: See `score`, as for the other errors.
        """
        return self.log_odds_of_pairs(_pairs(query, documents), instruction=instruction)

    async def alog_odds(self, query: str, documents: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        """The same as `log_odds`, without blocking the event loop."""
        return await self.alog_odds_of_pairs(_pairs(query, documents), instruction=instruction)

    def log_odds_of_pairs(self, pairs: Sequence[Pair], *, instruction: str | None = None) -> FloatArray:
        """The log-odds of many pairs, whose queries may differ.

        Args:
            pairs: n tuples (query, document).
            instruction: The task of these queries, instead of the reranker's own.

        Returns:
            (n,) float32, any real number, in input order; (0,) for no pairs.

        Raises:
            InputError: See `score`, as for the other errors.
        """
        checked = _check_pairs(pairs)
        return run_flow(self._pair_flow(checked, instruction)) if checked else np.empty(0, dtype=np.float32)

    async def alog_odds_of_pairs(self, pairs: Sequence[Pair], *, instruction: str | None = None) -> FloatArray:
        """The same as `log_odds_of_pairs`, without blocking the event loop."""
        checked = _check_pairs(pairs)
        return await arun_flow(self._pair_flow(checked, instruction)) if checked else np.empty(0, dtype=np.float32)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        scale: Scale = "probability",
    ) -> list[RerankResult]:
        """Order documents by how well they meet the query.

        Args:
            query: The query.
            documents: n texts.
            top_n: Keep at most this many results; None keeps all.
            instruction: The task of this query, instead of the reranker's own.
            score_threshold: Keep only results of at least this score, before `top_n` is applied.
            scale: What `score_threshold` is in; the results have both.

        Returns:
            Results by falling relevance; equal ones keep the order in which they were given. [] for no documents.

        Raises:
            ValueError: `top_n` is below 1, `score_threshold` is NaN, or `scale` is unknown.
            InputError: See `score`, as for the other errors.
        """
        check_count(top_n)
        check_threshold(score_threshold)
        log_odds = self.log_odds(query, documents, instruction=instruction)
        return rank(log_odds, top_n=top_n, score_threshold=score_threshold, scale=scale)

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        scale: Scale = "probability",
    ) -> list[RerankResult]:
        """The same as `rerank`, without blocking the event loop."""
        check_count(top_n)
        check_threshold(score_threshold)
        log_odds = await self.alog_odds(query, documents, instruction=instruction)
        return rank(log_odds, top_n=top_n, score_threshold=score_threshold, scale=scale)

    def explain(self, query: str, document: str, *, instruction: str | None = None) -> Explanation:
        """Exactly what the model sees of a pair; needs no forward pass."""
        return self._template.explain(query, document, self._resolve(instruction))

    def _resolve(self, instruction: str | None) -> str:
        return self.instruction if instruction is None else resolve_instruction(instruction)

    def _pair_flow(self, pairs: list[Pair], instruction: str | None) -> Flow:
        task = self._resolve(instruction)

        def encode(part: Sequence[Pair]) -> list[Encoded]:
            return self._template.encode_pairs([q for q, _ in part], [d for _, d in part], task)

        return self._flow(pairs, encode, lambda log_odds: log_odds, lambda pair: len(pair[0]) + len(pair[1]))


def _pairs(query: str, documents: Sequence[str]) -> list[Pair]:
    if not isinstance(query, str):
        raise TypeError(f"query must be a string, but got {type(query).__name__}")
    return [(query, document) for document in check_texts("documents", documents)]


def _check_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Refuse what are no pairs of valid texts."""
    pairs = list(pairs)
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"pairs must be a list of (query, document) tuples, but pairs[{i}] is {pair!r}")
    queries = check_texts("queries", [query for query, _ in pairs])
    documents = check_texts("documents", [document for _, document in pairs])
    return list(zip(queries, documents, strict=True))
