"""The matrices of the layers in float8, on NVIDIA GPUs that multiply in it: ``dtype="float8"``.

A weight has one scale per output row, found when it is loaded; an activation one scale per token, found on each call.
The tensor cores multiply float8 by float8 (e4m3: 4 bits of exponent, 3 of mantissa; arXiv 2209.05433), add up in
float32 and apply both scales. Nothing is calibrated. Token table, norms, attention and the reranker's head stay as they
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwen_retrieval.engine.kernels import fused_kernels, triton_kernels

if TYPE_CHECKING:
    from qwen_retrieval.engine.weights import LayerWeights

LARGEST = torch.finfo(torch.float8_e4m3fn).max

CAPABILITY = (8, 9)
"""Ada and Hopper were the first with float8 tensor cores."""


def check_supported(device: torch.device) -> None:
    """Refuse ``dtype="float8"`` where it cannot be computed.

    Raises:
        ValueError: `device` is no NVIDIA GPU, or an older one.
    """
    if device.type != "cuda":
        raise ValueError(
            f'dtype "float8" is for NVIDIA GPUs, but device is "{device}"; pass dtype="auto", or "int8" on a CPU'
        )
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ValueError(
            'dtype "float8" needs compute capability 8.9 or newer (Ada, Hopper), but '
            f'{torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}; pass dtype="auto"'
        )


def quantize_layer(layer: LayerWeights) -> None:
    """Replace a layer's matrices by `Float8Matrix`, one after the other; `layer` is changed in place."""
    for name in ("qkv", "output", "gate_up", "down"):
        setattr(layer, name, Float8Matrix.of(getattr(layer, name)))


class Float8Matrix:
    """A matrix in float8 that multiplies activations.

    Args:
        codes: (out, in) float8_e4m3fn, both sizes divisible by 16.
        scale: (out, 1) float32, what each row's codes are multiplied by.
    """

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes = codes
        self.scale = scale

    @classmethod
    def of(cls, weight: Tensor) -> Float8Matrix:
        """The nearest one to a matrix (out, in) of floating-point numbers."""
        return cls(*quantize_rows(weight))

    def __getitem__(self, rows: slice) -> Float8Matrix:
        """Some rows as a matrix of their own, in the same memory."""
        return Float8Matrix(self.codes[rows], self.scale[rows])

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ weight.T``: (T, in) -> (T, out) in the dtype of `x`; rows with NaN or infinity give rows of NaN."""
        codes, scale = _quantize_activations(x)
        # By rows, the product comes in bfloat16 only.
        out = torch._scaled_mm(
            codes, self.codes.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return out.to(x.dtype)


def _quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type == "cuda" and fused_kernels(x.device):
        codes, scale = triton_kernels().quantize_rows(x)
        return codes, scale
    return quantize_rows(x)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest float8 codes of each row, for its largest number to have the largest code.

    Args:
        x: (T, n), floating point.

    Returns:
        Codes (T, n) float8_e4m3fn and scales (T, 1) float32, so that ``codes * scales`` is near to `x`. A row of zeros
        has the scale 1; one with NaN or infinity has codes of NaN.
    """
    numbers = x.float()
    largest = numbers.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest / LARGEST, 1.0)
    return (numbers / scale).to(torch.float8_e4m3fn), scale
