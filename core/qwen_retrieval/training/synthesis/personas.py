"""Who might ask: personas, and the five of them that fit a document best."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from qwen_retrieval.training.filtering import TextEmbedder

CANDIDATES = 5
"""How many personas the first prompt offers: arXiv 2506.05176, appendix A.1."""

INSTRUCTION = "Given a passage, retrieve the people who are likely to be interested in it"
"""What the documents are embedded for. The report does not say with which model or instruction it retrieves; ours."""

_CHUNK = 256  # documents at a time: their scores against 200,000 personas take 200 MB


def nearest_personas(
    embedder: TextEmbedder, documents: Sequence[str], personas: Sequence[str], *, count: int = CANDIDATES
) -> list[list[str]]:
    """The personas whose cosine with each document is highest.

    Args:
        embedder: Computes the vectors; for the whole Persona Hub choose few dimensions, all are held in memory.
        documents: n texts.
        personas: What the candidates are chosen from.
        count: How many for each document.

    Returns:
        n lists of `count` personas, the best first, equals in the order given; of all personas if there are fewer.
    """
    if not documents:
        return []
    known = embedder.embed_documents(personas)  # (p, d)
    best: list[list[str]] = []
    for start in range(0, len(documents), _CHUNK):
        asked = embedder.embed_queries(documents[start : start + _CHUNK], instruction=INSTRUCTION)  # (c, d)
        order = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :count]  # (c, count)
        best += [[personas[column] for column in row] for row in order]
    return best


def drawn_personas(seed: str, personas: Sequence[str], *, count: int = CANDIDATES) -> list[str]:
    """Candidates without an embedder: the same for the same seed and personas, of all personas if there are fewer."""
    return random.Random(seed).sample(personas, min(count, len(personas)))
