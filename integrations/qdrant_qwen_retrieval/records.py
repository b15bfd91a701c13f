"""The door of ingestion: whatever holds records, as a stream of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sized
from itertools import chain
from pathlib import Path
from typing import Any, cast

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.files import SUFFIXES, open_text
from qdrant_qwen_retrieval.rows import Fields, RecordSource, Rejected, as_row, to_records
from qdrant_qwen_retrieval.tables import open_arrow, open_jsonl, open_parquet

__all__ = ["RecordSource", "Rejected", "Source", "as_row", "open_records"]

TABLES = {".jsonl": open_jsonl, ".ndjson": open_jsonl, ".parquet": open_parquet}

PathLike = str | os.PathLike[str]
Source = PathLike | Iterable[Record | Mapping[str, Any]] | Iterable[PathLike]


def open_records(source: Source, *, id_field: str | None = "id", text_field: str = "text") -> RecordSource:
    """Open anything that holds records; they are read as they are consumed, in constant memory.

    A row that cannot become a record, such as one without an id, comes as `Rejected` in its place, and the rest goes
    on. What a source raises while it is read passes unchanged.

    Args:
        source: One of

            - an iterable of `Record` or of mappings: a list, a generator, a Hugging Face ``Dataset`` or
              ``IterableDataset``; or a ``Table`` or ``RecordBatch`` of pyarrow. A mapping has an id (a string, an
              integer or a UUID) and a text; it may have "title" (put before each chunk, and kept in the metadata),
              "metadata" (a mapping) and "chunks" (the caller's own division, a list of strings, instead of or beside a
              text). Its other fields join the metadata; one that is also in "metadata" is an error of that row.
            - a path, or a list of paths, each read once: ``.jsonl`` or ``.ndjson``, ``.parquet``, text (``.txt``,
              ``.md``, ``.markdown``, ``.rst``, ``.py``), or a folder, which is searched for text only. Ids of text
              begin with its path below the folder given (with several: below the deepest that has all text), so that
              two folders with files of the same names must be given together, or go into two collections.
        id_field: The field with the id. None makes ids of the texts: the same text is then the same record, of which
            the first is kept, and a text that has changed is a new record beside the old one.
        text_field: The field with the text.

    Returns:
        The records, and how many there are where the source knows it.

    Raises:
        FileNotFoundError: A path does not exist.
        OSError: A file cannot be read.
        ValueError: The kind of a file is unknown, a table has no such fields, or a folder has no text.
        TypeError: `source` holds no records.
        MissingDependencyError: A ``.parquet`` file is given, and pyarrow is not installed.
    """
    fields = Fields(id_field, text_field)
    if paths := _paths(source):
        return _open_paths(paths, fields)
    if hasattr(source, "schema") and hasattr(source, "num_rows"):  # asking its class would import pyarrow
        return open_arrow(cast(Any, source), fields)
    _check_iterable(source)
    columns = getattr(source, "column_names", None)  # of a Hugging Face dataset; a streamed one may not know them
    if isinstance(columns, list):
        fields.check_columns(columns, "the dataset")
    return RecordSource(to_records(cast(Iterable[object], source), "the input", fields), _length(source), fields)


def check_output(source: Source, output: PathLike) -> None:
    """Refuse a file to write to that is read at the same time.

    Raises:
        ValueError: `output` is one of the files of `source`, or would be found in one of its folders.
    """
    file = Path(output).resolve()
    for path in (one.resolve() for one in _paths(source)):
        if path == file or (path in file.parents and file.suffix.lower() in SUFFIXES):
            raise ValueError(f"{file} would be read and written at the same time; write what fails to another file")


def _paths(source: object) -> list[Path]:
    """The paths that name a source; [] for records themselves."""
    some = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(some, list | tuple) and all(isinstance(one, str | os.PathLike) for one in some):
        return [Path(one) for one in some]
    return []


def _open_paths(paths: list[Path], fields: Fields) -> RecordSource:
    _check_exist(paths)
    named = {os.path.abspath(path): path for path in paths}  # each is read once, also where one is within another
    texts = [path for path in named if os.path.isdir(path) or Path(path).suffix.lower() in SUFFIXES]
    folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in texts]
    root = Path(os.path.commonpath(folders)) if folders else Path()
    sources = [_open_path(path, root, named, fields) for path in named.values()]
    totals = [source.total for source in sources if source.total is not None]
    total = sum(totals) if len(totals) == len(sources) else None
    return RecordSource(chain.from_iterable(source.records for source in sources), total, fields)


def _open_path(path: Path, root: Path, named: Collection[str], fields: Fields) -> RecordSource:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in SUFFIXES:
        return RecordSource(open_text(path, root, named), None)
    if suffix not in TABLES:
        known = ", ".join((*TABLES, *SUFFIXES))
        raise ValueError(f"cannot tell what is in {path}: give a folder or a file that ends in {known}")
    return TABLES[suffix](path, fields)


def _check_exist(paths: list[Path]) -> None:
    missing = [path for path in paths if not _exists(path)]
    if not missing:
        return
    name = str(missing[0])
    name = name if len(name) <= 100 else f"{name[:100]}…"
    hint = "" if len(missing) < len(paths) else "; a text is given as a record, such as {'id': ..., 'text': ...}"
    raise FileNotFoundError(f"there is no file or folder {name!r}{hint}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text instead of a path: too long a name, or no name at all
        return False


def _check_iterable(source: object) -> None:
    kind, library = type(source).__name__, type(source).__module__.partition(".")[0]
    if library in {"pandas", "polars", "pyarrow"}:
        raise TypeError(
            f"the {kind} of {library} is read by columns; give its rows: frame.to_dict('records') of pandas, "
            "frame.iter_rows(named=True) of polars"
        )
    if isinstance(source, Record | Mapping):
        raise TypeError(f"expected an iterable of records, but got one {kind}; put it into a list, or choose a split")
    if isinstance(source, bytes | bytearray) or not hasattr(source, "__iter__"):
        raise TypeError(f"expected an iterable of records, or paths, but got {kind}")


def _length(source: object) -> int | None:
    try:
        return len(source) if isinstance(source, Sized) else None
    except TypeError:  # such as PyTorch's DataLoader of a stream
        return None
