"""The rules of the advice, on figures made for each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwen_retrieval.evaluation.recommendation import advise
from qwen_retrieval.evaluation.results import Advice, Setup, System
from qwen_retrieval.evaluation.settings import Sweep, plan
from qwen_retrieval.evaluation.significance import compare

INSTRUCTIONS = {"default": "Find it", "none": ""}
SETUP = Setup(
    version="1",
    created="2026-01-01T00:00:00+00:00",
    embedder="e",
    reranker="r",
    device="cpu",
    dtype="float32",
    instructions=INSTRUCTIONS,
    rerank_instruction="",
    metrics=("ndcg@10",),
    base="embedder 64",
    baseline="embedder 64",
    resamples=1000,
    seed=0,
)


def advice(sweep: Sweep, shifts: dict[str, float], *, queries: int = 200, noise: float = 0.05) -> dict[str, Advice]:
    """The advice by topic, where each system's mean is 0.5 and its shift, give or take the noise of each query."""
    random = np.random.default_rng(0)
    common = random.uniform(0.3, 0.7, queries)
    systems = []
    for row in plan(sweep, sweep.dimensions or (64,), has_reranker=True):
        wobble = random.normal(0, noise, queries)
        values = common + shifts.get(row.name, 0.0) + wobble - wobble.mean()
        systems.append(figures(row, values))
    by_name = {system.name: np.array(system.values) for system in systems}
    table = compare("baseline", by_name, SETUP.baseline, resamples=1000)
    given, compared = advise(systems, SETUP, table)
    assert {one.family for one in compared} <= {"storage", "instruction", "reranking", "bm25"}
    return {one.topic: one for one in given}


def figures(row: System, values: np.ndarray) -> System:
    seconds = 0.25 if row.kind == "reranker" else None
    return replace(row, values=tuple(values.tolist()), means={"ndcg@10": float(values.mean())}, rerank_seconds=seconds)


GRID = Sweep(dimensions=(64, 32), quantizations=("none", "int8", "binary", "binary+rescore"))


def test_the_smallest_setting_that_is_as_good_is_recommended() -> None:
    given = advice(
        GRID, {"embedder 32": -0.2, "embedder 32 int8": -0.2, "embedder 64 binary": -0.1, "embedder 32 binary": -0.3}
    )
    assert given["storage"].system == "embedder 64 int8"
    assert given["storage"].text.startswith("Use embedder 64 int8: 68 bytes per document. Its ndcg@10 is 0.")
    assert given["memory"].system == "embedder 32 binary+rescore"
    assert "a search looks through 4 bytes per document, and 132 are kept" in given["memory"].text


def test_the_best_is_kept_where_everything_smaller_is_worse() -> None:
    worse = dict.fromkeys(["embedder 32", "embedder 32 int8", "embedder 64 int8"], -0.1)
    given = advice(Sweep(dimensions=(64, 32), quantizations=("none", "int8")), worse)
    assert given["storage"].system == "embedder 64"
    assert given["storage"].text.endswith("the best of all dimensions and quantizations. No smaller one is as good.")
    assert "memory" not in given


def test_a_large_loss_that_few_queries_cannot_prove_is_a_loss() -> None:
    given = advice(Sweep(dimensions=(64, 32)), {"embedder 32": -0.1}, queries=5)
    assert given["storage"].system == "embedder 64"
    assert given["data"].text == "With 5 queries no difference can be significant; take at least 50, better 200."


def test_a_loss_that_is_small_but_certain_is_a_loss() -> None:
    given = advice(Sweep(dimensions=(64, 32)), {"embedder 32": -0.009}, noise=0.001)
    assert given["storage"].system == "embedder 64"


@pytest.mark.parametrize(
    ("gain", "system", "beginning"),
    [
        pytest.param(0.1, "embedder 64", "Use the instruction 'default': better than none", id="gain"),
        pytest.param(-0.1, "embedder 64, instruction none", "No instruction that was tried is better", id="loss"),
        pytest.param(0.001, None, "The instruction makes no difference that these queries can show", id="neither"),
    ],
)
def test_an_instruction_is_recommended_if_it_is_better_than_none(
    gain: float, system: str | None, beginning: str
) -> None:
    given = advice(Sweep(instructions={"default": None, "none": ""}), {"embedder 64, instruction none": -gain})
    assert given["instruction"].system == system
    assert given["instruction"].text.startswith(beginning)


def test_the_instruction_of_the_base_stays_where_another_is_hardly_better() -> None:
    sweep = Sweep(instructions={"default": None, "none": "", "other": "Find"})
    names = "embedder 64", "embedder 64, instruction none", "embedder 64, instruction other"
    assert advice(sweep, dict(zip(names, (0.1, 0.0, 0.105), strict=True)))["instruction"].system == names[0]
    assert advice(sweep, dict(zip(names, (0.1, 0.0, 0.2), strict=True)))["instruction"].system == names[2]


@pytest.mark.parametrize(
    ("gains", "system", "beginning"),
    [
        pytest.param((0.1, 0.105), "embedder 64, first 10 reranked", "Rerank the first 10: ndcg@10 0.6", id="enough"),
        pytest.param((0.1, 0.2), "embedder 64, first 50 reranked", "Rerank the first 50: ndcg@10 0.7", id="deeper"),
        pytest.param((0.0, 0.001), "embedder 64", "Do not rerank: no gain can be seen", id="nothing"),
        pytest.param((-0.1, -0.2), "embedder 64", "Do not rerank: it makes the order worse", id="harm"),
    ],
)
def test_reranking_is_recommended_to_the_smallest_depth_that_is_enough(
    gains: tuple[float, float], system: str, beginning: str
) -> None:
    names = [f"embedder 64, first {depth} reranked" for depth in (10, 50)]
    given = advice(Sweep(rerank_depths=(10, 50)), dict(zip(names, gains, strict=True)))
    assert given["reranking"].system == system
    assert given["reranking"].text.startswith(beginning)
    assert given["reranking"].text.endswith("It took 0.25 s per query here.")


@pytest.mark.parametrize(
    ("shift", "system", "words"),
    [
        pytest.param(-0.1, "embedder 64", "embedder 64 is better than BM25 on this data", id="better"),
        pytest.param(0.1, "BM25", "embedder 64 is worse than BM25 on this data", id="worse"),
        pytest.param(0.0, None, "embedder 64 is not distinguishable from BM25", id="same"),
    ],
)
def test_bm25_is_named_where_it_is_enough(shift: float, system: str | None, words: str) -> None:
    given = advice(Sweep(), {"BM25": shift})
    assert given["bm25"].system == system
    assert given["bm25"].text.startswith(words)


def test_what_was_not_varied_gets_no_advice_and_the_data_first_says_what_it_can_show() -> None:
    given = advice(Sweep(bm25_language=None), {})
    assert list(given) == ["data", "reranking"]
    assert given["data"].text.startswith("With 200 queries, differences below about 0.0")
