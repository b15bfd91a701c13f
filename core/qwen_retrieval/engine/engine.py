"""The engines: token ids in, numbers out, and what must not go wrong in between.

A batch that does not fit into the device's memory is halved, never dropped; rows that come out non-finite are
recomputed in float32; if that does not help, an error names them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from qwen_retrieval.batching import pack
from qwen_retrieval.engine import float8, int8, invariance
from qwen_retrieval.engine.attention import supports_flash
from qwen_retrieval.engine.beginnings import Beginnings
from qwen_retrieval.engine.decoder import Beginning, Decoder
from qwen_retrieval.engine.graphs import GraphedPasses
from qwen_retrieval.engine.matrices import pack_layers
from qwen_retrieval.engine.staging import Download
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, load_decoder, load_head_rows
from qwen_retrieval.errors import CorruptCheckpointError, NonFiniteError, OutOfMemoryError
from qwen_retrieval.types import FloatArray, TokenIds

Result = TypeVar("Result")

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}

QUANTIZED = {torch.int8: int8, torch.float8_e4m3fn: float8}
"""Dtypes of matrices that are quantized while they are loaded, and the module of each."""

GPU_BATCH_TOKENS = 16_384
"""Default token budget of a batch on a GPU: enough to fill an H100, as in TEI and vLLM."""

MIN_BATCH_TOKENS = 512
"""Budget on a device whose memory is nearly full; a batch that does not fit even so is halved."""

MEMORY_SHARE = 0.5
"""Part of the free memory that a batch may take: other programs, and fragments, take theirs."""

CPU_BATCH_TOKENS = 2_048
"""Default token budget on a CPU: as fast as 4,096, and whoever comes during a batch waits half as long. 1,024 costs 5 %
where documents share a prefix."""


def resolve_device(device: str) -> torch.device:
    """A torch device from its name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: The name is unknown, or this machine has no such device.
    """
    if device == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", but got {device!r}') from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA device(s) here")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device is "mps", but torch finds no Metal device here')
    if resolved.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", but got {device!r}')
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """A torch dtype from its name; "auto" takes bfloat16 where the device computes it natively, else float32.

    Raises:
        ValueError: The name is unknown, or that of a quantized dtype that cannot be computed here.
    """
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise ValueError(
            f'dtype must be "auto", "float32", "bfloat16", "float16", "int8" or "float8", but got {dtype!r}'
        )
    if DTYPES[dtype] in QUANTIZED:
        QUANTIZED[DTYPES[dtype]].check_supported(device)
    if dtype == "float16":
        warnings.warn(
            "float16 overflows in Qwen3 8B models (https://github.com/QwenLM/Qwen3-Embedding/issues/164); rows that "
            "do are recomputed in float32, but bfloat16 is the safe half precision",
            UserWarning,
            stacklevel=2,
        )
    return DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `resolve_dtype` takes."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # oneDNN says that it supports bfloat16 wherever it can emulate it, several times slower than float32.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What to compute in, given the dtype that the weights are kept in.

    A CPU without native half precision casts weights to float32 layer by layer: three times faster than its emulated
    bfloat16, exact for the weights, and the memory of half precision. What is not kept in 8 bits is computed in the
    dtype that is the fastest.
    """
    if stored in QUANTIZED:
        return resolve_dtype("auto", device)
    half = stored in (torch.bfloat16, torch.float16)
    native = stored == torch.bfloat16 and _computes_bfloat16(device)
    return torch.float32 if half and device.type == "cpu" and not native else stored


@dataclass(slots=True)
class WorkCounters:
    """What an engine has computed so far: independent of the machine, so that tests can assert it."""

    forward_passes: int = 0
    tokens: int = 0
    """Tokens of all inputs, as given."""
    computed_tokens: int = 0
    """Tokens that went through the layers, after sharing prefixes and without those that were computed earlier."""


class PackedEngine:
    """The part that embedding and reranking share: packing, memory, finite results.

    Safe to use from several threads. While one waits for its rows, the next may already give the device work.

    Args:
        decoder: The loaded decoder.
        dtype: What to compute in.
        small: Passes of small batches, where they have a faster way.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype, small: GraphedPasses | None = None) -> None:
        self.decoder = decoder
        self.dtype = dtype
        self.counters = WorkCounters()
        self._small = small
        self._beginnings = Beginnings() if decoder.device.type == "cpu" and decoder.strategy.share else None
        self._launching = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.device

    def expect(self, beginning: TokenIds) -> None:
        """Inputs with this beginning are about to come, call after call: where it pays, it is computed once for all.

        Args:
            beginning: Token ids; too few or too many are ignored.
        """
        if self._beginnings is not None:
            self._beginnings.expect(beginning)

    def _compute(self, batch: list[TokenIds]) -> FloatArray:
        """The batch's rows: (n, …) float32, finite, in input order.

        Raises:
            NonFiniteError: Rows are NaN or infinite in float32 too.
            OutOfMemoryError: One single input does not fit.
        """
        rows = self._rows(batch, self.dtype)
        bad = _non_finite(rows)
        if bad and self.dtype != torch.float32:
            rows = rows.copy()
            rows[bad] = self._rows([batch[i] for i in bad], torch.float32)
            bad = _non_finite(rows)
        if bad:
            raise NonFiniteError(tuple(bad))
        return rows

    def _rows(self, batch: list[TokenIds], dtype: torch.dtype) -> FloatArray:
        """One pass, or several smaller ones if the device's memory is too small."""
        parts = halve_on_out_of_memory(batch, lambda part: self._pass(part, dtype))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _pass(self, batch: list[TokenIds], dtype: torch.dtype) -> FloatArray:
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with self._launching, on_device:  # what is launched within is computed in this order
            _use_threads(self.decoder.strategy.threads)
            hidden = self._small.last_hidden_states(batch) if self._small and dtype == self.dtype else None
            if hidden is None:
                beginning = self._beginning(batch) if dtype == self.dtype else None
                behind = 0 if beginning is None else len(beginning)
                packed = pack(batch, share=self.decoder.strategy.share, behind=behind)
                computed = packed.computed_tokens
                hidden = self.decoder.last_hidden_states(packed, dtype, beginning)  # (n, hidden)
            else:
                computed = sum(map(len, batch))
            download = Download(self._finish(hidden.float()))
            self.counters.forward_passes += 1
            self.counters.tokens += sum(map(len, batch))
            self.counters.computed_tokens += computed
        return download.wait()

    def _beginning(self, batch: list[TokenIds]) -> Beginning | None:
        """What all inputs begin with, if that was expected; computed now if they are the first."""
        expected = self._beginnings.of(batch) if self._beginnings else None
        if expected is None:
            return None
        if expected.computed is None:
            expected.computed = self.decoder.beginning(expected.tokens, self.dtype)
            self.counters.forward_passes += 1
            self.counters.computed_tokens += len(expected.tokens)
        return expected.computed

    def _finish(self, hidden: Tensor) -> Tensor:
        """What is asked for, made of the last tokens' hidden states: (n, hidden) float32 -> (n, …) float32."""
        return hidden


def _use_threads(wanted: int | None) -> None:
    """Set torch's number of threads if it is another: in a thread that begins now, it is the process's last setting."""
    if wanted is not None and torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def _non_finite(rows: FloatArray) -> list[int]:
    """Which rows hold NaN or infinity."""
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    return np.flatnonzero(~finite).tolist()


def halve_on_out_of_memory(batch: list[TokenIds], run: Callable[[list[TokenIds]], Result]) -> list[Result]:
    """Results of `run` on `batch`, in order, in as few parts as the memory allows.

    Raises:
        OutOfMemoryError: `run` fails for one single input.
    """
    try:
        return [run(batch)]
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            msg = (
                f"an input of {len(batch[0])} tokens does not fit into the device's memory; "
                "lower max_length, or free memory that other programs hold"
            )
            raise OutOfMemoryError(msg) from error
    # Outside the except block: the traceback there keeps the failed pass's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return halve_on_out_of_memory(batch[:middle], run) + halve_on_out_of_memory(batch[middle:], run)


class TorchEmbeddingEngine(PackedEngine):
    """An `EmbeddingEngine` on torch."""

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        """See `EmbeddingEngine.embed`."""
        return self._compute(batch)


class TorchRerankingEngine(PackedEngine):
    """A `RerankingEngine` on torch: a head of two float32 rows instead of the whole vocabulary.

    Args:
        decoder: The loaded decoder.
        dtype: What to compute in.
        yes_no: (2, hidden) float32, the head's rows of "yes" and "no".
        small: See `PackedEngine`.
    """

    def __init__(
        self, decoder: Decoder, dtype: torch.dtype, yes_no: Tensor, small: GraphedPasses | None = None
    ) -> None:
        super().__init__(decoder, dtype, small)
        # sigmoid(yes - no) is the softmax over the two. The difference is taken of the rows, in float32: taken of two
        # bfloat16 logits near 16 it would come in steps of 0.125.
        self._direction = yes_no[0] - yes_no[1]  # (hidden,)
        if not bool(self._direction.norm() > 0):
            raise CorruptCheckpointError('the head\'s rows of "yes" and "no" are equal, so every score would be 0.5')

    def score(self, batch: list[TokenIds]) -> FloatArray:
        """See `RerankingEngine.score`."""
        return self._compute(batch)

    def _finish(self, hidden: Tensor) -> Tensor:
        # No matrix product: its kernel, and with it the last bits, would depend on the number of rows.
        return (hidden * self._direction).sum(dim=1)  # (n,)


def load_embedding_engine(
    folder: Path, config: DecoderConfig, device: str, dtype: str, *, batch_invariant: bool = False
) -> TorchEmbeddingEngine:
    """Load the decoder in `folder`; see `resolve_device`, `resolve_dtype` and, for `batch_invariant`, `invariance`."""
    place, stored = _resolve(device, dtype)
    computed = compute_dtype(stored, place)
    with Checkpoint(folder) as checkpoint:
        decoder = _load(checkpoint, config, place, stored, batch_invariant=batch_invariant)
    return TorchEmbeddingEngine(decoder, computed, _small_passes(decoder, computed))


def load_reranking_engine(
    folder: Path,
    config: DecoderConfig,
    device: str,
    dtype: str,
    *,
    yes_id: int,
    no_id: int,
    batch_invariant: bool = False,
) -> TorchRerankingEngine:
    """Load the decoder and the two rows of the head in `folder`; the same as `load_embedding_engine`."""
    place, stored = _resolve(device, dtype)
    computed = compute_dtype(stored, place)
    with Checkpoint(folder) as checkpoint:
        decoder = _load(checkpoint, config, place, stored, batch_invariant=batch_invariant)
        yes_no = load_head_rows(checkpoint, config, [yes_id, no_id], place)
    return TorchRerankingEngine(decoder, computed, yes_no, _small_passes(decoder, computed))


def _resolve(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    place = resolve_device(device)
    return place, resolve_dtype(dtype, place)


def _load(
    checkpoint: Checkpoint, config: DecoderConfig, device: torch.device, stored: torch.dtype, *, batch_invariant: bool
) -> Decoder:
    """The decoder, its matrices laid out for what this machine computes in."""
    computed = compute_dtype(stored, device)
    if stored in QUANTIZED:
        return Decoder(
            load_decoder(checkpoint, config, device, computed, QUANTIZED[stored].quantize_layer), config, device
        )
    weights = load_decoder(checkpoint, config, device, stored)
    pack_layers(weights.layers, computed)
    if not batch_invariant:
        return Decoder(weights, config, device)
    decoder = Decoder(weights, config, device, replace(invariance.INVARIANT, threads=torch.get_num_threads()))
    invariance.check(decoder, computed)
    return decoder


def _small_passes(decoder: Decoder, dtype: torch.dtype) -> GraphedPasses | None:
    """CUDA graphs, where the flash kernel computes: its bounds are data, so that one graph serves any small batch."""
    flash = decoder.device.type == "cuda" and supports_flash(decoder.device, dtype)
    return GraphedPasses(decoder, dtype) if flash else None


def default_batch_tokens(device: torch.device, config: DecoderConfig) -> int:
    """The token budget of a batch where the user sets none: what suits the device, and fits into its free memory."""
    if device.type == "cpu":
        return CPU_BATCH_TOKENS
    if device.type != "cuda":
        return GPU_BATCH_TOKENS
    return batch_tokens_within(torch.cuda.mem_get_info(device)[0], config)


def batch_tokens_within(free: int, config: DecoderConfig) -> int:
    """The token budget of a batch on a GPU with `free` bytes of memory left."""
    return max(MIN_BATCH_TOKENS, min(GPU_BATCH_TOKENS, int(free * MEMORY_SHARE) // activation_bytes(config)))


def activation_bytes(config: DecoderConfig) -> int:
    """Bytes that a token of a batch takes on its way through a layer in half precision, at most.

    Residual stream, what is to be added to it and its norm; queries, keys and values, and a copy of keys and values
    behind a shared prefix as long as the input; attention's result; the gate, the up and their product.
    """
    values = 3 * config.hidden_size + 2 * config.query_size + 4 * config.key_size + 3 * config.intermediate_size
    return 2 * values
