"""What each system finds: exact search over vectors, full or quantized, BM25, and the reranker's order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qwen_retrieval.evaluation.bm25 import BM25
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.types import FloatArray
from qwen_retrieval.vectors import IntArray

OVERSAMPLING = 4
"""How many times more candidates a search over binary codes gives to rescoring."""

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and how much there is."""

_SCORES_AT_ONCE = 1 << 24
_QUERIES_AT_ONCE = 16


class Searchable(Protocol):
    """Documents that queries can be compared with, such as `QuantizedVectors`."""

    def __len__(self) -> int:
        """How many documents there are."""

    def scores(self, queries: FloatArray, /) -> FloatArray:
        """(q, d) queries -> (q, n) scores."""


@dataclass(frozen=True, slots=True, eq=False)
class FullVectors:
    """Vectors as they are.

    Attributes:
        vectors: (n, d) float32.
    """

    vectors: FloatArray

    def __len__(self) -> int:
        return len(self.vectors)

    def scores(self, queries: FloatArray) -> FloatArray:
        """(q, d) queries -> (q, n) dot products."""
        return queries @ self.vectors.T


def top(scores: FloatArray, depth: int) -> IntArray:
    """The best documents of each query; of equal ones those that come first in the corpus.

    Args:
        scores: (q, n) float32; minus infinity for documents that must not be found.
        depth: How many, at least 1.

    Returns:
        (q, min(depth, n)) int64 positions, best first; -1 at the end of rows that have fewer.
    """
    count = min(depth, scores.shape[1])
    found = np.full((len(scores), count), -1, dtype=np.int64)
    for row, values in enumerate(scores):
        least = np.partition(values, -count)[-count]
        above = np.flatnonzero(values > least)
        equal = np.flatnonzero(values == least)[: count - len(above)]
        places = np.sort(np.concatenate([above, equal]))
        order = places[np.argsort(-values[places], kind="stable")]
        order = order[np.isfinite(values[order])]
        found[row, : len(order)] = order
    return found


def search(index: Searchable, queries: FloatArray, depth: int, excluded: IntArray) -> IntArray:
    """Compare every query with every document.

    Args:
        index: n documents.
        queries: (q, d) float32.
        depth: How many to find for each query.
        excluded: (q,) int64, for each query the position of a document that must not be found, or -1.

    Returns:
        As of `top`.
    """
    found = [np.empty((0, min(depth, len(index))), dtype=np.int64)]
    step = max(1, _SCORES_AT_ONCE // max(1, len(index)))
    for start in range(0, len(queries), step):
        scores = index.scores(queries[start : start + step])  # (step, n)
        found.append(top(_without(scores, excluded[start : start + step]), depth))
    return np.concatenate(found)


def search_words(index: BM25, queries: Sequence[str], depth: int, excluded: IntArray, progress: Progress) -> IntArray:
    """The same with BM25; documents that share no word with the query are not found."""
    found = np.full((len(queries), min(depth, len(index))), -1, dtype=np.int64)
    for row, query in enumerate(queries):
        scores = index.scores(query)[None]  # (1, n)
        scores[scores <= 0] = -np.inf
        found[row] = top(_without(scores, excluded[row : row + 1]), depth)[0]
        progress("searching with BM25", row + 1, len(queries))
    return found


def rescored(candidates: IntArray, queries: FloatArray, documents: FloatArray, depth: int) -> IntArray:
    """Sort what a search over codes found by the full vectors, and keep the best.

    Args:
        candidates: (q, c) int64, as of `top`.
        queries: (q, d) float32.
        documents: (n, d) float32.
        depth: How many to keep.

    Returns:
        (q, min(c, depth)) int64, as of `top`; equal scores keep the order of the candidates.
    """
    ordered = candidates.copy()
    for row, places in enumerate(candidates):
        known = places[places >= 0]
        ordered[row, : len(known)] = known[np.argsort(-(documents[known] @ queries[row]), kind="stable")]
    return ordered[:, :depth]


@dataclass(frozen=True, slots=True, eq=False)
class Reranked:
    """What reranking to one depth gave.

    Attributes:
        ranking: (q, k) int64, as of `top`: the first in the reranker's order, the rest as they were.
        pairs: How many pairs of query and document were scored.
        seconds: How long that took.
    """

    ranking: IntArray
    pairs: int
    seconds: float


def rerank(
    reranker: Reranker,
    queries: Sequence[str],
    documents: Sequence[str],
    ranking: IntArray,
    depths: Sequence[int],
    progress: Progress,
) -> dict[int, Reranked]:
    """Rerank to several depths; each pair is scored once, and each depth's time is measured.

    Args:
        reranker: The reranker, with its own instruction.
        queries: q texts.
        documents: n texts, in the order of the corpus.
        ranking: (q, k) int64, as of `top`.
        depths: How many of the first documents to score, each at least 1.
        progress: Told of the pairs that are done.

    Returns:
        One result for each depth. Equal scores keep the order that they had.
    """
    log_odds = np.full(ranking.shape, -np.inf, dtype=np.float32)
    total = int((ranking[:, : max(depths, default=0)] >= 0).sum())
    results: dict[int, Reranked] = {}
    done, begin, seconds = 0, 0, 0.0
    for depth in sorted(set(depths)):
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            rows, columns = np.nonzero(ranking[start : start + _QUERIES_AT_ONCE, begin:depth] >= 0)
            rows, columns = rows + start, columns + begin
            places = ranking[rows, columns].tolist()
            pairs = [(queries[row], documents[place]) for row, place in zip(rows.tolist(), places, strict=True)]
            started = time.perf_counter()
            log_odds[rows, columns] = reranker.log_odds_of_pairs(pairs)
            seconds += time.perf_counter() - started
            done += len(pairs)
            progress("reranking", done, total)
        results[depth] = Reranked(_ordered(ranking, log_odds, depth), done, seconds)
        begin = depth
    return results


def _ordered(ranking: IntArray, log_odds: FloatArray, depth: int) -> IntArray:
    order = np.argsort(-log_odds[:, :depth], axis=1, kind="stable")  # (q, depth); -1 stays last, its score is lowest
    return np.concatenate([np.take_along_axis(ranking, order, axis=1), ranking[:, depth:]], axis=1)


def _without(scores: FloatArray, excluded: IntArray) -> FloatArray:
    rows = np.flatnonzero(excluded >= 0)
    scores[rows, excluded[rows]] = -np.inf
    return scores
