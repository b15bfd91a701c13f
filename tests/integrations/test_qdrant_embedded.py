# What the client returns are unions; the tests know which member they get.
# mypy: disable-error-code="union-attr, index, arg-type, misc"
"""The embedded store: the answers of qdrant-client's local mode, and what it promises about processes and files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval.embedded import AsyncEmbeddedQdrantClient, EmbeddedQdrantClient
from qdrant_qwen_retrieval.embedded.folder import folder_name
from qwen_retrieval.errors import StoreError
from tests.integrations.qdrant_parts import engine_of, is_running

ROOT = Path(__file__).parents[2]
DENSE, SHORT, SPARSE, LATE = "text-dense", "mrl_4", "text-sparse", "late"
CITIES = ("Bern", "Oslo", "Rome")
POINTS = 40


def vectors_of(number: int) -> dict[str, Any]:
    """The vectors of a point, different for each, and no two equally far from anything."""
    random = np.random.default_rng(number)
    dense = random.normal(size=8)
    return {
        DENSE: dense.tolist(),
        SHORT: dense[:4].tolist(),
        SPARSE: models.SparseVector(
            indices=[1, 2 + number % 5, 100 + number], values=[0.5 + number / 97, 1.0 + number / 8, 2.0]
        ),
        LATE: random.normal(size=(1 + number % 3, 3)).tolist(),
    }


def payload_of(number: int) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "number": number,
        "price": number / 3,
        "city": CITIES[number % 3],
        "tags": [f"t{number % 4}", f"t{number % 7}"][: 1 + number % 2],
        "good": number % 2 == 0,
        "when": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)).isoformat(),
        "place": {"lon": number * 1.5, "lat": number * 0.5},
        "meta": {"deep": {"level": number % 5}, "parts": [{"kind": "a", "size": number}, {"kind": "b", "size": 1}]},
        "text": f"the story of é {number}",
        "nothing": None,
    }
    if number % 4 == 0:
        payload["rare"] = "yes"
    return payload


def fill(client: QdrantClient) -> None:
    client.create_collection(
        "all",
        vectors_config={
            DENSE: models.VectorParams(size=8, distance=models.Distance.COSINE),
            SHORT: models.VectorParams(size=4, distance=models.Distance.DOT),
            LATE: models.VectorParams(
                size=3,
                distance=models.Distance.DOT,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
        },
        sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
        metadata={"model": "tiny", "size": 8},
    )
    client.create_collection("plain", models.VectorParams(size=4, distance=models.Distance.EUCLID))
    points = [models.PointStruct(id=n, vector=vectors_of(n), payload=payload_of(n)) for n in range(POINTS)]
    client.upsert("all", points)
    client.upsert("plain", [models.PointStruct(id=n, vector=vectors_of(n)[SHORT]) for n in range(POINTS)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QdrantClient, QdrantClient]]:
    """Local mode and the embedded store with the same points; tests only read."""
    local, embedded = QdrantClient(":memory:"), EmbeddedQdrantClient(tmp_path_factory.mktemp("shared") / "store")
    for client in (local, embedded):
        fill(client)
    for field, kind in {"number": "integer", "city": "keyword", "price": "float", "when": "datetime"}.items():
        embedded.create_payload_index("all", field, kind)
    yield local, embedded
    embedded.close()
    local.close()


@pytest.fixture(scope="module")
def reused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedQdrantClient]:
    client = EmbeddedQdrantClient(tmp_path_factory.mktemp("reused") / "store")
    yield client
    client.close()


@pytest.fixture
def client(reused: EmbeddedQdrantClient) -> Iterator[EmbeddedQdrantClient]:
    """An empty store."""
    yield reused
    for found in reused.get_collections().collections:
        reused.delete_collection(found.name)


@pytest.fixture
def pair(client: EmbeddedQdrantClient) -> Iterator[tuple[QdrantClient, QdrantClient]]:
    """Local mode and an embedded store with the same points, to be changed."""
    local = QdrantClient(":memory:")
    fill(local)
    fill(client)
    yield local, client
    local.close()


def rounded(value: Any) -> Any:
    """Values of float32 that were computed in another order."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4, abs=1e-5)
    if isinstance(value, models.SparseVector):
        return rounded(value.model_dump())
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def nearly(value: Any) -> Any:
    """Payloads as the engine stores them: with 16 digits of numbers, not always 17."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-15, abs=0)
    if isinstance(value, dict):
        return {key: nearly(item) for key, item in value.items()}
    return [nearly(item) for item in value] if isinstance(value, list) else value


def raw(value: Any) -> Any:
    return value.model_dump() if isinstance(value, models.SparseVector) else value


def content(records: Any) -> list[Any]:
    """What is compared of points."""
    out = []
    for point in records:
        vector = point.vector
        if isinstance(vector, dict):
            vector = {name: raw(item) for name, item in sorted(vector.items())}
        out.append([point.id, point.payload, vector, getattr(point, "score", None)])
    return out


def same(local: Any, embedded: Any) -> None:
    assert content(embedded) == rounded(content(local))


def everything(client: QdrantClient, name: str = "all") -> list[Any]:
    return sorted(client.scroll(name, limit=1_000, with_vectors=True)[0], key=lambda point: str(point.id))


def both(clients: tuple[QdrantClient, QdrantClient], act: Callable[[QdrantClient], Any]) -> tuple[Any, Any]:
    return act(clients[0]), act(clients[1])


def field(key: str, **options: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, **options)


BOX = models.GeoBoundingBox(top_left=models.GeoPoint(lon=3, lat=9), bottom_right=models.GeoPoint(lon=30, lat=1))
RING = models.GeoLineString(
    points=[models.GeoPoint(lon=x, lat=y) for x, y in [(2, 0), (40, 0), (40, 20), (2, 20), (2, 0)]]
)
FILTERS = {
    "value": models.Filter(must=[field("city", match=models.MatchValue(value="Oslo"))]),
    "integer": models.Filter(must=[field("number", match=models.MatchValue(value=7))]),
    "true": models.Filter(must=[field("good", match=models.MatchValue(value=True))]),
    "false": models.Filter(must=[field("good", match=models.MatchValue(value=False))]),
    "any": models.Filter(must=[field("city", match=models.MatchAny(any=["Oslo", "Rome"]))]),
    "any integer": models.Filter(must=[field("number", match=models.MatchAny(any=[1, 5, 900]))]),
    "except": models.Filter(must=[field("city", match=models.MatchExcept(**{"except": ["Oslo"]}))]),
    "in a list": models.Filter(must=[field("tags", match=models.MatchValue(value="t3"))]),
    "text": models.Filter(must=[field("text", match=models.MatchText(text="story of é 1"))]),
    "range": models.Filter(must=[field("price", range=models.Range(gte=2.0, lt=9.5))]),
    "dates": models.Filter(must=[field("when", range=models.DatetimeRange(gt="2026-01-05T00:00:00Z"))]),
    "days": models.Filter(must=[field("when", range=models.DatetimeRange(lte=datetime(2026, 1, 20)))]),
    "nested key": models.Filter(must=[field("meta.deep.level", match=models.MatchValue(value=2))]),
    "list key": models.Filter(must=[field("meta.parts[].size", range=models.Range(gt=30))]),
    "nested": models.Filter(
        must=[
            models.NestedCondition(
                nested=models.Nested(
                    key="meta.parts",
                    filter=models.Filter(
                        must=[
                            field("kind", match=models.MatchValue(value="b")),
                            field("size", range=models.Range(lt=2)),
                        ]
                    ),
                )
            )
        ]
    ),
    "ids": models.Filter(must=[models.HasIdCondition(has_id=[3, 4, 999])]),
    "has vector": models.Filter(must=[models.HasVectorCondition(has_vector=LATE)]),
    "empty": models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="rare"))]),
    "null": models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="nothing"))]),
    "count": models.Filter(must=[field("tags", values_count=models.ValuesCount(gte=2))]),
    "box": models.Filter(must=[field("place", geo_bounding_box=BOX)]),
    "radius": models.Filter(
        must=[field("place", geo_radius=models.GeoRadius(center=models.GeoPoint(lon=6, lat=2), radius=500_000))]
    ),
    "polygon": models.Filter(must=[field("place", geo_polygon=models.GeoPolygon(exterior=RING))]),
    "not": models.Filter(must_not=[field("city", match=models.MatchValue(value="Oslo"))]),
    "one of": models.Filter(
        should=[field("number", range=models.Range(lt=3)), field("city", match=models.MatchValue(value="Rome"))]
    ),
    "two of": models.Filter(
        min_should=models.MinShould(
            conditions=[
                field("number", range=models.Range(lt=20)),
                field("city", match=models.MatchValue(value="Rome")),
                field("rare", match=models.MatchValue(value="yes")),
            ],
            min_count=2,
        )
    ),
    "a filter in a filter": models.Filter(
        must=[models.Filter(must_not=models.HasIdCondition(has_id=[1])), field("number", range=models.Range(lt=6))]
    ),
    "slice": models.Filter(must=[models.SliceCondition(slice=models.Slice(total=3, index=1))]),
    "nothing at all": models.Filter(),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_it_finds_in_local_mode(shared: tuple[QdrantClient, QdrantClient], name: str) -> None:
    local, embedded = both(shared, lambda c: [p.id for p in c.scroll("all", FILTERS[name], limit=100)[0]])
    assert embedded == local
    assert embedded
    assert len(embedded) < POINTS or name in ("has vector", "null", "nested", "nothing at all")
    counts = both(shared, lambda c: c.count("all", FILTERS[name]).count)
    assert counts == (len(local), len(local))


QUERY = vectors_of(1_000)
OTHER = vectors_of(2_000)
CANDIDATES = models.Prefetch(query=QUERY[SHORT], using=SHORT, limit=20)
QUERIES: dict[str, dict[str, Any]] = {
    "a list": {"query": QUERY[DENSE], "using": DENSE},
    "an array": {"query": np.asarray(QUERY[DENSE], dtype=np.float32), "using": DENSE},
    "no query": {"query": None},
    "an id": {"query": 5, "using": DENSE},
    "sparse": {"query": QUERY[SPARSE], "using": SPARSE},
    "a sparse id": {"query": 5, "using": SPARSE},
    "a multivector": {"query": QUERY[LATE] + OTHER[LATE], "using": LATE},
    "a filter": {"query": QUERY[DENSE], "using": DENSE, "query_filter": FILTERS["one of"]},
    "an id and a filter": {"query": 5, "using": DENSE, "query_filter": FILTERS["range"]},
    "a page": {"query": QUERY[DENSE], "using": DENSE, "limit": 4, "offset": 3},
    "a threshold": {"query": QUERY[DENSE], "using": DENSE, "score_threshold": 0.2},
    "all vectors": {"query": QUERY[DENSE], "using": DENSE, "with_vectors": True},
    "one vector": {"query": QUERY[DENSE], "using": DENSE, "with_vectors": [SHORT, SPARSE]},
    "some payload": {"query": QUERY[DENSE], "using": DENSE, "with_payload": ["city", "meta.deep"]},
    "excluded payload": {
        "query": QUERY[DENSE],
        "using": DENSE,
        "with_payload": models.PayloadSelectorExclude(exclude=["meta", "text"]),
    },
    "no payload": {"query": QUERY[DENSE], "using": DENSE, "with_payload": False},
    "two stages": {"query": QUERY[DENSE], "using": DENSE, "prefetch": CANDIDATES},
    "three stages": {
        "query": QUERY[LATE],
        "using": LATE,
        "prefetch": models.Prefetch(query=QUERY[DENSE], using=DENSE, limit=12, prefetch=[CANDIDATES]),
    },
    "a filter before": {
        "query": QUERY[DENSE],
        "using": DENSE,
        "prefetch": models.Prefetch(query=QUERY[SHORT], using=SHORT, filter=FILTERS["value"], limit=9),
    },
    "fusion": {
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
        "prefetch": [CANDIDATES, models.Prefetch(query=QUERY[SPARSE], using=SPARSE, limit=20)],
        "limit": 5,
    },
    "weighted fusion": {
        "query": models.RrfQuery(rrf=models.Rrf(k=30, weights=[3.0, 1.0])),
        "prefetch": [CANDIDATES, models.Prefetch(query=QUERY[LATE], using=LATE, limit=20)],
        "limit": 5,
    },
    "fusion of scores": {
        "query": models.FusionQuery(fusion=models.Fusion.DBSF),
        "prefetch": [CANDIDATES, models.Prefetch(query=QUERY[DENSE], using=DENSE, limit=20)],
        "limit": 5,
    },
    "diversity": {
        "query": models.NearestQuery(nearest=QUERY[DENSE], mmr=models.Mmr(diversity=0.7, candidates_limit=25)),
        "using": DENSE,
        "limit": 6,
    },
    "recommend": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(positive=[3, 4, QUERY[DENSE]], negative=[9, OTHER[DENSE]])
        ),
        "using": DENSE,
    },
    "best score": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(positive=[3], negative=[9], strategy=models.RecommendStrategy.BEST_SCORE)
        ),
        "using": DENSE,
    },
    "sum of scores": {
        "query": models.RecommendQuery(
            recommend=models.RecommendInput(positive=[3, OTHER[DENSE]], strategy=models.RecommendStrategy.SUM_SCORES)
        ),
        "using": DENSE,
    },
    "discover": {
        "query": models.DiscoverQuery(
            discover=models.DiscoverInput(target=7, context=models.ContextPair(positive=2, negative=OTHER[DENSE]))
        ),
        "using": DENSE,
    },
    "context": {
        "query": models.ContextQuery(context=[models.ContextPair(positive=2, negative=3)]),
        "using": DENSE,
        "limit": 3,
    },
    "feedback": {
        "query": models.RelevanceFeedbackQuery(
            relevance_feedback=models.RelevanceFeedbackInput(
                target=QUERY[DENSE],
                feedback=[
                    models.FeedbackItem(example=2, score=0.9),
                    models.FeedbackItem(example=OTHER[DENSE], score=0.1),
                ],
                strategy=models.NaiveFeedbackStrategy(naive=models.NaiveFeedbackStrategyParams(a=1.0, b=0.5, c=0.2)),
            )
        ),
        "using": DENSE,
    },
    "order": {
        "query": models.OrderByQuery(order_by=models.OrderBy(key="price", direction=models.Direction.DESC)),
    },
    "formula": {
        "query": models.FormulaQuery(
            formula=models.SumExpression(
                sum=[
                    "$score",
                    models.MultExpression(mult=[0.5, field("city", match=models.MatchValue(value="Rome"))]),
                    models.DivExpression(div=models.DivParams(left="number", right=50.0)),
                    models.AbsExpression(abs=models.NegExpression(neg=0.25)),
                    models.ExpDecayExpression(
                        exp_decay=models.DecayParamsExpression(x="price", target=4.0, scale=3.0, midpoint=0.5)
                    ),
                    models.PowExpression(pow=models.PowParams(base="missing", exponent=2.0)),
                ]
            ),
            defaults={"missing": 0.5},
        ),
        "prefetch": CANDIDATES,
    },
    "other collection": {
        "query": 5,
        "using": SHORT,
        "lookup_from": models.LookupLocation(collection="plain", vector=""),
    },
}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_gives_what_it_gives_in_local_mode(shared: tuple[QdrantClient, QdrantClient], name: str) -> None:
    local, embedded = both(shared, lambda c: c.query_points("all", **QUERIES[name]).points)
    if name == "no query":  # all scores are the same; the engine calls it 1, local mode 0
        local, embedded = ([point.model_copy(update={"score": 0}) for point in found] for found in (local, embedded))
    if name == "context":  # ties
        assert embedded[0].score == pytest.approx(local[0].score)
        return
    same(local, embedded)
    assert embedded


def test_a_batch_of_queries_gives_what_each_gives(shared: tuple[QdrantClient, QdrantClient]) -> None:
    requests = [
        models.QueryRequest(query=QUERY[DENSE], using=DENSE, limit=3, with_payload=True),
        models.QueryRequest(query=7, using=SHORT, limit=2, with_vector=[SHORT]),
        models.QueryRequest(query=models.FusionQuery(fusion=models.Fusion.RRF), prefetch=[CANDIDATES], limit=4),
    ]
    local, embedded = both(shared, lambda c: c.query_batch_points("all", requests))
    assert [len(found.points) for found in embedded] == [3, 2, 4]
    for expected, found in zip(local, embedded, strict=True):
        same(expected.points, found.points)


@pytest.mark.parametrize("options", [{"group_by": "city"}, {"group_by": "tags", "limit": 4, "group_size": 2}])
def test_groups_are_those_of_local_mode(shared: tuple[QdrantClient, QdrantClient], options: dict[str, Any]) -> None:
    local, embedded = both(
        shared, lambda c: c.query_points_groups("all", query=QUERY[DENSE], using=DENSE, with_vectors=[SHORT], **options)
    )
    assert [group.id for group in embedded.groups] == [group.id for group in local.groups]
    for expected, found in zip(local.groups, embedded.groups, strict=True):
        same(expected.hits, found.hits)


def test_a_group_can_bring_a_point_of_another_collection(shared: tuple[QdrantClient, QdrantClient]) -> None:
    local, embedded = both(
        shared,
        lambda c: c.query_points_groups("all", "meta.deep.level", QUERY[DENSE], DENSE, with_lookup="plain").groups,
    )
    assert [group.lookup for group in embedded] == [group.lookup for group in local]
    assert all(group.lookup.id == group.id for group in embedded)


def test_scrolling_goes_through_everything_once(shared: tuple[QdrantClient, QdrantClient]) -> None:
    for client in shared:
        found, offset = [], None
        while True:
            page, offset = client.scroll("all", limit=7, offset=offset, with_vectors=True)
            found += page
            if offset is None:
                break
        assert [point.id for point in found] == list(range(POINTS))
    same(*both(shared, lambda c: c.scroll("all", limit=POINTS, with_vectors=True)[0]))


def test_scrolling_in_pages_of_the_protocol_is_not_seen(
    shared: tuple[QdrantClient, QdrantClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdrant_qwen_retrieval.embedded.reads.PAGE", 6)
    for limit in (5, 6, 7, 20, 100):
        local, embedded = both(shared, lambda c, limit=limit: c.scroll("all", FILTERS["not"], limit=limit))
        assert content(embedded[0]) == content(local[0])
        assert embedded[1] == local[1]
    same(*both(shared, lambda c: c.retrieve("all", list(range(30)))))


def test_scrolling_in_the_order_of_a_field(shared: tuple[QdrantClient, QdrantClient]) -> None:
    order = models.OrderBy(key="number", direction=models.Direction.DESC, start_from=20)
    local, embedded = both(shared, lambda c: c.scroll("all", FILTERS["not"], limit=6, order_by=order))
    assert [point.id for point in embedded[0]] == [point.id for point in local[0]]
    assert embedded[0][0].order_value == 20
    assert embedded[1] is None


def test_points_are_fetched_by_id(shared: tuple[QdrantClient, QdrantClient]) -> None:
    same(*both(shared, lambda c: c.retrieve("all", [9, 3, 3, 12345], with_vectors=True)))
    same(*both(shared, lambda c: c.retrieve("plain", [1, 2], with_vectors=True)))
    assert shared[1].retrieve("all", []) == []


def test_facets_count_values(shared: tuple[QdrantClient, QdrantClient]) -> None:
    local, embedded = both(shared, lambda c: c.facet("all", "city", FILTERS["range"], exact=True))
    assert sorted((hit.value, hit.count) for hit in embedded.hits) == sorted((h.value, h.count) for h in local.hits)


CHANGES: dict[str, Callable[[QdrantClient], Any]] = {
    "delete by id": lambda c: c.delete("all", [1, 2, 77]),
    "delete by a list": lambda c: c.delete("all", models.PointIdsList(points=[1, 5])),
    "delete by filter": lambda c: c.delete("all", models.FilterSelector(filter=FILTERS["value"])),
    "delete by bare filter": lambda c: c.delete("all", FILTERS["range"]),
    "set payload": lambda c: c.set_payload("all", {"city": "Ulm", "new": [1, None]}, [1, 2]),
    "set payload at a key": lambda c: c.set_payload("all", {"x": 1}, FILTERS["value"], key="meta.deep"),
    "overwrite payload": lambda c: c.overwrite_payload("all", {"only": True}, [3]),
    "delete payload": lambda c: c.delete_payload("all", ["city", "meta.deep.level"], FILTERS["range"]),
    "clear payload": lambda c: c.clear_payload("all", [4, 5]),
    "update vectors": lambda c: c.update_vectors(
        "all", [models.PointVectors(id=3, vector={SHORT: [1.0, 2.0, 3.0, 4.0], SPARSE: QUERY[SPARSE]})]
    ),
    "delete vectors": lambda c: c.delete_vectors("all", [SHORT, SPARSE], [3, 4]),
    "replace": lambda c: c.upsert("all", [models.PointStruct(id=3, vector={SHORT: [1.0, 0, 0, 0]}, payload={"a": 1})]),
    "twice in one": lambda c: c.upsert(
        "all", [models.PointStruct(id=900, vector={}, payload={"n": n}) for n in range(3)]
    ),
    "insert only": lambda c: c.upsert(
        "all",
        [models.PointStruct(id=n, vector=QUERY, payload={"new": True}) for n in (3, 901)],
        update_mode=models.UpdateMode.INSERT_ONLY,
    ),
    "update only": lambda c: c.upsert(
        "all",
        [models.PointStruct(id=n, vector=QUERY, payload={"new": True}) for n in (3, 901)],
        update_mode=models.UpdateMode.UPDATE_ONLY,
    ),
    "update filter": lambda c: c.upsert(
        "all",
        [models.PointStruct(id=n, vector=QUERY, payload={"new": True}) for n in (3, 4, 902)],
        update_filter=models.Filter(must=[field("number", match=models.MatchValue(value=4))]),
    ),
    "batch": lambda c: c.upsert(
        "all",
        models.Batch(
            ids=[1, str(uuid.UUID(int=7))],
            vectors={DENSE: [QUERY[DENSE], OTHER[DENSE]], SPARSE: [QUERY[SPARSE], OTHER[SPARSE]]},
            payloads=[{"a": 1}, {"b": 2}],
        ),
    ),
    "plain batch": lambda c: c.upsert(
        "plain", models.Batch(ids=[1, 99], vectors=[QUERY[SHORT], np.asarray(OTHER[SHORT]).tolist()])
    ),
    "uuid": lambda c: c.upsert("all", [models.PointStruct(id=uuid.UUID(int=9).hex, vector=QUERY)]),
    "upload points": lambda c: c.upload_points(
        "all", (models.PointStruct(id=n, vector={DENSE: QUERY[DENSE]}, payload={"n": n}) for n in range(30, 60))
    ),
    "upload an array": lambda c: c.upload_collection(
        "plain", np.arange(80, dtype=np.float32).reshape(20, 4), [{"n": n} for n in range(20)], range(100, 120)
    ),
    "upload arrays": lambda c: c.upload_collection(
        "all", {SHORT: np.ones((3, 4), np.float32), DENSE: np.ones((3, 8))}, ids=[1, 2, 200]
    ),
    "several": lambda c: c.batch_update_points(
        "all",
        [
            models.UpsertOperation(
                upsert=models.PointsList(points=[models.PointStruct(id=500, vector=QUERY, payload={"x": 1})])
            ),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"y": 2}, points=[500, 1])),
            models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload={"z": 2}, points=[2])),
            models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["x"], filter=FILTERS["one of"])),
            models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[6])),
            models.UpdateVectorsOperation(
                update_vectors=models.UpdateVectors(points=[models.PointVectors(id=7, vector={SHORT: [0, 0, 0, 1.0]})])
            ),
            models.DeleteVectorsOperation(delete_vectors=models.DeleteVectors(points=[8], vector=[LATE])),
            models.DeleteOperation(delete=models.PointIdsList(points=[9])),
        ],
    ),
    "add a vector name": lambda c: c.create_vector_name(
        "all",
        "more",
        models.DenseVectorNameConfig(dense=models.DenseVectorConfig(size=2, distance=models.Distance.DOT)),
    ),
    "drop a vector name": lambda c: c.delete_vector_name("all", LATE),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leaves_what_it_leaves_in_local_mode(pair: tuple[QdrantClient, QdrantClient], name: str) -> None:
    before = both(pair, everything)
    both(pair, CHANGES[name])
    for collection in ("all", "plain"):
        same(*both(pair, lambda c, collection=collection: everything(c, collection)))
    if name not in ("add a vector name", "insert only"):
        assert any(everything(pair[1], n) != before[1] for n in ("all",)) or name.endswith(("batch", "array"))
    local, embedded = both(pair, lambda c: c.get_collection("all").config.params.vectors.keys())
    assert embedded == local


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    identifier=st.integers(0, 2**64 - 1) | st.uuids().map(str),
    payload=st.dictionaries(st.text(min_size=1, max_size=8), json_values, max_size=4),
    vector=st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4),
)
def test_whatever_is_stored_comes_back(
    shared: tuple[QdrantClient, QdrantClient], identifier: Any, payload: dict[str, Any], vector: list[float]
) -> None:
    client = shared[1]
    if not client.collection_exists("any"):
        client.create_collection("any", models.VectorParams(size=4, distance=models.Distance.DOT))
    client.upsert("any", [models.PointStruct(id=identifier, vector=vector, payload=payload)])
    (found,) = client.retrieve("any", [identifier], with_vectors=True)
    assert (found.id, found.vector) == (identifier, vector)
    assert found.payload == nearly(payload)
    client.delete("any", [identifier])


WRONG: dict[str, tuple[Any, str]] = {
    "size": (models.PointStruct(id=2, vector=[1.0, 2.0]), "expected dim: 4, got 2"),
    "name": (models.PointStruct(id=2, vector={"nope": [1.0]}), "'nope'"),
    "nan": (models.PointStruct(id=2, vector=[1.0, 2.0, 3.0, float("nan")]), "NaN"),
    "beyond float32": (models.PointStruct(id=2, vector=[1.0, 2.0, 3.0, 1e300]), "infinity"),
    "sparse": (models.PointStruct(id=2, vector={"": models.SparseVector(indices=[1], values=[1.0])}), "is dense"),
    "several": (models.PointStruct(id=2, vector=[[1.0, 2.0, 3.0, 4.0]]), "1 axes"),
    "id": (models.PointStruct(id="chunk-7", vector=[1.0, 2.0, 3.0, 4.0]), "chunk-7"),
    "negative id": (models.PointStruct(id=-1, vector=[1.0, 2.0, 3.0, 4.0]), "-1"),
    "payload": (models.PointStruct(id=2, vector=[1.0] * 4, payload={"a": float("nan")}), "payload of point 2"),
    "no text": (models.PointStruct(id=2, vector=[1.0] * 4, payload={"a": "\ud800"}), "payload of point 2"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("count", [1, 300])
def test_one_wrong_point_and_nothing_is_written(client: EmbeddedQdrantClient, name: str, count: int) -> None:
    client.create_collection("c", models.VectorParams(size=4, distance=models.Distance.COSINE))
    right = [models.PointStruct(id=10 + n, vector=[1.0, 2.0, 3.0, float(n)]) for n in range(count)]
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        client.upsert("c", [*right, wrong])
    assert client.count("c").count == 0
    client.upsert("c", right)  # still in step
    assert client.count("c").count == count


def test_a_vector_may_be_called_size(client: EmbeddedQdrantClient) -> None:
    client.create_collection("c", {"size": models.VectorParams(size=2, distance=models.Distance.DOT)})
    client.upsert("c", [models.PointStruct(id=1, vector={"size": [1.0, 2.0]})])
    client.update_collection("c", vectors_config={"size": models.VectorParamsDiff(on_disk=True)})
    assert client.retrieve("c", [1], with_vectors=True)[0].vector == {"size": [1.0, 2.0]}
    assert client.get_collection("c").config.params.vectors["size"].on_disk is True


def test_a_sparse_vector_is_checked(client: EmbeddedQdrantClient) -> None:
    client.create_collection("c", sparse_vectors_config={"s": models.SparseVectorParams()})
    for indices, values in (([1, 1], [1.0, 2.0]), ([1], [1.0, 2.0]), ([2**32], [1.0]), ([1], [float("inf")])):
        vector = models.SparseVector.model_construct(indices=indices, values=values)
        point = models.PointStruct.model_construct(id=1, vector={"s": vector}, payload=None)
        with pytest.raises(ValueError, match="'s'"):
            client.upsert("c", [point])
    with pytest.raises(ValueError, match="is sparse"):
        client.upsert("c", [models.PointStruct(id=1, vector={"s": [1.0]})])


def test_numpy_is_taken_without_a_way_around_lists(client: EmbeddedQdrantClient) -> None:
    client.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    client.upsert("c", [models.PointStruct.model_construct(id=n, vector=row, payload={}) for n, row in enumerate(rows)])
    found = client.retrieve("c", [0, 1, 2], with_vectors=True)
    assert np.array_equal(np.asarray([point.vector for point in found], np.float32), rows)


def test_dates_and_uuids_in_payloads_become_texts(client: EmbeddedQdrantClient) -> None:
    client.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    payload = {"when": datetime(2026, 5, 1, tzinfo=UTC), "who": uuid.UUID(int=1), "which": {1: "one"}}
    client.upsert("c", [models.PointStruct(id=1, vector=[1.0], payload=payload)])
    stored = client.retrieve("c", [1])[0].payload
    assert stored == {"when": "2026-05-01T00:00:00Z", "who": str(uuid.UUID(int=1)), "which": {"1": "one"}}


def test_an_unknown_collection_is_a_value_error_as_in_local_mode(shared: tuple[QdrantClient, QdrantClient]) -> None:
    calls: list[Callable[[QdrantClient], Any]] = [
        lambda c: c.count("x"),
        lambda c: c.get_collection("x"),
        lambda c: c.query_points("x", [1.0]),
        lambda c: c.upsert("x", [models.PointStruct(id=1, vector=[1.0])]),
        lambda c: c.update_collection("x", metadata={}),
    ]
    for call in calls:
        for client in shared:
            with pytest.raises(ValueError, match="Collection x not found"):
                call(client)
    assert both(shared, lambda c: c.collection_exists("x")) == (False, False)
    assert shared[1].delete_collection("x") is False


def test_what_the_engine_cannot_do_says_so(client: EmbeddedQdrantClient) -> None:
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    client.create_collection("c", params)
    refused: dict[str, Callable[[], Any]] = {
        "create_snapshot": lambda: client.create_snapshot("c"),
        "search_matrix_pairs": lambda: client.search_matrix_pairs("c"),
        "create_shard_key": lambda: client.create_shard_key("c", "k"),
        "get_optimizations": lambda: client.get_optimizations("c"),
        "shard keys": lambda: client.create_collection("d", params, sharding_method=models.ShardingMethod.CUSTOM),
        "strict mode": lambda: client.create_collection(
            "d", params, strict_mode_config=models.StrictModeConfig(enabled=True)
        ),
        "one shard": lambda: client.count("c", shard_key_selector="k"),
    }
    for name, call in refused.items():
        with pytest.raises(NotImplementedError, match=name):
            call()
    assert [found.name for found in client.get_collections().collections] == ["c"]


def test_the_engine_says_when_an_index_is_missing(client: EmbeddedQdrantClient) -> None:
    fill(client)
    with pytest.raises(ValueError, match="No range index"):
        client.scroll("all", order_by="number")


SETTINGS: dict[str, Any] = {
    "hnsw_config": models.HnswConfigDiff(m=8, payload_m=4),
    "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=5),
    "quantization_config": models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4)
    ),
    "on_disk_payload": True,
    "shard_number": 3,
    "metadata": {"model": "tiny", "since": datetime(2026, 1, 1, tzinfo=UTC), "inner": {"a": None}},
}


def test_settings_metadata_indexes_and_aliases_survive_closing(tmp_path: Path) -> None:
    alias = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="c", alias_name="now"))
    with_closed = EmbeddedQdrantClient(tmp_path)
    with_closed.create_collection(
        "c",
        vectors_config={
            "a": models.VectorParams(
                size=4, distance=models.Distance.COSINE, datatype=models.Datatype.FLOAT16, on_disk=True
            )
        },
        sparse_vectors_config={"s": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        **SETTINGS,
    )
    with_closed.create_payload_index("c", "k", models.KeywordIndexParams(type="keyword", is_tenant=True))
    with_closed.create_payload_index("c", "t", models.TextIndexParams(type="text", lowercase=True, min_token_len=2))
    with_closed.create_payload_index("c", "gone", models.PayloadSchemaType.INTEGER)
    with_closed.delete_payload_index("c", "gone")
    with_closed.update_collection_aliases([alias])
    before = with_closed.get_collection("c")
    with_closed.close()

    client = EmbeddedQdrantClient(tmp_path)
    info = client.get_collection("now")
    assert info == before
    assert info.config.metadata == {"model": "tiny", "since": "2026-01-01T00:00:00Z", "inner": {"a": None}}
    assert info.config.params.vectors["a"].datatype == models.Datatype.FLOAT16
    assert info.config.params.sparse_vectors["s"].modifier == models.Modifier.IDF
    assert info.config.params.shard_number == 3
    assert info.config.hnsw_config.m == 8
    assert info.config.quantization_config.turbo.bits == models.TurboQuantBitSize.BITS4
    assert info.payload_schema["k"].params.is_tenant is True
    assert info.payload_schema["t"].params.min_token_len == 2
    assert set(info.payload_schema) == {"k", "t"}
    client.close()


def test_metadata_is_merged_as_in_local_mode(pair: tuple[QdrantClient, QdrantClient]) -> None:
    for change in ({"size": 9, "more": [1]}, {"model": None}, {}):
        both(pair, lambda c, change=change: c.update_collection("all", metadata=change))
        local, embedded = both(pair, lambda c: c.get_collection("all").config.metadata)
        assert embedded == local


def test_aliases_are_those_of_local_mode(pair: tuple[QdrantClient, QdrantClient]) -> None:
    def create(name: str, collection: str) -> models.CreateAliasOperation:
        return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=name))

    rename = models.RenameAliasOperation(rename_alias=models.RenameAlias(old_alias_name="a", new_alias_name="b"))
    delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="c"))
    both(pair, lambda c: c.update_collection_aliases([create("a", "all"), create("c", "plain"), rename, delete]))
    for change in ([create("x", "nope")], [create("all", "plain")], [create("y", "all"), rename]):
        for client in pair:
            with pytest.raises(ValueError, match=r"nope|already exists|does not exist"):
                client.update_collection_aliases(change)
    local, embedded = both(pair, lambda c: c.get_aliases().aliases)
    assert embedded == local
    assert pair[1].get_collection_aliases("all").aliases == embedded
    assert pair[1].count("b").count == POINTS
    for client in pair:
        with pytest.raises(ValueError, match="already exists"):
            client.create_collection("b", models.VectorParams(size=2, distance=models.Distance.DOT))
    pair[1].delete_collection("all")
    assert pair[1].get_aliases().aliases == []


NAMES = ["a", "A", "ä", "..a", "a%2Fb", "con", "nul.txt", "x" * 255, "名" * 255, " ", "a b", "-", "store.json", "~"]


def test_every_name_that_a_server_takes_is_a_collection_of_its_own(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path / "store")
    for size, name in enumerate(NAMES, 1):
        client.create_collection(name, models.VectorParams(size=size, distance=models.Distance.DOT))
    client.close()
    client = EmbeddedQdrantClient(tmp_path / "store")
    for size, name in enumerate(NAMES, 1):
        assert client.get_collection(name).config.params.vectors.size == size
    client.close()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "C:x", "a\0b", "x" * 256])
def test_other_names_are_refused(client: EmbeddedQdrantClient, name: str) -> None:
    with pytest.raises(ValueError, match="Collection name"):
        client.create_collection(name, models.VectorParams(size=2, distance=models.Distance.DOT))


@given(st.text(max_size=300))
def test_a_folder_name_is_one_plain_name(name: str) -> None:
    assert set(folder_name(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 0 < len(folder_name(name)) < 64


def test_a_collection_is_deleted_with_its_files_and_made_again(client: EmbeddedQdrantClient) -> None:
    fill(client)
    assert client.delete_collection("all") is True
    assert client.delete_collection("all") is False
    assert [path.name for path in Path(client.init_options["path"], "collections").iterdir()] == [folder_name("plain")]
    with pytest.raises(NotImplementedError, match="Uint9"):
        client._backend._opened().engine.call(
            "create",
            shard=client._backend._opened().folder.shard("all"),
            config={"vectors": {"size": 2, "distance": "Dot", "datatype": "Uint9"}},
        )
    client.create_collection("all", models.VectorParams(size=2, distance=models.Distance.DOT))  # all the same
    assert client.count("all").count == 0
    with pytest.warns(DeprecationWarning, match="recreate_collection"):
        client.recreate_collection("all", models.VectorParams(size=3, distance=models.Distance.DOT))
    assert client.get_collection("all").config.params.vectors.size == 3


def test_what_a_creation_or_a_deletion_left_that_was_cut_short_does_no_harm(tmp_path: Path) -> None:
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    client = EmbeddedQdrantClient(tmp_path)
    client.create_collection("half", params)
    client.close()
    (tmp_path / "collections" / folder_name("half") / "collection.json").unlink()
    garbage = tmp_path / "collections" / ".deleted-1" / "shard"
    garbage.mkdir(parents=True)
    client = EmbeddedQdrantClient(tmp_path)
    assert not garbage.exists()
    assert client.get_collections().collections == []
    client.create_collection("half", params)
    assert client.count("half").count == 0
    client.close()


def test_damaged_newer_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    for name, text, message in (("damaged", "{", "damaged"), ("newer", '{"format": 2}', "format 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "store.json").write_text(text)
        with pytest.raises(StoreError, match=message):
            EmbeddedQdrantClient(tmp_path / name)
    QdrantClient(path=str(tmp_path / "local")).close()
    with pytest.raises(StoreError, match="pickles"):
        EmbeddedQdrantClient(tmp_path / "local")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be a store"):
        EmbeddedQdrantClient(tmp_path / "file")


def test_a_folder_that_holds_other_things_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes")
    with pytest.raises(StoreError, match=r"is no store, and holds other things, such as 'notes\.md'; give a"):
        EmbeddedQdrantClient(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    (tmp_path / "notes.md").rename(tmp_path / ".notes")  # hidden files are often nobody's, such as .DS_Store
    EmbeddedQdrantClient(tmp_path).close()
    (tmp_path / "notes.md").touch()
    EmbeddedQdrantClient(tmp_path).close()  # it is a store by now


def test_a_store_is_copied_by_the_client_s_own_migration(client: EmbeddedQdrantClient) -> None:
    local = QdrantClient(":memory:")
    fill(local)
    local.migrate(client, batch_size=7)
    same(everything(local), everything(client))
    local.close()


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)),
        models.BinaryQuantization(binary=models.BinaryQuantizationConfig()),
        models.ProductQuantization(product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X4)),
        models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS2)),
    ],
    ids=str,
)
def test_optimizing_builds_the_index_and_searches_find_the_same(
    client: EmbeddedQdrantClient, quantization: Any
) -> None:
    rows = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    client.create_collection(
        "c",
        models.VectorParams(size=16, distance=models.Distance.COSINE),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1),
        quantization_config=quantization,
    )
    client.upload_collection("c", rows, ids=range(600))
    nearest = np.argsort(-(rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ rows[7])[:5].tolist()
    assert client.get_collection("c").indexed_vectors_count == 0
    assert client.optimize("c") is True
    assert client.get_collection("c").indexed_vectors_count == 600
    params = models.SearchParams(
        hnsw_ef=600, quantization=models.QuantizationSearchParams(rescore=True, oversampling=100.0)
    )
    found = client.query_points("c", rows[7], limit=5, search_params=params).points
    assert [point.id for point in found] == nearest
    exact = models.SearchParams(exact=True)
    assert [p.id for p in client.query_points("c", rows[7], limit=5, search_params=exact).points] == nearest
    assert client.optimize("c") is False


def test_settings_that_are_changed_take_effect_with_the_next_optimization(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    client = EmbeddedQdrantClient(tmp_path)
    client.create_collection(
        "c", {"v": models.VectorParams(size=16, distance=models.Distance.DOT)}, metadata={"kept": True}
    )
    client.upload_collection("c", {"v": rows}, ids=range(300))
    assert client.optimize("c") is False  # below the threshold
    client.update_collection("c", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1))
    assert client.optimize("c") is True
    scalar = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
    client.update_collection("c", hnsw_config=models.HnswConfigDiff(m=4), quantization_config=scalar)
    client.update_collection("c", vectors_config={"v": models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=5))})
    assert client.optimize("c") is True
    assert client.count("c").count == 300
    client.close()
    segments = [json.loads(path.read_text()) for path in tmp_path.glob("collections/*/shard/segments/*/segment.json")]
    assert '"m": 5' in json.dumps(segments)
    assert "scalar" in json.dumps(segments)
    client = EmbeddedQdrantClient(tmp_path)
    config = client.get_collection("c").config
    assert (config.hnsw_config.m, config.params.vectors["v"].hnsw_config.m) == (4, 5)
    assert (config.quantization_config, config.metadata) == (scalar, {"kept": True})
    with pytest.raises(NotImplementedError, match="off"):
        client.update_collection("c", quantization_config=models.Disabled.DISABLED)
    with pytest.raises(ValueError, match="nope"):
        client.update_collection("c", vectors_config={"nope": models.VectorParamsDiff(on_disk=True)})
    client.close()


def test_other_threads_run_while_the_engine_works(client: EmbeddedQdrantClient) -> None:
    """qdrant-edge keeps the interpreter to itself; here it has one of its own."""
    rows = np.random.default_rng(0).normal(size=(4_000, 64)).astype(np.float32)
    client.create_collection(
        "c",
        models.VectorParams(size=64, distance=models.Distance.COSINE),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1),
    )
    client.upload_collection("c", rows, ids=range(len(rows)))
    working, done, ticks = threading.Event(), threading.Event(), [0]

    def beat() -> None:
        while not done.wait(0.001):
            ticks[0] += working.is_set()

    thread = threading.Thread(target=beat)
    thread.start()
    working.set()
    client.optimize("c")
    working.clear()
    done.set()
    thread.join()
    assert ticks[0] > 20


def test_threads_that_write_at_once_lose_nothing(client: EmbeddedQdrantClient) -> None:
    client.create_collection("c", models.VectorParams(size=4, distance=models.Distance.DOT))
    failures: list[BaseException] = []

    def write(worker: int) -> None:
        try:
            for start in range(0, 200, 10):
                ids = [worker * 1_000 + start + n for n in range(10)]
                client.upsert("c", [models.PointStruct(id=n, vector=[n, 0, 0, 1.0], payload={"n": n}) for n in ids])
                assert {point.payload["n"] for point in client.retrieve("c", ids)} == set(ids)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[worker]) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    expected = {worker * 1_000 + n for worker in range(4) for n in range(200)}
    found = client.scroll("c", limit=1_000, with_vectors=True)[0]
    assert {point.id for point in found} == expected
    assert all(point.vector == [point.id, 0, 0, 1] for point in found)


def test_clients_of_one_folder_share_an_engine_until_the_last_is_closed(tmp_path: Path) -> None:
    first, second = EmbeddedQdrantClient(tmp_path / "store"), EmbeddedQdrantClient(f"{tmp_path}/x/../store")
    other = EmbeddedQdrantClient(tmp_path / "other")
    pid = engine_of(first)
    assert engine_of(second) == pid != engine_of(other)
    first.create_collection("c", models.VectorParams(size=2, distance=models.Distance.DOT))
    first.close()
    first.close()
    assert second.count("c").count == 0
    with pytest.raises(StoreError, match="closed"):
        first.count("c")
    second.close()
    assert not is_running(pid)
    assert is_running(engine_of(other))
    other.close()


def test_a_client_that_is_dropped_ends_its_engine(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path)
    pid = engine_of(client)
    del client
    assert not is_running(pid)


def test_options_open_the_other_colour(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path)
    fill(client)
    copy = AsyncEmbeddedQdrantClient(**client.init_options)
    assert repr(copy) == f"AsyncEmbeddedQdrantClient({str(tmp_path)!r})"

    async def use() -> None:
        assert (await copy.count("all")).count == POINTS
        assert await copy.optimize("plain") is False
        await copy.flush("plain")
        found = await copy.query_points("all", QUERY[DENSE], using=DENSE, limit=3)
        same(client.query_points("all", QUERY[DENSE], using=DENSE, limit=3).points, found.points)
        copy.upload_points("plain", [models.PointStruct(id=700, vector=QUERY[SHORT])])
        await copy.upsert("plain", [models.PointStruct(id=701, vector=QUERY[SHORT])])
        counts = await asyncio.gather(*(copy.count("plain") for _ in range(20)))
        assert {found.count for found in counts} == {POINTS + 2}
        with pytest.raises(ValueError, match="not found"):
            await copy.get_collection("x")
        with pytest.raises(NotImplementedError, match="create_snapshot"):
            await copy.create_snapshot("all")
        await copy.close()
        with pytest.raises(StoreError, match="closed"):
            await copy.count("all")

    asyncio.run(use())
    assert client.count("plain").count == POINTS + 2
    client.close()


def run_script(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


WRITER = """
import os, signal, sys
from qdrant_client import models
from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient

client = EmbeddedQdrantClient(sys.argv[1])
if not client.collection_exists("c"):
    client.create_collection("c", models.VectorParams(size=64, distance="Dot"), metadata={"m": 1})
start = client.count("c").count
print("engine", client._backend._opened().engine.pid, flush=True)
for number in range(start, 1_000_000):
    ids = [2 * number, 2 * number + 1]
    client.upsert("c", [models.PointStruct(id=n, vector=[float(n)] * 64, payload={"n": n}) for n in ids])
    print(number, flush=True)
"""


@pytest.mark.parametrize("victims", ["parent", "engine", "both"])
def test_nothing_acknowledged_is_lost_when_processes_are_killed(tmp_path: Path, victims: str) -> None:
    log = tmp_path / "errors"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "store"], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as writer,
    ):
        assert writer.stdout is not None
        engine = int(writer.stdout.readline().split()[1])
        for _ in range(150):
            writer.stdout.readline()
        for victim in {"parent": [writer.pid], "engine": [engine], "both": [engine, writer.pid]}[victims]:
            os.kill(victim, signal.SIGKILL)
        acknowledged = int(["149", *writer.stdout.read().split()][-1])
    if victims == "engine":
        assert f"was killed by signal {signal.SIGKILL.value}" in log.read_text()
    client = EmbeddedQdrantClient(tmp_path / "store")  # waits for an engine that is still closing
    found = {point.id: point for point in client.scroll("c", limit=1_000_000, with_vectors=True)[0]}
    assert set(range(2 * acknowledged + 2)) <= set(found)
    assert len(found) <= 2 * acknowledged + 4  # the last may have been written and not acknowledged
    assert all(point.vector == [float(n)] * 64 and point.payload == {"n": n} for n, point in found.items())
    assert client.get_collection("c").config.metadata == {"m": 1}
    client.close()


OPTIMIZER = """
import sys
import numpy as np
from qdrant_client import models
from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient

client = EmbeddedQdrantClient(sys.argv[1])
client.create_collection(
    "c",
    models.VectorParams(size=64, distance="Cosine"),
    hnsw_config=models.HnswConfigDiff(m=64, ef_construct=4000),  # slow
    optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1),
)
client.upload_collection("c", np.random.default_rng(0).normal(size=(6_000, 64)).astype(np.float32), ids=range(6_000))
print("optimizing", flush=True)
client.optimize("c")
print("done", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "O_ASYNC"), reason="the system sends no signal when a pipe closes")
def test_an_engine_does_not_outlive_its_program_while_it_optimizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", OPTIMIZER, tmp_path], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.3)
        program.kill()
        assert program.stdout.read() == ""
    monkeypatch.setattr("qdrant_qwen_retrieval.embedded.engine.LOCK_PATIENCE", 0.5)
    client = EmbeddedQdrantClient(tmp_path)
    assert client.count("c").count == 6_000
    client.close()


def test_a_killed_engine_is_an_error_for_everybody_and_can_be_opened_again(tmp_path: Path) -> None:
    first, second = EmbeddedQdrantClient(tmp_path), EmbeddedQdrantClient(tmp_path)
    fill(first)
    os.kill(engine_of(first), signal.SIGKILL)
    for client in (first, second, first):
        with pytest.raises(StoreError, match="open the store again"):
            client.count("all")
    again = EmbeddedQdrantClient(tmp_path)
    assert again.count("all").count == POINTS
    first.close()
    second.close()
    assert again.count("all").count == POINTS
    again.close()


def test_closing_a_store_whose_engine_was_killed_says_so_once(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path)
    fill(client)
    os.kill(engine_of(client), signal.SIGKILL)
    with pytest.raises(StoreError, match="was killed by signal 9"):
        client.close()
    client.close()
    client = EmbeddedQdrantClient(tmp_path)
    assert client.count("all").count == POINTS
    os.kill(engine_of(client), signal.SIGKILL)
    del client  # silently: nobody could catch it


def test_an_interrupted_call_does_not_disturb_the_next(
    client: EmbeddedQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C between a request and its answer."""
    fill(client)
    pid = engine_of(client)

    def interrupt(_pipe: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qdrant_qwen_retrieval.embedded.engine.receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.scroll("all")
    assert not is_running(pid)
    assert client.count("all").count == POINTS
    assert engine_of(client) != pid


def test_a_second_process_is_told_what_to_do(tmp_path: Path) -> None:
    client = EmbeddedQdrantClient(tmp_path)
    code = """
import sys
from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient, engine
engine.LOCK_PATIENCE = 0.2
EmbeddedQdrantClient(sys.argv[1])
"""
    done = run_script(code, tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "StoreLockedError" in last
    assert str(tmp_path) in last
    assert "Qdrant server" in last
    client.close()
    assert run_script(code, tmp_path).stderr == ""


def test_a_store_that_is_being_closed_elsewhere_is_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        timer = threading.Timer(0.5, writer.kill)
        timer.start()
        EmbeddedQdrantClient(tmp_path).close()
        timer.join()


def test_the_end_of_a_program_is_silent_and_leaves_no_engine(tmp_path: Path) -> None:
    code = """
import sys
from qdrant_client import models
from qdrant_qwen_retrieval.embedded import AsyncEmbeddedQdrantClient, EmbeddedQdrantClient
client, other = EmbeddedQdrantClient(sys.argv[1]), AsyncEmbeddedQdrantClient(sys.argv[1])
cycle = [client]
cycle.append(cycle)
client.create_collection("c", models.VectorParams(size=2, distance="Dot"))
client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 2.0])])
print(client._backend._opened().engine.pid)
"""
    done = run_script(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_running(int(done.stdout))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_cannot_use_the_store_and_does_not_disturb_it(tmp_path: Path) -> None:
    code = """
import os, sys
from qdrant_client import models
from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient, engine
from qwen_retrieval.errors import StoreError

engine.LOCK_PATIENCE = 0.1
client = EmbeddedQdrantClient(sys.argv[1])
client.create_collection("c", models.VectorParams(size=2, distance="Dot"))
child = os.fork()
if not child:
    for attempt in (lambda: client.count("c"), lambda: EmbeddedQdrantClient(sys.argv[1])):
        try:
            attempt()
        except StoreError as error:
            print(type(error).__name__, error, flush=True)
    client.close()
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert client.count("c").count == 0
sleeper = os.fork()
if not sleeper:
    import time
    time.sleep(60)
client.close()
EmbeddedQdrantClient(sys.argv[1]).close()  # although a fork lives on
os.kill(sleeper, 9)
os.waitpid(sleeper, 0)
"""
    done = run_script(code, tmp_path)
    first, second = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first.startswith("StoreError")
    assert "fork" in first
    assert second.startswith("StoreLockedError")


def test_the_engine_s_process_loads_no_client(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from qdrant_qwen_retrieval.embedded import EmbeddedQdrantClient, engine
tail = "main(root, patience)\\n"
engine.BOOT = engine.BOOT.replace(tail, tail + "print(*sorted(sys.modules), file=sys.stderr)\\n")
client = EmbeddedQdrantClient(sys.argv[1])
client.get_collections()
client.close()
"""
    loaded = set(run_script(code, tmp_path).stderr.split())
    assert {"numpy", "qdrant_edge", "edge_process.shards"} <= loaded
    assert not loaded & {"qdrant_client", "pydantic", "qwen_retrieval", "qdrant_qwen_retrieval", "torch"}
