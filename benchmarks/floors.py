"""The least time that the hardware could take: needed FLOPs over its measured rate, or weights over its bandwidth.

What is needed: the matrices and the causal attention of every token once; what inputs of one call begin with in common
counts once. Norms, rotations and activations count nothing. That the last layer is needed of the last tokens only
(2.6 to 3.3 % less) is not taken off, so that the numbers are those of a plain decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qwen_retrieval.specs import Checkpoint
from qwen_retrieval.types import TokenIds

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""How wide the square matrices are whose product is the ceiling: beyond that it gets no faster."""

COPY = {"cpu": 1 << 28, "cuda": 1 << 31}
"""Bytes that are copied: more than any cache holds."""


def linear_parameters(sizes: Checkpoint) -> int:
    """Weights of the decoder's matrices: queries, keys, values, output, gate, up and down of all layers."""
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    attention = sizes.hidden_size * (query + 2 * key) + query * sizes.hidden_size
    return sizes.layers * (attention + 3 * sizes.hidden_size * sizes.ffn_size)


def attention_flops(sizes: Checkpoint, start: int, stop: int) -> int:
    """FLOPs of causal attention for the tokens at positions `start` to `stop` - 1 of an input.

    The token at position p meets p + 1 keys and as many values: 2 FLOPs each, per head and dimension.
    """
    keys = (stop * (stop + 1) - start * (start + 1)) // 2
    return 4 * sizes.heads * sizes.head_dim * sizes.layers * keys


@dataclass(frozen=True, slots=True)
class Need:
    """What one or more calls need.

    Attributes:
        given: Tokens of all inputs.
        tokens: Tokens that have to be computed, common beginnings once per call.
        flops: Of these tokens.
    """

    given: int
    tokens: int
    flops: int


def need(sizes: Checkpoint, calls: Sequence[Sequence[TokenIds]]) -> Need:
    """What has to be computed for the inputs of each call."""
    given = tokens = flops = 0
    for inputs in calls:
        given += sum(map(len, inputs))
        for start, stop in _new_spans(inputs):
            tokens += stop - start
            flops += 2 * linear_parameters(sizes) * (stop - start) + attention_flops(sizes, start, stop)
    return Need(given, tokens, flops)


def _new_spans(inputs: Sequence[TokenIds]) -> list[tuple[int, int]]:
    """Of each input in lexicographic order, the positions that the one before it does not have."""
    spans: list[tuple[int, int]] = []
    before: TokenIds = []
    for ids in sorted(inputs):
        common = next(
            (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids))
        )
        spans.append((common, len(ids)))
        before = ids
    return spans


@dataclass(slots=True)
class Ceiling:
    """The best rates of this machine that were seen during the run.

    Attributes:
        flops: FLOP/s of a matrix product of random numbers, by dtype.
        bytes: Bytes read and written per second by a copy.
    """

    flops: dict[str, float]
    bytes: float = 0.0

    def measure(self, device: str) -> None:
        """Measure again, and keep what is better."""
        for name, best in self.flops.items():
            self.flops[name] = max(best, matmul_rate(getattr(torch, name), device))
        self.bytes = max(self.bytes, copy_rate(device))

    def seconds(self, flops: int, calls: int = 0, weight_bytes: int = 0) -> float:
        """The floor: FLOPs at the better rate, or the time to read the weights once per call, whichever is longer.

        A CPU without native bfloat16 computes bfloat16 checkpoints in float32, so the rate is the best of all.
        """
        return max(flops / max(self.flops.values()), calls * weight_bytes / self.bytes)


def matmul_rate(dtype: torch.dtype, device: str = "cpu", size: int | None = None) -> float:
    """FLOP/s of a square matrix product of random numbers, `PRODUCT` wide unless `size` says otherwise."""
    size = size or PRODUCT["cpu" if device == "cpu" else "cuda"]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: a @ b, device)


def copy_rate(device: str = "cpu", size: int | None = None) -> float:
    """Bytes read and written per second by a copy of `COPY` bytes, or of `size`."""
    size = size or COPY["cpu" if device == "cpu" else "cuda"]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(run: Callable[[], object], device: str) -> float:
    best = float("inf")
    for _ in range(4):  # the first one also pays for kernels and pages
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def synchronize(device: str) -> None:
    """Wait for what a GPU has been asked to do."""
    if device != "cpu":
        torch.cuda.synchronize(device)
