"""Interleaved measurement: every contender once per round, in turn; ratios are taken round by round.

A `Clock` says how much time there is. What does not fit any more is left out, and the result says so.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.contenders import Contender
from benchmarks.floors import Ceiling, synchronize
from benchmarks.results import Run, Sweep
from benchmarks.workloads import Item, Task


@dataclass(slots=True)
class Clock:
    """A budget of time.

    Args:
        seconds: How long; None for as long as it takes.
    """

    seconds: float | None
    start: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def left(self) -> float:
        """Seconds left."""
        return float("inf") if self.seconds is None else self.seconds - (time.perf_counter() - self.start)

    def part(self, share: float) -> Clock:
        """A clock with a share of what is left."""
        return Clock(None if self.seconds is None else max(0.0, self.left * share))


@dataclass(slots=True)
class Entrant:
    """A contender in one workload, with what was measured of it so far."""

    contender: Contender
    batch_size: int
    run: Run


def try_batch_sizes(contender: Contender, task: Task, items: Sequence[Item], sizes: Sequence[int]) -> list[Sweep]:
    """Warm up with a few items, then run once with each batch size; what does not fit into memory has no seconds."""
    out_of_memory_is_none(lambda: _timed(contender, task, [items[:4]], sizes[0])[0])
    tried = []
    for size in sizes:
        memory = _PeakMemory(contender.device)
        seconds = out_of_memory_is_none(lambda size=size: _timed(contender, task, [items], size)[0])  # type: ignore[misc]
        tried.append(Sweep(size, seconds, memory.read() if seconds is not None else None))
        release(contender.device)
    return tried


def best_of(sweep: Sequence[Sweep]) -> int | None:
    """The fastest batch size; None if none fits."""
    fitting = [(one.seconds, one.batch_size) for one in sweep if one.seconds is not None]
    return min(fitting)[1] if fitting else None


def out_of_memory_is_none(run: Callable[[], float]) -> float | None:
    """What `run` gives; None if the device's memory is too small."""
    try:
        return run()
    except torch.OutOfMemoryError:
        return None


def one_round(entrants: Sequence[Entrant], task: Task, calls: Sequence[list[Item]], ceiling: Ceiling) -> None:
    """Every contender on all calls, end to end, in turn, after a look at what the machine can do."""
    device = entrants[0].contender.device
    ceiling.measure(device)
    for entrant in entrants:
        memory = _PeakMemory(device)
        before = time.process_time()
        seconds, of_calls = _timed_or_smaller(entrant, task, calls)
        entrant.run.processor_seconds.append(time.process_time() - before)
        entrant.run.seconds.append(seconds)
        entrant.run.peak_bytes = max(memory.read() or 0, entrant.run.peak_bytes or 0) or None
        if len(calls) > 1:
            entrant.run.call_seconds.append(of_calls)


def _timed_or_smaller(entrant: Entrant, task: Task, calls: Sequence[list[Item]]) -> tuple[float, list[float]]:
    """`_timed`, at half the batch size as long as memory does not suffice: the sweep has not seen the longest items."""
    while True:
        try:
            return _timed(entrant.contender, task, calls, entrant.batch_size)
        except torch.OutOfMemoryError:
            if entrant.batch_size == 1:
                raise
        entrant.batch_size //= 2
        entrant.run.batch_size = entrant.batch_size
        release(entrant.contender.device)


def release(device: str) -> None:
    """Give a GPU's free memory back to it, so that no contender keeps another from it."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def one_device_round(entrants: Sequence[Entrant], prepared: Sequence[list[Callable[[], object]]]) -> None:
    """Every contender that has prepared its calls, on the device alone, in turn."""
    for entrant, steps in zip(entrants, prepared, strict=True):
        if not steps:
            continue
        device = entrant.contender.device
        _settle(device)
        start = time.perf_counter()
        for step in steps:
            step()
        synchronize(device)
        entrant.run.device_seconds.append(time.perf_counter() - start)


def prepare(entrants: Sequence[Entrant], task: Task, calls: Sequence[list[Item]]) -> list[list[Callable[[], object]]]:
    """Tokenised calls of each contender; none of one that cannot separate the two."""
    prepared = []
    for entrant in entrants:
        steps = [entrant.contender.prepare(task, call, entrant.batch_size) for call in calls]
        prepared.append([step for step in steps if step is not None])
    return prepared


def _timed(
    contender: Contender, task: Task, calls: Sequence[Sequence[Item]], batch_size: int
) -> tuple[float, list[float]]:
    """Seconds of all calls together, and of each."""
    _settle(contender.device)
    seconds = []
    begin = time.perf_counter()
    for call in calls:
        start = time.perf_counter()
        contender.run(task, call, batch_size)  # gives numpy, so the device has finished
        seconds.append(time.perf_counter() - start)
    return time.perf_counter() - begin, seconds


def _settle(device: str) -> None:
    gc.collect()
    synchronize(device)


class _PeakMemory:
    """The most memory of a GPU that is allocated from now on, above what is allocated now."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device != "cpu":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def read(self) -> int | None:
        """Bytes; None on a CPU, which keeps no such count."""
        return None if self._device == "cpu" else torch.cuda.max_memory_allocated(self._device) - self._before
