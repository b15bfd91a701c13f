"""The elementwise operations of a Qwen3 layer on a GPU, one launch each, written in Triton.

Each reads its inputs once and writes its result once; everything in between is float32 in registers. With h hidden
features, H query and key heads of size D and ffn MLP features, one layer moves, in bytes per token at two bytes a
value: two `add_rms_norm` of 8 h, one `norm_rotate` of 4 H D + 4 D and one `silu_mul` of 6 ffn, which is 46.5 KiB for
0.6B, 117.5 KiB for 4B and 156.5 KiB for 8B.

Each is also a torch operator, `torch.ops.qwen_retrieval.<name>`: torch's modes see one call per launch, and
`FakeTensorMode` traces the GPU path where there is no GPU. Importing this module needs Triton, but neither a GPU nor a
compiler; the first launch for a new shape of layer needs both, and some tenths of a second to compile, which Triton
caches on disk.

Launch parameters are fixed by shape, not tuned at run time. They follow one rule: 16 values of each input per thread,
which is two loads of 16 bytes, with as few warps per program as that takes. Small programs keep the reductions inside
a warp or nearly so, and enough of them fit on a multiprocessor to keep tens of kilobytes in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES_PER_THREAD = 16
_MAX_WARPS = 16  # rows longer than 8,192 take more values per thread instead
_HEADS_PER_PROGRAM = 8  # divides the 24 and 40 query and key heads of Qwen3, so that no lane is idle
_SILU_BLOCK = 1024  # divides ffn of 0.6B and 8B; 4B's 9,728 leave 5 % of the lanes idle
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max

_LIBRARY = torch.library.Library("qwen_retrieval", "DEF")


def _operator(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register an operator through a `Library`, which adds a sixth of the host time that `custom_op` adds to a call.

    The implementation is registered for every device: Triton itself says which it can run on.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qwen_retrieval::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.qwen_retrieval, name).default
    return operator


def _require(condition: bool, rule: str, *tensors: Tensor) -> None:
    """Wrong shapes or strides would read and write foreign memory."""
    if not condition:
        layouts = ", ".join(f"{tuple(x.shape)} with strides {x.stride()}" for x in tensors)
        raise ValueError(f"expected {rule}, but got {layouts}")


def _run(
    kernel: triton.JITFunction, programs: int, values: int, *arguments: Tensor | float | None, **constants: float
) -> None:
    """Launch a kernel on the device of its first argument, unless it has nothing to do.

    Args:
        kernel: The kernel.
        programs: How many programs of it.
        values: How many values of each input a program holds.
        arguments: Of the kernel.
        constants: Its compile-time constants.
    """
    if programs == 0:
        return
    warps = max(1, min(_MAX_WARPS, values // (32 * _VALUES_PER_THREAD)))
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, wherever the tensors are
        # Products and sums fuse, as in torch's kernels; said, because the default differs between versions of Triton.
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


@triton.jit
def _add_rms_norm_kernel(
    hidden: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    hidden_stride: int,
    delta_stride: int,
    eps: float,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)  # offsets exceed 2^31 in large batches
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    hidden += row * hidden_stride + columns
    x = tl.load(hidden, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        x += tl.load(delta + row * delta_stride + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(hidden.dtype.element_ty)
        tl.store(hidden, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    y = x * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, y.to(out.dtype.element_ty), mask=inside)


def _fake_add_rms_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:  # noqa: ARG001
    return hidden.new_empty(hidden.shape)


def _launch_add_rms_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    rows, size = hidden.shape
    _require(hidden.stride(1) == 1, "hidden (T, h), contiguous in h", hidden)
    _require(weight.shape == (size,) and weight.stride(0) == 1, "weight (h,) of hidden (T, h)", weight, hidden)
    if delta is not None:
        _require(delta.shape == hidden.shape and delta.stride(1) == 1, "delta of the shape of hidden", delta, hidden)
    out = hidden.new_empty(hidden.shape)
    block = triton.next_power_of_2(size)
    strides = hidden.stride(0), 0 if delta is None else delta.stride(0)
    _run(_add_rms_norm_kernel, rows, block, hidden, delta, weight, out, *strides, eps, SIZE=size, BLOCK=block)
    return out


_add_rms_norm = _operator(
    "add_rms_norm(Tensor(a!) hidden, Tensor? delta, Tensor weight, float eps) -> Tensor",
    _launch_add_rms_norm,
    _fake_add_rms_norm,
)


def add_rms_norm(hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """``hidden += delta``, and the root-mean-square norm of the sum.

    The sum is rounded to the dtype of `hidden`, as torch rounds it, and the norm is that of the rounded sum. The norm
    is computed in float32 and rounded once, like `torch.nn.functional.rms_norm`; transformers' `Qwen3RMSNorm` rounds
    before it multiplies by the weight too, so this errs less.

    Args:
        hidden: (T, h) in bfloat16, float16 or float32, contiguous in h. Overwritten by the sum.
        delta: (T, h), contiguous in h; None adds nothing.
        weight: (h,), any floating dtype.
        eps: Added to the mean square.

    Returns:
        (T, h) in the dtype of `hidden`, contiguous.

    Raises:
        ValueError: If shapes or strides are others.
    """
    out: Tensor = _add_rms_norm(hidden, delta, weight, eps)
    return out


@triton.jit
def _norm_rotate_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    token_stride: int,
    head_stride: int,
    weight_stride: int,
    table_stride: int,
    eps: float,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    groups: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    program = tl.program_id(0)  # groups of one token side by side: its cosines come from the cache
    token = (program // groups).to(tl.int64)
    heads = (program % groups) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (heads < HEADS) & (columns < HALF)

    x += token * token_stride + heads * head_stride + columns
    first = tl.load(x, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_HEADS, BLOCK)
    second = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(first * first + second * second, axis=1)[:, None] / (2 * HALF)
    scale = tl.rsqrt(mean + eps)
    weight += heads * weight_stride + columns
    first *= scale * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
    second *= scale * tl.load(weight + HALF, mask=inside, other=0.0).to(tl.float32)

    # Every head reads the row again, from the cache: one row spread over the heads would go through shared memory.
    angles = tl.load(positions + token).to(tl.int64) * table_stride + columns
    angles = tl.broadcast_to(angles, (BLOCK_HEADS, BLOCK))
    c = tl.load(cos + angles, mask=inside, other=0.0)
    s = tl.load(sin + angles, mask=inside, other=0.0)
    tl.store(x, (first * c - second * s).to(x.dtype.element_ty), mask=inside)
    tl.store(x + HALF, (second * c + first * s).to(x.dtype.element_ty), mask=inside)


def _fake_norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float) -> None:
    """Nothing to allocate."""


def _launch_norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float) -> None:
    tokens, heads, size = x.shape
    _require(x.stride(2) == 1 and size % 2 == 0, "x (T, H, D), D even, contiguous in D", x)
    _require(weight.shape == (heads, size) and weight.stride(1) == 1, "weight (H, D) of x (T, H, D)", weight, x)
    tables = cos.shape[1:] == (size // 2,) and cos.stride(1) == 1 and cos.shape == sin.shape
    _require(tables and cos.stride() == sin.stride(), "cos and sin (P, D / 2) of x (T, H, D)", cos, sin, x)
    _require(positions.shape == (tokens,) and positions.is_contiguous(), "positions (T,) of x (T, H, D)", positions, x)
    block = triton.next_power_of_2(size // 2)
    strides = x.stride(0), x.stride(1), weight.stride(0), cos.stride(0)
    _run(
        _norm_rotate_kernel,
        tokens * triton.cdiv(heads, _HEADS_PER_PROGRAM),
        _HEADS_PER_PROGRAM * 2 * block,
        *(x, weight, cos, sin, positions, *strides, eps),
        HEADS=heads,
        HALF=size // 2,
        BLOCK_HEADS=_HEADS_PER_PROGRAM,
        BLOCK=block,
    )


_norm_rotate = _operator(
    "norm_rotate(Tensor(a!) x, Tensor weight, Tensor cos, Tensor sin, Tensor positions, float eps) -> ()",
    _launch_norm_rotate,
    _fake_norm_rotate,
)


def norm_rotate(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float) -> None:
    """RMS norm of each head and its rotation by the token's position, in place.

    The half-split layout of `kernels.rotate`; float32 inside, rounded once.

    Args:
        x: (T, H, D) in bfloat16, float16 or float32, D even, contiguous in D: the query and key heads of a fused
            projection, for example. Overwritten.
        weight: (H, D), each head's norm weight, any floating dtype, contiguous in D.
        cos: (P, D / 2) float32, cosines by position, contiguous in D.
        sin: Sines, with the shape and strides of `cos`.
        positions: (T,) int32 or int64 in [0, P), not checked: a look would make the host wait for the device.
        eps: Added to the mean square.

    Raises:
        ValueError: If shapes or strides are others.
    """
    _norm_rotate(x, weight, cos, sin, positions, eps)


@triton.jit
def _silu_mul_kernel(gate_up: tl.tensor, out: tl.tensor, stride: int, SIZE: tl.constexpr, BLOCK: tl.constexpr) -> None:
    blocks: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    columns = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    gate_up += row * stride + columns
    gate = tl.load(gate_up, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + SIZE, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * SIZE + columns, y.to(out.dtype.element_ty), mask=inside)


def _fake_silu_mul(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _launch_silu_mul(gate_up: Tensor) -> Tensor:
    _require(gate_up.stride(1) == 1 and gate_up.shape[1] % 2 == 0, "gate_up (T, 2 ffn), contiguous in ffn", gate_up)
    out = _fake_silu_mul(gate_up)
    rows, size = out.shape
    block = min(_SILU_BLOCK, triton.next_power_of_2(size))
    programs = rows * triton.cdiv(size, block)
    _run(_silu_mul_kernel, programs, block, gate_up, out, gate_up.stride(0), SIZE=size, BLOCK=block)
    return out


_silu_mul = _operator("silu_mul(Tensor gate_up) -> Tensor", _launch_silu_mul, _fake_silu_mul)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SiLU(gate) * up of a fused projection, in float32, rounded once (transformers also rounds the SiLU).

    Args:
        gate_up: (T, 2 ffn) in bfloat16, float16 or float32, contiguous in ffn.

    Returns:
        (T, ffn) in the dtype of `gate_up`, contiguous.

    Raises:
        ValueError: If shape or strides are others.
    """
    out: Tensor = _silu_mul(gate_up)
    return out


@triton.jit
def _quantize_rows_kernel(
    x: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    stride: int,
    LARGEST: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), axis=0)
    # Below 1e-30 the reciprocal of the scale would come near the end of float32; such a row is a row of zeros.
    scale = tl.where(largest < 1e-30, 1.0, largest / LARGEST)
    tl.store(out + row * SIZE + columns, (values * (1.0 / scale)).to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def _fake_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), x.new_empty(x.shape[0], 1, dtype=torch.float32)


def _launch_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    _require(x.stride(1) == 1, "x (T, k), contiguous in k", x)
    rows, size = x.shape
    out, scales = _fake_quantize_rows(x)
    block = triton.next_power_of_2(size)
    _run(_quantize_rows_kernel, rows, block, x, out, scales, x.stride(0), LARGEST=_FP8_MAX, SIZE=size, BLOCK=block)
    return out, scales


_quantize_rows = _operator("quantize_rows(Tensor x) -> (Tensor, Tensor)", _launch_quantize_rows, _fake_quantize_rows)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in float8 with a scale each, as `torch._scaled_mm` takes them; needs compute capability 8.9 or newer.

    Args:
        x: (T, k) in bfloat16, float16 or float32, contiguous in k.

    Returns:
        (T, k) float8_e4m3fn and (T, 1) float32, so that their product is `x` within 1/16 of each value (or 2^-10 of
        the scale, for values below 2^-6 of it). The scale is the row's largest magnitude / 448, or 1 for a row of
        zeros (magnitudes below 1e-30 count as zero). A NaN or an infinity becomes a NaN, and so does what is computed
        from its row.

    Raises:
        ValueError: If shape or strides are others.
    """
    values, scales = _quantize_rows(x)
    return values, scales


@triton.jit(do_not_specialize=["first_lse_stride", "second_lse_stride"])  # they are T: other batches, same kernel
def _merge_attention_kernel(
    first: tl.tensor,
    first_lse: tl.tensor,
    second: tl.tensor,
    second_lse: tl.tensor,
    out: tl.tensor,
    first_token_stride: int,
    first_head_stride: int,
    second_token_stride: int,
    second_head_stride: int,
    first_lse_stride: int,
    second_lse_stride: int,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    groups: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    program = tl.program_id(0)
    token = (program // groups).to(tl.int64)
    heads = ((program % groups) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)
    a_lse = tl.load(first_lse + heads * first_lse_stride + token, mask=heads < HEADS, other=0.0)[:, None]
    b_lse = tl.load(second_lse + heads * second_lse_stride + token, mask=heads < HEADS, other=0.0)[:, None]
    heads = heads[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (heads < HEADS) & (columns < SIZE)
    no_keys = float("-inf")
    # What stands in the output of a row without keys is not read, so it need not be written.
    a = tl.load(
        first + token * first_token_stride + heads * first_head_stride + columns,
        mask=inside & (a_lse != no_keys),
        other=0.0,
    ).to(tl.float32)  # (BLOCK_HEADS, BLOCK)
    b = tl.load(
        second + token * second_token_stride + heads * second_head_stride + columns,
        mask=inside & (b_lse != no_keys),
        other=0.0,
    ).to(tl.float32)
    # The flash kernel of torch writes +inf where there are no keys (or where a score is NaN: then so is its output).
    a_lse = tl.where(a_lse == float("inf"), no_keys, a_lse)
    b_lse = tl.where(b_lse == float("inf"), no_keys, b_lse)
    top = tl.maximum(a_lse, b_lse)
    top = tl.where(top == no_keys, 0.0, top)
    a_weight, b_weight = tl.exp(a_lse - top), tl.exp(b_lse - top)
    total = a_weight + b_weight
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    y = a * (a_weight * share) + b * (b_weight * share)
    tl.store(out + (token * HEADS + heads) * SIZE + columns, y.to(out.dtype.element_ty), mask=inside)


def _fake_merge_attention(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:  # noqa: ARG001
    return first.new_empty(first.shape)


def _launch_merge_attention(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    tokens, heads, size = first.shape
    dense = first.stride(2) == 1 and second.stride(2) == 1
    _require(dense and first.shape == second.shape, "two (T, H, D), contiguous in D", first, second)
    for lse in (first_lse, second_lse):
        fits = lse.shape == (heads, tokens) and (lse.stride(1) == 1 or tokens == 1)
        _require(fits, "log-sum-exps (H, T), contiguous in T, of (T, H, D)", lse, first)
    out = first.new_empty(first.shape)
    block = triton.next_power_of_2(size)
    strides = first.stride(0), first.stride(1), second.stride(0), second.stride(1)
    _run(
        _merge_attention_kernel,
        tokens * triton.cdiv(heads, _HEADS_PER_PROGRAM),
        _HEADS_PER_PROGRAM * block,
        *(first, first_lse, second, second_lse, out, *strides, first_lse.stride(0), second_lse.stride(0)),
        HEADS=heads,
        SIZE=size,
        BLOCK_HEADS=_HEADS_PER_PROGRAM,
        BLOCK=block,
    )
    return out


_merge_attention = _operator(
    "merge_attention(Tensor first, Tensor first_lse, Tensor second, Tensor second_lse) -> Tensor",
    _launch_merge_attention,
    _fake_merge_attention,
)


def merge_attention(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """Attention over two disjoint sets of keys, from the attention over each.

    With ``l = logaddexp(l1, l2)`` it is ``o1 exp(l1 - l) + o2 exp(l2 - l)``, in float32, rounded once (as in
    FlashAttention, arXiv 2205.14135, section 3.1, for two blocks of keys).

    Args:
        first: (T, H, D) in bfloat16, float16 or float32, contiguous in D: the attention over the first keys.
        first_lse: (H, T) float32, contiguous in T: natural log of the sum of exponentiated scores. Minus infinity says
            that there were no keys, and then the output is not looked at; so does infinity, but a NaN output stays.
        second: Like `first`, over the second keys.
        second_lse: Like `first_lse`.

    Returns:
        (T, H, D) in the dtype of `first`, contiguous; zeros where neither had keys.

    Raises:
        ValueError: If shapes or strides are others.
    """
    out: Tensor = _merge_attention(first, first_lse, second, second_lse)
    return out


def self_check(device: torch.device) -> None:
    """Run every kernel once on small bfloat16 tensors of odd sizes and strides, against plain torch in float32.

    Meant to be called once per process, before the kernels are relied on: it fails where there is no compiler, where
    Triton does not know the GPU, or where it miscompiles. `quantize_rows` is left out where the GPU has no float8.

    Args:
        device: Where to run them.

    Raises:
        RuntimeError: If a result differs by more than 2^-7 of its value + 1e-5 (twice the rounding of bfloat16; 2^-4
            for float8). Whatever Triton raises passes through.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    _check_add_rms_norm(normal(5, 40)[:, 3:], normal(5, 37), normal(37))
    positions = torch.tensor([6, 0, 2], device=device)
    _check_norm_rotate(normal(3, 13, 12), normal(9, 12), normal(2, 7, 6).float(), positions)
    gate_up = normal(3, 45)[:, 3:]  # (T, 2 * 21)
    gate, up = gate_up.float().chunk(2, dim=-1)
    _compare("silu_mul", silu_mul(gate_up), torch.nn.functional.silu(gate) * up)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        x = normal(3, 45)[:, 3:]
        values, scales = quantize_rows(x)
        _compare("quantize_rows", values.float() * scales, x.float(), relative=2**-4)
    _check_merge_attention(normal(3, 9, 20)[..., :12], normal(3, 9, 12), normal(2, 9, 3).float())


def _check_add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor) -> None:
    total = hidden + delta
    expected = torch.nn.functional.rms_norm(total.float(), weight.shape, weight.float(), 1e-6)
    _compare("add_rms_norm", add_rms_norm(hidden, delta, weight, 1e-6), expected)
    _compare("add_rms_norm's sum", hidden, total.float(), relative=0.0, absolute=0.0)


def _check_norm_rotate(x: Tensor, weight: Tensor, tables: Tensor, positions: Tensor) -> None:
    heads = len(weight)  # the rest of x must stay as it is
    expected = x.float()
    normed = torch.nn.functional.rms_norm(expected[:, :heads], x.shape[2:], None, 1e-6) * weight.float()
    first, second = normed.chunk(2, dim=-1)
    cos, sin = tables[:, positions].unsqueeze(2)  # (T, 1, D / 2) each
    expected[:, :heads] = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    norm_rotate(x[:, :heads], weight, tables[0], tables[1], positions, 1e-6)
    _compare("norm_rotate", x, expected)


def _check_merge_attention(first: Tensor, second: Tensor, lse: Tensor) -> None:
    lse[0, 0, 0] = lse[1, 1, 1] = float("-inf")
    shares = lse.softmax(dim=0).transpose(1, 2)[..., None]  # (2, T, H, 1)
    merged = merge_attention(first, lse[0], second, lse[1])
    _compare("merge_attention", merged, shares[0] * first.float() + shares[1] * second.float())


def _compare(name: str, found: Tensor, expected: Tensor, relative: float = 2**-7, absolute: float = 1e-5) -> None:
    error = (found.float() - expected).abs()
    if not (error <= relative * expected.abs() + absolute).all():  # a NaN is an error too
        raise RuntimeError(
            f"the Triton kernel {name} is wrong on {found.device}: expected an error of at most {relative:.2g} of each "
            f"value + {absolute:.2g}, but got up to {error.max().item():.3g} where values reach "
            f"{expected.abs().max().item():.3g}; use the plain torch operations instead"
        )
