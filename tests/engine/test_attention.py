"""Attention over packed spans against the plain formula, one span at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_retrieval.batching import PackedBatch, pack
from qwen_retrieval.engine import attention as module
from qwen_retrieval.engine import flash_attention as flash
from qwen_retrieval.engine.attention import Attention, GroupedAttention, Spans, plan_attention
from qwen_retrieval.engine.flash_attention import (
    CascadeAttention,
    DenseAttention,
    FlashAttention,
    merge,
    plan_flash_attention,
)
from qwen_retrieval.engine.staging import upload
from tests.engine.flash_reference import literal_varlen

CPU = torch.device("cpu")
HEADS, KV_HEADS, DIM = 4, 2, 8


def reference(spans: Spans, query: torch.Tensor, key_value: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v with a causal mask whose last query sees the last key, in float64."""
    key, value = key_value.unbind(1)
    out, start = [], 0
    for rows, keys in zip(spans.query_rows, spans.key_rows, strict=True):
        q = query[start : start + len(rows)].double().transpose(0, 1)  # (heads, Sq, dim)
        k = key[torch.from_numpy(keys)].double().transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, dim=0)
        v = value[torch.from_numpy(keys)].double().transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, dim=0)
        scores = q @ k.transpose(1, 2) / DIM**0.5
        hidden = torch.ones(len(rows), len(keys)).triu(len(keys) - len(rows) + 1).bool()
        out.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
        start += len(rows)
    return torch.cat(out)


batches = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=70), min_size=1, max_size=10)


def random_input(packed: PackedBatch, spans: Spans, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(map(len, spans.query_rows)), HEADS, DIM, generator=generator)
    return query, torch.randn(packed.computed_tokens, 2, KV_HEADS, DIM, generator=generator)


def bound(attention: Attention) -> Attention:
    attention.bind(iter(upload(attention.arrays, CPU)))
    return attention


@settings(max_examples=60)
@given(batches, st.booleans(), st.integers(0, 5))
def test_grouped_attention_equals_the_formula(batch: list[list[int]], last_only: bool, seed: int) -> None:
    packed = pack(batch)
    spans = Spans.of_last_tokens(packed) if last_only else Spans.of_segments(packed)
    query, key_value = random_input(packed, spans, seed)
    found = GroupedAttention(spans, CPU)(query, key_value)
    assert (found - reference(spans, query, key_value)).abs().max() < 1e-5


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches, st.booleans(), st.integers(0, 5), st.sampled_from([8, 30, 1000]), st.sampled_from([16, 40, 1000]))
def test_every_way_of_flash_attention_equals_the_formula(
    monkeypatch: pytest.MonkeyPatch, batch: list[list[int]], last_only: bool, seed: int, dense: int, cascade: int
) -> None:
    monkeypatch.setattr(flash, "DENSE_LENGTH", dense)
    monkeypatch.setattr(flash, "CASCADE_LENGTH", cascade)
    packed = pack(batch)
    spans = Spans.of_last_tokens(packed) if last_only else Spans.of_segments(packed)
    query, key_value = random_input(packed, spans, seed)
    found = bound(plan_flash_attention(spans, dense=True, varlen=literal_varlen))(query, key_value)
    assert (found - reference(spans, query, key_value)).abs().max() < 1e-5


def ways(batch: list[list[int]], *, dense: bool = True) -> list[str]:
    """What plans a batch's attention, part by part."""
    planned = plan_flash_attention(Spans.of_segments(pack(batch)), dense=dense, varlen=literal_varlen)
    return [type(part).__name__ for part in getattr(planned, "_parts", [planned])]


def test_long_documents_go_to_the_dense_kernel_where_that_is_faster() -> None:
    batch = [[1] * 100, [2] * 3000, [3] * 50, [4] * 2048]
    assert ways(batch) == ["FlashAttention", "DenseAttention", "FlashAttention", "DenseAttention"]
    assert ways(batch, dense=False) == ["FlashAttention"]


def test_a_long_shared_prefix_is_attended_to_once_for_all_and_a_short_one_is_copied() -> None:
    def documents(prefix: int) -> list[list[int]]:
        return [[1] * prefix + [i] * 30 for i in range(2, 9)]

    assert ways(documents(300)) == ["FlashAttention", "CascadeAttention"]
    assert ways(documents(75)) == ["FlashAttention"]


@pytest.mark.parametrize("empty", [0, 1], ids=["no keys in the first", "no keys in the second"])
def test_merging_with_attention_to_nothing_changes_nothing(empty: int) -> None:
    parts = [torch.randn(5, HEADS, DIM), torch.randn(5, HEADS, DIM)]
    sums = [torch.randn(HEADS, 5), torch.randn(HEADS, 5)]
    sums[empty] = torch.full((HEADS, 5), -torch.inf)
    parts[empty] = torch.zeros(5, HEADS, DIM)
    assert torch.equal(merge(parts[0], sums[0], parts[1], sums[1]), parts[1 - empty])


def test_every_query_row_of_the_segments_stands_in_order() -> None:
    packed = pack([[1] * 40 + [i] * (i + 1) for i in range(2, 9)])
    rows = np.concatenate(Spans.of_segments(packed).query_rows)
    assert rows.tolist() == list(range(packed.computed_tokens))


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 100)), min_size=1, max_size=60))
def test_groups_take_every_span_once_and_pad_little(spans: list[tuple[int, int]]) -> None:
    own = np.array([n for n, _ in spans])
    keys = np.array([n + prefix for n, prefix in spans])
    groups = module._group(own, keys)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(spans)))
    for group in groups:
        padded = len(group) * own[group].max() * keys[group].max()
        assert len(group) == 1 or padded <= module.PADDING_LIMIT * (own[group] * keys[group]).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_gets_grouped_attention(dtype: torch.dtype) -> None:
    assert isinstance(plan_attention(Spans.of_segments(pack([[1, 2, 3]])), CPU, dtype), GroupedAttention)


@pytest.mark.parametrize("kind", [FlashAttention, CascadeAttention, DenseAttention])
def test_the_operators_of_this_torch_take_what_they_are_given(kind: Callable[[Spans], Attention]) -> None:
    # Shapes only, on the meta device: what they compute is compared in tests/gpu.
    packed, meta = pack([[1] * 40 + [i] * (i + 1) for i in range(2, 9)]), torch.device("meta")
    spans = Spans.of_segments(packed)
    spans = spans.part(0, 1) if kind is DenseAttention else spans.part(1, len(spans))
    rows = sum(map(len, spans.query_rows))
    query = torch.empty(rows, 16, 128, dtype=torch.bfloat16, device=meta)
    key_value = torch.empty(packed.computed_tokens, 2, 8, 128, dtype=torch.bfloat16, device=meta)
    attention = kind(spans)
    attention.bind(iter(upload(attention.arrays, meta)))
    assert attention(query, key_value).shape == (rows, 16, 128)
