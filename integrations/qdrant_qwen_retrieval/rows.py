"""A row of any source as a Record: which field is what, and what is wrong with a row that is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal
from uuid import UUID

import numpy as np

from qdrant_qwen_retrieval.chunks import Record

ID_BYTES = 16  # of an id made of the text: 128 bits


@dataclass(frozen=True, slots=True)
class Rejected:
    """What could not become a record.

    Attributes:
        id: Its id; where it stands in its source if that is not known.
        reason: Where it stands, and what is wrong with it.
        record: The row as it was read, which may hold values that are not JSON; None where nothing could be read.
        id_is: What `id` is: the id of a record, what the ids of all records in it begin with, or a place.
    """

    id: str
    reason: str
    record: Mapping[str, Any] | None = None
    id_is: Literal["record", "prefix", "place"] = "place"


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of the fields that hold id and text.

    Attributes:
        id: None to make an id of the text.
        text: The field that is split, embedded and found.
    """

    id: str | None = "id"
    text: str = "text"

    def __post_init__(self) -> None:
        if self.id == self.text:
            raise ValueError(f"id_field and text_field are both {self.text!r}; id_field=None makes ids of texts")

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """Refuse a table without these columns at once, instead of row by row.

        Raises:
            ValueError: One of them is missing, and `columns` are not the caller's own chunks instead of a text.
        """
        columns = list(columns)
        if self.id is not None and self.id not in columns:
            raise ValueError(f"{where} {_missing(self.id, columns, 'id_field')}")
        if self.text not in columns and "chunks" not in columns:
            raise ValueError(f"{where} {_missing(self.text, columns, 'text_field')}")


@dataclass(frozen=True, slots=True)
class RecordSource:
    """An opened source.

    Attributes:
        records: What is in it, read as it is consumed.
        total: How many there are, for an estimate of the time left; None if that is not known beforehand.
        fields: The names that its rows give to id and text.
    """

    records: Iterator[Record | Rejected]
    total: int | None
    fields: Fields = field(default_factory=Fields)


def to_records(rows: Iterable[object], place: str, fields: Fields) -> Iterator[Record | Rejected]:
    """`to_record` for each of `rows`; they are numbered from 1."""
    return (to_record(row, f"row {number} of {place}", fields) for number, row in enumerate(rows, start=1))


def to_record(row: object, place: str, fields: Fields) -> Record | Rejected:
    """A row as a record, or what is wrong with it.

    Args:
        row: A `Record`, or a mapping with id, text and perhaps title, metadata and chunks; its other fields join the
            metadata, and so does the title.
        place: Where it stands, such as "line 7 of notes.jsonl".
        fields: What its id and its text are called.
    """
    try:
        if isinstance(row, Record):
            return _record(row.id, row.text, row.title, row.metadata, row.chunks)
        if isinstance(row, Mapping):
            return _from_mapping(row, fields)
        raise ValueError(_not_a_row(row))
    except (ValueError, TypeError) as error:  # TypeError: of values that are like no other, such as pandas' NA
        content = as_row(row, fields) if isinstance(row, Record) else row
        content = content if isinstance(content, Mapping) else None
        identifier = _known_id(content or {}, fields)
        reason = f"{place}: {error}"
        return Rejected(identifier or place, reason, content, "record" if identifier else "place")


def as_row(record: Record, fields: Fields) -> dict[str, Any]:
    """A record as a mapping that `to_record` takes; without the fields that are empty, and an id that is made."""
    row: dict[str, Any] = {fields.id or "id": record.id, fields.text: record.text}
    if fields.id is None and record.id == _id_of(record):
        del row["id"]
    optional = {"title": record.title, "metadata": record.metadata, "chunks": record.chunks}
    return row | {name: value for name, value in optional.items() if value is not None and len(value)}


def _from_mapping(row: Mapping[Any, Any], fields: Fields) -> Record:
    rest = dict(row)
    if fields.id is not None and fields.id not in rest:
        raise ValueError(_missing(fields.id, rest, "id_field"))
    if fields.text not in rest and rest.get("chunks") is None:
        raise ValueError(_missing(fields.text, rest, "text_field"))
    identifier = None if fields.id is None else rest.pop(fields.id)
    text, title, chunks = rest.pop(fields.text, ""), rest.pop("title", None), rest.pop("chunks", None)
    metadata = rest.pop("metadata", None)
    title = "" if title is None else _string(title, "title")
    record = _record("" if fields.id is None else identifier, text, title, _joined(metadata, rest, title), chunks)
    return record if fields.id is not None else _record(_id_of(record), text, title, record.metadata, chunks)


def _record(identifier: object, text: object, title: object, metadata: object, chunks: object) -> Record:
    if not isinstance(metadata, Mapping):
        raise ValueError(f"the metadata must be a mapping, but is {_kind(metadata)}")
    return Record(_id(identifier), _string(text, "text"), metadata, _string(title, "title"), _chunks(chunks))


def _id(value: object) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, UUID):
        return str(value)
    raise ValueError(f"the id must be a string or an integer, but is {_kind(value)}")


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the {name} must be a string, but is {_kind(value)}")
    return str.__str__(value)  # of an enumeration or of numpy: the plain string


def _chunks(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"the chunks must be a list of strings, but are {_kind(value)}")
    return tuple(_string(chunk, f"chunk {number}") for number, chunk in enumerate(value))


def _joined(metadata: object, rest: Mapping[Any, Any], title: str) -> dict[Any, Any]:
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, Mapping):
        raise ValueError(f"the metadata must be a mapping, but is {_kind(metadata)}")
    if twice := [key for key in rest if key in metadata]:
        raise ValueError(f"{twice[0]!r} stands both in the metadata and beside it; keep one of them")
    if title and metadata.get("title", title) != title:
        raise ValueError("the title stands beside the metadata and differs from the one in it; keep one of them")
    return ({"title": title} if title else {}) | dict(metadata) | dict(rest)


def _id_of(record: Record) -> str:
    content = record.text or "\n".join(record.chunks or ())
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=ID_BYTES).hexdigest()


def _known_id(row: Mapping[Any, Any], fields: Fields) -> str | None:
    try:
        return _id(row[fields.id]) or None
    except (KeyError, ValueError):
        return None


def _missing(name: str, known: Iterable[object], option: str) -> str:
    listed = ", ".join(map(repr, known)) or "none"
    hint = ", or make ids of the texts with id_field=None" if option == "id_field" else ""
    return f"has no field {name!r} (it has {listed}); name the right one with {option}=...{hint}"


def _not_a_row(row: object) -> str:
    hint = "; give paths as a list" if hasattr(row, "__fspath__") else ""
    hint = "; a text needs an id: {'id': ..., 'text': ...}" if isinstance(row, str) else hint
    return f"a record must be a mapping or a Record, but is {_kind(row)}{hint}"


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
