"""The threads of a loaded model, one for each device, which merge what is asked for at the same time into batches.

    submit (any thread) -> queue -> thread: take a batch, run it, hand out the rows -> future

A step computes one batch; `schedule` decides what is in it. Threads suffice for several devices, because torch releases
the interpreter lock while it computes.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_retrieval.batching import dedupe
from qwen_retrieval.errors import ModelClosedError, ModelError, NonFiniteError
from qwen_retrieval.schedule import Batch, Request, Schedule
from qwen_retrieval.threads import Turns
from qwen_retrieval.types import FloatArray, TokenIds

Run = Callable[[list[TokenIds]], FloatArray]
"""An engine's ``embed`` or ``score``: n inputs in, an array whose first axis is n out."""


class Worker:
    """Runs engines in threads of their own, for any number of callers at once.

    The threads start with the first request. They end with `close`, at the exit of the interpreter, or when nobody
    refers to the worker any more and nothing waits for it.

    Args:
        runs: One engine per device, at least one; all of the same model, because any of them may compute any row. Each
            is called by one thread only, with no input twice in a call; an engine that stands there twice, by two.
        name: What the threads are called in debuggers and profilers.
        turns: Taken for each call of an engine, by all workers that share a processor; None for devices of their own.
        share: Whether the engines compute beginnings that inputs share only once, which lets more of them into a batch.

    Attributes:
        lanes: How many threads compute, one for each of `runs`.
    """

    def __init__(self, *runs: Run, name: str, turns: Turns | None = None, share: bool = True) -> None:
        if not runs:
            raise ValueError("a worker needs at least one engine, but got none")
        self.lanes = len(runs)
        self._share = share
        self._queue = _Queue(runs, name, turns)
        self._stop = weakref.finalize(self, _stop, self._queue, weakref.ref(self))

    @property
    def batches(self) -> int:
        """How many times the engines were called."""
        return self._queue.batches

    @property
    def rows(self) -> int:
        """How many inputs the engines were given."""
        return self._queue.rows

    def submit(
        self, inputs: list[TokenIds], *, max_batch_tokens: int, max_batch_rows: int | None = None, bulk: bool = False
    ) -> Future[FloatArray]:
        """Ask for the rows of `inputs`; returns at once.

        Cancelling the future spares what is not computed yet. ``asyncio.wrap_future`` makes it awaitable.

        Args:
            inputs: n inputs, at least one, of at least one token each. Not to be changed until the future is done.
            max_batch_tokens: How many tokens a batch may have that holds rows of this request. Only an input that
                alone is longer is computed nevertheless, on its own.
            max_batch_rows: How many inputs of this request a batch may have, at least 1; None for as many as fit.
            bulk: These inputs are part of a larger job: they do not overtake others, however few they are.

        Returns:
            A future of what the engine gives, in input order: (n, ...) float32. If computing these inputs fails, it
            holds that error; a `NonFiniteError` then names positions in `inputs`.

        Raises:
            ValueError: There are no inputs, an input without tokens, or a limit is below 1.
            ModelClosedError: After `close`.
            ModelError: In a process forked from the one that made the worker.
        """
        if not inputs:
            raise ValueError("inputs must hold at least one input, but got none")
        if not all(inputs):
            raise ValueError(f"every input must have at least one token, but input {inputs.index([])} has none")
        for limit, value in (("max_batch_tokens", max_batch_tokens), ("max_batch_rows", max_batch_rows)):
            if value is not None and value < 1:
                raise ValueError(f"{limit} must be at least 1, but got {value}")
        request = Request(
            inputs, max_batch_tokens, max_batch_rows=max_batch_rows, bulk=bulk, share=self._share, owner=self
        )
        self._queue.put(request)
        return request.future

    def close(self) -> None:
        """End the threads after the batches that they are computing.

        Requests that these batches do not complete get a `ModelClosedError`. Closing again does nothing.
        """
        self._stop()
        self._queue.join()  # a second caller too returns only when the threads are gone


_Rows = dict[Request, list[int]]
"""Positions in the inputs of each request."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """What became of a batch of rows, u of them distinct.

    Attributes:
        outcome: (u, ...) float32, or what the engine raised.
        inverse: (rows,) positions in what the engine was given.
    """

    outcome: FloatArray | BaseException
    inverse: npt.NDArray[np.intp]


class _Queue:
    """Requests and the threads that serve them. Apart from waiting requests nothing here refers to the worker."""

    def __init__(self, runs: tuple[Run, ...], name: str, turns: Turns | None) -> None:
        self.batches = 0
        self.rows = 0
        self._runs = runs
        self._name = name
        self._turns = turns
        self._process = os.getpid()
        self._threads: list[threading.Thread | None] = [None] * len(runs)
        self._closed = False
        # Reentrant, as Condition makes it, and so is that of the turns: the garbage collector may call `stop` in a
        # thread that holds it. So `stop` takes no other lock of ours.
        self._changed = threading.Condition()
        self._arrived: deque[Request] = deque()  # filled by callers, emptied by the threads
        self._taking = threading.Lock()  # whoever holds it has the schedule; callers do not wait for that
        self._schedule = Schedule()

    def put(self, request: Request) -> None:
        """Queue a request, and start the threads with the first."""
        if self.forked:  # before touching a lock that may have been held when the process was forked
            raise ModelError("a loaded model does not survive os.fork; load it in the child process, or spawn that")
        with self._changed:
            if self._closed:
                raise ModelClosedError("this model was closed; load it again with from_pretrained")
            self._start()
            self._arrived.append(request)
            self._changed.notify_all()  # an interrupted waiter may swallow a single wake-up

    def _start(self) -> None:
        for index, run in enumerate(self._runs):
            thread = self._threads[index]
            if thread is None or not thread.is_alive():
                name = f"qwen-retrieval {self._name}" + (f" {index}" if index else "")
                thread = threading.Thread(target=self._serve, args=(run,), name=name, daemon=True)
                thread.start()
                self._threads[index] = thread

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a child process, where the threads do not exist."""
        return os.getpid() != self._process

    def stop(self) -> None:
        """Let the threads end after the batches that they are computing."""
        if self.forked:
            return
        with self._changed:
            self._closed = True
            self._runs = ()  # lets go of the engines and their memory, as each thread does at its end
            self._changed.notify_all()  # an interrupted waiter may swallow a single wake-up
        if self._turns is not None:
            self._turns.look()

    def join(self) -> None:
        """Wait for the threads to end, unless this is one of them: two of them would wait for each other."""
        if self.forked or threading.current_thread() in self._threads:
            return
        for thread in self._threads:
            if thread is not None:
                thread.join()

    def _serve(self, run: Run) -> None:
        while self._wait():
            self._step(run)
        self._fail(_closed_too_early())

    def _wait(self) -> bool:
        """Sleep until there may be something to do; False if that is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._arrived or self._schedule)
            return not self._closed

    def _turn(self) -> AbstractContextManager[bool]:
        """Inside, this thread may compute; unless it is told that the worker was closed while it waited."""
        return nullcontext(True) if self._turns is None else self._turns.turn(lambda: self._closed)

    def _step(self, run: Run) -> None:
        """Compute one batch, if another thread has not taken what there was."""
        batch = Batch()
        try:
            with self._turn() as granted:  # only now is it decided what is computed: whoever comes while we wait is in
                batch = self._take() if granted else batch
                computed = self._attempt(run, batch.rows) if batch.rows else None
            # Callbacks of futures run from here on, without the turn: they may wait for whatever they like.
            for request, refusal in batch.refused.items():
                request.finish(refusal)
            if computed is not None:
                self._hand_out(run, computed, batch.rows)
        except BaseException as error:  # a mistake of ours: whatever it is, nobody may wait for ever
            self._fail(error, *batch.rows, *batch.refused)

    def _take(self) -> Batch:
        """The next batch, of all that has come by now."""
        with self._taking:
            with self._changed:  # whoever looks sees a request here or there
                while self._arrived:
                    self._schedule.add(self._arrived.popleft())
            return self._schedule.next_batch()

    def _fail(self, error: BaseException, *requests: Request) -> None:
        """Finish some requests, and all that are not taken, with an error."""
        with self._taking, self._changed:
            waiting = [*self._schedule.drain(), *self._arrived]
            self._arrived.clear()
        for request in (*requests, *waiting):
            request.finish(error)

    def _attempt(self, run: Run, rows_of: _Rows) -> _Computed:
        """Compute a batch, each distinct input once.

        Args:
            run: The engine.
            rows_of: Positions in the inputs of each request.
        """
        inputs = [request.inputs[row] for request, rows in rows_of.items() for row in rows]
        unique, inverse = dedupe(inputs, key=tuple)
        with self._changed:
            self.batches += 1
            self.rows += len(unique)
        try:
            values = np.asarray(run(unique), dtype=np.float32)  # (u, ...)
            if values.shape[:1] != (len(unique),):
                raise RuntimeError(
                    f"an engine must return one row per input, but got shape {values.shape} for {len(unique)} inputs"
                )
        except BaseException as error:  # SystemExit, too, ends the wait of whoever caused it, and not this thread
            return _Computed(error, inverse)
        return _Computed(values, inverse)

    def _hand_out(self, run: Run, computed: _Computed, rows_of: _Rows) -> None:
        """Give all requests of a batch their rows, or find out whose rows it failed for.

        Args:
            run: The engine.
            computed: What it gave, or raised.
            rows_of: Positions in the inputs of each request.
        """
        outcome, start = computed.outcome, 0
        if isinstance(outcome, BaseException) and len(rows_of) > 1:
            self._try_each(run, rows_of)
            return
        for request, rows in rows_of.items():
            if isinstance(outcome, BaseException):
                request.finish(_in_request(outcome, rows, computed.inverse))
                continue
            with _concerning(request):
                request.store(rows, outcome[computed.inverse[start : start + len(rows)]])  # (rows, ...)
            start += len(rows)

    def _try_each(self, run: Run, rows_of: _Rows) -> None:
        """Compute the rows of each request of a failed batch without those of the others."""
        for request, rows in rows_of.items():
            with self._turn() as granted:
                computed = self._attempt(run, {request: rows}) if granted else None
            if computed is None:
                request.finish(_closed_too_early())
            else:
                self._hand_out(run, computed, {request: rows})


def _in_request(error: BaseException, rows: list[int], inverse: npt.NDArray[np.intp]) -> BaseException:
    """The error of a batch that holds rows of one request only, as its caller numbers them.

    Args:
        error: What the engine raised.
        rows: Positions in the request's inputs.
        inverse: (rows,) positions in what the engine was given.
    """
    if not isinstance(error, NonFiniteError):
        return error
    places = np.flatnonzero(np.isin(inverse, error.rows))  # (rows concerned,)
    named = NonFiniteError(tuple(sorted(rows[place] for place in places)))
    named.__cause__ = error
    return named


def _closed_too_early() -> ModelClosedError:
    return ModelClosedError("this model was closed before the request was complete")


@contextmanager
def _concerning(request: Request) -> Iterator[None]:
    """What goes wrong inside, such as memory for a large result, goes to this caller and to nobody else."""
    try:
        yield
    except Exception as error:
        request.finish(error)


def _stop(queue: _Queue, worker: weakref.ref[Worker]) -> None:
    """Stop the threads because of `Worker.close`, at exit, or because the worker was collected as garbage."""
    queue.stop()
    # A collected worker is gone by now. Then this may be any thread, holding any lock: it must not wait.
    if worker() is not None:
        queue.join()
