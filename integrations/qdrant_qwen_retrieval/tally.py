"""The figures of a run, kept while many threads work on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from threading import Lock
from typing import Any

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.dead_letter import DeadLetter
from qdrant_qwen_retrieval.report import Failure, IngestReport, OnProgress, Progress
from qwen_retrieval.usage import Usage

KEPT_FAILURES = 100


@dataclass(slots=True)
class Counts:
    """Chunks of a batch, or of all; `new` and `deleted` are points of the collection."""

    done: int = 0
    embedded: int = 0
    skipped: int = 0
    replaced: int = 0
    new: int = 0
    deleted: int = 0

    def add(self, other: Counts) -> None:
        """Add the figures of another."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class Tally:
    """Counts, failures and progress of a run. Thread-safe.

    Args:
        usage: What the models have counted.
        dead_letter: Where failures are written.
        total: Records in all, if that is known.
        on_progress: Told how far it is, one call at a time.
    """

    def __init__(
        self, usage: Usage, dead_letter: DeadLetter, total: int | None, on_progress: OnProgress | None
    ) -> None:
        self.counts = Counts()
        self.records = 0
        self.chunks = 0
        self.failed = 0
        self.failures: list[Failure] = []
        self._usage, self._dead_letter = usage, dead_letter
        self._total, self._on_progress = total, on_progress
        self._start = time.perf_counter()
        self._lock, self._telling = Lock(), Lock()

    def fail(self, record_id: str, reason: str, record: Mapping[str, Any] | Record | None) -> None:
        """Count a record that is not ingested, or not completely."""
        with self._lock:
            self.failed += 1
            if len(self.failures) < KEPT_FAILURES:
                self.failures.append(Failure(record_id, reason))
            self._dead_letter.write(record_id, reason, record)

    def count(self, counts: Counts) -> None:
        """Count what is done."""
        with self._lock:
            self.counts.add(counts)

    def tell(self) -> None:
        """Tell how far the run is."""
        if self._on_progress is not None:
            with self._telling:  # figures are read inside, so that they never go back
                self._on_progress(self._progress())

    def _progress(self) -> Progress:
        counts = self.counts
        return Progress(
            records=self.records,
            total=self._total,
            chunks=counts.done,
            embedded=counts.embedded,
            skipped=counts.skipped,
            failed=self.failed,
            tokens=self._usage.tokens,
            seconds=time.perf_counter() - self._start,
        )

    def report(self, *, points: int, dry_run: bool) -> IngestReport:
        """All figures."""
        counts = self.counts
        return IngestReport(
            records=self.records,
            chunks=self.chunks,
            embedded=counts.embedded,
            skipped=counts.skipped,
            replaced=counts.replaced,
            deleted=counts.deleted,
            failed=self.failed,
            tokens=self._usage.tokens,
            truncated=self._usage.truncated,
            seconds=time.perf_counter() - self._start,
            points=points,
            failures=tuple(self.failures),
            dry_run=dry_run,
        )

    def so_far(self) -> str:
        """How far the run came, for the end of a message."""
        counts = self.counts
        written = counts.new + counts.replaced
        return (
            f"So far {self.records:,} records were read and {written:,} chunks written, and {counts.skipped:,} were "
            "there already; what is written stays, and the next run goes on from there"
        )
