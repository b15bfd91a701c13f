"""What engines guarantee around the forward pass: devices, memory, finite rows, a head of two rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_retrieval.engine.engine import (
    DTYPES,
    QUANTIZED,
    TorchRerankingEngine,
    activation_bytes,
    batch_tokens_within,
    compute_dtype,
    default_batch_tokens,
    halve_on_out_of_memory,
    load_embedding_engine,
    load_reranking_engine,
    resolve_device,
    resolve_dtype,
)
from qwen_retrieval.engine.weights import DecoderConfig
from qwen_retrieval.errors import CorruptCheckpointError, NonFiniteError, OutOfMemoryError
from qwen_retrieval.loading import read_config
from qwen_retrieval.types import QUANTIZED_DTYPES, TokenIds
from tests.checkpoints import TINY, write_checkpoint
from tests.reference import causal_model, yes_no_log_odds

VOCABULARY = 2_000
YES, NO = 11, 12
CPU = torch.device("cpu")


def ids(seed: int, length: int) -> TokenIds:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def write(tmp_path: Path, *, tied: bool = True) -> Path:
    (tmp_path / "no-tokenizer").mkdir()
    return write_checkpoint(
        tmp_path / "model", tmp_path / "no-tokenizer", TINY, prefix=True, tied=tied, vocab_size=VOCABULARY
    )


def reranking_engine(folder: Path) -> TorchRerankingEngine:
    config = DecoderConfig.from_json(read_config(folder))
    return load_reranking_engine(folder, config, "cpu", "float32", yes_id=YES, no_id=NO)


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "untied head"])
def test_log_odds_equal_the_model_cards_log_softmax(tmp_path: Path, tied: bool) -> None:
    folder = write(tmp_path, tied=tied)
    query = ids(0, 70)
    batch = [query + ids(i, 4 * i) for i in range(1, 20)]
    found = reranking_engine(folder).score(batch)
    expected = yes_no_log_odds(causal_model(folder), batch, yes_id=YES, no_id=NO)
    assert np.ptp(expected) > 1  # scores that hardly differ would prove nothing
    assert np.abs(found - expected).max() <= 1e-4


def test_an_untied_head_is_not_taken_from_the_token_table(tmp_path: Path) -> None:
    folder = write(tmp_path, tied=False)
    untied = reranking_engine(folder).score([ids(1, 9)])
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert abs(reranking_engine(folder).score([ids(1, 9)])[0] - untied[0]) > 1e-3


def test_permuting_documents_permutes_scores(tmp_path: Path) -> None:
    engine = reranking_engine(write(tmp_path))
    batch = [ids(0, 40) + ids(i, 3 + i) for i in range(16)]
    order = random.Random(1).sample(range(16), 16)
    assert np.abs(engine.score([batch[i] for i in order]) - engine.score(batch)[order]).max() <= 1e-4


def test_equal_rows_of_yes_and_no_are_refused(tmp_path: Path) -> None:
    engine = reranking_engine(write(tmp_path))
    with pytest.raises(CorruptCheckpointError, match=r"every score would be 0\.5"):
        TorchRerankingEngine(engine.decoder, torch.float32, torch.ones(2, 64))


def test_a_reranker_multiplies_two_rows_of_the_head_and_no_more(tmp_path: Path) -> None:
    engine = reranking_engine(write(tmp_path))
    batch = [ids(i, 30) for i in range(8)]
    widest = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal widest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim:
                widest = max(widest, out.shape[-1])
            return out

    with Watch():  # type: ignore[no-untyped-call]
        engine.score(batch)
    assert 0 < widest < VOCABULARY


def test_counters_tell_what_was_computed(tmp_path: Path) -> None:
    engine = reranking_engine(write(tmp_path))
    engine.score([ids(0, 69) + ids(i, 20) for i in range(1, 11)])
    assert engine.counters.forward_passes == 1
    assert engine.counters.tokens == 10 * 89
    assert engine.counters.computed_tokens == 69 + 10 * 20


class LimitedMemory:
    """A forward pass that runs out of memory above a number of inputs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: list[int] = []

    def __call__(self, batch: list[TokenIds]) -> torch.Tensor:
        self.sizes.append(len(batch))
        if len(batch) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([ids[0] for ids in batch])


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_batch_too_large_for_the_memory_is_halved_and_no_row_is_lost(size: int) -> None:
    run = LimitedMemory(limit=3)
    parts = halve_on_out_of_memory([[i] for i in range(size)], run)
    assert torch.cat(parts).tolist() == list(range(size))
    assert all(len(part) <= 3 for part in parts)


def test_one_input_too_large_for_the_memory_is_named() -> None:
    with pytest.raises(OutOfMemoryError, match="an input of 5 tokens does not fit"):
        halve_on_out_of_memory([[1, 2, 3, 4, 5]], LimitedMemory(limit=0))


def test_rows_that_overflow_in_half_precision_are_recomputed_in_float32(tmp_path: Path) -> None:
    folder = write(tmp_path)
    config = DecoderConfig.from_json(read_config(folder))
    exact = load_embedding_engine(folder, config, "cpu", "float32")
    engine = load_embedding_engine(folder, config, "cpu", "float32")
    engine.dtype = torch.float16
    # Token 5 enters with values whose products overflow float16 (above 65,504) but not float32.
    for each in (exact, engine):
        each.decoder.weights.embedding[5] *= 1e5
    batch = [[1, 2, 3], [4, 5], [6]]
    half = engine._pass(batch, torch.float16)
    assert np.isfinite(half).all(axis=1).tolist() == [True, False, True]
    found, expected = engine.embed(batch), exact.embed(batch)
    assert np.isfinite(found).all()
    assert np.array_equal(found[1], exact.embed([[4, 5]])[0])
    assert np.abs(found - expected).max() < 0.1


def test_rows_that_stay_non_finite_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    config = DecoderConfig.from_json(read_config(folder))
    engine = load_embedding_engine(folder, config, "cpu", "float32")
    engine.decoder.weights.embedding[5] = torch.nan
    with pytest.raises(NonFiniteError, match="position 1, 3") as caught:
        engine.embed([[1], [5, 2], [3], [4, 5]])
    assert caught.value.rows == (1, 3)


def test_results_are_float32_numpy_whatever_is_computed_in(tmp_path: Path) -> None:
    folder = write(tmp_path)
    config = DecoderConfig.from_json(read_config(folder))
    vectors = load_embedding_engine(folder, config, "cpu", "bfloat16").embed([[1, 2], [3]])
    assert type(vectors) is np.ndarray
    assert vectors.dtype == np.float32
    assert vectors.shape == (2, 64)


@pytest.mark.parametrize("name", ["gpu", "tpu", "cuda:x", "meta", "cuda:99"])
def test_an_impossible_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        resolve_device(name)


def test_auto_takes_a_device_that_this_machine_has() -> None:
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")


def test_auto_takes_bfloat16_only_where_it_is_native() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert resolve_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert compute_dtype(torch.bfloat16, CPU) == (torch.bfloat16 if native else torch.float32)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype must be .* but got 'int3'"):
        resolve_dtype("int3", CPU)


def test_float16_is_taken_only_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="float16 overflows"):
        assert resolve_dtype("float16", CPU) == torch.float16
    assert compute_dtype(torch.float16, CPU) == torch.float32


def test_the_dtypes_that_fingerprints_tell_apart_are_the_quantized_ones() -> None:
    assert {DTYPES[name] for name in QUANTIZED_DTYPES} == set(QUANTIZED)


LARGEST = DecoderConfig(
    vocab_size=151_665, hidden_size=4096, intermediate_size=12_288, num_layers=36, num_heads=32, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tied_head=False,
)  # fmt: skip


def test_a_gpu_gets_larger_batches_than_a_cpu_as_far_as_its_memory_goes() -> None:
    plenty, some, none = (batch_tokens_within(free, LARGEST) for free in (80 << 30, 2 << 30, 0))
    assert plenty > default_batch_tokens(CPU, LARGEST)
    assert plenty > some > none > 0
    assert some * activation_bytes(LARGEST) <= (2 << 30) / 2


def test_activations_are_counted_as_they_are_allocated() -> None:
    # The widest moment of a layer in the CUDA path: the residual stream, its norm, and gate and up with their product.
    mlp = 2 * (2 * LARGEST.hidden_size + 3 * LARGEST.intermediate_size)
    assert mlp < activation_bytes(LARGEST) < 2 * mlp
