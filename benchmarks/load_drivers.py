"""Callers and their calls: when each falls due, how many callers there are, and how long each call took.

Open loop: calls fall due at times drawn beforehand, as from users who know nothing of each other, and latency counts
from then. So a call that waits because all callers are busy, or because nobody could run, is counted with its wait
("coordinated omission" is what leaves it out). Closed loop: each caller calls again as soon as it has its answer.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

LEAD = 0.3
"""Seconds between making a schedule and its first call, in which hundreds of callers are started."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A call in both forms, by its number.

    Attributes:
        name: For the tables.
        call: Blocks the thread until it is answered.
        acall: The same for tasks.
    """

    name: str
    call: Callable[[int], object]
    acall: Callable[[int], Awaitable[object]]


class Job(NamedTuple):
    """A call to be made.

    Attributes:
        number: Counts the calls of a run, from 0.
        due: When latency begins to count, on the clock of `time.perf_counter`.
    """

    number: int
    due: float


class Work(Protocol):
    """Hands out calls, to threads or tasks."""

    def take(self) -> Job | None:
        """The next call, which may fall due in the future; None if there is none left."""
        ...

    def left_over(self) -> list[float]:
        """When the calls fell due that nobody came to make, because time was up."""
        ...


class Saturation:
    """Closed loop: `calls` calls, each due when a caller is free."""

    def __init__(self, calls: int) -> None:
        self._left = iter(range(calls))
        self._lock = threading.Lock()

    def take(self) -> Job | None:
        """The next call, due now."""
        with self._lock:
            number = next(self._left, None)
        return None if number is None else Job(number, time.perf_counter())

    def left_over(self) -> list[float]:
        """Nothing: all calls are made."""
        return []


class Arrivals:
    """Open loop: calls due at given times.

    Args:
        times: Seconds after the start, ascending.
        patience: Seconds after the last of them until callers give up what is left, because the load is too much.
    """

    def __init__(self, times: Sequence[float], *, patience: float = 2.0) -> None:
        self._start = time.perf_counter() + LEAD
        self._times = times
        self._end = self._start + (times[-1] if times else 0.0) + patience
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> Job | None:
        """The next call in the order of arrival."""
        with self._lock:
            if self._next == len(self._times) or time.perf_counter() > self._end:
                return None
            job = Job(self._next, self._start + self._times[self._next])
            self._next += 1
            return job

    def stop(self) -> None:
        """Forget the calls that are not due yet; callers that wait for theirs still make it."""
        with self._lock:
            now = time.perf_counter() - self._start
            self._times = [due for number, due in enumerate(self._times) if number < self._next or due <= now]

    def left_over(self) -> list[float]:
        """When the calls fell due that nobody came to make."""
        return [self._start + due for due in self._times[self._next :]]


def poisson(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Arrival times of a Poisson process: independent users, so that gaps are exponential.

    Args:
        rate: Arrivals per second on average.
        seconds: Length of the schedule.
        seed: The same seed gives the same times.

    Returns:
        Ascending times in [0, `seconds`).
    """
    rng = random.Random(seed)
    times, now = [], rng.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += rng.expovariate(rate)
    return times


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        spans: When each answered call was due, and when it was answered.
        errors: What calls raised.
        waits: Seconds that calls had waited when callers gave up: their latency is at least that.
    """

    spans: list[tuple[float, float]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @property
    def latencies(self) -> list[float]:
        """Seconds from due to answer, and of calls that were given up, what they had waited: a lower bound."""
        return [end - due for due, end in self.spans] + self.waits

    @property
    def per_second(self) -> float:
        """Answered calls per second, from when the first was due to the last answer; 0 if none was answered."""
        if not self.spans:
            return 0.0
        return len(self.spans) / (max(end for _, end in self.spans) - min(due for due, _ in self.spans))

    def give_up(self, due: Sequence[float]) -> None:
        """Note calls that were not made."""
        now = time.perf_counter()
        self.waits += [max(0.0, now - one) for one in due]

    def summary(self) -> dict[str, float | int | dict[str, int]]:
        """Percentiles in ms, calls per second, and how many calls were answered, given up, or failed with what.

        Raises:
            ExceptionGroup: No call was answered.
        """
        if not self.spans:
            raise ExceptionGroup("no call was answered", self.errors or [TimeoutError("callers gave up all calls")])
        latencies = self.latencies
        return {
            "answered": len(self.spans),
            "given_up": len(self.waits),
            "errors": dict(Counter(type(error).__name__ for error in self.errors)),
            "per_second": self.per_second,
            **{f"p{percent}_ms": 1e3 * percentile(latencies, percent) for percent in (50, 95, 99)},
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent of the values do not exceed (nearest rank).

    Args:
        values: At least one.
        percent: Above 0, at most 100.
    """
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def drive_threads(call: Callable[[int], object], work: Work, callers: int) -> Outcome:
    """Let threads make the calls.

    Args:
        call: Makes the call of that number, and returns when it is answered.
        work: What calls there are.
        callers: How many threads.
    """
    outcome = Outcome()

    def caller() -> None:
        while (job := work.take()) is not None:
            time.sleep(max(0.0, job.due - time.perf_counter()))
            try:
                call(job.number)
            except Exception as error:
                outcome.errors.append(error)
            else:
                outcome.spans.append((job.due, time.perf_counter()))

    threads = [threading.Thread(target=caller, name=f"caller {number}") for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.give_up(work.left_over())
    return outcome


async def drive_tasks(call: Callable[[int], Awaitable[object]], work: Work, callers: int) -> Outcome:
    """Let tasks of this event loop make the calls; see `drive_threads`."""
    outcome = Outcome()

    async def caller() -> None:
        while (job := work.take()) is not None:
            await asyncio.sleep(max(0.0, job.due - time.perf_counter()))
            try:
                await call(job.number)
            except Exception as error:
                outcome.errors.append(error)
            else:
                outcome.spans.append((job.due, time.perf_counter()))

    await asyncio.gather(*(caller() for _ in range(callers)))
    outcome.give_up(work.left_over())
    return outcome
