"""The helper against a server, over REST and gRPC: what is stored and found, loads, keys."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval import QdrantIndex
from qwen_retrieval.errors import CollectionMismatchError, StoreError
from tests.integrations.qdrant_parts import DIMENSIONS, make_embedder
from tests.integrations.qdrant_remote_parts import (
    CORPUS,
    changed,
    content,
    expected_content,
    fill,
    open_index,
)
from tests.qdrant_server import Reply, Server, serve

pytestmark = pytest.mark.usefixtures("waits")


@pytest.mark.parametrize("options", [{}, {"stages": (8,), "hybrid": True, "layout": "universal"}], ids=["plain", "all"])
def test_what_is_stored_on_a_server_is_what_is_stored_in_memory(
    server: Server, prefer_grpc: bool, options: dict[str, Any]
) -> None:
    with open_index(server, prefer_grpc, **options) as index:
        first = fill(index, delete_missing=True)
        again = fill(index, delete_missing=True)
        report = fill(index, changed(CORPUS), delete_missing=True)
        assert index.count() == report.points == index.describe().points
    assert (first.embedded, again.embedded, again.skipped) == (first.points, 0, first.points)
    assert content(server.store.backend) == expected_content(2, **options)


def test_only_the_chosen_protocol_is_spoken(server: Server, prefer_grpc: bool) -> None:
    with open_index(server, prefer_grpc) as index:
        fill(index)
        index.search("word3")
        index.describe()
        index.delete(["r1"])
    assert {request.transport for request in server.requests} == {"grpc" if prefer_grpc else "rest"}


def test_a_request_has_at_most_256_points_and_waits(server: Server, prefer_grpc: bool) -> None:
    corpus = [{"id": f"r{number}", "text": f"word{number}"} for number in range(600)]
    with open_index(server, prefer_grpc) as index:
        fill(index, corpus, batch_size=600)
    upserts = [request for request in server.requests if request.operation == "upsert"]
    assert sorted(request.points for request in upserts) == [88, 256, 256]
    assert all(request.wait for request in upserts)


def test_vectors_that_make_a_request_too_large_are_sent_in_several(prefer_grpc: bool) -> None:
    corpus = [{"id": f"r{number}", "text": f"word{number}", "more": "x" * 30_000} for number in range(160)]
    with serve(QdrantClient(":memory:")) as server, open_index(server, prefer_grpc) as index:
        fill(index, corpus, chunk_size=None, batch_size=256)
        sizes = [request.size for request in server.requests if request.operation == "upsert"]
        assert len(sizes) > 1
        assert max(sizes) < 5_000_000


SEARCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one": {"limit": 1},
    "equal": {"filter": {"year": 2003}},
    "one of": {"filter": {"tags": ["even"], "year": [2001, 2003, 2005]}},
    "between": {"filter": {"year": {"gte": 2002, "lt": 2004}}},
    "not": {"filter": {"tags": {"not": "even"}}},
    "missing": {"filter": {"absent": None}},
    "by words": {"hybrid": True},
    "not by words": {"hybrid": False},
    "words and filter": {"hybrid": True, "filter": {"year": 2004}},
    "oversampled": {"hybrid": False, "oversampling": 2.0},
    "exact": {"exact": True, "hybrid": False},
    "instruction": {"instruction": "Find the sentence"},
    "threshold": {"hybrid": False, "score_threshold": 0.6},
}


def test_a_search_on_a_server_finds_what_a_search_in_memory_finds(server: Server, prefer_grpc: bool) -> None:
    options: dict[str, Any] = {"stages": [8], "hybrid": True}
    with (
        open_index(server, prefer_grpc, **options) as remote,
        QdrantIndex("test", embedder=make_embedder(), path=":memory:", **options) as local,
    ):
        fill(remote)
        fill(local)
        for name, search in SEARCHES.items():
            hits = {hit.point_id: (hit.id, hit.text, hit.metadata) for hit in remote.search("word17 of", **search)}
            found = local.search("word17 of", **search)
            assert hits == {hit.point_id: (hit.id, hit.text, hit.metadata) for hit in found}, name
            scores = [hit.retrieval_score for hit in remote.search("word17 of", **search)]
            np.testing.assert_allclose(scores, [hit.retrieval_score for hit in found], atol=1e-5, err_msg=name)
            assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("quantization", ["scalar", "turbo4", "turbo2", "binary"])
def test_a_search_in_codes_oversamples_and_rescores(server: Server, prefer_grpc: bool, quantization: Any) -> None:
    with open_index(server, prefer_grpc, quantization=quantization) as index:
        fill(index)
        server.forget_requests()
        index.search("word", limit=3)
        index.search("word", limit=3, oversampling=7)
        index.search("word", limit=3, exact=True)
    default, wider, exact = (request.body.params for request in server.requests if request.operation == "query_points")
    assert default.quantization.rescore is True
    assert default.quantization.oversampling >= 2
    assert wider.quantization.oversampling == 7
    assert (exact.exact, exact.quantization.ignore) == (True, True)
    vectors = server.store.do("get_collection", "test", None, wait=True).config.params.vectors
    assert next(iter(vectors.quantization_config.__dict__)) == {"turbo4": "turbo", "turbo2": "turbo"}.get(
        quantization, quantization
    )


def test_options_of_a_collection_reach_the_server(server: Server, prefer_grpc: bool) -> None:
    options: dict[str, Any] = {"datatype": "float16", "on_disk": True, "shard_number": 3, "replication_factor": 2}
    with open_index(server, prefer_grpc, **options, indexed_fields={"year": "integer"}) as index:
        fill(index)
        found = index.describe()
    params = server.store.do("get_collection", "test", None, wait=True).config.params
    assert (params.shard_number, params.replication_factor, params.on_disk_payload) == (3, 2, True)
    assert params.vectors.datatype == models.Datatype.FLOAT16
    assert found.payload_indexes["meta.year"] == "integer"
    with open_index(server, prefer_grpc) as index:  # no option: what the collection has
        assert index.describe() == found


def test_another_model_and_another_layout_are_refused(server: Server, prefer_grpc: bool) -> None:
    with open_index(server, prefer_grpc) as index:
        fill(index)
    with pytest.raises(CollectionMismatchError, match=r"layout is 'compact', not 'langchain'"):
        open_index(server, prefer_grpc, layout="langchain")
    shorter = make_embedder(dimensions=8)
    with pytest.raises(CollectionMismatchError, match=rf"dimensions is {DIMENSIONS}, not 8"):
        open_index(server, prefer_grpc, embedder=shorter)


def test_a_server_that_keeps_no_metadata_is_refused(prefer_grpc: bool) -> None:
    with serve(QdrantClient(":memory:"), version="1.15.5") as server, open_index(server, prefer_grpc) as index:
        with pytest.raises(StoreError, match=r"Qdrant 1\.16 or later"):
            fill(index)
        assert not server.store.backend.collection_exists("test")


@pytest.mark.parametrize("layout", ["compact", "langchain", "llama_index", "haystack", "universal"])
def test_all_filters_of_the_helper_have_their_index(layout: Any) -> None:
    with serve(QdrantClient(":memory:"), strict=True) as server:
        fields = {"year": "integer", "tags": "keyword"}
        with open_index(server, True, layout=layout, indexed_fields=fields) as index:
            fill(index)
            fill(index, changed(CORPUS), delete_missing=True)
            assert index.delete(["r9"]) > 0
            assert index.search("word", filter={"year": {"gte": 2003}, "tags": "odd"})
            assert index.describe().points == index.count()
            with pytest.raises(StoreError, match="Index required but not found"):
                index.search("word", filter={"absent": "x"})


KEY = "s3cr3t-k3y"


@pytest.mark.parametrize("given", ["argument", "secret", "environment"])
def test_the_key_is_sent_and_shown_nowhere(
    prefer_grpc: bool, given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api_key: Any = {"argument": KEY, "secret": SecretStr(KEY)}.get(given)
    if given == "environment":
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
    with serve(QdrantClient(":memory:"), api_key=KEY) as server:
        with open_index(server, prefer_grpc, api_key=api_key) as index:
            server.faults.add(Reply(500), on="upsert")
            fill(index, CORPUS[:3])
            assert index.search("word")
            shown = [repr(index), str(index), repr(index.client), repr(index.collection), repr(index.describe())]
            server.faults.add(Reply(401, "Invalid API key or JWT"), on="upsert")
            with pytest.raises(StoreError) as caught:
                fill(index, changed(CORPUS))
        assert {request.headers["api-key"] for request in server.requests} == {KEY}
    shown += [str(caught.value), repr(caught.value), caplog.text]
    assert not any(KEY in text for text in shown)


def test_a_wrong_key_is_refused_at_once_and_not_shown(prefer_grpc: bool) -> None:
    with serve(QdrantClient(":memory:"), api_key=KEY) as server:
        with pytest.raises(StoreError, match="refuses the key") as caught:
            open_index(server, prefer_grpc, api_key="wr0ng")
        with pytest.raises(StoreError, match="QDRANT_API_KEY"):
            open_index(server, prefer_grpc)
        assert server.url in str(caught.value)
        assert "wr0ng" not in f"{caught.value!r} {caught.value.__cause__!r}"
        assert len(server.requests) == 2


def test_who_may_only_read_can_search_but_not_ingest(prefer_grpc: bool) -> None:
    with serve(QdrantClient(":memory:"), api_key=KEY, read_only_key="look") as server:
        with open_index(server, prefer_grpc, api_key=KEY) as index:
            fill(index)
        with open_index(server, prefer_grpc, api_key="look") as index:
            assert index.search("word")
            assert index.describe().points == index.count()
            assert fill(index).embedded == 0  # nothing to write, so nobody minds
            with pytest.raises(StoreError, match="refuses the key"):
                fill(index, changed(CORPUS))
