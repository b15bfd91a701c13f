"""The Triton kernels against plain torch in float64, and against transformers' roundings.

They run on CUDA. With TRITON_INTERPRET=1 they run on the CPU in Triton's interpreter instead, which is how
`tests/engine/test_triton_kernels.py` runs this file where there is no GPU. Without either they are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from qwen_retrieval.engine import decoder
from qwen_retrieval.engine.engine import load_embedding_engine
from qwen_retrieval.engine.kernels import EagerKernels, FusedKernels, Rope, rope_table, rotate
from qwen_retrieval.engine.weights import DecoderConfig
from qwen_retrieval.loading import read_config
from tests.checkpoints import TINY, write_checkpoint

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from qwen_retrieval.engine import triton_kernels  # noqa: E402
from qwen_retrieval.engine.triton_kernels import (  # noqa: E402
    add_rms_norm,
    merge_attention,
    norm_rotate,
    quantize_rows,
    self_check,
    silu_mul,
)

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
FLOAT8 = INTERPRETED or torch.cuda.get_device_capability() >= (8, 9)
EPS = 1e-6


def with_dtypes(name: str, odd: Any, *real: Any) -> pytest.MarkDecorator:
    """The sizes of the published models in bfloat16, and an odd one in each dtype."""
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    return pytest.mark.parametrize((name, "dtype"), [(odd, d) for d in dtypes] + [(r, torch.bfloat16) for r in real])


@pytest.fixture(autouse=True)
def _interpreter_like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's interpreter cuts the digits that bfloat16 and float8 lack, and warns of infinities; a GPU does neither.

    A GPU rounds to the nearest, to the even one of two, and saturates in float8.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    narrow = {"bf16": (torch.bfloat16, torch.uint16), "fp8e4nv": (torch.float8_e4m3fn, torch.uint8)}

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if str(source) != "fp32" or str(target) not in narrow:
            return convert(data, source, target, mode)
        dtype, bits = narrow[str(target)]
        values = torch.from_numpy(np.array(data, dtype=np.float32))
        if dtype == torch.float8_e4m3fn:
            values = values.clamp(-448, 448)
        return values.to(dtype).view(bits).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    with np.errstate(all="ignore"):
        yield


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def error(found: Tensor, exact: Tensor) -> float:
    """The largest, relative to the largest exact value."""
    assert found.shape == exact.shape
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def rounded_once(found: Tensor, exact: Tensor) -> bool:
    """Whether each value is within half a unit in the last place, and float32 noise."""
    unit = torch.finfo(found.dtype).eps / 2
    return bool(((found - exact).abs() <= unit * exact.abs() + 2e-6 * exact.abs().max()).all())


def exact_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.double()


def transformers_norm(x: Tensor, weight: Tensor) -> Tensor:
    """`Qwen3RMSNorm.forward`: rounded before the weight and after it."""
    scaled = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    return weight.to(x.dtype) * scaled.to(x.dtype)


def allowed(theirs: float, dtype: torch.dtype) -> float:
    """Twice the error of the same operation as transformers rounds it; in float32, where both are noise, 1e-6."""
    return max(2 * theirs, 1e-6) if dtype == torch.float32 else 2 * theirs


# add_rms_norm


@with_dtypes("size", 37, 1024, 2560, 4096)
def test_the_norm_of_a_sum_errs_no_more_than_twice_transformers(size: int, dtype: torch.dtype) -> None:
    hidden, delta = normal(3, size, dtype=dtype), normal(3, size, dtype=dtype, seed=1)
    weight = 1 + normal(size, dtype=dtype, seed=2)
    total = hidden + delta
    found = add_rms_norm(hidden, delta, weight, EPS)
    assert torch.equal(hidden, total)  # to the bit
    exact = exact_norm(total, weight)
    assert rounded_once(found, exact)
    assert error(found, exact) <= allowed(error(transformers_norm(total, weight), exact), dtype)
    assert found.dtype == dtype


def test_without_a_delta_the_norm_leaves_its_input_alone() -> None:
    hidden, weight = normal(2, 1024, dtype=torch.bfloat16), normal(1024)
    before = hidden.clone()
    found = add_rms_norm(hidden, None, weight, EPS)
    assert torch.equal(hidden, before)
    assert error(found, exact_norm(before, weight)) < 2**-8


def test_a_norm_writes_only_to_its_own_columns() -> None:
    wide, delta = normal(4, 100, dtype=torch.bfloat16), normal(4, 50, dtype=torch.bfloat16)
    expected = wide.clone()
    expected[1:, 7:44] += delta[1:, 3:40]
    found = add_rms_norm(wide[1:, 7:44], delta[1:, 3:40], normal(37), EPS)
    assert torch.equal(wide, expected)
    assert error(found, exact_norm(expected[1:, 7:44], normal(37))) < 2**-8


def test_rows_that_overflow_do_not_touch_other_rows() -> None:
    hidden = normal(4, 64, dtype=torch.float16)
    hidden[0, 3], hidden[1, 5] = 65504, float("nan")
    delta = torch.zeros_like(hidden)
    delta[0, 3] = 65504
    found = add_rms_norm(hidden, delta, torch.ones(64, device=DEVICE), EPS)
    assert hidden[0, 3].isinf()
    assert found[:2].isnan().any(dim=1).all()
    assert error(found[2:], exact_norm(hidden[2:], torch.ones(64, device=DEVICE))) < 2**-10


def test_a_row_of_zeros_and_a_row_of_huge_values_have_a_norm() -> None:
    hidden = torch.stack([torch.zeros(64), torch.full((64,), 1e18)]).to(DEVICE)
    found = add_rms_norm(hidden, None, torch.ones(64, device=DEVICE), EPS)
    assert torch.equal(found[0], hidden[0])
    assert (found[1] - 1).abs().max() < 1e-5


# norm_rotate


def transformers_rotated(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`Qwen3Attention`: a rounded norm, and a rotation with every step rounded."""
    return rotate(transformers_norm(x, weight), (cos.to(x.dtype), sin.to(x.dtype)))


@with_dtypes("heads", (3, 2), (16, 8), (32, 8))
def test_rotated_heads_err_no_more_than_twice_transformers(heads: tuple[int, int], dtype: torch.dtype) -> None:
    query, key = heads
    size = 128 if query > 3 else 12
    qkv = normal(3, (query + 2 * key) * size, dtype=dtype)
    weight = torch.cat([(1 + normal(1, size, seed=i)).expand(n, size) for i, n in enumerate(heads)]).to(dtype)
    rope = Rope(rope_table(301, size, 1e6, DEVICE), torch.tensor([300, 0, 2], device=DEVICE))
    at = rope.rows(torch.float32)  # (T, 1, D / 2)
    x = qkv.view(3, -1, size)
    before = x.clone()
    norm_rotate(x[:, : query + key], weight, rope.cos, rope.sin, rope.positions, EPS)
    assert torch.equal(x[:, query + key :], before[:, query + key :])  # the values
    rows = before[:, : query + key]
    exact = rotate(exact_norm(rows, weight), (at[0].double(), at[1].double()))
    assert rounded_once(x[:, : query + key], exact)
    theirs = error(transformers_rotated(rows, weight, *at), exact)
    assert error(x[:, : query + key], exact) <= allowed(theirs, dtype)


def test_positions_may_have_32_bits() -> None:
    positions = torch.tensor([4, 1], device=DEVICE)
    cos, sin = normal(2, 5, 8).unbind(0)
    found = [normal(2, 3, 16) for _ in range(2)]
    for x, index in zip(found, (positions, positions.int()), strict=True):
        norm_rotate(x, torch.ones(3, 16, device=DEVICE), cos, sin, index, EPS)
    assert torch.equal(*found)
    assert not torch.equal(found[0], normal(2, 3, 16))


# silu_mul


@with_dtypes("size", 21, 3072, 9728, 12288)
def test_a_gated_product_errs_no_more_than_twice_transformers(size: int, dtype: torch.dtype) -> None:
    wide = 3 * normal(2, 2 * size + 3, dtype=dtype)
    gate_up = wide[:, 3:]
    gate, up = gate_up.chunk(2, dim=-1)
    exact = silu(gate.double()) * up.double()
    found = silu_mul(gate_up)
    assert rounded_once(found, exact)
    assert error(found, exact) <= allowed(error(silu(gate) * up, exact), dtype)
    assert found.dtype == dtype
    assert torch.equal(wide, 3 * normal(2, 2 * size + 3, dtype=dtype))


def test_a_gated_product_of_extreme_values_is_that_of_torch() -> None:
    gate = torch.tensor([-1e4, -100, -88.5, -0.0, 0.0, 100, 3e38, float("inf"), float("-inf"), float("nan")])
    gate_up = torch.stack([gate, torch.ones(10)]).reshape(1, -1).to(DEVICE)
    expected = silu(gate).to(DEVICE)[None]
    torch.testing.assert_close(silu_mul(gate_up), expected, rtol=1e-6, atol=1e-36, equal_nan=True)


# quantize_rows


@pytest.mark.skipif(not FLOAT8, reason="float8 needs compute capability 8.9")
@pytest.mark.parametrize("size", [1024, 2560, 12288, 37])
def test_float8_rows_times_their_scale_are_within_a_sixteenth(size: int) -> None:
    x = normal(4, size + 3, dtype=torch.bfloat16)[:, 3:]
    x[1] *= 1e-20
    x[2] *= 1e30
    x[3] *= torch.logspace(-6, 0, size, device=DEVICE)
    values, scales = quantize_rows(x)
    assert values.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(scales, x.float().abs().amax(1, keepdim=True) / 448, rtol=1e-6, atol=0)
    found = values.double() * scales.double()
    assert ((found - x.double()).abs() <= torch.maximum(x.double().abs() / 16, scales.double() / 1024) * 1.00001).all()
    assert (values.float().abs().amax(1) == 448).all()


@pytest.mark.skipif(not FLOAT8, reason="float8 needs compute capability 8.9")
def test_rows_without_a_finite_scale_stay_zero_or_not_finite() -> None:
    x = normal(4, 33)
    x[0], x[1], x[2, 5], x[3, 6] = 0, float("nan"), float("nan"), float("inf")
    values, scales = quantize_rows(x)
    assert torch.equal(values[0].float(), torch.zeros(33, device=DEVICE))
    assert scales[0] == 1
    assert values[1].float().isnan().all()
    assert values[2, 5].isnan()
    assert (values.float() * scales)[3, 6].isnan()


# merge_attention


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """(T, H, D) and the log-sum-exps (H, T), in float64."""
    scores = torch.einsum("thd,shd->hts", query.double(), key.double())
    return torch.einsum("hts,shd->thd", scores.softmax(-1), value.double()), scores.logsumexp(-1)


@with_dtypes("heads", 3, 16, 32)
def test_two_parts_of_the_keys_merge_to_all_keys(heads: int, dtype: torch.dtype) -> None:
    size = 128 if heads > 3 else 12
    query, key, value = normal(3, heads, size), normal(9, heads, size, seed=1), normal(9, heads, size, seed=2)
    parts = [attend(query, key[part], value[part]) for part in (slice(4), slice(4, 9))]
    outputs = [torch.stack([out, out], dim=2).to(dtype)[:, :, 1] for out, _ in parts]  # strided
    merged = merge_attention(outputs[0], parts[0][1].float(), outputs[1], parts[1][1].float())
    assert merged.dtype == dtype
    # Three roundings, of the parts and of the result, of half a unit each.
    assert error(merged, attend(query, key, value)[0]) <= 2 * torch.finfo(dtype).eps


def test_a_side_without_keys_has_no_say() -> None:
    a, b = normal(2, 3, 8), normal(2, 3, 8, seed=1)
    lse, none = normal(3, 2), torch.full((3, 2), float("-inf"), device=DEVICE)
    unwritten = torch.full_like(a, float("nan"))
    assert torch.equal(merge_attention(a, lse, unwritten, none), a)
    assert torch.equal(merge_attention(unwritten, none, b, lse), b)
    assert torch.equal(merge_attention(unwritten, none, unwritten, none), torch.zeros_like(a))
    zeros = torch.zeros_like(a)  # with a log-sum-exp of +inf: how torch's flash kernel writes that there are no keys
    assert torch.equal(merge_attention(a, lse, zeros, -none), a)
    assert torch.equal(merge_attention(zeros, -none, b, lse), b)
    assert merge_attention(a, lse, unwritten, -none).isnan().all()  # that is an overflow
    assert merge_attention(unwritten, -none, b, lse).isnan().all()


def test_scores_far_apart_do_not_overflow() -> None:
    a, b = normal(2, 3, 8), normal(2, 3, 8, seed=1)
    low, high = torch.full((3, 2), -1e4, device=DEVICE), torch.full((3, 2), 1e4, device=DEVICE)
    assert torch.equal(merge_attention(a, low, b, high), b)
    assert torch.equal(merge_attention(a, high, b, low), a)
    torch.testing.assert_close(merge_attention(a, high, b, high), (a + b) / 2)


# all


def test_no_tokens_make_no_rows() -> None:
    assert add_rms_norm(normal(0, 64), normal(0, 64), normal(64), EPS).shape == (0, 64)
    norm_rotate(normal(0, 3, 8), normal(3, 8), normal(5, 4), normal(5, 4), torch.zeros(0, dtype=torch.int64), EPS)
    assert silu_mul(normal(0, 64)).shape == (0, 32)
    assert [each.shape for each in quantize_rows(normal(0, 64))] == [(0, 64), (0, 1)]
    assert merge_attention(normal(0, 3, 8), normal(3, 0), normal(0, 3, 8), normal(3, 0)).shape == (0, 3, 8)


def test_a_lone_token_of_a_larger_tensor_is_read_where_it_stands() -> None:
    gate_up, lse = normal(3, 2, 64), normal(3, 5)
    assert error(silu_mul(gate_up[1, 1:]), silu(gate_up[1, 1:, :32].double()) * gate_up[1, 1:, 32:].double()) < 1e-6
    a, b = normal(1, 3, 8), normal(1, 3, 8, seed=1)
    share = (lse[:, 2:3].double() - torch.logaddexp(lse[:, 2:3], lse[:, 4:]).double()).exp().T[..., None]
    assert error(merge_attention(a, lse[:, 2:3], b, lse[:, 4:]), share * a.double() + (1 - share) * b.double()) < 1e-6


def test_rows_more_than_two_billion_values_apart_are_found() -> None:
    rows, apart = 4, 1 << 30  # row 3 starts at 3 * 2^30; only the rows' own pages are touched
    if not INTERPRETED and torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GB of free GPU memory")
    memory = torch.empty((rows - 1) * apart + 64, dtype=torch.bfloat16, device=DEVICE)
    x = memory.as_strided((rows, 64), (apart, 1))
    x[:] = values = normal(rows, 64, dtype=torch.bfloat16)
    assert torch.equal(silu_mul(x), silu_mul(values))
    if FLOAT8:
        assert torch.equal(quantize_rows(x)[0].float(), quantize_rows(values)[0].float())
    a, lse = x.view(rows, 4, 16), normal(4, rows)
    assert torch.equal(merge_attention(a, lse, a, lse), a)
    rotated = values.clone().view(rows, 4, 16)
    tables = normal(5, 8), normal(5, 8), torch.arange(rows, device=DEVICE)
    for each in (rotated, a):
        norm_rotate(each, normal(4, 16), *tables, EPS)
    assert torch.equal(a, rotated)
    flat = rotated.view(rows, 64)
    assert torch.equal(add_rms_norm(x, x, normal(64), EPS), add_rms_norm(flat, flat.clone(), normal(64), EPS))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"delta of the shape of hidden, but got \(2, 8\) .* \(3, 8\)"):
        add_rms_norm(normal(3, 8), normal(2, 8), normal(8), EPS)
    with pytest.raises(ValueError, match="weight"):
        add_rms_norm(normal(3, 8), None, normal(4), EPS)
    with pytest.raises(ValueError, match="contiguous in ffn"):
        silu_mul(normal(8, 3).T)
    with pytest.raises(ValueError, match="contiguous in k"):
        quantize_rows(normal(8, 3).T)
    with pytest.raises(ValueError, match="cos and sin"):
        norm_rotate(normal(2, 3, 8), normal(3, 8), normal(5, 4), normal(6, 4), torch.zeros(2, dtype=torch.int64), EPS)
    with pytest.raises(ValueError, match=r"positions \(T,\)"):
        norm_rotate(normal(2, 3, 8), normal(3, 8), normal(5, 4), normal(5, 4), torch.zeros(1, dtype=torch.int64), EPS)
    with pytest.raises(ValueError, match=r"log-sum-exps \(H, T\)"):
        merge_attention(normal(2, 3, 8), normal(2, 3), normal(2, 3, 8), normal(3, 2))


def test_a_forward_pass_with_them_is_that_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "no-tokenizer"
    empty.mkdir()
    folder = write_checkpoint(tmp_path / "model", empty, TINY, prefix=True, vocab_size=100)
    config = DecoderConfig.from_json(read_config(folder))
    batch = [[1, 2, 3], [1, 2, 4, 5]]
    vectors = []
    for kernels in (EagerKernels(), FusedKernels()):
        monkeypatch.setattr(decoder, "choose_kernels", lambda _, kernels=kernels: kernels)
        vectors.append(load_embedding_engine(folder, config, str(DEVICE), "float32").embed(batch))
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 1e-5 * np.abs(vectors[0]).max()


def test_the_self_check_passes() -> None:
    self_check(DEVICE)


@pytest.mark.parametrize("factor", [1.02, float("nan")])
def test_the_self_check_tells_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(triton_kernels, "silu_mul", lambda gate_up: silu_mul(gate_up) * factor)
    with pytest.raises(RuntimeError, match="silu_mul is wrong on"):
        self_check(DEVICE)
