"""BM25: its words in any script, and its scores against the formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.evaluation.bm25 import BM25, K1, B


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("The running of snake_case, O'Neill's ２nd!", "the run of snake case o neill s 2nd", id="English"),
        pytest.param("Größe GRÖSSE", "grösse grösse", id="German"),
        pytest.param("機械学習とAI", "機械 械学 学習 習と ai", id="Japanese"),
        pytest.param("水 H₂O", "水 h2o", id="single character"),
        pytest.param("한국어는", "한국 국어 어는", id="Korean"),
        pytest.param("ภาษาไทย", "ภา าษ ษา าไ ไท ทย", id="Thai"),
        pytest.param("हिन्दी भाषा", "हिन्दी भाषा", id="Hindi: marks belong to words"),
        pytest.param("", "", id="empty"),
    ],
)
def test_words_of_any_script(text: str, words: str) -> None:
    assert BM25([]).words(text) == words.split()


def test_words_are_stemmed_in_the_language_that_is_named() -> None:
    assert BM25([], language="none").words("Katzen running") == ["katzen", "running"]
    assert BM25([], language="german").words("Katzen") == ["katz"]
    with pytest.raises(ValueError, match=r"language must be none or one of .*english.*, but got 'klingon'"):
        BM25([], language="klingon")


texts = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)


@settings(max_examples=30)
@given(st.lists(texts, min_size=1, max_size=6), texts)
def test_scores_are_lucenes_formula(documents: list[str], query: str) -> None:
    index = BM25(documents)
    split = [document.split() for document in documents]
    average = sum(map(len, split)) / len(split)
    expected = []
    for words in split:
        score = 0.0
        for word in query.split():
            frequency, having = words.count(word), sum(word in other for other in split)
            if frequency:
                rarity = math.log(1 + (len(split) - having + 0.5) / (having + 0.5))
                score += rarity * frequency / (frequency + K1 * (1 - B + B * len(words) / average))
        expected.append(score)
    assert index.scores(query).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("documents", [[], ["", "…"]], ids=["none", "without words"])
def test_an_index_without_words_scores_0(documents: list[str]) -> None:
    assert BM25(documents).scores("word").tolist() == [0.0] * len(documents)
