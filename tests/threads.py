"""The threads of models, as far as the running test has started them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_older: set[threading.Thread] = set()


def threads() -> list[threading.Thread]:
    """Threads of models that were started since `none_left` was entered."""
    started = [thread for thread in threading.enumerate() if thread not in _older]
    return [thread for thread in started if thread.name.startswith("qwen-retrieval")]


@contextmanager
def none_left(patience: float = 60.0) -> Iterator[None]:
    """Waits at its end for threads that were started inside, and fails if one stays.

    Args:
        patience: Seconds to wait.
    """
    _older.clear()
    _older.update(threading.enumerate())
    yield
    gc.collect()
    for thread in threads():
        thread.join(patience)
    assert threads() == []
