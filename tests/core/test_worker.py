from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_retrieval.batching import pack
from qwen_retrieval.errors import ModelClosedError, NonFiniteError
from qwen_retrieval.types import FloatArray, TokenIds
from qwen_retrieval.worker import Worker
from tests.threads import none_left, threads

PATIENCE = 60.0
"""Seconds after which a test that hangs fails instead. No test depends on it otherwise."""

BLOCKER: TokenIds = [999_999]


def rows_of(inputs: list[TokenIds]) -> FloatArray:
    """What the fake engine gives: (n, 3), a row of its own for every input."""
    return np.array([[len(ids), sum(ids), sum(i * j for i, j in enumerate(ids))] for ids in inputs], dtype=np.float32)


class FakeEngine:
    """Remembers its batches, and stands still while `gate` is shut."""

    def __init__(self, compute: Callable[[list[TokenIds]], FloatArray] = rows_of) -> None:
        self.compute = compute
        self.batches: list[list[TokenIds]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def run(self, batch: list[TokenIds]) -> FloatArray:
        self.batches.append(batch)
        self.entered.set()
        assert self.gate.wait(PATIENCE), "nobody opened the gate"
        return self.compute(batch) if batch != [BLOCKER] else rows_of(batch)

    @property
    def inputs(self) -> list[TokenIds]:
        """Everything computed, in order, without the blocker."""
        return [ids for batch in self.batches for ids in batch if ids != BLOCKER]


@contextmanager
def held_up(worker: Worker, engine: FakeEngine) -> Iterator[None]:
    """Inside, the engine is busy with another caller's input, so that all requests come together."""
    engine.entered.clear()
    engine.gate.clear()
    worker.submit([BLOCKER], max_batch_tokens=1_000_000)
    assert engine.entered.wait(PATIENCE)
    try:
        yield
    finally:
        engine.gate.set()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def worker(engine: FakeEngine) -> Iterator[Worker]:
    worker = Worker(engine.run, name="test")
    yield worker
    engine.gate.set()
    worker.close()


def get(future: Future[FloatArray]) -> FloatArray:
    return future.result(PATIENCE)


def run_python(script: str, *, stdin: str = "") -> str:
    """Run a script in a process of its own, with this interpreter's import path; its output."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# --- results and merging


token_ids = st.lists(st.integers(0, 3), min_size=1, max_size=30)
requests = st.lists(st.lists(token_ids, min_size=1, max_size=8), min_size=1, max_size=6)


@given(requests, st.integers(1, 80), st.integers(1, 3))
def test_every_request_gets_its_own_rows_in_order(
    jobs: list[list[TokenIds]], max_batch_tokens: int, devices: int
) -> None:
    engine = FakeEngine()
    worker = Worker(*[engine.run] * devices, name="test")
    with held_up(worker, engine):
        futures = [worker.submit(job, max_batch_tokens=max_batch_tokens) for job in jobs]
    for job, future in zip(jobs, futures, strict=True):
        np.testing.assert_array_equal(get(future), rows_of(job))
        assert get(future).dtype == np.float32
    worker.close()
    for batch in engine.batches:
        assert len(set(map(tuple, batch))) == len(batch)
        assert len(batch) == 1 or pack(batch).computed_tokens <= max_batch_tokens


@given(requests, st.data())
def test_the_smallest_budget_in_a_batch_holds(jobs: list[list[TokenIds]], data: st.DataObject) -> None:
    jobs = [[[100 + index, *ids] for ids in job] for index, job in enumerate(jobs)]  # every input tells its job
    budgets = [data.draw(st.integers(1, 100)) for _ in jobs]
    engine = FakeEngine()
    worker = Worker(engine.run, name="test")
    with held_up(worker, engine):
        futures = [worker.submit(job, max_batch_tokens=budget) for job, budget in zip(jobs, budgets, strict=True)]
    for future in futures:
        get(future)
    worker.close()
    for batch in engine.batches[1:]:
        assert len(batch) == 1 or pack(batch).computed_tokens <= min(budgets[ids[0] - 100] for ids in batch)


@pytest.mark.parametrize("devices", [1, 3])
def test_many_threads_at_once_get_their_own_rows(engine: FakeEngine, devices: int) -> None:
    worker = Worker(*[engine.run] * devices, name="test")

    def ask(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(10):
            lengths = generator.integers(1, 40, size=generator.integers(1, 20))
            job = [generator.integers(0, 9, size=length).tolist() for length in lengths]
            np.testing.assert_array_equal(get(worker.submit(job, max_batch_tokens=200)), rows_of(job))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert worker.batches == len(engine.batches)
    assert worker.rows == len(engine.inputs)
    assert len(threads()) == worker.lanes == devices
    worker.close()


def test_sixty_four_queries_at_once_are_one_batch(worker: Worker, engine: FakeEngine) -> None:
    queries = [[7, index] for index in range(64)]
    with held_up(worker, engine):
        futures = [worker.submit([query], max_batch_tokens=16_384) for query in queries]
    results = [get(future)[0] for future in futures]
    np.testing.assert_array_equal(results, rows_of(queries))
    assert worker.batches == 1 + 1


def test_the_same_input_of_several_requests_is_computed_once(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        first = worker.submit([[1, 2], [3], [1, 2]], max_batch_tokens=100)
        second = worker.submit([[3], [1, 2]], max_batch_tokens=100)
    np.testing.assert_array_equal(get(first), rows_of([[1, 2], [3], [1, 2]]))
    np.testing.assert_array_equal(get(second), rows_of([[3], [1, 2]]))
    assert sorted(engine.inputs) == [[1, 2], [3]]
    assert worker.rows == 1 + 2


def test_inputs_that_begin_alike_are_computed_together(worker: Worker, engine: FakeEngine) -> None:
    prefixes = [[index] * 40 for index in range(4)]
    job = [[*prefixes[index % 4], 9, index] for index in range(80)]
    np.testing.assert_array_equal(get(worker.submit(job, max_batch_tokens=500)), rows_of(job))
    assert sum(pack(batch).computed_tokens for batch in engine.batches) < sum(map(len, job)) / 5


def test_scores_are_a_flat_array() -> None:
    worker = Worker(lambda batch: np.array([sum(ids) for ids in batch], dtype=np.float32), name="scores")
    assert get(worker.submit([[1], [2, 3]], max_batch_tokens=1)).tolist() == [1, 5]
    worker.close()


def test_a_job_larger_than_the_sorting_window_is_complete(
    worker: Worker, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_retrieval.schedule._SORTED_AT_ONCE", 7)
    job = [[index % 5, index] for index in range(100)]
    np.testing.assert_array_equal(get(worker.submit(job, max_batch_tokens=20)), rows_of(job))
    assert sorted(engine.inputs) == sorted(job)


def test_an_input_longer_than_the_budget_is_computed_alone(worker: Worker, engine: FakeEngine) -> None:
    job = [[1], [2] * 50, [3]]
    np.testing.assert_array_equal(get(worker.submit(job, max_batch_tokens=10)), rows_of(job))
    assert [[2] * 50] in engine.batches


# --- fairness


def test_a_query_that_comes_during_a_large_job_is_computed_in_the_next_batch(
    worker: Worker, engine: FakeEngine
) -> None:
    engine.gate.clear()
    documents = worker.submit([[index] * 10 for index in range(500)], max_batch_tokens=100)
    assert engine.entered.wait(PATIENCE)  # the job's first batch is running
    queries = [worker.submit([[1_000 + index]], max_batch_tokens=100) for index in range(3)]
    engine.gate.set()
    get(documents)
    assert [len(get(query)) for query in queries] == [1, 1, 1]
    assert engine.batches[1] == [[1_000], [1_001], [1_002]], "nothing of the job must be in it"
    assert [len(batch) for batch in engine.batches] == [10, 3, *[10] * 49]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_a_large_job_has_every_second_batch_while_queries_stream(arrivals: list[int]) -> None:
    """However many queries come during each batch: of two batches in a row the job has one, and so has a query."""
    numbers = iter(range(1_000, 2_000))
    asked: list[tuple[int, TokenIds, Future[FloatArray]]] = []  # with how many batches had begun

    engine = FakeEngine()
    worker = Worker(engine.run, name="test")

    def compute(batch: list[TokenIds]) -> FloatArray:
        for number in [next(numbers) for _ in range(arrivals.pop())] if arrivals else []:
            asked.append((len(engine.batches), [number], worker.submit([[number]], max_batch_tokens=80)))
        return rows_of(batch)

    engine.compute = compute
    with held_up(worker, engine):
        job = worker.submit([[index] * 20 for index in range(100)], max_batch_tokens=80)
    get(job)
    for begun, query, future in asked:
        get(future)
        assert any(query in batch for batch in engine.batches[begun : begun + 2])
    worker.close()
    jobs = [batch[0][0] < 1_000 for batch in engine.batches[1:]]
    last = max(number for number, is_job in enumerate(jobs) if is_job)
    assert all(jobs[number] or jobs[number + 1] for number in range(last))


def test_an_overtaken_job_does_not_hold_a_grudge(worker: Worker, engine: FakeEngine) -> None:
    """Queries that nobody waited behind leave no claim to go first."""
    for _ in range(3):
        get(worker.submit([[1_000]], max_batch_tokens=100))
    with held_up(worker, engine):
        documents = worker.submit([[index] * 10 for index in range(20)], max_batch_tokens=100)
        answer = worker.submit([[1_001]], max_batch_tokens=100)
    get(documents)
    get(answer)
    assert engine.batches[4:] == [[[1_001]], *([[i] * 10 for i in range(n, n + 10)] for n in (0, 10))]


def test_few_inputs_of_a_larger_job_do_not_overtake(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        first = worker.submit([[index] * 10 for index in range(20)], max_batch_tokens=100)
        chunk = worker.submit([[1_000]], max_batch_tokens=100, bulk=True)
        query = worker.submit([[1_001]], max_batch_tokens=100)
    for future in (first, chunk, query):
        get(future)
    assert engine.batches[1] == [[1_001]]
    assert len(engine.batches[2]) == 10
    assert [1_000] in engine.batches[2]


@pytest.mark.parametrize(("tokens", "overtakes"), [(12, True), (13, False)])
def test_small_is_what_fits_eight_times_into_a_batch(
    worker: Worker, engine: FakeEngine, tokens: int, overtakes: bool
) -> None:
    with held_up(worker, engine):
        documents = worker.submit([[index] * 10 for index in range(20)], max_batch_tokens=100)
        answer = worker.submit([[1_000] * tokens], max_batch_tokens=100)
    get(documents)
    get(answer)
    assert ([1_000] * tokens in engine.batches[1]) is True
    assert (len(engine.batches[1]) == 1) is overtakes


def test_a_batch_holds_no_more_rows_of_a_request_than_it_allows(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        few = worker.submit([[index] for index in range(7)], max_batch_tokens=100, max_batch_rows=3, bulk=True)
        many = worker.submit([[100 + index] for index in range(7)], max_batch_tokens=100, bulk=True)
    np.testing.assert_array_equal(get(few), rows_of([[index] for index in range(7)]))
    get(many)
    assert [sum(ids[0] < 100 for ids in batch) for batch in engine.batches[1:]] == [3, 3, 1]


def test_two_large_jobs_go_on_side_by_side(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        first = worker.submit([[index] * 10 for index in range(100)], max_batch_tokens=100)
        second = worker.submit([[500 + index] * 10 for index in range(100)], max_batch_tokens=100)
    get(first)
    get(second)
    assert [sum(ids[0] < 500 for ids in batch) for batch in engine.batches[1:]] == [5] * 20


def test_a_long_input_is_not_overtaken_for_ever(worker: Worker, engine: FakeEngine) -> None:
    long = [7_777] * 80
    with held_up(worker, engine):
        documents = worker.submit([[index] * 10 for index in range(200)], max_batch_tokens=100)
        answer = worker.submit([long], max_batch_tokens=100)
    get(answer)
    get(documents)
    assert long in engine.batches[2]


def test_thousands_of_queries_fill_every_batch(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        futures = [worker.submit([[index] * 10], max_batch_tokens=1_000) for index in range(3_000)]
    for future in futures:
        get(future)
    assert worker.batches == 1 + 31  # 99 of them leave less than 1 % of the budget


# --- errors


def failing_at_666(batch: list[TokenIds]) -> FloatArray:
    if any(666 in ids for ids in batch):
        raise ArithmeticError("666")
    return rows_of(batch)


def test_an_error_reaches_its_caller_and_nobody_else(worker: Worker, engine: FakeEngine) -> None:
    engine.compute = failing_at_666
    with held_up(worker, engine):
        before = worker.submit([[1], [2]], max_batch_tokens=100)
        failing = worker.submit([[3], [666]], max_batch_tokens=100)
        after = worker.submit([[4]], max_batch_tokens=100)
    with pytest.raises(ArithmeticError, match="666"):
        get(failing)
    np.testing.assert_array_equal(get(before), rows_of([[1], [2]]))
    np.testing.assert_array_equal(get(after), rows_of([[4]]))
    np.testing.assert_array_equal(get(worker.submit([[5]], max_batch_tokens=100)), rows_of([[5]]))


def test_what_is_left_of_a_failed_request_is_not_computed(worker: Worker, engine: FakeEngine) -> None:
    engine.compute = failing_at_666
    with pytest.raises(ArithmeticError):
        get(worker.submit([[666], [1_000], [2_000]], max_batch_tokens=1))
    get(worker.submit([[1]], max_batch_tokens=1))
    assert engine.inputs == [[666], [1]]


def test_several_callers_with_bad_rows_get_an_error_each(worker: Worker, engine: FakeEngine) -> None:
    engine.compute = failing_at_666
    with held_up(worker, engine):
        futures = [worker.submit([[666, index]], max_batch_tokens=100) for index in range(3)]
    assert len({id(future.exception(PATIENCE)) for future in futures}) == 3


def not_finite_at_13(batch: list[TokenIds]) -> FloatArray:
    if rows := tuple(row for row, ids in enumerate(batch) if 13 in ids):
        raise NonFiniteError(rows)
    return rows_of(batch)


def test_rows_that_are_not_finite_are_named_as_the_caller_numbers_them(worker: Worker, engine: FakeEngine) -> None:
    engine.compute = not_finite_at_13
    with held_up(worker, engine):
        good = worker.submit([[1], [2]], max_batch_tokens=100)
        failing = worker.submit([[9], [13], [4], [5, 13], [9], [13]], max_batch_tokens=100)
    with pytest.raises(NonFiniteError) as caught:
        get(failing)
    assert caught.value.rows == (1, 3, 5)
    assert isinstance(caught.value.__cause__, NonFiniteError)
    np.testing.assert_array_equal(get(good), rows_of([[1], [2]]))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), GeneratorExit()])
def test_even_the_worst_errors_end_one_wait_only(worker: Worker, engine: FakeEngine, error: BaseException) -> None:
    def fail_at_666(batch: list[TokenIds]) -> FloatArray:
        if [666] in batch:
            raise error
        return rows_of(batch)

    engine.compute = fail_at_666
    with held_up(worker, engine):
        good = worker.submit([[1]], max_batch_tokens=100)
        failing = worker.submit([[666]], max_batch_tokens=100)
    assert failing.exception(PATIENCE) is error
    np.testing.assert_array_equal(get(good), rows_of([[1]]))


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (0,)])
def test_an_array_of_the_wrong_length_is_refused(worker: Worker, engine: FakeEngine, shape: tuple[int, ...]) -> None:
    engine.compute = lambda _: np.zeros(shape, dtype=np.float32)
    with pytest.raises(RuntimeError, match="one row per input"):
        get(worker.submit([[1], [2]], max_batch_tokens=100))


def test_rows_that_do_not_fit_together_concern_only_their_caller(worker: Worker, engine: FakeEngine) -> None:
    engine.compute = lambda batch: np.zeros((len(batch), 1 + len(engine.batches)), dtype=np.float32)
    with held_up(worker, engine):
        long = worker.submit([[1], [2], [3]], max_batch_tokens=2)
        short = worker.submit([[4]], max_batch_tokens=2)
    assert get(short).shape == (1, 3)
    with pytest.raises(ValueError, match="shape"):
        get(long)


def test_inputs_that_are_no_token_ids_concern_only_their_caller(worker: Worker, engine: FakeEngine) -> None:
    texts: list[TokenIds] = [["a"], ["b"]]  # type: ignore[list-item]
    with held_up(worker, engine):
        wrong = worker.submit(texts, max_batch_tokens=100)
        right = worker.submit([[1]], max_batch_tokens=100)
    np.testing.assert_array_equal(get(right), rows_of([[1]]))
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        get(wrong)


def test_a_mistake_in_the_thread_reaches_everybody_who_waits(
    worker: Worker, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, held_up(worker, engine):
        futures = [worker.submit([[index]], max_batch_tokens=100) for index in range(2)]
        patched.setattr("qwen_retrieval.worker.dedupe", lambda *_, **__: 1 / 0)
        engine.gate.set()
        for future in futures:
            assert isinstance(future.exception(PATIENCE), ZeroDivisionError)
    np.testing.assert_array_equal(get(worker.submit([[1]], max_batch_tokens=100)), rows_of([[1]]))


@pytest.mark.parametrize(
    ("inputs", "max_batch_tokens", "message"),
    [
        ([], 100, "inputs must hold at least one input"),
        ([[1], []], 100, "at least one token, but input 1 has none"),
        ([[1]], 0, "max_batch_tokens must be at least 1, but got 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused_at_once(
    worker: Worker, inputs: list[TokenIds], max_batch_tokens: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        worker.submit(inputs, max_batch_tokens=max_batch_tokens)
    with pytest.raises(ValueError, match="max_batch_rows must be at least 1, but got 0"):
        worker.submit([[1]], max_batch_tokens=1, max_batch_rows=0)
    assert threads() == []


# --- several devices


class Pair:
    """Two engines, neither of which computes before the other does."""

    def __init__(self, *, broken: bool = False) -> None:
        self.batches: list[list[TokenIds]] = []
        self._both = threading.Barrier(2)
        self._broken = broken

    def first(self, batch: list[TokenIds]) -> FloatArray:
        self._both.wait(PATIENCE)
        self.batches.append(batch)
        return rows_of(batch)

    def second(self, batch: list[TokenIds]) -> FloatArray:
        self._both.wait(PATIENCE)
        if self._broken:
            raise ArithmeticError("the second device")
        self.batches.append(batch)
        return rows_of(batch)


def test_a_job_is_computed_on_all_devices_at_once() -> None:
    pair, job = Pair(), [[index] for index in range(40)]
    worker = Worker(pair.first, pair.second, name="test")
    np.testing.assert_array_equal(get(worker.submit(job, max_batch_tokens=2)), rows_of(job))
    worker.close()
    assert sorted(ids for batch in pair.batches for ids in batch) == job


def test_what_a_device_fails_at_concerns_only_those_whose_rows_it_had() -> None:
    pair = Pair(broken=True)
    worker = Worker(pair.first, pair.second, name="test")
    futures = [worker.submit([[index] * 2], max_batch_tokens=2) for index in (1, 2)]
    errors = [future.exception(PATIENCE) for future in futures]
    assert sorted(map(repr, errors)) == ["ArithmeticError('the second device')", "None"]
    worker.close()


def test_close_ends_the_threads_of_all_devices_after_their_batches() -> None:
    engine = FakeEngine()
    worker = Worker(*[engine.run] * 3, name="test")
    engine.gate.clear()
    running = [worker.submit([[index] * 9], max_batch_tokens=9) for index in range(3)]
    while len(engine.batches) < 3:
        time.sleep(0.001)
    waiting = worker.submit([[7]], max_batch_tokens=9)
    assert [thread.name for thread in threads()] == [f"qwen-retrieval test{end}" for end in ("", " 1", " 2")]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(worker.close)
        while not closed(worker):
            pass
        engine.gate.set()
        closing.result(PATIENCE)
    assert threads() == []
    assert [len(get(future)) for future in running] == [1, 1, 1]
    with pytest.raises(ModelClosedError):
        get(waiting)


def test_the_threads_of_all_devices_of_a_forgotten_worker_end_when_its_work_is_done() -> None:
    engine = FakeEngine()
    worker = Worker(*[engine.run] * 3, name="test")
    job = [[index] for index in range(50)]
    future, gone = worker.submit(job, max_batch_tokens=1), weakref.ref(worker)
    del worker
    np.testing.assert_array_equal(get(future), rows_of(job))
    for thread in threads():
        thread.join(PATIENCE)
    assert threads() == []
    assert gone() is None


def test_callbacks_of_two_devices_may_close_the_worker_at_once() -> None:
    engine, both = FakeEngine(), threading.Barrier(2)
    worker = Worker(engine.run, engine.run, name="test")
    engine.gate.clear()
    futures = [worker.submit([[index] * 2], max_batch_tokens=2) for index in (1, 2)]

    def close(_: Future[FloatArray]) -> None:
        both.wait(PATIENCE)
        worker.close()

    for future in futures:
        future.add_done_callback(close)
    while len(engine.batches) < 2:
        time.sleep(0.001)
    engine.gate.set()
    for future in futures:
        get(future)
    worker.close()
    assert threads() == []
    assert not both.broken


def test_a_worker_without_engines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one engine, but got none"):
        Worker(name="test")


# --- cancellation


def test_a_request_cancelled_in_the_queue_costs_nothing(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        unwanted = worker.submit([[1]], max_batch_tokens=100)
        wanted = worker.submit([[2]], max_batch_tokens=100)
        assert unwanted.cancel()
    get(wanted)
    assert engine.inputs == [[2]]


def test_a_job_cancelled_halfway_stops_after_the_batch(worker: Worker, engine: FakeEngine) -> None:
    engine.gate.clear()
    job = worker.submit([[index] for index in range(100)], max_batch_tokens=10)
    assert engine.entered.wait(PATIENCE)
    assert job.cancel()
    engine.gate.set()
    get(worker.submit([[1_000]], max_batch_tokens=10))
    assert engine.inputs == [*([index] for index in range(10)), [1_000]]


def test_whoever_waits_for_a_cancelled_request_is_told(worker: Worker, engine: FakeEngine) -> None:
    with held_up(worker, engine):
        unwanted = worker.submit([[1]], max_batch_tokens=100)
        unwanted.cancel()
    assert concurrent.futures.wait([unwanted], PATIENCE).done == {unwanted}
    with pytest.raises(CancelledError):
        get(unwanted)


def test_a_finished_request_cannot_be_cancelled(worker: Worker) -> None:
    future = worker.submit([[1]], max_batch_tokens=100)
    get(future)
    assert not future.cancel()


def test_control_c_ends_the_wait_and_the_rest_can_be_cancelled() -> None:
    output = run_python("""
        import os, signal, threading
        import numpy as np
        from qwen_retrieval.worker import Worker

        interrupted = threading.Event()

        def run(batch):
            while not interrupted.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                interrupted.wait(5)  # Python misses a signal that comes as it is about to wait, and sees the next
            return np.zeros(len(batch))

        worker = Worker(run, name="test")
        future = worker.submit([[index] for index in range(100)], max_batch_tokens=1)
        try:
            future.result()
        except KeyboardInterrupt:
            print("interrupted", future.cancel())
        interrupted.set()
        print(worker.submit([[1]], max_batch_tokens=1).result(), worker.batches)
    """)
    assert output.split() == ["interrupted", "True", "[0.]", "2"]


# --- asyncio


async def test_concurrent_coroutines_share_a_batch_and_leave_the_loop_free(worker: Worker, engine: FakeEngine) -> None:
    async def ask(query: TokenIds) -> FloatArray:
        return await asyncio.wrap_future(worker.submit([query], max_batch_tokens=16_384))

    queries = [[3, index] for index in range(64)]
    with held_up(worker, engine):
        tasks = [asyncio.create_task(ask(query)) for query in queries]
        await asyncio.sleep(0)  # all of them have asked, and wait
        assert not any(task.done() for task in tasks)  # and yet we are here
    results = await asyncio.gather(*tasks)
    np.testing.assert_array_equal(np.concatenate(results), rows_of(queries))
    assert worker.batches == 1 + 1


async def test_cancelling_a_task_cancels_its_request(worker: Worker, engine: FakeEngine) -> None:
    async def ask(query: TokenIds) -> FloatArray:
        return await asyncio.wrap_future(worker.submit([query], max_batch_tokens=100))

    with held_up(worker, engine):
        unwanted, wanted = asyncio.create_task(ask([1])), asyncio.create_task(ask([2]))
        await asyncio.sleep(0)
        unwanted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unwanted
    np.testing.assert_array_equal(await wanted, rows_of([[2]]))
    assert engine.inputs == [[2]]


async def test_an_error_is_raised_where_it_is_awaited(worker: Worker, engine: FakeEngine) -> None:
    engine.compute = failing_at_666
    with pytest.raises(ArithmeticError, match="666"):
        await asyncio.wrap_future(worker.submit([[666]], max_batch_tokens=100))


# --- the life of the thread


def test_no_thread_starts_before_the_first_request_and_none_is_left_after_close(engine: FakeEngine) -> None:
    worker = Worker(engine.run, name="small model")
    assert threads() == []
    get(worker.submit([[1]], max_batch_tokens=100))
    assert [thread.name for thread in threads()] == ["qwen-retrieval small model"]
    worker.close()
    assert threads() == []


def test_a_closed_worker_refuses_requests_and_may_be_closed_again(engine: FakeEngine) -> None:
    for used in (False, True):
        worker = Worker(engine.run, name="test")
        if used:
            get(worker.submit([[1]], max_batch_tokens=100))
        for _ in range(2):
            worker.close()
            with pytest.raises(ModelClosedError, match="load it again with from_pretrained"):
                worker.submit([[1]], max_batch_tokens=100)


def test_close_finishes_the_running_batch_and_fails_what_waits(worker: Worker, engine: FakeEngine) -> None:
    engine.gate.clear()
    running = worker.submit([[1]], max_batch_tokens=1)
    assert engine.entered.wait(PATIENCE)
    halfway = worker.submit([[2], [3]], max_batch_tokens=1)
    with ThreadPoolExecutor(3) as pool:
        closing = [pool.submit(worker.close) for _ in range(3)]
        while not closed(worker):
            pass
        assert not any(future.done() for future in closing)
        engine.gate.set()
        for future in closing:
            future.result(PATIENCE)
            assert threads() == []
    np.testing.assert_array_equal(get(running), rows_of([[1]]))
    with pytest.raises(ModelClosedError, match="before the request was complete"):
        get(halfway)
    assert engine.inputs == [[1]]


def closed(worker: Worker) -> bool:
    try:
        worker.submit([[4]], max_batch_tokens=1).cancel()
    except ModelClosedError:
        return True
    return False


@pytest.mark.parametrize("used", [False, True])
def test_a_closed_worker_lets_go_of_the_engine(used: bool) -> None:
    engine = FakeEngine()
    engine_gone = weakref.ref(engine)
    worker = Worker(engine.run, name="test")
    if used:
        get(worker.submit([[1]], max_batch_tokens=100))
    worker.close()
    del engine
    gc.collect()
    assert engine_gone() is None


def test_closing_from_a_callback_in_the_thread_itself_does_not_deadlock(worker: Worker, engine: FakeEngine) -> None:
    returned = threading.Event()

    def close(_: Future[FloatArray]) -> None:
        worker.close()
        returned.set()

    with held_up(worker, engine):
        worker.submit([[1]], max_batch_tokens=1).add_done_callback(close)
        waiting = worker.submit([[2], [3]], max_batch_tokens=1)
    assert returned.wait(PATIENCE)
    with pytest.raises(ModelClosedError):
        get(waiting)


def test_a_callback_may_ask_for_more(worker: Worker) -> None:
    more: Future[Future[FloatArray]] = Future()
    first = worker.submit([[1]], max_batch_tokens=1)
    first.add_done_callback(lambda _: more.set_result(worker.submit([[2]], max_batch_tokens=1)))
    np.testing.assert_array_equal(get(more.result(PATIENCE)), rows_of([[2]]))


def test_the_thread_of_a_forgotten_worker_ends(engine: FakeEngine) -> None:
    worker = Worker(engine.run, name="test")
    get(worker.submit([[1]], max_batch_tokens=100))
    (thread,) = threads()
    worker_gone = weakref.ref(worker)
    del worker
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert worker_gone() is None


def test_a_forgotten_worker_still_completes_what_was_asked(engine: FakeEngine) -> None:
    job = [[index] for index in range(10)]
    future = Worker(engine.run, name="test").submit(job, max_batch_tokens=1)
    gc.collect()
    np.testing.assert_array_equal(get(future), rows_of(job))


def test_at_exit_the_running_batch_ends_and_no_other_begins() -> None:
    output = run_python("""
        import threading, time
        import numpy as np
        from qwen_retrieval.worker import Worker

        running = threading.Event()

        def run(batch):
            running.set()
            threading.main_thread().join()  # the program is at its end
            time.sleep(0.1)
            print("batch", len(batch), flush=True)
            return np.zeros(len(batch))

        worker = Worker(run, name="test")
        future = worker.submit([[index] for index in range(10)], max_batch_tokens=2)
        running.wait()
    """)
    assert output.splitlines() == ["batch 2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_gets_an_error_and_does_not_hang() -> None:
    output = run_python("""
        import os, sys, warnings
        import numpy as np
        from qwen_retrieval.errors import ModelError
        from qwen_retrieval.worker import Worker

        warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads, rightly
        worker = Worker(lambda batch: np.zeros(len(batch)), name="test")
        worker.submit([[1]], max_batch_tokens=1).result()
        child = os.fork()
        if not child:
            try:
                worker.submit([[1]], max_batch_tokens=1)
            except ModelError as error:
                print(error, flush=True)
            worker.close()
            sys.exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        print("parent", worker.submit([[1]], max_batch_tokens=1).result())
    """)
    assert output.splitlines() == [
        "a loaded model does not survive os.fork; load it in the child process, or spawn that",
        "child 7",
        "parent [0.]",
    ]
