"""Stores to ingest into and to search: ours, qdrant-client's local mode, and what each framework does on its own."""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"

import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
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


class Contender(ABC):
    """A store: filled once, searched often, closed.

    Args:
        embedder: Gives the vectors of texts.
        folder: An empty one; those that keep everything in memory leave it empty.
    """

    def __init__(self, embedder: PrecomputedEmbedder, folder: Path) -> None:
        self.embedder = embedder
        self.folder = folder

    @abstractmethod
    def ingest(self, records: list[Record]) -> None:
        """From records to points that can be found."""

    @abstractmethod
    def search(self, text: str) -> list[int]:
        """The numbers of the ten records nearest to a text, best first."""

    def close(self) -> None:
        """Give everything back."""


class Ours(Contender):
    """`QdrantIndex` on the embedded engine, on disk."""

    def ingest(self, records: list[Record]) -> None:
        self.index = QdrantIndex("bench", embedder=self.embedder, path=self.folder)
        self.index.ingest(records, chunk_size=None)

    def search(self, text: str) -> list[int]:
        return [_number(hit.record_id) for hit in self.index.search(text, limit=10)]

    def close(self) -> None:
        self.index.close()


class OursWithGraph(Ours):
    """The same, with the graph built, which counts as a part of ingesting."""

    def ingest(self, records: list[Record]) -> None:
        super().ingest(records)
        self.index.optimize()


class Client(Contender):
    """qdrant-client's local mode in memory, by `upload_points`."""

    location = MEMORY

    def ingest(self, records: list[Record]) -> None:
        self.client = local_client(self.location, self.folder)
        size = models.VectorParams(size=self.embedder.dimensions, distance=models.Distance.COSINE)
        self.client.create_collection("bench", vectors_config=size)
        vectors = self.embedder.embed_documents([record.text for record in records])
        self.client.upload_points(
            "bench",
            (
                models.PointStruct(
                    id=_number(record.id), vector=row, payload={"content": record.text, "meta": dict(record.metadata)}
                )
                for record, row in zip(records, vectors.tolist(), strict=True)
            ),
        )

    def search(self, text: str) -> list[int]:
        vector = self.embedder.embed_queries([text])[0]
        found = self.client.query_points("bench", query=vector, limit=10, with_payload=True)
        return [int(point.id) for point in found.points]

    def close(self) -> None:
        self.client.close()


class ClientOnDisk(Client):
    """The same with ``path=``."""

    location = "path"


class LangChain(Contender):
    """`QdrantVectorStore.from_documents` in memory."""

    on_disk = False

    def ingest(self, records: list[Record]) -> None:
        documents = [
            LangChainDocument(record.text, metadata=dict(record.metadata) | {"id": record.id}) for record in records
        ]
        place: dict[str, Any] = {"path": str(self.folder)} if self.on_disk else {"location": MEMORY}
        self.store = LangChainStore.from_documents(
            documents, _LangChainVectors(self.embedder), collection_name="bench", **place
        )

    def search(self, text: str) -> list[int]:
        return [_number(found.metadata["id"]) for found in self.store.similarity_search(text, k=10)]

    def close(self) -> None:
        self.store.client.close()


class LangChainOnDisk(LangChain):
    """The same with ``path=``."""

    on_disk = True


class LlamaIndex(Contender):
    """`VectorStoreIndex.from_documents` in memory; without splitting, which the others do not do either."""

    location = MEMORY

    def ingest(self, records: list[Record]) -> None:
        documents = [
            LlamaIndexDocument(text=record.text, metadata=dict(record.metadata) | {"id": record.id})
            for record in records
        ]
        self.client = local_client(self.location, self.folder)
        context = StorageContext.from_defaults(
            vector_store=LlamaIndexStore(client=self.client, collection_name="bench")
        )
        model = _LlamaIndexVectors(self.embedder)
        self.index = VectorStoreIndex.from_documents(
            documents, storage_context=context, embed_model=model, transformations=[]
        )
        self.retriever = self.index.as_retriever(similarity_top_k=10)

    def search(self, text: str) -> list[int]:
        return [_number(found.node.metadata["id"]) for found in self.retriever.retrieve(text)]

    def close(self) -> None:
        self.client.close()


class LlamaIndexOnDisk(LlamaIndex):
    """The same with ``path=``."""

    location = "path"


class Haystack(Contender):
    """`DocumentWriter` in memory, of documents that have their vectors."""

    on_disk = False

    def ingest(self, records: list[Record]) -> None:
        vectors = self.embedder.embed_documents([record.text for record in records]).tolist()
        documents = [
            HaystackDocument(id=record.id, content=record.text, meta=dict(record.metadata), embedding=row)
            for record, row in zip(records, vectors, strict=True)
        ]
        place: dict[str, Any] = {"path": str(self.folder)} if self.on_disk else {"location": MEMORY}
        self.store = QdrantDocumentStore(index="bench", embedding_dim=self.embedder.dimensions, **place)
        DocumentWriter(self.store).run(documents)
        self.retriever = QdrantEmbeddingRetriever(self.store, top_k=10)

    def search(self, text: str) -> list[int]:
        vector = self.embedder.embed_queries([text])[0].tolist()
        return [_number(found.id) for found in self.retriever.run(query_embedding=vector)["documents"]]

    def close(self) -> None:
        with suppress(AttributeError):  # opened only when it was used
            self.store._client.close()


class HaystackOnDisk(Haystack):
    """The same with ``path=``."""

    on_disk = True


CONTENDERS: dict[str, type[Contender]] = {
    "ours, embedded": Ours,
    "ours, embedded, with graph": OursWithGraph,
    "qdrant-client :memory:": Client,
    "LangChain :memory:": LangChain,
    "LlamaIndex :memory:": LlamaIndex,
    "Haystack :memory:": Haystack,
    "qdrant-client path=": ClientOnDisk,
    "LangChain path=": LangChainOnDisk,
    "LlamaIndex path=": LlamaIndexOnDisk,
    "Haystack path=": HaystackOnDisk,
}


def local_client(location: str, folder: Path) -> QdrantClient:
    """qdrant-client's local mode, in memory or in a folder."""
    warnings.filterwarnings("ignore", message="Local mode is not recommended", category=UserWarning)
    return QdrantClient(MEMORY) if location == MEMORY else QdrantClient(path=str(folder))


def _number(identifier: str) -> int:
    return int(identifier.rsplit("-", 1)[1])


class _LangChainVectors(Embeddings):
    def __init__(self, embedder: PrecomputedEmbedder) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed_documents(texts).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        # LangChain measures the length of a vector with a text of its own.
        return self.embed_documents([text if text[:1].isdigit() else "0"])[0]


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
