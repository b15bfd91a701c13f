"""Many at once, and when that fails because of some of them, the others nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

Blame = Callable[[Exception], Collection[int] | None]
"""Whose fault an error is: positions in what was tried, an empty collection for one that it does not name, or None if
it is nobody's fault among them."""


def isolate(
    items: Sequence[T], attempt: Callable[[Sequence[T]], R], blame: Blame
) -> tuple[list[tuple[Sequence[T], R]], list[tuple[T, Exception]]]:
    """Try `items` together; leave out those that an error names, and halve what fails without naming anyone.

    With one bad item among n that is no more than 2 log2(n) calls, and each good item is part of one that succeeds.

    Args:
        items: What to try; nothing is called for none.
        attempt: Called with some of them, in their order.
        blame: Tells from an error whom it concerns.

    Returns:
        What succeeded, with its result, in the order of `items`; and what failed alone, with its error.

    Raises:
        Exception: What `attempt` raises, if `blame` gives None for it.
    """
    done: list[tuple[Sequence[T], R]] = []
    failed: list[tuple[T, Exception]] = []
    waiting = [items] if items else []
    while waiting:
        part = waiting.pop()
        try:
            done.append((part, attempt(part)))
        except Exception as error:
            rows = blame(error)
            if rows is None:
                raise
            if len(part) == 1:
                failed.append((part[0], error))
            elif rows:
                failed += [(part[row], error) for row in rows]
                waiting += _some([item for row, item in enumerate(part) if row not in rows])
            else:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
    return done, failed


def _some(items: list[T]) -> list[list[T]]:
    return [items] if items else []
