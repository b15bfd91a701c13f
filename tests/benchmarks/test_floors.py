"""What the hardware needs at least: formulas against literal counts, and against the plan's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from benchmarks.checkpoints import MODELS, shape, shards, write_weights
from benchmarks.floors import Ceiling, attention_flops, copy_rate, linear_parameters, matmul_rate, need
from qwen_retrieval.specs import Checkpoint
from qwen_retrieval.types import TokenIds

TINY = Checkpoint("tiny", "reranking", "none", 0, 2, 8, 4, 2, 4, 16, 64, 40, False)

# State of the plan, rounded as there: GFLOP per token of the matrices, and of attention at a length.
PLANNED = {
    "0.6B": (0.881, {128: 0.015, 512: 0.059, 2048: 0.235, 8192: 0.940}),
    "4B": (7.267, {128: 0.038, 512: 0.151, 2048: 0.604, 8192: 2.416}),
    "8B": (13.892, {128: 0.038, 512: 0.151, 2048: 0.604, 8192: 2.416}),
}


@pytest.mark.parametrize("model", MODELS)
def test_flops_are_those_of_the_plans_table(model: str) -> None:
    linear, attention = PLANNED[model]
    assert 2 * linear_parameters(shape(model)) / 1e9 == pytest.approx(linear, abs=6e-4)
    for length, planned in attention.items():
        assert attention_flops(shape(model), 0, length) / length / 1e9 == pytest.approx(planned, abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_matrices_are_the_published_parameters_without_tables_and_norms(model: str) -> None:
    sizes = shape(model)
    tables = sizes.rows * sizes.hidden_size * (1 if sizes.tied_head else 2)
    norms = sizes.hidden_size * (2 * sizes.layers + 1) + 2 * sizes.head_dim * sizes.layers
    assert linear_parameters(sizes) == sizes.parameters - tables - norms


def test_matrices_are_the_tensors_of_the_checkpoint() -> None:
    layers = list(shards(TINY))[1:]
    matrices = [tensor for part in layers for tensor in part.values() if tensor.dim() == 2]
    assert linear_parameters(TINY) == sum(map(torch.Tensor.numel, matrices))


def literal(inputs: list[TokenIds]) -> tuple[int, int]:
    """Tokens and FLOPs, counted one beginning after the other."""
    beginnings = {tuple(ids[: i + 1]) for ids in inputs for i in range(len(ids))}
    keys = sum(map(len, beginnings))
    attention = 2 * 2 * keys * TINY.heads * TINY.head_dim * TINY.layers
    return len(beginnings), 2 * len(beginnings) * linear_parameters(TINY) + attention


ids = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=40)
@given(st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=3))
def test_every_beginning_is_needed_once_per_call(calls: list[list[TokenIds]]) -> None:
    found = need(TINY, calls)
    counts = [literal(call) for call in calls]
    assert found.given == sum(len(one) for call in calls for one in call)
    assert (found.tokens, found.flops) == (sum(n for n, _ in counts), sum(f for _, f in counts))


def test_the_floor_is_the_longer_of_computing_and_reading_weights() -> None:
    ceiling = Ceiling({"bfloat16": 100.0, "float32": 20.0}, 10.0)
    assert ceiling.seconds(500) == 5.0
    assert ceiling.seconds(500, calls=2, weight_bytes=20) == 5.0
    assert ceiling.seconds(500, calls=2, weight_bytes=30) == 6.0


def test_rates_are_positive_and_the_best_is_kept() -> None:
    assert matmul_rate(torch.float32, size=32) > 0
    assert copy_rate(size=1024) > 0


def test_random_weights_are_written_shard_by_shard_and_no_layer_is_another(tmp_path: Path) -> None:
    write_weights(tmp_path, TINY)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for name, file in files.items():
        with safe_open(tmp_path / file, framework="pt") as handle:
            found[name] = handle.get_tensor(name)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    first, second = (found[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first.abs(), second.abs())
    assert all(tensor.count_nonzero() > 0.9 * tensor.numel() for tensor in found.values())
    assert "lm_head.weight" in found
    modified = (tmp_path / "model-00000.safetensors").stat().st_mtime_ns
    write_weights(tmp_path, TINY)
    assert (tmp_path / "model-00000.safetensors").stat().st_mtime_ns == modified
