"""The matrices of the layers in 8 bits, on the CPU: ``dtype="int8"``.

A weight has one scale per output row, found when it is loaded; an activation one scale per token, found on each call
(dynamic W8A8 quantization). The products are sums of integers, exact in 32 bits; they come out in the dtype of the
activation. Nothing is calibrated: a result depends on the weights and on the input, on no sample of data.

Some channels of a trained decoder's activations are tens of times larger than the others (LLM.int8(), arXiv
2208.07339, section 4), which would be left with a few of the 255 steps. So an activation is rotated, in blocks, by a
Hadamard matrix before it is rounded, which spreads each channel over its block, and so is the weight; in exact
arithmetic their product is the same (QuaRot, arXiv 2404.00456, section 4, where whole rows are rotated).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qwen_retrieval.engine.weights import LayerWeights

LARGEST = 127
"""Codes are -127 to 127, so that their negatives exist."""

ZERO_POINT = 128
"""Codes of activations are shifted by this: x86 multiplies unsigned by signed bytes."""

CHUNK = 512
"""Tokens that are multiplied at a time, so that codes and products stay in the cache until they are scaled."""

BLOCKS = (64, 16, 4, 1)
"""Channels over which one is spread: the most that divide a row. Squares, so that a bfloat16 rotation is exact."""


def check_supported(device: torch.device) -> None:
    """Refuse ``dtype="int8"`` where it cannot be computed.

    Raises:
        ValueError: `device` is no CPU, this build of torch has no such products, or this processor gets them wrong.
    """
    if device.type != "cpu":
        raise ValueError(
            f'dtype "int8" is for CPUs, but device is "{device}"; pass dtype="bfloat16", or device="cpu" with "int8"'
        )
    if (reason := _obstacle()) is not None:
        raise ValueError(f'dtype "int8" cannot be computed here: {reason}; pass dtype="auto" instead')


def quantize_layer(layer: LayerWeights) -> None:
    """Replace a layer's matrices by `Int8Matrix`, one after the other; `layer` is changed in place."""
    for name in ("qkv", "output", "gate_up", "down"):
        setattr(layer, name, Int8Matrix.of(getattr(layer, name)))


class Int8Matrix:
    """A matrix in 8 bits that multiplies activations.

    Args:
        codes: (out, in) int8, -127 to 127.
        scale: (out,) float32, what a step of each row is worth.
        block: Channels that were rotated together, as those of an activation are before it is multiplied.
    """

    def __init__(self, codes: Tensor, scale: Tensor, block: int) -> None:
        self.shape = codes.shape
        self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
        self._scale = scale
        self._zero_points = torch.zeros(len(codes), dtype=torch.int32)
        self._block = block
        self._parts: dict[tuple[int, int], Int8Matrix] = {}

    @classmethod
    def of(cls, weight: Tensor) -> Int8Matrix:
        """The nearest one to a matrix (out, in) of floating-point numbers."""
        block = _block(weight.shape[1])
        codes, scale = quantize_rows(rotate(weight.float(), block))
        return cls(codes, scale.flatten(), block)

    def __getitem__(self, rows: slice) -> Int8Matrix:
        """Some rows as a matrix of their own; it is laid out once and kept, since each forward pass asks for it."""
        start, stop, _ = rows.indices(self.shape[0])
        if (start, stop) not in self._parts:
            codes = self._packed.to_dense().t()[start:stop].contiguous()
            self._parts[start, stop] = Int8Matrix(codes, self._scale[start:stop], self._block)
        return self._parts[start, stop]

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ weight.T``: (T, in) -> (T, out) in the dtype of `x`, float32 or bfloat16.

        Rows with NaN or infinity give rows without any finite number.
        """
        out = x.new_empty(len(x), self.shape[0])
        for rows, result in zip(torch.split(x, CHUNK), torch.split(out, CHUNK), strict=True):
            if len(rows):
                codes, scale = quantize_rows(rotate(rows, self._block))
                torch.mul(self._product(codes, x.dtype), scale, out=result)
        return out

    def _product(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Products in units of the activations' scales: (T, in) int8 -> (T, out)."""
        shifted = codes.view(torch.uint8).bitwise_xor_(ZERO_POINT)  # adds 128 to a number in two's complement
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, ZERO_POINT, self._packed, self._scale, self._zero_points,
            None, 1.0, 0, dtype, "none", [], "",
        )  # fmt: skip
        return out


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest 8-bit codes of each row, for its largest number to have the largest code.

    Args:
        x: (T, n), floating point.

    Returns:
        Codes (T, n) int8 from -127 to 127, and scales (T, 1) in the dtype of `x`, so that ``codes * scales`` is near to
        `x`. A row of zeros has codes of zero; one with NaN or infinity has that for its scale, and any codes.
    """
    numbers = x.float()
    scale = (numbers.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny).to(x.dtype)
    return (numbers * scale.float().reciprocal()).round_().to(torch.int8), scale


def rotate(x: Tensor, block: int) -> Tensor:
    """Each `block` consecutive channels times the Hadamard matrix of that size: (T, n) -> (T, n)."""
    if block == 1:
        return x
    rotated: Tensor = x.reshape(-1, block) @ _hadamard(block, x.dtype)
    return rotated.view(x.shape)


def _block(channels: int) -> int:
    return next(size for size in BLOCKS if channels % size == 0)


@cache
def _hadamard(size: int, dtype: torch.dtype) -> Tensor:
    """Sylvester's symmetric and orthogonal matrix of -1 and 1, over the square root of its size."""
    matrix: Tensor = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix.div_(size**0.5).to(dtype)


@cache
def _obstacle() -> str | None:
    """Why this machine cannot multiply in 8 bits, or None if it can.

    Without VNNI, oneDNN adds two products in 16 bits, and what is larger is cut off. The processor's flags do not say
    what a build of torch makes of them, so the largest numbers are multiplied and the result looked at.
    """
    try:
        codes = torch.full((64, 256), LARGEST, dtype=torch.int8)
        found = Int8Matrix(codes, torch.ones(64), 1)._product(codes[:32].clone(), torch.float32)
    except (AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return f"torch {torch.__version__} for this kind of processor has no such matrix product ({reason})"
    if bool((found == 256 * LARGEST**2).all()):
        return None
    return "this processor has no instructions for it (AVX-512 VNNI), and without them sums overflow"
