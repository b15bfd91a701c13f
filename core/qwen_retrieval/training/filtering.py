"""Pairs whose two texts are not alike enough to be trusted: arXiv 2506.05176, section 3, "Multi-stage Training"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qwen_retrieval.templates import check_texts
from qwen_retrieval.types import FloatArray

THRESHOLD = 0.7
"""The report keeps synthetic pairs for its second stage whose cosine is greater than 0.7: some 12 of 150 million."""

CHUNK = 1024
"""Pairs whose vectors are in memory at a time."""


class TextEmbedder(Protocol):
    """What filters, mining and synthesis need of an embedder; `Embedder` is one."""

    def embed_queries(self, queries: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        """(n, d) vectors of unit length."""

    def embed_documents(self, documents: Sequence[str]) -> FloatArray:
        """(n, d) vectors of unit length."""


@dataclass(frozen=True, slots=True)
class FilteredPairs:
    """Which pairs were kept, and how alike all of them were.

    Attributes:
        cosines: (n,) float32, of the query and the document of each pair, in the order given.
        threshold: A pair is kept if its cosine is greater.
    """

    cosines: FloatArray
    threshold: float

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """(n,) whether each pair was kept."""
        return self.cosines > np.float32(self.threshold)

    @property
    def dropped(self) -> list[int]:
        """Positions of the pairs that were dropped, the least alike first."""
        order = np.argsort(self.cosines, kind="stable")
        dropped: list[int] = order[~self.kept[order]].tolist()
        return dropped

    def __str__(self) -> str:
        count, kept = len(self.cosines), int(self.kept.sum())
        if not count:
            return "no pairs"
        low, middle, high = np.quantile(self.cosines, (0.1, 0.5, 0.9))
        return (
            f"kept {kept:,} of {count:,} pairs ({kept / count:.1%}) with a cosine over {self.threshold:g}; "
            f"dropped {count - kept:,}; cosines: 10 % below {low:.2f}, half below {middle:.2f}, 90 % below {high:.2f}"
        )


def filter_positives(
    embedder: TextEmbedder,
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    threshold: float = THRESHOLD,
    instruction: str | None = None,
) -> FilteredPairs:
    """Compare each query with the document that is said to answer it.

    The report filters with a model of its own, so the threshold is in that model's cosines: look at the figures that
    ``str()`` of the result gives before you trust 0.7 with another.

    Args:
        embedder: Computes the vectors.
        queries: n texts.
        documents: n texts; the i-th answers the i-th query.
        threshold: A pair is kept if its cosine is greater; from -1 to 1.
        instruction: The task of the queries, instead of the embedder's own.

    Returns:
        The cosine of every pair, and which were kept; for no pairs, none.

    Raises:
        ValueError: There are not as many queries as documents, or the threshold is out of range.
        TypeError: One of them is no list of strings.
    """
    asked, answers = check_texts("queries", queries), check_texts("documents", documents)
    if len(asked) != len(answers):
        raise ValueError(f"queries and documents must have the same length, but got {len(asked)} and {len(answers)}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine, between -1 and 1, but got {threshold}")
    cosines = np.empty(len(asked), dtype=np.float32)
    for start in range(0, len(asked), CHUNK):
        part = slice(start, start + CHUNK)
        left = embedder.embed_queries(asked[part], instruction=instruction)  # (c, d)
        right = embedder.embed_documents(answers[part])  # (c, d)
        cosines[part] = np.einsum("cd,cd->c", left, right)
    return FilteredPairs(cosines, threshold)
