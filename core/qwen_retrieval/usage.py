"""How much a piece of code has asked of the models: inputs, tokens, what was cut."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_lock = threading.Lock()


@dataclass(slots=True)
class Usage:
    """What was given to models within a `track_usage` block; one input that occurs twice in a call counts once.

    Attributes:
        inputs: Queries, documents or pairs.
        tokens: Their tokens, templates included, before shared beginnings are joined.
        truncated: Inputs that were cut to `max_length`.
    """

    inputs: int = 0
    tokens: int = 0
    truncated: int = 0

    def add(self, *, inputs: int, tokens: int, truncated: int) -> None:
        """Count more, from any thread."""
        with _lock:
            self.inputs += inputs
            self.tokens += tokens
            self.truncated += truncated


_current: ContextVar[tuple[Usage, ...]] = ContextVar("qwen_retrieval_usage", default=())


@contextmanager
def track_usage() -> Iterator[Usage]:
    """Count what is asked of the models inside the block, through whatever framework, and nothing else.

    Tasks, and threads that copy the context (`asyncio.to_thread`, executors of the frameworks), count as inside.
    Blocks nest: an inner block's usage is part of the outer's.

    >>> with track_usage() as usage:
    ...     vectors = embedder.embed_documents(documents)  # doctest: +SKIP
    >>> usage.tokens, usage.truncated  # doctest: +SKIP
    (1536, 0)
    """
    usage = Usage()
    _current.set((*_current.get(), usage))
    try:
        yield usage
    finally:
        # No reset by token: blocks of generators end in any order, and in other contexts than they began in.
        _current.set(tuple(one for one in _current.get() if one is not usage))


def count(*, inputs: int, tokens: int, truncated: int) -> None:
    """Add to every block that the caller is inside of."""
    for usage in _current.get():
        usage.add(inputs=inputs, tokens=tokens, truncated=truncated)
