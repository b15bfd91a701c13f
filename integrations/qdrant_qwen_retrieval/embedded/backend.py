"""What all parts of the backend stand on: one client's share of a store."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from pydantic_core import to_jsonable_python
from qdrant_client import models
from qdrant_client.client_base import QdrantBase

from qdrant_qwen_retrieval.embedded.edge_process.wire import Packer, Words
from qdrant_qwen_retrieval.embedded.store import Store
from qdrant_qwen_retrieval.embedded.vectors import VectorSchema
from qwen_retrieval.errors import StoreError

Json = dict[str, Any]
CLOSED = "this client is closed; open a new one"


class EdgeBase(QdrantBase):
    """A client's share of a store, from when it is made to `close`.

    Args:
        path: The folder of the store.

    Raises:
        StoreLockedError: Another process has it open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._store: Store | None = Store.open(path)

    def __del__(self) -> None:
        if sys.is_finalizing():  # the store was closed at exit, and half of Python is gone
            return
        store = self._leave()
        if store is not None:
            store.release_dropped()

    def close(self, **_options: object) -> None:
        """Gives the share back; the last one writes everything and ends the engine. Again, it does nothing."""
        store = self._leave()
        if store is not None:
            store.release()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._store is None

    def _leave(self) -> Store | None:
        store: Store | None
        store, self._store = getattr(self, "_store", None), None  # there is none when opening it failed
        return store

    def _opened(self) -> Store:
        """The store, whose engine can be asked, and what is recorded in its folder up to date."""
        if self._store is None:
            raise StoreError(CLOSED)
        self._store.engine.check()
        return self._store

    @contextlib.contextmanager
    def _recording(self, collection_name: str) -> Iterator[tuple[str, Json]]:
        """The name of a collection, and its settings: what the block makes of them is recorded when it ends."""
        folder = self._opened().folder
        with folder.lock:
            name = folder.resolve(collection_name)
            settings = dict(folder.settings[name])
            yield name, settings
            if settings != folder.settings[name]:
                folder.write(name, settings)

    def _shard(self, collection_name: str) -> str:
        folder = self._opened().folder
        return folder.shard(folder.resolve(collection_name))

    def _settings(self, collection_name: str) -> Json:
        folder = self._opened().folder
        return folder.settings[folder.resolve(collection_name)]

    def _schema(self, collection_name: str) -> VectorSchema:
        return VectorSchema.of(self._settings(collection_name))

    def _call(
        self, op: str, collection_name: str, packer: Packer | None = None, /, **arguments: object
    ) -> tuple[Json, Words]:
        return self._opened().engine.call(op, packer, shard=self._shard(collection_name), **arguments)


def done() -> models.UpdateResult:
    """A write that was applied; the engine does not number its operations."""
    return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)


def jsonable(value: Any) -> Any:  # noqa: ANN401
    """Dates, UUIDs and the like as JSON writes them, as the server stores metadata."""
    return to_jsonable_python(value)
