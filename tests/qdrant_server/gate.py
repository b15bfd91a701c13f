"""The way of a request through the server, whatever protocol it came by: log, key, faults, store."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdrant_client import models

from tests.qdrant_server.faults import Drop, Fault, Faults, Late, Lose, Poison, Reply
from tests.qdrant_server.store import WRITES, Refusal, Store

READS = {"info", "get_collections", "get_collection", "collection_exists", "get_aliases", "get_collection_aliases"} | {
    *("retrieve", "scroll", "count", "facet", "query_points", "query_batch_points", "query_points_groups")
}


class Dropped(Exception):
    """The connection is to end without an answer."""


@dataclass
class Request:
    """One request, as it stands in the log.

    Attributes:
        transport: "rest" or "grpc".
        operation: The name of the client's method that sends it.
        route: Method and path, or the full name of the call.
        collection: Which collection, "" if none.
        body: The client's model of what was asked; None where there is none, and for points after they were written.
        size: Bytes of the body.
        wait: Whether the client asked to wait until it is done.
        points: How many points are written, deleted or fetched by id.
        ids: Their ids.
        headers: What came with it, names in lower case.
        status: HTTP status of the answer, 0 where the connection was dropped.
    """

    transport: str
    operation: str
    route: str
    collection: str = ""
    body: Any = None
    size: int = 0
    wait: bool = True
    points: int = 0
    ids: tuple[Any, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    status: int = 200

    @property
    def point_structs(self) -> list[models.PointStruct]:
        """The points that it writes, while it is under way."""
        operations = self.body.operations if isinstance(self.body, models.UpdateOperations) else [self.body]
        upserts = [operation.upsert for operation in operations if isinstance(operation, models.UpsertOperation)]
        return [point for upsert in upserts if isinstance(upsert, models.PointsList) for point in upsert.points]


class Gate:
    """Takes requests, one thread each, and answers them.

    Args:
        store: What does the work.
        faults: What goes wrong.
        api_key: Who may do everything; None lets everybody.
        read_only_key: Who may read.
    """

    def __init__(self, store: Store, faults: Faults, api_key: str | None, read_only_key: str | None) -> None:
        self.store = store
        self.faults = faults
        self.requests: list[Request] = []
        self.stopping = threading.Event()  # ends the waiting of late answers
        self._api_key = api_key
        self._read_only_key = read_only_key
        self._lock = threading.Lock()

    def admit(self, request: Request) -> None:
        """Write it down, and ask for the key.

        Raises:
            Refusal: 401 or 403.
        """
        with self._lock:
            self.requests.append(request)
        if self._api_key is None or request.route in ("GET /", "GET /healthz", "GET /readyz", "GET /livez"):
            return
        bearer = request.headers.get("authorization", "")
        key = request.headers.get("api-key") or bearer.removeprefix("Bearer ")
        if not key:
            self._refuse(request, Refusal(401, "Must provide an API key or an Authorization bearer token"))
        if key == self._read_only_key and request.operation not in READS:
            self._refuse(request, Refusal(403, "Forbidden: Write access is required"))
        if key not in (self._api_key, self._read_only_key):
            self._refuse(request, Refusal(401, "Invalid API key or JWT"))

    def answer(self, request: Request) -> Any:
        """Do what is asked, if no fault is due.

        Raises:
            Refusal: With the status that a server gives.
            Dropped: Nothing is to be answered.
        """
        request.ids = tuple(_ids(request.body))
        request.points = len(request.ids)
        fault = self.faults.next(request)
        try:
            self._before(fault)
            result = self.store.do(request.operation, request.collection, request.body, wait=request.wait)
            self._after(fault)
        except Refusal as refusal:
            self._refuse(request, refusal)
        except Dropped:
            request.status = 0
            raise
        finally:
            if request.point_structs:
                request.body = None
        return result

    def refuse(self, request: Request, refusal: Refusal) -> None:
        """Write down that it was refused before it was understood."""
        request.status = refusal.status

    def _refuse(self, request: Request, refusal: Refusal) -> None:
        request.status = refusal.status
        raise refusal

    def _before(self, fault: Fault | None) -> None:
        if isinstance(fault, Reply):
            raise Refusal(fault.status, fault.message, fault.retry_after)
        if isinstance(fault, Poison):
            raise Refusal(fault.status, fault.message)
        if isinstance(fault, Drop):
            raise Dropped

    def _after(self, fault: Fault | None) -> None:
        if isinstance(fault, Lose):
            raise Dropped
        if isinstance(fault, Late):
            self.stopping.wait(fault.seconds)


def _ids(body: Any) -> list[Any]:
    """The ids that a request names, in order."""
    if isinstance(body, models.UpdateOperations):
        return [identifier for operation in body.operations for identifier in _ids(operation)]
    if isinstance(body, models.PointRequest):
        return list(body.ids)
    inner = next(iter(body.__dict__.values()), None) if type(body) in WRITES else None
    if isinstance(inner, models.PointsBatch):
        return list(inner.batch.ids)
    return [point if isinstance(point, int | str) else point.id for point in getattr(inner, "points", None) or []]
