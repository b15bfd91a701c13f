"""Haystack's Qdrant document store over the client of an index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn, cast

from haystack import Document  # noqa: TID251
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from qdrant_qwen_retrieval.chunks import BOOKKEEPING, Chunk
from qdrant_qwen_retrieval.frameworks import AsyncClient
from qdrant_qwen_retrieval.layouts import Layout
from qdrant_qwen_retrieval.manifest import Manifest
from qdrant_qwen_retrieval.metadata import json_metadata
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
        self._layout = layout

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
            f"QdrantDocumentStore(url=…, index={self.index!r}, embedding_dim={self.embedding_dim}, "
            f"use_sparse_embeddings={self.use_sparse_embeddings}) for the collection"
        )

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete all documents.

        Raises:
            ValueError: The collection is to be made anew, which would lose what it was made with.
        """
        if recreate_index:
            self._refuse_to_recreate()
        super().delete_all_documents()

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """Delete all documents.

        Raises:
            ValueError: The collection is to be made anew, which would lose what it was made with.
        """
        if recreate_index:
            self._refuse_to_recreate()
        await super().delete_all_documents_async()

    def recreate_collection(self, *_: object, **__: object) -> NoReturn:
        """Refused.

        Raises:
            ValueError: Always.
        """
        self._refuse_to_recreate()

    async def recreate_collection_async(self, *_: object, **__: object) -> NoReturn:
        """Refused.

        Raises:
            ValueError: Always.
        """
        self._refuse_to_recreate()

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

    def _refuse_to_recreate(self) -> NoReturn:
        raise ValueError(
            f"Haystack cannot recreate collection {self.index!r}: it would not write down what it was made with, and "
            "no index could open it again. delete_all_documents() empties it; to make it anew, call "
            f"client.delete_collection({self.index!r}) and ingest with a new QdrantIndex"
        )

    def _create_updated_point_from_record(  # type: ignore[override]  # static there
        self, record: models.Record, meta: dict[str, Any]
    ) -> models.PointStruct:
        """What `update_by_filter` writes, sync and async."""
        payload, meta = record.payload or {}, json_metadata(meta)
        if self._layout.marks(payload) is not None:
            record, meta = record.model_copy(update={"payload": self._layout.changed(payload, meta)}), {}
        return super()._create_updated_point_from_record(record, meta)

    @staticmethod
    def _metadata_fields_info_from_schema(payload_schema: dict[str, Any]) -> dict[str, dict[str, str]]:
        """What `get_metadata_fields_info` reads of indexes; where that is nothing, it looks into the documents."""
        own = f"meta.{BOOKKEEPING}."
        fields = {path: index for path, index in payload_schema.items() if not path.startswith(own)}
        return QdrantDocumentStore._metadata_fields_info_from_schema(fields)

    @staticmethod
    def _process_records_fields_info(records: list[Any], field_info: dict[str, dict[str, str]]) -> None:
        QdrantDocumentStore._process_records_fields_info(records, field_info)
        field_info.pop(BOOKKEEPING, None)

    def _process_query_point_results(
        self, results: list[models.ScoredPoint], scale_score: bool = False
    ) -> list[Document]:
        return self._clean(super()._process_query_point_results(results, scale_score))

    def _process_group_results(self, groups: list[models.PointGroup]) -> list[Document]:
        return self._clean(super()._process_group_results(groups))

    def _clean(self, documents: Iterable[Document]) -> list[Document]:
        """Documents without what Haystack has taken for metadata; written back, they are no longer ours."""
        hidden = self._layout.beside_metadata
        return [
            replace(one, meta={key: value for key, value in one.meta.items() if key not in hidden}) for one in documents
        ]
