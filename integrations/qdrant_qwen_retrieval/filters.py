"""Filters in short form, by the names of metadata fields, for whatever layout a collection has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from numbers import Real
from typing import Any

from pydantic import ValidationError
from qdrant_client import models

from qdrant_qwen_retrieval.layouts import Layout

Filter = models.Filter | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A filter of Qdrant, passed on as it is, or conditions on metadata fields, all of which must hold:

``{"year": 2024}`` equals, ``{"year": [2023, 2024]}`` is one of, ``{"year": {"gte": 2020, "lt": 2025}}`` lies between
(numbers, or dates), ``{"year": {"not": 2024}}`` is not, ``{"year": None}`` is missing, null or empty. Of a list of such
filters all must hold, for several conditions on one field.

An integer does not match a float that is stored, although they are equal: 2024 does not find 2024.0, which is what a
column of a pandas table with gaps holds. Filter by the float then, ``{"year": 2024.0}``, or by bounds, which find both.
"""

_BOUNDS = frozenset({"gt", "gte", "lt", "lte"})


def to_filter(filter: Filter | None, layout: Layout) -> models.Filter | None:
    """A filter of Qdrant.

    Args:
        filter: See `Filter`.
        layout: Says where metadata fields lie.

    Raises:
        TypeError: It is neither, or a value is of a type that cannot be filtered by.
        ValueError: A condition is unknown, or a field cannot be filtered by in this layout.
    """
    if filter is None or isinstance(filter, models.Filter):
        return filter
    filters = [filter] if isinstance(filter, Mapping) else filter
    if not isinstance(filters, list | tuple) or not all(isinstance(one, Mapping) for one in filters):
        raise TypeError(f'filter must be a models.Filter or like {{"year": 2024}}, but got {type(filter).__name__}')
    conditions = [(name, value) for one in filters for name, value in one.items()]
    return models.Filter(must=[_condition(name, layout.field(name), value) for name, value in conditions])


def _condition(name: str, path: str, value: Any) -> models.Condition:  # noqa: ANN401
    if isinstance(value, Mapping):
        return _operator(name, path, value)
    if value is None:
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=path))
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return _any_of(name, path, list(value))
    if isinstance(value, bool | int | str):
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))
    return _between(name, path, {"gte": value, "lte": value})  # Qdrant has no equality of floats and dates


def _any_of(name: str, path: str, values: list[Any]) -> models.Condition:
    """One of several; none of them matches nothing at all."""
    for kind in (str, int):
        if all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            return models.FieldCondition(key=path, match=models.MatchAny(any=values))
    return models.Filter(should=[_condition(name, path, value) for value in values])


def _operator(name: str, path: str, operator: Mapping[str, Any]) -> models.Condition:
    if set(operator) == {"not"}:
        return models.Filter(must_not=[_condition(name, path, operator["not"])])
    if operator and set(operator) <= _BOUNDS:
        return _between(name, path, operator)
    raise ValueError(
        f"filter[{name!r}] must be a value, a list of values, bounds (gt, gte, lt, lte) or {{'not': …}}, "
        f"but got the keys {list(operator)}"
    )


def _between(name: str, path: str, bounds: Mapping[str, Any]) -> models.Condition:
    values = list(bounds.values())
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"filter[{name!r}] must have finite numbers, but got {values}")
        return models.FieldCondition(key=path, range=models.Range(**{key: float(bounds[key]) for key in bounds}))
    rule = f"filter[{name!r}] must have numbers, or dates (as such or in ISO 8601), as bounds, but got"
    if all(isinstance(value, str | date) for value in values):
        try:
            return models.FieldCondition(key=path, range=models.DatetimeRange(**bounds))
        except ValidationError as error:
            raise ValueError(f"{rule} {values}") from error
    raise TypeError(f"{rule} {values[0]!r}")
