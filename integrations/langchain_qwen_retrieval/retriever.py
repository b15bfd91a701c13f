"""`QwenRetriever`: any retriever or vector store, with a rerank after it."""

from __future__ import annotations

from typing import Any, TypeVar

from langchain_qwen_retrieval.reranker import QwenReranker
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.ranking import check_count

with needs_extra("langchain_core", "langchain"):
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable
    from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
    from pydantic import ConfigDict, Field, ValidationInfo, field_validator

T = TypeVar("T")

DEFAULT_K = 4
"""What vector stores of LangChain return."""

DEFAULT_FETCH_K = 40
"""Recall enough for the reranker to find something better further down, at the cost of one or two batches."""


class QwenRetriever(BaseRetriever):
    """Retrieve many, rerank, return the best.

    `k`, `fetch_k`, `score_threshold` and `instruction` may be given in four places. The most specific wins: the call,
    then this retriever, then its parts (`reranker`, or the search arguments of the vector store retriever), then the
    default.

    Instantiate:
        ```python
        from langchain_qwen_retrieval import QwenReranker, QwenRetriever

        retriever = QwenRetriever(retriever=vector_store, reranker=QwenReranker(), k=5, fetch_k=50)
        ```

    Use:
        ```python
        documents = retriever.invoke("How do I copy a file?")
        documents = retriever.invoke("How do I copy a file?", k=1, score_threshold=0.5, instruction="code_search")
        documents = retriever.invoke("How do I copy a file?", search_kwargs={"filter": {"tenant": "a"}})
        documents = await retriever.ainvoke("How do I copy a file?")
        documents[0].metadata["relevance_score"]
        ```

    Configure at run time:
        ```python
        configurable = retriever.configurable_fields(k=ConfigurableField(id="k"))
        configurable.invoke("How do I copy a file?", config={"configurable": {"k": 10}})
        ```

    `instruction` concerns the reranker alone: a vector store embeds queries with its own embeddings, whose instruction
    is theirs (`QwenEmbeddings(instruction=...)`).

    The retrieval and the rerank are runs below this one in a trace. Unknown arguments of a call raise `TypeError`.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    retriever: Runnable[str, list[Document]] | VectorStore
    """Where candidates come from: a vector store, or any retriever."""

    reranker: QwenReranker = Field(default_factory=QwenReranker)
    """What orders them."""

    k: int | None = None
    """How many documents to return; None for the reranker's `top_n`, or 4 if it has none."""

    fetch_k: int | None = None
    """How many candidates to rerank, at least `k`. A vector store or its retriever is asked for so many; None for what
    the retriever's `search_kwargs` say, or 40. Other retrievers decide for themselves how many they find, and the rest
    is left out; None for all of them."""

    score_threshold: float | None = None
    """Return only documents of at least this score, in the unit of the reranker's `scale`; None for the reranker's."""

    instruction: str | None = None
    """The task that documents are judged for; None for the reranker's."""

    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for the search of a vector store or its retriever, such as `filter`. Those of a call are added
    to them."""

    @field_validator("k", "fetch_k")
    @classmethod
    def _check_count(cls, value: int | None, info: ValidationInfo) -> int | None:
        check_count(value, name=str(info.field_name), none="the default")
        return value

    @field_validator("retriever", "search_kwargs")
    @classmethod
    def _check_search_kwargs(cls, value: T, info: ValidationInfo) -> T:
        values = {**info.data, str(info.field_name): value}
        cls._check_search_kwargs_for(values.get("retriever"), values.get("search_kwargs") or {})
        return value

    @staticmethod
    def _check_search_kwargs_for(retriever: object, search_kwargs: dict[str, Any]) -> dict[str, Any]:
        if "k" in search_kwargs:
            raise ValueError("search_kwargs must not contain k: how many to search for is fetch_k")
        if search_kwargs and not isinstance(retriever, VectorStore | VectorStoreRetriever):
            raise ValueError("search_kwargs must be given to the retriever itself, unless it is a vector store's")
        return search_kwargs

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        search_kwargs: dict[str, Any] | None = None,
    ) -> list[Document]:
        reranker = self._rerank_stage(k, instruction, score_threshold)
        recall, limit = self._recall_stage(fetch_k, reranker.top_n, search_kwargs)
        documents = recall.invoke(query, config={"callbacks": run_manager.get_child()})
        return reranker.compress_documents(documents[:limit], query, callbacks=run_manager.get_child())

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        search_kwargs: dict[str, Any] | None = None,
    ) -> list[Document]:
        reranker = self._rerank_stage(k, instruction, score_threshold)
        recall, limit = self._recall_stage(fetch_k, reranker.top_n, search_kwargs)
        documents = await recall.ainvoke(query, config={"callbacks": run_manager.get_child()})
        return await reranker.acompress_documents(documents[:limit], query, callbacks=run_manager.get_child())

    def _rerank_stage(self, k: int | None, instruction: str | None, score_threshold: float | None) -> QwenReranker:
        """A view of the reranker with the settings of one call."""
        check_count(k, name="k", none="the default")
        own = self.reranker
        settings = {
            "top_n": _first(k, self.k, own.top_n, DEFAULT_K),
            "instruction": _first(instruction, self.instruction, own.instruction),
            "score_threshold": _first(score_threshold, self.score_threshold, own.score_threshold),
        }
        return own.model_copy(update=settings)

    def _recall_stage(
        self, fetch_k: int | None, k: int | None, search_kwargs: dict[str, Any] | None
    ) -> tuple[Runnable[str, list[Document]], int | None]:
        """What finds the candidates of one call, and how many of them count."""
        search_kwargs = self._check_search_kwargs_for(self.retriever, {**self.search_kwargs, **(search_kwargs or {})})
        check_count(fetch_k, name="fetch_k", none="the default")
        asked = _first(fetch_k, self.fetch_k)
        base = self.retriever
        if isinstance(base, VectorStore):
            base = base.as_retriever()
        if isinstance(base, VectorStoreRetriever):
            asked = max(_first(asked, base.search_kwargs.get("k"), DEFAULT_FETCH_K) or 0, k or 0)
            search = {**base.search_kwargs, **search_kwargs, "k": asked}
            if base.search_type == "mmr":  # chooses k of its own fetch_k, which is 20 by default
                search["fetch_k"] = max(search.get("fetch_k", 20), asked)
            base = base.model_copy(update={"search_kwargs": search})
        return base, None if asked is None else max(asked, k or 0)


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)
