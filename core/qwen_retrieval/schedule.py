"""Whose rows go into the next batch: lists and integers, no threads.

Small requests, such as a query, are computed before large ones, among themselves: a batch that is filled up with a
large job's rows takes as long as the largest batch, and the query would wait for all of it. So that a stream of small
requests does not hold up a job for ever, they overtake it once: of two batches in a row that could have held its rows,
one does. Since no batch is larger than the budget, the job gets half of the device's time at least if its batches are
full. Large requests get fair shares of a batch, and what room is left goes to whoever came first.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import numpy as np

from qwen_retrieval.batching import SharingOrder, sharing_order
from qwen_retrieval.types import FloatArray, TokenIds

SMALL = 8
"""A request is small if its tokens fit into its budget this many times: dozens of queries still share a batch."""

_SORTED_AT_ONCE = 8192
"""How many inputs of a request are sorted in one go: dozens of batches, and a pause that no query notices."""


class Request:
    """What one caller waits for.

    `take` is called by one thread at a time; `store` and `finish` may be called by several, each with rows of its own.

    Args:
        inputs: At least one input.
        max_batch_tokens: The caller's budget.
        max_batch_rows: Most inputs of this request in a batch; None for as many as fit.
        bulk: Part of a larger job: never small.
        share: Whether the engine computes beginnings that inputs share only once.
        owner: Kept alive until the request is finished, so that a worker nobody refers to still completes it.
    """

    def __init__(
        self,
        inputs: list[TokenIds],
        max_batch_tokens: int,
        *,
        max_batch_rows: int | None,
        bulk: bool,
        share: bool,
        owner: object,
    ) -> None:
        self.inputs = inputs
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_rows = len(inputs) if max_batch_rows is None else max_batch_rows
        self.owner = owner
        self.small = not bulk and SMALL * sum(map(len, inputs)) <= max_batch_tokens
        self.future: Future[FloatArray] = Future()
        self.finished = False
        self._lock = threading.Lock()
        self._result: FloatArray | None = None  # (n, ...), allocated when the first row tells its shape
        self._missing = len(inputs)
        self._share = share
        self._order = SharingOrder([], [], [])  # of a window of the inputs
        self._window = 0  # where it begins in the inputs
        self._taken = 0  # how many of it were taken

    @property
    def left(self) -> bool:
        """Whether there are rows that nobody has taken."""
        return self._window + self._taken < len(self.inputs)

    def take(self, share: int, room: int | None, most: int) -> tuple[list[int], int]:
        """Take the next rows to compute: as many as the share allows, at least one, but no more than fit.

        Args:
            share: Tokens that this request may have.
            room: Tokens that the batch has left; None if it is empty, and any first row fits.
            most: Rows that this request may have.

        Returns:
            Positions in `inputs`, and how many tokens they add to the batch at most.
        """
        if self._taken == len(self._order.indices) and not self._next_window():
            return [], 0
        first = self._taken
        limit = max(share, self._order.lengths[first])
        stop = self._order.stop(first, limit if room is None else min(limit, room))
        self._taken = min(stop, first + most)
        rows = [self._window + index for index in self._order.indices[first : self._taken]]
        return rows, self._order.cost(first, self._taken)

    def _next_window(self) -> bool:
        start = self._window + len(self._order.indices)
        inputs = self.inputs[start : start + _SORTED_AT_ONCE]
        order = sharing_order(inputs, share=self._share)
        self._window, self._order, self._taken = start, order, 0
        return bool(inputs)

    def store(self, rows: list[int], values: FloatArray) -> None:
        """Put computed rows where the caller expects them; with the last one the request is finished.

        Args:
            rows: m positions in `inputs`.
            values: (m, ...) float32.
        """
        with self._lock:
            if self.finished:
                return
            if self._result is None:
                self._result = np.empty((len(self.inputs), *values.shape[1:]), dtype=np.float32)  # (n, ...)
            self._result[rows] = values
            self._missing -= len(rows)
            result = None if self._missing else self._result
        if result is not None:
            self.finish(result)

    def finish(self, outcome: FloatArray | BaseException) -> None:
        """Resolve the future, once. If the caller has cancelled it, tell those who wait for it, and nothing else."""
        with self._lock:
            if self.finished:
                return
            self.finished = True
        # Only now: from here on the future cannot be cancelled any more.
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(slots=True)
class Batch:
    """What is computed at once.

    Attributes:
        rows: Positions in the inputs of each request.
        refused: Requests whose inputs cannot be put into any batch, and why. They are finished by whoever computes the
            batch, because callbacks of their futures must find no lock held.
    """

    rows: dict[Request, list[int]] = field(default_factory=dict)
    refused: dict[Request, Exception] = field(default_factory=dict)


class Schedule:
    """Requests that have rows left, in the order in which they are served. For one thread at a time."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._overtaken = False  # whether the batch before this one was small, and a large request waited for it

    def __bool__(self) -> bool:
        """Whether anything may be left to compute; `next_batch` knows for sure."""
        return bool(self._waiting)

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        self._waiting.append(request)

    def drain(self) -> list[Request]:
        """All requests, which are then no more served."""
        drained, self._waiting = self._waiting, []
        return drained

    def next_batch(self) -> Batch:
        """Take rows for one batch, as many as its smallest budget allows; an empty one if there are none."""
        for request in self._waiting:
            if request.future.cancelled():
                request.finish(CancelledError())  # tells those who wait; callbacks had their turn when it was cancelled
        waiting = [request for request in self._waiting if not request.finished]
        large = [request for request in waiting if not request.small]
        small = [request for request in waiting if request.small]
        overtaking = bool(small) and not (large and self._overtaken)
        self._overtaken = overtaking and bool(large)
        batch = _fill(small if overtaking else large)
        waiting = [request for request in waiting if request.left and request not in batch.refused]
        # Whoever got nothing, because its next row did not fit, is first next time and then gets any row.
        self._waiting = sorted(waiting, key=batch.rows.__contains__)
        return batch


def _fill(requests: list[Request]) -> Batch:
    """Rows of some requests for one batch: fair shares first, then first come, first served."""
    batch = Batch()
    if not requests:
        return batch
    room = budget = min(request.max_batch_tokens for request in requests)
    for share in (budget // len(requests), budget):
        for request in requests:
            if batch.rows and room <= budget // 100:  # not worth asking thousands of queries which one fits
                return batch
            taken = batch.rows.get(request, [])
            if request in batch.refused or len(taken) == request.max_batch_rows:
                continue
            try:
                rows, cost = request.take(share, room if batch.rows else None, request.max_batch_rows - len(taken))
            except Exception as error:  # such as inputs that are no token ids: it concerns this caller and nobody else
                batch.refused[request] = error
                continue
            room -= cost
            if rows:
                batch.rows[request] = taken + rows
    return batch
