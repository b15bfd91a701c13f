"""The progress of an ingestion on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qdrant_qwen_retrieval.report import OnProgress, Progress


@contextmanager
def shown(progress: bool | OnProgress, total: int | None) -> Iterator[OnProgress | None]:
    """What an ingestion calls after each batch.

    Args:
        progress: True for a bar on stderr, if that is a terminal; or what to call instead.
        total: Records in all, if that is known.

    Raises:
        TypeError: `progress` is neither.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a function, but got {progress!r}")
    if not isinstance(progress, bool):
        yield progress
    elif progress and sys.stderr.isatty():
        with _bar(total) as on_progress:
            yield on_progress
    else:
        yield None


@contextmanager
def _bar(total: int | None) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("ingesting", total=total, speed="")
        yield lambda done: bar.update(task, completed=done.records, total=done.total, speed=_speed(done))


def _speed(done: Progress) -> str:
    seconds = max(done.seconds, 1e-9)
    failed = f", {done.failed:,} failed" if done.failed else ""
    return f"{done.records / seconds:,.0f} documents/s, {done.tokens / seconds:,.0f} tokens/s{failed}"
