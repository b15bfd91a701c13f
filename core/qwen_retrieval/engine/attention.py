"""Causal attention over packed sequences, with shared prefixes: one interface, an implementation per kind of device.

A packed batch is a list of *spans*: some query rows that attend to some key rows, causally, with the last query
aligned to the last key. A span's keys are the rows of its shared prefixes followed by its own rows, so each result
is exactly that of its whole input computed alone.

- `flash_attention.py`: variable-length flash kernels (CUDA, half precision).
- `GroupedAttention`: spans of similar shape side by side in torch's own SDPA (everything else). Only attention is
  padded here; every matrix product stays packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qwen_retrieval.batching import IndexArray, PackedBatch

PADDING_LIMIT = 1.25
"""A group of spans may compute at most this many times the scores that its spans need."""

GROUP_SCORES = 1 << 22
"""Scores (query x key pairs) per group and head: bounds the memory of one attention call."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Which rows attend to which: span i has query rows ``query_rows[i]`` and key rows ``key_rows[i]``.

    The query rows of all spans, one after the other, are the rows of the query tensor. Spans with the same
    ``prefixes[i]`` begin with the same key rows; -1 stands for those that share none within the batch.
    """

    query_rows: list[IndexArray]
    key_rows: list[IndexArray]
    prefixes: list[int]

    @classmethod
    def of_segments(cls, packed: PackedBatch) -> Spans:
        """One span per segment: its own rows attend to its prefixes' rows and to themselves."""
        return cls(_own_rows(packed), _path_rows(packed), packed.segments.parents.tolist())

    @classmethod
    def of_last_tokens(cls, packed: PackedBatch) -> Spans:
        """One span per input: its last token attends to the whole input."""
        own, paths = _own_rows(packed), _path_rows(packed)
        ends = {int(rows[-1]): i for i, rows in enumerate(own)}
        queries = [np.array([row]) for row in packed.last]
        return cls(queries, [paths[ends[int(row)]] for row in packed.last], [-1] * len(queries))

    def __len__(self) -> int:
        return len(self.query_rows)

    def part(self, start: int, stop: int) -> Spans:
        """Spans `start` to `stop` - 1, whose queries are a tensor of their own."""
        return Spans(self.query_rows[start:stop], self.key_rows[start:stop], self.prefixes[start:stop])


def _own_rows(packed: PackedBatch) -> list[IndexArray]:
    starts, lengths = packed.segments.starts, packed.segments.lengths
    return [np.arange(s, s + n) for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]


def _path_rows(packed: PackedBatch) -> list[IndexArray]:
    beginning = np.arange(packed.behind)  # the first rows of the keys; those of the batch come after them
    paths: list[IndexArray] = []
    for own, parent in zip(_own_rows(packed), packed.segments.parents.tolist(), strict=True):
        # A parent stands before its children, so its path is already there.
        paths.append(np.concatenate([paths[parent] if parent >= 0 else beginning, own + packed.behind]))
    return paths


class Attention(Protocol):
    """Attention of one batch, planned once and used by every layer."""

    @property
    def arrays(self) -> Sequence[IndexArray]:
        """Integers that it needs on the device, to be copied there together with everything else."""

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """Take the device's tensors of `arrays`, as many as those are. Comes before the first call."""

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (T_q, heads, head_dim), one row for each query row of the spans, in their order.
            key_value: (T, 2, kv_heads, head_dim), keys and values of the rows of the packed batch, after those of the
                beginning that it is behind.

        Returns:
            (T_q, heads, head_dim).
        """


def plan_attention(spans: Spans, device: torch.device, dtype: torch.dtype) -> Attention:
    """The fastest implementation for this device and dtype."""
    if supports_flash(device, dtype):
        from qwen_retrieval.engine.flash_attention import plan_flash_attention

        return plan_flash_attention(spans, dense=torch.cuda.get_device_capability(device) >= (9, 0))
    return GroupedAttention(spans, device)


def supports_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's flash kernel computes this."""
    half = dtype in (torch.bfloat16, torch.float16)
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True, slots=True)
class _Group:
    """Spans side by side: G spans padded on the right to Sq queries and Sk keys."""

    query_index: Tensor  # (G, Sq) rows of the query tensor
    key_index: Tensor  # (G, Sk) rows of the key tensor
    mask: Tensor | None  # bool, broadcastable to (G, 1, Sq, Sk); None: plain causal
    real: Tensor | None  # (rows,) positions in the flattened (G, Sq) that are not padding; None: all


class GroupedAttention:
    """Spans of similar shape, right-padded, through `scaled_dot_product_attention`.

    Padding stands to the right of every real token, so with a causal mask no real token sees it.

    Args:
        spans: What attends to what.
        device: Where to compute.
        alone: Whether each span is computed by itself, without padding.
    """

    arrays: Sequence[IndexArray] = ()

    def __init__(self, spans: Spans, device: torch.device, *, alone: bool = False) -> None:
        query_lengths = np.array([len(rows) for rows in spans.query_rows])
        key_lengths = np.array([len(rows) for rows in spans.key_rows])
        # Row of each span's first query in the query tensor, which holds the spans' queries one after the other.
        starts = np.concatenate([[0], np.cumsum(query_lengths)[:-1]])
        groups = [np.array([i]) for i in range(len(spans))] if alone else _group(query_lengths, key_lengths)
        self._groups = [
            _build_group(starts[g], query_lengths[g], [spans.key_rows[i] for i in g], device) for g in groups
        ]

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """See `Attention.bind`; its indices are there already."""

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """See `Attention`."""
        out = query.new_empty(query.shape)
        for group in self._groups:
            attended = _attend(group, query, key_value).flatten(0, 1)  # (G * Sq, heads, head_dim)
            rows = group.query_index.flatten()
            if group.real is not None:
                attended, rows = attended[group.real], rows[group.real]
            out.index_copy_(0, rows, attended)
        return out


def _attend(group: _Group, query: Tensor, key_value: Tensor) -> Tensor:
    """(G, Sq, heads, head_dim) of one group."""
    q = _gather(query, group.query_index)  # (G, heads, Sq, head_dim)
    k, v = (_gather(x, group.key_index) for x in key_value.unbind(1))  # (G, kv_heads, Sk, head_dim)
    attended = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=group.mask, is_causal=group.mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return attended.transpose(1, 2)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of (T, heads, head_dim) at (G, S) as (G, heads, S, head_dim)."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:]).transpose(1, 2)


def _group(query_lengths: IndexArray, key_lengths: IndexArray) -> list[IndexArray]:
    """Partition spans into groups of similar shape, within `PADDING_LIMIT` and `GROUP_SCORES`."""
    prefixes = key_lengths - query_lengths
    order = np.lexsort((-query_lengths, prefixes))  # equal prefixes together, longest first
    groups: list[list[int]] = []
    needed = tall = wide = 0
    for i in order.tolist():
        own, keys = int(query_lengths[i]), int(key_lengths[i])
        padded = (len(groups[-1]) + 1) * max(tall, own) * max(wide, keys) if groups else 0
        if groups and padded <= min(PADDING_LIMIT * (needed + own * keys), GROUP_SCORES):
            groups[-1].append(i)
            needed, tall, wide = needed + own * keys, max(tall, own), max(wide, keys)
        else:
            groups.append([i])
            needed, tall, wide = own * keys, own, keys
    return [np.array(group) for group in groups]


def _build_group(
    starts: IndexArray, query_lengths: IndexArray, key_rows: list[IndexArray], device: torch.device
) -> _Group:
    key_lengths = np.array([len(rows) for rows in key_rows])
    size, tall, wide = len(starts), int(query_lengths.max()), int(key_lengths.max())
    steps = np.arange(tall)
    # Padding repeats a span's last query row and row 0 of the keys; neither is used.
    query_index = starts[:, None] + np.minimum(steps, query_lengths[:, None] - 1)  # (G, Sq)
    key_index = np.zeros((size, wide), dtype=np.int64)  # (G, Sk)
    for row, keys in zip(key_index, key_rows, strict=True):
        row[: len(keys)] = keys
    real = np.flatnonzero(steps < query_lengths[:, None]) if (query_lengths < tall).any() else None
    return _Group(
        query_index=torch.from_numpy(query_index).to(device),
        key_index=torch.from_numpy(key_index).to(device),
        mask=_causal_mask(key_lengths - query_lengths, tall, wide, device),
        real=None if real is None else torch.from_numpy(real).to(device),
    )


def _causal_mask(prefixes: IndexArray, tall: int, wide: int, device: torch.device) -> Tensor | None:
    """Query i of a span with P prefix keys sees keys 0 … P + i. None where plain causal attention does the same."""
    if not prefixes.any():
        return None
    distinct = prefixes[:1] if (prefixes == prefixes[0]).all() else prefixes
    visible = torch.from_numpy(distinct[:, None] + np.arange(tall)).to(device)  # (1 or G, Sq)
    return (torch.arange(wide, device=device) <= visible[..., None])[:, None]  # (1 or G, 1, Sq, Sk)
