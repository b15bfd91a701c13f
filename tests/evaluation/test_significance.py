"""Intervals and p-values, against their definitions and against scipy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qwen_retrieval.evaluation.significance import bootstrap_interval, compare, holm, randomization_test


@pytest.fixture(scope="module")
def differences() -> np.ndarray:
    """(60, 3): nothing, a small and a clear difference."""
    random = np.random.default_rng(3)
    return random.normal([0.0, 0.05, 0.2], 0.3, (60, 3))


def test_the_interval_is_the_percentile_bootstraps(differences: np.ndarray) -> None:
    low, high = bootstrap_interval(differences)
    for system in range(3):
        other = stats.bootstrap((differences[:, system],), np.mean, method="percentile", n_resamples=10_000, rng=1)
        assert (low[system], high[system]) == pytest.approx(tuple(other.confidence_interval), abs=0.005)


def test_the_p_value_is_near_the_t_tests_which_it_generalises(differences: np.ndarray) -> None:
    p_values = randomization_test(differences)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert p_values.tolist() == pytest.approx(expected.tolist(), abs=0.02)


@settings(max_examples=25)
@given(st.lists(st.sampled_from([-0.5, -0.1, 0.0, 0.2, 0.2, 1.0]), min_size=1, max_size=5))
def test_the_p_value_of_few_queries_is_that_of_all_signs(values: list[float]) -> None:
    signs = np.array(list(itertools.product([-1, 1], repeat=len(values))))
    exact = (np.abs(signs @ values) >= abs(sum(values)) - 1e-9).mean()
    found = randomization_test(np.array(values)[:, None], resamples=4000)
    assert found[0] == pytest.approx(exact, abs=0.05)


def test_a_seed_gives_the_same_whatever_fits_into_a_block_and_another_seed_something_else(
    differences: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(seed: int) -> list[float]:
        low, high = bootstrap_interval(differences, resamples=500, seed=seed)
        return [*low, *high]

    whole = ends(0)
    monkeypatch.setattr("qwen_retrieval.evaluation.significance._NUMBERS_AT_ONCE", 1000)
    assert ends(0) == pytest.approx(whole, abs=1e-12)
    assert ends(1) != pytest.approx(whole, abs=1e-6)


def test_holm_is_the_published_procedure() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_corrects_at_least_as_much_as_nothing_and_at_most_as_bonferroni(values: list[float]) -> None:
    for before, after in zip(values, holm(values), strict=True):
        assert before <= after <= min(1.0, before * len(values))


def test_systems_are_compared_with_the_baseline_alone() -> None:
    values = {"base": np.array([0.1, 0.2, 0.3]), "same": np.array([0.1, 0.2, 0.3]), "up": np.array([0.2, 0.4, 0.6])}
    same, up = compare("table", values, "base", resamples=200)
    assert (same.system, same.difference, same.low, same.high, same.p) == ("same", 0, 0, 0, 1)
    assert (up.family, up.system, up.baseline) == ("table", "up", "base")
    assert up.difference == pytest.approx(0.2)
    assert 0.1 <= up.low <= 0.2 <= up.high <= 0.3
    assert compare("table", {"base": np.array([1.0])}, "base") == ()


def test_one_query_proves_nothing() -> None:
    (found,) = compare("table", {"base": np.array([0.0]), "up": np.array([1.0])}, "base")
    assert (found.low, found.high, found.p) == (1, 1, 1)
