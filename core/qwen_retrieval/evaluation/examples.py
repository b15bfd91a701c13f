"""The queries that went worst, to be read by a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_retrieval.evaluation.datasets import RetrievalDataset
from qwen_retrieval.evaluation.results import Example, Passage, System
from qwen_retrieval.vectors import IntArray

QUERIES, FOUND, CHARACTERS = 20, 5, 300
"""How many queries, how many documents of each system, how many characters of each document."""


def worst_queries(
    dataset: RetrievalDataset, systems: Sequence[System], base: str, rankings: Mapping[str, IntArray]
) -> tuple[Example, ...]:
    """The queries with the lowest values of the system with the highest mean of the first measure.

    Args:
        dataset: The test set.
        systems: All systems.
        base: Name of the base.
        rankings: Name of a system -> (q, k) int64 positions in the corpus, -1 for none.

    Returns:
        At most 20 queries below the best possible value, the lowest first, and as they are in the file where equal;
        each with the first 5 documents of BM25, the base and that system.
    """
    best = max(systems, key=_mean)
    shown = dict.fromkeys([*(one.name for one in systems if one.kind == "bm25"), base, best.name])
    ids, queries = list(dataset.corpus), list(dataset.queries)
    rows = sorted((row for row, value in enumerate(best.values) if value < 1), key=best.values.__getitem__)
    examples = []
    for row in rows[:QUERIES]:
        grades = dataset.qrels[queries[row]]
        found = {name: [ids[i] for i in rankings[name][row, :FOUND].tolist() if i >= 0] for name in shown}
        relevant = sorted((one for one, grade in grades.items() if grade >= 1), key=lambda one: -grades[one])
        examples.append(
            Example(
                queries[row],
                _passages(dataset, grades, relevant[:FOUND]),
                {name: _passages(dataset, grades, documents) for name, documents in found.items()},
            )
        )
    return tuple(examples)


def _mean(system: System) -> float:
    return sum(system.values) / len(system.values)


def _passages(dataset: RetrievalDataset, grades: Mapping[str, int], ids: Sequence[str]) -> tuple[Passage, ...]:
    return tuple(Passage(id_, dataset.corpus.get(id_, "")[:CHARACTERS], grades.get(id_, 0)) for id_ in ids)
