"""How deep may be nested what is written.

The engine takes payloads and operations of any depth, but reads at most about 120 levels again: with one point that is
nested deeper, the log or the whole collection is lost for good (qdrant-edge-py 0.9; serde_json's limit is 128 levels).
"""

from __future__ import annotations

from typing import Any

MAX_LEVELS = 64
_CONTAINERS = frozenset({dict, list})


def check_nesting(value: Any, what: str, levels: int = MAX_LEVELS) -> None:  # noqa: ANN401 - any JSON value
    """Refuses what the engine could not read again.

    Args:
        value: JSON.
        what: What it is, for the error.
        levels: How many there may be.

    Raises:
        ValueError: There are more.
    """
    if type(value) not in _CONTAINERS:
        return
    if not levels:
        raise ValueError(f"{what} is nested too deep: at most {MAX_LEVELS} levels can be stored")
    items = value.values() if type(value) is dict else value
    if not _CONTAINERS.isdisjoint(map(type, items)):  # most have none, and this is fast
        for item in items:
            check_nesting(item, what, levels - 1)


def check_key(key: str) -> int:
    """Refuses the path of a payload field with too many parts, and counts them otherwise.

    Raises:
        ValueError: There are too many.
    """
    parts = 1 + key.count(".") + key.count("[")
    if parts > MAX_LEVELS:
        raise ValueError(f"the key {key[:40]}… has {parts} parts: at most {MAX_LEVELS} can be stored")
    return parts
