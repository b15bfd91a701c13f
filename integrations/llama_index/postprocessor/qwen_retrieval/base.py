"""Reranking for LlamaIndex."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel
from qwen_retrieval.ranking import check_count, check_threshold, distinct
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.types import RerankResult, Scale

with needs_extra("llama_index.core", "llama-index"):
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_validator
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.callbacks.schema import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.events.exception import ExceptionEvent
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
    from pydantic.json_schema import SkipJsonSchema

from llama_index.embeddings.qwen_retrieval.options import ModelFields

RETRIEVAL_SCORE = "retrieval_score"
"""The metadata key of the score that a node came with; other rerankers for LlamaIndex use it too."""

dispatcher = get_dispatcher(__name__)


class QwenRerank(ModelFields, BaseNodePostprocessor):
    """Puts the nodes that meet the query best first, with a Qwen3-Reranker model.

    ```python
    from llama_index.postprocessor.qwen_retrieval import QwenRerank

    rerank = QwenRerank(model="Qwen/Qwen3-Reranker-0.6B", top_n=3)
    engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[rerank])
    nodes = await rerank.apostprocess_nodes(await retriever.aretrieve(query), query_str=query)
    ```

    Comes back: new `NodeWithScore` objects, best first, equal ones in the order given, with the nodes that were given;
    nothing of the input is changed. A score is the probability in [0, 1] that the text meets the query, as a Python
    float. Nodes with the same id are one node, the one with the highest retrieval score. No nodes in, no nodes out,
    without loading. The model is loaded by the first call, once per process, whoever else uses it; async methods do
    not block the event loop, and concurrent calls share batches.

    Args:
        model: "Qwen/Qwen3-Reranker-0.6B" (or "0.6B", "4B", "8B"), a checkpoint folder, or "demo".
        reranker: A `Reranker` to use instead of loading one; its own options count, and are refused here.
        top_n: Keep at most this many nodes; None keeps all.
        score_threshold: Keep only nodes of at least this score, before `top_n` is applied.
        instruction: What makes a document relevant: a sentence, a preset such as "code_search", or a task such as
            "SciFact". None for the model card's.
        scale: What scores and `score_threshold` are in: "probability", or "log_odds" (any real number), which does not
            saturate.
        keep_retrieval_score: Keep the score that a node came with in its metadata, as "retrieval_score", on a copy of
            the node, and out of the texts for embedding models and LLMs.
        metadata_mode: Which metadata the model sees before the text.
        revision: Branch, tag or commit of the repository.
        dtype: "auto", "float32", "bfloat16", "float16", "int8" (CPU) or "float8" (GPU).
        batch_invariant: The same bits for a text whatever shares its batch, on the CPU; see
            `Reranker.from_pretrained`.
        max_length: Longest input in tokens, template and query included; None for 8192, or the model's own limit.
        on_overflow: What to do with a longer input: "truncate" (the document's end, and warn) or "error".
        control_tokens: What to do with strings such as ``<|im_end|>`` in texts: "escape", "keep" or "error".
        device: "cpu", "cuda", "cuda:N" or "mps", or a list of several; None for the best there is.
        max_batch_tokens: Tokens in one forward pass; None for what suits the device.
        batch_size: Most inputs in a forward pass; None for as many as `max_batch_tokens` allows, which is faster.
        token: Access token for a gated or private repository.
        cache_folder: Where downloads are kept; None for the hub's own cache.
        local_files_only: Never ask the hub.
        show_progress_bar: Show a progress bar for more than 64 nodes.
        callback_manager: LlamaIndex's callbacks.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`), or there is no query.
        ModelError: From the first call, if the model cannot be loaded.
        ModelClosedError: From calls that are under way when `close` is called.
        InputError: From a call, if a text cannot be given to the model.
    """

    model: str = "Qwen/Qwen3-Reranker-0.6B"
    reranker: SkipJsonSchema[Reranker | None] = Field(default=None, exclude=True, repr=False)
    top_n: int | None = None
    score_threshold: float | None = None
    instruction: str | None = None
    scale: Scale = "probability"
    keep_retrieval_score: bool = False
    metadata_mode: MetadataMode = MetadataMode.EMBED
    _lazy: LazyModel[Reranker] = PrivateAttr(default_factory=lambda: LazyModel(Reranker))

    _given_field: ClassVar[str] = "reranker"
    _name_field: ClassVar[str] = "model"
    _hints: ClassVar[dict[str, str]] = {**ModelFields._hints, "model_name": "model_name is called model here"}

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_count(self.top_n)
        check_threshold(self.score_threshold)
        if self.callback_manager is None:  # as other parts of LlamaIndex allow
            self.callback_manager = CallbackManager([])
        if self.reranker is not None:
            self._refuse_options(self.reranker.spec.model)
            self.model = self.reranker.spec.model
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps and traces."""
        return "QwenRerank"

    def warm_up(self) -> None:
        """Load the model now instead of with the first call."""
        self._load()

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with self._observed(nodes, query_bundle) as (query, candidates, ranked):
            if candidates:
                ranked += self._ranked(candidates, self._load().rerank(query, **self._asked(candidates)))
        return ranked

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with self._observed(nodes, query_bundle) as (query, candidates, ranked):
            if candidates:
                reranker = await self._aload()
                ranked += self._ranked(candidates, await reranker.arerank(query, **self._asked(candidates)))
        return ranked

    @contextmanager
    def _observed(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None
    ) -> Iterator[tuple[str, list[NodeWithScore], list[NodeWithScore]]]:
        """Events around a reranking, which is always reported as ended, whatever happens.

        Yields:
            The query, the nodes without copies, and the list to put the result into.
        """
        if query_bundle is None:
            raise ValueError("query_bundle must be given to rerank, or query_str, but got neither")
        top_n = len(nodes) if self.top_n is None else self.top_n
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: top_n,
        }
        ranked: list[NodeWithScore] = []
        kept = distinct([one.node.node_id for one in nodes], [one.score for one in nodes])
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=self.model))
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield query_bundle.query_str, [nodes[position] for position in kept], ranked
                event.on_end(payload={EventPayload.NODES: ranked})
        except BaseException as error:
            dispatcher.event(ExceptionEvent(exception=error))
            raise
        finally:
            dispatcher.event(ReRankEndEvent(nodes=ranked))

    def _asked(self, candidates: list[NodeWithScore]) -> dict[str, Any]:
        return {
            "documents": [one.node.get_content(metadata_mode=self.metadata_mode) for one in candidates],
            "top_n": self.top_n,
            "instruction": self.instruction,
            "score_threshold": self.score_threshold,
            "scale": self.scale,
        }

    def _ranked(self, candidates: list[NodeWithScore], results: list[RerankResult]) -> list[NodeWithScore]:
        found = [(candidates[result.index], result.score(self.scale)) for result in results]
        if not self.keep_retrieval_score:
            return [NodeWithScore(node=one.node, score=score) for one, score in found]
        return [NodeWithScore(node=_remembering(one), score=score) for one, score in found]

    def _load(self) -> Reranker:
        return self.reranker or self._lazy.get(self._options(self.model))

    async def _aload(self) -> Reranker:
        return self.reranker or await self._lazy.aget(self._options(self.model))


def _remembering(found: NodeWithScore) -> BaseNode:
    """A copy of the node that has the retrieval score in its metadata, and in no text made of it."""
    node = found.node
    hidden = {
        keys: list(dict.fromkeys([*getattr(node, keys), RETRIEVAL_SCORE]))
        for keys in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**node.metadata, RETRIEVAL_SCORE: found.score}, **hidden})
