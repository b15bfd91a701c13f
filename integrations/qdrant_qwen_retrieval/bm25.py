"""Sparse vectors for hybrid search: BM25, the same on every store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qdrant_client import models

from qwen_retrieval.errors import needs_extra

if TYPE_CHECKING:
    from qdrant_edge import Bm25

DEFAULT_LANGUAGE = "english"


def document_vectors(texts: Sequence[str], language: str) -> list[models.SparseVector]:
    """Term weights of texts that are searched; the store multiplies them by the rarity of each term.

    Args:
        texts: n texts.
        language: Decides stemming and stop words, such as "english".

    Returns:
        n sparse vectors, in input order; without entries for a text that has no words.
    """
    model = load(language)
    return [_convert(model.embed_document(text)) for text in texts]


def query_vector(text: str, language: str) -> models.SparseVector:
    """The terms of a query, each once; without entries if it has no words."""
    return _convert(load(language).embed_query(text))


@lru_cache(maxsize=8)
def load(language: str) -> Bm25:
    """The model for a language; k, b and the average length are the server's defaults.

    Raises:
        ValueError: The language is not known.
        MissingDependencyError: qdrant-edge-py is not installed.
    """
    with needs_extra("qdrant_edge", "qdrant"):
        from qdrant_edge import Bm25, Bm25Config
    try:
        return Bm25(Bm25Config(language=language))
    except ValueError as error:
        raise ValueError(f"language must be one that BM25 knows, such as 'english', but got {language!r}") from error


def _convert(sparse: Any) -> models.SparseVector:  # noqa: ANN401
    return models.SparseVector(indices=list(sparse.indices), values=list(sparse.values))
