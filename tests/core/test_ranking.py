"""Order, thresholds, and copies of the same document."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_retrieval.ranking import check_count, check_threshold, distinct, rank
from qwen_retrieval.types import Scale

LOG_ODDS = st.lists(st.floats(-50, 50, width=32), max_size=30)


@given(LOG_ODDS)
def test_a_ranking_is_a_stable_sort_by_falling_log_odds(values: list[float]) -> None:
    results = rank(np.array(values, dtype=np.float32))
    assert [result.index for result in results] == sorted(range(len(values)), key=lambda i: -values[i])
    assert all(type(number) is float for result in results for number in (result.relevance_score, result.log_odds))


@given(
    LOG_ODDS, st.floats(-60, 60), st.one_of(st.none(), st.integers(1, 40)), st.sampled_from(["probability", "log_odds"])
)
def test_the_threshold_is_inclusive_and_comes_before_the_cut(
    values: list[float], threshold: float, top_n: int | None, scale: Scale
) -> None:
    everything = rank(np.array(values, dtype=np.float32))
    found = rank(np.array(values, dtype=np.float32), top_n=top_n, score_threshold=threshold, scale=scale)
    assert found == [result for result in everything if result.score(scale) >= threshold][:top_n]


def test_a_threshold_in_log_odds_tells_apart_what_is_saturated_as_a_probability() -> None:
    values = np.array([18.0, 40.0], dtype=np.float32)
    assert [result.relevance_score for result in rank(values)] == [1.0, 1.0]
    assert [result.index for result in rank(values, score_threshold=20, scale="log_odds")] == [1]


@pytest.mark.parametrize("top_n", [0, -3])
def test_a_top_n_below_one_is_refused_by_the_callers_name(top_n: int) -> None:
    check_count(None)
    check_count(1)
    with pytest.raises(ValueError, match=f"top_k must be at least 1, or None for all, but got {top_n}"):
        check_count(top_n, name="top_k")


@pytest.mark.parametrize(
    ("ids", "scores", "kept"),
    [
        pytest.param([], None, [], id="none"),
        pytest.param(["a", "b", "a"], None, [0, 1], id="the-first-without-scores"),
        pytest.param(["a", "b", "a"], [0.1, 0.5, 0.9], [2, 1], id="the-best-in-the-place-of-the-first"),
        pytest.param(["a", "a"], [0.5, 0.5], [0], id="the-first-of-equals"),
        pytest.param(["a", "a"], [None, -1.0], [1], id="any-score-beats-none"),
        pytest.param([None, None], None, [0, 1], id="no-id-is-no-copy"),
        pytest.param([0, "0", None], None, [0, 1, 2], id="ids-of-different-types-differ"),
    ],
)
def test_of_copies_one_is_kept(ids: list[Any], scores: list[float | None] | None, kept: list[int]) -> None:
    assert distinct(ids, scores) == kept


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), max_size=20))
def test_the_kept_copy_is_the_best(found: list[tuple[str, float]]) -> None:
    kept = distinct([id_ for id_, _ in found], [score for _, score in found])
    assert len(kept) == len({id_ for id_, _ in found})
    for position in kept:
        assert found[position][1] == max(score for id_, score in found if id_ == found[position][0])


def test_a_result_has_its_score_in_both_scales() -> None:
    (result,) = rank(np.array([2.0], dtype=np.float32))
    assert result.score("log_odds") == 2.0
    assert result.score("probability") == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("scale", ["probabilty", "logits", None])
def test_an_unknown_scale_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match="scale must be 'probability' or 'log_odds', but got"):
        rank(np.array([1.0], dtype=np.float32), score_threshold=0.5, scale=scale)


@pytest.mark.parametrize("top_n", [2.5, "3", True])
def test_a_top_n_that_is_no_integer_is_refused(top_n: Any) -> None:
    with pytest.raises(TypeError, match="top_n must be an integer, or None for all, but got"):
        check_count(top_n)
    check_count(np.int64(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(("threshold", "error"), [(math.nan, ValueError), ("0.5", TypeError), (True, TypeError)])
def test_a_threshold_that_is_no_number_is_refused(threshold: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="score_threshold must be a number or None"):
        check_threshold(threshold)
    check_threshold(np.float32(0.5))  # type: ignore[arg-type]


def test_of_copies_one_with_a_score_beats_one_without_a_number() -> None:
    assert distinct(["a", "a"], [math.nan, 0.1]) == [1]
