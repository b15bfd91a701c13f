"""Loading many points into a server: its index is built once, afterwards, and not again and again meanwhile."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tenacity
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval.faults import Fault, fault_of, retry_after
from qwen_retrieval.errors import StoreError

_KEY = "qwen_retrieval_load:"
"""In the collection's metadata, each load has a key of its own beginning so: writing one never touches another's."""

DEFERRED = 1_000_000_000
"""Kilobytes of a segment up to which it is not indexed during a load: more than any has. Not 0 and not m=0: those
throw existing graphs away, see https://qdrant.tech/documentation/database-tutorials/bulk-upload/."""

INDEXED_SHARE, SMALL = 0.9, 20_000
"""A collection of more points than this, of which this share is indexed already, takes more points as it is."""

RENEWED_EVERY, LEASE = 60.0, 900.0
"""Seconds after which a load says that it still runs, and after which it is taken for dead. The second is long beside
the difference between the clocks of machines."""

POLL, _TIMES_GREEN = 1.0, 2
"""Seconds between looks at a server that builds its index, and how many of them must find it done."""

_under_way: set[str] = set()
"""Keys of the loads of this process."""

_log = logging.getLogger(__name__)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    backoff = tenacity.wait_random_exponential(multiplier=0.5, max=5)(state)
    return max(backoff, retry_after(error) if error else 0.0)


patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(lambda error: fault_of(error) is Fault.TRANSIENT),
    wait=_wait,
    stop=tenacity.stop_after_attempt(6),
    reraise=True,
)
"""Has a function called again, for some seconds, when a server has a bad moment: requests that may be sent twice, where
a wrong address must not take minutes to tell."""


@contextmanager
def deferred_indexing(client: QdrantClient, name: str) -> Iterator[None]:
    """Raise the indexing threshold of a server's collection for the time of a load.

    The old value is written into the collection's metadata before it is changed, so that it can be restored by whoever
    comes next if this process is killed. Of several loads at once the last one restores it. Nothing is done for a
    collection that is indexed already, or whose indexing somebody has switched off or put off.

    Args:
        client: Of the server.
        name: Of an existing collection.
    """
    info = _info(client, name)
    loads = _loads(info)
    original = _original(info, loads)
    if not original or original >= DEFERRED or (not loads and _is_indexed(info)):
        yield
        return
    key = f"{_KEY}{uuid.uuid4()}"
    _under_way.add(key)
    try:
        _announce(client, name, key, original)
        _set_threshold(client, name, DEFERRED)
        with _renewed(client, name, key, original):
            yield
    except BaseException:
        try:
            _end(client, name, key, original)
        except Exception as error:  # the caller must hear of what went wrong first
            _log.warning("the indexing threshold of %r is left to the next load to restore: %s", name, error)
        raise
    else:
        _end(client, name, key, original)
    finally:
        _under_way.discard(key)


def restore_indexing(client: QdrantClient, name: str, *, fallback: int | None = None) -> bool:
    """Restore the indexing threshold if no load is running any more, be it that they ended or that they were killed.

    Args:
        client: Of the server.
        name: Of an existing collection.
        fallback: The value to restore if no load that was killed has left one; None for nothing to restore then.

    Returns:
        Whether it was restored.
    """
    loads = _loads(_info(client, name))
    if any(_is_alive(key, load) for key, load in loads.items()):
        return False
    original = next((int(load["indexing_threshold"]) for load in loads.values()), fallback)
    if original is None:
        return False
    _set_threshold(client, name, original)
    if loads:  # only now: killed in between, the next one does it again
        _update(client, name, metadata=dict.fromkeys(loads))
    return True


def wait_until_indexed(client: QdrantClient, name: str, timeout: float) -> bool:
    """Wait until a server has built its index.

    Args:
        client: Of the server.
        name: Of an existing collection.
        timeout: Seconds to wait.

    Returns:
        Whether it has, in time.

    Raises:
        StoreError: The server reports that it has failed.
    """
    end = time.monotonic() + timeout
    green = 0
    while True:
        info = _info(client, name)
        if info.status == models.CollectionStatus.RED:
            raise StoreError(f"Qdrant has failed to index collection {name!r}: {info.optimizer_status}")
        if info.status == models.CollectionStatus.GREY:  # it waits for any change before it goes on
            _update(client, name, optimizers_config=models.OptimizersConfigDiff())
        # Right after the last point it is green too, because the work has not begun.
        green = green + 1 if info.status == models.CollectionStatus.GREEN else 0
        if green == _TIMES_GREEN:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(POLL)


def _end(client: QdrantClient, name: str, key: str, original: int) -> None:
    _update(client, name, metadata={key: None})
    restore_indexing(client, name, fallback=original)


def _loads(info: models.CollectionInfo) -> dict[str, Mapping[str, Any]]:
    metadata = info.config.metadata or {}
    return {key: load for key, load in metadata.items() if key.startswith(_KEY) and isinstance(load, Mapping)}


def _original(info: models.CollectionInfo, loads: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The threshold as it was before the first of the loads that are under way, or were killed."""
    recorded = next((int(load["indexing_threshold"]) for load in loads.values()), None)
    return info.config.optimizer_config.indexing_threshold if recorded is None else recorded


def _is_indexed(info: models.CollectionInfo) -> bool:
    points = info.points_count or 0
    return points > SMALL and (info.indexed_vectors_count or 0) >= INDEXED_SHARE * points


@patiently
def _update(client: QdrantClient, name: str, **changes: Any) -> None:  # noqa: ANN401
    client.update_collection(name, **changes)


@patiently
def _info(client: QdrantClient, name: str) -> models.CollectionInfo:
    return client.get_collection(name)


def _set_threshold(client: QdrantClient, name: str, kilobytes: int) -> None:
    _update(client, name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=kilobytes))


def _announce(client: QdrantClient, name: str, key: str, original: int) -> None:
    load = {"indexing_threshold": original, "renewed": time.time(), "machine": _machine(), "process": os.getpid()}
    _update(client, name, metadata={key: load})


@contextmanager
def _renewed(client: QdrantClient, name: str, key: str, original: int) -> Iterator[None]:
    """Say again and again that the load runs."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED_EVERY):
            try:
                _announce(client, name, key, original)
            except Exception as error:  # the next time will do; the load itself says what is wrong with the server
                _log.debug("the load of %r could not be renewed: %s", name, error)

    thread = threading.Thread(target=renew, name=f"load of {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_alive(key: str, load: Mapping[str, Any]) -> bool:
    process = int(load.get("process", 0))
    if load.get("machine") == _machine() and process == os.getpid():
        return key in _under_way  # of this process, or of one that was killed and had the same number, as in containers
    if time.time() - float(load.get("renewed", 0)) > LEASE:
        return False
    return load.get("machine") != _machine() or _runs(process)


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine; True if that cannot be told."""
    if os.name != "posix" or process <= 0:
        return True  # elsewhere signal 0 would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _machine() -> str:
    """A name for this machine, or container, that tells nobody which it is."""
    return hashlib.blake2b(f"{socket.gethostname()} {uuid.getnode()}".encode(), digest_size=8).hexdigest()
