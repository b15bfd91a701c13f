"""A part of a record that becomes one point, with the ids and hashes that make ingestion repeatable."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

NAMESPACE = uuid.UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")
"""The namespace in which qdrant-haystack makes point ids of document ids, so that its store finds ours by id.

Source: haystack_integrations/document_stores/qdrant/converters.py, ``UUID_NAMESPACE``, qdrant-haystack 13.1.0.
"""
BOOKKEEPING = "_qwen"
"""The key of the payload under which ingestion keeps its notes; no metadata field may be called so."""

SEPARATOR = "#chunk-"
DIGEST_BYTES = 12  # 96 bits: at 100 million chunks a chance of about 1e-13 that a change goes unseen


@dataclass(frozen=True, slots=True)
class Record:
    """What a user ingests: a text under an id of its own.

    Attributes:
        id: Any text that names it; the same id in a later run means a new version of the same record.
        text: What is split, embedded and found.
        metadata: JSON values to store beside it and to filter by.
        title: Put before each chunk, so that the models know what it stands under.
        chunks: The caller's own division of the text; None to have `text` split.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    chunks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Chunk:
    """A part of a record: one point.

    Attributes:
        record_id: The record it is a part of.
        index: Its place in the record, from 0.
        count: How many chunks the record has.
        text: What the models read and the store returns.
        metadata: The record's.
    """

    record_id: str
    index: int
    count: int
    text: str
    metadata: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The record's id for the first chunk, which stands for the record, else with the place added."""
        return chunk_id(self.record_id, self.index)

    @property
    def point_id(self) -> str:
        """A UUID in canonical form, the same in every run and on every machine."""
        return point_id(self.id)

    @cached_property
    def text_hash(self) -> str:
        """Changes when the chunk must be embedded again."""
        return _digest(self.text.encode())

    @cached_property
    def metadata_hash(self) -> str:
        """Changes when the payload must be written again, but the vector is still right."""
        metadata = json.dumps(self.metadata, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return _digest(f"{self.count if self.index == 0 else ''}\n{self.record_id}\n{metadata}".encode())

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """What is stored with the point under one key of our own, so that the next run knows what it has."""
        marks: dict[str, Any] = {"record": self.record_id, "index": self.index}
        if self.index == 0:
            marks["count"] = self.count  # the first chunk stands for the record: it says how many belong to it
        return marks | {"text": self.text_hash, "metadata": self.metadata_hash}


def chunk_id(record_id: str, index: int) -> str:
    """The id of a chunk; that of the first is the record's."""
    return f"{record_id}{SEPARATOR}{index}" if index else record_id


def point_id(identifier: str) -> str:
    """The id of the point for a chunk id."""
    return str(uuid.uuid5(NAMESPACE, identifier))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()
