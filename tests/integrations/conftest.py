"""Fixtures for the tests against a Qdrant server: one on loopback, and nobody who waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qdrant_qwen_retrieval.stopping import Stop
    from tests.qdrant_server import Server

# What needs Qdrant is imported by the fixtures: other adapters are tested without it, too.


@pytest.fixture(scope="package", autouse=True)
def no_certificates() -> Iterator[None]:
    """httpx reads the certificates of all authorities for each client, for 20 ms; no server of these tests encrypts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))  # where there are none
        yield


@pytest.fixture(params=[False, True], ids=["rest", "grpc"])
def prefer_grpc(request: pytest.FixtureRequest) -> bool:
    """Both ways to speak with a server."""
    flag: bool = request.param
    return flag


@pytest.fixture
def server() -> Iterator[Server]:
    """A server in front of qdrant-client's store in memory."""
    from qdrant_client import QdrantClient

    from tests.qdrant_server import serve

    backend = QdrantClient(":memory:")
    with serve(backend) as server:
        yield server
    backend.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited; nobody waits them."""
    import tenacity

    from qdrant_qwen_retrieval.stopping import Stop

    waits: list[float] = []

    def wait(stop: Stop, seconds: float) -> None:
        waits.append(seconds)
        stop.check()

    monkeypatch.setattr(Stop, "sleep", wait)
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    return waits
