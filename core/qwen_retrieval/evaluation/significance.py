"""Whether one system is better than another, or was lucky with the queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qwen_retrieval.evaluation.metrics import Values
from qwen_retrieval.evaluation.results import Comparison

RESAMPLES = 10_000
CONFIDENCE = 0.95
ALPHA = 0.05
_NUMBERS_AT_ONCE = 1 << 21


def compare(
    family: str, values: Mapping[str, Values], baseline: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compare systems with a baseline, query by query.

    The interval of the mean difference is the percentile interval of the paired bootstrap over queries (Efron and
    Tibshirani 1993, chapter 13; Sakai 2006 for retrieval). The p-value is of the paired randomization test, two-sided,
    with random signs of the differences (Smucker, Allan and Carterette 2007, who find that it agrees with the
    bootstrap's and the t-test's); unlike the bootstrap's it is not too small where there are few queries. Several
    systems are corrected together by Holm's method (1979).

    Args:
        family: What to call the comparisons, which are corrected for each other.
        values: System -> (q,) values of a measure, in the same order of queries; with the baseline among them.
        baseline: The system that all others are compared with.
        resamples: How many random samples to draw.
        seed: Of the random numbers; the same seed gives the same results.

    Returns:
        One comparison for each other system, in their order.
    """
    names = [name for name in values if name != baseline]
    if not names:
        return ()
    differences = np.stack([values[name] - values[baseline] for name in names], axis=1)  # (q, s)
    low, high = bootstrap_interval(differences, resamples=resamples, seed=seed)
    p_values = randomization_test(differences, resamples=resamples, seed=seed)
    adjusted = holm(p_values.tolist())
    means = differences.mean(axis=0).tolist()
    rows = zip(names, means, low.tolist(), high.tolist(), p_values.tolist(), adjusted, strict=True)
    return tuple(Comparison(family, name, baseline, *row) for name, *row in rows)


def bootstrap_interval(differences: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Values, Values]:
    """The 95 % percentile interval of the mean, by drawing queries with replacement.

    Args:
        differences: (q, s) float64, of q >= 1 queries and s systems.
        resamples: How many samples of q queries to draw.
        seed: Of the random numbers.

    Returns:
        Two arrays (s,), the lower and the upper ends. With one query both are its difference.
    """
    count, systems = differences.shape
    random = np.random.default_rng([seed, 0])
    means = np.empty((resamples, systems))
    for rows in _blocks(resamples, count):
        drawn = random.integers(0, count, (rows.stop - rows.start, count))
        drawn += np.arange(len(drawn))[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)  # how often each query was drawn
        means[rows] = times @ differences / count
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def randomization_test(differences: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Values:
    """How often a mean at least as far from 0 comes up if the two systems' names are swapped at random, by query.

    Args:
        differences: (q, s) float64, of q >= 1 queries and s systems.
        resamples: How many times to swap.
        seed: Of the random numbers.

    Returns:
        (s,) p-values in (0, 1], with the actual outcome counted as one of them (Phipson and Smyth 2010). With q queries
        no p-value is below about 2^(1 - q).
    """
    count, systems = differences.shape
    random = np.random.default_rng([seed, 1])
    actual = np.abs(differences.sum(axis=0))  # (s,)
    reached = np.ones(systems)
    for rows in _blocks(resamples, count):
        signs = random.integers(0, 2, (rows.stop - rows.start, count), dtype=np.int8) * 2.0 - 1.0
        reached += (np.abs(signs @ differences) >= actual - 1e-9).sum(axis=0)  # equal but for rounding is equal
    return reached / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of even one false finding among all stays below the level that is asked for.

    Args:
        p_values: m values in [0, 1].

    Returns:
        The corrected values, in the same order: the i-th smallest times m - i + 1, at least as large as that before it,
        and at most 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _blocks(resamples: int, count: int) -> Iterator[slice]:
    step = max(1, _NUMBERS_AT_ONCE // count)
    for start in range(0, resamples, step):
        yield slice(start, min(start + step, resamples))
