"""Reading: rows of a source to batches of chunks, in the thread of the caller."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qdrant_qwen_retrieval.chunks import Chunk, Record
from qdrant_qwen_retrieval.rows import RecordSource, Rejected
from qdrant_qwen_retrieval.seen import Seen
from qdrant_qwen_retrieval.splitting import Splitter, split
from qdrant_qwen_retrieval.tally import Tally

BATCH_CHARACTERS = 1_000_000
"""Characters of a batch at most, unless one record alone has more: a few seconds of work for a large GPU."""


@dataclass(slots=True)
class Batch:
    """Records that are looked up, embedded and written together.

    Attributes:
        records: By their ids.
        chunks: Of each record, by its id.
        size: How many chunks they have in all.
        weight: How many characters they have in all, metadata included, with each chunk.
    """

    records: dict[str, Record] = field(default_factory=dict)
    chunks: dict[str, list[Chunk]] = field(default_factory=dict)
    size: int = 0
    weight: int = 0

    def fits(self, chunks: int, weight: int, batch_size: int) -> bool:
        """Whether a record with so much in it can join."""
        return not self.size or (self.size + chunks <= batch_size and self.weight + weight <= BATCH_CHARACTERS)

    def add(self, record: Record, chunks: list[Chunk], weight: int) -> None:
        """Let a record join."""
        self.records[record.id], self.chunks[record.id] = record, chunks
        self.size += len(chunks)
        self.weight += weight


class Reader:
    """A source as batches, what cannot be read as failures.

    Args:
        source: Rows.
        splitter: Divides their texts; None for one chunk each.
        batch_size: Chunks of a batch at most, unless one record alone has more: no record is divided.
        seen: Where ids are noted.
        tally: Where rows and failures are counted.
        check: Called with every row; raises to end the reading.

    Attributes:
        unknown: Where the first row stands whose records are not known by id; None if there is none.
    """

    def __init__(
        self,
        source: RecordSource,
        splitter: Splitter | None,
        batch_size: int,
        seen: Seen,
        tally: Tally,
        check: Callable[[], None],
    ) -> None:
        self.unknown: str | None = None
        self._source, self._splitter, self._batch_size, self._check = source, splitter, batch_size, check
        self._seen, self._tally = seen, tally

    def __iter__(self) -> Iterator[Batch]:
        batch = Batch()
        for row in self._source.records:
            self._check()
            self._tally.records += 1
            if isinstance(row, Rejected):
                self._reject(row)
                continue
            chunks = self._split(row)
            if not chunks:
                continue
            self._tally.chunks += len(chunks)
            metadata = len(json.dumps(chunks[0].metadata))  # which is stored with every chunk
            weight = sum(len(chunk.text) + metadata for chunk in chunks)
            if not batch.fits(len(chunks), weight, self._batch_size):
                yield batch
                batch = Batch()
            batch.add(row, chunks, weight)
        if batch.size:
            yield batch

    def _reject(self, row: Rejected) -> None:
        match row.id_is:
            case "record":
                self._seen.add(row.id, 0)
            case "prefix":
                self._seen.add_prefix(row.id)
            case "place":
                self.unknown = self.unknown or row.id
        self._tally.fail(row.id, row.reason, row.record)

    def _split(self, record: Record) -> list[Chunk]:
        try:
            chunks = split(record, self._splitter)
        except ValueError as error:
            self._seen.add(str(record.id), 0)
            self._tally.fail(str(record.id), str(error), record)
            return []
        if self._seen.add(record.id, len(chunks)):
            return chunks
        if self._source.fields.id is None:  # ids are made of texts: it is the same record
            return []
        self._tally.fail(record.id, f"id {record.id!r} occurs twice in the input; the first was kept", record)
        return []
