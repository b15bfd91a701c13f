"""The CUDA path against float32 on the CPU. Skipped, with the reason, where torch sees no CUDA device."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.attention import Attention, GroupedAttention, Spans
from qwen_retrieval.engine.engine import TorchEmbeddingEngine, load_embedding_engine, load_reranking_engine
from qwen_retrieval.engine.flash_attention import CascadeAttention, DenseAttention, FlashAttention
from qwen_retrieval.engine.graphs import MAX_INPUTS
from qwen_retrieval.engine.kernels import fused_kernels
from qwen_retrieval.engine.staging import upload
from qwen_retrieval.engine.weights import DecoderConfig
from qwen_retrieval.loading import read_config
from qwen_retrieval.types import FloatArray, TokenIds
from tests.checkpoints import TINY, write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
VOCABULARY = 2_000


def ids(seed: int, length: int) -> TokenIds:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


BATCHES = {
    "mixed lengths": [ids(i, n) for i, n in enumerate((1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 1200))],
    "equal lengths": [ids(i, 24) for i in range(9)],
    "prefixes of prefixes": [ids(0, 39) + ids(i % 3 + 100, 25) + ids(i, 5 + 7 * i % 40) for i in range(30)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Heads of 128 as in the published models: the flash kernel is compiled per head size.
    shape = TINY | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 128}
    empty = tmp_path_factory.mktemp("no-tokenizer")
    return write_checkpoint(tmp_path_factory.mktemp("gpu"), empty, shape, prefix=True, vocab_size=VOCABULARY)


def load(folder: Path, device: str, dtype: str) -> TorchEmbeddingEngine:
    return load_embedding_engine(folder, DecoderConfig.from_json(read_config(folder)), device, dtype)


def units(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def random_input(spans: Spans, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(sum(map(len, spans.query_rows)), 16, 128, **options)  # type: ignore[call-overload]
    return query, torch.randn(rows, 2, 8, 128, **options)  # type: ignore[call-overload]


def attend(attention: Attention, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
    attention.bind(iter(upload(attention.arrays, torch.device("cuda"))))
    return attention(query, key_value)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_flash_attention_equals_grouped_attention(batch: list[TokenIds], last_only: bool) -> None:
    packed = pack(batch)
    spans = Spans.of_last_tokens(packed) if last_only else Spans.of_segments(packed)
    query, key_value = random_input(spans, packed.computed_tokens)
    exact = GroupedAttention(spans, torch.device("cuda"))(query.float(), key_value.float())
    assert (attend(FlashAttention(spans), query, key_value).float() - exact).abs().max() < 0.02


def test_attention_to_a_prefix_apart_equals_attention_to_its_copies() -> None:
    packed = pack([ids(0, 300) + ids(i, 20 + i) for i in range(1, 30)])
    spans = Spans.of_segments(packed)
    below = spans.part(1, len(spans))
    query, key_value = random_input(below, packed.computed_tokens)
    apart, copied = (attend(kind(below), query, key_value) for kind in (CascadeAttention, FlashAttention))
    assert (apart.float() - copied.float()).abs().max() < 0.02


def test_the_dense_kernel_equals_the_flash_kernel() -> None:
    spans = Spans.of_segments(pack([ids(0, 3000)]))
    query, key_value = random_input(spans, 3000)
    dense, flash = (attend(kind(spans), query, key_value) for kind in (DenseAttention, FlashAttention))
    assert (dense.float() - flash.float()).abs().max() < 0.02


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_float32_on_cuda_equals_float32_on_the_cpu(folder: Path, batch: list[TokenIds]) -> None:
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        found = units(load(folder, "cuda", "float32").embed(batch))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert np.abs(found - units(load(folder, "cpu", "float32").embed(batch))).max() < 1e-4


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_bfloat16_on_cuda_errs_no_more_than_bfloat16_on_the_cpu(folder: Path, batch: list[TokenIds]) -> None:
    exact = units(load(folder, "cpu", "float32").embed(batch))
    cpu = load(folder, "cpu", "bfloat16")
    cpu.dtype = torch.bfloat16
    ours = np.abs(units(load(folder, "cuda", "auto").embed(batch)) - exact).max()
    assert 0 < ours <= 2 * np.abs(units(cpu.embed(batch)) - exact).max()


def test_rows_that_overflow_float16_are_recomputed(folder: Path) -> None:
    engine, exact = load(folder, "cuda", "float32"), load(folder, "cuda", "float32")
    engine.dtype = torch.float16
    for each in (engine, exact):
        each.decoder.weights.embedding[5] *= 1e5
    assert np.isfinite(engine.embed([[1, 2], [4, 5], [6]])).all()


def test_running_out_of_memory_halves_the_batch_and_loses_no_row(folder: Path) -> None:
    engine = load(folder, "cuda", "auto")
    batch = [ids(i, 512) for i in range(256)]
    expected = engine.embed(batch)
    before = engine.counters.forward_passes
    torch.cuda.empty_cache()
    used = torch.cuda.memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(used + 0.002)
    try:
        found = engine.embed(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.counters.forward_passes - before > 1
    assert np.abs(units(found) - units(expected)).max() < 0.02


def test_log_odds_on_cuda_equal_those_on_the_cpu(folder: Path) -> None:
    config = DecoderConfig.from_json(read_config(folder))
    batch = BATCHES["prefixes of prefixes"]
    cpu, cuda = (
        load_reranking_engine(folder, config, device, dtype, yes_id=11, no_id=12).score(batch)
        for device, dtype in (("cpu", "float32"), ("cuda", "auto"))
    )
    assert np.corrcoef(cpu, cuda)[0, 1] > 0.99


def test_fused_kernels_compile_and_pass_their_own_check() -> None:
    assert fused_kernels(torch.device("cuda:0")) is not None


def test_small_batches_give_the_same_by_cuda_graphs_as_without(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    graphed, plain = load(folder, "cuda", "auto"), load(folder, "cuda", "auto")
    plain._small = None
    for count in range(1, MAX_INPUTS + 1):
        batch = [ids(i, 5 * i + 3) for i in range(count)]
        assert np.abs(units(graphed.embed(batch)) - units(plain.embed(batch))).max() < 0.01
    assert not caplog.messages


def test_threads_that_share_an_engine_get_their_own_rows(folder: Path) -> None:
    engine = load(folder, "cuda", "auto")
    batches = [[ids(100 * i + j, 3 + 7 * j) for j in range(1 + i % 12)] for i in range(60)]
    alone = [engine.embed(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(engine.embed, batches), alone, strict=True):
            assert np.abs(units(found) - units(expected)).max() < 0.01
