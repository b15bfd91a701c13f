"""What has to be done so that a collection holds a record: by its chunks, and by what the collection says it has.

At any moment every stored chunk of a record has a place below the count that is stored with the record's first chunk.
So whoever finds that first chunk knows where to look for all others, even after a run that was killed in between. For
this, the first chunk is written before any other, and only when a record gets shorter it comes last, after the chunks
that are gone were deleted. Where somebody else has removed the first chunk alone, the places behind the record's end
are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from qdrant_qwen_retrieval.chunks import Chunk, chunk_id, point_id

Marks = Mapping[str, Mapping[str, Any]]
"""Point id -> `Chunk.bookkeeping` as it is stored; nothing in it for a point that a framework has written."""


class Phase(IntEnum):
    """When a chunk is written, within its record."""

    HEAD = 0
    REST = 1
    SHORTER_HEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One chunk to be written.

    Attributes:
        chunk: What to write.
        phase: When.
        is_new: Whether there is no such point yet.
        embed: Whether the vector must be computed; else the stored one is right, and the payload alone is written.
    """

    chunk: Chunk
    phase: Phase
    is_new: bool
    embed: bool


@dataclass(slots=True)
class Plan:
    """What to do for one record, or for several.

    Attributes:
        changes: Chunks to be written, in that order.
        skipped: How many chunks are stored as they are.
        stale: Record id -> points where the collection may have chunks that the record has not any more.
        refused: Record id -> why it cannot be stored.
    """

    changes: list[Change] = field(default_factory=list)
    skipped: int = 0
    stale: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def stored_count(chunks: Sequence[Chunk], marks: Marks) -> int | None:
    """How many chunks the collection says to have of a record; None if the first is not there, or not ours."""
    count = marks.get(chunks[0].point_id, {}).get("count")
    return count if isinstance(count, int) else None


def make_plan(records: Iterable[Sequence[Chunk]], marks: Marks, orphaned: Mapping[str, int]) -> Plan:
    """Compare records with what is stored of them.

    Args:
        records: The chunks of each.
        marks: Of the points of these chunks, as far as they exist.
        orphaned: Record id -> how many chunks the collection has, where no first chunk tells it.
    """
    plan = Plan()
    for chunks in records:
        head = chunks[0]
        stale = range(len(chunks), stored_count(chunks, marks) or orphaned.get(head.record_id, 0))
        try:
            changes = [_change(chunk, marks.get(chunk.point_id), shorter=bool(stale)) for chunk in chunks]
        except ValueError as error:
            plan.refused[head.record_id] = str(error)
            continue
        plan.changes += (change for change in changes if change)
        plan.skipped += changes.count(None)
        if stale:
            # From the end: if a run is killed in between, what is left still follows the record without a gap.
            plan.stale[head.record_id] = [point_id(chunk_id(head.record_id, index)) for index in reversed(stale)]
    plan.changes.sort(key=lambda change: change.phase)
    return plan


def _change(chunk: Chunk, mark: Mapping[str, Any] | None, *, shorter: bool) -> Change | None:
    stored = mark or {}
    owner = stored.get("record", chunk.record_id)
    if owner != chunk.record_id:
        raise ValueError(
            f"its chunk {chunk.index} belongs at point {chunk.point_id}, where a chunk of record {owner!r} is; give "
            "one of the two another id"
        )
    same_text = stored.get("text") == chunk.text_hash
    if same_text and stored.get("metadata") == chunk.metadata_hash:
        return None
    phase = Phase.REST if chunk.index else Phase.SHORTER_HEAD if shorter else Phase.HEAD
    return Change(chunk, phase, is_new=mark is None, embed=not same_text)
