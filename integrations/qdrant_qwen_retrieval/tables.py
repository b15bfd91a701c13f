"""Tables with a record per row: JSON Lines, Parquet and Arrow, read in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.rows import Fields, RecordSource, Rejected, to_record
from qwen_retrieval.errors import needs_extra

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Table
    from pyarrow.parquet import ParquetFile

MAX_LINE_BYTES = 32 * 1024 * 1024  # what a server takes in one request, and more than any record should be
BLOCK_BYTES = 1024 * 1024
PARQUET_ROWS = 1024  # decoded at once


def open_jsonl(path: Path, fields: Fields) -> RecordSource:
    """One JSON object per line; blank lines are passed over, and count in the total.

    Raises:
        OSError: The file cannot be read.
    """
    total = _count_lines(path) if path.is_file() else None  # a pipe can be read only once
    return RecordSource(_jsonl(path, fields), total)


def open_parquet(path: Path, fields: Fields) -> RecordSource:
    """One record per row.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no Parquet file, or has no columns of those names.
        MissingDependencyError: pyarrow is not installed.
    """
    with _parquet_file(path) as file:
        fields.check_columns(file.schema_arrow.names, str(path))
        total = file.metadata.num_rows
    return RecordSource(_parquet(path, fields), total)


def open_arrow(table: Table | RecordBatch, fields: Fields) -> RecordSource:
    """One record per row of a table in memory.

    Raises:
        ValueError: It has no columns of those names.
    """
    fields.check_columns(table.schema.names, "the table")
    batches = table.to_batches(PARQUET_ROWS) if hasattr(table, "to_batches") else [table]
    return RecordSource(_rows(batches, "the table", fields), table.num_rows, fields)


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            lines, last = lines + block.count(b"\n"), block[-1:]
    return lines + (last != b"\n")


def _jsonl(path: Path, fields: Fields) -> Iterator[Record | Rejected]:
    with path.open("rb") as handle:
        for number, raw in enumerate(_lines(handle), start=1):
            place = f"line {number} of {path}"
            try:
                row = _parsed(raw, "utf-8-sig" if number == 1 else "utf-8")
            except ValueError as error:
                yield Rejected(place, f"{place}: {error}")
            else:
                if row is not None:
                    yield to_record(row, place, fields)


def _lines(handle: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is too long, which is passed over without being held in memory."""
    while line := handle.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        yield None
        while line and not line.endswith(b"\n"):
            line = handle.readline(BLOCK_BYTES)


def _parsed(raw: bytes | None, encoding: str) -> dict[str, Any] | None:
    """The object in a line, None if it is blank."""
    if raw is None:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES // 1024**2} MB")
    try:
        line = raw.decode(encoding)
        value = json.loads(line) if line.strip() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if line.strip() and not isinstance(value, dict):
        raise ValueError(f"it must be a JSON object, but is {line.strip()[:40]!r}")
    return value if isinstance(value, dict) else None


def _parquet_file(path: Path) -> ParquetFile:
    with needs_extra("pyarrow", "parquet"):
        import pyarrow
        from pyarrow.parquet import ParquetFile
    try:
        return ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file, or is damaged: {error}") from error


def _parquet(path: Path, fields: Fields) -> Iterator[Record | Rejected]:
    with _parquet_file(path) as file:
        yield from _rows(file.iter_batches(PARQUET_ROWS), str(path), fields)


def _rows(batches: Iterable[RecordBatch], table: str, fields: Fields) -> Iterator[Record | Rejected]:
    rows = (row for batch in batches for row in _python_rows(batch))
    for number, row in enumerate(rows, start=1):
        place = f"row {number} of {table}"
        is_bad = isinstance(row, ValueError)
        yield Rejected(place, f"{place}: {row}") if is_bad else to_record(row, place, fields)


def _python_rows(batch: RecordBatch) -> Iterable[dict[str, Any] | ValueError]:
    """The rows of a batch as Python values; for one that has none, what is wrong with it."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a year beyond 9999: in some row, in some column
        return (_python_row(batch.slice(index, 1)) for index in range(batch.num_rows))
    return rows


def _python_row(row: RecordBatch) -> dict[str, Any] | ValueError:
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except (ValueError, OverflowError) as error:
            return ValueError(f"column {name!r} cannot be read: {error}")
    return values
