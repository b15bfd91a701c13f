"""The record ids of a run, on disk: what a hundred million ids need must not be memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from threading import Lock
from types import TracebackType
from typing import Self

_SOME = 1000


class Seen:
    """Which records occurred in the input of a run; a temporary file that vanishes with it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._prefixes: tuple[str, ...] = ()
        # Without a name it is a temporary file, which SQLite removes from its folder as soon as it is open, so that not
        # even a killed run leaves it behind: https://www.sqlite.org/inmemorydb.html#temp_db
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("temp_store=FILE", "journal_mode=OFF", "synchronous=OFF"):  # nobody reads it after a crash
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE seen (id TEXT PRIMARY KEY, chunks INTEGER, failed INTEGER DEFAULT 0) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def add(self, record_id: str, chunks: int) -> bool:
        """Note a record; False if one of that id, that could be read, was there before.

        Args:
            record_id: Its id.
            chunks: How many chunks it has; 0 for one that cannot be ingested, but occurs.
        """
        with self._lock:
            found = self._database.execute(
                "INSERT INTO seen (id, chunks) VALUES (?, ?) "
                "ON CONFLICT (id) DO UPDATE SET chunks = excluded.chunks WHERE chunks = 0",
                (_storable(record_id), chunks),
            )
            return found.rowcount == 1

    def add_prefix(self, prefix: str) -> None:
        """Note that records whose ids begin so occur, although nobody knows which."""
        with self._lock:
            self._prefixes += (prefix,)

    def fail(self, record_id: str) -> None:
        """Note that a record is not stored, or not completely."""
        with self._lock:
            self._database.execute("UPDATE seen SET failed = 1 WHERE id = ?", (_storable(record_id),))

    def __contains__(self, record_id: str) -> bool:
        with self._lock:
            return record_id.startswith(self._prefixes) or (
                self._database.execute("SELECT 1 FROM seen WHERE id = ?", (_storable(record_id),)).fetchone()
                is not None
            )

    def stored(self) -> Iterator[tuple[str, int]]:
        """Ids and numbers of chunks of the records that were stored completely, in the order of their ids."""
        last = ""
        while True:
            with self._lock:
                rows = self._database.execute(
                    "SELECT id, chunks FROM seen WHERE id > ? AND chunks > 0 AND NOT failed ORDER BY id LIMIT ?",
                    (last, _SOME),
                ).fetchall()
            yield from rows
            if len(rows) < _SOME:
                return
            last = rows[-1][0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()


def _storable(record_id: str) -> str:
    return record_id.encode(errors="backslashreplace").decode()  # halves of surrogate pairs, of rejected records
