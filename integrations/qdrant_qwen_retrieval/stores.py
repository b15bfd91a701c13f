"""Where collections lie: in memory, in a folder, or on a server. All three are reached through a `QdrantClient`."""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import grpc
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.qdrant_local import QdrantLocal
from qdrant_client.qdrant_remote import QdrantRemote

from qwen_retrieval.errors import CollectionNotFoundError, StoreError

MEMORY = ":memory:"
KEY_VARIABLE = "QDRANT_API_KEY"
REST_PORT, GRPC_PORT = 6333, 6334  # Qdrant's defaults, https://qdrant.tech/documentation/operations/configuration/

RECONNECT_MS = 5_000
"""Milliseconds after which gRPC tries again, at the latest, to reach a server that was away. Its own limit is two
minutes, for which a server that is back would still count as away."""

StoreKind = Literal["memory", "embedded", "server"]


class SecretValue(Protocol):
    """A key that does not show itself: pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """The key."""


class ResolvedSecret(Protocol):
    """A key that does not show itself: Haystack's ``Secret``."""

    def resolve_value(self) -> Any:  # noqa: ANN401
        """The key, or None."""


ApiKey = str | SecretValue | ResolvedSecret


@dataclass(frozen=True)
class Store:
    """A client, and what is known of the store behind it.

    Attributes:
        client: To be used by any number of threads.
        kind: "memory", "embedded" (a folder) or "server".
        place: What to call it in messages: ":memory:", the folder, or the URL, which carries no secret.
        owned: Whether `close` closes the client.
    """

    client: QdrantClient
    kind: StoreKind
    place: str
    owned: bool = True

    def close(self) -> None:
        """Close the client, unless the caller brought it."""
        if self.owned:
            self.client.close()

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Around calls of the client: a server that cannot be reached, or refuses, becomes a `StoreError`.

        Raises:
            CollectionNotFoundError: There is no such collection.
            StoreError: Nobody answers at the URL, or the key is refused, or the server reports an error.
        """
        try:
            yield
        except (ResponseHandlingException, UnexpectedResponse, QdrantException, grpc.RpcError) as error:
            raise _explain(error, self.place) from error
        except ValueError as error:  # how the stores in memory and in a folder say it
            if _NOT_FOUND.fullmatch(str(error)):
                raise CollectionNotFoundError(f"{self.place} does not find it: {error}") from error
            raise


def open_store(
    path: str | os.PathLike[str] | None = None,
    *,
    url: str | None = None,
    client: QdrantClient | None = None,
    api_key: ApiKey | None = None,
    prefer_grpc: bool = True,
    grpc_port: int | None = None,
    timeout: int = 60,
    create: bool = True,
) -> Store:
    """Open a store by exactly one of `path`, `url` and `client`. No server is asked anything yet.

    Args:
        path: A folder for the embedded engine, made if it is missing; or ":memory:", for tests.
        url: Of a server, such as "http://localhost:6333".
        client: One of your own, for a server, for ``QdrantClient(":memory:")``, or an `EmbeddedQdrantClient`. It is not
            closed with the store.
        api_key: Of the server: a string, pydantic's ``SecretStr`` or Haystack's ``Secret``. None for the environment
            variable QDRANT_API_KEY, which is read only if `url` is given.
        prefer_grpc: Use gRPC, which needs a quarter of the bytes and time for vectors; False for REST alone.
        grpc_port: Where the server listens for gRPC; None for 6334.
        timeout: Seconds to wait for an answer; qdrant-client's own 5 are too few for uploads.
        create: Whether a store is made in a folder that has none.

    Raises:
        CollectionNotFoundError: The folder has no store, and none shall be made.
        TypeError: An argument has the wrong type.
        ValueError: Not exactly one of the three is given, the URL is none, or something belongs to a server only.
        StoreError: The client is one of qdrant-client's ``path=`` mode, or the folder holds other things.
        StoreLockedError: Another process has the folder open.
        MissingDependencyError: The embedded engine is not installed.
    """
    given = [name for name, value in (("path", path), ("url", url), ("client", client)) if value is not None]
    if len(given) != 1:
        found = f"both {' and '.join(given)}" if given else "none"
        raise ValueError(
            'a store is named by exactly one of path (a folder, or ":memory:"), url (of a server) and client, '
            f"but got {found}"
        )
    if url is None and (api_key is not None or grpc_port is not None):
        raise ValueError("api_key and grpc_port belong to a server: give them with url")
    if url is not None:
        return _open_server(url, api_key, prefer_grpc, grpc_port, timeout)
    if client is not None:
        return _given(client)
    return _open_memory() if path == MEMORY else _open_folder(path, create=create)


def _open_memory() -> Store:
    client = QdrantClient(MEMORY)
    _serialise(client._client)
    return Store(client, "memory", MEMORY)


def _open_folder(path: str | os.PathLike[str] | None, *, create: bool) -> Store:
    from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient
    from qdrant_qwen_retrieval.embedded.folder import has_store

    folder = os.fspath(path) if path is not None else ""
    if not isinstance(folder, str) or not folder:
        raise ValueError(f'path must be a folder or ":memory:", but got {path!r}')
    if "://" in folder:
        raise ValueError(f"path must be a folder, but got {_without_secrets(folder)}; give a server as url")
    if not create and not has_store(Path(folder).expanduser()):
        raise CollectionNotFoundError(f"there is no store in {folder!r}; ingest something into it first")
    return Store(EmbeddedQdrantClient(folder), "embedded", folder)


def _given(client: QdrantClient) -> Store:
    if isinstance(client, AsyncQdrantClient):
        raise TypeError("client must be a QdrantClient, but got an AsyncQdrantClient; asearch needs no async client")
    if not isinstance(client, QdrantClient):
        raise TypeError(f"client must be a QdrantClient, but got {type(client).__name__}")
    backend = client._client
    if isinstance(backend, QdrantRemote):
        place = client.init_options.get("url") or client.init_options.get("host") or "the server of the given client"
        return Store(client, "server", _without_secrets(str(place)), owned=False)
    if isinstance(backend, QdrantLocal):
        _refuse_folder(backend)
        _serialise(backend)
        return Store(client, "memory", MEMORY, owned=False)
    from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient

    if isinstance(client, EmbeddedQdrantClient):
        return Store(client, "embedded", str(client.init_options["path"]), owned=False)
    raise TypeError(f"client must be one of a server, or an EmbeddedQdrantClient, but got {type(client).__name__}")


def _refuse_folder(backend: QdrantLocal) -> None:
    """Refuse qdrant-client's own way to keep collections in a folder."""
    if backend.persistent:
        raise StoreError(
            f"QdrantClient(path={str(backend.location)!r}) keeps its points as pickles in SQLite, writes each in a "
            "transaction of its own, and loses points when threads write together. Instead of client=, give path= with "
            "a new folder for the embedded engine, or url= for a server"
        )


_lock_of_locks = threading.Lock()


def _serialise(local: Any) -> None:  # noqa: ANN401
    """Let one thread at a time into qdrant-client's in-memory store, which takes no care of threads itself.

    Four threads that write break a collection for good (qdrant-client 1.20). The lock is put into the store itself, so
    that every client in front of it is covered, those inside of a framework's own store too.
    """
    with _lock_of_locks:
        if isinstance(getattr(local, "_qwen_lock", None), type(threading.RLock())):
            return
        lock = local._qwen_lock = threading.RLock()  # re-entrant: its methods call each other
        for name in dir(type(local)):
            method = getattr(local, name)
            if not name.startswith("_") and callable(method):
                setattr(local, name, _one_at_a_time(method, lock))


def _one_at_a_time(method: Callable[..., Any], lock: Any) -> Callable[..., Any]:  # noqa: ANN401
    @functools.wraps(method)
    def locked(*args: object, **kwargs: object) -> object:
        with lock:
            return method(*args, **kwargs)

    return locked


def _open_server(url: str, api_key: ApiKey | None, prefer_grpc: bool, grpc_port: int | None, timeout: int) -> Store:
    url, host, secure = _check_url(url)
    key = _reveal(api_key)
    if key and not secure and not _is_loopback(host):
        warnings.warn(
            f"the API key goes to {host} over plain http, where others can read it; use https",
            UserWarning,
            stacklevel=4,
        )
    # As a header, because as api_key the client would warn of plain http on this very machine too.
    client = QdrantClient(
        url=url,
        headers={"api-key": key} if key else None,
        prefer_grpc=prefer_grpc,
        grpc_port=GRPC_PORT if grpc_port is None else grpc_port,
        timeout=timeout,
        check_compatibility=False,  # it would ask over REST, and only warn
        grpc_options={"grpc.max_reconnect_backoff_ms": RECONNECT_MS},
    )
    return Store(client, "server", url + (f" (gRPC port {grpc_port or GRPC_PORT})" if prefer_grpc else ""))


def _check_url(url: str) -> tuple[str, str, bool]:
    """A URL with its scheme, its host, and whether it is https."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, but got {type(url).__name__}")
    complete = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(complete)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError as error:
        raise ValueError('url must look like "http://localhost:6333"; host or port cannot be read') from error
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError("url must carry no user, password or query; give the key of the server as api_key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f'url must look like "http://localhost:6333", but got {url!r}')
    return complete, parts.hostname, parts.scheme == "https"


def _reveal(api_key: ApiKey | None) -> str | None:
    """The key as a string that can stand in a header; never part of an error."""
    if api_key is None:
        key: Any = os.environ.get(KEY_VARIABLE)
    elif isinstance(api_key, str):
        key = api_key
    elif hasattr(api_key, "get_secret_value"):
        key = api_key.get_secret_value()
    elif hasattr(api_key, "resolve_value"):
        key = api_key.resolve_value()
    else:
        raise TypeError(f"api_key must be a string, a SecretStr or a Secret, but got {type(api_key).__name__}")
    if key is None or key == "":
        return None
    key = key.strip() if isinstance(key, str) else ""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ValueError(f"api_key (or {KEY_VARIABLE}) must be printable ASCII without spaces")
    return str(key)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url).split("?")[0]


def _explain(error: Exception, place: str) -> StoreError:
    """What a reader needs to know of an error of the client."""
    status, detail = status_of(error)
    if status in (401, 403):
        return StoreError(
            f"Qdrant at {place} refuses the key; give api_key, or set {KEY_VARIABLE}, to one that may do this"
        )
    if status == 404:
        return CollectionNotFoundError(f"Qdrant at {place} does not find it: {detail}")
    if status is not None:
        hint = ". Open the index with that field in indexed_fields" if "Index required" in detail else ""
        return StoreError(f"Qdrant at {place} reports an error ({status}): {detail}{hint}")
    return StoreError(
        f"Qdrant at {place} does not answer: {detail}. Check that the server runs and that host and ports are right: "
        f"REST has {REST_PORT} and gRPC {GRPC_PORT}, unless it is set up otherwise (grpc_port=…, or prefer_grpc=False "
        "where only REST is open); a slow one needs a longer timeout"
    )


_NOT_FOUND = re.compile(r"Collection .* not found", re.S)

_STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


def status_of(error: BaseException) -> tuple[int | None, str]:
    """The HTTP status that an error of the client stands for, None if nobody answered, and what it says in one line."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code, _line(error.content.decode(errors="replace"))
    if isinstance(error, grpc.RpcError) and hasattr(error, "code"):
        return _STATUS.get(error.code()), _line(str(error.details() or error.code().name))
    if isinstance(error, QdrantException):
        return 429, _line(str(error))
    return None, _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"
