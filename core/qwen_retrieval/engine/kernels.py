"""The elementwise operations of a Qwen3 layer, each in one place so that a faster kernel can replace it.

Every function takes and returns packed tensors: one row per token, no padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis, in float32 inside, as in transformers' `Qwen3RMSNorm`."""
    if x.device.type != "cpu":
        return torch.nn.functional.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    # On the CPU torch composes rms_norm of four passes over memory; these are two and a half.
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(length.square() / x.shape[-1] + eps)
    return (x * scale).mul_(weight.float()).to(x.dtype)


def rope_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (RoFormer, arXiv 2104.09864, eq. 15), in the half-split layout.

    Args:
        positions: (T,) int64.
        head_dim: Size of one head, even.
        theta: Base of the angles, 1e6 for Qwen3.
        dtype: What to return; angles are computed in float32.

    Returns:
        Cosines and sines, each (T, 1, head_dim / 2).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[:, None, None] * (1.0 / theta**exponents)  # (T, 1, head_dim / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each head by its token's position.

    Args:
        x: (T, heads, head_dim).
        table: What `rope_table` returned for the T positions.

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


HEAD_ROWS = 128
"""Tokens that `norm_rotate` computes at a time on the CPU: their float32 intermediates stay in the cache."""


def norm_rotate(x: Tensor, weight: Tensor, table: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """`rms_norm` and then `rotate` for the heads of queries or keys.

    On the CPU it computes all of it in float32 and overwrites `x`. In one piece, each step would write (and the system
    clear) memory as large as all queries in float32, which takes longer than the arithmetic.

    Args:
        x: (T, heads, head_dim).
        weight: (head_dim,) of the norm.
        table: What `rope_table` returned for the T positions, in float32 on the CPU, else in the dtype of `x`.
        eps: Of the norm.

    Returns:
        (T, heads, head_dim).
    """
    if x.device.type != "cpu":
        return rotate(rms_norm(x, weight, eps), table)
    parts = (torch.split(whole, HEAD_ROWS) for whole in (x, *table))
    for rows, cos, sin in zip(*parts, strict=True):
        rows.copy_(rotate(rms_norm(rows.float(), weight, eps), (cos, sin)))
    return x


def silu_mul(gate_up: Tensor) -> Tensor:
    """SiLU(gate) * up of a fused projection, overwriting its first half: (T, 2 ffn) -> (T, ffn)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate, inplace=True).mul_(up)
