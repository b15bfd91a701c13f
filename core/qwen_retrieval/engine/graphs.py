"""Small batches as CUDA graphs: hundreds of kernels are launched as one.

A forward pass of a few queries is over before the host has launched its kernels one by one. A graph records them once,
with fixed shapes and fixed memory; a batch is copied into that memory, padded to the next recorded size, and replayed.
Padding stands behind the inputs as a span of its own, which nobody attends to, so results are those of the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from qwen_retrieval.batching import IndexArray
from qwen_retrieval.engine.decoder import Decoder, StagedBatch
from qwen_retrieval.engine.flash_attention import Bounds, Varlen, flash_varlen
from qwen_retrieval.engine.staging import overwrite
from qwen_retrieval.types import TokenIds

_log = logging.getLogger(__name__)

SIZES = (32, 64, 128, 256, 512)
"""Tokens of the recorded batches. Larger ones keep the device busy longer than their launches take."""

MAX_INPUTS = 8
"""Most inputs of a recorded batch."""

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Records a computation: how to repeat it, and the tensor in which its result then stands."""


def record_cuda_graph(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A `Recorder` that captures a CUDA graph on the current device."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute()  # whatever is compiled, allocated or chosen on the first run must not be part of the graph
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other models may be at work in other threads; "thread_local" forbids only this one what a capture forbids.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = compute()
    return graph.replay, result


class GraphedPasses:
    """Forward passes of small batches, each size recorded when it is first needed.

    Not safe to use from several threads at once: a result is valid until the next call.

    Args:
        decoder: On the current device.
        dtype: What to compute in.
        record: How a pass is recorded.
        varlen: The attention operator.
    """

    def __init__(
        self,
        decoder: Decoder,
        dtype: torch.dtype,
        *,
        record: Recorder = record_cuda_graph,
        varlen: Varlen = flash_varlen,
    ) -> None:
        self._decoder = decoder
        self._dtype = dtype
        self._record = record
        self._varlen = varlen
        self._recorded: dict[int, _Recorded] = {}
        self._broken = False

    def last_hidden_states(self, batch: list[TokenIds]) -> Tensor | None:
        """What `Decoder.last_hidden_states` returns; None for batches that are not small, or if recording fails.

        Args:
            batch: n inputs of at least one token each. A beginning that they share is computed for each of them.
        """
        tokens = sum(map(len, batch))
        size = next((size for size in SIZES if tokens <= size), None)
        if size is None or not 0 < len(batch) <= MAX_INPUTS or self._broken:
            return None
        if size not in self._recorded and not self._try_recording(size):
            return None
        return self._recorded[size].run(batch)

    def _try_recording(self, size: int) -> bool:
        try:
            self._recorded[size] = _Recorded(self._decoder, size, self._dtype, self._record, self._varlen)
        except torch.OutOfMemoryError:
            return False
        except RuntimeError as error:
            _log.warning("computing small batches without CUDA graphs, more slowly: %s", error)
            self._broken = True
        return not self._broken


class _Recorded:
    """The pass of one size: its input's memory, its replay, its output's memory."""

    def __init__(self, decoder: Decoder, size: int, dtype: torch.dtype, record: Recorder, varlen: Varlen) -> None:
        self._size = size
        with torch.inference_mode():
            # token ids | positions | row of each last token | bounds of the inputs and of the padding
            sizes = [size, size, MAX_INPUTS, MAX_INPUTS + 2]
            self._arena = torch.zeros(sum(sizes), dtype=torch.int32, device=decoder.device)
            overwrite(self._arena, self._lay_out([[0]]))
            token_ids, positions, last, bounds = torch.split(self._arena, sizes)
            one_each = torch.arange(MAX_INPUTS + 1, dtype=torch.int32, device=decoder.device)
            every = _FixedAttention(varlen, Bounds(bounds, bounds, size, size))
            of_last = _FixedAttention(varlen, Bounds(one_each, bounds[: MAX_INPUTS + 1], 1, size))
            self._batch = StagedBatch(token_ids, positions, last, size, every, of_last)
            self._replay, self._hidden = record(lambda: decoder.forward(self._batch, dtype))

    @torch.inference_mode()
    def run(self, batch: list[TokenIds]) -> Tensor:
        """(n, hidden) of a batch that fits, in memory that the next run overwrites."""
        overwrite(self._arena, self._lay_out(batch))
        self._replay()
        return self._hidden[: len(batch)]

    def _lay_out(self, batch: list[TokenIds]) -> list[IndexArray]:
        """The batch as the arena holds it; inputs that are missing have no tokens, and their last row is any."""
        lengths = [*map(len, batch), *[0] * (MAX_INPUTS - len(batch))]
        ends = list(accumulate(lengths))
        padding = self._size - ends[-1]
        ids = np.fromiter(chain(chain.from_iterable(batch), [0] * padding), np.int64, self._size)
        positions = np.concatenate([np.arange(length) for length in (*lengths, padding)])
        last = np.maximum(np.array(ends) - 1, 0)
        return [ids, positions, last, np.array([0, *ends, self._size])]


@dataclass(frozen=True, slots=True)
class _FixedAttention:
    """An `Attention` over spans whose bounds stand in the arena and change there."""

    varlen: Varlen
    bounds: Bounds
    arrays: Sequence[IndexArray] = ()

    def bind(self, tensors: Iterator[Tensor]) -> None:
        """See `Attention.bind`."""

    def __call__(self, query: Tensor, key_value: Tensor) -> Tensor:
        """See `Attention`."""
        key, value = key_value.unbind(1)
        return self.varlen(query, key, value, self.bounds, causal=True)[0]
