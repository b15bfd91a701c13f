"""What is looked at once per contender, off the clock: error, launches, how busy a GPU is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.floors import synchronize
from qwen_retrieval.types import FloatArray


def error_against(reference: FloatArray, found: FloatArray) -> float:
    """How far `found` is from `reference`, at worst.

    Args:
        reference: (n, hidden) float32 rows of unit length, or (n,) float32 log-odds.
        found: The same of another contender.

    Returns:
        1 - cosine for vectors, in [0, 2]; the absolute difference for log-odds.
    """
    if reference.ndim == 2:
        return float(max(0.0, (1.0 - (reference * found).sum(axis=1)).max()))
    return float(np.abs(reference - found).max())


class _CountOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch is asked to compute, views included."""

    count: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_launches(run: Callable[[], object], device: str) -> int:
    """Kernels and graphs that the processor launches on a GPU; on a CPU the operators that are dispatched.

    Args:
        run: One batch on the device alone, in this thread.
        device: "cpu", "cuda" or "cuda:N".
    """
    if device == "cpu":
        operators = _CountOperators()
        with operators:
            run()
        return operators.count
    run()  # what is compiled or captured at the first call is no launch
    events = _profile(run, device)
    launched: int = sum("Launch" in event.name for event in events if event.device_type == DeviceType.CPU)
    return launched


def busy_share(run: Callable[[], object], device: str) -> float | None:
    """Share of the wall time in which a GPU computes or copies; None on a CPU, whose processor time says it.

    The time of the kernels comes from a profiled run, the wall time from one without the profiler, which slows down
    what launches many.
    """
    if device == "cpu":
        return None
    run()
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    wall = time.perf_counter() - start
    kernels = [event for event in _profile(run, device) if event.device_type == DeviceType.CUDA]
    microseconds: float = sum(event.time_range.elapsed_us() for event in kernels)
    return min(1.0, microseconds / 1e6 / wall)


def _profile(run: Callable[[], object], device: str) -> list[Any]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize(device)
    return list(profiler.events())
