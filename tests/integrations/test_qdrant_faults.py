"""The helper against a server, over REST and gRPC, while much goes wrong between the two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from qdrant_qwen_retrieval import QdrantIndex, bulk
from qwen_retrieval.errors import IngestError, StoreError
from tests.integrations.qdrant_parts import RecordingEngine, make_embedder
from tests.integrations.qdrant_remote_parts import (
    CORPUS,
    SERVER_THRESHOLD,
    changed,
    content,
    expected_content,
    fill,
    open_index,
    threshold,
)
from tests.qdrant_server import Drop, Fault, Late, Lose, Poison, RandomFaults, Reply, Request, Server

POINT_OPERATIONS = ("upsert", "retrieve", "delete", "batch_update_points")


pytestmark = pytest.mark.usefixtures("waits")

FAULTS: list[Fault] = [Reply(500), Reply(503), Reply(429), Reply(429, retry_after=2), Drop(), Lose()]
AT_RANDOM: list[Fault] = [*FAULTS, Reply(408), Reply(502), Reply(504)]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_leaves_no_trace(server: Server, prefer_grpc: bool, fault: Fault, waits: list[float]) -> None:
    with open_index(server, prefer_grpc) as index:
        fill(index)
        for operation in POINT_OPERATIONS:
            server.faults.add(fault, on=operation)
        server.faults.add(fault, on="update_collection", times=2)
        report = fill(index, changed(CORPUS), delete_missing=True)
    struck = sorted(operation for operation, _ in server.faults.struck)
    assert struck == sorted([*POINT_OPERATIONS, "update_collection", "update_collection"])
    assert len(waits) == len(struck)
    assert report.failed == 0
    assert content(server.store.backend) == expected_content(2)
    assert threshold(server) == SERVER_THRESHOLD


@pytest.mark.parametrize(
    "operation", ["collection_exists", "create_collection", "create_payload_index", "get_collection"]
)
def test_a_fault_while_a_collection_is_made_leaves_no_trace(server: Server, prefer_grpc: bool, operation: str) -> None:
    for fault in (Reply(503), Reply(429, retry_after=2), Lose()):
        with open_index(server, prefer_grpc) as index:
            first = int(operation == "collection_exists")  # whether anybody is there at all is asked once
            server.faults.add(fault, on=operation, skip=first)
            fill(index, CORPUS[:4])
        assert [struck for struck, _ in server.faults.struck] == [operation]
        assert list(server.store.do("get_collection", "test", None, wait=True).payload_schema) == [
            "_qwen.record",
            "doc_id",
        ]
        assert threshold(server) == SERVER_THRESHOLD
        server.store.backend.delete_collection("test")
        server.faults.struck.clear()


def test_an_answer_that_comes_too_late_is_asked_for_again(server: Server, prefer_grpc: bool) -> None:
    with open_index(server, prefer_grpc, timeout=1) as index:
        server.faults.add(Late(30.0), on="upsert")
        report = fill(index)
    assert report.failed == 0
    assert content(server.store.backend) == expected_content()


@pytest.mark.parametrize("seed", range(2))
def test_faults_at_random_leave_no_trace(server: Server, prefer_grpc: bool, seed: int) -> None:
    with open_index(server, prefer_grpc) as index:
        fill(index)
        chance = RandomFaults(seed, 0.2, AT_RANDOM, on=(*POINT_OPERATIONS, "update_collection", "scroll"))
        server.faults.chance = chance
        reports = [
            fill(index, corpus, delete_missing=True, workers=4, batch_size=4) for corpus in (changed(CORPUS),) * 2
        ]
        server.faults.clear()
    assert len(server.faults.struck) > 3
    assert [report.failed for report in reports] == [0, 0]
    assert reports[1].embedded == 0
    assert content(server.store.backend) == expected_content(2)
    assert threshold(server) == SERVER_THRESHOLD


def test_too_many_requests_are_sent_again_when_the_server_says(
    server: Server, prefer_grpc: bool, waits: list[float]
) -> None:
    with open_index(server, prefer_grpc) as index:
        server.faults.add(Reply(429, retry_after=45), on="upsert")
        fill(index)
    assert waits == [45.0]


def test_a_server_that_stays_overloaded_ends_the_run(server: Server, prefer_grpc: bool, waits: list[float]) -> None:
    with open_index(server, prefer_grpc) as index:
        server.faults.add(Reply(429, "slow down", retry_after=40), on="upsert", times=float("inf"))
        with pytest.raises(IngestError, match=r"slow down") as caught:
            fill(index, workers=1)
    assert 200 <= sum(waits) <= 300
    assert "'test'" in str(caught.value)
    assert threshold(server) == SERVER_THRESHOLD


@pytest.mark.parametrize("status", [400, 422])
def test_a_point_that_is_refused_costs_its_record_and_no_other(
    server: Server, prefer_grpc: bool, status: int, tmp_path: Path, waits: list[float]
) -> None:
    letters = tmp_path / "dead.jsonl"
    server.faults.add(Poison(lambda point: point.payload["content"].startswith("word17 of"), status, "no 17, please"))
    whole = expected_content()
    spoiled = {id for id, (payload, _) in whole.items() if payload["content"].startswith("word17 of")}
    records = {whole[id][0]["_qwen"]["record"] for id in spoiled}
    with open_index(server, prefer_grpc) as index:
        report = fill(index, dead_letter=letters)
        assert waits == []  # what is refused for good is not sent again and again
        assert report.failed == len(records) == len(report.failures)
        assert {failure.id for failure in report.failures} == records
        assert all("no 17, please" in failure.reason for failure in report.failures)
        lines = [json.loads(line) for line in letters.read_text(encoding="utf-8").splitlines()]
        assert {line["id"] for line in lines} == records
        stored = content(server.store.backend)
        missing = {id: payload["_qwen"]["record"] for id, (payload, _) in whole.items() if id not in stored}
        assert spoiled <= set(missing)
        assert set(missing.values()) == records
        assert all(stored[id] == whole[id] for id in stored)
        server.faults.clear()
        again = fill(index)
    assert (again.failed, again.embedded) == (0, len(missing))
    assert content(server.store.backend) == whole


def test_a_request_that_is_too_large_is_sent_in_pieces(server: Server, prefer_grpc: bool, waits: list[float]) -> None:
    large: Any = lambda request: request.points > 3  # noqa: E731
    message = "Payload error: JSON payload (33559357 bytes) is larger than allowed (limit: 33554432 bytes)."
    server.faults.add(Reply(400, message), on="upsert", times=float("inf"), where=large)
    with open_index(server, prefer_grpc) as index:
        report = fill(index)
    assert (report.failed, waits) == (0, [])
    assert content(server.store.backend) == expected_content()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_will_never_be_accepted_ends_the_run_at_once(
    server: Server, prefer_grpc: bool, status: int, waits: list[float]
) -> None:
    with open_index(server, prefer_grpc) as index:
        fill(index, CORPUS[:1])
        server.forget_requests()
        server.faults.add(Reply(status, "not you"), on="upsert", times=float("inf"))
        with pytest.raises(StoreError, match=r"not you|refuses the key"):
            fill(index, workers=1)
    assert server.operations("upsert") == ["upsert"]
    assert waits == []
    assert threshold(server) == SERVER_THRESHOLD


def test_a_server_that_is_not_there_is_named(server: Server, prefer_grpc: bool) -> None:
    server.stop()
    with pytest.raises(StoreError) as caught:
        open_index(server, prefer_grpc)
    assert server.url in str(caught.value)
    assert "does not answer" in str(caught.value)


def test_a_run_goes_on_where_it_was_when_the_server_is_back(server: Server, prefer_grpc: bool) -> None:
    def die(progress: Any) -> None:
        if progress.embedded >= 16:
            server.stop()

    with open_index(server, prefer_grpc) as index:
        with pytest.raises(IngestError, match=r"could not be reached|does not answer"):
            fill(index, batch_size=8, progress=die)
        stored = server.store.backend.count("test").count
        server.start()
    engine = RecordingEngine()
    with open_index(server, prefer_grpc, engine) as index:
        report = fill(index)
    assert 16 <= stored < report.points
    assert report.embedded == report.points - stored
    assert len(engine.texts) <= report.embedded  # equal texts are embedded once
    assert content(server.store.backend) == expected_content()
    assert threshold(server) == SERVER_THRESHOLD


def test_a_server_that_is_killed_and_started_again_loses_nothing(tmp_path: Path) -> None:
    """With the real engine and its log behind it; whoever kills a process kills it at a bad moment."""

    def die(progress: Any) -> None:
        if progress.embedded >= 16 and process.poll() is None:
            process.kill()

    with (
        started(tmp_path) as (process, address),
        QdrantIndex("test", embedder=make_embedder(), **address) as index,
        pytest.raises(IngestError),
    ):
        fill(index, batch_size=8, progress=die)
    with started(tmp_path) as (_, address), QdrantIndex("test", embedder=make_embedder(), **address) as index:
        stored = index.count()
        report = fill(index)
        assert 16 <= stored < report.points
        assert report.embedded == report.points - stored
        assert content(index.client) == expected_content()
        config = index.client.get_collection("test").config
        assert config.optimizer_config.indexing_threshold == SERVER_THRESHOLD
        assert list(config.metadata or {}) == ["qwen_retrieval"]


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server as a process of its own, on the engine, and how to reach it."""
    command = [sys.executable, "-m", "tests.qdrant_server", "--path", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        yield process, {"url": ports["url"], "grpc_port": ports["grpc_port"]}
        process.terminate()


def thresholds(requests: list[Request]) -> list[int]:
    found = (request.body.optimizers_config for request in requests if request.operation == "update_collection")
    return [config.indexing_threshold for config in found if config is not None]


def test_a_load_is_done_in_the_order_that_is_good_for_a_server(server: Server, prefer_grpc: bool) -> None:
    with open_index(server, prefer_grpc, indexed_fields={"year": "integer"}) as index:
        fill(index)
    steps = ("create_collection", "create_payload_index", "update_collection", "upsert")
    order = [name for name, _ in groupby(server.operations(*steps))]
    assert order == ["create_collection", "create_payload_index", "update_collection", "upsert", "update_collection"]
    assert thresholds(server.requests) == [bulk.DEFERRED, SERVER_THRESHOLD]
    assert threshold(server) == SERVER_THRESHOLD


def test_the_threshold_that_was_set_comes_back(server: Server, prefer_grpc: bool) -> None:
    with open_index(server, prefer_grpc) as index:
        fill(index, CORPUS[:2])
        index.client.update_collection("test", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=123))
        fill(index)
        assert threshold(server) == 123
        server.forget_requests()
        fill(index)  # nothing to write: nothing to put off
    assert server.operations("update_collection") == []


def test_the_threshold_comes_back_after_a_run_that_fails(server: Server, prefer_grpc: bool) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from CORPUS[:30]
        raise RuntimeError("the source has ended early")

    with open_index(server, prefer_grpc) as index, pytest.raises(RuntimeError, match="ended early"):
        index.ingest(source(), batch_size=4)
    assert bulk.DEFERRED in thresholds(server.requests)
    assert threshold(server) == SERVER_THRESHOLD


KILLED = """
import json, os, sys
sys.path.insert(0, ".")
from tests.integrations import qdrant_parts
from qdrant_qwen_retrieval import QdrantIndex

url, grpc_port, prefer_grpc = json.loads(sys.argv[1])
index = QdrantIndex(
    "test", embedder=qdrant_parts.make_embedder(), url=url, grpc_port=grpc_port, prefer_grpc=prefer_grpc
)

def killed(progress):
    if progress.embedded >= 16:
        os._exit(9)

index.ingest(json.load(sys.stdin), chunk_size=30, batch_size=8, workers=2, progress=killed)
"""


def test_the_run_after_a_kill_restores_the_threshold_and_embeds_only_the_rest(server: Server) -> None:
    address = json.dumps([server.url, server.grpc_port, True])
    process = subprocess.run(
        [sys.executable, "-c", KILLED, address],
        input=json.dumps(CORPUS),
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 9, process.stderr
    stored = server.store.backend.count("test").count
    assert (
        server.store.do("get_collection", "test", None, wait=True).config.optimizer_config.indexing_threshold
        == bulk.DEFERRED
    )
    engine = RecordingEngine()
    with open_index(server, True, engine) as index:
        report = fill(index)
    assert 0 < stored < report.points
    assert report.embedded == report.points - stored
    assert len(engine.texts) <= report.embedded  # equal texts are embedded once
    assert content(server.store.backend) == expected_content()
    assert threshold(server) == SERVER_THRESHOLD


def test_optimize_waits_until_a_server_is_green(
    server: Server, prefer_grpc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "POLL", 0.01)
    with open_index(server, prefer_grpc) as index:
        fill(index)
        server.forget_requests()
        server.store.statuses += [models.CollectionStatus(status) for status in ("yellow", "green", "yellow", "grey")]
        assert index.optimize()
        assert not server.store.statuses
        assert server.operations("update_collection") == ["update_collection"]  # what a grey one waits for
        server.store.statuses += [models.CollectionStatus.YELLOW] * 1000
        assert not index.optimize(timeout=0.05)
        server.store.statuses[:] = [models.CollectionStatus.RED]
        with pytest.raises(StoreError, match="failed to index"):
            index.optimize()
