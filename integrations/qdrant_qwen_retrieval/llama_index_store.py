"""LlamaIndex's Qdrant store over the client of an index, and one that reads the compact layout."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from llama_index.core.schema import BaseNode  # noqa: TID251
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryResult  # noqa: TID251
from llama_index.vector_stores.qdrant import QdrantVectorStore  # noqa: TID251
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from qdrant_qwen_retrieval import bm25
from qdrant_qwen_retrieval.frameworks import AsyncClient
from qdrant_qwen_retrieval.layouts import get_layout, node_fields
from qdrant_qwen_retrieval.settings import SPARSE, Settings

_RECORD_KEYS = ("doc_id", "document_id", "ref_doc_id")  # all three mean the same in LlamaIndex


class IndexVectorStore(QdrantVectorStore):
    """LlamaIndex's own store, whose asynchronous methods work with the one client that there is.

    Args:
        client: Of the index.
        collection_name: Must exist.
        settings: What it was made with.
    """

    def __init__(self, client: QdrantClient, collection_name: str, settings: Settings) -> None:
        language = settings.language or bm25.DEFAULT_LANGUAGE
        super().__init__(
            collection_name,
            client,
            dense_vector_name=settings.dense_name,
            sparse_vector_name=SPARSE,
            # Given both functions, it does not ask the hub for a model of its own.
            enable_hybrid=settings.hybrid,
            sparse_doc_fn=lambda texts: _columns(bm25.document_vectors(texts, language)),
            sparse_query_fn=lambda texts: _columns([bm25.query_vector(text, language) for text in texts]),
        )

    def clear(self) -> None:
        """Delete all nodes. The collection stays, with what it was made with, and can be written to."""
        # The inherited one deletes the collection, below an index that is open.
        everything = models.FilterSelector(filter=models.Filter())
        self._client.delete(self.collection_name, everything, wait=True)

    async def aclear(self) -> None:
        """The same as `clear`, without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    def _ensure_async_client(self) -> None:
        if self._aclient is None:
            self._aclient = cast("AsyncQdrantClient", AsyncClient(self._client))


class CompactVectorStore(IndexVectorStore):
    """LlamaIndex's store for collections of the compact layout: it translates payloads and filters.

    Args:
        client: Of the index.
        collection_name: Must exist.
        settings: What it was made with.
    """

    def __init__(self, client: QdrantClient, collection_name: str, settings: Settings) -> None:
        super().__init__(client, collection_name, settings)  # said again, for pydantic's plugins would make up another

    def parse_to_query_result(self, response: list[Any]) -> VectorStoreQueryResult:
        """Points as nodes."""
        return super().parse_to_query_result([_with_node(point) for point in response])

    def _build_points(self, nodes: list[BaseNode], sparse_vector_name: str) -> tuple[list[Any], list[str]]:
        points, ids = super()._build_points(nodes, sparse_vector_name)
        for point in points:
            point.payload = _compact(point.payload)
        return points, ids

    def _build_subfilter(self, filters: MetadataFilters) -> models.Filter:
        # Filters within filters come back here.
        moved = [
            one if isinstance(one, MetadataFilters) else one.model_copy(update={"key": _path(one.key)})
            for one in filters.filters
        ]
        return super()._build_subfilter(filters.model_copy(update={"filters": moved}))


def _with_node(point: Any) -> Any:  # noqa: ANN401 - a record, or a scored point
    """The point as LlamaIndex would have written it."""
    stored = get_layout("compact").read(point.payload or {})
    payload = node_fields(str(point.id), stored.record_id, stored.text, stored.metadata)
    return point.model_copy(update={"payload": payload})


def _compact(payload: dict[str, Any]) -> dict[str, Any]:
    """What LlamaIndex would have written, in the compact layout."""
    stored = get_layout("llama_index").read(payload)
    return {"id": stored.id, "content": stored.text, "meta": stored.metadata, "doc_id": stored.record_id}


def _path(key: str) -> str:
    return "doc_id" if key in _RECORD_KEYS else f"meta.{key}"


def _columns(vectors: Sequence[models.SparseVector]) -> tuple[list[list[int]], list[list[float]]]:
    return [one.indices for one in vectors], [one.values for one in vectors]
