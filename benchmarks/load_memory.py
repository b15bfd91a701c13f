"""Whether memory stays flat over many calls: what the process holds, and what of ours is alive."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from benchmarks.load_drivers import Contender, Outcome, Saturation, drive_tasks, drive_threads

OURS = ("qwen_retrieval", "langchain_qwen_retrieval", "llama_index.embeddings.qwen_retrieval", "concurrent.futures")
"""Packages whose objects are counted; futures are the standard library's, but we make them. Also tasks, below."""


@dataclass(frozen=True, slots=True)
class Log:
    """Looks at the process, each after a garbage collection.

    All numbers have their place from the start, so that looking does not grow the memory.

    Attributes:
        calls: (n,) int64, calls made before each look.
        resident: (n,) int64, bytes that the process holds, without files that are mapped and can be dropped at any
            time; 0 where there is no /proc.
        blocks: (n,) int64, pieces of memory that Python's allocator has given out, to everything in the process.
        objects: Live objects by class, of ours, futures and tasks: after the first part of the calls, and at the end.
    """

    calls: npt.NDArray[np.int64]
    resident: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    objects: list[Counter[str]]

    @classmethod
    def of(cls, calls: int, parts: int) -> Log:
        """An empty log of looks at the beginning and after each of so many parts."""
        upto = np.linspace(0, calls, parts + 1).astype(np.int64)
        return cls(upto, np.zeros_like(upto), np.zeros_like(upto), [])

    def note(self, part: int) -> None:
        """Look now."""
        gc.collect()
        self.resident[part], self.blocks[part] = _resident(), sys.getallocatedblocks()
        if part in (1, len(self.calls) - 1):
            self.objects.append(_objects())

    @property
    def grown(self) -> dict[str, int]:
        """Classes of ours of which more are alive at the end than after the first part, and how many more."""
        return dict(self.objects[-1] - self.objects[0])

    def slope(self, name: Literal["resident", "blocks"]) -> Slope:
        """Growth per call, without the first fifth, in which pools of threads and memory fill for the first time."""
        first = max(1, len(self.calls) // 5)
        return fit(self.calls[first:], getattr(self, name)[first:])


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per call: a line fitted by least squares.

    Attributes:
        per_call: Its slope.
        error: The standard error of the slope.
    """

    per_call: float
    error: float


def _objects() -> Counter[str]:
    kinds = Counter(map(type, gc.get_objects()))
    names = Counter({f"{kind.__module__}.{kind.__qualname__}": count for kind, count in kinds.items()})
    return Counter({name: count for name, count in names.items() if name.startswith((*OURS, "_asyncio"))})


def _resident() -> int:
    path = Path("/proc/self/status")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def watch(contender: Contender, calls: int, *, callers: int, parts: int, tasks: bool) -> Log:
    """Make calls, and look at the process in between.

    Args:
        contender: What is called.
        calls: How often, in all.
        callers: How many threads or tasks call at once.
        parts: After how many equal parts of the calls to look; at least 2.
        tasks: Whether callers are tasks of an event loop, or threads.

    Raises:
        ExceptionGroup: Calls failed.
    """
    log = Log.of(calls, parts)
    log.note(0)
    with asyncio.Runner() as runner:
        for part in range(1, parts + 1):
            work = Saturation(int(log.calls[part] - log.calls[part - 1]))
            if tasks:
                _check(runner.run(drive_tasks(contender.acall, work, callers)))
            else:
                _check(drive_threads(contender.call, work, callers))
            log.note(part)
    return log


def _check(outcome: Outcome) -> None:
    if outcome.errors:
        raise ExceptionGroup(f"{len(outcome.errors)} calls failed", outcome.errors)


def fit(calls: npt.ArrayLike, values: npt.ArrayLike) -> Slope:
    """Fit a line.

    Args:
        calls: (n,) at least three different numbers.
        values: (n,) what was there after so many calls.
    """
    x, y = np.asarray(calls, dtype=np.float64), np.asarray(values, dtype=np.float64)  # (n,)
    x = x - x.mean()
    per_call = float(x @ y / (x @ x))
    residuals = y - y.mean() - per_call * x  # (n,)
    return Slope(per_call, float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))))
