"""The server that other tests trust: what it answers over REST and gRPC is what the client behind it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.qdrant_server import Drop, Late, Lose, Poison, RandomFaults, Reply, Server, serve

VECTORS = {
    "text-dense": models.VectorParams(size=4, distance=models.Distance.COSINE, on_disk=True),
    "mrl_2": models.VectorParams(size=2, distance=models.Distance.COSINE),
}
SPARSE = {"text-sparse": models.SparseVectorParams(modifier=models.Modifier.IDF)}
IDS: list[Any] = [f"00000000-0000-4000-8000-{number:012d}" for number in range(6)]
CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
CODES |= {409: "ALREADY_EXISTS", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}


def point(number: int) -> models.PointStruct:
    vector = [1.0, number / 10, -number / 5, 0.5]
    sparse = models.SparseVector(indices=[1, 10 + number], values=[0.5, 1.0 + number])
    payload = {
        "n": number,
        "tags": ["a", "b"][: number % 3],
        "_qwen": {"record": f"r{number // 2}"},
        "text": "ä" * number,
    }
    named: Any = {"text-dense": vector, "mrl_2": vector[:2], "text-sparse": sparse}
    return models.PointStruct(id=IDS[number], vector=named, payload=payload)


def equals(key: str, value: Any) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


def fill(client: QdrantClient) -> None:
    client.create_collection("c", vectors_config=VECTORS, sparse_vectors_config=SPARSE, metadata={"model": "m"})
    client.upsert("c", [point(number) for number in range(6)])


FULL = [0.9, 0.1, -0.4, 0.3]
READS: dict[str, Callable[[QdrantClient], Any]] = {
    "exists": lambda client: (client.collection_exists("c"), client.collection_exists("d")),
    "collections": lambda client: client.get_collections(),
    "retrieve": lambda client: client.retrieve("c", [IDS[3], IDS[1], "9" * 8 + IDS[0][8:]], with_vectors=True),
    "retrieve a part": lambda client: client.retrieve("c", IDS, with_payload=["_qwen.record"], with_vectors=["mrl_2"]),
    "retrieve no payload": lambda client: [record.id for record in client.retrieve("c", IDS, with_payload=False)],
    "count": lambda client: (client.count("c"), client.count("c", count_filter=equals("_qwen.record", "r1"))),
    "scroll": lambda client: client.scroll("c", limit=4, with_vectors=["text-sparse"]),
    "scroll on": lambda client: client.scroll("c", limit=4, offset=IDS[4]),
    "scroll filtered": lambda client: client.scroll("c", equals("tags", "b")),
    "query": lambda client: client.query_points("c", FULL, using="text-dense", limit=3, with_vectors=True),
    "query above": lambda client: client.query_points("c", FULL, using="text-dense", score_threshold=0.9),
    "query filtered": lambda client: client.query_points(
        "c", FULL, using="text-dense", query_filter=models.Filter(must_not=[models.HasIdCondition(has_id=IDS[:2])])
    ),
    "query stages": lambda client: client.query_points(
        "c", FULL, using="text-dense", prefetch=models.Prefetch(query=FULL[:2], using="mrl_2", limit=4), limit=2
    ),
    "query hybrid": lambda client: client.query_points(
        "c",
        models.RrfQuery(rrf=models.Rrf(k=60)),
        prefetch=[
            models.Prefetch(query=FULL, using="text-dense", limit=5, filter=equals("n", 2)),
            models.Prefetch(
                query=models.SparseVector(indices=[1, 12], values=[1.0, 1.0]), using="text-sparse", limit=5
            ),
        ],
    ),
    "query batch": lambda client: client.query_batch_points(
        "c", [models.QueryRequest(query=FULL, using="text-dense", limit=2, with_payload=["n"])] * 2
    ),
    "query groups": lambda client: client.query_points_groups("c", "_qwen.record", FULL, using="text-dense"),
}
WRITES: dict[str, Callable[[QdrantClient], Any]] = {
    "set payload": lambda client: client.set_payload("c", {"new": None, "n": 7.5}, points=IDS[:2]),
    "set payload at": lambda client: client.set_payload("c", {"x": [1, {"y": True}]}, points=IDS[:1], key="_qwen"),
    "set payload where": lambda client: client.set_payload("c", {"late": True}, points=equals("n", 4)),
    "overwrite payload": lambda client: client.overwrite_payload("c", {"only": 1}, points=IDS[2:3]),
    "delete payload": lambda client: client.delete_payload("c", ["text", "n"], points=IDS[3:]),
    "clear payload": lambda client: client.clear_payload("c", points_selector=IDS[:1]),
    "update vectors": lambda client: client.update_vectors(
        "c", [models.PointVectors(id=IDS[0], vector={"mrl_2": [0.0, 1.0]})]
    ),
    "delete vectors": lambda client: client.delete_vectors("c", ["mrl_2"], points=IDS[:1]),
    "delete": lambda client: client.delete("c", points_selector=IDS[4:]),
    "delete where": lambda client: client.delete("c", points_selector=equals("_qwen.record", "r0")),
    "batch": lambda client: client.batch_update_points(
        "c",
        [
            models.UpsertOperation(upsert=models.PointsList(points=[point(1)])),
            models.DeleteOperation(delete=models.PointIdsList(points=IDS[2:3])),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"b": "c"}, points=IDS[3:4])),
        ],
    ),
    "insert only": lambda client: client.upsert(
        "c", [point(2).model_copy(update={"payload": {}})], update_mode=models.UpdateMode.INSERT_ONLY
    ),
    "columns": lambda client: client.upsert(
        "c", models.Batch(ids=IDS[:1], vectors={"mrl_2": [[3.0, 4.0]]}, payloads=[{"column": 1}])
    ),
}


def plain(result: Any) -> Any:
    """Comparable: models as dictionaries, floats rounded to what float32 carries."""
    if isinstance(result, BaseModel):
        return plain(result.model_dump())
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [plain(value) for value in result]
    return round(result, 5) if isinstance(result, float) else result


@pytest.fixture
def client(server: Server, prefer_grpc: bool) -> Iterator[QdrantClient]:
    client = server.client(prefer_grpc=prefer_grpc, timeout=5)
    yield client
    client.close()


def refused(error: Exception) -> int | str:
    """Status of a refusal: REST's as a number, gRPC's by name."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code or 0
    return str(error.code().name)  # type: ignore[attr-defined]


def refusal(call: Callable[[], Any]) -> tuple[int | str, str]:
    with pytest.raises(Exception, match=r"(?s).+") as caught:
        call()
    return refused(caught.value), str(caught.value)


def status(code: int, prefer_grpc: bool) -> int | str:
    return CODES[code] if prefer_grpc else code


def test_reads_are_those_of_the_client_behind(client: QdrantClient) -> None:
    local = QdrantClient(":memory:")
    for each in (local, client):
        fill(each)
    for name, read in READS.items():
        assert plain(read(client)) == plain(read(local)), name


def test_writes_leave_what_they_leave_in_the_client_behind(client: QdrantClient) -> None:
    local = QdrantClient(":memory:")
    for each in (local, client):
        fill(each)
    for name, write in WRITES.items():
        for each in (local, client):
            write(each)
        after = [each.scroll("c", limit=100, with_vectors=True) for each in (local, client)]
        assert plain(after[1]) == plain(after[0]), name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8) | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.dictionaries(st.text(max_size=6), JSON, max_size=4))
def test_payloads_come_back_as_they_were(client: QdrantClient, payload: dict[str, Any]) -> None:
    if not client.collection_exists("p"):
        client.create_collection("p", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT))
    client.upsert("p", [models.PointStruct(id=1, vector=[1.0], payload=payload)])
    assert client.retrieve("p", [1])[0].payload == payload


def test_settings_are_kept_that_the_client_behind_drops(client: QdrantClient) -> None:
    quantization = models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4, always_ram=True)
    )
    client.create_collection(
        "c",
        vectors_config={**VECTORS, "mrl_2": VECTORS["mrl_2"].model_copy(update={"quantization_config": quantization})},
        sparse_vectors_config=SPARSE,
        shard_number=3,
        replication_factor=2,
        on_disk_payload=True,
        hnsw_config=models.HnswConfigDiff(m=24, on_disk=True),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=12_345),
        quantization_config=quantization,
        metadata={"model": "m", "n": 1},
    )
    client.create_payload_index("c", "_qwen.record", models.PayloadSchemaType.KEYWORD)
    client.create_payload_index("c", "n", models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, range=True))
    info = client.get_collection("c")
    params = info.config.params
    assert (params.shard_number, params.replication_factor, params.on_disk_payload) == (3, 2, True)
    assert isinstance(params.vectors, dict)
    assert params.vectors["text-dense"].on_disk is True
    assert plain(params.vectors["mrl_2"].quantization_config) == plain(info.config.quantization_config)
    assert plain(info.config.quantization_config) == plain(quantization)
    assert params.sparse_vectors is not None
    assert params.sparse_vectors["text-sparse"].modifier == models.Modifier.IDF
    assert (info.config.hnsw_config.m, info.config.hnsw_config.on_disk, info.config.hnsw_config.ef_construct) == (
        24,
        True,
        100,
    )
    assert info.config.optimizer_config.indexing_threshold == 12_345
    assert info.config.optimizer_config.flush_interval_sec == 5
    assert info.config.metadata == {"model": "m", "n": 1}
    kinds = {field: index.data_type.value for field, index in info.payload_schema.items()}
    assert kinds == {"_qwen.record": "keyword", "n": "integer"}


def test_changes_of_settings_are_merged(client: QdrantClient) -> None:
    fill(client)
    client.update_collection("c", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=7))
    client.update_collection("c", metadata={"other": 1}, hnsw_config=models.HnswConfigDiff(ef_construct=7))
    client.update_collection("c", vectors_config={"mrl_2": models.VectorParamsDiff(on_disk=True)})
    config = client.get_collection("c").config
    assert config.optimizer_config.indexing_threshold == 7
    assert config.optimizer_config.flush_interval_sec == 5
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (16, 7)
    assert config.metadata == {"model": "m", "other": 1}
    assert isinstance(config.params.vectors, dict)
    assert {name: vector.on_disk for name, vector in config.params.vectors.items()} == {
        "text-dense": True,
        "mrl_2": True,
    }


def test_the_threshold_decides_what_is_indexed(server: Server, client: QdrantClient) -> None:
    client.create_collection("c", vectors_config=models.VectorParams(size=512, distance=models.Distance.DOT))
    client.upsert("c", [models.PointStruct(id=number, vector=[1.0] * 512) for number in range(10)])
    assert client.get_collection("c").indexed_vectors_count == 0
    client.update_collection("c", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=20))
    server.store.statuses += [models.CollectionStatus.YELLOW, models.CollectionStatus.GREY]
    assert [client.get_collection("c").status.value for _ in range(3)] == ["yellow", "grey", "grey"]
    client.update_collection("c", optimizers_config=models.OptimizersConfigDiff())
    info = client.get_collection("c")
    assert (info.status.value, info.indexed_vectors_count) == ("green", 10)


def test_aliases_lead_to_the_collection(client: QdrantClient) -> None:
    fill(client)
    alias = models.CreateAlias(collection_name="c", alias_name="other")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    client.create_payload_index("other", "n", models.PayloadSchemaType.INTEGER)
    assert client.count("other").count == 6
    assert list(client.get_collection("other").payload_schema) == ["n"]
    assert [found.alias_name for found in client.get_aliases().aliases] == ["other"]


def test_what_a_server_refuses_is_refused_with_its_status(client: QdrantClient, prefer_grpc: bool) -> None:
    fill(client)
    short = models.PointStruct(id=1, vector={"text-dense": [1.0]})
    unnamed = models.PointStruct(id=1, vector=[1.0, 2.0, 3.0, 4.0])
    strange = models.PointStruct(id=1, vector={"strange": [1.0]})
    expected = [
        (lambda: client.count("absent"), 404, "Not found: Collection `absent`"),
        (lambda: client.get_collection("absent"), 404, "Not found: Collection"),
        (lambda: client.update_collection("absent", metadata={}), 404, "Not found: Collection"),
        (lambda: fill(client), 409, "Collection `c` already exists"),
        (lambda: client.upsert("c", [short]), 400, "expected dim: 4, got 1"),
        (lambda: client.upsert("c", [unnamed]), 400, "Wrong input"),
        (lambda: client.upsert("c", [strange]), 400, "Wrong input"),
        (lambda: client.set_payload("c", {}, points=[12]), 404, "No point with id 12 found"),
        (lambda: client.upsert("c", [short.model_copy(update={"id": "not a uuid"})]), 400, "not a valid point ID"),
        (lambda: client.scroll("c", order_by="n"), 400, "order_by"),
    ]
    for call, code, message in expected:
        answered, text = refusal(call)
        assert answered == status(code, prefer_grpc), text
        assert message in text
    assert client.count("c").count == 6
    assert client.delete_collection("absent") is False or prefer_grpc


def test_a_write_that_nobody_waits_for_loses_bad_points_silently(client: QdrantClient) -> None:
    fill(client)
    result = client.upsert("c", [models.PointStruct(id=1, vector={"text-dense": [1.0]})], wait=False)
    assert result.status == models.UpdateStatus.ACKNOWLEDGED
    assert client.count("c").count == 6


def test_a_body_over_32_mib_is_refused_over_rest_only(server: Server) -> None:
    server.store.backend.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    large = models.PointStruct(id=1, vector=[1.0], payload={"text": "x" * 33 * 1024 * 1024})
    rest, grpc = (server.client(prefer_grpc=flag, timeout=30) for flag in (False, True))
    code, message = refusal(lambda: rest.upsert("c", [large]))
    assert code == 400
    assert "is larger than allowed (limit: 33554432 bytes)" in message
    grpc.upsert("c", [large])
    assert rest.count("c").count == 1
    rest.close()
    grpc.close()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_nobody_gets_in_without_the_key(prefer_grpc: bool) -> None:
    backend = QdrantClient(":memory:")
    with serve(backend, api_key="right", read_only_key="look") as server:
        answers = {}
        for key in ("right", "look", "wrong", None):
            client = server.client(prefer_grpc=prefer_grpc, api_key=key)
            if key == "right":
                fill(client)
            answers[key] = (_status_of(partial(client.count, "c")), _status_of(partial(client.delete, "c", IDS[:1])))
            client.close()
        no, forbidden = status(401, prefer_grpc), status(403, prefer_grpc)
        assert answers == {"right": (200, 200), "look": (200, forbidden), "wrong": (no, no), None: (no, no)}
        assert httpx.get(server.url).json()["version"] == "1.20.0"
        assert backend.count("c").count == 5


def test_a_filter_without_index_is_refused_by_a_strict_server(prefer_grpc: bool) -> None:
    with serve(QdrantClient(":memory:"), strict=True) as server:
        client = server.client(prefer_grpc=prefer_grpc)
        fill(client)
        nested = models.Filter(should=[models.Filter(must=equals("_qwen.record", "r1").must)])
        calls: list[Callable[[], Any]] = [
            lambda: client.count("c", count_filter=nested),
            lambda: client.scroll("c", nested),
            lambda: client.delete("c", points_selector=nested),
            lambda: client.query_points("c", prefetch=models.Prefetch(query=FULL, using="text-dense", filter=nested)),
        ]
        for call in calls:
            assert "Index required but not found" in refusal(call)[1]
        client.create_payload_index("c", "_qwen.record", models.PayloadSchemaType.KEYWORD)
        assert client.count("c", count_filter=nested).count == 2
        client.create_payload_index("c", "n", models.PayloadSchemaType.KEYWORD)
        assert "one of the following types: [integer]" in refusal(lambda: client.count("c", equals("n", 1)))[1]
        empty = models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="text"))])
        assert "Index required" in refusal(lambda: client.count("c", empty))[1]
        client.close()


def test_a_server_before_1_16_has_no_metadata(prefer_grpc: bool) -> None:
    with serve(QdrantClient(":memory:"), version="1.15.5") as server:
        client = server.client(prefer_grpc=prefer_grpc)
        fill(client)
        client.update_collection("c", metadata={"model": "m"})
        assert client.get_collection("c").config.metadata is None
        assert client.info().version == "1.15.5"
        client.close()


def test_faults_come_as_planned(server: Server, client: QdrantClient, prefer_grpc: bool) -> None:
    fill(client)
    server.forget_requests()
    server.faults.add(Reply(503), on="upsert", skip=1)
    server.faults.add(Reply(500), on="c*t", times=2)
    assert [_status_of(lambda: client.upsert("c", [point(0)])) for _ in range(3)] == [
        200,
        status(503, prefer_grpc),
        200,
    ]
    assert [_status_of(lambda: client.count("c")) for _ in range(3)] == [status(500, prefer_grpc)] * 2 + [200]
    assert [(request.operation, request.status, request.points) for request in server.requests] == [
        *[("upsert", 200, 1), ("upsert", 503, 1), ("upsert", 200, 1)],
        *[("count", 500, 0), ("count", 500, 0), ("count", 200, 0)],
    ]
    assert {request.transport for request in server.requests} == {"grpc" if prefer_grpc else "rest"}


def _status_of(call: Callable[[], Any]) -> int | str:
    try:
        call()
    except Exception as error:
        return refused(error)
    return 200


def test_too_many_requests_says_when_to_come_again(server: Server, client: QdrantClient, prefer_grpc: bool) -> None:
    fill(client)
    server.faults.add(Reply(429, retry_after=7), on="count")
    server.faults.add(Reply(429), on="count")
    with pytest.raises(ResourceExhaustedResponse) as caught:
        client.count("c")
    assert caught.value.retry_after_s == 7
    assert refusal(lambda: client.count("c"))[0] == status(429, prefer_grpc)


def test_a_dropped_request_is_not_done_and_a_lost_answer_is(server: Server, client: QdrantClient) -> None:
    fill(client)
    server.faults.add(Drop(), on="delete")
    server.faults.add(Lose(), on="delete")
    counts = []
    for number in range(2):
        with pytest.raises(Exception, match=r"Socket closed|Server disconnected"):
            client.delete("c", points_selector=IDS[number : number + 1])
        counts.append(client.count("c").count)
    assert counts == [6, 5]


def test_a_late_answer_is_late_but_the_work_is_done(server: Server, prefer_grpc: bool) -> None:
    client = server.client(prefer_grpc=prefer_grpc, timeout=1)
    fill(client)
    server.faults.add(Late(5.0), on="delete")
    with pytest.raises(Exception, match=r"timed out|DEADLINE_EXCEEDED") as caught:
        client.delete("c", points_selector=IDS[:1])
    assert isinstance(caught.value, ResponseHandlingException) != prefer_grpc
    assert client.count("c").count == 5
    client.close()


def test_a_poisoned_point_spoils_its_request_and_no_other(
    server: Server, client: QdrantClient, prefer_grpc: bool
) -> None:
    fill(client)
    server.faults.add(Poison(lambda point: point.payload["n"] == 1))
    assert refusal(lambda: client.upsert("c", [point(0), point(1)]))[0] == status(400, prefer_grpc)
    assert refusal(lambda: client.upsert("c", [point(1)]))[0] == status(400, prefer_grpc)
    client.upsert("c", [point(0), point(2)])


def test_faults_at_random_are_the_same_for_a_seed() -> None:
    drawn = [
        [faults.draw("upsert") for _ in range(200)] for faults in (RandomFaults(3), RandomFaults(3), RandomFaults(4))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 20 <= sum(fault is not None for fault in drawn[0]) <= 60


def test_a_server_that_comes_back_has_what_it_had(server: Server, client: QdrantClient, prefer_grpc: bool) -> None:
    fill(client)
    server.stop()
    with pytest.raises(Exception, match=r"(?i)refused|UNAVAILABLE"):
        client.count("c")
    server.start()
    again = server.client(prefer_grpc=prefer_grpc)
    assert again.count("c").count == 6
    assert again.get_collection("c").config.metadata == {"model": "m"}
    again.close()


async def test_the_async_client_is_served_too(server: Server, prefer_grpc: bool) -> None:
    port = server.grpc_port
    client = AsyncQdrantClient(url=server.url, grpc_port=port, prefer_grpc=prefer_grpc, check_compatibility=False)
    vectors = models.VectorParams(size=2, distance=models.Distance.COSINE)
    await client.create_collection("c", vectors_config=vectors)
    await client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 0.0], payload={"a": 1})])
    found = await client.query_points("c", [1.0, 0.0])
    assert [(hit.id, hit.payload) for hit in found.points] == [(1, {"a": 1})]
    await client.close()


def test_it_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "tests.qdrant_server"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        for prefer_grpc in (False, True):
            port, url = ports["grpc_port"], ports["url"]
            client = QdrantClient(url=url, grpc_port=port, prefer_grpc=prefer_grpc, check_compatibility=False)
            assert client.collection_exists("c") is prefer_grpc
            if not prefer_grpc:
                fill(client)
            client.close()
        process.terminate()
        assert process.wait(timeout=20) == 0
