"""Writing to a collection: requests of a good size, sent until they are acknowledged.

qdrant-client's own uploads send a refused request again and again, without waiting, lose points silently and tell
nobody which (see https://github.com/qdrant/qdrant-client/issues/257 and https://github.com/qdrant/qdrant/issues/9039).
Here every request waits for its acknowledgement, and each point is either stored or returned with a reason.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from qdrant_client import models
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from qdrant_qwen_retrieval.faults import Fault, detail_of, fault_of, retry_after
from qdrant_qwen_retrieval.isolation import isolate
from qwen_retrieval.errors import IngestError

if TYPE_CHECKING:
    from qdrant_qwen_retrieval.collection import Collection

REQUEST_POINTS = 256
REQUEST_BYTES = 4_000_000
"""Qdrant advises 64 to 256 points and less than 5 MB; the limit of its REST interface is 32 MiB
(``service.max_request_size_mb`` of its configuration)."""

PATIENCE = 300.0
"""Seconds for which one request is tried again: enough for a server that restarts."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds that the first and the later waits have at most; they are drawn at random below that (full jitter)."""

_ALL_REFUSED = 16
"""So many points refused for the same reason, and none accepted: then it is not the points."""

_NAMES = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+")  # ids and numbers, by which reasons differ that are the same

_REST_FLOAT, _GRPC_FLOAT = 21, 4  # bytes; measured for REST, which spells numbers out

T = TypeVar("T")
Refused = dict[str, str]
"""Point id -> why the store will never take it."""

_log = logging.getLogger(__name__)


class Uploader:
    """Writes to one collection. Any number of threads may share one.

    Args:
        collection: Where to.
        patience: Seconds for which one request is tried again after passing faults.
        sleep: Called with the seconds to wait before trying again; may raise to end the attempts.
    """

    def __init__(
        self, collection: Collection, *, patience: float | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._client, self._name = collection.client, collection.name
        spells_out = collection.is_remote and not collection.client.init_options.get("prefer_grpc")
        self._float_bytes = _REST_FLOAT if spells_out else _GRPC_FLOAT
        self._patience = PATIENCE if patience is None else patience
        self._sleep = sleep

    def upsert(self, points: Iterable[models.PointStruct]) -> Refused:
        """Store points, in their order; they are taken a request at a time.

        Returns:
            Those that the store will never take. All others are stored and acknowledged.

        Raises:
            IngestError: The store takes nothing any more.
        """
        refused: Refused = {}
        for request in self._requests(points):
            refused |= self._send(request, lambda part: self._client.upsert(self._name, list(part), wait=True))
        return refused

    def rewrite(self, payloads: Iterable[tuple[str, dict[str, Any]]]) -> Refused:
        """Replace the whole payload of stored points, whose vectors stay.

        Args:
            payloads: Point ids and payloads, which are taken a request at a time.

        Returns:
            See `upsert`; points that do not exist any more are among them.

        Raises:
            IngestError: The store takes nothing any more.
        """
        points = (models.PointStruct(id=id, vector={}, payload=payload) for id, payload in payloads)
        refused: Refused = {}
        for request in self._requests(points):
            refused |= self._send(request, self._overwrite)
        return refused

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points, whether they exist or not.

        Raises:
            IngestError: The store takes nothing any more.
        """
        for some in _slices(ids, REQUEST_POINTS):
            self._delete(models.PointIdsList(points=list(some)))

    def delete_records(self, field: str, record_ids: Sequence[str]) -> int:
        """Delete all points of some records, those of one record in one step.

        Args:
            field: Path of the record's id in the payload.
            record_ids: The records.

        Returns:
            How many points that were.

        Raises:
            IngestError: The store takes nothing any more.
        """
        deleted = 0
        for some in _slices(record_ids, REQUEST_POINTS):
            theirs = models.Filter(must=[models.FieldCondition(key=field, match=models.MatchAny(any=list(some)))])
            deleted += self.ask(partial(self._client.count, self._name, theirs, exact=True)).count
            self._delete(models.FilterSelector(filter=theirs))
        return deleted

    def ask(self, request: Callable[[], T]) -> T:
        """The result of a request that may be sent twice, such as any that only reads.

        Raises:
            IngestError: The store cannot be used, or did not answer for `patience` seconds.
            Exception: Anything else, unchanged.
        """
        try:
            return self._try(request)
        except Exception as error:
            if fault_of(error) is None or isinstance(error, IngestError):
                raise
            raise IngestError(f"the store refuses to work on collection {self._name!r}: {detail_of(error)}") from error

    def _send(
        self, points: Sequence[models.PointStruct], write: Callable[[Sequence[models.PointStruct]], object]
    ) -> Refused:
        """Write one request, or what can be written of it."""
        done, failed = isolate(points, lambda part: self._try(lambda: write(part)), _blame)
        refused = {str(point.id): f"the store refuses it: {detail_of(error)}" for point, error in failed}
        if not done and len(refused) >= _ALL_REFUSED and len({_NAMES.sub("", why) for why in refused.values()}) == 1:
            error = failed[0][1]
            raise IngestError(
                f"the store refuses every point for collection {self._name!r}: {detail_of(error)}"
            ) from error
        return refused

    def _delete(self, selector: models.PointIdsList | models.FilterSelector) -> None:
        self.ask(lambda: self._client.delete(self._name, selector, wait=True))

    def _overwrite(self, points: Sequence[models.PointStruct]) -> None:
        operations = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(payload=point.payload or {}, points=[point.id])
            )
            for point in points
        ]
        self._client.batch_update_points(self._name, operations, wait=True)

    def _try(self, request: Callable[[], T]) -> T:
        """Send again what fails in passing.

        Raises:
            IngestError: Fatal, or `patience` is at its end.
            Exception: Other faults, and what does not come from the store.
        """
        attempts = Retrying(
            retry=retry_if_exception(lambda error: fault_of(error) is Fault.TRANSIENT),
            wait=_wait,
            stop=self._is_enough,
            sleep=self._sleep,
            before_sleep=_tell,
            reraise=True,
        )
        try:
            return attempts(request)
        except Exception as error:
            fault = fault_of(error)
            if fault is Fault.TRANSIENT:
                raise IngestError(
                    f"the store could not be reached for collection {self._name!r} within {self._patience:g} s, tried "
                    f"{attempts.statistics['attempt_number']} times{_asked_to_wait(error)}: {detail_of(error)}"
                ) from error
            if fault is Fault.FATAL and not isinstance(error, IngestError):
                raise IngestError(
                    f"the store cannot be used for collection {self._name!r}: {detail_of(error)}"
                ) from error
            raise

    def _is_enough(self, state: RetryCallState) -> bool:
        waited = max(state.idle_for, state.seconds_since_start or 0.0)
        return waited + state.upcoming_sleep > self._patience

    def _requests(self, points: Iterable[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
        """Points in requests of a good size; one that alone is larger gets its own."""
        request: list[models.PointStruct] = []
        size = 0
        for point in points:
            weight = _numbers(point.vector) * self._float_bytes + len(json.dumps(point.payload, default=str))
            if request and (len(request) == REQUEST_POINTS or size + weight > REQUEST_BYTES):
                yield request
                request, size = [], 0
            request.append(point)
            size += weight
        if request:
            yield request


def _slices(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _blame(error: Exception) -> tuple[()] | None:
    """A request that is too large, or has a bad point somewhere in it, is halved."""
    return () if fault_of(error) in (Fault.TOO_LARGE, Fault.BAD_POINT) else None


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    backoff = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
    return max(backoff, retry_after(error) if error else 0.0)


def _asked_to_wait(error: Exception) -> str:
    seconds = retry_after(error)
    return f" (it asks to wait for {seconds:g} s)" if seconds else ""


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if error is not None:
        _log.warning("Qdrant: %s; trying again in %.1f s", detail_of(error), state.upcoming_sleep)


def _numbers(vector: Any) -> int:  # noqa: ANN401 - all that a PointStruct takes
    """How many numbers a vector, or all named ones, consist of."""
    if isinstance(vector, np.ndarray):
        return vector.size
    if isinstance(vector, models.SparseVector):
        return 2 * len(vector.indices)
    if isinstance(vector, Mapping):
        return sum(map(_numbers, vector.values()))
    return (
        sum(map(_numbers, vector))
        if isinstance(vector, list) and vector and isinstance(vector[0], list)
        else len(vector)
    )
