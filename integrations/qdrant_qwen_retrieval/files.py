"""Text files and folders of them to records, with ids that outlast edits elsewhere in the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qdrant_qwen_retrieval import parsing
from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.parsing import Section
from qdrant_qwen_retrieval.rows import Rejected
from qdrant_qwen_retrieval.splitting import is_chunk_id

SUFFIXES = (".md", ".markdown", ".rst", ".txt", ".py")
MAX_BYTES = 1_000_000  # of a file found in a folder; larger ones are rarely written by people
MAX_NAME = 500  # characters of a section's name in an id
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"}


def folder(path: str | os.PathLike[str]) -> Iterator[Record | Rejected]:
    """Read the text, Markdown, reStructuredText and Python files under `path`, in the order of their names.

    Hidden files and folders, virtual environments and build results are passed over silently; a file that is
    binary, larger than 1 MB, not UTF-8, not readable or a link to a file outside of `path`, and a folder that is not
    readable, is `Rejected`. Links to other folders are not followed.

    A record's id is the path of its file below `path`, and what it is called there: ``guide.md#Install > Linux``,
    ``pkg/mod.py#pkg.mod.Class.method``, ``notes.txt``; the second of the same name has `` (2)`` after it. Its metadata
    say where it begins ("source": ``guide.md:12``), its file ("path") and what it stands under ("title").

    Raises:
        NotADirectoryError: `path` is not a folder.
        FileNotFoundError: There is no `path`.
        ValueError: There is no file of these kinds in it.
    """
    os.scandir(path).close()  # os.walk would turn a missing folder into an empty one
    return open_text(Path(path), Path(path))


def open_text(path: Path, root: Path, named: Collection[str] = ()) -> Iterator[Record | Rejected]:
    """The records in a folder or a file.

    Args:
        path: A folder, or a file with one of the `SUFFIXES`, of any size.
        root: The folder that the paths in ids begin at.
        named: Absolute paths of files and folders that are read on their own, and left out of the folder.

    Raises:
        OSError: The folder or the file cannot be read.
        ValueError: There is no file of these kinds in the folder.
    """
    if not path.is_dir():
        if path.is_file():  # opening a pipe would wait for its other end
            path.open("rb").close()
        return _file(path, root, limit=None)
    os.scandir(path).close()
    if next(_files(path), None) is None:
        raise ValueError(
            f"there is no text in the folder {path}: no file ends in {', '.join(SUFFIXES)}. "
            "Tables are named one by one, such as sorted(Path(...).glob('*.parquet'))"
        )
    return _folder(path, root, named)


def to_records(sections: Iterable[Section], name: str, path: str) -> Iterator[Record]:
    """The sections of one file as records with ids of their own.

    Args:
        sections: In the order of the file.
        name: What the id of each begins with.
        path: What the metadata give as the place to look it up.
    """
    taken: dict[str, int] = {}
    for section in sections:
        identifier = unused(f"{name}#{section.name[:MAX_NAME]}" if section.name else name, taken)
        source = path if section.line is None else f"{path}:{section.line}"
        metadata: Mapping[str, Any] = {"source": source, "path": path, "title": section.title}
        yield Record(identifier, section.text, metadata, section.title)


def read_text(file: Path, limit: int | None = MAX_BYTES) -> str:
    """The text of `file`.

    Args:
        file: A file in UTF-8, with or without byte order mark.
        limit: The bytes that it may have; None for any number.

    Raises:
        ValueError: It is too large, not a regular file, binary, not UTF-8, or not readable; says which.
    """
    try:
        if not file.is_file():
            raise ValueError("it is not a regular file")
        if limit is not None and file.stat().st_size > limit:
            raise ValueError(f"it is larger than {limit / 1e6:g} MB; name the file itself to have it read")
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"it is not readable: {error.strerror}") from error
    if b"\0" in content:
        raise ValueError("it is binary")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error


def unused(name: str, taken: dict[str, int]) -> str:
    """`name`, or with the next number after it if it is taken.

    Args:
        name: What to call it.
        taken: Names, with the highest number after each; the one that is chosen is added.
    """
    number = taken.get(name, 0) + 1
    identifier = name if number == 1 else f"{name} ({number})"
    while identifier in taken or is_chunk_id(identifier):
        number += 1
        identifier = f"{name} ({number})"
    taken |= {identifier: 1, name: number}
    return identifier


def _folder(path: Path, root: Path, named: Collection[str]) -> Iterator[Record | Rejected]:
    unreadable: list[OSError] = []
    inside = os.path.realpath(path)
    for file in _files(path, named, unreadable.append):
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(inside):
            reason = "it is a link to a file outside of the folder; name that file itself to have it read"
            yield _rejected(file, root, reason)
        else:
            yield from _file(file, root, limit=MAX_BYTES)
    for error in unreadable:
        yield _rejected(Path(error.filename), root, f"it is not readable: {error.strerror}", "/")


def _file(file: Path, root: Path, limit: int | None) -> Iterator[Record | Rejected]:
    name = _name(file, root)
    try:
        text = read_text(file, limit)
    except ValueError as error:
        yield _rejected(file, root, str(error))
    else:
        yield from to_records(parsing.sections(name, file.suffix.lower(), text), name, name)


def _rejected(path: Path, root: Path, reason: str, end: str = "") -> Rejected:
    return Rejected(_name(path, root) + end, f"{path}: {reason}", id_is="prefix")


def _name(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _files(
    root: Path, named: Collection[str] = (), on_error: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    for parent, folders, names in os.walk(root, onerror=on_error):
        above = os.path.abspath(parent)
        folders[:] = sorted(
            name
            for name in folders
            if not _is_passed_over(Path(parent, name)) and os.path.join(above, name) not in named
        )
        for name in sorted(names):
            is_kind = name.lower().endswith(SUFFIXES) and not name.startswith(".")
            if is_kind and os.path.join(above, name) not in named:
                yield Path(parent, name)


def _is_passed_over(path: Path) -> bool:
    hidden_or_generated = path.name.startswith(".") or path.name in SKIPPED_FOLDERS or path.name.endswith(".egg-info")
    return hidden_or_generated or os.path.exists(path / "pyvenv.cfg")
