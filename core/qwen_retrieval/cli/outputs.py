"""Output files, written beside their target and put in place only when they are complete."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from qwen_retrieval.errors import MissingDependencyError

from .records import Record, json_line

if TYPE_CHECKING:
    from qwen_retrieval.types import FloatArray

SUFFIXES = (".npy", ".jsonl", ".parquet")
STANDARD_OUTPUT = "-"


class Writer(Protocol):
    """Writes records and their vectors to an open file, batch by batch."""

    def write(self, records: list[Record], vectors: FloatArray) -> None:
        """Write one batch; `vectors` has a row for each record."""

    def finish(self) -> None:
        """Write what belongs at the end."""

    def close(self) -> None:
        """Write nothing more, whether finished or not; the file itself stays open."""


def check_target(path: str) -> None:
    """Refuse an output that cannot be written, before any work is done for it.

    Args:
        path: The output file, or ``-`` for JSON lines on standard output.
    """
    if path == STANDARD_OUTPUT:
        return
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"output must end in {', '.join(SUFFIXES)} (or be -), but got {path!r}")
    check_place(target)
    if target.suffix.lower() == ".parquet":
        _pyarrow()


def check_place(target: Path) -> None:
    """Refuse a file that cannot be made where it is wanted."""
    if target.is_dir():
        raise IsADirectoryError(21, "is a directory", str(target))
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(2, "no such directory", str(target.parent))


@contextmanager
def open_writer(path: str, dimensions: int, vector_field: str) -> Iterator[Writer]:
    """Open an output; it appears under its name when the block ends without an exception.

    Args:
        path: The output file, whose suffix chooses the format, or ``-`` for JSON lines on standard output.
        dimensions: Length of the vectors.
        vector_field: Name of the vector among the fields of a JSON line or Parquet row.
    """
    if path == STANDARD_OUTPUT:
        yield JsonlWriter(sys.stdout.buffer, vector_field)
        return
    with atomic_file(path) as handle:
        writer = _writer(Path(path).suffix.lower(), handle, dimensions, vector_field)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def check_lines_target(path: str) -> None:
    """Refuse a file of JSON lines that cannot be made; ``-`` is standard output."""
    if path != STANDARD_OUTPUT:
        check_place(Path(path))


@contextmanager
def open_lines(path: str) -> Iterator[BinaryIO]:
    """Standard output for ``-``, else a file as of `atomic_file`."""
    if path == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        return
    with atomic_file(path) as handle:
        yield handle


@contextmanager
def atomic_file(path: str) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place at the end, and is removed if there is an exception."""
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as handle:
            yield handle
        os.replace(part, target)
    except OSError as error:
        error.filename = error.filename or path
        raise
    finally:
        part.unlink(missing_ok=True)


class NpyWriter:
    """One float32 matrix; its number of rows is filled in at the end."""

    def __init__(self, handle: BinaryIO, dimensions: int) -> None:
        self._handle = handle
        self._dimensions = dimensions
        self._rows = 0
        self._write_header()

    def write(self, records: list[Record], vectors: FloatArray) -> None:
        """Append the rows of `vectors`."""
        self._handle.write(vectors.astype("<f4").tobytes())
        self._rows += len(records)

    def finish(self) -> None:
        """Write the header again, with the number of rows: it has the same length, numpy leaves room for that."""
        self._handle.seek(0)
        self._write_header()

    def close(self) -> None:
        """Nothing is held."""

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        shape = (self._rows, self._dimensions)
        npy.write_array_header_1_0(self._handle, {"descr": "<f4", "fortran_order": False, "shape": shape})


class JsonlWriter:
    """The input's objects, each with its vector."""

    def __init__(self, handle: BinaryIO, vector_field: str) -> None:
        self._handle = handle
        self._vector_field = vector_field

    def write(self, records: list[Record], vectors: FloatArray) -> None:
        """Append one line per record; nine digits give every float32 back exactly."""
        for record, vector in zip(records, vectors.tolist(), strict=True):
            numbers = [float(f"{number:.9g}") for number in vector]
            line = json_line(_with_vector(record.fields, self._vector_field, numbers))
            self._handle.write(line.encode() + b"\n")

    def finish(self) -> None:
        """Nothing belongs at the end."""

    def close(self) -> None:
        """Nothing is held."""


class ParquetWriter:
    """The input's fields as columns, typed by the first batch, and a fixed-size list of float32."""

    def __init__(self, handle: BinaryIO, dimensions: int, vector_field: str) -> None:
        self._arrow, self._parquet = _pyarrow()
        self._handle = handle
        self._vector_field = vector_field
        self._vector_type = self._arrow.list_(self._arrow.float32(), dimensions)
        self._writer: Any = None
        self._columns: Any = None

    def write(self, records: list[Record], vectors: FloatArray) -> None:
        """Append one row group."""
        rows = [_with_vector(record.fields, self._vector_field, None) for record in records]
        for row in rows:
            del row[self._vector_field]
        table = self._table(rows)
        flat = self._arrow.array(vectors.ravel())
        column = self._arrow.FixedSizeListArray.from_arrays(flat, type=self._vector_type)
        table = table.append_column(self._vector_field, column)
        self._open(table.schema).write_table(table)

    def finish(self) -> None:
        """Write the footer; without any rows, the table has its vector column only."""
        self._open(self._arrow.schema([(self._vector_field, self._vector_type)])).close()

    def close(self) -> None:
        """Keep pyarrow from writing a footer when its writer is collected, after the file was closed."""
        if self._writer is not None:
            self._writer.is_open = False

    def _open(self, schema: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._handle, schema)
        return self._writer

    def _table(self, rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - pyarrow has no types
        names = list(dict.fromkeys(name for row in rows for name in row))
        if self._columns is not None and (new := [name for name in names if name not in self._columns.names]):
            raise ValueError(f"field {new[0]!r} first appears after many rows, too late for a column; write .jsonl")
        arrow = self._arrow
        try:
            if self._columns is None:
                columns = {name: arrow.array([row.get(name) for row in rows]) for name in names}
                types = [
                    (name, arrow.string() if arrow.types.is_null(c.type) else c.type) for name, c in columns.items()
                ]
                self._columns = arrow.schema(types)
            return arrow.Table.from_pylist(rows, schema=self._columns)
        except (arrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise ValueError(f"the fields do not fit into Parquet columns ({error}); write .jsonl instead") from error


def _with_vector(fields: dict[str, Any], name: str, vector: list[float] | None) -> dict[str, Any]:
    if name in fields:
        raise ValueError(f"the input already has a field {name!r}; name the vector otherwise with --vector-field")
    return fields | {name: vector}


def _writer(suffix: str, handle: BinaryIO, dimensions: int, vector_field: str) -> Writer:
    if suffix == ".npy":
        return NpyWriter(handle, dimensions)
    if suffix == ".jsonl":
        return JsonlWriter(handle, vector_field)
    return ParquetWriter(handle, dimensions, vector_field)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "parquet") from error
    return pyarrow, parquet
