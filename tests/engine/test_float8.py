"""Matrices in float8 against the same numbers multiplied in float32; torch multiplies float8 on the CPU too, slowly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.decoder import Decoder
from qwen_retrieval.engine.engine import resolve_dtype
from qwen_retrieval.engine.float8 import Float8Matrix, check_supported, quantize_layer, quantize_rows
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, load_decoder
from qwen_retrieval.loading import read_config
from tests.checkpoints import TINY, write_checkpoint

CPU = torch.device("cpu")


def literal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of what is left of both in float8, in float64."""
    (a, a_scale), (b, b_scale) = quantize_rows(x), quantize_rows(weight)
    return (a.double() * a_scale) @ (b.double() * b_scale).t()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.sampled_from([16, 64]), st.sampled_from([16, 48]), st.floats(-6, 6), st.integers(0, 9))
def test_products_equal_those_of_the_rounded_numbers(
    rows: int, size: int, out: int, magnitude: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, size, generator=generator) * 10**magnitude).bfloat16()
    weight = torch.randn(out, size, generator=generator)
    found = Float8Matrix.of(weight).multiply(x)
    expected = literal(x, weight)
    assert found.dtype == torch.bfloat16
    # Rounded to bfloat16 at the end: 8 bits of the largest number of the row.
    limit = expected.abs().amax(dim=1, keepdim=True) / 128 if rows else 0.0
    assert ((found.double() - expected).abs() <= limit).all()


def test_codes_are_near_to_what_they_stand_for_and_zeros_stay_zeros() -> None:
    x = torch.cat([torch.randn(3, 32) * torch.tensor([[1e-5], [1.0], [1e5]]), torch.zeros(1, 32)])
    codes, scale = quantize_rows(x)
    assert codes.dtype == torch.float8_e4m3fn
    assert ((codes.float() * scale - x).abs() <= x.abs() / 16 + scale * 2**-10).all()
    assert scale[3] == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_so_and_concerns_no_other(bad: float) -> None:
    x = torch.randn(3, 32)
    x[1, 7] = bad
    found = Float8Matrix.of(torch.randn(16, 32)).multiply(x)
    assert found.isfinite().all(dim=1).tolist() == [True, False, True]
    assert not found[1].isfinite().any()


def test_some_rows_of_a_matrix_are_those_of_its_product() -> None:
    x, matrix = torch.randn(5, 32), Float8Matrix.of(torch.randn(48, 32))
    assert torch.equal(matrix[16:].multiply(x), matrix.multiply(x)[:, 16:])


def test_a_model_in_float8_gives_nearly_the_vectors_of_float32(tmp_path: Path) -> None:
    (tmp_path / "no-tokenizer").mkdir()
    folder = write_checkpoint(tmp_path / "model", tmp_path / "no-tokenizer", TINY, prefix=False, vocab_size=500, gain=1)
    config = DecoderConfig.from_json(read_config(folder))
    rows = []
    for prepare in (None, quantize_layer):
        with Checkpoint(folder) as checkpoint:
            decoder = Decoder(load_decoder(checkpoint, config, CPU, torch.float32, prepare), config, CPU)
        batch = pack([[7, 8, 9] * n for n in range(1, 9)])
        found = decoder.last_hidden_states(batch, torch.float32).numpy()
        rows.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    cosines = (rows[0] * rows[1]).sum(axis=1)
    assert 0.98 < cosines.min() < 0.99999


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_devices_without_float8_are_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=f'"float8" is for NVIDIA GPUs, but device is "{device}"'):
        check_supported(torch.device(device))


def test_float8_on_a_cpu_is_refused_at_the_door() -> None:
    with pytest.raises(ValueError, match="float8"):
        resolve_dtype("float8", CPU)
