"""What LangChain's Qdrant store needs for hybrid search."""

from __future__ import annotations

from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector

from qdrant_qwen_retrieval import bm25


class Bm25Embeddings(SparseEmbeddings):
    """The BM25 vectors of a collection, for LangChain's hybrid and sparse retrieval.

    Args:
        language: Of the texts, as the collection was made with.
    """

    def __init__(self, language: str) -> None:
        self._language = language

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """One sparse vector for each text, in order."""
        vectors = bm25.document_vectors(texts, self._language)
        return [SparseVector(indices=one.indices, values=one.values) for one in vectors]

    def embed_query(self, text: str) -> SparseVector:
        """The sparse vector of a query."""
        vector = bm25.query_vector(text, self._language)
        return SparseVector(indices=vector.indices, values=vector.values)
