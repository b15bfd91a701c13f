"""The stores that this process has open: every client of the same folder shares one engine."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
from pathlib import Path

from qdrant_qwen_retrieval.embedded.engine import EngineProcess
from qdrant_qwen_retrieval.embedded.folder import StoreFolder, check_usable
from qwen_retrieval.errors import StoreError

_lock = threading.RLock()  # the collector may close a client while this thread opens another
_stores: dict[Path, Store] = {}


class Store:
    """A folder with its engine's process.

    Attributes:
        root: The folder.
        engine: The process.
        folder: What is recorded about the collections.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.engine = EngineProcess(root)
        try:
            self.folder = StoreFolder(root)
        except BaseException:
            self.engine.stop()
            raise
        self._users = 0

    def drop(self, collection_name: str) -> None:
        """Removes the files of a collection."""
        garbage = self.folder.garbage()
        self.engine.call("drop", shard=self.folder.shard(collection_name), garbage=garbage)
        shutil.rmtree(self.root / garbage)

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
        with _lock:
            store = _stores.get(root)
            if store is None or not store.engine.usable:  # closed meanwhile, or its process died
                store = _stores[root] = cls(root)
            store._users += 1
            return store

    def release(self) -> None:
        """One client needs it no more; the last ends the process, when everything is written."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            if _stores.get(self.root) is self:
                del _stores[self.root]
            self.engine.stop()


def _after_fork() -> None:
    """In the new process: the engines belong to the old one."""
    global _lock
    _lock = threading.RLock()
    for store in _stores.values():
        store.engine.abandon()
        store.folder.lock = threading.RLock()
    _stores.clear()


@atexit.register
def _close_all() -> None:
    """At the end of the program, for those who did not close."""
    for store in list(_stores.values()):
        with contextlib.suppress(StoreError):
            store.engine.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
