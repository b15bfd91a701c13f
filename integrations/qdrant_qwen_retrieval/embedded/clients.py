"""The embedded store under the interface of qdrant-client, in both colours."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.async_client_base import AsyncQdrantBase
from qdrant_client.client_base import QdrantBase

from qdrant_qwen_retrieval.embedded.catalog import CollectionsMixin
from qdrant_qwen_retrieval.embedded.groups import GroupsMixin
from qdrant_qwen_retrieval.embedded.points import PointsMixin


class EdgeBackend(CollectionsMixin, PointsMixin, GroupsMixin):
    """Everything that an embedded store can do.

    What qdrant-edge cannot do raises NotImplementedError: snapshots, shard keys, clusters, the search matrix.
    """


class AsyncEdgeBackend(AsyncQdrantBase):
    """The same, each call in a thread.

    Args:
        backend: Whose methods are called.
    """

    def __init__(self, backend: EdgeBackend) -> None:
        super().__init__()
        self.backend = backend

    async def close(self, **options: object) -> None:
        """Gives the share in the store back."""
        await asyncio.to_thread(self.backend.close, **options)

    async def optimize(self, collection_name: str) -> bool:
        """See `EmbeddedQdrantClient.optimize`."""
        return await asyncio.to_thread(self.backend.optimize, collection_name)

    async def flush(self, collection_name: str) -> None:
        """See `EmbeddedQdrantClient.flush`."""
        await asyncio.to_thread(self.backend.flush, collection_name)

    def upload_points(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Not async in qdrant-client either."""
        self.backend.upload_points(*arguments, **options)

    def upload_collection(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Not async in qdrant-client either."""
        self.backend.upload_collection(*arguments, **options)


class EmbeddedQdrantClient(QdrantClient):
    """A persistent store in a folder, on the engine of the Qdrant server, for one process at a time.

    The engine runs in a process of its own, so that nothing it does stops the threads of this one; every client of
    the same folder in this process, sync or async, shares it. Methods are those of `QdrantClient` and may be called
    from any thread. A write is in the engine's log when its method returns, and survives the end of both processes.

    Numbers in payloads may come back changed in the last of their 17 digits, which is how the engine stores them.

    Beside its data a collection has a log in files of 32 MB each, about 100 MB together by their size. They are sparse
    and take far less of the disk: what was not flushed yet, at most 64 MB of vectors. Opening reads that again.

    Args:
        path: The folder; made if it does not exist.

    Raises:
        StoreLockedError: Another process has it open.
        StoreError: It is no store, or of another version.
        MissingDependencyError: qdrant-edge is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        backend = EdgeBackend(path)
        super().__init__(location=":memory:")  # sets what its methods need; there is no other way to give a backend
        self._client: QdrantBase = backend
        self._backend = backend
        self._init_options = {"path": os.fspath(path)}

    def __del__(self) -> None:
        """Nothing: the backend gives its share back itself, without the locks that `close` waits for."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._init_options['path']!r})"

    def optimize(self, collection_name: str) -> bool:
        """Builds graphs and compressed vectors as the settings of the collection say.

        Other threads of this process go on, but calls to the same store wait until it ends. Without it every search
        compares with every vector, which is exact, and fast up to about 100 thousand points.

        Args:
            collection_name: The collection.

        Returns:
            Whether there was anything to build.
        """
        return self._backend.optimize(collection_name)

    def flush(self, collection_name: str) -> None:
        """Writes a collection to the disk, so that it survives a power cut too, and empties its log.

        `close` does it for every collection, and writing does it after every 64 MB of vectors.

        Args:
            collection_name: The collection.
        """
        self._backend.flush(collection_name)


class AsyncEmbeddedQdrantClient(AsyncQdrantClient):
    """`EmbeddedQdrantClient` for asyncio: its calls run in threads.

    Args:
        path: The folder; made if it does not exist.

    Raises:
        StoreLockedError: Another process has it open.
        StoreError: It is no store, or of another version.
        MissingDependencyError: qdrant-edge is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        backend = AsyncEdgeBackend(EdgeBackend(path))
        super().__init__(location=":memory:")  # sets what its methods need; there is no other way to give a backend
        self._client: AsyncQdrantBase = backend
        self._backend = backend
        self._init_options = {"path": os.fspath(path)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._init_options['path']!r})"

    async def optimize(self, collection_name: str) -> bool:
        """See `EmbeddedQdrantClient.optimize`."""
        return await self._backend.optimize(collection_name)

    async def flush(self, collection_name: str) -> None:
        """See `EmbeddedQdrantClient.flush`."""
        await self._backend.flush(collection_name)


def _in_thread(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def method(self: AsyncEdgeBackend, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return await asyncio.to_thread(getattr(self.backend, name), *arguments, **options)

    method.__name__ = name
    return method


def _unsupported(name: str) -> Callable[..., Any]:
    def method(_self: EdgeBackend, *_arguments: object, **_options: object) -> NoReturn:
        raise NotImplementedError(
            f"{name}: the embedded engine cannot do it; use a Qdrant server, QdrantClient(url=...)"
        )

    method.__name__ = name
    return method


for _name, _method in inspect.getmembers(QdrantBase, inspect.isfunction):
    if not _name.startswith("_") and getattr(EdgeBackend, _name) is _method:
        setattr(EdgeBackend, _name, _unsupported(_name))

for _name, _method in inspect.getmembers(AsyncQdrantBase, inspect.iscoroutinefunction):
    if _name not in vars(AsyncEdgeBackend):
        setattr(AsyncEdgeBackend, _name, _in_thread(_name))
