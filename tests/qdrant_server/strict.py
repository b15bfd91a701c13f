"""Strict mode: filters need a payload index of the right kind, as Qdrant Cloud asks for it.

Which kinds: `lib/collection/src/problems/unindexed_field.rs`, github.com/qdrant/qdrant 1.19.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qdrant_client import models

SETTING = models.StrictModeConfigOutput(
    enabled=True, unindexed_filtering_retrieve=False, unindexed_filtering_update=False
)

Kinds = frozenset[str]
_ANY: Kinds = frozenset(kind.value for kind in models.PayloadSchemaType)


def missing_index(condition: Any, indexes: Mapping[str, models.PayloadIndexInfo]) -> str | None:
    """What a server says of a filter that needs an index that is not there; None if all are."""
    for field, kinds in _needs(condition):
        if kinds and (field not in indexes or indexes[field].data_type.value not in kinds):
            return (
                f'Bad request: Index required but not found for "{field}" of one of the following types: '
                f"[{', '.join(sorted(kinds))}]. Help: Create an index for this key or use a different filter."
            )
    return None


def _needs(condition: Any, prefix: str = "") -> Iterable[tuple[str, Kinds]]:
    """Fields of a filter, and the kinds of index of which each needs one; none at all: no index is needed."""
    if isinstance(condition, models.Filter):
        clauses: list[Any] = [condition.must, condition.should, condition.must_not]
        clauses += [condition.min_should.conditions] if condition.min_should else []
        for clause in clauses:
            for inner in clause if isinstance(clause, list) else [clause] if clause else []:
                yield from _needs(inner, prefix)
    elif isinstance(condition, models.NestedCondition):
        yield from _needs(condition.nested.filter, f"{prefix}{condition.nested.key}[].")
    elif isinstance(condition, models.FieldCondition):
        yield prefix + condition.key, _kinds(condition)
    elif isinstance(condition, models.IsEmptyCondition):
        yield prefix + condition.is_empty.key, _ANY
    elif isinstance(condition, models.IsNullCondition):
        yield prefix + condition.is_null.key, _ANY


def _kinds(condition: models.FieldCondition) -> Kinds:
    match condition.match:
        case models.MatchValue(value=value):
            return _of_values([value])
        case models.MatchAny(any=values) | models.MatchExcept(except_=values):
            return _of_values(values)
        case None:
            pass
        case _:
            return frozenset({"text"})
    if isinstance(condition.range, models.DatetimeRange):
        return frozenset({"datetime"})
    if condition.range is not None:
        return frozenset({"integer", "float"})
    return _ANY


def _of_values(values: Iterable[Any]) -> Kinds:
    kinds = {bool: frozenset({"bool"}), int: frozenset({"integer"}), str: frozenset({"keyword", "uuid"})}
    return next((kinds[type(value)] for value in values), frozenset())
