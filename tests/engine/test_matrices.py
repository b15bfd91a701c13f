"""Products by packed weights against those by plain ones."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear as plain_linear

from qwen_retrieval.batching import pack
from qwen_retrieval.engine import matrices
from qwen_retrieval.engine.decoder import Decoder
from qwen_retrieval.engine.engine import compute_dtype, load_embedding_engine
from qwen_retrieval.engine.matrices import linear, pack_layers
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, DecoderWeights, load_decoder
from qwen_retrieval.loading import read_config
from tests.checkpoints import TINY, write_checkpoint

CPU = torch.device("cpu")
NAMES = ("qkv", "output", "gate_up", "down")
INPUTS = [[7], [1, 2, 3], [*range(40), 50, 51], [*range(40), 60], [5] * 200]
needs_onednn = pytest.mark.skipif(not matrices._has_onednn(), reason="packs on x86 with oneDNN only")


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine packs float32, whoever made it."""
    monkeypatch.setattr(matrices, "_mkl_is_slow", lambda: True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    empty = tmp_path_factory.mktemp("no-tokenizer")
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), empty, TINY, prefix=False, vocab_size=300)


def load(folder: Path, dtype: torch.dtype, packed_for: torch.dtype | None) -> tuple[Decoder, DecoderWeights]:
    config = DecoderConfig.from_json(read_config(folder))
    with Checkpoint(folder) as checkpoint:
        weights = load_decoder(checkpoint, config, CPU, dtype)
    if packed_for is not None:
        pack_layers(weights.layers, packed_for)
    return Decoder(weights, config, CPU), weights


def vectors(decoder: Decoder, dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.functional.normalize(decoder.last_hidden_states(pack(INPUTS), dtype).double(), dim=-1)


def packed_names(weights: DecoderWeights) -> list[list[str]]:
    return [[name for name in NAMES if getattr(layer, name).is_mkldnn] for layer in weights.layers]


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_hold_the_same_bits(folder: Path, dtype: torch.dtype) -> None:
    plain, packed = load(folder, dtype, None)[1], load(folder, dtype, dtype)[1]
    for ours, theirs in zip(packed.layers, plain.layers, strict=True):
        for name in NAMES:
            weight = getattr(ours, name)
            assert torch.equal(weight.to_dense() if weight.is_mkldnn else weight, getattr(theirs, name))


@needs_onednn
@pytest.mark.parametrize("shape", [(4096, 1024), (1024, 3072), (7, 5), (33, 17)])
@pytest.mark.parametrize("rows", [0, 1, 3, 32, 65, 300])
def test_a_packed_product_equals_the_plain_one(rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(rows)
    weight, x = torch.randn(shape) / shape[1] ** 0.5, torch.randn(rows, shape[1])
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    for found in (linear(x, packed), linear(x, weight)):  # packed beforehand, or rearranged in the call
        assert found.shape == (rows, shape[0])
        assert found.is_contiguous()
        torch.testing.assert_close(found, plain_linear(x, weight), rtol=0, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("rows", [1, 32, 300])
def test_a_packed_bfloat16_product_errs_at_most_twice_as_much_as_the_plain_one(rows: int) -> None:
    torch.manual_seed(rows)
    weight, x = (torch.randn(768, 512) / 512**0.5).bfloat16(), torch.randn(rows, 512).bfloat16()
    exact = plain_linear(x.double(), weight.double())
    ours = (linear(x, torch.ops.mkldnn._reorder_linear_weight(weight)) - exact).abs().max()
    assert 0 < ours <= 2 * (plain_linear(x, weight) - exact).abs().max()


@needs_onednn
def test_a_packed_decoder_gives_the_vectors_of_the_plain_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = load(folder, torch.float32, torch.float32)
    found = vectors(packed, torch.float32)
    monkeypatch.setattr(matrices, "_mkl_is_slow", lambda: False)
    plain, _ = load(folder, torch.float32, None)
    assert (found - vectors(plain, torch.float32)).abs().max() <= 1e-5


@needs_onednn
def test_a_packed_bfloat16_decoder_errs_at_most_twice_as_much_as_the_plain_one(folder: Path) -> None:
    exact = vectors(load(folder, torch.bfloat16, None)[0], torch.float32)
    theirs = vectors(load(folder, torch.bfloat16, None)[0], torch.bfloat16)
    ours = vectors(load(folder, torch.bfloat16, torch.bfloat16)[0], torch.bfloat16)
    assert 0 < (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


@needs_onednn
def test_packed_bfloat16_weights_can_be_computed_in_float32(folder: Path) -> None:
    # What happens to rows that overflow; the weights are the same bits, so the results are too.
    plain, _ = load(folder, torch.bfloat16, None)
    packed, _ = load(folder, torch.bfloat16, torch.bfloat16)
    assert torch.equal(vectors(packed, torch.float32), vectors(plain, torch.float32))


@needs_onednn
def test_all_matrices_are_packed_but_the_one_that_is_taken_apart(folder: Path) -> None:
    *layers, last = packed_names(load(folder, torch.float32, torch.float32)[1])
    assert layers == [list(NAMES)] * len(layers)
    assert last == ["output", "gate_up", "down"]


@needs_onednn
def test_plain_weights_are_let_go_one_by_one(folder: Path) -> None:
    _, weights = load(folder, torch.bfloat16, None)
    references = [weakref.ref(getattr(layer, name)) for layer in weights.layers for name in NAMES]
    pack_layers(weights.layers, torch.bfloat16)
    assert sum(reference() is not None for reference in references) == 1  # the last qkv


def test_weights_that_are_cast_when_they_are_used_stay_plain(folder: Path) -> None:
    assert not any(packed_names(load(folder, torch.bfloat16, torch.float32)[1]))


def test_float32_stays_with_mkl_where_that_is_fast(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_mkl_is_slow", lambda: False)
    assert not any(packed_names(load(folder, torch.float32, torch.float32)[1]))


def test_nothing_is_packed_without_onednn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_has_onednn", lambda: False)
    assert not any(packed_names(load(folder, torch.bfloat16, torch.bfloat16)[1]))
    assert vectors(load(folder, torch.float32, torch.float32)[0], torch.float32).isfinite().all()


@needs_onednn
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_packs_what_it_computes_in_and_changes_no_setting_of_torch(folder: Path, dtype: str) -> None:
    precision = torch.get_float32_matmul_precision()
    engine = load_embedding_engine(folder, DecoderConfig.from_json(read_config(folder)), "cpu", dtype)
    engine.embed([[1, 2, 3]])
    stored = getattr(torch, dtype)
    assert any(packed_names(engine.decoder.weights)) == (compute_dtype(stored, CPU) == stored)
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize(("vendor", "slow"), [("AuthenticAMD", True), ("GenuineIntel", False)])
@pytest.mark.parametrize("windows", [True, False])
def test_mkl_is_slow_on_amd(vendor: str, slow: bool, windows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def cpuinfo(*_: object) -> str:
        if windows:
            raise FileNotFoundError
        return f"processor\t: 0\nvendor_id\t: {vendor}\n"

    monkeypatch.undo()
    monkeypatch.setattr(torch._C, "has_mkl", True)
    monkeypatch.setattr(Path, "read_text", cpuinfo)
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", f"AMD64 Family 25 Model 17 Stepping 1, {vendor}" if windows else "")
    assert matrices._mkl_is_slow.__wrapped__() is slow
