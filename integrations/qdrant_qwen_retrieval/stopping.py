"""The early end of a run, for threads that wait, sleep or compute."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Ends a thread whose work nobody waits for any more."""


class Stop:
    """Whether a run has ended early, and how its threads learn of it. Thread-safe.

    Without it, Ctrl-C would wait for all texts that are being embedded: minutes, with a large model on a CPU.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._running: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()

    def request(self) -> None:
        """From now on every method below raises `Stopped`, where it is being waited for too."""
        with self._lock:
            self._event.set()
            for loop, task in self._running:
                loop.call_soon_threadsafe(task.cancel)

    def check(self) -> None:
        """Go on if nobody has asked to stop."""
        if self._event.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait."""
        if self._event.wait(seconds):
            raise Stopped

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, which is cancelled when the run ends."""
        try:
            return asyncio.run(self._watched(coroutine))
        except asyncio.CancelledError:
            raise Stopped from None

    async def _watched(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(coroutine)
        entry = asyncio.get_running_loop(), task
        with self._lock:
            self._running.add(entry)
            if self._event.is_set():
                task.cancel()
        try:
            return await task
        finally:
            with self._lock:
                self._running.discard(entry)
