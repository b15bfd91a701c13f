"""What travels between host and device: integers in, one copy per batch; rows out, without holding up others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qwen_retrieval.batching import IndexArray
from qwen_retrieval.types import FloatArray


def upload(arrays: Sequence[IndexArray], device: torch.device) -> list[Tensor]:
    """Integers to a device.

    Args:
        arrays: Arrays of one axis.
        device: Where to. To CUDA they go as int32, in a single copy that is not waited for.

    Returns:
        A tensor for each array.
    """
    if device.type != "cuda":
        return [torch.from_numpy(array).to(device) for array in arrays]
    arena = _pinned(arrays).to(device, non_blocking=True)
    return list(torch.split(arena, [len(array) for array in arrays]))


def overwrite(target: Tensor, arrays: Sequence[IndexArray]) -> None:
    """The same into a tensor that is there already, int32, of the size of all arrays together."""
    if target.device.type == "cuda":
        target.copy_(_pinned(arrays), non_blocking=True)
    else:
        target.copy_(torch.from_numpy(np.concatenate(arrays)))


def _pinned(arrays: Sequence[IndexArray]) -> Tensor:
    """All arrays, one after the other, in memory that the device can read by itself.

    torch reuses that memory only when the copy out of it is done.
    """
    pinned = torch.empty(sum(map(len, arrays)), dtype=torch.int32, pin_memory=True)
    np.concatenate(arrays, out=pinned.numpy(), casting="same_kind")
    return pinned


class Download:
    """Rows on their way to the host.

    Args:
        rows: (n, …) float32 on any device.
    """

    def __init__(self, rows: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._rows = rows
        if rows.device.type == "cuda":
            self._rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._rows.copy_(rows, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> FloatArray:
        """The rows, when they have arrived; what was asked of the device since goes on meanwhile."""
        if self._done is not None:
            self._done.synchronize()
        return self._rows.cpu().numpy()
