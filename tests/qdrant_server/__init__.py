"""A Qdrant server for tests: REST and gRPC over loopback, in front of any QdrantClient, with faults on demand.

There is no Qdrant server to install from a package registry, so what the tests call a server is a facade: it speaks the
protocols with the client's own models and messages, keeps the settings of collections as a server does, and leaves
storing and searching to the client it stands in front of. Its status codes, messages and defaults are those of
github.com/qdrant/qdrant 1.19 (`lib/storage/src/content_manager/errors.rs`, `src/actix/helpers.rs`,
`src/common/auth/mod.rs`, `config/config.yaml`).

    with serve(QdrantClient(":memory:")) as server:
        client = QdrantClient(url=server.url, grpc_port=server.grpc_port, prefer_grpc=True)
        server.faults.add(Reply(429, retry_after=2), on="upsert")
        ...
        assert [request.operation for request in server.requests] == [...]

As a program: ``python -m tests.qdrant_server --path FOLDER --port 0 --grpc-port 0``.
"""

from __future__ import annotations

from tests.qdrant_server.faults import Drop, Fault, Faults, Late, Lose, Poison, RandomFaults, Reply
from tests.qdrant_server.gate import Request
from tests.qdrant_server.server import Server, serve
from tests.qdrant_server.store import Refusal, Store

__all__ = [
    "Drop",
    "Fault",
    "Faults",
    "Late",
    "Lose",
    "Poison",
    "RandomFaults",
    "Refusal",
    "Reply",
    "Request",
    "Server",
    "Store",
    "serve",
]
