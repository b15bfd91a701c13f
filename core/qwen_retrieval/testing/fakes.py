"""A tokenizer and engines that need neither torch nor a download, and give the same numbers on every machine.

The numbers mean little, but not nothing: texts that share many letters come out closer than texts that share few, and
an instruction changes the result.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from qwen_retrieval.specs import DEMO_EMBEDDING, DEMO_RERANKER, EmbeddingSpec, RerankingSpec
from qwen_retrieval.types import FloatArray, TokenIds

_CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_CONTROL_IDS = {token: 256 + index for index, token in enumerate(_CONTROL_TOKENS)}

# Odd multipliers that spread three neighbouring ids over 64 bits; any would do.
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_RERANK_WIDTH = 1024

FailOn = Callable[[list[TokenIds]], BaseException | None]
"""Looks at a batch before it is computed, and returns the exception that the engine shall raise, or None."""


class ByteTokenizer:
    """Bytes as tokens: ids 0 to 255 are the bytes of UTF-8, and the control tokens come after them."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 256 + len(_CONTROL_TOKENS)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens of the Qwen templates, in the order of their ids, from 256."""
        return _CONTROL_TOKENS

    def encode(self, texts: Sequence[str], *, control_tokens: bool) -> list[TokenIds]:
        """Encode each text; control-token strings become control ids only if `control_tokens` is true."""
        return [self._parse(text) if control_tokens else list(text.encode()) for text in texts]

    def decode(self, ids: TokenIds) -> str:
        """The text of `ids`, control tokens included; bytes that are no UTF-8 become U+FFFD."""
        pieces = (bytes([id_]) if id_ < 256 else _CONTROL_TOKENS[id_ - 256].encode() for id_ in ids)
        return b"".join(pieces).decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        """The id of a control token or of a one-byte text, else None."""
        if token in _CONTROL_IDS:
            return _CONTROL_IDS[token]
        encoded = token.encode()
        return encoded[0] if len(encoded) == 1 else None

    def _parse(self, text: str) -> TokenIds:
        ids: TokenIds = []
        for piece in re.split(f"({'|'.join(map(re.escape, _CONTROL_TOKENS))})", text):
            ids += [_CONTROL_IDS[piece]] if piece in _CONTROL_IDS else piece.encode()
        return ids


class FakeEmbeddingEngine:
    """An `EmbeddingEngine` that counts which letters follow each other.

    Args:
        hidden_size: Length of the vectors.
        delay: Seconds that each call takes.
        fail_on: Decides whether a call fails, and with what.

    Attributes:
        hidden_size: Length of the vectors.
        calls: How often `embed` was called, failed calls included.
        inputs: How many inputs it was given.
        tokens: How many tokens it was given.
    """

    def __init__(self, hidden_size: int = 64, *, delay: float = 0.0, fail_on: FailOn | None = None) -> None:
        self.hidden_size = hidden_size
        self.calls = 0
        self.inputs = 0
        self.tokens = 0
        self._delay = delay
        self._fail_on = fail_on

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        """One vector per input, the same whatever else is in the batch.

        Args:
            batch: n inputs of at least one token each.

        Returns:
            (n, hidden_size) float32, in input order, not normalised; (0, hidden_size) for none.
        """
        self.calls += 1
        self.inputs += len(batch)
        self.tokens += sum(map(len, batch))
        _pretend(batch, self._delay, self._fail_on)
        vectors = np.zeros((len(batch), self.hidden_size), dtype=np.float32)
        for row, ids in enumerate(batch):
            before, text = _split_last(ids, b"\nQuery:")
            # the instruction counts, but little, as in a real model
            vectors[row] = _bag(text, self.hidden_size) + 0.1 * _bag(before, self.hidden_size)
        return vectors


class FakeRerankingEngine:
    """A `RerankingEngine` that compares which letters follow each other in the query and in the document.

    Args:
        delay: Seconds that each call takes.
        fail_on: Decides whether a call fails, and with what.

    Attributes:
        calls: How often `score` was called, failed calls included.
        inputs: How many inputs it was given.
        tokens: How many tokens it was given.
    """

    def __init__(self, *, delay: float = 0.0, fail_on: FailOn | None = None) -> None:
        self.calls = 0
        self.inputs = 0
        self.tokens = 0
        self._delay = delay
        self._fail_on = fail_on

    def score(self, batch: list[TokenIds]) -> FloatArray:
        """One number per input, the same whatever else is in the batch.

        Args:
            batch: n inputs of at least one token each.

        Returns:
            (n,) float32 in [-4, 5), in input order; (0,) for none.
        """
        self.calls += 1
        self.inputs += len(batch)
        self.tokens += sum(map(len, batch))
        _pretend(batch, self._delay, self._fail_on)
        return np.array([_overlap(ids) for ids in batch], dtype=np.float32)


def fake_embedding_spec(*, hidden_size: int = 64, max_length: int = 32_768) -> EmbeddingSpec:
    """A specification that fits `ByteTokenizer` and `FakeEmbeddingEngine`, with vectors of 8 dimensions and more."""
    family = replace(
        DEMO_EMBEDDING, name="fake embedding", end_token_id=_CONTROL_IDS["<|endoftext|>"], min_dimensions=8
    )
    return EmbeddingSpec("fake-embedding", family, hidden_size, max_length)


def fake_reranking_spec(*, max_length: int = 32_768) -> RerankingSpec:
    """A specification that fits `ByteTokenizer` and `FakeRerankingEngine`; its answers are "y" and "n"."""
    family = replace(
        DEMO_RERANKER,
        name="fake reranker",
        end_token_id=_CONTROL_IDS["<|endoftext|>"],
        yes_token="y",
        no_token="n",
        control_tokens=tuple((token, _CONTROL_IDS[token]) for token in _CONTROL_TOKENS[1:]),
    )
    return RerankingSpec("fake-reranker", family, max_length)


def _pretend(batch: list[TokenIds], delay: float, fail_on: FailOn | None) -> None:
    if delay:
        time.sleep(delay)
    if fail_on is not None and (error := fail_on(batch)) is not None:
        raise error


def _split_last(ids: TokenIds, label: bytes) -> tuple[TokenIds, TokenIds]:
    """What stands before the last `label`, and what comes after it; without it, nothing and everything."""
    text = "".join(map(chr, ids))  # ids as code points, to search in them
    before, _, after = text.rpartition(label.decode("ascii"))
    return [ord(letter) for letter in before], [ord(letter) for letter in after]


def _bag(ids: TokenIds, width: int) -> npt.NDArray[np.float64]:
    """Each three neighbouring ids add 1 or -1 at one of `width` places; (width,), zero only for no ids."""
    if not ids:
        return np.zeros(width)
    padded = np.array([0, *ids, 0], dtype=np.uint64)
    hashes = padded[:-2] * _MIX[0] + padded[1:-1] * _MIX[1] + padded[2:] * _MIX[2]
    hashes ^= hashes >> np.uint64(29)
    places = ((hashes >> np.uint64(8)) % np.uint64(width)).astype(np.int64)
    signs = 1.0 - 2.0 * (hashes & np.uint64(1)).astype(np.float64)
    bag = np.bincount(places, weights=signs, minlength=width).astype(np.float64)
    bag[0] += 1e-3
    return bag


def _overlap(ids: TokenIds) -> float:
    before, document = _split_last(ids, b"<Document>: ")
    _, query = _split_last(before, b"<Query>: ")
    asked, found = _bag(query, _RERANK_WIDTH), _bag(document, _RERANK_WIDTH)
    norms = float(np.linalg.norm(asked) * np.linalg.norm(found))
    cosine = float(asked @ found) / norms if norms else 0.0
    instruction_and_query = np.array(before, dtype="<i8").tobytes()
    return 4.0 * cosine + zlib.crc32(instruction_and_query) % 1000 / 1000
