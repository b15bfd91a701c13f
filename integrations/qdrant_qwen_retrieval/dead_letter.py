"""Records that could not be ingested, written down so that they can be corrected and ingested again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.metadata import MAX_DEPTH, json_scalar
from qdrant_qwen_retrieval.rows import Fields, as_row


class DeadLetter:
    """A JSONL file that failures are appended to, made with the first.

    Each line is ``{"id": …, "reason": …, "record": {…}}``, in which the record has the field names of its source, and
    can be ingested as it is once it is corrected; null for a row that could not be read at all.

    Args:
        path: The file; None to write nothing.
        fields: The names of id and text.

    Raises:
        ValueError: Nothing can be written there.
    """

    def __init__(self, path: Path | None, fields: Fields) -> None:
        self._path, self._fields = path, fields
        self._file: IO[str] | None = None
        if path is not None:
            _check_writable(path)

    def write(self, record_id: str, reason: str, record: Mapping[str, Any] | Record | None) -> None:
        """Append one failure, and see to it that it is on its way to the disk."""
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
        content = as_row(record, self._fields) if isinstance(record, Record) else record
        self._file.write(_line({"id": record_id, "reason": reason, "record": content}))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"dead_letter must be a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"dead_letter must lie in a folder that exists, but {path.parent} does not; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"dead_letter must be writable, but {path} is not")


def _line(content: dict[str, Any]) -> str:
    plain = _json(content)
    line = json.dumps(plain, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs
        return json.dumps(plain) + "\n"
    return line


def _json(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - whatever a bad row holds
    """`value` as it would have been stored; what has no such form is spelled out."""
    if depth == MAX_DEPTH:  # what contains itself ends here
        return "…"
    if isinstance(value, Mapping):
        return {str(key): _json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_json(item, depth + 1) for item in value]
    try:
        return json_scalar(value, "it")
    except ValueError:
        return value if isinstance(value, int) else str(value)
