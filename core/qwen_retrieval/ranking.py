"""Log-odds to a ranking: order, threshold, cut, and which of several copies of a document counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from qwen_retrieval.types import FloatArray, RerankResult, Scale
from qwen_retrieval.vectors import sigmoid


def check_top_n(top_n: int | None, *, name: str = "top_n") -> None:
    """Refuse a `top_n` below 1.

    Args:
        top_n: How many results to keep, or None for all.
        name: What the caller calls it.

    Raises:
        ValueError: It is below 1.
    """
    if top_n is not None and top_n < 1:
        raise ValueError(f"{name} must be at least 1, or None for all, but got {top_n}")


def rank(
    log_odds: FloatArray,
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
    scale: Scale = "probability",
) -> list[RerankResult]:
    """Order by falling relevance.

    Args:
        log_odds: (n,) float32.
        top_n: Keep at most this many, at least 1; None keeps all.
        score_threshold: Keep only results of at least this score, before `top_n` is applied; None keeps all.
        scale: What `score_threshold` is in.

    Returns:
        Results; equal ones keep the order in which they were given.
    """
    scores = sigmoid(log_odds)  # (n,)
    order = np.argsort(-log_odds, kind="stable").tolist()
    results = [RerankResult(i, float(scores[i]), float(log_odds[i])) for i in order]
    if score_threshold is not None:
        results = [result for result in results if result.score(scale) >= score_threshold]
    return results[:top_n]


def distinct(ids: Sequence[Hashable | None], scores: Sequence[float | None] | None = None) -> list[int]:
    """Positions of the copies to keep where several retrievers have found the same document.

    Args:
        ids: n ids; None is the same as no other.
        scores: n retrieval scores; of several copies the one with the highest score is kept, None being the lowest.

    Returns:
        One position for each id, in the order of the ids' first occurrence; of copies that score the same, the first.
    """
    best: dict[Hashable, int] = {}
    for position, id_ in enumerate(ids):
        key = ("no id", position) if id_ is None else ("id", id_)
        kept = best.setdefault(key, position)
        if scores is not None and _value(scores[position]) > _value(scores[kept]):
            best[key] = position
    return list(best.values())


def _value(score: float | None) -> float:
    return -np.inf if score is None else score
