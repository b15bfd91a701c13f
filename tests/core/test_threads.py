from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.errors import ModelClosedError
from qwen_retrieval.threads import Turns, cpu_quota, physical_cores, threads_to_use
from qwen_retrieval.types import FloatArray, TokenIds
from qwen_retrieval.worker import Worker
from tests.threads import none_left

PATIENCE = 60.0
"""Seconds after which a test that hangs fails instead. No test depends on it otherwise."""


class Processor:
    """Engines that compute on it, and whether two of them ever did at once."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.passes: list[str] = []
        self.batches: list[list[TokenIds]] = []
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._computing = 0

    def engine(self, name: str, *, fail: bool = False) -> Callable[[list[TokenIds]], FloatArray]:
        def run(batch: list[TokenIds]) -> FloatArray:
            with self._lock:
                self._computing += 1
                self.most_at_once = max(self.most_at_once, self._computing)
                self.passes.append(name)
                self.batches.append(batch)
            self.entered.set()
            try:
                assert self.gate.wait(PATIENCE), "nobody opened the gate"
                if fail:
                    raise ArithmeticError(name)
                return np.array([sum(ids) for ids in batch], dtype=np.float32)
            finally:
                with self._lock:
                    self._computing -= 1

        return run

    def worker(self, *names: str, fail: bool = False) -> Worker:
        return Worker(*(self.engine(name, fail=fail) for name in names), name=names[0], turns=self.turns)


@pytest.fixture
def processor() -> Iterator[Processor]:
    with none_left():
        yield Processor()


def get(future: Future[FloatArray]) -> FloatArray:
    return future.result(PATIENCE)


# Turns


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), min_size=1, max_size=12), st.integers(1, 3))
def test_models_of_one_processor_never_compute_at_once(requests: list[tuple[int, int]], threads: int) -> None:
    processor = Processor()
    workers = [processor.worker(*[name] * threads) for name in "abc"]
    asked = [
        (rows, workers[which].submit([[number, 1] for number in range(rows)], max_batch_tokens=8))
        for which, rows in requests
    ]
    for rows, future in asked:
        assert get(future).tolist() == [number + 1 for number in range(rows)]
    for worker in workers:
        worker.close()
    assert processor.most_at_once == 1


def wait_for_two(turns: Turns) -> None:
    """Until somebody waits for whoever has the turn."""
    while len(turns._queue) < 2:
        time.sleep(0.001)


def test_a_query_to_one_model_waits_for_one_batch_of_the_other(processor: Processor) -> None:
    bulk, other = processor.worker("bulk"), processor.worker("other")
    processor.gate.clear()
    job = bulk.submit([[number] for number in range(40)], max_batch_tokens=4)
    assert processor.entered.wait(PATIENCE)
    query = other.submit([[1]], max_batch_tokens=4)
    wait_for_two(processor.turns)
    processor.gate.set()
    get(query)
    get(job)
    assert processor.passes == ["bulk", "other"] + ["bulk"] * 9
    bulk.close()
    other.close()


def test_what_is_computed_is_decided_when_the_turn_has_come(processor: Processor) -> None:
    busy, asked = processor.worker("busy"), processor.worker("asked")
    processor.gate.clear()
    futures = [busy.submit([[1]], max_batch_tokens=80)]
    assert processor.entered.wait(PATIENCE)
    futures.append(asked.submit([[number] * 10 for number in range(8)], max_batch_tokens=80))
    wait_for_two(processor.turns)
    futures.append(asked.submit([[2]], max_batch_tokens=80))
    processor.gate.set()
    for future in futures:
        get(future)
    assert processor.passes == ["busy", "asked", "asked"]
    assert processor.batches[1] == [[2]]
    busy.close()
    asked.close()


def test_a_model_that_waits_for_its_turn_can_be_closed(processor: Processor) -> None:
    busy, waiting = processor.worker("busy"), processor.worker("waiting")
    processor.gate.clear()
    running = busy.submit([[1]], max_batch_tokens=8)
    assert processor.entered.wait(PATIENCE)
    asked = waiting.submit([[2]], max_batch_tokens=8)
    wait_for_two(processor.turns)
    waiting.close()  # although the other is still computing
    with pytest.raises(ModelClosedError):
        get(asked)
    processor.gate.set()
    assert get(running).tolist() == [1]
    busy.close()
    assert processor.passes == ["busy"]
    assert not processor.turns._queue


def test_a_model_that_waits_for_its_turn_and_is_forgotten_ends(processor: Processor) -> None:
    busy, waiting = processor.worker("busy"), processor.worker("waiting", "waiting")
    processor.gate.clear()
    running = busy.submit([[1]], max_batch_tokens=8)
    assert processor.entered.wait(PATIENCE)
    asked = waiting.submit([[2]], max_batch_tokens=8)
    del waiting
    processor.gate.set()
    assert get(asked).tolist() == [2]
    assert get(running).tolist() == [1]
    busy.close()


def test_an_engine_that_fails_gives_its_turn_back(processor: Processor) -> None:
    broken, good = processor.worker("broken", fail=True), processor.worker("good")
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            get(broken.submit([[1]], max_batch_tokens=8))
        assert get(good.submit([[1]], max_batch_tokens=8)).tolist() == [1]
    broken.close()
    good.close()


def test_each_of_those_who_shared_a_failed_batch_is_tried_in_a_turn_of_its_own(processor: Processor) -> None:
    busy, broken = processor.worker("busy"), processor.worker("broken", fail=True)
    processor.gate.clear()
    running = busy.submit([[1]], max_batch_tokens=8)
    assert processor.entered.wait(PATIENCE)
    asked = [broken.submit([[number]], max_batch_tokens=8) for number in range(3)]
    processor.gate.set()
    for future in asked:
        assert isinstance(future.exception(PATIENCE), ArithmeticError)
    get(running)
    assert processor.passes == ["busy"] + ["broken"] * 4
    assert processor.most_at_once == 1
    busy.close()
    broken.close()


def test_a_callback_may_wait_for_another_model_and_close_it(processor: Processor) -> None:
    first, second = processor.worker("first"), processor.worker("second")
    done: Future[FloatArray] = Future()

    def ask(_: Future[FloatArray]) -> None:
        done.set_result(second.submit([[2]], max_batch_tokens=8).result(PATIENCE))
        second.close()

    first.submit([[1]], max_batch_tokens=8).add_done_callback(ask)
    assert get(done).tolist() == [2]
    first.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_begins_with_nobody_in_turn() -> None:
    turns = Turns()
    with turns.turn():
        child = os.fork()
        if not child:
            turns.begin_anew()
            with turns.turn() as granted:
                os._exit(0 if granted else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_turns_come_in_the_order_of_asking() -> None:
    turns, order = Turns(), list[int]()

    def take(number: int) -> None:
        with turns.turn():
            order.append(number)

    with ThreadPoolExecutor(5) as pool, turns.turn():
        for number in range(5):
            pool.submit(take, number)
            while len(turns._queue) < number + 2:
                time.sleep(0.001)
    assert order == [0, 1, 2, 3, 4]


# How many threads


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n", encoding="ascii")
    return root


def siblings(*pairs: tuple[int, int]) -> dict[str, str]:
    """The files of a processor of two threads a core."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{pair[0]},{pair[1]}"
        for pair in pairs
        for cpu in pair
    }


V2 = "0::/docker/abc"
V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:cpuset:/\n0::/"

QUOTAS: dict[str, tuple[dict[str, str], float]] = {
    "no control groups": ({}, math.inf),
    "no quota": ({"proc/self/cgroup": V2, "sys/fs/cgroup/docker/abc/cpu.max": "max 100000"}, math.inf),
    "its own": ({"proc/self/cgroup": V2, "sys/fs/cgroup/docker/abc/cpu.max": "250000 100000"}, 2.5),
    "lower above it": (
        {
            "proc/self/cgroup": V2,
            "sys/fs/cgroup/docker/abc/cpu.max": "400000 100000",
            "sys/fs/cgroup/docker/cpu.max": "300000 200000",
        },
        1.5,
    ),
    "a container that sees itself at the top": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"},
        0.5,
    ),
    "a container that sees the host's path": ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
    "nothing that Linux would say": (
        {"proc/self/cgroup": "?\n0::/", "sys/fs/cgroup/cpu.max": "-1 100000"},
        math.inf,
    ),
    "version 1": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "50000",
        },
        3,
    ),
    "version 1 without a quota": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
        },
        math.inf,
    ),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_lowest_quota_on_the_way_up_holds(case: str, tmp_path: Path) -> None:
    files, expected = QUOTAS[case]
    assert cpu_quota(write(tmp_path, files)) == expected


def test_threads_of_one_core_are_one_core(tmp_path: Path) -> None:
    root = write(tmp_path, siblings((0, 4), (1, 5), (2, 6), (3, 7)))
    assert physical_cores({*range(8)}, root) == 4
    assert physical_cores({0, 4, 1}, root) == 2
    assert physical_cores({0, 1, 2}, tmp_path / "elsewhere") == 3


HYPERTHREADED = siblings((0, 4), (1, 5), (2, 6), (3, 7))
QUOTA = {"proc/self/cgroup": V2, "sys/fs/cgroup/docker/abc/cpu.max": "150000 100000"}


@pytest.mark.parametrize(
    ("current", "cpus", "files", "environment", "expected"),
    [
        pytest.param(4, range(8), {}, {}, 4, id="nothing known of cores or quotas"),
        pytest.param(8, range(8), HYPERTHREADED, {}, 4, id="logical cores become physical ones"),
        pytest.param(4, range(8), HYPERTHREADED, {}, 4, id="physical cores already"),
        pytest.param(4, [0, 4, 1, 5], HYPERTHREADED, {}, 2, id="a mask of two cores"),
        pytest.param(4, range(8), HYPERTHREADED | QUOTA, {}, 2, id="a quota, rounded up"),
        pytest.param(1, [0], QUOTA, {}, 1, id="never more than now"),
        pytest.param(3, range(8), HYPERTHREADED | QUOTA, {}, 3, id="a number that only a user can have set"),
        pytest.param(8, range(8), QUOTA, {"OMP_NUM_THREADS": "8"}, 8, id="set for OpenMP"),
        pytest.param(8, range(8), QUOTA, {"MKL_NUM_THREADS": "8"}, 8, id="set for MKL"),
        pytest.param(8, [0], QUOTA, {"OMP_PROC_BIND": "true"}, 8, id="threads bound to cores"),
        pytest.param(8, range(8), QUOTA, {"OMP_NUM_THREADS": ""}, 2, id="an empty variable says nothing"),
    ],
)
def test_torch_gets_the_cores_that_the_process_may_use(
    current: int,
    cpus: list[int],
    files: dict[str, str],
    environment: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    root = write(tmp_path, files)
    assert threads_to_use(current, environment=environment, cpus=set(cpus), root=root) == expected


def test_this_machine_has_cores() -> None:
    assert threads_to_use(10**6, environment={}, cpus={0}) == 10**6
    assert threads_to_use(1, environment={}, cpus={0}) == 1
