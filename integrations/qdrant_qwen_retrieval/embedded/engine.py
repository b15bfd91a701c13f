"""The engine's process, seen from the program that uses it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from pydantic_core import to_jsonable_python

from qdrant_qwen_retrieval.embedded import edge_process
from qdrant_qwen_retrieval.embedded.edge_process.serve import LOCK_NAME
from qdrant_qwen_retrieval.embedded.edge_process.wire import Packer, RawPipe, Words, encode, receive, send
from qwen_retrieval.errors import MissingDependencyError, StoreError, StoreLockedError

LOCK_PATIENCE = 5.0  # seconds: the engine of a program that was killed may still be closing its files
STOP_PATIENCE = 60.0  # seconds to write everything to a slow disk
PIPE_BYTES = 1 << 20  # the most that Linux gives to an ordinary user; fewer switches between the processes
BOOT = """
import importlib.util, json, os, sys
path, package, root, patience = sys.argv[1:]
sys.path[:] = json.loads(path)
where = [os.path.dirname(package)]
spec = importlib.util.spec_from_file_location("edge_process", package, submodule_search_locations=where)
sys.modules["edge_process"] = importlib.util.module_from_spec(spec)
from edge_process.serve import main
main(root, patience)
"""
"""Started without `site`, and the package by its file and under a name of its own: loads the engine, and no client."""


class EngineProcess:
    """One process that has a store open, and the pipes to it. One request at a time, from any thread.

    A call that is interrupted, such as by Ctrl-C, leaves half a message in a pipe: the process is ended, and the next
    call starts another. What it had acknowledged is in its log; but the lock was free, and another program may have
    changed the store. A process that dies by itself is not replaced, since that may hide a lack of memory or a damaged
    disk.

    Args:
        root: The folder of the store; must exist.
        started: Called whenever a process was started, before it serves anybody. It is given a function to call before
            each write to the folder: that raises StoreError when this process does not hold the lock any more.

    Raises:
        StoreLockedError: Another process has it open.
        MissingDependencyError: qdrant-edge is not installed.
        StoreError: The process cannot be started.
    """

    def __init__(self, root: Path, started: Callable[[Callable[[], None]], None]) -> None:
        self._root = root
        self._started = started
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._failure: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self._ready = False  # what is recorded in the folder was read since the process was started
        self._lock_file: tuple[int, int] | None = None
        with self._lock:
            self._start()

    @property
    def usable(self) -> bool:
        """Whether calls can still succeed."""
        return self._failure is None

    @property
    def pid(self) -> int | None:
        """The process's number; None if it is not running."""
        return None if self._process is None else self._process.pid

    def lost_folder(self) -> bool:
        """Whether its folder is no longer what is at the path: it was removed, or another put in its place."""
        return self._process is not None and self._lock_file != _identity(self._root / LOCK_NAME)

    def check(self) -> None:
        """Before anything is answered from what is recorded in the folder; starts the process if it was interrupted.

        Raises:
            StoreError: The store is closed, was opened before a fork, or its process has died.
        """
        self._check()
        if not self._ready:
            with self._lock:
                self._check_started()

    def call(self, op: str, packer: Packer | None = None, /, **arguments: object) -> tuple[dict[str, Any], Words]:
        """Asks for one operation and waits for its end.

        Args:
            op: The operation.
            packer: The numbers that `arguments` refer to.
            arguments: JSON values; None is left out.

        Returns:
            The answer, and the numbers it refers to.

        Raises:
            ValueError: The engine refuses what was asked.
            NotImplementedError: It cannot do it.
            StoreError: The store is closed, was opened before a fork, or its process has died.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        parts = encode(
            {"op": op, **given}, packer, to_jsonable_python
        )  # before the lock: other threads may use the engine meanwhile
        with self._lock:
            self._check_started()
            reply, words = self._exchange(op, parts)
        if "error" in reply:
            _raise(reply)
        return reply, words

    def stop(self, patience: float = -1) -> None:
        """Ends the process after it has written everything. Again, it does nothing.

        Args:
            patience: Seconds to wait for a call of another thread; after them the process is left as it is, to end by
                itself when this one does. Negative: as long as it takes.

        Raises:
            StoreError: It did not say that it could.
        """
        if not self.usable or not self._lock.acquire(timeout=patience):
            return
        try:
            usable, self._failure = self.usable, self._failure or "the store is closed; open it again"
            if self._process is None or not usable:
                return
            try:
                reply, _ = self._exchange("stop", encode({"op": "stop"}))
            finally:
                if self._process is not None:  # else it has died, or was interrupted
                    self._end(STOP_PATIENCE)
            if "stopped" not in reply:
                raise StoreError(f"the engine of {self._root} did not close the store; its messages say why")
        finally:
            self._lock.release()

    def discard(self) -> None:
        """Kills the process of a folder that was removed: what it would write now might end up in a new one."""
        with self._lock:
            self._failure = self._failure or (
                f"the folder {self._root} was removed or replaced while it was open; open the store again"
            )
            if self._process is not None:
                self._process.kill()
                self._end(STOP_PATIENCE)

    def abandon(self) -> None:
        """In a process that was forked: the engine belongs to the other one."""
        self._lock = threading.Lock()  # another thread may have held it when this process was made
        self._failure = (
            f"the store {self._root} was opened by process {self._owner}, and this is a fork of it, {os.getpid()}; "
            "only one process at a time can use an embedded store: open it after the fork, or use a Qdrant server"
        )
        if self._process is not None:
            for pipe in self._pipes():
                cast(Any, pipe).close()
            self._process.returncode = 0  # not this process's child: nothing to wait for
            self._process = None

    def _check(self) -> None:
        if self._failure is not None:
            raise StoreError(self._failure)

    def _check_started(self) -> None:
        self._check()
        if self._process is None:
            self._start()

    def _confirm(self, run: int) -> None:
        """Asks the process whether it is there: of one that died or was ended somebody else may have the lock."""
        with self._lock:
            self._check()
            if self._process is None or run != self._runs:
                raise StoreError(
                    f"another call to the store {self._root} was interrupted meanwhile, and what is in it may have "
                    "changed; try again"
                )
            self._exchange("ping", encode({"op": "ping"}))

    def _start(self) -> None:
        if importlib.util.find_spec("qdrant_edge") is None:
            raise MissingDependencyError("qdrant_edge", "qdrant")
        path = json.dumps([entry for entry in sys.path if entry])
        command = [sys.executable, "-I", "-S", "-c", BOOT, path, edge_process.__file__, str(self._root)]
        command.append(str(LOCK_PATIENCE))
        try:
            # A session of its own: a terminal's Ctrl-C must not end it in the middle of a write.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except OSError as error:
            raise StoreError(f"cannot start {sys.executable!r} for the embedded engine: {error}") from error
        self._widen_pipes()
        reply, _ = self._exchange("start", [])
        if "error" in reply:
            self._end(STOP_PATIENCE)
            self._refused(reply)
        self._runs += 1
        self._lock_file = _identity(self._root / LOCK_NAME)
        try:
            self._started(functools.partial(self._confirm, self._runs))
        except BaseException:
            self._end(STOP_PATIENCE)
            raise
        self._ready = True

    def _refused(self, reply: Mapping[str, Any]) -> NoReturn:
        if reply["error"] != "locked":
            raise StoreError(f"{self._root} cannot be a store: {reply['message']}")
        raise StoreLockedError(
            f"another process has the store {self._root} open; close it there first: an embedded store serves one "
            "process at a time. For several, run a Qdrant server and pass its url"
        )

    def _exchange(self, op: str, parts: list[bytes]) -> tuple[dict[str, Any], Words]:
        requests, replies = self._pipes()
        try:
            send(requests, parts)
            reply, words, _ = receive(replies)
        except (OSError, EOFError):
            self._died(op)
        except BaseException:  # interrupted: the rest of the answer would be taken for that of the next call
            self._end(0)
            raise
        return reply, words

    def _pipes(self) -> tuple[RawPipe, RawPipe]:
        assert self._process is not None
        return cast(tuple[RawPipe, RawPipe], (self._process.stdin, self._process.stdout))

    def _widen_pipes(self) -> None:
        if sys.platform == "linux":
            import fcntl

            for pipe in self._pipes():
                with contextlib.suppress(OSError):
                    fcntl.fcntl(cast(Any, pipe), fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def _died(self, op: str) -> NoReturn:
        code = self._end(STOP_PATIENCE)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}; its messages say why"
        self._failure = (
            f"the engine's process of {self._root} {how}, during {op!r}; "
            "everything it had acknowledged is in its log: open the store again"
        )
        raise StoreError(self._failure)

    def _end(self, patience: float) -> int:
        """Closes the pipes, on which the process ends by itself, and waits; kills it when patience is over."""
        self._ready = False
        process, self._process = self._process, None
        assert process is not None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that was later put in its place; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _raise(reply: Mapping[str, Any]) -> NoReturn:
    message = reply["message"]
    if reply["error"] == "not implemented":
        raise NotImplementedError(message)
    if reply["error"] == "input":
        raise ValueError(message)
    raise StoreError(f"the embedded engine failed: {message}")
