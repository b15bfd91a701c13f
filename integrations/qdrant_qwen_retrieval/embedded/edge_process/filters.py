"""Filters, as the REST interface of Qdrant writes them, into those of qdrant-edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import qdrant_edge as edge

Json = Mapping[str, Any]
Native = Any  # the classes of qdrant_edge have no common type

MATCHES: Mapping[str, Callable[[Any], Native]] = {
    # Of Python's own booleans the binding makes the integers 0 and 1, which match no boolean (qdrant-edge-py 0.9).
    "value": lambda value: edge.MatchValue(cast(Native, np.bool_(value)) if isinstance(value, bool) else value),
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
}


def to_filter(value: Json | None) -> edge.Filter | None:
    """A filter; None stays None."""
    if value is None:
        return None
    return edge.Filter(
        must=_optional(value, "must", _conditions),
        should=_optional(value, "should", _conditions),
        must_not=_optional(value, "must_not", _conditions),
        min_should=_optional(
            value, "min_should", lambda item: edge.MinShould(_conditions(item["conditions"]), item["min_count"])
        ),
    )


def to_condition(value: Json) -> Native:
    """One condition of a filter.

    Raises:
        NotImplementedError: It is of a kind that is not known here.
    """
    if "key" in value:
        return _field_condition(value)
    for name, make in _CONDITIONS.items():
        if name in value:
            return make(value[name])
    if value.keys() <= {"must", "should", "must_not", "min_should"}:
        return to_filter(value)
    raise NotImplementedError(f"the embedded engine has no condition {sorted(value)}; use a Qdrant server")


def geo_point(value: Json) -> edge.GeoPoint:
    """A place on Earth, in degrees."""
    return edge.GeoPoint(value["lon"], value["lat"])


_CONDITIONS: Mapping[str, Callable[[Any], Native]] = {
    "is_empty": lambda value: edge.IsEmptyCondition(value["key"]),
    "is_null": lambda value: edge.IsNullCondition(value["key"]),
    "has_id": lambda value: edge.HasIdCondition(set(value)),
    "has_vector": edge.HasVectorCondition,
    "nested": lambda value: edge.NestedCondition(value["key"], cast(edge.Filter, to_filter(value["filter"]))),
    "slice": lambda value: cast(Native, edge).SliceCondition(value["total"], value["index"]),  # not in its stubs
}


def _conditions(value: list[Json] | Json) -> list[Native]:
    return [to_condition(item) for item in (value if isinstance(value, list) else [value])]


def _field_condition(value: Json) -> edge.FieldCondition:
    return edge.FieldCondition(
        key=value["key"],
        match=_optional(value, "match", _match),
        range=_optional(value, "range", _range),
        geo_bounding_box=_optional(value, "geo_bounding_box", _box),
        geo_radius=_optional(
            value, "geo_radius", lambda item: edge.GeoRadius(geo_point(item["center"]), item["radius"])
        ),
        geo_polygon=_optional(value, "geo_polygon", _polygon),
        values_count=_optional(value, "values_count", lambda item: edge.ValuesCount(**item)),
        is_empty=value.get("is_empty"),
        is_null=value.get("is_null"),
    )


def _optional(value: Json, name: str, make: Callable[[Any], Native]) -> Native:
    return make(value[name]) if name in value else None


def _match(value: Json) -> Native:
    ((name, wanted),) = value.items()
    return MATCHES[name](wanted)


def _range(value: Json) -> Native:
    dates = any(isinstance(limit, str) for limit in value.values())
    return edge.RangeDateTime(**value) if dates else edge.RangeFloat(**value)


def _box(value: Json) -> edge.GeoBoundingBox:
    return edge.GeoBoundingBox(geo_point(value["top_left"]), geo_point(value["bottom_right"]))


def _polygon(value: Json) -> edge.GeoPolygon:
    interiors = [_ring(ring) for ring in value.get("interiors") or ()]
    return edge.GeoPolygon(_ring(value["exterior"]), interiors or None)


def _ring(value: Json) -> list[edge.GeoPoint]:
    return [geo_point(point) for point in value["points"]]
