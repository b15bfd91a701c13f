"""`QwenReranker`: Qwen3-Reranker as a LangChain document compressor and cross encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypedDict

from langchain_qwen_retrieval.options import QwenModelOptions
from qwen_retrieval import Reranker, RerankResult
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel
from qwen_retrieval.ranking import check_count, check_threshold, distinct, rank
from qwen_retrieval.types import FloatArray, Scale
from qwen_retrieval.usage import Usage, track_usage
from qwen_retrieval.vectors import sigmoid

with needs_extra("langchain_core", "langchain"):
    from langchain_core.callbacks import CallbackManager, Callbacks
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import RunnableConfig, RunnableLambda, ensure_config
    from pydantic import AliasChoices, Field, PrivateAttr, field_validator
    from pydantic.json_schema import SkipJsonSchema


class _Report(TypedDict):
    """What a trace shows of a rerank after it has run."""

    documents: list[Document]
    scores: list[float]
    count: int
    truncated: int


class QwenReranker(QwenModelOptions, BaseDocumentCompressor, BaseCrossEncoder):
    """Qwen3-Reranker on your own hardware.

    It is a document compressor (for `QwenRetriever`, `ContextualCompressionRetriever`, `DocumentCompressorPipeline`), a
    cross encoder (for `CrossEncoderReranker`), and has a `rerank` method of its own for everything else.

    Setup:
        ```bash
        pip install "qwen-retrieval[langchain]"
        ```

    Instantiate:
        ```python
        from langchain_qwen_retrieval import QwenReranker

        reranker = QwenReranker(model="Qwen/Qwen3-Reranker-0.6B", top_n=5, score_threshold=0.1)
        ```

        It takes keyword arguments only, and refuses those that it does not know. The model is loaded by the first call
        (or by `warm_up`), once per process, whoever asks for it.

    Rerank documents, or texts:
        ```python
        best = reranker.compress_documents(documents, "How do I copy a file?")
        best[0].metadata["relevance_score"]  # 0.98

        reranker.rerank("How do I copy a file?", ["shutil.copy copies a file.", "math.sin returns the sine."])
        # [RerankResult(index=0, relevance_score=0.98, log_odds=3.9), ...]
        ```

    In a chain:
        ```python
        chain = {"query": RunnablePassthrough(), "documents": retriever} | RunnableLambda(
            lambda x: reranker.compress_documents(x["documents"], x["query"]),
            afunc=lambda x: reranker.acompress_documents(x["documents"], x["query"]),
        )
        ```
    """

    _given_field: ClassVar[str] = "reranker"
    _lazy: LazyModel[Reranker] = PrivateAttr(default_factory=lambda: LazyModel(Reranker))

    model: str = Field(
        default="Qwen/Qwen3-Reranker-0.6B", validation_alias=AliasChoices("model", "model_name"), min_length=1
    )
    """Repository, checkpoint folder, short name ("0.6B", "4B", "8B") or "demo". `model_name` is accepted as well."""

    reranker: SkipJsonSchema[Reranker | None] = Field(default=None, exclude=True, repr=False)
    """A reranker that you have made, instead of a name. It has its own model options; `instruction` still applies
    where it is set. Such an object cannot be pickled."""

    top_n: int | None = None
    """Keep at most this many documents; None keeps all."""

    score_threshold: float | None = None
    """Keep only documents of at least this score (in the unit of `scale`), before `top_n` is applied."""

    instruction: str | None = None
    """The task that documents are judged for: a sentence, or the name of a preset ("code_search") or of an evaluation
    task ("SciFact"). None for the model card's web search instruction, "" for none at all."""

    scale: Scale = "probability"
    """What scores are in: "probability" (0 to 1) or "log_odds" (any real number), which does not saturate."""

    score_key: str = "relevance_score"
    """The metadata key under which returned documents have their score. An older value under that key (of an earlier
    rerank stage) is replaced, so that the score is always that of the order; to keep both, give each stage its own."""

    metadata_fields: list[str] = Field(default_factory=list)
    """Metadata that the model sees, as "key: value" lines before the text, in this order. Values such as 0 and False
    are shown; missing ones and None are not. The documents that are returned keep their own text."""

    @field_validator("top_n")
    @classmethod
    def _check_top_n(cls, value: int | None) -> int | None:
        check_count(value)
        return value

    @field_validator("score_threshold")
    @classmethod
    def _check_threshold(cls, value: float | None) -> float | None:
        check_threshold(value)
        return value

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Order documents by how well they meet the query.

        With callbacks, given or in the context of a chain, the rerank is a run of its own in the trace.

        Args:
            documents: n documents. They stay as they are.
            query: The query.
            callbacks: Where the run is reported.

        Returns:
            Copies (ids, subclasses and metadata kept; nested metadata values are shared) with their score under
            `score_key`, a Python float, best first, ties in input order. Of copies (documents of the same text and id,
            or of the same text and metadata without an id) the first is kept. [] for no documents, without loading.

        Raises:
            TypeError: `query` is not a string.
            InputError: A text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        documents = _documents(documents)
        config = _trace(callbacks) if documents else None
        if config is None:
            return self._scored(documents, self.rerank(query, documents))
        found: _Report = self._run(documents, query).invoke(self._inputs(documents, query), config)
        return found["documents"]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same as `compress_documents`, without blocking the event loop."""
        documents = _documents(documents)
        config = _trace(callbacks) if documents else None
        if config is None:
            return self._scored(documents, await self.arerank(query, documents))
        found: _Report = await self._run(documents, query).ainvoke(self._inputs(documents, query), config)
        return found["documents"]

    def rerank(
        self,
        query: str,
        documents: Sequence[str | Document],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
    ) -> list[RerankResult]:
        """Order texts or documents by how well they meet the query.

        Args:
            query: The query.
            documents: n texts or documents; of copies, as in `compress_documents`, the first is kept.
            top_n: Instead of the field of that name, as the following; None for what the field says.
            instruction: See the field.
            score_threshold: See the field; in the unit of `scale`.

        Returns:
            Results (`index` in `documents`, `relevance_score` in [0, 1], `log_odds`), best first, ties in input order.
            [] for no documents, without loading the model.

        Raises:
            TypeError: `query` is not a string, or `documents` not a list of strings and documents.
            ValueError: `top_n` is below 1, or `score_threshold` is NaN.
            InputError: A text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        settings = self._settings(top_n, instruction, score_threshold)
        kept, texts = self._texts(documents)
        if not texts:
            return []
        return _ranked(self._engine().log_odds(query, texts, instruction=settings.pop("instruction")), kept, settings)

    async def arerank(
        self,
        query: str,
        documents: Sequence[str | Document],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
    ) -> list[RerankResult]:
        """The same as `rerank`, without blocking the event loop."""
        settings = self._settings(top_n, instruction, score_threshold)
        kept, texts = self._texts(documents)
        if not texts:
            return []
        log_odds = await (await self._aengine()).alog_odds(query, texts, instruction=settings.pop("instruction"))
        return _ranked(log_odds, kept, settings)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs, whose queries may differ; the interface of cross encoders.

        Args:
            text_pairs: n tuples (query, document).

        Returns:
            n Python floats in the unit of `scale`, in input order; [] for no pairs, without loading the model.

        Raises:
            TypeError: `text_pairs` is not a list of pairs of strings.
            InputError: A text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        if not text_pairs:
            return []
        log_odds: FloatArray = self._engine().log_odds_of_pairs(text_pairs, instruction=self.instruction)
        scores: list[float] = (sigmoid(log_odds) if self.scale == "probability" else log_odds).tolist()
        return scores

    def _engine(self) -> Reranker:
        return self.reranker or self._lazy.get(self._model_options())

    async def _aengine(self) -> Reranker:
        return self.reranker or await self._lazy.aget(self._model_options())

    def _settings(self, top_n: int | None, instruction: str | None, score_threshold: float | None) -> dict[str, Any]:
        check_count(top_n)
        check_threshold(score_threshold)
        return {
            "top_n": self.top_n if top_n is None else top_n,
            "instruction": self.instruction if instruction is None else instruction,
            "score_threshold": self.score_threshold if score_threshold is None else score_threshold,
            "scale": self.scale,
        }

    def _texts(self, documents: Sequence[str | Document]) -> tuple[list[int], list[str]]:
        """The positions of documents that are no copies of others, and what the model sees of all."""
        if isinstance(documents, str | Document):
            raise TypeError(f"documents must be a list of strings or documents, but got one {type(documents).__name__}")
        documents = list(documents)
        kept = distinct([_identity(document) for document in documents])
        return kept, [self._text(document) for document in documents]

    def _text(self, document: str | Document) -> str:
        if not isinstance(document, Document):
            return document
        values = ((key, document.metadata.get(key)) for key in self.metadata_fields)
        return "\n".join([*(f"{key}: {value}" for key, value in values if value is not None), document.page_content])

    def _scored(self, documents: Sequence[Document], results: list[RerankResult]) -> list[Document]:
        found = ((documents[result.index], result.score(self.scale)) for result in results)
        return [one.model_copy(update={"metadata": {**one.metadata, self.score_key: score}}) for one, score in found]

    def _inputs(self, documents: Sequence[Document], query: str) -> dict[str, Any]:
        """What a trace shows of a rerank before it runs."""
        settings = self._settings(None, None, None)
        return {"query": query, "document_count": len(documents), "model": self._model_name, **settings}

    def _run(self, documents: Sequence[Document], query: str) -> RunnableLambda[dict[str, Any], _Report]:
        """The rerank as something that callbacks see."""

        def report(results: list[RerankResult], usage: Usage) -> _Report:
            return {
                "documents": self._scored(documents, results),
                "scores": [result.score(self.scale) for result in results],
                "count": len(results),
                "truncated": usage.truncated,
            }

        def run(_: dict[str, Any]) -> _Report:
            with track_usage() as usage:
                results = self.rerank(query, documents)
            return report(results, usage)

        async def arun(_: dict[str, Any]) -> _Report:
            with track_usage() as usage:
                results = await self.arerank(query, documents)
            return report(results, usage)

        return RunnableLambda(run, arun, name=type(self).__name__)


def _trace(callbacks: Callbacks | None) -> RunnableConfig | None:
    """The configuration of a traced run, or None if nobody listens: not the caller, its chain, nor LangSmith."""
    config: RunnableConfig = {} if callbacks is None else {"callbacks": callbacks}
    return config if CallbackManager.configure(ensure_config(config)["callbacks"]).handlers else None


def _documents(documents: Iterable[Document]) -> list[Document]:
    found = list(documents)
    for position, one in enumerate(found):
        if not isinstance(one, Document):
            raise TypeError(
                f"documents must be a list of Documents, but documents[{position}] is {type(one).__name__}; "
                "`rerank` takes plain texts"
            )
    return found


def _identity(document: str | Document) -> tuple[str, str] | None:
    """What copies have in common: text and id, which alone is unique in one store only, or else text and metadata."""
    if not isinstance(document, Document):
        return None
    return document.page_content, repr(document.metadata) if document.id is None else document.id


def _ranked(log_odds: FloatArray, kept: list[int], settings: dict[str, Any]) -> list[RerankResult]:
    return [replace(result, index=kept[result.index]) for result in rank(log_odds[kept], **settings)]
