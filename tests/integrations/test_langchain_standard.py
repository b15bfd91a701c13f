"""LangChain's own standard suites; each class may inherit from one suite only."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_qwen_retrieval import QwenEmbeddings, QwenReranker, QwenRetriever
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return QwenEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "demo", "dimensions": 32}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return QwenEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "demo", "device": "cpu"}


class TestRetrieverOverAVectorStore(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return QwenRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        embedder = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
        store = InMemoryVectorStore(QwenEmbeddings(embedder=embedder))
        store.add_documents([Document(f"document {number}", id=str(number)) for number in range(10)])
        reranker = Reranker(FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec())
        return {"retriever": store, "reranker": QwenReranker(reranker=reranker)}

    @property
    def retriever_query_example(self) -> str:
        return "document 7"
