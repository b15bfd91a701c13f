"""Haystack's Qdrant document store over the client of an index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn, cast

from haystack import Document  # noqa: TID251
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from qdrant_qwen_retrieval.chunks import Chunk
from qdrant_qwen_retrieval.frameworks import AsyncClient
from qdrant_qwen_retrieval.layouts import Layout
from qdrant_qwen_retrieval.manifest import Manifest
from qdrant_qwen_retrieval.settings import UNNAMED

_SAMPLE = Chunk("a", 0, 1, "text", {"field": 1})  # without metadata, old versions would read it


def reads(layout: Layout) -> bool:
    """Whether the installed Haystack can read the layout.

    Before 3.1, ``Document.from_dict`` refuses fields beside ``meta`` that it does not know.
    """
    try:
        Document.from_dict(layout.payload(_SAMPLE))
    except ValueError:
        return False
    return True


class IndexDocumentStore(QdrantDocumentStore):
    """Haystack's own store, with a client that is open already, and without our bookkeeping in the documents.

    Args:
        client: Of the index.
        collection_name: Must exist.
        layout: Of its payloads.
        manifest: What it was made with.
    """

    def __init__(self, client: QdrantClient, collection_name: str, layout: Layout, manifest: Manifest) -> None:
        super().__init__(
            index=collection_name,
            embedding_dim=manifest.dimensions,
            # It means "named vectors"; there need be no sparse ones among them.
            use_sparse_embeddings=manifest.settings.dense_name != UNNAMED,
            sparse_idf=manifest.settings.hybrid,
            progress_bar=False,
        )
        self._opened = client
        self._not_meta = layout.beside_metadata

    def _initialize_client(self) -> None:
        self._client = self._opened

    async def _initialize_async_client(self) -> None:
        self._async_client = cast("AsyncQdrantClient", AsyncClient(self._opened))

    def close(self) -> None:
        """Nothing: the client belongs to the index."""

    def to_dict(self) -> NoReturn:
        """Refused.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "this document store uses the open client of an index, and cannot be written down; for YAML, make a "
            "QdrantDocumentStore(url=…, index=…) for the collection"
        )

    def filter_documents(self, filters: dict[str, Any] | models.Filter | None = None) -> list[Document]:
        """The documents that match, or all."""
        return self._clean(super().filter_documents(filters))

    async def filter_documents_async(self, filters: dict[str, Any] | models.Filter | None = None) -> list[Document]:
        """The documents that match, or all."""
        return self._clean(await super().filter_documents_async(filters))

    def get_documents_by_id(self, ids: list[str]) -> list[Document]:
        """The documents of those ids that exist."""
        return self._clean(super().get_documents_by_id(ids))

    async def get_documents_by_id_async(self, ids: list[str]) -> list[Document]:
        """The documents of those ids that exist."""
        return self._clean(await super().get_documents_by_id_async(ids))

    def _process_query_point_results(
        self, results: list[models.ScoredPoint], scale_score: bool = False
    ) -> list[Document]:
        return self._clean(super()._process_query_point_results(results, scale_score))

    def _process_group_results(self, groups: list[models.PointGroup]) -> list[Document]:
        return self._clean(super()._process_group_results(groups))

    def _clean(self, documents: Iterable[Document]) -> list[Document]:
        """Documents without what Haystack has taken for metadata; written back, they are no longer ours."""
        return [
            replace(one, meta={key: value for key, value in one.meta.items() if key not in self._not_meta})
            for one in documents
        ]
