"""A name for everything that decides a vector: the key under which it may be kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, get_args

from qwen_retrieval.errors import CorruptCheckpointError
from qwen_retrieval.hub import FILES, local_folder, model_folder
from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.specs import CHECKPOINTS, DEMO, QWEN3_EMBEDDING, check_vector_length, resolve_model
from qwen_retrieval.templates import DEFAULT_MAX_LENGTH, VERSION
from qwen_retrieval.types import QUANTIZED_DTYPES, ControlTokens

_SAMPLES, _SAMPLE = 256, 4096
"""A weight file is told from another by its size and samples of so many bytes: this many, spread over it, and both ends
of every tensor."""


def full_dimensions(model: str) -> int | None:
    """The length of a model's full vector, as far as it can be told without loading it or asking the hub.

    Args:
        model: As in `Embedder.from_pretrained`.

    Returns:
        The length, or None for a repository that is none of the published checkpoints.
    """
    name = resolve_model(model, "embedding")
    for checkpoint in CHECKPOINTS:
        if checkpoint.repository == name:
            return checkpoint.hidden_size
    config = _read_config(_folder(name))
    size = config.get("hidden_size")
    return size if isinstance(size, int) else None


def check_dimensions(model: str, dimensions: int | None) -> int | None:
    """Refuse a vector length that a model cannot give, before it is loaded, as far as that can be told.

    Args:
        model: As in `Embedder.from_pretrained`.
        dimensions: The length asked for, or None for the full length.

    Returns:
        `dimensions`, or the full length if that is None and known, else None.

    Raises:
        TypeError: `dimensions` is not an integer.
        ValueError: The model cannot give that length.
    """
    full = full_dimensions(model)
    if dimensions is None or full is None:
        return full if dimensions is None else dimensions
    return check_vector_length(Path(model).name, full, QWEN3_EMBEDDING.min_dimensions, dimensions)


def embedding_fingerprint(
    model: str,
    *,
    revision: str | None = None,
    dimensions: int | None = None,
    instruction: str | None = None,
    document_instruction: str | None = None,
    max_length: int | None = None,
    control_tokens: ControlTokens = "escape",
    dtype: str = "auto",
) -> str:
    """A name for what decides the vectors: two embedders with the same name give the same vectors, up to rounding.

    Use it as the namespace of a cache, of a record manager or of an index, so that a vector which was made otherwise
    is never found again. Nothing is loaded and nobody is asked for it. Device, dtype and batch invariance, which decide
    the rounding, are no part of it, so that machines can share what they keep; only "int8" and "float8" are, which
    change vectors by more than that.

    Args:
        model: As in `Embedder.from_pretrained`. A folder is told by what is in it (of large weights by samples of every
            tensor), not by its name or by where it lies.
        revision: Branch, tag or commit; a branch that moves keeps its name.
        dimensions: Length of the vectors, None for the full length.
        instruction: The instruction of queries, None for the default.
        document_instruction: The instruction of documents, None for none.
        max_length: Longest input in tokens, None for the default.
        control_tokens: What is done with control tokens in texts.
        dtype: As in `Embedder.from_pretrained`; all but `QUANTIZED_DTYPES` have the same name.

    Returns:
        Such as ``Qwen3-Embedding-0.6B-1024-5f0c2d9a41b7e386``: letters, digits, ``.``, ``_`` and ``-``.

    Raises:
        ValueError: The model cannot give vectors of that length, or `control_tokens` is unknown.
        CorruptCheckpointError: A file of the folder cannot be read.
    """
    if control_tokens not in get_args(ControlTokens):
        raise ValueError(f"control_tokens must be one of {get_args(ControlTokens)}, but got {control_tokens!r}")
    name = resolve_model(os.fspath(model), "embedding")
    folder = _folder(name)
    size = check_dimensions(name, dimensions)
    parts = {
        "model": _digest(folder) if folder else name,
        "revision": None if folder else revision or "main",
        "dimensions": size,
        "instruction": resolve_instruction(QWEN3_EMBEDDING.default_instruction if instruction is None else instruction),
        "document_instruction": resolve_instruction(document_instruction or ""),
        "max_length": DEFAULT_MAX_LENGTH if max_length is None else max_length,
        "control_tokens": control_tokens,
        "normalisation": "unit length",
        "templates": VERSION,
    }
    if dtype in QUANTIZED_DTYPES:
        parts["dtype"] = dtype
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    readable = DEMO if name == DEMO else "folder" if folder else re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name).name)
    readable = readable.strip("-.") or "model"
    return f"{readable}-{size or 'full'}-{digest}"


def _folder(name: str) -> Path | None:
    return model_folder(DEMO, "embedding") if name == DEMO else local_folder(name)


def _read_config(folder: Path | None) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}  # loading will say what is wrong with it
    return config if isinstance(config, dict) else {}


def _digest(folder: Path) -> str:
    """What a checkpoint holds: its small files as they are, its weights by size and samples."""
    digest = hashlib.sha256()
    small = [folder / name for name in FILES]
    try:
        for path in sorted([*filter(Path.is_file, small), *folder.glob("*.safetensors")]):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                if path in small or size <= _SAMPLES * _SAMPLE:
                    digest.update(file.read())
                    continue
                for place in _places(file, size):
                    file.seek(place)
                    digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise CorruptCheckpointError(f"a file of {folder} cannot be read ({error}); download it again") from error
    return digest.hexdigest()


def _places(file: BinaryIO, size: int) -> list[int]:
    """Where to take samples of a file in safetensors' format, which begins with the ends of its tensors."""
    places = {sample * (size - _SAMPLE) // (_SAMPLES - 1) for sample in range(_SAMPLES)}
    try:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 100_000_000)))  # the format's own limit
        tensors = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
    except (AttributeError, KeyError, TypeError, ValueError):
        tensors = []  # loading will say what is wrong with it
    for first, end in tensors:
        places |= {8 + length + first, 8 + length + max(first, end - _SAMPLE)}
    return sorted(places)
