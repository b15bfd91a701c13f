"""Stores to ingest into and to search: ours, qdrant-client's local mode, and what each framework does on its own."""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from haystack import Document as HaystackDocument
from haystack.components.writers import DocumentWriter
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore as LangChainStore
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import Document as LlamaIndexDocument
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from pydantic import PrivateAttr
from qdrant_client import QdrantClient, models

from benchmarks.qdrant_workload import PrecomputedEmbedder
from qdrant_qwen_retrieval import QdrantIndex, Record

MEMORY = ":memory:"


@dataclass(frozen=True)
class Filled:
    """A store that has all records.

    Attributes:
        search: The numbers of the ten records nearest to a text, best first.
        close: Gives everything back.
    """

    search: Callable[[str], list[int]]
    close: Callable[[], object]


Contender = Callable[[PrecomputedEmbedder, Path, list[Record]], Filled]
"""Takes records into a new store: what is measured. The folder is empty; what keeps all in memory leaves it so."""


def ours(embedder: PrecomputedEmbedder, folder: Path, records: list[Record], *, graph: bool) -> Filled:
    """`QdrantIndex` on the embedded engine, on disk; building the graph counts as a part of ingesting."""
    index = QdrantIndex("bench", embedder=embedder, path=folder)
    index.ingest(records, chunk_size=None, optimize=graph)
    return Filled(lambda text: [_number(hit.record_id) for hit in index.search(text, limit=10)], index.close)


def client(embedder: PrecomputedEmbedder, folder: Path, records: list[Record], *, on_disk: bool) -> Filled:
    """qdrant-client's local mode, by `upload_points`."""
    client = _local_client(folder, on_disk)
    size = models.VectorParams(size=embedder.dimensions, distance=models.Distance.COSINE)
    client.create_collection("bench", vectors_config=size)
    vectors = embedder.embed_documents([record.text for record in records])
    client.upload_points(
        "bench",
        (
            models.PointStruct(
                id=_number(record.id), vector=row, payload={"content": record.text, "meta": dict(record.metadata)}
            )
            for record, row in zip(records, vectors.tolist(), strict=True)
        ),
    )

    def search(text: str) -> list[int]:
        found = client.query_points("bench", query=embedder.embed_queries([text])[0], limit=10, with_payload=True)
        return [int(point.id) for point in found.points]

    return Filled(search, client.close)


def langchain(embedder: PrecomputedEmbedder, folder: Path, records: list[Record], *, on_disk: bool) -> Filled:
    """`QdrantVectorStore.from_documents`."""
    documents = [
        LangChainDocument(record.text, metadata=dict(record.metadata) | {"id": record.id}) for record in records
    ]
    store = LangChainStore.from_documents(
        documents, _LangChainVectors(embedder), collection_name="bench", **_place(folder, on_disk)
    )
    return Filled(
        lambda text: [_number(found.metadata["id"]) for found in store.similarity_search(text, k=10)],
        store.client.close,
    )


def llama_index(embedder: PrecomputedEmbedder, folder: Path, records: list[Record], *, on_disk: bool) -> Filled:
    """`VectorStoreIndex.from_documents`; without splitting, which the others do not do either."""
    documents = [
        LlamaIndexDocument(text=record.text, metadata=dict(record.metadata) | {"id": record.id}) for record in records
    ]
    client = _local_client(folder, on_disk)
    context = StorageContext.from_defaults(vector_store=LlamaIndexStore(client=client, collection_name="bench"))
    model = _LlamaIndexVectors(embedder)
    index = VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=model, transformations=[])
    retriever = index.as_retriever(similarity_top_k=10)
    return Filled(lambda text: [_number(found.node.metadata["id"]) for found in retriever.retrieve(text)], client.close)


def haystack(embedder: PrecomputedEmbedder, folder: Path, records: list[Record], *, on_disk: bool) -> Filled:
    """`DocumentWriter`, of documents that have their vectors."""
    vectors = embedder.embed_documents([record.text for record in records]).tolist()
    documents = [
        HaystackDocument(id=record.id, content=record.text, meta=dict(record.metadata), embedding=row)
        for record, row in zip(records, vectors, strict=True)
    ]
    store = QdrantDocumentStore(
        index="bench", embedding_dim=embedder.dimensions, progress_bar=False, **_place(folder, on_disk)
    )
    DocumentWriter(store).run(documents)
    retriever = QdrantEmbeddingRetriever(store, top_k=10)

    def search(text: str) -> list[int]:
        found = retriever.run(query_embedding=embedder.embed_queries([text])[0].tolist())
        return [_number(document.id) for document in found["documents"]]

    return Filled(search, _opened(store).close)


CONTENDERS: dict[str, Contender] = {
    "ours, embedded": partial(ours, graph=False),
    "ours, embedded, with graph": partial(ours, graph=True),
    "qdrant-client :memory:": partial(client, on_disk=False),
    "LangChain :memory:": partial(langchain, on_disk=False),
    "LlamaIndex :memory:": partial(llama_index, on_disk=False),
    "Haystack :memory:": partial(haystack, on_disk=False),
    "qdrant-client path=": partial(client, on_disk=True),
    "LangChain path=": partial(langchain, on_disk=True),
    "LlamaIndex path=": partial(llama_index, on_disk=True),
    "Haystack path=": partial(haystack, on_disk=True),
}


def _place(folder: Path, on_disk: bool) -> dict[str, Any]:
    return {"path": str(folder)} if on_disk else {"location": MEMORY}


def _local_client(folder: Path, on_disk: bool) -> QdrantClient:
    return QdrantClient(**_place(folder, on_disk))


def _opened(store: QdrantDocumentStore) -> QdrantClient:
    assert store._client is not None  # by its first use
    return store._client


def _number(identifier: str) -> int:
    return int(identifier.rsplit("-", 1)[1])


class _LangChainVectors(Embeddings):
    def __init__(self, embedder: PrecomputedEmbedder) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed_documents(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class _LlamaIndexVectors(BaseEmbedding):
    _embedder: PrecomputedEmbedder = PrivateAttr()

    def __init__(self, embedder: PrecomputedEmbedder) -> None:
        super().__init__(model_name="precomputed")
        self._embedder = embedder

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        # LlamaIndex puts the metadata before the text.
        numbered = [text[text.rindex("\n\n") + 2 :] if "\n\n" in text else text for text in texts]
        return self._embedder.embed_documents(numbered).tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)
