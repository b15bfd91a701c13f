"""A server as a process of its own: prints its ports as one line of JSON and serves until it is ended."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from pathlib import Path

from qdrant_client import QdrantClient

from tests.qdrant_server.faults import RandomFaults
from tests.qdrant_server.server import Server
from tests.qdrant_server.store import Store


def main() -> None:
    """Read the options, serve, and end at SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", default=":memory:", help="folder of the embedded engine, or :memory:")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--api-key", default=os.environ.get("QDRANT_API_KEY"))
    parser.add_argument("--version", default="1.20.0", help="which server to be")
    parser.add_argument("--strict", action="store_true", help="refuse filters on fields without an index")
    parser.add_argument("--fault-rate", type=float, default=0.0, help="share of requests that go wrong")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    backend, settings = _open(options.path)
    store = Store(backend, version=options.version, strict=options.strict, settings_file=settings)
    chance = RandomFaults(options.seed, options.fault_rate) if options.fault_rate else None
    server = Server(store, port=options.port, grpc_port=options.grpc_port, api_key=options.api_key, chance=chance)
    server.start()
    print(json.dumps({"url": server.url, "port": server.rest_port, "grpc_port": server.grpc_port}), flush=True)
    ended.wait()
    server.stop()
    backend.close()


def _open(path: str) -> tuple[QdrantClient, Path | None]:
    if path == ":memory:":
        return QdrantClient(":memory:"), None
    from qdrant_qwen_retrieval import EmbeddedQdrantClient

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return EmbeddedQdrantClient(folder), folder / "server-settings.json"


if __name__ == "__main__":
    main()
