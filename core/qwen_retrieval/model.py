"""What an Embedder and a Reranker have in common: a worker to share, calls in chunks, sync and async, and an end."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from qwen_retrieval.batching import chunks, dedupe
from qwen_retrieval.errors import ModelClosedError, NonFiniteError
from qwen_retrieval.loading import LoadedModel
from qwen_retrieval.ranking import check_count
from qwen_retrieval.templates import Encoded
from qwen_retrieval.types import ControlTokens, FloatArray, OnOverflow, TokenIds, Tokenizer
from qwen_retrieval.usage import count
from qwen_retrieval.worker import Worker

FEW = 64
"""Calls of at most this many inputs show no progress bar."""

CHARACTERS_PER_TOKEN = 4
"""Of English prose, roughly (4.4 in the standard library's docstrings): how much text is tokenised for one batch."""

CHUNK_CHARACTERS = 2000
"""How much text is tokenised at a time at least, however small the batches."""

DEFAULT_BATCH_TOKENS = 16_384
"""Token budget of a batch for an engine that says nothing of itself."""

Input = TypeVar("Input")
Flow = Generator[Callable[[], Any] | Future[FloatArray], Any, FloatArray]
"""A call, step by step: it yields work to be done off the event loop, or a future to wait for, and is sent the result.

One such generator serves both the sync and the async form of a method.
"""


class TruncationWarning(UserWarning):
    """Inputs were cut to `max_length`. Warned once per call, with counts."""


class Model:
    """A tokenizer and a worker, and how a call goes through them.

    Args:
        run: The engine's method.
        tokenizer: The checkpoint's own tokenizer.
        name: What to call the model in messages and in the name of its thread.
        loaded: The model of this process's cache that `run` belongs to; by default the model starts its own worker.
        max_batch_tokens: Token budget of one batch; None for what suits the device.
        batch_size: Most inputs of one call in a batch; None for as many as the budget allows.
        max_length: Longest input in tokens, as the caller asked for it; None for the default.
        on_overflow: What to do with a longer input.
        control_tokens: What to do with control tokens in texts.
        show_progress: Show a progress bar for calls of more than `FEW` inputs.

    Attributes:
        revision: Branch, tag or commit that was asked for.
        device: Where the weights are, such as "cuda:0", or "cuda:0, cuda:1".
        dtype: What is computed in, such as "bfloat16"; "int8" or "float8" if matrices are multiplied in it.
        batch_invariant: Whether an input has the same bits whatever shares its batch.
    """

    def __init__(
        self,
        run: Callable[[list[TokenIds]], FloatArray],
        tokenizer: Tokenizer,
        *,
        name: str,
        loaded: LoadedModel[Any] | None,
        max_batch_tokens: int | None,
        batch_size: int | None,
        max_length: int | None,
        on_overflow: OnOverflow,
        control_tokens: ControlTokens,
        show_progress: bool,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.on_overflow: OnOverflow = on_overflow
        self.control_tokens: ControlTokens = control_tokens
        self.show_progress = show_progress
        self.revision = loaded.revision if loaded else None
        self.device = loaded.device if loaded else "custom"
        self.dtype = loaded.dtype if loaded else "float32"
        self.batch_invariant = loaded is not None and loaded.batch_invariant
        default = loaded.max_batch_tokens if loaded else DEFAULT_BATCH_TOKENS
        self.max_batch_tokens = default if max_batch_tokens is None else max_batch_tokens
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, but got {max_batch_tokens}")
        check_count(batch_size, name="batch_size", none="as many as fit")
        self.batch_size = batch_size
        self._worker = loaded.worker if loaded else Worker(run, name=name)
        self._engines = loaded.engines if loaded else ()
        self._release = loaded.release if loaded else self._worker.close
        self._name = name
        # Then some inputs may have to be refused, before the first is computed.
        self._strict = "error" in (on_overflow, control_tokens)
        self._closed = False

    def close(self) -> None:
        """Give the model back. The last of its users frees the memory; calls after this raise `ModelClosedError`."""
        self._closed = True
        self._engines = ()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self  # weights and threads are shared, never copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Weights and threads do not travel; the adapters pickle the name of the model instead.
        raise TypeError(f"{type(self).__name__} cannot be pickled: load it by name in the other process")

    def _flow(
        self,
        inputs: Sequence[Input],
        encode: Callable[[Sequence[Input]], list[Encoded]],
        finish: Callable[[FloatArray], FloatArray],
        characters: Callable[[Input], int],
    ) -> Flow:
        """Encode, submit and collect `inputs` chunk by chunk, each distinct input once.

        A chunk is about as much as a batch holds: while one is computed, the next is tokenised. On any error, and when
        the caller goes away, what was submitted is cancelled.

        Args:
            inputs: n inputs, at least one.
            encode: Token ids of some of them.
            finish: Applied to the rows of each chunk.
            characters: How much text an input has.
        """
        if self._closed:
            raise ModelClosedError(f"this {type(self).__name__} of {self._name} was closed; load the model again")
        if self._strict:
            yield partial(encode, inputs)
        unique, inverse = dedupe(inputs)
        call = _Call(len(unique), finish, show_progress=self.show_progress)
        parts = self._parts([characters(one) for one in unique])
        # Two batches or a chunk ahead keep every thread busy and bound the memory; chunks may share a batch.
        tokens_ahead, chunks_ahead = (0, 0) if self.batch_size else (2 * self.max_batch_tokens * self._worker.lanes, 1)
        try:
            for part in parts:
                encoded: list[Encoded] = yield partial(encode, unique[part])
                ids = call.note(encoded)
                self._expect(encoded[0])
                request = self._worker.submit(
                    ids,
                    max_batch_tokens=self.max_batch_tokens,
                    max_batch_rows=self.batch_size,
                    bulk=len(parts) > 1,
                )
                call.pending.append(request)
                while call.tokens_ahead > tokens_ahead and len(call.pending) > chunks_ahead:
                    call.collect((yield call.pending[0]))
            while call.pending:
                call.collect((yield call.pending[0]))
        except NonFiniteError as error:
            raise NonFiniteError(call.positions(error.rows, inverse)) from error
        finally:
            call.end()
        _warn_truncated(np.array(call.dropped)[inverse])
        if len(unique) < len(inverse):
            call.rows = yield partial(call.rows.take, inverse, axis=0)  # hundreds of MB, perhaps
        return call.rows

    def _expect(self, encoded: Encoded) -> None:
        """Tell the engines how all inputs of a call begin."""
        if encoded.head:
            for engine in self._engines:
                engine.expect(encoded.ids[: encoded.head])

    def _parts(self, sizes: list[int]) -> list[slice]:
        """What of the inputs to tokenise and to submit at a time.

        Args:
            sizes: How much text each input has, in characters.
        """
        lanes, rows = self._worker.lanes, self.batch_size
        # With `batch_size` all threads of the worker get their rows by one request, since two requests could share a
        # batch.
        batches, most = (lanes, rows * lanes) if rows else (1, None)
        size = max(CHUNK_CHARACTERS, CHARACTERS_PER_TOKEN * self.max_batch_tokens * batches)
        return list(chunks(sizes, size, most))


class _Call:
    """What one call of `total` distinct inputs has under way."""

    def __init__(self, total: int, finish: Callable[[FloatArray], FloatArray], *, show_progress: bool) -> None:
        self.pending: deque[Future[FloatArray]] = deque()
        self.rows: FloatArray = np.empty((total, 0), dtype=np.float32)  # (total, ...) when the first are there
        self.dropped: list[int] = []  # tokens, of each input encoded so far
        self._done = 0
        self._finish = finish
        # Even one that is disabled takes longer to make than a query takes to tokenise.
        shown = show_progress and total > FEW
        self._bar: tqdm[None] | None = tqdm(total=total, unit=" inputs") if shown else None
        self._tokens: deque[int] = deque()  # of each pending chunk

    @property
    def tokens_ahead(self) -> int:
        return sum(self._tokens)

    def note(self, encoded: list[Encoded]) -> list[TokenIds]:
        dropped = [one.dropped for one in encoded]
        ids = [one.ids for one in encoded]
        tokens = sum(map(len, ids))
        count(inputs=len(ids), tokens=tokens, truncated=len(dropped) - dropped.count(0))
        self.dropped += dropped
        self._tokens.append(tokens)
        return ids

    def collect(self, rows: FloatArray) -> None:
        finished = self._finish(rows)
        if not self._done:
            self.rows = np.empty((len(self.rows), *finished.shape[1:]), dtype=finished.dtype)
        self.rows[self._done : self._done + len(finished)] = finished
        self._done += len(finished)
        self.pending.popleft()
        self._tokens.popleft()
        if self._bar is not None:
            self._bar.update(len(rows))

    def positions(self, rows: tuple[int, ...], inverse: npt.NDArray[np.intp]) -> tuple[int, ...]:
        """Positions in the caller's list of some rows of the chunk that is waited for."""
        return tuple(np.flatnonzero(np.isin(inverse, [self._done + row for row in rows])).tolist())

    def end(self) -> None:
        for future in self.pending:
            future.cancel()
        if self._bar is not None:
            self._bar.close()


def _warn_truncated(dropped: npt.NDArray[np.int64]) -> None:
    """Warn if anything was cut.

    Args:
        dropped: (n,) int64, how many tokens were cut of each of the caller's inputs.
    """
    if dropped.any():
        warnings.warn(
            f"{np.count_nonzero(dropped)} of {len(dropped)} inputs were longer than max_length and were cut, by "
            f'{dropped.max()} tokens at most; raise max_length, split the texts, or pass on_overflow="error" to '
            "refuse them",
            TruncationWarning,
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The `stacklevel` of the first frame outside of this package and its adapters, whose names contain its own."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(__package__) in frame.f_globals.get("__name__", ""):
        frame, level = frame.f_back, level + 1
    return level


def run_flow(flow: Flow) -> FloatArray:
    """Drive a flow on this thread."""
    try:
        step = next(flow)
        while True:
            try:
                done = step.result() if isinstance(step, Future) else step()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(done)
    except StopIteration as stop:
        return cast("FloatArray", stop.value)


async def arun_flow(flow: Flow) -> FloatArray:
    """Drive a flow without blocking the event loop: futures are awaited, everything else runs in a thread."""
    try:
        step = next(flow)
        while True:
            try:
                done = await (asyncio.wrap_future(step) if isinstance(step, Future) else asyncio.to_thread(step))
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(done)
    except StopIteration as stop:
        return cast("FloatArray", stop.value)
