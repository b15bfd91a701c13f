"""Batch-invariant computing on the CPU: the same input has the same bits, whatever shares its batch.

A sum of floating-point numbers depends on its order, and kernels choose that by the shape of what they are given. So
nothing here gives a kernel a shape, or a thread a stretch, by which it would compute a row otherwise:

- Shared beginnings are not shared (`Strategy.share`).
- Products have a multiple of `ROWS_STEP` rows. In float32, oneDNN sums a single row in another order than one of many,
  and MKL one to three rows, also where they are what is left over when rows are dealt out to threads.
- Attention computes one input at a time: its shape, and so its kernel, is a matter of its own length.
- SiLU is cut between rows. torch gives each thread one stretch of an elementwise operation, which may end anywhere in a
  row, and what is left of a stretch after its last whole vector is computed by another `exp`. All other elementwise
  operations of a layer are the same in both, and sums of a row are computed in one thread.

That this is enough was measured, not derived (benchmarks/NOTES.md says where); `check` measures it again on the machine
that computes.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.attention import Attention, GroupedAttention, Spans
from qwen_retrieval.engine.decoder import Decoder, Strategy
from qwen_retrieval.engine.kernels import CpuKernels
from qwen_retrieval.engine.matrices import linear
from qwen_retrieval.engine.weights import Matrix
from qwen_retrieval.errors import ModelError
from qwen_retrieval.types import TokenIds

ROWS_STEP = 8
"""Products are padded to a multiple of this many rows."""

SERIAL_NUMBERS = 32_768
"""torch computes elementwise operations on fewer numbers than this in one thread (`at::internal::GRAIN_SIZE`)."""

CHECKED_LENGTHS = (1, 3, 17, 20, 33, 36, 131, 140, 290)
"""Tokens of the inputs that `check` computes: few and many rows, some nearly as many as others."""


def invariant_linear(x: Tensor, weight: Matrix) -> Tensor:
    """`linear` on the CPU; a row's bits do not depend on the other rows."""
    missing = -len(x) % ROWS_STEP
    if not missing:
        return linear(x, weight)
    return linear(torch.cat([x, x.new_zeros(missing, x.shape[1])]), weight)[: len(x)]


def plan_invariant_attention(spans: Spans, device: torch.device, dtype: torch.dtype) -> Attention:  # noqa: ARG001
    """Attention of one span at a time. Spans must have no shared prefixes."""
    return GroupedAttention(spans, device, alone=True)


class InvariantKernels(CpuKernels):
    """Elementwise operations on the CPU; a row's bits do not depend on the other rows."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Kernels.silu_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)  # (T, ffn) each
        for rows in _cut_between_rows(gate):
            torch.nn.functional.silu(rows, inplace=True)
        return gate.mul_(up)


def _cut_between_rows(x: Tensor) -> list[Tensor]:
    """Parts of (T, width) of which torch computes whole rows, the same number in every thread, or all in one."""
    threads, (rows, width) = torch.get_num_threads(), x.shape
    if threads == 1:
        return [x]
    even = rows - rows % threads
    if even * width < threads * SERIAL_NUMBERS:  # too little for all threads: how many take part may divide no row
        even = 0
    rest = torch.split(x[even:], max(1, (SERIAL_NUMBERS - 1) // width))
    return [x[:even], *rest]


INVARIANT = Strategy(InvariantKernels(), plan_invariant_attention, invariant_linear, share=False)
"""How a batch-invariant decoder computes."""


def check(decoder: Decoder, dtype: torch.dtype) -> None:
    """Compute some inputs alone and together, through the first and the last layer, on this machine as it is set now.

    Args:
        decoder: With all weights of a checkpoint and the strategy to be checked.
        dtype: What to compute in.

    Raises:
        ModelError: An input has other bits beside the others than alone.
    """
    layers = decoder.weights.layers
    weights = replace(decoder.weights, layers=[layers[0], layers[-1]])
    short = Decoder(weights, decoder.config, decoder.device, decoder.strategy)
    rng = random.Random(0)
    inputs = [[rng.randrange(decoder.config.vocab_size) for _ in range(length)] for length in CHECKED_LENGTHS]

    def rows(batch: list[TokenIds]) -> Tensor:
        return short.last_hidden_states(pack(batch, share=decoder.strategy.share), dtype).float()  # (n, hidden)

    alone = torch.cat([rows([ids]) for ids in inputs])
    if not np.array_equal(alone.numpy(), rows(inputs).numpy(), equal_nan=True):  # whoever loads refuses NaN
        name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"batch_invariant=True does not hold on this machine: computed in {name} by {torch.get_num_threads()} "
            "thread(s), an input has other last bits beside others than alone; use another dtype, fewer threads "
            "(OMP_NUM_THREADS), or batch_invariant=False"
        )
