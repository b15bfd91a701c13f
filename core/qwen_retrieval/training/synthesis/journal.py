"""What has been asked and answered: an append-only file of JSON lines, from which a run that was stopped goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO


def journal_key(*parts: Any) -> str:  # noqa: ANN401 - any JSON values
    """A name for a question: 32 hexadecimal digits of the SHA-256 of everything that decides its answer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


_BEGINNING = b'{"key": "'
"""Of every line, as `Journal.add` writes them."""


class Journal:
    """Answers by key, in memory and in a file to which each is appended as soon as it is there.

    A process that is killed loses at most the line that it was writing; what is left of that is cut off when the file
    is opened again. Only one process at a time can have it open.

    Args:
        path: The file; it is made if it does not exist.

    Raises:
        ValueError: A line is damaged other than by being cut short at the end of the file.
        OSError: The file cannot be written, or another process has it open (`BlockingIOError`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            _lock(self._file, path)
            self._answers = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Any] | None:
        """What was added under `key`, or None."""
        return self._answers.get(key)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Keep `answer`, any JSON object, under `key`: written before this returns, though not yet forced to disk."""
        line = json.dumps({"key": key} | answer).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        if self._file.write(line) != len(line):  # the disk is full
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._answers[key] = answer

    def close(self) -> None:
        """Let another process open the file."""
        self._file.close()

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        rest = content[whole:]
        if not rest.startswith(_BEGINNING[: len(rest)]):
            raise ValueError(f"the end of {self._path} is no entry of a journal; name another file")
        lines = enumerate(content[:whole].splitlines(), start=1)
        entries = [self._parsed(number, line) for number, line in lines]
        if rest:  # only now: nothing is cut off a file that is no journal
            self._file.truncate(whole)
        return {entry.pop("key"): entry for entry in entries}

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {self._path} is damaged ({error}); delete that line, whose question is then "
                "asked again"
            ) from None
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ValueError(f"line {number} of {self._path} is no entry of a journal; name another file")
        return entry


def _lock(file: BinaryIO | Any, path: Path) -> None:  # noqa: ANN401 - an unbuffered file
    """Keep other processes out, where the system can."""
    if os.name == "nt":
        return
    import fcntl

    flock: Callable[[int, int], None] = fcntl.flock
    try:
        flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "another process is using this journal", str(path)) from None
