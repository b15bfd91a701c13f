"""The engine's process: takes the lock of the store, then answers messages until the pipe closes."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .wire import Words, encode, receive, send

if TYPE_CHECKING:
    from .shards import Shards

LOCK_NAME = ".lock"
RETRY_SECONDS = 0.05


def main(root: str, patience: str) -> None:
    """Serves one store over standard input and output, which nothing else may use.

    Args:
        root: The folder of the store; must exist.
        patience: Seconds to wait for a lock that another process holds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    requests, replies = _private_pipes()
    try:
        lock = _lock(Path(root) / LOCK_NAME, float(patience))
    except OSError as error:
        send(replies, encode({"error": "engine", "message": str(error)}))
        return
    if lock is None:
        send(replies, encode({"error": "locked", "message": ""}))
        return
    with lock:
        _serve(Path(root), requests, replies)


def _private_pipes() -> tuple[io.FileIO, io.FileIO]:
    """The pipes to the parent; what anybody prints goes to standard error from here on."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return io.FileIO(requests, "rb"), io.FileIO(replies, "wb")


def _lock(path: Path, patience: float) -> IO[str] | None:
    """The store's lock, or None if somebody else keeps it; the system frees it when this process ends.

    Raises:
        OSError: No file can be made in the folder.
    """
    file = path.open("a+", encoding="utf-8")
    end = time.monotonic() + patience
    while not _try_lock(file):
        if time.monotonic() > end:
            file.close()
            return None
        time.sleep(RETRY_SECONDS)
    return file


def _try_lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _serve(root: Path, requests: io.FileIO, replies: io.FileIO) -> None:
    from .shards import Shards  # loads the engine, once the lock is taken

    shards = Shards(root)
    try:
        send(replies, encode({"ready": True}))
        asked = _answer(shards, requests, replies)
    finally:
        shards.close()
    if asked:
        with contextlib.suppress(BrokenPipeError):
            send(replies, encode({"stopped": True}))


def _answer(shards: Shards, requests: io.FileIO, replies: io.FileIO) -> bool:
    """Answers until the parent asks to stop (True) or is gone (False)."""
    while True:
        try:
            request, words, size = receive(requests)
            if request["op"] == "stop":
                return True
            with _ends_with_parent(requests) if request["op"] == "optimize" else contextlib.nullcontext():
                reply = _reply(shards, request, words)
            send(replies, reply)
            shards.account(request, size)
        except (EOFError, BrokenPipeError):
            return False


@contextlib.contextmanager
def _ends_with_parent(requests: io.FileIO) -> Iterator[None]:
    """For an operation that may take hours: the parent's end is seen at once, not when the operation ends.

    No thread could watch the pipe, as the engine keeps the interpreter to itself. So the system is asked for a signal
    when anything happens to the pipe, where nothing is to happen until the answer; it ends the process. What was
    acknowledged is in the log, and segments that are not finished are not used.

    Raises:
        EOFError: The parent was gone before a signal could be asked for.
    """
    if not hasattr(os, "O_ASYNC"):
        yield
        return
    import fcntl

    flags = fcntl.fcntl(requests, fcntl.F_GETFL)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(requests, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        hangup = select.poll()
        hangup.register(requests, 0)
        if hangup.poll(0):
            raise EOFError
        yield
    finally:
        fcntl.fcntl(requests, fcntl.F_SETFL, flags)


def _reply(shards: Shards, request: dict[str, Any], words: Words) -> list[bytes]:
    try:
        reply, packer = shards.handle(request, words)
        return encode(reply, packer)
    except Exception as error:
        message = str(error).encode(errors="replace").decode()
        return encode({"error": _kind(error), "message": message})


def _kind(error: Exception) -> str:
    """What the parent raises for it. qdrant_edge raises bare `Exception`, with the text of the server."""
    if isinstance(error, NotImplementedError):
        return "not implemented"
    if isinstance(error, ValueError | TypeError | KeyError | OverflowError):
        return "input"
    if isinstance(error, OSError | MemoryError):
        return "engine"
    return "engine" if str(error).startswith("Service ") else "input"
