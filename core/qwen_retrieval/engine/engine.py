"""The engines: token ids in, numbers out, and what must not go wrong in between.

A batch that does not fit into the device's memory is halved, never dropped; rows that come out non-finite are
recomputed in float32; if that does not help, an error names them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.decoder import Decoder
from qwen_retrieval.engine.matrices import pack_layers
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, load_decoder, load_head_rows
from qwen_retrieval.errors import CorruptCheckpointError, NonFiniteError, OutOfMemoryError
from qwen_retrieval.types import FloatArray, TokenIds

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

GPU_BATCH_TOKENS = 16_384
"""Default token budget of a batch on a GPU: enough to fill an H100, as in TEI and vLLM."""

CPU_BATCH_TOKENS = 4_096
"""Default token budget on a CPU: matrix products are as fast as they get, and progress stays visible."""


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
        ValueError: The name is unknown.
    """
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be "auto", "float32", "bfloat16" or "float16", but got {dtype!r}')
    if dtype == "float16":
        warnings.warn(
            "float16 overflows in Qwen3 8B models (https://github.com/QwenLM/Qwen3-Embedding/issues/164); rows that "
            "do are recomputed in float32, but bfloat16 is the safe half precision",
            UserWarning,
            stacklevel=2,
        )
    return DTYPES[dtype]


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
    bfloat16, exact for the weights, and the memory of half precision.
    """
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
    """Tokens that went through the layers, after sharing prefixes."""


class PackedEngine:
    """The part that embedding and reranking share: packing, memory, finite results.

    Args:
        decoder: The loaded decoder.
        dtype: What to compute in.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        self.decoder = decoder
        self.dtype = dtype
        self.counters = WorkCounters()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.device

    def hidden_states(self, batch: list[TokenIds]) -> Tensor:
        """The hidden state of each input's last token: (n, hidden) float32, finite, in input order.

        Raises:
            NonFiniteError: Rows are NaN or infinite in float32 too.
            OutOfMemoryError: One single input does not fit.
        """
        hidden = self._forward(batch, self.dtype)
        bad = torch.nonzero(~hidden.isfinite().all(dim=1)).flatten().tolist()
        if bad and self.dtype != torch.float32:
            hidden[bad] = self._forward([batch[i] for i in bad], torch.float32)
            bad = torch.nonzero(~hidden.isfinite().all(dim=1)).flatten().tolist()
        if bad:
            raise NonFiniteError(tuple(bad))
        return hidden

    def _forward(self, batch: list[TokenIds], dtype: torch.dtype) -> Tensor:
        """One pass, or several smaller ones if the device's memory is too small."""
        return torch.cat(halve_on_out_of_memory(batch, lambda part: self._pass(part, dtype)))

    def _pass(self, batch: list[TokenIds], dtype: torch.dtype) -> Tensor:
        packed = pack(batch)
        hidden = self.decoder.last_hidden_states(packed, dtype).float()  # (n, hidden)
        self.counters.forward_passes += 1
        self.counters.tokens += packed.tokens
        self.counters.computed_tokens += packed.computed_tokens
        return hidden


def halve_on_out_of_memory(batch: list[TokenIds], run: Callable[[list[TokenIds]], Tensor]) -> list[Tensor]:
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
        return self.hidden_states(batch).cpu().numpy()


class TorchRerankingEngine(PackedEngine):
    """A `RerankingEngine` on torch: a head of two float32 rows instead of the whole vocabulary.

    Args:
        decoder: The loaded decoder.
        dtype: What to compute in.
        yes_no: (2, hidden) float32, the head's rows of "yes" and "no".
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype, yes_no: Tensor) -> None:
        super().__init__(decoder, dtype)
        # sigmoid(yes - no) is the softmax over the two. The difference is taken of the rows, in float32: taken of two
        # bfloat16 logits near 16 it would come in steps of 0.125.
        self._direction = yes_no[0] - yes_no[1]  # (hidden,)
        if not bool(self._direction.norm() > 0):
            raise CorruptCheckpointError('the head\'s rows of "yes" and "no" are equal, so every score would be 0.5')

    def score(self, batch: list[TokenIds]) -> FloatArray:
        """See `RerankingEngine.score`."""
        return (self.hidden_states(batch) @ self._direction).cpu().numpy()


def load_embedding_engine(folder: Path, config: DecoderConfig, device: str, dtype: str) -> TorchEmbeddingEngine:
    """Load the decoder in `folder`; see `resolve_device` and `resolve_dtype`."""
    place, stored = _resolve(device, dtype)
    with Checkpoint(folder) as checkpoint:
        decoder = _load(checkpoint, config, place, stored)
    return TorchEmbeddingEngine(decoder, compute_dtype(stored, place))


def load_reranking_engine(
    folder: Path, config: DecoderConfig, device: str, dtype: str, *, yes_id: int, no_id: int
) -> TorchRerankingEngine:
    """Load the decoder and the two rows of the head in `folder`; see `resolve_device` and `resolve_dtype`."""
    place, stored = _resolve(device, dtype)
    with Checkpoint(folder) as checkpoint:
        decoder = _load(checkpoint, config, place, stored)
        yes_no = load_head_rows(checkpoint, config, [yes_id, no_id], place)
    return TorchRerankingEngine(decoder, compute_dtype(stored, place), yes_no)


def _resolve(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    place = resolve_device(device)
    return place, resolve_dtype(dtype, place)


def _load(checkpoint: Checkpoint, config: DecoderConfig, device: torch.device, stored: torch.dtype) -> Decoder:
    """The decoder, its matrices laid out for what this machine computes in."""
    weights = load_decoder(checkpoint, config, device, stored)
    pack_layers(weights.layers, compute_dtype(stored, device))
    return Decoder(weights, config, device)


def default_batch_tokens(device: torch.device) -> int:
    """The token budget of a batch where the user sets none."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
