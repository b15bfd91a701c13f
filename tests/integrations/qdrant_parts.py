"""What the tests of the Qdrant helper share: a model, stores, corpora, and a look at what is stored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from qdrant_client import models

from qdrant_qwen_retrieval import EmbeddedQdrantClient, ingest
from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.report import IngestReport
from qdrant_qwen_retrieval.rows import RecordSource, Rejected
from qdrant_qwen_retrieval.stores import Store, open_store
from qwen_retrieval import Embedder
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from qwen_retrieval.types import TokenIds

DIMENSIONS = 16


class RecordingEngine(FakeEmbeddingEngine):
    """Remembers which texts it was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(DIMENSIONS, **options)
        self.texts: list[str] = []

    def embed(self, batch: list[TokenIds]) -> Any:
        self.texts += [bytes(id_ for id_ in ids if id_ < 256).decode() for ids in batch]
        return super().embed(batch)


def make_embedder(engine: FakeEmbeddingEngine | None = None, **options: Any) -> Embedder:
    """An embedder of `DIMENSIONS` without weights."""
    return Embedder(
        engine or RecordingEngine(), ByteTokenizer(), fake_embedding_spec(hidden_size=DIMENSIONS), **options
    )


def memory_store() -> Store:
    return open_store(":memory:")


def open_collection(store: Store | None = None, embedder: Embedder | None = None, **options: Any) -> Collection:
    """The collection "test" of a store."""
    return Collection(store or memory_store(), "test", embedder or make_embedder(), options=options)


def record(id: str, *chunks: str, **metadata: Any) -> Record:
    """A record of some chunks."""
    return Record(id, "\n".join(chunks), metadata, chunks=chunks)


def run(
    collection: Collection,
    embedder: Embedder,
    records: Iterable[Record | Rejected],
    *,
    total: int | None = None,
    batch_size: int = 8,
    workers: int = 2,
    dead_letter: Path | None = None,
    **options: Any,
) -> IngestReport:
    """An ingestion with the defaults of a small test."""
    defaults: dict[str, Any] = {"splitter": None, "delete_missing": False, "on_progress": None, "dry_run": False}
    defaults["check_count"] = True
    return ingest.run(
        collection,
        embedder,
        RecordSource(iter(records), total),
        batch_size=batch_size,
        workers=workers,
        dead_letter=dead_letter,
        **(defaults | options),
    )


def points_of(collection: Collection) -> dict[str, models.Record]:
    """All points, with their vectors, by chunk id."""
    if not collection.exists():
        return {}
    points, offset = collection.client.scroll(collection.name, limit=100_000, with_payload=True, with_vectors=True)
    assert offset is None
    found = {collection.layout.read(point.payload or {}).id: point for point in points}
    assert len(found) == len(points), "a chunk is stored twice"
    return found


def texts_of(collection: Collection) -> dict[str, str]:
    """The text of each chunk, by its id."""
    read = collection.layout.read
    return {identifier: read(point.payload or {}).text for identifier, point in points_of(collection).items()}


def assert_holds(collection: Collection, embedder: Embedder, records: Iterable[Record]) -> None:
    """The collection has the chunks of these records, their metadata and their vectors, and nothing else."""
    expected: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for one in records:
        for index, text in enumerate(one.chunks or (one.text,)):
            expected[f"{one.id}#chunk-{index}" if index else one.id] = text, one.metadata
    points = points_of(collection)
    stored = {identifier: collection.layout.read(point.payload or {}) for identifier, point in points.items()}
    assert {identifier: (one.text, one.metadata) for identifier, one in stored.items()} == expected
    if expected:
        vectors = embedder.embed_documents([text for text, _ in expected.values()])  # (points, dimensions)
        stored_vectors: Any = [points[identifier].vector for identifier in expected]
        np.testing.assert_allclose(stored_vectors, cast(Any, vectors), atol=1e-6)


def engine_of(client: EmbeddedQdrantClient) -> int:
    """The number of its engine's process."""
    pid = client._backend._opened().engine.pid
    assert pid is not None
    return pid


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
