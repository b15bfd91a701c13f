"""The elementwise operations of a Qwen3 layer, which read and write memory and hardly compute.

Every function takes and returns packed tensors: one row per token, no padding. There are three implementations behind
one interface, `Kernels`: torch's own operations (`EagerKernels`), the same in parts that stay in a CPU's cache
(`CpuKernels`), and those of `triton_kernels.py` for CUDA (`FusedKernels`).
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

HEAD_ROWS = 128
"""Tokens that `CpuKernels.norm_rotate` computes at a time: their float32 intermediates stay in the cache."""


class Rope:
    """Rotary positions (RoFormer, arXiv 2104.09864, eq. 15) of the rows of a batch, in the half-split layout.

    Args:
        table: Cosines and sines of every position up to the longest, each (P, head_dim / 2) float32.
        positions: (T,) integers, the position of each row.

    Attributes:
        cos: The table's cosines.
        sin: The table's sines.
        positions: The rows' positions.
    """

    def __init__(self, table: tuple[Tensor, Tensor], positions: Tensor) -> None:
        self.cos, self.sin = table
        self.positions = positions
        self._rows: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def rows(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each row, (T, 1, head_dim / 2) in `dtype`, looked up once for all layers."""
        if dtype not in self._rows:
            cos, sin = (table.index_select(0, self.positions)[:, None].to(dtype) for table in (self.cos, self.sin))
            self._rows[dtype] = cos, sin
        return self._rows[dtype]

    def at(self, rows: Tensor) -> Rope:
        """The positions of some rows only."""
        return Rope((self.cos, self.sin), self.positions.index_select(0, rows))


def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `Rope` looks up: cosines and sines of positions 0 to `length` - 1.

    Args:
        length: P.
        head_dim: Size of one head, even.
        theta: Base of the angles, 1e6 for Qwen3.
        device: Where they are needed.

    Returns:
        Cosines and sines, each (P, head_dim / 2) float32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * (1.0 / theta**exponents)  # (P, head_dim / 2)
    return angles.cos(), angles.sin()


class Kernels(Protocol):
    """What a layer does between its matrix products."""

    def add_rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add to the residual stream, and norm it.

        Args:
            hidden: (T, hidden); `delta` is added in place.
            delta: (T, hidden) what the layer before computed; None for nothing.
            weight: (hidden,) of the norm.
            eps: Of the norm.

        Returns:
            (T, hidden), a new tensor: the root-mean-square norm of the sum, in float32 inside, as in transformers'
            `Qwen3RMSNorm`.
        """

    def norm_rotate(self, heads: Tensor, weight: Tensor, rope: Rope, eps: float) -> None:
        """Norm each head, then rotate it by its token's position, in place.

        Args:
            heads: (T, heads, head_dim), a part of wider rows.
            weight: (heads, head_dim) of each head's norm.
            rope: Of the T positions.
            eps: Of the norm.
        """

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """SiLU(gate) * up of a fused projection, which may be overwritten: (T, 2 ffn) -> (T, ffn)."""


class EagerKernels:
    """torch's own operations, on any device."""

    def add_rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.add_rms_norm`."""
        return self.rms_norm(hidden if delta is None else hidden.add_(delta), weight, eps)

    def norm_rotate(self, heads: Tensor, weight: Tensor, rope: Rope, eps: float) -> None:
        """See `Kernels.norm_rotate`."""
        heads.copy_(rotate(self.rms_norm(heads, weight, eps), rope.rows(heads.dtype)))

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Kernels.silu_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(…, size) normed over the last axis, times `weight`, which broadcasts."""
        return torch.nn.functional.rms_norm(x, x.shape[-1:], None, eps) * weight.to(x.dtype)


class CpuKernels(EagerKernels):
    """The same for CPUs, where temporaries that leave the cache cost more than the arithmetic."""

    def norm_rotate(self, heads: Tensor, weight: Tensor, rope: Rope, eps: float) -> None:
        """See `Kernels.norm_rotate`; all of it in float32.

        In one piece, each step would write (and the system clear) memory as large as all heads in float32.
        """
        parts = (torch.split(whole, HEAD_ROWS) for whole in (heads, *rope.rows(torch.float32)))
        for rows, cos, sin in zip(*parts, strict=True):
            rows.copy_(rotate(self.rms_norm(rows.float(), weight, eps), (cos, sin)))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `EagerKernels.rms_norm`; torch composes it of four passes over memory here, these are two and a half."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(length.square() / x.shape[-1] + eps)
        return (x * scale).mul_(weight.float()).to(x.dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each head by its token's position.

    Args:
        x: (T, heads, head_dim).
        table: What `Rope.rows` returned for the T positions.

    Returns:
        (T, heads, head_dim), a new tensor.
    """
    cos, sin = table
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def choose_kernels(device: torch.device) -> Kernels:
    """The fastest kernels for a device."""
    if device.type == "cpu":
        return CpuKernels()
    return (fused_kernels(device) if device.type == "cuda" else None) or EagerKernels()


class FusedKernels:
    """The kernels of `triton_kernels`: each reads its inputs once and writes its result once (CUDA)."""

    def __init__(self) -> None:
        self._triton = triton_kernels()

    def add_rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.add_rms_norm`."""
        normed: Tensor = self._triton.add_rms_norm(hidden, delta, weight, eps)
        return normed

    def norm_rotate(self, heads: Tensor, weight: Tensor, rope: Rope, eps: float) -> None:
        """See `Kernels.norm_rotate`."""
        self._triton.norm_rotate(heads, weight, rope.cos, rope.sin, rope.positions, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Kernels.silu_mul`."""
        out: Tensor = self._triton.silu_mul(gate_up)
        return out


def triton_kernels() -> ModuleType:
    """The module, which needs Triton: torch brings it along for CUDA on Linux, and nowhere else."""
    return import_module("qwen_retrieval.engine.triton_kernels")


@cache
def fused_kernels(device: torch.device) -> FusedKernels | None:
    """The fused kernels, if they can be compiled for this CUDA device and compute there what torch computes."""
    try:
        with torch.cuda.device(device):
            triton_kernels().self_check(device)
    except Exception as error:  # no Triton, no compiler, a GPU too old: each library raises its own
        _log.warning("computing without fused kernels, more slowly, because they do not work here: %s", error)
        return None
    return FusedKernels()
