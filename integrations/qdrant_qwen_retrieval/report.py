"""What an ingestion did, for people and for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


class IngestWarning(UserWarning):
    """Something that was asked of an ingestion was not done."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that was not ingested.

    Attributes:
        id: The record's id, or where it stands in its source if it has none.
        reason: What is wrong with it.
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingestion did.

    Attributes:
        records: Records read, those that failed included.
        chunks: Chunks that they were split into.
        embedded: Chunks whose vector was computed.
        skipped: Chunks that were in the collection already, unchanged.
        replaced: Chunks that were in the collection with another text or other metadata. Only a changed text is
            embedded again.
        deleted: Points removed: of records that have become shorter, and with ``delete_missing=True`` of records that
            are gone.
        failed: Records not ingested, or not completely.
        tokens: Tokens embedded.
        truncated: Chunks that the model could not read to their end.
        seconds: From the first record read to the last point written.
        points: Points in the collection at the end; an estimate with ``check_count=False``.
        failures: The first 100 of those that failed.
        dry_run: Whether nothing was embedded and written, and the figures say what would have been.
    """

    records: int = 0
    chunks: int = 0
    embedded: int = 0
    skipped: int = 0
    replaced: int = 0
    deleted: int = 0
    failed: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0
    points: int = 0
    failures: tuple[Failure, ...] = ()
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"failures": [asdict(failure) for failure in self.failures]}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingestion is; given to ``progress`` again and again, from any thread, one call at a time.

    Attributes:
        records: Records read so far.
        total: Records in all, if that is known.
        chunks: Chunks done so far: embedded, skipped or failed.
        embedded: Chunks embedded so far.
        skipped: Chunks passed over so far.
        failed: Records failed so far.
        tokens: Tokens embedded so far.
        seconds: Since the beginning.
    """

    records: int
    total: int | None
    chunks: int
    embedded: int
    skipped: int
    failed: int
    tokens: int
    seconds: float


OnProgress = Callable[[Progress], None]
