"""Ingestion: from records to a collection that holds them, each exactly once.

    source -> records -> chunks -> batches      the caller's thread
    look up -> embed -> write                   a few threads, a batch each
    vanished records, count                     the caller's thread

Reading waits while enough batches are under way, so that memory stays the same however long the source is. What is
written is acknowledged before it counts, in an order that lets the next run repair what this one could not complete.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path

from qdrant_qwen_retrieval.batches import Batch, Reader
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.dead_letter import DeadLetter
from qdrant_qwen_retrieval.processing import Processor
from qdrant_qwen_retrieval.reconciliation import Reconciliation
from qdrant_qwen_retrieval.report import IngestReport, IngestWarning, OnProgress
from qdrant_qwen_retrieval.rows import RecordSource
from qdrant_qwen_retrieval.seen import Seen
from qdrant_qwen_retrieval.splitting import Splitter
from qdrant_qwen_retrieval.stopping import Stop
from qdrant_qwen_retrieval.tally import Tally
from qdrant_qwen_retrieval.upload import Uploader
from qwen_retrieval import Embedder
from qwen_retrieval.errors import CollectionNotFoundError, IngestError
from qwen_retrieval.usage import track_usage

IN_FLIGHT_CHARACTERS = 8_000_000
"""Characters of all batches under way at most, unless one batch alone has more."""


def run(
    collection: Collection,
    embedder: Embedder,
    source: RecordSource,
    *,
    splitter: Splitter | None,
    delete_missing: bool,
    dead_letter: Path | None,
    on_progress: OnProgress | None,
    dry_run: bool,
    batch_size: int,
    workers: int,
    check_count: bool,
) -> IngestReport:
    """Ingest records: embed and store what is new or changed, and leave alone what is there already.

    If the run ends early, for whatever reason, what it has written stays, and the next one goes on from there.

    Args:
        collection: Where to; made with the first record, if it does not exist.
        embedder: The model of the collection.
        source: Records. Read by this thread alone, and not further ahead than a few batches.
        splitter: Divides their texts; None for one chunk each. Records with chunks keep them.
        delete_missing: Delete records of the collection that are not in the source. Those that failed count as being
            in it. Nothing is deleted, with an `IngestWarning`, if the source is empty or has rows that could not be
            read and might have been any record.
        dead_letter: A JSONL file to append failed records to; see `DeadLetter`. A dry run writes none.
        on_progress: Told how far it is, after each part of a batch. What it raises ends the run.
        dry_run: Write nothing, embed nothing, and report what would be done. Inputs that only the model or the store
            would refuse are not found.
        batch_size: Chunks looked up, embedded and written together.
        workers: Threads that do so.
        check_count: Compare at the end how many points there are with how many there must be.

    Returns:
        What was done.

    Raises:
        ValueError: `batch_size` or `workers` is below 1, or the dead letter file cannot be written.
        IngestError: The store cannot be used, or it does not hold what it has acknowledged. Says how far it came.
        Exception: Whatever source, model and `on_progress` raise, with a note that says how far it came.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but got {value}")
    with ExitStack() as stack:
        letters = stack.enter_context(DeadLetter(None if dry_run else dead_letter, source.fields))
        tally = Tally(stack.enter_context(track_usage()), letters, source.total, on_progress)
        seen = stack.enter_context(Seen())
        if (close := getattr(source.records, "close", None)) is not None:
            stack.callback(close)
        ingestion = _Ingestion(collection, embedder, tally, seen, batch_size=batch_size, dry_run=dry_run)
        reader = Reader(source, splitter, batch_size, seen, tally, ingestion.check)
        try:
            points = ingestion.run(reader, workers, delete_missing=delete_missing, check_count=check_count)
        except IngestError as error:
            raise IngestError(f"{str(error).rstrip('.')}. {tally.so_far()}") from error
        except BaseException as error:
            error.add_note(tally.so_far())
            raise
        return tally.report(points=points, dry_run=dry_run)


_CALLER = 5  # frames from a warning to whoever called `QdrantIndex.ingest`


class _Ingestion:
    """One run.

    Args:
        collection: Where to.
        embedder: The model.
        tally: Where results are counted.
        seen: Where records are noted.
        batch_size: See `run`.
        dry_run: See `run`.
    """

    def __init__(
        self, collection: Collection, embedder: Embedder, tally: Tally, seen: Seen, *, batch_size: int, dry_run: bool
    ) -> None:
        self._collection, self._tally, self._dry_run = collection, tally, dry_run
        self._stop = Stop()
        self._uploader = Uploader(collection, sleep=self._stop.sleep)
        self._reconciliation = Reconciliation(collection, self._uploader, seen)
        self._loading = ExitStack()
        self._lock = threading.Lock()
        self._is_loading = False
        self._weights: dict[Future[None], int] = {}  # of the batches under way
        self._process = Processor(
            collection,
            embedder,
            self._uploader,
            tally,
            seen,
            batch_size=batch_size,
            dry_run=dry_run,
            stop=self._stop,
            prepare=self._load,
        )

    def run(self, reader: Reader, workers: int, *, delete_missing: bool, check_count: bool) -> int:
        """All of it. Returns how many points the collection has at the end."""
        before = self._count(exact=check_count)
        with self._loading:
            self._work(reader, workers)
        if delete_missing and self._may_delete(reader, before):
            missing = self._reconciliation.count_missing if self._dry_run else self._reconciliation.delete_missing
            self._tally.counts.deleted += missing()
        expected = before + self._tally.counts.new - self._tally.counts.deleted
        if self._dry_run or not check_count:
            return expected
        return self._reconciliation.verify(expected)

    def check(self) -> None:
        """Raise what has gone wrong in a batch by now."""
        for future in [future for future in self._weights if future.done()]:
            del self._weights[future]
            future.result()

    def _count(self, *, exact: bool) -> int:
        try:
            with self._collection.reached():  # not tried again: a wrong address should not take minutes to tell
                return self._collection.count(exact=exact)
        except CollectionNotFoundError:  # deleted since it was opened
            return 0

    def _work(self, reader: Reader, workers: int) -> None:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="qwen-retrieval ingest")
        try:
            self._feed(pool, reader, workers + 1)
        except BaseException:
            self._stop.request()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _feed(self, pool: ThreadPoolExecutor, batches: Iterable[Batch], in_flight: int) -> None:
        """Have all batches processed, reading no further ahead than `in_flight` of them.

        Raises:
            BaseException: What reading or processing raises.
        """
        weights = self._weights
        is_first = True
        for batch in batches:
            if is_first and not self._dry_run:
                with self._collection.reached():
                    self._collection.ensure()
            is_first = False
            while weights and (
                len(weights) >= in_flight or sum(weights.values()) + batch.weight > IN_FLIGHT_CHARACTERS
            ):
                self._settle()
            # In a copy of the caller's context, so that what it counts and traces includes the work of these threads.
            weights[pool.submit(copy_context().run, self._process, batch)] = batch.weight
        while weights:
            self._settle()

    def _settle(self) -> None:
        wait(self._weights, return_when=FIRST_COMPLETED)
        self.check()

    def _load(self) -> None:
        """Tell the store, once, that many points will come."""
        with self._lock:
            if not self._is_loading:
                self._loading.enter_context(self._collection.bulk_load())
                self._is_loading = True

    def _may_delete(self, reader: Reader, before: int) -> bool:
        reason = None
        if not self._tally.records and before:
            reason = "the input is empty; if that is right, delete the records by their ids, or make a new collection"
        elif reader.unknown is not None:
            reason = f"{reader.unknown} could not be read, and might hold any of the records that seem to be missing"
        if reason is not None:
            warnings.warn(f"delete_missing has deleted nothing: {reason}", IngestWarning, stacklevel=_CALLER)
        return reason is None
