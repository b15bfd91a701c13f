"""Both interfaces of one store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qdrant_client import QdrantClient

from tests.qdrant_server.faults import Faults, RandomFaults
from tests.qdrant_server.gate import Gate, Request
from tests.qdrant_server.rest import RestServer
from tests.qdrant_server.rpc import RpcServer
from tests.qdrant_server.store import Store


class Server:
    """A Qdrant server on loopback.

    Args:
        store: What it keeps. It outlives the server: `stop` and `start` are a server that dies and comes back.
        rest: Whether to speak REST.
        grpc: Whether to speak gRPC.
        port: For REST; 0 for any free one.
        grpc_port: For gRPC; 0 for any free one.
        api_key: Who may do everything; None lets everybody in.
        read_only_key: Who may read, if there is an `api_key`.
        chance: Faults at random.
    """

    def __init__(
        self,
        store: Store,
        *,
        rest: bool = True,
        grpc: bool = True,
        port: int = 0,
        grpc_port: int = 0,
        api_key: str | None = None,
        read_only_key: str | None = None,
        chance: RandomFaults | None = None,
    ) -> None:
        self.store = store
        self.faults = Faults(chance)
        self.rest_port, self.grpc_port = port, grpc_port
        self._speaks = rest, grpc
        self._gate = Gate(store, self.faults, api_key, read_only_key)
        self._rest: RestServer | None = None
        self._rpc: RpcServer | None = None
        self._listener: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Of the REST interface; a client that speaks gRPC needs `grpc_port` too."""
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def requests(self) -> list[Request]:
        """All that came, in order, but the question for the version that clients ask from a thread of their own."""
        return [request for request in self._gate.requests if request.operation != "info"]

    def operations(self, *names: str) -> list[str]:
        """The operations in order; only those called so, if any are named."""
        return [request.operation for request in self.requests if not names or request.operation in names]

    def forget_requests(self) -> None:
        """The log begins anew."""
        self._gate.requests.clear()

    def client(self, *, prefer_grpc: bool, **options: Any) -> QdrantClient:
        """A plain client of it.

        It does not ask for the version from a thread that may outlive the server, and comes back soon to a server that
        was away: gRPC waits a second and more, and all channels of a process to one address wait together.
        """
        channel = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.use_local_subchannel_pool": 1}
        options = {"check_compatibility": False, "grpc_options": channel, **options}
        return QdrantClient(url=self.url, grpc_port=self.grpc_port, prefer_grpc=prefer_grpc, **options)

    def start(self) -> None:
        """Listen, on the same ports as before if there were any."""
        rest, grpc = self._speaks
        self._gate.stopping.clear()
        if rest:
            self._rest = RestServer(self._gate, self.rest_port)
            self.rest_port = self._rest.server_address[1]
            self._listener = threading.Thread(target=self._rest.serve_forever, args=(0.02,), name="qdrant-rest")
            self._listener.start()
        if grpc:
            self._rpc = RpcServer(self._gate, self.grpc_port)
            self.grpc_port = self._rpc.port

    def stop(self) -> None:
        """Stop at once, as a process does that is killed; what was written stays."""
        self._gate.stopping.set()
        if self._rpc is not None:
            self._rpc.stop()
        if self._rest is not None and self._listener is not None:
            self._rest.shutdown()
            self._rest.server_close()
            self._listener.join()
        self._rest = self._rpc = self._listener = None


@contextmanager
def serve(
    backend: QdrantClient | Store,
    *,
    version: str = "1.20.0",
    strict: bool = False,
    **options: Any,
) -> Iterator[Server]:
    """A server for the time of a ``with`` block.

    Args:
        backend: What stores and searches; it stays open.
        version: Which server to be. Before 1.16 collections have no metadata.
        strict: Whether filters on fields without an index are refused.
        options: Those of `Server`.
    """
    store = backend if isinstance(backend, Store) else Store(backend, version=version, strict=strict)
    server = Server(store, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
