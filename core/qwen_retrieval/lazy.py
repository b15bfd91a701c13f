"""A model by name, loaded when it is first used: what the adapters of all frameworks hold instead of a model."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar, cast

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.types import ControlTokens, OnOverflow

M = TypeVar("M", bound=Embedder | Reranker)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What `Embedder.from_pretrained` and `Reranker.from_pretrained` both take, by the same names.

    Two equal options mean the same model. The token opens a repository but does not change what is in it: it takes no
    part in comparisons, and stands in no repr.
    """

    model: str
    max_length: int | None = None
    max_batch_tokens: int | None = None
    batch_size: int | None = None
    on_overflow: OnOverflow = "truncate"
    control_tokens: ControlTokens = "escape"
    show_progress: bool = False
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)
    cache_dir: str | None = None
    local_files_only: bool = False


class LazyModel(Generic[M]):
    """Models of one kind, each loaded when it is first asked for, by one thread, whoever waits for it.

    Copies, deep ones too, are the same object, so that copies of an adapter share what is loaded. A pickle holds no
    model: it is loaded again where it is used. A forked process loads anew as well, because threads do not survive a
    fork.

    Args:
        kind: `Embedder` or `Reranker`.
        given: A model that the caller has made. It is used whatever the options say, cannot be pickled, and is not
            closed by `close`.
    """

    def __init__(self, kind: type[M], given: M | None = None) -> None:
        self._kind: type[M] = kind
        self._given: M | None = given
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._models: dict[ModelOptions, Future[M]] = {}

    def get(self, options: ModelOptions) -> M:
        """The model that `options` describe; waits while it is loaded.

        Raises:
            Exception: Whatever `from_pretrained` raises. The next call tries again.
        """
        return self._given or self._loading(options).result()

    async def aget(self, options: ModelOptions) -> M:
        """The same as `get`, without blocking the event loop; cancelling one caller disturbs no other."""
        if self._given is not None:
            return self._given
        loading = asyncio.wrap_future(self._loading(options))
        loading.add_done_callback(_seen)
        return await asyncio.shield(loading)

    @property
    def loaded(self) -> bool:
        """Whether a model is there already, or being loaded."""
        return self._given is not None or (bool(self._models) and self._process == os.getpid())

    def close(self) -> None:
        """Give back what was loaded here; the next call loads again."""
        with self._lock:
            models, self._models = self._models, {}
        for future in models.values():
            if future.exception() is None:  # waits for what is being loaded
                future.result().close()

    def _loading(self, options: ModelOptions) -> Future[M]:
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            future = self._models.get(options)
            if future is None:
                future = self._models[options] = Future()
                future.set_running_or_notify_cancel()  # so that no waiter can cancel it
                # A daemon, so that Ctrl-C ends a program that waits for a long download.
                threading.Thread(
                    target=self._load, args=(options, future), name=f"load {options.model}", daemon=True
                ).start()
            return future

    def _load(self, options: ModelOptions, future: Future[M]) -> None:
        arguments: dict[str, Any] = {one.name: getattr(options, one.name) for one in fields(options)}
        try:
            model = cast("M", self._kind.from_pretrained(arguments.pop("model"), **arguments))
        except BaseException as error:
            with self._lock:
                if self._models.get(options) is future:
                    del self._models[options]
            future.set_exception(error)
        else:
            future.set_result(model)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._given is not None:
            raise TypeError(
                f"an adapter that was given its {self._kind.__name__} cannot be pickled; name the model instead "
                '(model="…"), and the other process loads it'
            )
        return type(self), (self._kind,)


def _seen(loading: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that asyncio does not report an error that a cancelled caller has left behind."""
    if not loading.cancelled():
        loading.exception()
