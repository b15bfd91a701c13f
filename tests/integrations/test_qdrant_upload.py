"""What becomes of a request that fails: sent again, sent in pieces, without its bad points, or never again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, cast

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import UnexpectedResponse

from qdrant_qwen_retrieval import upload
from qdrant_qwen_retrieval.chunks import point_id
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.faults import Fault, fault_of, retry_after
from qdrant_qwen_retrieval.isolation import isolate
from qdrant_qwen_retrieval.upload import Uploader
from qwen_retrieval.errors import IngestError, StoreError
from tests.integrations.qdrant_parts import memory_store

SIZE = 4
OK = {"result": {"operation_id": 1, "status": "completed"}, "status": "ok", "time": 0.0}
Answer = httpx.Response | Exception | None
"""What the server says to a request; None for yes."""


def refusal(status: int, message: str = "", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"status": {"error": message}}, headers=headers)


@dataclass
class RestServer:
    """A server behind qdrant-client's REST interface that answers as it is told, and notes what it was sent.

    Attributes:
        answer: Given the point ids of a request and its number from 0, says what to answer.
        requests: The point ids of each request.
        stored: Points accepted, in order.
        waits: What was slept.
    """

    answer: Callable[[list[str], int], Answer] = lambda _ids, _number: None
    requests: list[list[str]] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        content = json.loads(request.content or b"{}")
        if "operations" in content:
            ids = [one["overwrite_payload"]["points"][0] for one in content["operations"]]
        else:
            ids = [one["id"] if isinstance(one, dict) else one for one in content.get("points", [])]
        assert request.method == "GET" or request.url.params["wait"] == "true"
        self.requests.append(ids)
        self.bodies.append(len(request.content))
        answer = self.answer(ids, len(self.requests) - 1)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        self.stored += ids
        result = [OK["result"]] if "operations" in content else OK["result"]
        return httpx.Response(200, json=OK | {"result": result})

    def uploader(self, *, patience: float | None = None) -> Uploader:
        client = QdrantClient(
            url="http://server.invalid", check_compatibility=False, transport=httpx.MockTransport(self)
        )
        return Uploader(as_collection(client), patience=patience, sleep=self.waits.append)


def as_collection(client: Any, *, is_remote: bool = True) -> Collection:
    return cast(Collection, SimpleNamespace(client=client, name="c", is_remote=is_remote))


def points(count: int, size: int = SIZE) -> list[models.PointStruct]:
    return [
        models.PointStruct(id=point_id(str(i)), vector=np.full(size, 0.5, dtype=np.float32).tolist(), payload={"n": i})
        for i in range(count)
    ]


def ids(count: int) -> list[str]:
    return [str(point.id) for point in points(count)]


def fails_first(*answers: Answer) -> Callable[[list[str], int], Answer]:
    """The first requests are answered so, and all others accepted."""
    return lambda _ids, number: answers[number] if number < len(answers) else None


class TestRequests:
    def test_points_are_sent_in_order_at_most_256_at_once(self) -> None:
        server = RestServer()
        assert server.uploader().upsert(points(600)) == {}
        assert [len(request) for request in server.requests] == [256, 256, 88]
        assert server.stored == ids(600)

    def test_requests_have_about_four_megabytes(self) -> None:
        server = RestServer()
        server.uploader().upsert(points(250, 4096))
        assert len(server.requests) > 4
        assert all(size < 5_000_000 for size in server.bodies)
        assert server.stored == ids(250)

    def test_long_payloads_count(self) -> None:
        server = RestServer()
        large = [point.model_copy(update={"payload": {"text": "x" * 1_500_000}}) for point in points(7)]
        server.uploader().upsert(large)
        assert [len(request) for request in server.requests] == [2, 2, 2, 1]

    def test_named_and_sparse_vectors_count(self) -> None:
        sparse = models.SparseVector(indices=list(range(50_000)), values=[1.0] * 50_000)
        vector = {"text-dense": [1.0] * 10_000, "mrl": np.ones(10_000, dtype=np.float32), "text-sparse": sparse}
        server = RestServer()
        point = models.PointStruct.model_construct(id=ids(1)[0], vector=vector, payload={})
        requests = server.uploader()._requests([point, point])
        assert [len(request) for request in requests] == [1, 1]

    def test_nothing_is_sent_for_nothing(self) -> None:
        server = RestServer()
        uploader = server.uploader()
        assert uploader.upsert([]) == {}
        assert uploader.rewrite([]) == {}
        uploader.delete([])
        assert server.requests == []

    def test_payloads_are_rewritten_together_and_points_deleted_in_slices(self) -> None:
        server = RestServer()
        uploader = server.uploader()
        assert uploader.rewrite((id, {"n": 1}) for id in ids(300)) == {}
        uploader.delete(ids(300))
        assert [len(request) for request in server.requests] == [256, 44, 256, 44]

    def test_all_points_of_a_record_are_deleted_at_once(self) -> None:
        client = memory_store().client
        vectors = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
        client.create_collection("c", vectors_config=vectors)
        owned = [
            point.model_copy(update={"payload": {"_qwen": {"record": f"r{i % 3}"}}})
            for i, point in enumerate(points(9))
        ]
        client.upsert("c", owned)
        uploader = Uploader(as_collection(client, is_remote=False))
        assert uploader.delete_records("_qwen.record", ["r0", "r2", "absent"]) == 6
        assert uploader.delete_records("_qwen.record", []) == 0
        assert client.count("c").count == 3


PASSING: dict[str, Answer] = {
    "429": refusal(429, "slow down"),
    "429 with Retry-After": refusal(429, "slow down", **{"Retry-After": "7"}),
    "429 with a date": refusal(429, "slow down", **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "500": refusal(500, "Service internal error: task panicked"),
    "503": refusal(503, "not ready"),
    "408": refusal(408, "Timeout error"),
    "read timeout": httpx.ReadTimeout("timed out"),
    "connection refused": httpx.ConnectError("[Errno 111] Connection refused"),
    "connection lost": httpx.RemoteProtocolError("Server disconnected without sending a response"),
    "connection reset": httpx.ReadError("[Errno 104] Connection reset by peer"),
}


class TestPassingFaults:
    @pytest.mark.parametrize("answer", PASSING.values(), ids=PASSING)
    def test_it_is_sent_again_and_nothing_is_lost(self, answer: Answer) -> None:
        server = RestServer(fails_first(answer, answer, answer))
        assert server.uploader().upsert(points(300)) == {}
        assert server.stored == ids(300)
        assert [len(request) for request in server.requests] == [256] * 4 + [44]
        assert len(server.waits) == 3

    def test_waits_grow_at_random_up_to_a_limit(self) -> None:
        waits: list[list[float]] = []
        for _ in range(8):
            server = RestServer(fails_first(*[PASSING["500"]] * 9))
            server.uploader().upsert(points(1))
            waits.append(server.waits)
        limits = [min(upload.LONGEST_WAIT, upload.FIRST_WAIT * 2**attempt) for attempt in range(9)]
        for column, limit in zip(zip(*waits, strict=True), limits, strict=True):
            assert all(0 <= wait <= limit for wait in column)
            assert len(set(column)) > 1
        assert max(wait for row in waits for wait in row) > upload.LONGEST_WAIT / 4

    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_is_honoured(self, status: int) -> None:
        server = RestServer(fails_first(refusal(status, "wait", **{"Retry-After": "42"})))
        server.uploader().upsert(points(1))
        assert server.waits == [42.0]

    def test_retry_after_as_a_date_is_honoured(self) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
        server = RestServer(fails_first(refusal(429, "wait", **{"Retry-After": date})))
        server.uploader().upsert(points(1))
        assert 90 < server.waits[0] <= 100

    def test_patience_ends(self) -> None:
        server = RestServer(lambda _ids, _number: PASSING["503"])
        with pytest.raises(IngestError, match=r"could not be reached .*'c' within 60 s, tried \d+ times: .*not ready"):
            server.uploader(patience=60).upsert(points(1))
        assert 60 - upload.LONGEST_WAIT < sum(server.waits) <= 60

    def test_a_longer_wait_than_patience_is_not_begun(self) -> None:
        server = RestServer(lambda _ids, _number: refusal(429, "quota", **{"Retry-After": "3600"}))
        with pytest.raises(IngestError, match=r"tried 1 times \(it asks to wait for 3600 s\): .*quota"):
            server.uploader().upsert(points(1))
        assert server.waits == []

    def test_deleting_and_rewriting_are_tried_again_too(self) -> None:
        server = RestServer(lambda _ids, number: None if number % 2 else PASSING["500"])
        uploader = server.uploader()
        uploader.delete(ids(2))
        assert uploader.rewrite((id, {}) for id in ids(2)) == {}
        assert len(server.waits) == 2


class TestTooLarge:
    @pytest.mark.parametrize(
        "answer",
        [
            refusal(413, "Payload Too Large"),
            refusal(
                400, "Payload error: JSON payload (33554497 bytes) is larger than allowed (limit: 33554432 bytes)."
            ),
        ],
        ids=["413", "400"],
    )
    def test_the_request_is_halved_until_it_fits(self, answer: Answer) -> None:
        server = RestServer(lambda ids, _number: answer if len(ids) > 50 else None)
        assert server.uploader().upsert(points(256)) == {}
        assert server.stored == ids(256)
        assert server.waits == []

    def test_a_point_that_alone_is_too_large_is_returned(self) -> None:
        large = ids(20)[13]
        server = RestServer(lambda ids, _number: refusal(413, "Payload Too Large") if large in ids else None)
        refused = server.uploader().upsert(points(20))
        assert refused.keys() == {large}
        assert "Payload Too Large" in refused[large]
        assert server.stored == [id for id in ids(20) if id != large]


class TestBadPoints:
    def test_one_bad_point_is_found_in_few_requests_and_the_others_are_stored_once(self) -> None:
        bad = ids(256)[100]
        server = RestServer(lambda ids, _number: refusal(400, "Wrong input: bad vector") if bad in ids else None)
        refused = server.uploader().upsert(points(256))
        assert refused == {bad: refused[bad]}
        assert "Wrong input: bad vector" in refused[bad]
        assert "status 400" in refused[bad]
        assert server.stored == [id for id in ids(256) if id != bad]
        assert len(server.requests) <= 2 * 8 + 1
        assert server.waits == []

    @settings(max_examples=20)
    @given(st.sets(st.integers(0, 39), max_size=15))
    def test_any_bad_points_are_found_and_nothing_else(self, bad: set[int]) -> None:
        names = {ids(40)[index] for index in bad}
        server = RestServer(lambda ids, _number: refusal(422, "no") if names & set(ids) else None)
        assert server.uploader().upsert(points(40)).keys() == names
        assert server.stored == [id for id in ids(40) if id not in names]

    @pytest.mark.parametrize("named", [False, True])
    def test_if_every_point_is_refused_it_is_not_the_points(self, named: bool) -> None:
        server = RestServer(lambda ids, _n: refusal(400, f"collection is full: {ids[0] if named else ''}"))
        with pytest.raises(IngestError, match=r"refuses every point .*collection is full"):
            server.uploader().upsert(points(600))
        assert len(server.requests) < 2 * 256

    def test_payloads_of_points_that_are_gone_are_returned(self) -> None:
        gone = ids(5)[2]
        server = RestServer(
            lambda ids, _number: refusal(404, f"Not found: No point with id {gone} found") if gone in ids else None
        )
        assert server.uploader().rewrite((id, {}) for id in ids(5)).keys() == {gone}

    def test_points_that_cannot_be_put_into_a_message_are_returned(self) -> None:
        server = RestServer()
        some = points(5)
        some[3] = models.PointStruct.model_construct(id=some[3].id, vector=[1.0], payload={"x": "\ud800"})
        refused = server.uploader().upsert(some)
        assert refused.keys() == {some[3].id}
        assert len(server.stored) == 4


FATAL: dict[str, Answer] = {
    "401": refusal(401, "Must provide an API key"),
    "403": refusal(403, "forbidden"),
    "404": refusal(404, "Not found: Collection `c` doesn't exist!"),
    "disk full": refusal(500, "Service internal error: No space left on device: WAL buffer size exceeds available"),
    "501": refusal(501, "not here"),
    "a page of somebody else": httpx.Response(200, text="<html>"),
    "a closed client": RuntimeError("Cannot send a request, as the client has been closed."),
    "https to http": httpx.LocalProtocolError("x"),
}


class TestFatalFaults:
    @pytest.mark.parametrize("answer", FATAL.values(), ids=FATAL)
    def test_it_ends_at_once(self, answer: Answer) -> None:
        server = RestServer(lambda _ids, _number: answer)
        with pytest.raises(IngestError, match="'c'") as caught:
            server.uploader().upsert(points(30))
        assert caught.value.__cause__ is not None
        assert len(server.requests) == 1
        assert server.waits == []

    def test_a_missing_collection_of_a_local_store_is_fatal(self) -> None:
        uploader = Uploader(as_collection(QdrantClient(":memory:"), is_remote=False))
        with pytest.raises(IngestError, match="Collection c not found"):
            uploader.upsert(points(3))

    def test_the_end_of_an_embedded_engine_is_fatal(self) -> None:
        def die() -> None:
            raise StoreError("the engine's process was killed by signal 9")

        with pytest.raises(IngestError, match="killed by signal 9"):
            RestServer().uploader().ask(die)

    def test_mistakes_of_ours_pass_unchanged(self) -> None:
        def mistake() -> None:
            raise AttributeError("ours")

        with pytest.raises(AttributeError, match="ours"):
            RestServer().uploader().ask(mistake)

    def test_keys_stand_in_no_message(self) -> None:
        server = RestServer(lambda _ids, _number: FATAL["401"])
        client = QdrantClient(
            url="http://server.invalid",
            headers={"api-key": "geheim"},
            check_compatibility=False,
            transport=httpx.MockTransport(server),
        )
        with pytest.raises(IngestError) as caught:
            Uploader(as_collection(client)).upsert(points(1))
        assert "geheim" not in str(caught.value)


class RpcError(grpc.RpcError):  # type: ignore[misc]
    """As grpc raises it."""

    def __init__(self, code: grpc.StatusCode, details: str = "", **trailing: str) -> None:
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Sequence[tuple[str, str]]:
        return [(name.replace("_", "-"), value) for name, value in self._trailing.items()]


class TestGrpc:
    @pytest.mark.parametrize(
        ("code", "details", "fault"),
        [
            ("UNAVAILABLE", "failed to connect to all addresses", Fault.TRANSIENT),
            ("DEADLINE_EXCEEDED", "Deadline Exceeded", Fault.TRANSIENT),
            ("ABORTED", "", Fault.TRANSIENT),
            ("INTERNAL", "Service internal error: x", Fault.TRANSIENT),
            ("UNKNOWN", "Stream removed", Fault.TRANSIENT),
            ("RESOURCE_EXHAUSTED", "rate limit", Fault.TRANSIENT),
            ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", Fault.TOO_LARGE),
            ("INVALID_ARGUMENT", "Wrong input: Vector dimension error", Fault.BAD_POINT),
            ("NOT_FOUND", "Not found: Collection `c` doesn't exist!", Fault.FATAL),
            ("NOT_FOUND", "Not found: No point with id 1 found", Fault.BAD_POINT),
            ("UNAUTHENTICATED", "", Fault.FATAL),
            ("PERMISSION_DENIED", "", Fault.FATAL),
            ("UNIMPLEMENTED", "", Fault.FATAL),
            ("INTERNAL", "No space left on device", Fault.FATAL),
        ],
    )
    def test_each_code_has_its_consequence(self, code: str, details: str, fault: Fault) -> None:
        assert fault_of(RpcError(grpc.StatusCode[code], details)) is fault

    def test_retry_after_is_read_from_the_trailing_metadata(self) -> None:
        assert retry_after(RpcError(grpc.StatusCode.UNAVAILABLE, retry_after="3")) == 3.0
        assert retry_after(RpcError(grpc.StatusCode.UNAVAILABLE)) == 0.0
        assert retry_after(ResourceExhaustedResponse("limit", 5)) == 5.0

    def test_explained_errors_keep_their_consequence(self) -> None:
        cause = UnexpectedResponse(503, "", b"", httpx.Headers({"retry-after": "9"}))
        error = StoreError("Qdrant reports an error")
        error.__cause__ = cause
        assert fault_of(error) is Fault.TRANSIENT
        assert retry_after(error) == 9.0
        assert fault_of(StoreError("the engine died")) is Fault.FATAL

    def test_a_closed_channel_is_fatal(self) -> None:
        assert fault_of(ValueError("Cannot invoke RPC on closed channel!")) is Fault.FATAL


class TestIsolation:
    @given(st.lists(st.booleans(), max_size=60))
    def test_what_is_good_is_done_once_and_in_order(self, good: list[bool]) -> None:
        done: list[int] = []

        def attempt(part: Sequence[int]) -> list[int]:
            if not all(good[item] for item in part):
                raise ValueError("one of them")
            done.extend(part)
            return [item * 2 for item in part]

        results, failed = isolate(range(len(good)), attempt, lambda _: ())
        assert done == [item for item, is_good in enumerate(good) if is_good]
        assert [value for _, values in results for value in values] == [2 * item for item in done]
        assert sorted(item for item, _ in failed) == [item for item, is_good in enumerate(good) if not is_good]

    def test_errors_that_name_the_bad_ones_cost_one_more_call(self) -> None:
        calls: list[list[int]] = []

        def attempt(part: Sequence[int]) -> None:
            calls.append(list(part))
            if 3 in part:
                raise LookupError

        _, failed = isolate(list(range(100)), attempt, lambda _: (3, 5))
        assert [item for item, _ in failed] == [3, 5]
        assert len(calls) == 2

    def test_errors_that_are_nobodys_fault_pass(self) -> None:
        def attempt(_: Sequence[int]) -> None:
            raise LookupError("ours")

        with pytest.raises(LookupError, match="ours"):
            isolate([1, 2], attempt, lambda _: None)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert "geheim" not in caplog.text
