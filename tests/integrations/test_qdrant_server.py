"""The helper against a real Qdrant server, 1.16 or later: what a facade cannot prove.

    QDRANT_URL=http://localhost:6333 pytest -m server

QDRANT_API_KEY is sent if it is set; QDRANT_GRPC_PORT says where gRPC is, if not at 6334. Every test makes collections
of names of its own, and removes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval import QdrantIndex, bulk
from qdrant_qwen_retrieval.upload import Uploader
from qwen_retrieval.errors import CollectionMismatchError, CollectionNotFoundError, IngestError, StoreError
from tests.integrations.qdrant_parts import DIMENSIONS, RecordingEngine, make_embedder

URL = os.environ.get("QDRANT_URL")
ADDRESS: dict[str, Any] = {"url": URL, "grpc_port": int(os.environ.get("QDRANT_GRPC_PORT", "6334"))}

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not URL, reason="QDRANT_URL is not set: no Qdrant server to test with"),
    pytest.mark.filterwarnings("ignore:the API key goes to"),
]

CORPUS = [
    {
        "id": f"r{number}",
        "text": " ".join(f"word{number + place} of sentence {place}." for place in range(1 + number % 4)),
        "year": 2000 + number % 7,
        "day": f"2024-01-{1 + number % 28:02d}T00:00:00Z",
    }
    for number in range(120)
]
CHANGED = [record | ({"text": "Short now."} if number % 3 else {}) for number, record in enumerate(CORPUS[10:])]


@pytest.fixture
def name() -> Iterator[str]:
    """A collection of this test alone."""
    name = f"qwen-retrieval-test-{uuid.uuid4().hex}"
    yield name
    client = _client()
    client.delete_collection(name)
    client.close()


def _client() -> QdrantClient:
    key = os.environ.get("QDRANT_API_KEY")
    return QdrantClient(url=URL, headers={"api-key": key} if key else None, timeout=60, check_compatibility=False)


def open_index(name: str, *, prefer_grpc: bool = True, **options: Any) -> QdrantIndex:
    defaults: dict[str, Any] = {"embedder": make_embedder()}
    return QdrantIndex(name, **(defaults | ADDRESS | {"prefer_grpc": prefer_grpc} | options))


def fill(index: QdrantIndex, corpus: list[dict[str, Any]] = CORPUS, **options: Any) -> Any:
    return index.ingest(corpus, **({"chunk_size": 30, "batch_size": 16} | options))


def server_version() -> tuple[int, ...]:
    client = _client()
    try:
        return tuple(int(part) for part in client.info().version.split(".")[:2])
    finally:
        client.close()


def assert_same_content(remote: QdrantIndex, *corpora: list[dict[str, Any]], **options: Any) -> None:
    """The server has what a store in memory has after these ingestions: the same points, payloads and vectors."""
    with QdrantIndex("test", embedder=make_embedder(), path=":memory:", **options) as local:
        for corpus in corpora:
            fill(local, corpus, delete_missing=True)
        stored, expected = (_points(index) for index in (remote, local))
    assert {id: payload for id, (payload, _) in stored.items()} == {
        id: payload for id, (payload, _) in expected.items()
    }
    for id, (_, vectors) in expected.items():
        assert vectors.keys() == stored[id][1].keys()
        for name, vector in vectors.items():
            np.testing.assert_allclose(stored[id][1][name], vector, atol=1e-4)


def _points(index: QdrantIndex) -> dict[str, tuple[Any, dict[str, list[float]]]]:
    points: list[models.Record] = []
    offset: Any = None
    while True:
        some, offset = index.client.scroll(index.name, limit=100, offset=offset, with_vectors=True)
        points += some
        if offset is None:
            return {str(point.id): (point.payload, _flat(point.vector)) for point in points}


def _flat(vector: Any) -> dict[str, list[float]]:
    """Vectors by name, those of words as numbers by name and term."""
    named = vector if isinstance(vector, dict) else {"": vector}
    flat: dict[str, list[float]] = {}
    for name, one in named.items():
        if isinstance(one, models.SparseVector):
            flat |= {f"{name}/{term}": [value] for term, value in zip(one.indices, one.values, strict=True)}
        else:
            flat[name] = one
    return flat


@pytest.mark.parametrize(
    "options", [{}, {"stages": [8], "hybrid": True, "layout": "universal"}], ids=["plain", "stages and words"]
)
def test_a_corpus_and_its_next_version_are_stored_exactly_once(
    name: str, prefer_grpc: bool, options: dict[str, Any]
) -> None:
    with open_index(name, prefer_grpc=prefer_grpc, **options) as index:
        assert index.count() == 0
        first = fill(index, delete_missing=True)
        again = fill(index, delete_missing=True)
        report = fill(index, CHANGED, delete_missing=True)
        assert (again.embedded, again.skipped) == (0, first.embedded)
        assert report.points == index.count() == index.describe().points
        assert_same_content(index, CORPUS, CHANGED, **options)
        assert index.delete(["r11", "r12", "absent"]) > 0
        assert fill(index, CHANGED).embedded > 0


def test_a_search_finds_what_a_search_in_memory_finds(name: str, prefer_grpc: bool) -> None:
    options: dict[str, Any] = {"stages": [8], "hybrid": True, "indexed_fields": {"year": "integer", "day": "datetime"}}
    searches: list[dict[str, Any]] = [
        {"hybrid": False, "exact": True},
        {"hybrid": False, "exact": True, "filter": {"year": [2001, 2002]}},
        {"hybrid": False, "exact": True, "filter": {"day": {"gte": "2024-01-10T00:00:00Z"}}},
        {"hybrid": False, "oversampling": 100},
    ]
    with (
        open_index(name, prefer_grpc=prefer_grpc, **options) as remote,
        QdrantIndex("test", embedder=make_embedder(), path=":memory:", **options) as local,
    ):
        fill(remote)
        fill(local)
        for search in searches:
            found = [[hit.retrieval_score for hit in one.search("word17 of", **search)] for one in (remote, local)]
            np.testing.assert_allclose(found[0], found[1], atol=1e-4)
        fused = remote.search("word17", limit=5, hybrid=True)
        assert any("word17" in hit.text for hit in fused)
        assert [hit.retrieval_rank for hit in fused] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("quantization", ["none", "scalar", "turbo4", "turbo2", "binary"])
@pytest.mark.parametrize("datatype", ["float32", "float16"])
def test_every_quantization_is_taken_and_searched(name: str, quantization: Any, datatype: Any) -> None:
    if quantization.startswith("turbo") and server_version() < (1, 18):
        pytest.skip("TurboQuant came with Qdrant 1.18")
    with open_index(name, quantization=quantization, datatype=datatype, on_disk=True) as index:
        fill(index)
        found = index.describe()
        assert (found.quantization, found.datatype, found.on_disk) == (quantization, datatype, True)
        exact = {hit.point_id for hit in index.search("word17 of sentence", exact=True)}
        quick = {hit.point_id for hit in index.search("word17 of sentence", oversampling=20)}
        assert len(quick) == 10
        assert len(exact & quick) >= 5


def test_another_model_another_layout_and_a_foreign_collection_are_refused(name: str, prefer_grpc: bool) -> None:
    with open_index(name, prefer_grpc=prefer_grpc) as index:
        fill(index, CORPUS[:2])
    with pytest.raises(CollectionMismatchError, match=f"dimensions is {DIMENSIONS}, not 8"):
        open_index(name, prefer_grpc=prefer_grpc, embedder=make_embedder(dimensions=8))
    with pytest.raises(CollectionMismatchError, match="layout"):
        open_index(name, prefer_grpc=prefer_grpc, layout="langchain")
    client = _client()
    client.delete_collection(name)
    with pytest.raises(CollectionNotFoundError):
        open_index(name, prefer_grpc=prefer_grpc, embedder=None)
    client.create_collection(name, vectors_config=models.VectorParams(size=16, distance=models.Distance.COSINE))
    client.close()
    with pytest.raises(CollectionMismatchError, match="not made by"):
        open_index(name, prefer_grpc=prefer_grpc)


def test_points_that_the_server_refuses_are_told_from_those_it_takes(name: str, prefer_grpc: bool) -> None:
    with open_index(name, prefer_grpc=prefer_grpc) as index:
        fill(index, CORPUS[:4])
        before = index.count()
        uploader = Uploader(index.collection)
        good, short = ([models.PointStruct(id=str(uuid.uuid4()), vector=[1.0] * size)] for size in (DIMENSIONS, 3))
        assert list(uploader.upsert(good + short)) == [short[0].id]
        assert list(uploader.rewrite([(str(good[0].id), {"a": 1}), ("9" * 32, {})])) == ["9" * 32]
        assert index.count() == before + 1
        index.client.delete_collection(name)
        with pytest.raises(IngestError):
            uploader.upsert(good)


def test_the_threshold_comes_back_and_the_server_turns_green(name: str, prefer_grpc: bool) -> None:
    def config(index: QdrantIndex) -> models.CollectionConfig:
        return index.client.get_collection(name).config

    seen = []
    with open_index(name, prefer_grpc=prefer_grpc) as index:
        fill(index, CORPUS[:1])
        original = config(index).optimizer_config.indexing_threshold
        index.client.update_collection(name, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=10))
        fill(index, progress=lambda _: seen.append(config(index).optimizer_config.indexing_threshold))
        assert original is not None
        assert bulk.DEFERRED in seen
        assert config(index).optimizer_config.indexing_threshold == 10
        assert list(config(index).metadata or {}) == ["qwen_retrieval"]
        assert index.optimize(timeout=120)
        assert index.describe().status == "green"


KILLED = """
import json, os, sys
sys.path.insert(0, ".")
from tests.integrations import qdrant_parts
from qdrant_qwen_retrieval import QdrantIndex

name, address = json.loads(sys.argv[1])
index = QdrantIndex(name, embedder=qdrant_parts.make_embedder(), **address)

def killed(progress):
    if progress.embedded >= 64:
        os._exit(9)

index.ingest(json.load(sys.stdin), chunk_size=30, batch_size=16, progress=killed)
"""


def test_a_run_that_was_killed_is_completed_by_the_next(name: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([name, ADDRESS])],
        input=json.dumps(CORPUS),
        text=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert process.returncode == 9, process.stderr
    client = _client()
    assert client.get_collection(name).config.optimizer_config.indexing_threshold == bulk.DEFERRED
    stored = client.count(name).count
    client.close()
    engine = RecordingEngine()
    with open_index(name, embedder=make_embedder(engine)) as index:
        report = fill(index)
        assert 64 <= stored < report.points
        assert report.embedded == report.points - stored
        assert_same_content(index, CORPUS)
        assert index.client.get_collection(name).config.optimizer_config.indexing_threshold != bulk.DEFERRED


def test_nobody_answers_at_a_wrong_port(prefer_grpc: bool) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        QdrantIndex("x", embedder=make_embedder(), url="http://127.0.0.1:1", grpc_port=1, prefer_grpc=prefer_grpc)
