"""Two-stage search: the store finds candidates by their vectors, a reranker orders them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qdrant_client import models

from qdrant_qwen_retrieval import bm25
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.settings import OVERSAMPLING, SPARSE, STAGE_OVERSAMPLING, stage_name
from qwen_retrieval import Reranker
from qwen_retrieval.ranking import check_count, check_threshold
from qwen_retrieval.types import FloatArray
from qwen_retrieval.vectors import truncate_dimensions

_LEAST_CANDIDATES, _MOST_CANDIDATES, _CANDIDATES_PER_HIT = 20, 200, 5


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        id: The chunk's id: the record's for its first chunk, else with ``#chunk-<index>`` added.
        record_id: The record it is a part of.
        index: Its place in the record, from 0.
        point_id: The point's id in Qdrant.
        text: What the models have read.
        metadata: The record's.
        retrieval_score: Cosine similarity of query and chunk in [-1, 1], as the embedder sees it; in a hybrid search
            the fused score (reciprocal ranks), greater than 0.
        retrieval_rank: Its place among the candidates, from 1.
        relevance_score: Probability in [0, 1] that the chunk meets the query, as the reranker sees it; None without.
        rank: Its place among the hits, from 1.
    """

    id: str
    record_id: str
    index: int
    point_id: str
    text: str
    metadata: dict[str, Any]
    retrieval_score: float
    retrieval_rank: int
    relevance_score: float | None
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is asked of a collection.

    Attributes:
        text: The query, for BM25.
        vector: (dimensions,), its vector.
        limit: How many points to return at most.
        filter: Which points may be returned; None for all.
        hybrid: Fuse the results with those of BM25.
        exact: Compare with every vector, at full precision.
        oversampling: How many times as many points as it must return each cheaper step (quantized, or of shorter
            vectors) proposes to the next; None for the defaults, `OVERSAMPLING` and `STAGE_OVERSAMPLING`.
    """

    text: str
    vector: FloatArray
    limit: int
    filter: models.Filter | None = None
    hybrid: bool = False
    exact: bool = False
    oversampling: float | None = None


def retrieve(collection: Collection, search: Search) -> list[Hit]:
    """The points nearest to the query, best first; [] for an empty collection."""
    steps = [_dense_step(collection, search, 2 * search.limit if search.hybrid else search.limit)]
    if search.hybrid:
        steps += _sparse_steps(collection, search)
        # A point that both sides find may rank above one that only one side does as long as its reciprocal rank is
        # more than half of the last one's: down to twice the limit.
        last = models.Prefetch(prefetch=steps, query=models.FusionQuery(fusion=models.Fusion.RRF), limit=search.limit)
    else:
        last = steps[0]
    response = collection.client.query_points(
        collection.name,
        query=last.query,
        using=last.using,
        prefetch=last.prefetch,
        query_filter=last.filter,
        search_params=last.params,
        limit=search.limit,
        with_payload=True,
    )
    return [_hit(collection, point, rank) for rank, point in enumerate(response.points, 1)]


def rerank(
    hits: Sequence[Hit],
    reranker: Reranker,
    query: str,
    *,
    limit: int,
    instruction: str | None = None,
    score_threshold: float | None = None,
) -> list[Hit]:
    """The hits that meet the query best, by falling relevance; equal ones keep their order.

    Args:
        hits: Candidates.
        reranker: The model.
        query: The query.
        limit: How many to keep at most.
        instruction: What the search is for, instead of the reranker's own.
        score_threshold: Keep only hits of at least this relevance score.
    """
    texts = [hit.text for hit in hits]
    found = reranker.rerank(query, texts, top_n=limit, instruction=instruction, score_threshold=score_threshold)
    return [
        replace(hits[result.index], relevance_score=result.relevance_score, rank=rank)
        for rank, result in enumerate(found, 1)
    ]


def how_many_candidates(
    limit: int, candidates: int | None, reranker: Reranker | None, score_threshold: float | None
) -> int:
    """How many points to retrieve, after a check of the numbers of a search.

    Args:
        limit: How many hits are wanted.
        candidates: How many the reranker shall see; None for five for each hit, at least 20 and at most 200.
        reranker: None if there is none.
        score_threshold: The least score of a hit.

    Raises:
        TypeError: A number is none.
        ValueError: A number is out of range, or `candidates` is given without a reranker.
    """
    check_count(limit, name="limit", none="10")
    check_count(candidates, name="candidates", none="the default")
    check_threshold(score_threshold)
    if limit is None:
        raise TypeError("limit must be an integer, but got None")
    if reranker is None:
        if candidates is not None:
            raise ValueError("candidates are what a reranker chooses from: give it with reranker=, or give limit alone")
        return limit
    if candidates is None:
        return max(limit, min(max(_CANDIDATES_PER_HIT * limit, _LEAST_CANDIDATES), _MOST_CANDIDATES))
    if candidates < limit:
        raise ValueError(f"candidates must be at least limit ({limit}), but got {candidates}")
    return candidates


def check_oversampling(oversampling: float | None) -> None:
    """Refuse what would make a search find less.

    Raises:
        TypeError: It is no number.
        ValueError: It is below 1, or infinite.
    """
    if oversampling is None:
        return
    if isinstance(oversampling, bool) or not isinstance(oversampling, int | float):
        raise TypeError(f"oversampling must be a number, or None for the default, but got {oversampling!r}")
    if not 1 <= oversampling < math.inf:
        raise ValueError(f"oversampling must be at least 1, but got {oversampling}")


def _dense_step(collection: Collection, search: Search, limit: int) -> models.Prefetch:
    """The search by vectors: by the shortest first, whose results the longer ones put in order."""
    settings = collection.settings
    names = {stage_name(length): length for length in ([] if search.exact else settings.stages)}
    names[settings.dense_name] = len(search.vector)
    wider = STAGE_OVERSAMPLING if search.oversampling is None else search.oversampling
    step: models.Prefetch | None = None
    for left, (name, length) in zip(reversed(range(len(names))), names.items(), strict=True):
        step = models.Prefetch(
            prefetch=step,
            query=truncate_dimensions(search.vector, length).tolist(),
            using=name or None,
            filter=search.filter if step is None else None,
            params=_params(collection, search) if step is None else None,
            limit=math.ceil(limit * wider**left),
        )
    assert step is not None  # there is always the full vector
    return step


def _sparse_steps(collection: Collection, search: Search) -> list[models.Prefetch]:
    """The search by words; none if the query has no words."""
    terms = bm25.query_vector(search.text, collection.settings.language or bm25.DEFAULT_LANGUAGE)
    if not terms.indices:
        return []
    return [models.Prefetch(query=terms, using=SPARSE, filter=search.filter, limit=2 * search.limit)]


def _params(collection: Collection, search: Search) -> models.SearchParams | None:
    """How the vectors with the graph are searched."""
    if collection.store.kind == "memory":
        return None  # it is always exact, and would warn
    quantization = collection.settings.quantization
    if search.exact:
        return models.SearchParams(exact=True, quantization=models.QuantizationSearchParams(ignore=True))
    if quantization == "none":
        return None
    oversampling = OVERSAMPLING[quantization] if search.oversampling is None else float(search.oversampling)
    return models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True, oversampling=oversampling))


def _hit(collection: Collection, point: models.ScoredPoint, rank: int) -> Hit:
    stored = collection.layout.read(point.payload or {})
    return Hit(
        id=stored.id or str(point.id),
        record_id=stored.record_id or str(point.id),
        index=stored.index,
        point_id=str(point.id),
        text=stored.text,
        metadata=stored.metadata,
        retrieval_score=point.score,
        retrieval_rank=rank,
        relevance_score=None,
        rank=rank,
    )
