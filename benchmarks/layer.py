"""One decoder layer of the 0.6B shape on the CPU, with and without each of its fast paths, in turn.

    python -m benchmarks.layer [PART ...] [--dtype bfloat16] [--rounds 9] [--threads 1] [--tokens 32 300 2000 4000]

The clock is the CPU time of one thread, so that other programs on the machine count little; with more threads it is
wall time, and the machine must be quiet. NOTES.md has what came out, and what was tried and dropped.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import linear as plain_linear

from qwen_retrieval.batching import PackedBatch, pack
from qwen_retrieval.engine import attention, decoder, int8, kernels, matrices
from qwen_retrieval.engine.invariance import INVARIANT
from qwen_retrieval.engine.weights import DecoderConfig, DecoderWeights, LayerWeights, Matrix
from qwen_retrieval.types import TokenIds

CONFIG = DecoderConfig(
    vocab_size=1000, hidden_size=1024, intermediate_size=3072, num_layers=1, num_heads=16, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tied_head=True,
)  # fmt: skip
CPU = torch.device("cpu")
PREFIX = 75
"""Tokens that the documents of one query share when they are reranked."""
HEAD, QUERY = 17, 16
"""Tokens of an instruction, and of a query after it."""


def inputs(tokens: int, length: int, prefix: int) -> list[TokenIds]:
    """Random inputs of 0.6 to 1.4 times `length` tokens after a shared prefix, about `tokens` in all (32 of 32: 41)."""
    rng = random.Random(0)
    shared = [rng.randrange(1000) for _ in range(prefix)]
    count = max(1, (tokens - prefix) // length)
    lengths = [round(length * rng.uniform(0.6, 1.4)) for _ in range(count)]
    return [shared + [rng.randrange(1000) for _ in range(n)] for n in lengths]


def random_layer(dtype: torch.dtype) -> LayerWeights:
    """Weights of the size that trained ones have."""

    def matrix(rows: int, columns: int) -> Tensor:
        return (0.02 * torch.randn(rows, columns)).to(dtype)

    def norm(size: int) -> Tensor:
        return (1 + 0.1 * torch.randn(size)).to(dtype)

    hidden, ffn = CONFIG.hidden_size, CONFIG.intermediate_size
    qkv = CONFIG.query_size + 2 * CONFIG.key_size
    heads = CONFIG.num_heads + CONFIG.num_kv_heads
    return LayerWeights(
        input_norm=norm(hidden), qkv=matrix(qkv, hidden), head_norms=norm(128).expand(heads, -1),
        output=matrix(hidden, CONFIG.query_size), mlp_norm=norm(hidden), gate_up=matrix(2 * ffn, hidden),
        down=matrix(hidden, ffn),
    )  # fmt: skip


def one_layer(
    layer: LayerWeights,
    batch: PackedBatch,
    dtype: torch.dtype,
    limit: float = attention.PADDING_LIMIT,
    strategy: decoder.Strategy | None = None,
) -> Callable[[], object]:
    """A decoder's layer on a batch, everything that is made once per batch made; `limit` is of attention's padding.

    What the batch is behind is random.
    """
    weights = DecoderWeights(torch.empty(0), [layer], torch.empty(0))
    model = decoder.Decoder(weights, CONFIG, CPU, strategy)
    table = kernels.rope_table(int(batch.positions.max()) + 1, 128, CONFIG.rope_theta, CPU)
    rope = kernels.Rope(table, torch.from_numpy(batch.positions))
    with mock.patch.object(attention, "PADDING_LIMIT", limit):
        planned = model.strategy.plan(attention.Spans.of_segments(batch), CPU, dtype)
    hidden = torch.randn(batch.computed_tokens, CONFIG.hidden_size).to(dtype)
    beginning = decoder.Beginning([torch.randn(batch.behind, 2, CONFIG.num_kv_heads, CONFIG.head_dim).to(dtype)])
    seen = partial(beginning.before, 0) if batch.behind else lambda own: own
    return lambda: model._layer(layer, hidden.clone(), None, rope, planned, seen)


class SlowHeads(kernels.CpuKernels):
    """The CPU's kernels, but `norm_rotate` takes each step over all tokens."""

    norm_rotate = kernels.EagerKernels.norm_rotate


def slow_linear(x: Tensor, weight: Matrix) -> Tensor:
    """`linear` of torch, whatever is faster; of plain matrices only."""
    assert isinstance(weight, Tensor)
    return plain_linear(x, weight.to(x.dtype))


def contenders(
    part: str, texts: list[TokenIds], head: int, dtype: torch.dtype
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The layer with and without `part`: one of its fast paths, or what it has not by default (the others).

    Args:
        part: One of `PARTS`.
        texts: The batch.
        head: How many tokens its inputs begin with in call after call.
        dtype: What is computed in.
    """
    plain, batch = random_layer(dtype), pack(texts)
    packed = replace(plain)
    matrices.pack_layers([packed, replace(plain)], dtype)  # the last one keeps a plain qkv
    fast = one_layer(packed, batch, dtype)
    if part == "beginning":
        return one_layer(packed, pack(texts, behind=head), dtype), fast
    if part == "invariant":  # which computes beginnings again, within a batch and in every batch
        invariant = one_layer(packed, pack(texts, share=False), dtype, strategy=INVARIANT)
        return invariant, one_layer(packed, pack(texts, behind=head), dtype)
    if part == "int8":
        quantized = replace(plain)
        int8.quantize_layer(quantized)
        return one_layer(quantized, batch, dtype), fast
    if part == "heads":
        return fast, one_layer(packed, batch, dtype, strategy=decoder.Strategy(SlowHeads()))
    if part == "groups":  # tried: attention in more groups, almost without padding
        return one_layer(packed, batch, dtype, limit=1.02), fast
    without = one_layer(plain, batch, dtype, strategy=decoder.Strategy(kernels.CpuKernels(), multiply=slow_linear))
    if part == "linear":
        return fast, without
    if part == "unpacked":  # weights cast to float32 on each call, or sliced: no packing, but oneDNN
        return one_layer(plain, batch, dtype), without
    slow = decoder.Strategy(SlowHeads(), multiply=slow_linear)
    return fast, one_layer(plain, batch, dtype, strategy=slow)  # all


def compare(fast: Callable[[], object], slow: Callable[[], object], rounds: int, clock: Callable[[], float]) -> str:
    """Median milliseconds of both, and the median, lowest and highest of the rounds' ratios."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        for run, times in zip((fast, slow), seconds, strict=True):
            start = clock()
            run()
            if round_:  # the first one warms up
                times.append(clock() - start)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    fast_ms, slow_ms = (1e3 * statistics.median(times) for times in seconds)
    return (
        f"{slow_ms:8.1f} ms without  {fast_ms:8.1f} ms with  "
        f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    )


PARTS = ("heads", "groups", "linear", "unpacked", "all", "beginning", "int8", "invariant")


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer", description="One layer, with and without a part."
    )
    parser.add_argument("parts", nargs="*", default=PARTS, help=" ".join(PARTS))
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 300, 2000, 4000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"a part must be one of {', '.join(PARTS)}, but got {', '.join(unknown)}")
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    workloads = [(f"documents, {n} asked for", inputs(n, 80 if n > 80 else n, 0), 0) for n in options.tokens]
    workloads += [("one query", inputs(HEAD + QUERY, QUERY, HEAD), HEAD)]
    workloads += [(f"reranking {n} x 80", inputs(n * 80 + PREFIX, 80, PREFIX), PREFIX) for n in (20, 50)]
    for part in options.parts:
        for name in options.dtype:
            dtype = getattr(torch, name)
            for title, texts, head in workloads:
                if part == "beginning" and not head:
                    continue
                torch.manual_seed(0)
                found = compare(*contenders(part, texts, head, dtype), options.rounds, clock)
                print(f"{part:9} {name:9} {title:25} {pack(texts).computed_tokens:5,} tokens {found}", flush=True)


if __name__ == "__main__":
    main()
