"""A model by name, loaded when it is first used: what the adapters of all frameworks hold instead of a model."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar, cast

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.types import ControlTokens, OnOverflow

M = TypeVar("M", bound=Embedder | Reranker)

_PATIENCE = 5.0
"""Seconds that the exit of the program waits for a load: a thread that is killed inside of torch aborts the process."""

_all: weakref.WeakSet[LazyModel[Any]] = weakref.WeakSet()
_loads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


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
    device: str | tuple[str, ...] = "auto"
    dtype: str = "auto"
    batch_invariant: bool = False
    revision: str | None = None
    token: str | None = field(default=None, repr=False, compare=False)
    cache_dir: str | None = None
    local_files_only: bool = False


def device_option(device: str | Sequence[str] | None) -> str | tuple[str, ...]:
    """The `ModelOptions.device` for what an adapter was given: a name, several, or None for the best there is."""
    if device is None:
        return "auto"
    return device if isinstance(device, str) else tuple(device)


class LazyModel(Generic[M]):
    """Models of one kind, each loaded when it is first asked for, by one thread, whoever waits for it.

    Copies, deep ones too, are the same object, so that copies of an adapter share what is loaded. A pickle holds no
    model: it is loaded again where it is used. A forked process loads anew as well, because threads do not survive a
    fork.

    Args:
        kind: `Embedder` or `Reranker`.
        given: A model that the caller has made. It is used whatever the options say, cannot be pickled, and is not
            closed by `close`.

    Raises:
        TypeError: `given` is not of that kind.
    """

    def __init__(self, kind: type[M], given: M | None = None) -> None:
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"a {kind.__name__} must be given, but got {type(given).__name__}")
        self._kind: type[M] = kind
        self._given: M | None = given
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[ModelOptions, Future[M]] = {}

    def get(self, options: ModelOptions) -> M:
        """The model that `options` describe; waits while it is loaded.

        Raises:
            Exception: Whatever `from_pretrained` raises. The next call tries again.
        """
        return self._loading(options).result() if self._given is None else self._given

    async def aget(self, options: ModelOptions) -> M:
        """The same as `get`, without blocking the event loop; cancelling one caller disturbs no other."""
        if self._given is not None:
            return self._given
        # Being under way already, the future of the load cannot be cancelled by whoever waits for it.
        return await asyncio.wrap_future(self._loading(options))

    @property
    def loaded(self) -> bool:
        """Whether a model is there already, or being loaded."""
        return self._given is not None or bool(self._models)

    def close(self) -> None:
        """Give back what was loaded here, for copies too; the next call loads again.

        Calls under way fail with `ModelClosedError`.
        """
        with self._lock:
            models, self._models = self._models, {}
        for future in models.values():
            if future.exception() is None:  # waits for what is being loaded
                future.result().close()

    def _loading(self, options: ModelOptions) -> Future[M]:
        with self._lock:
            future = self._models.get(options)
            if future is None:
                future = Future()
                future.set_running_or_notify_cancel()  # so that no waiter can cancel it
                # A daemon, so that Ctrl-C ends a program that waits for a long download.
                thread = threading.Thread(
                    target=self._load, args=(options, future), name=f"load {options.model}", daemon=True
                )
                thread.start()
                _loads.add(thread)
                self._models[options] = future  # only now: if no thread can be started, nobody may wait for it
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
        finally:
            del future  # the error holds this frame, which must not hold the error: half a model would stay in memory

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


def _forget_all() -> None:
    for lazy in list(_all):
        lazy._forget()


def _wait_for_loads() -> None:
    for thread in list(_loads):
        thread.join(_PATIENCE)


# In the child, a load that was under way has no thread, and a lock may be held for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

# Not by atexit: torch registers its own end during the load, and would come first then.
weakref.finalize(LazyModel, _wait_for_loads)
