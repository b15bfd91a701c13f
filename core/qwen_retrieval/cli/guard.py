"""What surrounds every subcommand: options that all of them share, exit codes, one-line errors and warnings.

0    done
1    an expected error: one line on stderr, the traceback only with ``--debug``
2    wrong usage (typer's own)
3    done, but for some records that could not be ingested
130  interrupted with Ctrl-C;  143 terminated;  141 the reader of the output went away
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Any, TextIO

import typer

from qwen_retrieval.errors import QwenRetrievalError

from .display import note

ERROR, INCOMPLETE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 1, 3, 130, 141, 143
EXPECTED = (QwenRetrievalError, ValueError, OSError)

_debug = False


def show_tracebacks(wanted: bool) -> None:
    """Say whether an error prints its traceback before its one line."""
    global _debug
    _debug = wanted


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a subcommand of `function`.

    A parameter annotated with a dataclass, such as `LoadOptions`, becomes one option per field; errors become exit
    codes.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}

    @functools.wraps(function)
    def run(**given: Any) -> None:  # noqa: ANN401 - typer has checked them
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        with exit_codes():
            function(**given)

    parameters = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
    own = [parameter for parameter in parameters if parameter.name not in groups]
    added = [parameter for group in groups.values() for parameter in _parameters(group)]
    run.__signature__ = inspect.Signature(own + added)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in own + added}
    del run.__wrapped__  # typer would read the signature from there
    return run


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn expected errors and interruptions into one line on stderr and an exit code."""
    with warnings.catch_warnings(), _terminable():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", UserWarning)
        try:
            yield
            sys.stdout.flush()
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _forget_stdout()
            raise typer.Exit(BROKEN_PIPE) from None
        except EXPECTED as error:
            if _debug:
                traceback.print_exc()
            note(f"error: {describe(error)}")
            _drop_stdout_if_full(error)
            raise typer.Exit(ERROR) from None


def describe(error: Exception) -> str:
    """The error in one line, an operating system's with the file first."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, QwenRetrievalError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    """One keyword parameter per field of a dataclass."""
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    note("warning: " + " ".join(str(message).split()))


def _drop_stdout_if_full(error: Exception) -> None:
    """What could not be written must not be tried again when Python exits: that would print a second error."""
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError:
            _forget_stdout()


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
