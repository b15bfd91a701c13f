"""The end of a run: records that have vanished from the input, and whether the collection holds what it should."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from qdrant_qwen_retrieval.chunks import chunk_id, point_id
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.seen import Seen
from qdrant_qwen_retrieval.upload import Uploader
from qwen_retrieval.errors import IngestError

_PAGE = 1000  # points looked at together

_log = logging.getLogger(__name__)


class Reconciliation:
    """Compares a collection with the records of a run.

    Args:
        collection: What to compare.
        uploader: Deletes in it.
        seen: The records of the run.
    """

    def __init__(self, collection: Collection, uploader: Uploader, seen: Seen) -> None:
        self._collection, self._uploader, self._seen = collection, uploader, seen

    def count_missing(self) -> int:
        """How many points belong to records that did not occur in the input."""
        return sum(map(len, self._missing()))

    def delete_missing(self) -> int:
        """Delete the records that did not occur in the input, and say how many points that were.

        Points that a framework's own store has written belong to no record of an ingestion, and stay.
        """
        field = self._collection.layout.record_path
        return sum(
            self._uploader.delete_records(field, list(dict.fromkeys(records))) for records in self._missing() if records
        )

    def verify(self, expected: int) -> int:
        """Compare how many points there are with how many there must be, and if that differs, look at each of ours.

        Returns:
            How many there are.

        Raises:
            IngestError: One of ours is not there.
        """
        found = self._uploader.ask(self._collection.count)
        if found == expected:
            return found
        checked, absent, example = 0, 0, ""
        for page in self._ours():
            marks = self._uploader.ask(partial(self._collection.marks, list(page)))
            lost = [identifier for id, identifier in page.items() if id not in marks]
            checked, absent, example = checked + len(page), absent + len(lost), example or next(iter(lost), "")
        counted = f"collection {self._collection.name!r} has {found:,} points, where {expected:,} were expected"
        if absent:
            raise IngestError(
                f"{counted}, and {absent:,} of the {checked:,} of this run are not in it, such as {example!r}, "
                "although the store has acknowledged them. Unless somebody deletes there at the same time, the store "
                "loses data"
            )
        _log.info("%s: somebody else writes to it, too. All %d points of this run are there", counted, checked)
        return found

    def _missing(self) -> Iterator[list[str]]:
        """The records that points belong to and that did not occur, page by page; one entry for each point."""
        layout, offset = self._collection.layout, None
        if not self._collection.exists():
            return
        while True:
            points, offset = self._uploader.ask(
                partial(
                    self._collection.client.scroll,
                    self._collection.name,
                    limit=_PAGE,
                    offset=offset,
                    with_payload=[layout.marks_path],
                )
            )
            owners = [(layout.marks(point.payload or {}) or {}).get("record") for point in points]
            yield [owner for owner in owners if owner is not None and owner not in self._seen]
            if offset is None:
                return

    def _ours(self) -> Iterator[dict[str, str]]:
        """Point ids and chunk ids of all that this run has stored or found, some at a time."""
        page: dict[str, str] = {}
        for record_id, chunks in self._seen.stored():
            for identifier in (chunk_id(record_id, index) for index in range(chunks)):
                page[point_id(identifier)] = identifier
                if len(page) == _PAGE:
                    yield page
                    page = {}
        if page:
            yield page
