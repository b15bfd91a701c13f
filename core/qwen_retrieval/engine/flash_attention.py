"""Attention over spans by the variable-length flash kernels that ship with torch (CUDA, sm80 or newer, half precision).

Three ways, chosen span by span: `FlashAttention` is one kernel for any number of spans, with a copy of the keys where
spans share a prefix; `CascadeAttention` reads a long shared prefix once for all spans below it; `DenseAttention`
computes one long sequence by the dense kernel, which is faster there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwen_retrieval.batching import IndexArray
from qwen_retrieval.engine.attention import Attention, Spans
from qwen_retrieval.engine.kernels import fused_kernels, triton_kernels

DENSE_LENGTH = 2048
"""Tokens from which a sequence of its own goes to the dense kernel, where that is cuDNN's (Hopper and newer)."""

CASCADE_LENGTH = 256
"""Tokens from which a shared prefix is attended to apart, instead of being copied before the keys of each span."""

DENSE_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Tried in this order: cuDNN refuses shapes that it has no kernel for."""


_Kind = Literal["flash", "cascade", "dense"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where the spans of a packed tensor begin.

    Attributes:
        query: (spans + 1,) int32, where each span's queries begin, and the end of the last.
        key: (spans + 1,) int32, the same of the keys.
        max_query: At least the longest span's queries.
        max_key: At least the longest span's keys.
    """

    query: Tensor
    key: Tensor
    max_query: int
    max_key: int


class Varlen(Protocol):
    """Attention of packed sequences: the operator that everything here is made of."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, *, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Attend, span by span.

        Args:
            query: (T_q, heads, head_dim), the spans' queries one after the other; rows may lie apart in memory.
            key: (T_k, kv_heads, head_dim), the same of the keys.
            value: (T_k, kv_heads, head_dim).
            bounds: Of the spans. Rows behind the last span are left alone.
            causal: Whether a query sees the keys up to its own place only, the last one all of them; else every query
                sees all of its span's keys.

        Returns:
            (T_q, heads, head_dim), and the logarithm of the sum of each query's exponentials, (heads, T_q) float32.
        """


def flash_varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, *, causal: bool) -> tuple[Tensor, Tensor]:
    """`Varlen` by ``aten::_flash_attention_forward``.

    The public ``torch.nn.attention.varlen`` changed its signature in 2.11 and again in 2.12; the positional part of
    this operator, which it calls, has been the same since 2.8. Grouped-query attention needs no flag, and with unequal
    numbers of queries and keys the causal mask is aligned to the bottom right.
    """
    dropout, debug_mask = 0.0, False
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        bounds.query,
        bounds.key,
        bounds.max_query,
        bounds.max_key,
        dropout,
        causal,
        debug_mask,
        scale=query.shape[-1] ** -0.5,
    )
    return out, lse


def plan_flash_attention(spans: Spans, *, dense: bool, varlen: Varlen = flash_varlen) -> Attention:
    """Each span by the way that suits it.

    Args:
        spans: What attends to what.
        dense: Whether long sequences go to the dense kernel.
        varlen: The operator for the others.
    """
    parts = list(_stretches(spans, dense))
    attentions = [_build(kind, part, varlen) for kind, part in parts]
    if len(parts) == 1:
        return attentions[0]
    return _InTurn(attentions, [sum(map(len, part.query_rows)) for _, part in parts])


def _stretches(spans: Spans, dense: bool) -> Iterator[tuple[_Kind, Spans]]:
    """Neighbours that go the same way, together; those that go to the dense kernel one by one."""
    kinds = [_kind(spans, i, dense) for i in range(len(spans))]
    for kind, numbers in groupby(range(len(spans)), kinds.__getitem__):
        indices = list(numbers)
        if kind == "dense":
            yield from ((kind, spans.part(i, i + 1)) for i in indices)
        else:
            yield kind, spans.part(indices[0], indices[-1] + 1)


def _kind(spans: Spans, i: int, dense: bool) -> _Kind:
    queries, keys = len(spans.query_rows[i]), len(spans.key_rows[i])
    if dense and queries == keys >= DENSE_LENGTH:
        return "dense"
    return "cascade" if spans.prefixes[i] >= 0 and keys - queries >= CASCADE_LENGTH else "flash"


def _build(kind: _Kind, spans: Spans, varlen: Varlen) -> Attention:
    if kind == "dense":
        return DenseAttention(spans)
    return CascadeAttention(spans, varlen) if kind == "cascade" else FlashAttention(spans, varlen)


def cumulative(lengths: Sequence[int]) -> IndexArray:
    """Where spans of these lengths begin when they stand one after the other, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class FlashAttention:
    """All spans in one kernel.

    Args:
        spans: What attends to what.
        varlen: The operator.
    """

    def __init__(self, spans: Spans, varlen: Varlen = flash_varlen) -> None:
        query_lengths, key_lengths = (list(map(len, rows)) for rows in (spans.query_rows, spans.key_rows))
        self._varlen = varlen
        self._longest = max(query_lengths), max(key_lengths)
        self._bounds: Bounds | None = None
        rows = np.concatenate(spans.key_rows)
        first, in_place = int(rows[0]), np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        self._slice = slice(first, first + len(rows)) if in_place else None
        self.arrays = [cumulative(query_lengths), cumulative(key_lengths)] + ([] if in_place else [rows])
        self._rows: Tensor | None = None

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """See `Attention.bind`."""
        self._bounds = Bounds(next(tensors).int(), next(tensors).int(), *self._longest)
        self._rows = None if self._slice else next(tensors)

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """See `Attention`."""
        return self.with_lse(query, key_value, causal=True)[0]

    def with_lse(self, query: Tensor, key_value: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
        """What `Varlen` returns."""
        if self._slice:
            key_value = key_value[self._slice]
        elif self._rows is not None:
            key_value = key_value.index_select(0, self._rows)  # (sum of key lengths, 2, kv_heads, head_dim)
        assert self._bounds is not None, "bind comes first"
        key, value = key_value.unbind(1)
        return self._varlen(query, key, value, self._bounds, causal=causal)


class CascadeAttention:
    """Spans below shared prefixes: all queries below one prefix attend to it together, then each span to itself.

    The two results are merged by their log-sum-exps (FlashInfer's cascade, https://arxiv.org/abs/2501.01005, section
    2.2), which is exact up to rounding, and reads a prefix once instead of once per span.

    Args:
        spans: What attends to what; each span has a prefix.
        varlen: The operator.
    """

    def __init__(self, spans: Spans, varlen: Varlen = flash_varlen) -> None:
        own, above = Spans([], [], []), Spans([], [], [])
        for prefix, numbers in groupby(range(len(spans)), spans.prefixes.__getitem__):
            indices = list(numbers)
            shared = len(spans.key_rows[indices[0]]) - len(spans.query_rows[indices[0]])
            above.query_rows.append(np.concatenate([spans.query_rows[i] for i in indices]))
            above.key_rows.append(spans.key_rows[indices[0]][:shared])
            above.prefixes.append(prefix)
            own.query_rows.extend(spans.query_rows[i] for i in indices)
            own.key_rows.extend(spans.key_rows[i][shared:] for i in indices)
        self._own, self._above = FlashAttention(own, varlen), FlashAttention(above, varlen)
        self.arrays = [*self._own.arrays, *self._above.arrays]

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """See `Attention.bind`."""
        self._own.bind(tensors)
        self._above.bind(tensors)

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """See `Attention`."""
        own = self._own.with_lse(query, key_value, causal=True)
        above = self._above.with_lse(query, key_value, causal=False)
        return merge(*own, *above)


def merge(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """Attention to two sets of keys from the attention to each.

    Args:
        first: (T, heads, head_dim).
        first_lse: (heads, T) float32, the logarithm of the sum of exponentials.
        second: (T, heads, head_dim), of the other keys.
        second_lse: (heads, T) float32.

    Returns:
        (T, heads, head_dim): each result weighted by its share of the sum of all exponentials, in float32.
    """
    if first.device.type == "cuda" and fused_kernels(first.device):
        merged: Tensor = triton_kernels().merge_attention(first, first_lse, second, second_lse)
        return merged
    share = torch.sigmoid(first_lse - second_lse).transpose(0, 1)[..., None]  # (T, heads, 1)
    return torch.lerp(second.float(), first.float(), share).to(first.dtype)


class DenseAttention:
    """One sequence by torch's own SDPA.

    Args:
        spans: One span without a prefix.
    """

    arrays: Sequence[IndexArray] = ()

    def __init__(self, spans: Spans) -> None:
        (rows,) = spans.key_rows
        self._rows = slice(int(rows[0]), int(rows[-1]) + 1)

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """See `Attention.bind`."""

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """See `Attention`."""
        key, value = key_value[self._rows].unbind(1)
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, heads, S, head_dim)
        with sdpa_kernel(DENSE_BACKENDS, set_priority=True):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)


class _InTurn:
    """Parts of the spans, each by its own way."""

    def __init__(self, parts: list[Attention], sizes: list[int]) -> None:
        self._parts = parts
        self._sizes = sizes  # queries of each part
        self.arrays = [array for part in parts for array in part.arrays]

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """See `Attention.bind`."""
        for part in self._parts:
            part.bind(tensors)

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """See `Attention`."""
        queries = torch.split(query, self._sizes)
        return torch.cat([part(rows, key_value) for part, rows in zip(self._parts, queries, strict=True)])
