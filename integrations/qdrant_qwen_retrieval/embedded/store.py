"""The stores that this process has open: every client of the same folder shares one engine."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from qdrant_qwen_retrieval.embedded.engine import EngineProcess
from qdrant_qwen_retrieval.embedded.folder import StoreFolder, check_usable
from qwen_retrieval.errors import StoreError

EXIT_PATIENCE = 5.0  # seconds that the end of a program waits for a call of a daemon thread
_stores: dict[Path, Store] = {}
_locks: dict[Path, threading.Lock] = {}
"""By folder: held while its engine is started or stopped, so that the next one finds its lock free."""
_dropped: queue.SimpleQueue[Store] = queue.SimpleQueue()
"""Once for each client that nobody closed. The collector may find it at any place, also inside of a call that holds an
engine's lock, and so can wait for nothing."""


class Store:
    """A folder with its engine's process.

    Attributes:
        root: The folder.
        engine: The process.
        folder: What is recorded about the collections; read anew when the process had to be started again.
    """

    folder: StoreFolder

    def __init__(self, root: Path) -> None:
        self.root = root
        self.engine = EngineProcess(root, self._read)
        self._users = 0

    def drop(self, collection_name: str) -> Path:
        """Takes the files of a collection away, so that it is no more, and returns where they are to be removed."""
        garbage = self.folder.garbage()
        self.engine.call("drop", shard=self.folder.shard(collection_name), garbage=garbage)
        return self.root / garbage

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """The store of a folder, which is made if it does not exist; `release` it once for every `open`.

        Raises:
            StoreLockedError: Another process has it open.
            StoreError: The folder cannot be used.
        """
        root = Path(path).expanduser().absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            check_usable(root)
        except OSError as error:
            raise StoreError(f"{root} cannot be a store: {error}") from error
        root = root.resolve()
        _release_dropped()
        with _lock_of(root):
            store = _stores.get(root)
            if store is not None and store.engine.lost_folder():
                store.engine.discard()
            if store is None or not store.engine.usable:  # closed or removed meanwhile, or its process died
                store = _stores[root] = cls(root)
            store._users += 1
            return store

    def release(self) -> None:
        """One client needs it no more; the last ends the process, when everything is written."""
        _release_dropped()
        with _lock_of(self.root):
            self._leave()

    def release_dropped(self) -> None:
        """`release`, for a client that the collector has found: now if that is possible without waiting, or later."""
        _dropped.put(self)
        _release_dropped()

    def _read(self, guard: Callable[[], None]) -> None:
        self.folder = StoreFolder(self.root, guard)

    def _leave(self, patience: float = -1) -> None:
        self._users -= 1
        if self._users:
            return
        if _stores.get(self.root) is self:
            del _stores[self.root]
        self.engine.stop(patience)

    def _try_leave(self) -> bool:
        """`release`, if nobody else is opening or releasing the same folder."""
        lock = _lock_of(self.root)
        if not lock.acquire(blocking=False):
            return False
        try:
            with contextlib.suppress(StoreError):  # nobody could catch it
                self._leave(patience=0)  # nobody is in a call: the last client is gone
        finally:
            lock.release()
        return True


def _lock_of(root: Path) -> threading.Lock:
    return _locks.setdefault(root, threading.Lock())


def _release_dropped() -> None:
    """Ends the engines of those who did not close; waits for nobody."""
    for _ in range(_dropped.qsize()):
        try:
            store = _dropped.get_nowait()
        except queue.Empty:
            return
        if not store._try_leave():
            _dropped.put(store)


def _after_fork() -> None:
    """In the new process: the engines belong to the old one."""
    global _dropped
    _locks.clear()  # other threads of the old process may have held them
    _dropped = queue.SimpleQueue()
    for store in _stores.values():
        store.engine.abandon()
    _stores.clear()


@atexit.register
def _close_all() -> None:
    """At the end of the program, for those who did not close."""
    for store in list(_stores.values()):
        with contextlib.suppress(StoreError):
            store.engine.stop(EXIT_PATIENCE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
