"""The matrix products of a layer, and how their weights lie in memory.

On x86 CPUs oneDNN, which is part of torch, multiplies by weights in its own blocked layout ("packed") faster than by
rows: most of all for few tokens, where rearranging the rows on every call is as much work as the product. Packed
weights take the place of the plain ones, and what they hold is bit for bit the same.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from qwen_retrieval.engine.weights import LayerWeights, Matrix


def pack_layers(layers: list[LayerWeights], dtype: torch.dtype) -> None:
    """Replace the layers' matrices by packed ones, if that makes products in `dtype` faster on this machine.

    One matrix after the other, so that no more than one of them is in memory twice. The last layer's `qkv` stays
    plain: its queries and its keys are multiplied apart.

    Args:
        layers: What `load_decoder` read; changed in place.
        dtype: What is computed in. Matrices kept in another dtype stay plain: they are cast whenever they are used.
    """
    for i, layer in enumerate(layers):
        for name in ("qkv", "output", "gate_up", "down"):
            weight: Tensor = getattr(layer, name)
            if weight.dtype == dtype and _packing_pays(weight) and (name, i) != ("qkv", len(layers) - 1):
                setattr(layer, name, torch.ops.mkldnn._reorder_linear_weight(weight))


def cast(weight: Matrix, dtype: torch.dtype) -> Matrix:
    """A weight, packed or plain, in `dtype`: itself if it has that dtype already, or is quantized."""
    if not isinstance(weight, Tensor) or weight.dtype == dtype:
        return weight
    return (weight.to_dense() if weight.is_mkldnn else weight).to(dtype)


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """``x @ weight.T`` in the dtype of `x`: (T, in) and (out, in), packed, plain or quantized -> (T, out)."""
    weight = cast(weight, x.dtype)
    if not isinstance(weight, Tensor):
        return weight.multiply(x)
    if weight.is_mkldnn or (x.dtype == torch.float32 and _packing_pays(weight)):
        # Not `torch.set_float32_matmul_precision`, which would choose oneDNN too: it holds for the whole process, and
        # on CPUs with AMX its "medium" computes in bfloat16. This operator computes in the dtype it is given.
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return out
    return torch.nn.functional.linear(x, weight)


def _packing_pays(weight: Tensor) -> bool:
    """Whether oneDNN is the fastest way to multiply by this matrix (benchmarks/NOTES.md has the measurements)."""
    if weight.device.type != "cpu" or not _has_onednn():
        return False
    if weight.dtype == torch.bfloat16:
        return True  # torch computes bfloat16 by oneDNN anyway, and packs the rows anew each time
    return weight.dtype == torch.float32 and _mkl_is_slow()


@cache
def _has_onednn() -> bool:
    """Whether this is x86 and torch was built with oneDNN; elsewhere the layouts are other ones, never measured."""
    return platform.machine() in ("x86_64", "AMD64") and torch._C._has_mkldnn


@cache
def _mkl_is_slow() -> bool:
    """Whether float32 products go to MKL on an AMD CPU: MKL chooses kernels by vendor and keeps AVX-512 to Intel."""
    if not torch._C.has_mkl:
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        processor = os.environ.get("PROCESSOR_IDENTIFIER", "")  # Windows
    return "AuthenticAMD" in processor
