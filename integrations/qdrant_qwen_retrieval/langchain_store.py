"""What LangChain's Qdrant store needs over a collection: its model, and BM25 for hybrid search."""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.embeddings import Embeddings  # noqa: TID251
from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector

from qdrant_qwen_retrieval import bm25
from qdrant_qwen_retrieval.manifest import Manifest
from qwen_retrieval.errors import CollectionMismatchError
from qwen_retrieval.fingerprint import check_dimensions, embedding_fingerprint
from qwen_retrieval.specs import resolve_model
from qwen_retrieval.templates import DEFAULT_MAX_LENGTH


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


def check_model(name: str, manifest: Manifest, embedding: Embeddings) -> None:
    """Refuse a `QwenEmbeddings` that gives other vectors than the collection has; no model is loaded for that.

    Of the vectors of other embeddings nothing is known.

    Args:
        name: Of the collection.
        manifest: What it was made with.
        embedding: The caller's.

    Raises:
        CollectionMismatchError: Something differs; it names both sides of everything that does.
    """
    ours = sys.modules.get("langchain_qwen_retrieval")  # who has one of its embeddings has imported it
    if ours is None or not isinstance(embedding, ours.QwenEmbeddings):
        return
    asked = _identity(embedding, manifest)
    dtype = (embedding.embedder or embedding).dtype
    fingerprint = embedding_fingerprint(**asked, dtype=dtype, instruction="")  # of documents, which have none
    if fingerprint == manifest.fingerprint:
        return
    made = {key: getattr(manifest, key, None) for key in asked}  # no document has an instruction
    asked["max_length"] = asked["max_length"] or DEFAULT_MAX_LENGTH
    differences = [f"{key} is {made[key]!r}, not {asked[key]!r}" for key in asked if made[key] != asked[key]]
    raise CollectionMismatchError(
        f"collection {name!r} was made with another model than this QwenEmbeddings: "
        f"{'; '.join(differences or [f'fingerprint is {manifest.fingerprint!r}, not {fingerprint!r}'])}. Open it with "
        "QwenEmbeddings(embedder=index.embedder), or ingest into a collection of another name"
    )


def _identity(embedding: Any, manifest: Manifest) -> dict[str, Any]:  # noqa: ANN401 - a QwenEmbeddings
    """What decides the vectors of documents, by the names of `embedding_fingerprint`."""
    embedder = embedding.embedder
    if embedder is None:
        model = resolve_model(embedding.model, "embedding")
        # Of an unknown repository the length shows when it is loaded, and LangChain compares that.
        dimensions = check_dimensions(model, embedding.dimensions) or manifest.dimensions
    else:
        model, dimensions = embedder.spec.model, embedding.dimensions or embedder.dimensions
    given = embedder or embedding
    return {
        "model": model,
        "revision": given.revision,
        "dimensions": dimensions,
        "max_length": given.max_length,
        "control_tokens": given.control_tokens,
        "document_instruction": embedding.document_instruction or None,
    }
