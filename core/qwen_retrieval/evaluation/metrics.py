"""Measures of a ranking, computed by trec_eval itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qwen_retrieval.errors import needs_extra

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade; relevant from grade 1."""

Values = npt.NDArray[np.float64]
"""A float64 numpy array; the docstring beside it gives the shape."""

PRIMARY = "ndcg@10"
METRICS = (PRIMARY, "recall@10", "recall@100", "mrr@10", "map@100")

_NAME = re.compile(r"(ndcg|recall|mrr|map)@([1-9][0-9]*)")
_TREC = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut"}


class Measures:
    """Measures of rankings against judgements, as trec_eval computes them (so BEIR, mteb and TREC).

    With g_i the grade of the document at rank i (0 if not judged, or judged below 1) and R the number of relevant
    documents of the query, found or not:

    - ``ndcg@k``: DCG / DCG of the best possible order, where DCG = sum over i <= k of g_i / log2(i + 1) (Järvelin and
      Kekäläinen 2002, with the grade itself as gain).
    - ``recall@k``: relevant documents among the first k / R.
    - ``mrr@k``: 1 / rank of the first relevant document; 0 if that is beyond k.
    - ``map@k``: (sum over relevant documents at ranks i <= k of the precision at i) / R. The divisor is R also where R
      is more than k.

    Args:
        qrels: The judgements; each query has a relevant document.
        names: Which measures; k is any integer from 1.

    Raises:
        ValueError: A measure is unknown or there twice, or there is none.
        MissingDependencyError: The extra ``evaluate`` is not installed.

    Attributes:
        names: Which measures.
        depth: The largest k: no measure looks further down.
    """

    def __init__(self, qrels: Qrels, names: Sequence[str] = METRICS) -> None:
        with needs_extra("pytrec_eval", "evaluate"):
            import pytrec_eval
        self.names = tuple(names)
        if not self.names:
            raise ValueError("metrics must have at least one value, but is empty")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"metrics must all differ, but got {', '.join(self.names)}")
        self._cuts = [_parse(name) for name in self.names]
        self.depth = max(cut for _, cut in self._cuts)
        self._queries = list(qrels)
        wanted = {f"{_TREC[kind]}.{cut}" for kind, cut in self._cuts if kind in _TREC} | {"recip_rank"}
        self._evaluator = pytrec_eval.RelevanceEvaluator({query: dict(qrels[query]) for query in qrels}, wanted)

    def __call__(self, run: Mapping[str, Sequence[str]]) -> dict[str, Values]:
        """Each measure of each query.

        Args:
            run: Query id -> ids of the documents that were found, best first, each once. A query that is missing has
                found nothing.

        Returns:
            Name of the measure -> (queries,) float64 in [0, 1], in the order of the judgements.
        """
        # trec_eval orders by score and breaks ties by its own rule; falling whole numbers keep the order given.
        scored = {
            query: {document: float(len(found) - rank) for rank, document in enumerate(found)}
            for query, found in run.items()
            if found
        }
        results = self._evaluator.evaluate(scored)
        return {
            name: np.array([_value(results.get(query), kind, cut) for query in self._queries])
            for name, (kind, cut) in zip(self.names, self._cuts, strict=True)
        }


def _parse(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"a metric must be ndcg@k, recall@k, mrr@k or map@k, such as {PRIMARY}, but got {name!r}")
    return match[1], int(match[2])


def _value(result: Mapping[str, float] | None, kind: str, cut: int) -> float:
    if result is None:
        return 0.0
    if kind in _TREC:
        return result[f"{_TREC[kind]}_{cut}"]
    reciprocal = result["recip_rank"]  # of the whole ranking: trec_eval cuts none
    return reciprocal if reciprocal and round(1 / reciprocal) <= cut else 0.0
