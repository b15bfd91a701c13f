"""Metadata as JSON values, the same on every machine, or what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from numbers import Integral
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

from qdrant_qwen_retrieval.chunks import BOOKKEEPING

MAX_BYTES = 1_000_000  # as JSON; it is stored with every chunk of its record
MAX_DEPTH = 60  # the embedded store takes 64 levels, and a layout needs some around it
INT64 = range(-(2**63), 2**63)  # what a payload can hold


def json_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as it is stored.

    Dates and times become ISO 8601, UUIDs and paths strings, numpy's scalars and arrays Python's numbers and lists.
    Nothing else is converted: bytes, sets, decimals, NaN and infinity have no JSON form that all readers agree on.

    Raises:
        ValueError: A value has no JSON form, a key is no string, the key ``_qwen`` is used, or it is all longer
            than `MAX_BYTES`; names the key.
    """
    if BOOKKEEPING in metadata:
        raise ValueError(f"the metadata key {BOOKKEEPING!r} is reserved; rename it")
    values: dict[str, Any] = _mapping(metadata, "metadata", 0)
    size = len(json.dumps(values))
    if size > MAX_BYTES:
        raise ValueError(f"the metadata is {size:,} bytes of JSON, but {MAX_BYTES:,} is the limit; leave something out")
    return values


def check_unicode(text: str, name: str) -> None:
    """Refuse what cannot be written as UTF-8.

    Raises:
        ValueError: `text` contains half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise ValueError(f"{name} is not valid Unicode: it has a lone surrogate {code} at {error.start}") from error


def _mapping(value: Mapping[Any, Any], key: str, depth: int) -> dict[str, Any]:
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"the keys of {key} must be strings, but {name!r} is {type(name).__name__}")
        check_unicode(name, f"the key {name!a} of {key}")
    return {str.__str__(name): _json(item, f"{key}[{name!r}]", depth + 1) for name, item in value.items()}


def _json(value: Any, key: str, depth: int) -> Any:  # noqa: ANN401 - any value in, any JSON value out
    if depth > MAX_DEPTH:
        raise ValueError(f"the metadata is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return _mapping(value, key, depth)
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_json(item, f"{key}[{index}]", depth + 1) for index, item in enumerate(value)]
    return json_scalar(value, key)


def json_scalar(value: Any, key: str) -> str | int | float | bool | None:  # noqa: ANN401 - any value
    """A value without parts, as it is stored; see `json_metadata`.

    Args:
        value: Any value.
        key: What to call it in an error.

    Raises:
        ValueError: It has no JSON form.
    """
    if isinstance(value, np.ndarray):  # without dimensions
        value = value[()]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral | float | np.floating) and not isinstance(value, np.timedelta64):  # which is Integral
        return _number(value, key)
    text = _text(value)
    if text is None:
        raise ValueError(f"{key} is {type(value).__name__}, which has no JSON form; make it a string or a number")
    check_unicode(text, key)
    return text


def _number(value: Integral | float | np.floating[Any], key: str) -> int | float:
    if isinstance(value, Integral):
        if int(value) not in INT64:
            raise ValueError(f"{key} is {value}, which does not fit into 64 bits; make it a string")
        return int(value)
    if not math.isfinite(value):
        raise ValueError(f"{key} is {value}, which JSON does not have; make it None, or leave it out")
    return float(value)


def _text(value: object) -> str | None:
    """A value that has one obvious form as text; None for any other."""
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration or of numpy: the plain string
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat() if value == value else None  # not so pandas' NaT, which is a datetime
    if isinstance(value, UUID):
        return str(value)
    return value.as_posix() if isinstance(value, PurePath) else None
