"""What the tests of the helper against a server share: a corpus and its next version, and what is stored of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval import QdrantIndex
from qwen_retrieval.testing import FakeEmbeddingEngine
from tests.integrations.qdrant_parts import make_embedder
from tests.qdrant_server import Server

SERVER_THRESHOLD = 10_000  # what a server has that nobody has told otherwise
CORPUS = [
    {
        "id": f"r{number}",
        "text": " ".join(f"word{number + place} of sentence {place}." for place in range(1 + number % 4)),
        "year": 2000 + number % 7,
        "tags": ["even", "odd"][number % 2 :],
    }
    for number in range(24)
]


def changed(corpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The next version: new texts, longer and shorter ones, other metadata, some records gone and some new."""
    found = []
    for number, record in enumerate(corpus[3:]):
        longer = {"text": f"{record['text']} More of it. And more."} if number % 5 == 1 else {}
        shorter = {"text": record["text"][:9]} if number % 5 == 2 else {}
        other = {"year": 1900} if number % 5 == 3 else {}
        found.append(record | longer | shorter | other)
    return [*found, {"id": "new", "text": "A record that was not there."}]


def open_index(
    server: Server, prefer_grpc: bool, engine: FakeEmbeddingEngine | None = None, **options: Any
) -> QdrantIndex:
    address: dict[str, Any] = {"url": server.url, "grpc_port": server.grpc_port, "prefer_grpc": prefer_grpc}
    defaults: dict[str, Any] = {"embedder": make_embedder(engine), "timeout": 10}
    return QdrantIndex("test", **(defaults | address | options))


def fill(index: QdrantIndex, corpus: list[dict[str, Any]] = CORPUS, **options: Any) -> Any:
    return index.ingest(corpus, **({"chunk_size": 30, "batch_size": 16, "workers": 2} | options))


def content(client: QdrantClient, name: str = "test") -> dict[str, Any]:
    """All that is stored: payload and vectors of each point, rounded to what float32 carries."""
    points, offset = client.scroll(name, limit=100_000, with_vectors=True)
    assert offset is None
    assert len({point.id for point in points}) == len(points)
    return {str(point.id): (point.payload, _rounded(point.vector)) for point in points}


def _rounded(vector: Any) -> Any:
    if isinstance(vector, dict):
        return {name: _rounded(inner) for name, inner in vector.items()}
    if isinstance(vector, models.SparseVector):
        return dict(sorted(zip(vector.indices, _rounded(vector.values), strict=True)))
    return np.round(np.asarray(vector), 5).tolist()


@functools.cache
def expected_content(versions: int = 1, **options: Any) -> dict[str, Any]:
    """What is stored where nothing goes wrong, in memory, of so many versions of the corpus."""
    with QdrantIndex("test", embedder=make_embedder(), path=":memory:", **options) as index:
        for corpus in (CORPUS, changed(CORPUS))[:versions]:
            fill(index, corpus, delete_missing=True)
        return content(index.client)


def threshold(server: Server, name: str = "test") -> int | None:
    config = server.store.do("get_collection", name, None, wait=True).config
    metadata = config.metadata or {}
    assert list(metadata) == ["qwen_retrieval"], "a load that has ended is still announced"
    found: int | None = config.optimizer_config.indexing_threshold
    return found
