"""Products in 8 bits against integer arithmetic, int8 decoders against float32, and where int8 is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.engine import int8
from qwen_retrieval.engine.engine import TorchEmbeddingEngine, compute_dtype, load_embedding_engine, resolve_dtype
from qwen_retrieval.engine.int8 import Int8Matrix, quantize_layer, quantize_rows, rotate
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, DecoderWeights, LayerWeights, load_decoder
from qwen_retrieval.errors import NonFiniteError
from qwen_retrieval.loading import read_config
from tests.checkpoints import TINY, write_checkpoint

CPU = torch.device("cpu")
NAMES = ("qkv", "output", "gate_up", "down")
INPUTS = [[7], [1, 2, 3], [*range(40), 50, 51], [*range(40), 60], [5] * 200]
SHAPES = [(64, 64), (7, 5), (33, 17), (96, 320)]
needs_int8 = pytest.mark.skipif(int8._obstacle() is not None, reason="needs a CPU with AVX-512 VNNI")


def by_integers(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`Int8Matrix.multiply`, literally: rotate, round, multiply whole numbers, scale."""
    block = int8._block(x.shape[1])
    codes, scale = quantize_rows(rotate(x, block))
    weight_codes, weight_scale = quantize_rows(rotate(weight, block))
    return (codes.long() @ weight_codes.long().T).double() * scale.double() * weight_scale.double().T


@needs_int8
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 3, 65])
def test_a_product_is_that_of_whole_numbers(rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(rows)
    weight, x = torch.randn(shape), torch.randn(rows, shape[1])
    matrix = Int8Matrix.of(weight)
    expected = by_integers(x, weight).float()
    found = matrix.multiply(x)
    assert found.shape == (rows, shape[0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@needs_int8
def test_chunks_of_rows_give_what_all_rows_give(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrix, x = Int8Matrix.of(torch.randn(24, 64)), torch.randn(23, 64)
    whole = matrix.multiply(x)
    monkeypatch.setattr(int8, "CHUNK", 5)
    assert torch.equal(matrix.multiply(x), whole)


@needs_int8
def test_a_bfloat16_product_is_the_float32_one_rounded() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 320), torch.randn(40, 320).bfloat16()
    found = Int8Matrix.of(weight).multiply(x)
    assert found.dtype == torch.bfloat16
    # Rounded twice: before and after it is scaled.
    torch.testing.assert_close(found.double(), by_integers(x, weight), rtol=2**-7, atol=0)


@needs_int8
@pytest.mark.parametrize("blocks", [(64,), (1,)])  # without a rotation all codes are the largest
def test_the_largest_codes_do_not_overflow(blocks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "BLOCKS", blocks)
    weight, x = torch.full((16, 3072), -3.0), torch.full((2, 3072), 5.0)
    x[1] = -5.0
    found = Int8Matrix.of(weight).multiply(x)
    torch.testing.assert_close(found[:, 0], torch.tensor([-46080.0, 46080.0]), rtol=1e-5, atol=0)


@needs_int8
def test_rows_of_zeros_give_zeros_and_do_not_touch_the_others() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(33, 64), torch.randn(5, 64)
    weight[4], x[2] = 0, 0
    found = Int8Matrix.of(weight).multiply(x)
    assert not found[2].any()
    assert not found[:, 4].any()
    assert found.isfinite().all()


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_stays_alone(bad: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64).to(dtype)
    matrix = Int8Matrix.of(torch.randn(33, 64))
    clean = matrix.multiply(x)
    x[3, 7] = bad
    found = matrix.multiply(x)
    assert not found[3].isfinite().any()
    others = [0, 1, 2, 4]
    assert torch.equal(found[others], clean[others])


@needs_int8
def test_the_largest_and_smallest_numbers_stay_finite() -> None:
    x = torch.tensor([[1e30], [1e-30], [1e-38], [1e-45]]).expand(4, 64).contiguous()
    found = Int8Matrix.of(torch.full((8, 64), 1 / 64)).multiply(x)
    torch.testing.assert_close(found[:2], x[:2, :8], rtol=1e-5, atol=0)
    assert found.isfinite().all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_a_code_is_at_most_half_a_step_off(numbers: list[float]) -> None:
    x = torch.tensor([numbers])
    codes, scale = quantize_rows(x)
    assert codes.min() >= -127
    assert ((codes * scale.double() - x.double()).abs() <= 0.5001 * scale.double()).all()


@pytest.mark.parametrize("block", [1, 4, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_is_orthogonal_and_exact_in_bfloat16_too(block: int, dtype: torch.dtype) -> None:
    matrix = rotate(torch.eye(128, dtype=dtype), block).double()
    assert torch.equal(matrix @ matrix.T, torch.eye(128, dtype=torch.double))


@pytest.mark.parametrize(("channels", "block"), [(1024, 64), (3072, 64), (2560, 64), (9728, 64), (48, 16), (6, 1)])
def test_as_many_channels_are_rotated_together_as_divide_a_row(channels: int, block: int) -> None:
    assert int8._block(channels) == block


@needs_int8
def test_outlier_channels_cost_little_because_they_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    # Measured: an error of 3.3 % with rotation and of 16 % without; 1.1 % where there are no outliers.
    torch.manual_seed(0)
    weight, x = torch.randn(256, 1024), torch.randn(64, 1024)
    x[:, [7, 500]] *= 60
    weight[:, [7, 500]] /= 60  # they count no more than the others
    exact = x.double() @ weight.double().T

    def error() -> float:
        return float((Int8Matrix.of(weight).multiply(x) - exact).norm() / exact.norm())

    spread = error()
    monkeypatch.setattr(int8, "BLOCKS", (1,))
    assert spread <= 0.05
    assert error() >= 3 * spread


@needs_int8
def test_a_part_of_a_matrix_gives_that_part_of_the_product_and_is_laid_out_once() -> None:
    torch.manual_seed(0)
    matrix, x = Int8Matrix.of(torch.randn(40, 64)), torch.randn(9, 64)
    assert torch.equal(matrix[16:].multiply(x), matrix.multiply(x)[:, 16:])
    assert torch.equal(matrix[:16].multiply(x), matrix.multiply(x)[:, :16])
    assert matrix[:16] is matrix[0:16]


# Decoders.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    empty = tmp_path_factory.mktemp("no-tokenizer")
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), empty, TINY, prefix=False, vocab_size=300, gain=1.0)


def load(folder: Path, dtype: str) -> TorchEmbeddingEngine:
    return load_embedding_engine(folder, DecoderConfig.from_json(read_config(folder)), "cpu", dtype)


@needs_int8
def test_an_int8_decoder_is_near_to_the_float32_one(folder: Path) -> None:
    exact, found = (torch.from_numpy(load(folder, dtype).embed(INPUTS)) for dtype in ("float32", "int8"))
    cosines = torch.nn.functional.cosine_similarity(exact, found)  # measured: 0.9997 and more
    assert 0.999 <= cosines.min() < 1 - 1e-7


@needs_int8
def test_an_int8_decoder_computes_all_layers_in_the_fastest_dtype(folder: Path) -> None:
    engine = load(folder, "int8")
    assert engine.dtype == compute_dtype(torch.int8, CPU) == resolve_dtype("auto", CPU)
    for layer in engine.decoder.weights.layers:
        assert all(isinstance(getattr(layer, name), Int8Matrix) for name in NAMES)


@needs_int8
def test_int8_without_native_bfloat16_computes_the_rest_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_retrieval.engine.engine._computes_bfloat16", lambda _: False)
    engine = load(folder, "int8")
    assert engine.dtype == torch.float32
    exact = torch.from_numpy(load(folder, "float32").embed(INPUTS))
    assert torch.nn.functional.cosine_similarity(exact, torch.from_numpy(engine.embed(INPUTS))).min() >= 0.999


@needs_int8
def test_a_row_that_is_nan_is_named_with_int8_too(folder: Path) -> None:
    engine = load(folder, "int8")
    engine.decoder.weights.embedding[9] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        engine.embed([[1, 2], [3, 9, 4], [5]])
    assert caught.value.rows == (1,)


@needs_int8
def test_one_layer_at_a_time_is_in_memory_as_it_was_stored(folder: Path) -> None:
    stored: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def prepare(layer: LayerWeights) -> None:
        stored.extend(weakref.ref(getattr(layer, name)) for name in NAMES)
        alive.append(sum(reference() is not None for reference in stored))
        quantize_layer(layer)

    weights = read(folder, prepare)
    assert alive == [4] * len(weights.layers)
    assert not any(reference() is not None for reference in stored)


def read(folder: Path, prepare: Callable[[LayerWeights], None]) -> DecoderWeights:
    with Checkpoint(folder) as checkpoint:
        return load_decoder(checkpoint, DecoderConfig.from_json(read_config(folder)), CPU, torch.float32, prepare)


# Where it is refused.


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_other_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=f'"int8" is for CPUs, but device is "{device}"; pass dtype="bfloat16"'):
        resolve_dtype("int8", torch.device(device))


def test_a_build_of_torch_without_the_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_prepack'\nmore")

    monkeypatch.setattr(Int8Matrix, "__init__", missing)
    monkeypatch.setattr(int8, "_obstacle", int8._obstacle.__wrapped__)
    with pytest.raises(ValueError, match=r"cannot be computed here: torch .* has no such .*qlinear_prepack'\); pass"):
        resolve_dtype("int8", CPU)


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="oneDNN can be limited to AVX2 on x86 only")
def test_a_processor_without_the_instructions_is_refused() -> None:
    """oneDNN told to use no more than AVX2 is oneDNN on such a processor."""
    code = "import torch; from qwen_retrieval.engine import engine; engine.resolve_dtype('int8', torch.device('cpu'))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "this processor has no instructions for it (AVX-512 VNNI)" in run.stderr
