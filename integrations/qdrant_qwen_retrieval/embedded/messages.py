"""Models of qdrant-client into the JSON of the REST interface, with vectors packed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from pydantic import BaseModel
from qdrant_client import models

from qdrant_qwen_retrieval.embedded.edge_process.wire import Packer
from qdrant_qwen_retrieval.embedded.vectors import plain_id, to_float32

Json = dict[str, Any]
HARMLESS = frozenset({"wait", "ordering", "timeout", "consistency"})
"""Options of a server that change nothing here: every write is applied before it is acknowledged, in one place."""
_PLAIN_FIELDS = ("limit", "offset", "using", "score_threshold", "filter", "params")
_VECTOR_FIELDS = frozenset({"nearest", "positive", "negative", "target", "example"})


def plain(model: Any) -> Any:  # noqa: ANN401 - any model, or JSON already
    """A model as REST would send it, without what is not set."""
    return model.model_dump(mode="json", exclude_none=True, by_alias=True) if isinstance(model, BaseModel) else model


def check_options(method: str, options: Mapping[str, object]) -> None:
    """Lets options pass that change nothing, and refuses others that are set.

    Raises:
        NotImplementedError: A shard key is given.
        TypeError: An option is not known.
    """
    given = {name for name, value in options.items() if value is not None} - HARMLESS
    if given & {"shard_key_selector"}:
        raise NotImplementedError(f"{method}: an embedded store has one shard and no shard keys; use a Qdrant server")
    if given:
        raise TypeError(f"{method}: unknown arguments {sorted(given)}")


def selection(selector: Any) -> Json:  # noqa: ANN401 - one of the client's selectors
    """Which points: ``{"ids": [...]}`` or ``{"filter": {...}}``.

    Raises:
        TypeError: It selects nothing that is known.
    """
    if isinstance(selector, models.FilterSelector):
        return {"filter": plain(selector.filter)}
    if isinstance(selector, models.Filter):
        return {"filter": plain(selector)}
    if isinstance(selector, models.PointIdsList):
        selector = selector.points
    if isinstance(selector, str | int | uuid.UUID):
        selector = [selector]
    if not isinstance(selector, Sequence):
        raise TypeError(f"points must be a list of ids or a models.Filter, not {type(selector).__name__}")
    return {"ids": [plain_id(item) for item in selector]}


def query_json(request: models.QueryRequest | models.Prefetch, packer: Packer, shard: Callable[[str], str]) -> Json:
    """A query with everything nested in it.

    Args:
        request: As the client takes it; `query` may be a bare vector or an id.
        packer: Takes the numbers of vectors.
        shard: The shard of a collection by its name.
    """
    fields = {name: getattr(request, name, None) for name in _PLAIN_FIELDS}
    value: Json = {name: plain(field) for name, field in fields.items() if field is not None}
    if request.query is not None:
        value["query"] = _query(request.query, packer)
    if request.prefetch is not None:
        items = request.prefetch if isinstance(request.prefetch, list) else [request.prefetch]
        value["prefetch"] = [query_json(item, packer, shard) for item in items]
    if request.lookup_from is not None:
        value["lookup_from"] = {"shard": shard(request.lookup_from.collection)}
        if request.lookup_from.vector is not None:
            value["lookup_from"]["vector"] = request.lookup_from.vector
    return value


def _query(query: Any, packer: Packer) -> Json:  # noqa: ANN401
    if isinstance(query, models.SparseVector) or not isinstance(query, BaseModel):
        return {"nearest": _vector_input(query, packer)}  # a bare vector or an id
    if isinstance(query, models.FormulaQuery):
        return cast(Json, plain(query))  # no vectors, and names of its own
    return cast(Json, _pack_vectors(plain(query), packer))


def _pack_vectors(value: Any, packer: Packer) -> Any:  # noqa: ANN401
    """JSON with the vectors in it replaced by references."""
    if isinstance(value, list):
        return [_pack_vectors(item, packer) for item in value]
    if not isinstance(value, dict):
        return value
    if "recommend" in value:  # the one place where these fields are lists of examples
        examples = {"positive", "negative"} & value["recommend"].keys()
        packed = {name: [_vector_input(item, packer) for item in value["recommend"][name]] for name in examples}
        return {"recommend": {**value["recommend"], **packed}}
    return {
        name: _vector_input(item, packer) if name in _VECTOR_FIELDS else _pack_vectors(item, packer)
        for name, item in value.items()
    }


def _vector_input(value: Any, packer: Packer) -> Any:  # noqa: ANN401
    if isinstance(value, str | int | uuid.UUID | np.integer):
        return plain_id(value)
    if isinstance(value, models.SparseVector):
        return plain(value)
    if isinstance(value, dict):
        return value
    return packer.dense(to_float32("of the query", value))
