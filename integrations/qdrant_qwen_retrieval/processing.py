"""One batch: look up what is stored, embed what has changed, write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Collection as Positions

import numpy as np

from qdrant_qwen_retrieval.batches import Batch
from qdrant_qwen_retrieval.chunks import chunk_id, point_id
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.isolation import isolate
from qdrant_qwen_retrieval.plan import Change, Marks, Phase, Plan, make_plan, stored_count
from qdrant_qwen_retrieval.seen import Seen
from qdrant_qwen_retrieval.stopping import Stop
from qdrant_qwen_retrieval.tally import Counts, Tally
from qdrant_qwen_retrieval.upload import Uploader
from qwen_retrieval import Embedder
from qwen_retrieval.errors import InputError, NonFiniteError
from qwen_retrieval.types import FloatArray


class Processor:
    """Takes batches to the collection. Any number of threads may share one.

    Args:
        collection: Where to.
        embedder: The model.
        uploader: Writes to the collection.
        tally: Where results are counted.
        seen: Where records that failed are noted.
        batch_size: Chunks embedded in one call. A record with more of them is done in parts.
        dry_run: Compare and count, and do nothing else.
        stop: Ends the work early.
        prepare: Called before each batch is written.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        uploader: Uploader,
        tally: Tally,
        seen: Seen,
        *,
        batch_size: int,
        dry_run: bool,
        stop: Stop,
        prepare: Callable[[], None],
    ) -> None:
        self._collection, self._embedder, self._uploader = collection, embedder, uploader
        self._tally, self._seen = tally, seen
        self._batch_size, self._dry_run = batch_size, dry_run
        self._stop, self._prepare = stop, prepare

    def __call__(self, batch: Batch) -> None:
        """Take one batch there: when this returns, each of its records is stored, or counted as failed."""
        self._stop.check()
        ids = [chunk.point_id for chunks in batch.chunks.values() for chunk in chunks]
        marks = self._lookup(ids)
        plan = make_plan(batch.chunks.values(), marks, self._orphaned(batch, marks))
        failed = dict(plan.refused)
        if self._dry_run:
            self._tally.count(self._foreseen(plan))
        elif plan.changes:
            self._prepare()
            for start in range(0, len(plan.changes), self._batch_size):
                part = plan.changes[start : start + self._batch_size]
                counts = Counts(done=len(part))
                try:
                    self._carry_out(part, plan, counts, failed)
                finally:
                    self._tally.count(counts)  # what is written counts, whatever came after it
                self._tally.tell()
        for record_id, reason in failed.items():
            self._seen.fail(record_id)
            self._tally.fail(record_id, reason, batch.records[record_id])
        self._tally.count(Counts(done=batch.size - len(plan.changes), skipped=plan.skipped))
        self._tally.tell()

    def _orphaned(self, batch: Batch, marks: Marks) -> dict[str, int]:
        """Record id -> how many chunks there are, for records whose first chunk is not there, or not ours any more."""
        headless = {id: chunks for id, chunks in batch.chunks.items() if stored_count(chunks, marks) is None}
        ends = {record_id: len(chunks) for record_id, chunks in headless.items()}
        looked_at = ends
        while looked_at:
            ids = {record_id: point_id(chunk_id(record_id, end)) for record_id, end in looked_at.items()}
            found = self._lookup(list(ids.values()))
            ours = [record_id for record_id, id in ids.items() if found.get(id, {}).get("record") == record_id]
            looked_at = {record_id: looked_at[record_id] + 1 for record_id in ours}
            ends = ends | looked_at
        return ends

    def _foreseen(self, plan: Plan) -> Counts:
        new = sum(change.is_new for change in plan.changes)
        return Counts(
            done=len(plan.changes),
            embedded=sum(change.embed for change in plan.changes),
            new=new,
            replaced=len(plan.changes) - new,
            deleted=sum(len(self._existing(record_id, ids)) for record_id, ids in plan.stale.items()),
        )

    def _carry_out(self, changes: Sequence[Change], plan: Plan, counts: Counts, failed: dict[str, str]) -> None:
        """Embed and write some chunks; records that fail get no further."""
        self._stop.check()
        vectors = self._embed([change for change in _of_others(changes, failed) if change.embed], failed)
        counts.embedded += len(vectors)
        for phase in Phase:
            ready = [change for change in _of_others(changes, failed) if change.phase is phase]
            if not ready:
                continue
            self._stop.check()
            if phase is Phase.SHORTER_HEAD:
                for change in ready:
                    counts.deleted += self._delete(change.chunk.record_id, plan)
            self._write(ready, vectors, counts, failed)

    def _embed(self, changes: Sequence[Change], failed: dict[str, str]) -> dict[Change, FloatArray]:
        """Vectors of chunks, (dimensions,) each, but for those that the model cannot embed."""

        def embed(part: Sequence[Change]) -> FloatArray:
            texts = [change.chunk.text for change in part]
            return self._stop.run(self._embedder.aembed_documents(texts))  # (part, dimensions)

        done, refused = isolate(changes, embed, _whose_fault)
        for change, error in refused:
            _fail(change, _why(error), failed)
        return {change: row for part, rows in done for change, row in zip(part, rows, strict=True)}

    def _write(
        self, changes: list[Change], vectors: dict[Change, FloatArray], counts: Counts, failed: dict[str, str]
    ) -> None:
        whole = [change for change in changes if change.embed]
        refused: dict[str, str] = {}
        if whole:
            dense = np.stack([vectors[change] for change in whole])  # (whole, dimensions)
            refused |= self._uploader.upsert(self._collection.points([change.chunk for change in whole], dense))
        payload = self._collection.layout.payload
        rest = (change.chunk for change in changes if not change.embed)
        refused |= self._uploader.rewrite((chunk.point_id, payload(chunk)) for chunk in rest)
        for change in changes:
            if (reason := refused.get(change.chunk.point_id)) is not None:
                _fail(change, reason, failed)
            elif change.is_new:
                counts.new += 1
            else:
                counts.replaced += 1

    def _delete(self, record_id: str, plan: Plan) -> int:
        """Delete the chunks that a record has not any more, and say how many there were."""
        ids = self._existing(record_id, plan.stale[record_id])
        self._uploader.delete(ids)
        return len(ids)

    def _existing(self, record_id: str, ids: Sequence[str]) -> list[str]:
        return [id for id, mark in self._lookup(ids).items() if mark.get("record") == record_id]

    def _lookup(self, ids: Sequence[str]) -> Marks:
        return self._uploader.ask(lambda: self._collection.marks(ids))


def _of_others(changes: Sequence[Change], failed: dict[str, str]) -> list[Change]:
    return [change for change in changes if change.chunk.record_id not in failed]


def _fail(change: Change, reason: str, failed: dict[str, str]) -> None:
    failed.setdefault(change.chunk.record_id, f"chunk {change.chunk.index}: {reason}")


def _whose_fault(error: Exception) -> Positions[int] | None:
    if isinstance(error, NonFiniteError):
        return error.rows
    return () if isinstance(error, InputError) else None


def _why(error: Exception) -> str:
    if isinstance(error, NonFiniteError):
        return "the model gives NaN or infinity for it, even in float32"
    return str(error).removeprefix("documents[0] ")  # its place in the call that failed last, alone
