"""Whether memory stays flat over many calls: what the process holds, and what of ours is alive."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load_drivers import Contender, Outcome, Saturation, drive_tasks, drive_threads

OURS = ("qwen_retrieval", "langchain_qwen_retrieval", "llama_index.embeddings.qwen_retrieval", "concurrent.futures")
"""Packages whose objects are counted; futures are the standard library's, but we make them. Also tasks, below."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one moment, after a garbage collection.

    Attributes:
        calls: Made so far.
        resident: Bytes of memory that the process holds; 0 where there is no /proc.
        blocks: Pieces of memory that Python's allocator has given out, of everything in the process.
        objects: Live objects by class, of ours, futures and tasks.
    """

    calls: int
    resident: int
    blocks: int
    objects: Counter[str]


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per call: a line fitted by least squares.

    Attributes:
        per_call: Its slope.
        error: The standard error of the slope.
    """

    per_call: float
    error: float


def sample(calls: int) -> Sample:
    """Look at this process."""
    gc.collect()
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    kept = {kind: count for kind, count in kinds.items() if kind.startswith((*OURS, "_asyncio"))}
    return Sample(calls, _resident(), sys.getallocatedblocks(), Counter(kept))


def _resident() -> int:
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def watch(contender: Contender, calls: int, *, callers: int, samples: int, tasks: bool) -> list[Sample]:
    """Make calls, and look at the process in between.

    Args:
        contender: What is called.
        calls: How often, in all.
        callers: How many threads or tasks call at once.
        samples: How many looks, after as many equal parts of the calls; one more stands at the beginning.
        tasks: Whether callers are tasks of an event loop, or threads.

    Raises:
        ExceptionGroup: Calls failed.
    """
    found = [sample(0)]
    done = 0
    with asyncio.Runner() as runner:
        for part in range(1, samples + 1):
            upto = calls * part // samples
            work = Saturation(upto - done)
            if tasks:
                _check(runner.run(drive_tasks(contender.acall, work, callers)))
            else:
                _check(drive_threads(contender.call, work, callers))
            done = upto
            found.append(sample(done))
    return found


def _check(outcome: Outcome) -> None:
    if outcome.errors:
        raise ExceptionGroup(f"{len(outcome.errors)} calls failed", outcome.errors)


def slope(calls: Sequence[float], values: Sequence[float]) -> Slope:
    """Fit a line.

    Args:
        calls: At least three different numbers.
        values: What was there after so many calls.
    """
    x, y = np.asarray(calls, dtype=np.float64), np.asarray(values, dtype=np.float64)  # (n,)
    x = x - x.mean()
    per_call = float(x @ y / (x @ x))
    residuals = y - y.mean() - per_call * x  # (n,)
    return Slope(per_call, float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))))


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Without the first fifth, in which pools of threads and memory fill for the first time."""
    return list(samples[max(1, len(samples) // 5) :])


def grown(samples: Sequence[Sample]) -> dict[str, int]:
    """Classes of ours of which more are alive at the end than after the first part, and how many more."""
    return dict(samples[-1].objects - samples[1].objects)
