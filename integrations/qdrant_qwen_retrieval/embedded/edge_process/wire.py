"""Messages between a client and the engine's process: JSON, and the numbers of vectors as raw bytes.

A message is ``<length of JSON: u64><length of words: u64><JSON><words>``, little endian. In the JSON a vector is a
reference into the words, 4 bytes each: ``{"at": first word, "shape": [n]}`` for a dense float32 vector, ``[rows, n]``
for a multivector, and ``{"at": first word, "nnz": n}`` for n uint32 indices followed by n float32 values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .nesting import MAX_LEVELS

Words = npt.NDArray[np.float32]
_LENGTHS = struct.Struct("<QQ")


class RawPipe(Protocol):
    """An unbuffered binary file: `io.FileIO`."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Reads at most as much as fits."""

    def write(self, data: memoryview, /) -> int | None:
        """Writes at least one byte."""


class Packer:
    """Collects the numbers of one message."""

    def __init__(self) -> None:
        self._parts: list[Words] = []
        self._size = 0

    def dense(self, vector: Words) -> dict[str, Any]:
        """A reference to a float32 vector (n) or multivector (rows, n)."""
        return {"at": self._add(vector.reshape(-1)), "shape": list(vector.shape)}

    def sparse(self, indices: npt.NDArray[np.uint32], values: Words) -> dict[str, Any]:
        """A reference to uint32 indices and as many float32 values."""
        at = self._add(indices.view(np.float32))
        self._add(values)
        return {"at": at, "nnz": len(indices)}

    def words(self) -> bytes:
        """Everything collected, one after the other."""
        return b"".join(part.tobytes() for part in self._parts)

    def _add(self, part: Words) -> int:
        at = self._size
        self._parts.append(part)
        self._size += part.size
        return at


def is_reference(value: object) -> bool:
    """Whether a JSON value refers to words; a dict of named vectors, one of them named "at", does not."""
    return isinstance(value, dict) and isinstance(value.get("at"), int)


def unpack_dense(reference: dict[str, Any], words: Words) -> Words:
    """The float32 vector (n) or multivector (rows, n) that is referred to, without a copy."""
    size = int(np.prod(reference["shape"]))
    part: Words = words[reference["at"] : reference["at"] + size].reshape(reference["shape"])
    return part


def unpack_sparse(reference: dict[str, Any], words: Words) -> tuple[npt.NDArray[np.uint32], Words]:
    """The indices and the values that are referred to, without a copy."""
    at, count = reference["at"], reference["nnz"]
    return words[at : at + count].view(np.uint32), words[at + count : at + 2 * count]


def encode(
    message: dict[str, Any], packer: Packer | None = None, default: Callable[[Any], Any] | None = None
) -> list[bytes]:
    """A message as bytes to write one after the other.

    Args:
        message: JSON values.
        packer: What collected the numbers that `message` refers to.
        default: Makes JSON of values that are not.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not have, a text is no Unicode, or something is nested
            deeper than Python can follow.
        TypeError: A value is none of JSON's.
    """
    try:
        text = json.dumps(message, allow_nan=False, ensure_ascii=False, default=default, separators=(",", ":")).encode()
    except RecursionError as error:
        raise ValueError(
            f"the message of {message.get('op')!r} is nested too deep, at most {MAX_LEVELS} levels"
        ) from error
    words = packer.words() if packer is not None else b""
    return [_LENGTHS.pack(len(text), len(words)) + text, words]


def send(pipe: RawPipe, parts: list[bytes]) -> None:
    """Writes an encoded message.

    Raises:
        BrokenPipeError: Nobody reads any more.
    """
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[pipe.write(view) :]


def receive(pipe: RawPipe) -> tuple[dict[str, Any], Words, int]:
    """Reads one message.

    Returns:
        The JSON value, the words it refers to, and how many bytes they were together.

    Raises:
        EOFError: The other end has gone.
    """
    lengths = _LENGTHS.unpack(_read(pipe, _LENGTHS.size))
    message: dict[str, Any] = json.loads(_read(pipe, lengths[0]))
    return message, np.frombuffer(_read(pipe, lengths[1]), dtype=np.float32), sum(lengths)


def _read(pipe: RawPipe, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = pipe.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return buffer
