"""Log-odds to a ranking: order, threshold, cut, and which of several copies of a document counts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from numbers import Integral, Real

import numpy as np

from qwen_retrieval.types import FloatArray, RerankResult, Scale
from qwen_retrieval.vectors import sigmoid


def check_count(count: int | None, *, name: str = "top_n", none: str = "all") -> None:
    """Refuse a number of things that is no integer, or below 1.

    Args:
        count: How many, or None.
        name: What the caller calls it.
        none: What None means.

    Raises:
        TypeError: It is no integer.
        ValueError: It is below 1.
    """
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{name} must be an integer, or None for {none}, but got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, or None for {none}, but got {count}")


def check_threshold(score_threshold: float | None) -> None:
    """Refuse a threshold that nothing could meet or miss.

    Args:
        score_threshold: The least score of a result, or None.

    Raises:
        TypeError: It is no number.
        ValueError: It is NaN.
    """
    if score_threshold is None:
        return
    if isinstance(score_threshold, bool) or not isinstance(score_threshold, Real):
        raise TypeError(f"score_threshold must be a number or None, but got {score_threshold!r}")
    if math.isnan(score_threshold):
        raise ValueError("score_threshold must be a number or None, but got nan")


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
        scores: n retrieval scores; of several copies the one with the highest score is kept, None and NaN being lowest.

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
    return -np.inf if score is None or math.isnan(score) else score
