"""Measures, against a literal implementation of their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.evaluation.metrics import METRICS, Measures

DOCUMENTS = [f"d{number}" for number in range(14)]
CUTS = (1, 3, 10, 100)
NAMES = [f"{kind}@{cut}" for kind in ("ndcg", "recall", "mrr", "map") for cut in CUTS]


def literal(name: str, grades: dict[str, int], found: Sequence[str]) -> float:
    """The definitions of `Measures`, word by word."""
    kind, cut = name.split("@")
    k = int(cut)
    relevant = {document for document, grade in grades.items() if grade >= 1}
    hits = [document in relevant for document in found[:k]]
    if kind == "recall":
        return sum(hits) / len(relevant)
    if kind == "mrr":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    if kind == "map":
        return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / len(relevant)
    gains = [max(grades.get(document, 0), 0) for document in found[:k]]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k]
    return dcg(gains) / dcg(ideal)


def dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


judgements = st.dictionaries(st.sampled_from([*DOCUMENTS, "unknown"]), st.integers(-1, 3), min_size=1).filter(
    lambda grades: max(grades.values()) >= 1
)
rankings = st.permutations(DOCUMENTS).flatmap(lambda order: st.integers(0, len(order)).map(lambda n: order[:n]))


@settings(max_examples=50)
@given(st.lists(st.tuples(judgements, rankings), min_size=1, max_size=3))
def test_every_measure_is_what_its_definition_says(cases: list[tuple[dict[str, int], list[str]]]) -> None:
    qrels = {f"q{number}": grades for number, (grades, _) in enumerate(cases)}
    run = {f"q{number}": found for number, (_, found) in enumerate(cases)}
    values = Measures(qrels, NAMES)(run)
    for name in NAMES:
        expected = [literal(name, grades, found) for grades, found in cases]
        assert values[name].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_query_that_found_nothing_counts_as_0_in_its_place() -> None:
    values = Measures({"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}})({"b": ["d"], "c": []})
    assert {name: column.tolist() for name, column in values.items()} == {name: [0, 1, 0] for name in METRICS}


@pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "precision@10", "mrr@-1", "map@ten"])
def test_an_unknown_measure_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be ndcg@k, recall@k, mrr@k or map@k, such as ndcg@10"):
        Measures({"a": {"d": 1}}, [name])


def test_a_measure_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="metrics must all differ, but got ndcg@10, ndcg@10"):
        Measures({"a": {"d": 1}}, ["ndcg@10", "ndcg@10"])
