"""What is found: exact order, ties by the corpus, rescoring, reranking to several depths."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval import Reranker
from qwen_retrieval.evaluation import runs
from qwen_retrieval.evaluation.bm25 import BM25
from qwen_retrieval.evaluation.runs import FullVectors, rerank, rescored, search, search_words, top
from qwen_retrieval.testing import ByteTokenizer, FakeRerankingEngine, fake_reranking_spec
from qwen_retrieval.types import FloatArray
from qwen_retrieval.vectors import normalize

NOBODY = np.full(8, -1, dtype=np.int64)
scores_with_ties = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 12)), elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5])
)


def silent(_what: str, _done: int, _total: int) -> None:
    pass


@settings(max_examples=50)
@given(scores_with_ties, st.integers(1, 15))
def test_the_best_come_first_and_equal_ones_as_in_the_corpus(scores: FloatArray, depth: int) -> None:
    found = top(scores, depth)
    for row, values in zip(found.tolist(), scores.tolist(), strict=True):
        order = sorted((i for i in range(len(values)) if values[i] > -np.inf), key=lambda i: -values[i])[:depth]
        assert row == order + [-1] * (min(depth, len(values)) - len(order))


def test_search_in_blocks_finds_the_same_and_leaves_out_what_is_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    documents, queries = (normalize(random.normal(size=(n, 4))) for n in (30, 8))
    excluded = np.array([-1, 3, -1, -1, 29, 0, -1, 7])
    whole = search(FullVectors(documents), queries, 30, excluded)
    monkeypatch.setattr(runs, "_SCORES_AT_ONCE", 60)
    assert (search(FullVectors(documents), queries, 30, excluded) == whole).all()
    scores = queries @ documents.T
    for row, own in enumerate(excluded.tolist()):
        order = [i for i in np.argsort(-scores[row], kind="stable").tolist() if i != own]
        assert whole[row].tolist() == order + ([-1] if own >= 0 else [])


def test_words_that_no_document_has_find_nothing() -> None:
    index = BM25(["red apple", "green apple", "blue sky"])
    found = search_words(index, ["apple", "sea", "green apple"], 2, NOBODY[:3], silent)
    assert found.tolist() == [[0, 1], [-1, -1], [1, 0]]


def test_rescoring_sorts_candidates_by_full_vectors_and_keeps_gaps_at_the_end() -> None:
    documents = np.eye(4, dtype=np.float32)
    queries = np.array([[0.1, 0.4, 0.3, 0.2], [0, 0, 0, 1]], dtype=np.float32)
    candidates = np.array([[0, 1, 2, -1], [2, 1, 3, 0]])
    assert rescored(candidates, queries, documents, 3).tolist() == [[1, 2, 0], [3, 2, 1]]
    assert rescored(candidates, queries, documents, 9)[0].tolist() == [1, 2, 0, -1]


def test_each_depth_is_what_reranking_the_first_ones_alone_gives() -> None:
    queries, documents = ["apple tree", "blue sea"], ["a sea", "an apple", "a tree", "the blue sea", "apple tree"]
    ranking = np.array([[0, 1, 2, 3, 4], [4, 3, 2, 0, -1]])
    engine = FakeRerankingEngine()
    with Reranker(engine, ByteTokenizer(), fake_reranking_spec()) as reranker:
        told: list[tuple[int, int]] = []
        found = rerank(
            reranker, queries, documents, ranking, (9, 2, 3), lambda _, done, total: told.append((done, total))
        )
        assert engine.inputs == 9  # each pair once
        assert told[-1] == (9, 9)
        for depth, result in found.items():
            for row, query in enumerate(queries):
                places = [place for place in ranking[row].tolist() if place >= 0]
                order = [one.index for one in reranker.rerank(query, [documents[i] for i in places[:depth]])]
                expected = [places[i] for i in order] + places[depth:]
                assert result.ranking[row].tolist() == expected + [-1] * (5 - len(places))
    assert [found[depth].pairs for depth in (2, 3, 9)] == [4, 6, 9]
