"""The load benchmark's own instruments, and what it watches that can be told without a clock: memory."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load_contenders import FairLock, of_embedder, one_at_a_time
from benchmarks.load_drivers import (
    LEAD,
    Arrivals,
    Contender,
    Outcome,
    Saturation,
    drive_tasks,
    drive_threads,
    percentile,
    poisson,
)
from benchmarks.load_memory import Log, fit, watch
from qwen_retrieval import Embedder
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from qwen_retrieval.types import FloatArray, TokenIds

FORMS = ["threads", "tasks"]
CALLS = 400


def drive(contender: Contender, form: str, work: Arrivals | Saturation, callers: int) -> Outcome:
    if form == "threads":
        return drive_threads(contender.call, work, callers)
    return asyncio.run(drive_tasks(contender.acall, work, callers))


def sleeper(seconds: float) -> Contender:
    return Contender("sleeper", lambda _: time.sleep(seconds), lambda _: asyncio.sleep(seconds))


def refusing(numbers: set[int]) -> Contender:
    def call(number: int) -> None:
        if number in numbers:
            raise ValueError(f"call {number} fails")

    async def acall(number: int) -> None:
        call(number)

    return Contender("refusing", call, acall)


def counting(engine: FakeEmbeddingEngine) -> Embedder:
    return Embedder(engine, ByteTokenizer(), fake_embedding_spec(), instruction="")


def test_an_arrival_schedule_is_reproducible_and_another_seed_gives_another() -> None:
    assert poisson(50.0, 4.0, seed=3) == poisson(50.0, 4.0, seed=3)
    assert poisson(50.0, 4.0, seed=3) != poisson(50.0, 4.0, seed=4)


@pytest.mark.parametrize("rate", [2.0, 300.0])
def test_arrivals_have_the_rate_and_the_gaps_of_a_poisson_process(rate: float) -> None:
    times = poisson(rate, 20_000 / rate, seed=7)
    gaps = np.diff([0.0, *times])

    # Five standard deviations of a count of 20,000; gaps that vary as much as they last are exponential.
    assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
    assert gaps.min() > 0
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    assert np.mean(gaps > 1 / rate) == pytest.approx(math.exp(-1), abs=0.02)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.floats(0.5, 100))
def test_a_percentile_is_the_value_of_the_nearest_rank(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == np.percentile(values, percent, method="inverted_cdf")


@pytest.mark.parametrize("form", FORMS)
def test_latency_counts_from_the_scheduled_arrival_when_all_callers_are_busy(form: str) -> None:
    # One caller, four calls due at once: each waits for those before it, which a clock started at the call would hide.
    outcome = drive(sleeper(0.02), form, Arrivals([0.0] * 4), 1)

    latencies = sorted(outcome.latencies)
    assert all(latency >= 0.02 * place for place, latency in enumerate(latencies, start=1))
    assert outcome.per_second <= 1 / 0.02


@pytest.mark.parametrize("form", FORMS)
def test_no_call_of_an_open_loop_is_made_before_it_is_due(form: str) -> None:
    made: list[float] = []

    def call(_: int) -> None:
        made.append(time.perf_counter())

    async def acall(number: int) -> None:
        call(number)

    start = time.perf_counter()
    drive(Contender("noting", call, acall), form, Arrivals([0.0, 0.01, 0.03]), 8)

    assert all(at - start >= LEAD + due for at, due in zip(sorted(made), [0.0, 0.01, 0.03], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_raises_is_reported_and_the_others_are_made(form: str) -> None:
    outcome = drive(refusing({2, 5}), form, Saturation(9), 3)

    assert sorted(map(str, outcome.errors)) == ["call 2 fails", "call 5 fails"]
    assert outcome.summary()["answered"] == 7
    assert outcome.summary()["errors"] == {"ValueError": 2}


def test_a_run_of_which_nothing_was_answered_says_what_went_wrong() -> None:
    outcome = drive_threads(refusing({0, 1}).call, Saturation(2), 1)

    with pytest.raises(ExceptionGroup, match="no call was answered") as caught:
        outcome.summary()
    assert caught.group_contains(ValueError, match="call 0 fails")


@pytest.mark.parametrize("form", FORMS)
def test_calls_that_are_given_up_count_with_the_time_they_waited(form: str) -> None:
    outcome = drive(sleeper(0.03), form, Arrivals([0.0] * 50, patience=0.05), 1)

    assert len(outcome.spans) + len(outcome.waits) == 50
    assert outcome.waits
    assert min(outcome.waits) >= 0.05
    assert len(outcome.latencies) == 50


def test_arrivals_that_are_stopped_hand_out_nothing_that_is_not_due_yet() -> None:
    work = Arrivals([0.0, 3600.0])
    work.stop()

    assert work.take() is None
    assert work.left_over() == []


def test_a_fair_lock_lets_threads_in_one_at_a_time_in_the_order_in_which_they_came() -> None:
    lock, order = FairLock(), list[int]()

    def enter(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._waiting) <= number:
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join()

    assert order == list(range(8))


@pytest.mark.parametrize("form", FORMS)
def test_calls_share_batches_unless_they_go_one_at_a_time(form: str) -> None:
    texts = [f"question {number}" for number in range(40)]
    calls = {}
    for name in ("merged", "one at a time"):
        engine = FakeEmbeddingEngine(delay=0.005)
        with counting(engine) as embedder:
            contender = of_embedder(embedder, texts)[0]
            merged = contender if name == "merged" else one_at_a_time(contender)
            assert len(drive(merged, form, Saturation(len(texts)), 10).spans) == len(texts)
        calls[name] = engine.calls

    assert calls["one at a time"] == len(texts)
    assert calls["merged"] <= len(texts) / 2


@pytest.mark.parametrize("form", FORMS)
def test_thousands_of_calls_through_every_adapter_leave_nothing_of_ours_behind(form: str) -> None:
    with counting(FakeEmbeddingEngine()) as embedder:
        for contender in of_embedder(embedder, ["a", "b"]):
            log = watch(contender, CALLS, callers=8, parts=2, tasks=form == "tasks")

            # What a single call left behind would be there 200 times; what the first of them make once stays.
            assert sum(log.grown.values()) < CALLS / 100, (contender.name, log.grown)


def test_a_leak_of_one_object_per_call_is_seen() -> None:
    kept: list[Outcome] = []

    class Leaky(Outcome):
        __module__ = "qwen_retrieval.leaky"

    log = watch(
        Contender("leaky", lambda _: kept.append(Leaky()), lambda _: asyncio.sleep(0)),
        200,
        callers=2,
        parts=2,
        tasks=False,
    )

    (count,) = log.grown.values()
    assert count == 100


def test_a_slope_is_fitted_with_its_standard_error() -> None:
    calls = [float(number) for number in range(10)]
    exact = fit(calls, [3.0 + 2.0 * call for call in calls])
    noisy = fit(calls, [3.0 + 2.0 * call + (-1) ** int(call) for call in calls])
    (expected, _), covariance = np.polyfit(calls, [3.0 + 2.0 * call + (-1) ** int(call) for call in calls], 1, cov=True)

    assert exact.per_call == pytest.approx(2.0)
    assert exact.error == pytest.approx(0.0, abs=1e-9)
    assert noisy.per_call == pytest.approx(expected)
    assert noisy.error == pytest.approx(math.sqrt(covariance[0][0]))


def test_growth_is_fitted_without_the_first_fifth() -> None:
    log = Log.of(100, 10)
    log.resident[:] = [0, 500, *range(1000, 1009)]

    assert log.calls.tolist() == list(range(0, 101, 10))
    assert log.slope("resident").per_call == pytest.approx(0.1)


class Ones:
    """An engine that takes no time, with vectors as long as a real one's."""

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        return np.ones((len(batch), 1024), dtype=np.float32)


def test_a_bulk_call_holds_its_result_twice_at_most() -> None:
    with Embedder(Ones(), ByteTokenizer(), fake_embedding_spec(hidden_size=1024)) as embedder:
        embedder.embed_documents(["warm"])
        tracemalloc.start()
        try:
            result = embedder.embed_documents([f"{number:300}" for number in range(3000)])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak < 2.5 * result.nbytes  # parts and whole, and a little; a copy more would be three times
