"""Vectors and points of the client's models into messages, checked, and back."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from qdrant_client import models

from qdrant_qwen_retrieval.embedded.edge_process.nesting import check_nesting
from qdrant_qwen_retrieval.embedded.edge_process.wire import (
    Packer,
    Words,
    is_reference,
    unpack_dense,
    unpack_sparse,
)

Json = dict[str, Any]
Point = tuple[Any, Any, Any]  # id, vectors, payload
MAX_ID = 2**64 - 1
_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=to_jsonable_python)


def is_unnamed(vectors: Json) -> bool:
    """Whether these are the settings of one vector without a name; there may be a vector called "size"."""
    return isinstance(vectors.get("size"), int)


def by_name(vectors: Json | None) -> Json:
    """Dense vectors by name; one without a name is under ""."""
    if not vectors:
        return {}
    return {"": vectors} if is_unnamed(vectors) else dict(vectors)


@dataclass(frozen=True)
class VectorSchema:
    """Which vectors the points of a collection have.

    Attributes:
        sizes: Dimensions of the dense vectors by name; "" is the one without a name.
        multi: Names of those that are several vectors per point.
        sparse: Names of the sparse ones.
    """

    sizes: Mapping[str, int]
    multi: frozenset[str]
    sparse: frozenset[str]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> VectorSchema:
        """From the settings of a collection."""
        named = by_name(settings.get("vectors"))
        return cls(
            sizes={name: params["size"] for name, params in named.items()},
            multi=frozenset(name for name, params in named.items() if params.get("multivector_config")),
            sparse=frozenset(settings.get("sparse_vectors") or ()),
        )

    def pack(self, vectors: Any, packer: Packer) -> Json:  # noqa: ANN401 - any of the client's forms
        """All vectors of one point.

        Args:
            vectors: One vector, or vectors by name.
            packer: Takes the numbers.

        Raises:
            ValueError: A name, a size or a number is wrong.
        """
        if isinstance(vectors, BaseModel) and not isinstance(vectors, models.SparseVector):
            raise ValueError(f"a vector was expected, not {type(vectors).__name__}: embed it first")
        named = vectors if isinstance(vectors, Mapping) else {"": vectors}
        return {name: self._pack(name, vector, packer) for name, vector in named.items()}

    def _pack(self, name: str, vector: Any, packer: Packer) -> Json:  # noqa: ANN401
        if name in self.sparse:
            return pack_sparse(name, vector, packer)
        if name not in self.sizes:
            have = ", ".join(map(repr, sorted([*self.sizes, *self.sparse])))
            raise ValueError(f"Wrong input: Not existing vector name error: {name!r}; the collection has {have}")
        numbers = to_float32(name, vector)
        rank = 2 if name in self.multi else 1
        if numbers.ndim != rank or (rank == 2 and not len(numbers)):
            raise ValueError(f"Wrong input: vector {name!r} has shape {numbers.shape}; {rank} axes were expected")
        if numbers.shape[-1] != self.sizes[name]:
            expected = f"expected dim: {self.sizes[name]}, got {numbers.shape[-1]}"
            raise ValueError(f"Wrong input: Vector dimension error: {expected} (vector {name!r})")
        return packer.dense(numbers)


def to_float32(name: str, vector: Any) -> Words:  # noqa: ANN401
    """A dense vector or multivector as numbers.

    Raises:
        ValueError: It is none, or one of its numbers is not finite.
    """
    if isinstance(vector, models.SparseVector | Mapping):
        raise ValueError(f"Wrong input: vector {name!r} is dense, and a sparse one was given")
    try:
        with np.errstate(over="ignore"):
            numbers: Words = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"vector {name!r} is not a list of numbers: {error}") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"vector {name!r} contains NaN or infinity as float32")
    return np.ascontiguousarray(numbers)


def pack_sparse(name: str, vector: Any, packer: Packer) -> Json:  # noqa: ANN401
    """A sparse vector: a model, or a dict with indices and values.

    Raises:
        ValueError: It is dense, or its indices are repeated or as many as its values are not.
    """
    if isinstance(vector, models.SparseVector):
        indices, values = vector.indices, vector.values
    elif isinstance(vector, Mapping) and vector.keys() == {"indices", "values"}:
        indices, values = vector["indices"], vector["values"]
    else:
        raise ValueError(f"Wrong input: vector {name!r} is sparse, and something else was given")
    numbers = to_float32(name, values)
    try:
        places = np.asarray(indices, dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"an index of the sparse vector {name!r} is too large") from error
    if len(places) != len(numbers) or len(np.unique(places)) != len(places):
        raise ValueError(f"the sparse vector {name!r} needs as many values as indices, and no index twice")
    if len(places) and (places.min() < 0 or places.max() > np.iinfo(np.uint32).max):
        raise ValueError(f"an index of the sparse vector {name!r} is not in 0..2**32-1")
    return packer.sparse(places.astype(np.uint32), numbers)


def plain_id(value: Any) -> str | int:  # noqa: ANN401
    """A point id as JSON writes it.

    Raises:
        ValueError: It is neither an unsigned integer of 64 bits nor a UUID.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value <= MAX_ID:
        return int(value)
    if isinstance(value, str | uuid.UUID):
        try:
            return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value))
        except ValueError:
            pass
    raise ValueError(f"Point id {value!r} is not a valid UUID or an integer from 0 to 2**64-1")


def points_of(points: Any) -> Iterator[Point]:  # noqa: ANN401 - the forms are checked here
    """The points of a `models.Batch` or a sequence of `models.PointStruct` or `PointVectors`.

    Raises:
        TypeError: They are something else.
    """
    if isinstance(points, models.Batch):
        yield from _points_of_batch(points)
        return
    for point in points:
        if not isinstance(point, models.PointStruct | models.PointVectors | models.Record):
            raise TypeError(f"a point must be a models.PointStruct, not {type(point).__name__}")
        yield point.id, point.vector, getattr(point, "payload", None)


def _points_of_batch(batch: models.Batch) -> Iterator[Point]:
    vectors: Any = batch.vectors
    if isinstance(vectors, Mapping):
        columns = [[(name, item) for item in column] for name, column in vectors.items()]
        vectors = [dict(row) for row in zip(*columns, strict=True)]
    payloads: Sequence[Any] = batch.payloads or [None] * len(batch.ids)
    yield from zip(batch.ids, vectors, payloads, strict=True)


def pack_points(points: Iterable[Point], schema: VectorSchema, packer: Packer) -> list[Json]:
    """Points for a message.

    Raises:
        ValueError: A point is wrong; says which.
    """
    packed = []
    for identifier, vectors, payload in points:
        point: Json = {"id": plain_id(identifier)}
        try:
            point["vector"] = schema.pack({} if vectors is None else vectors, packer)
        except ValueError as error:
            raise ValueError(f"{error}; point {identifier}") from error
        if payload:
            point["payload"] = payload
        packed.append(point)
    return packed


def check_payloads(packed: Sequence[Json]) -> None:
    """Says which payload cannot be stored, if one cannot.

    Raises:
        ValueError: It is no JSON, or nested too deep.
    """
    for point in packed:
        check_nesting(point.get("payload"), f"the payload of point {point['id']}")
    try:
        _JSON.encode([point.get("payload") for point in packed]).encode()
    except (ValueError, TypeError, RecursionError) as error:
        if len(packed) == 1:
            raise ValueError(f"the payload of point {packed[0]['id']} is no JSON: {error}") from error
        for point in packed:
            check_payloads([point])
        raise


def unpack_struct(value: Json | None, words: Words) -> Any:  # noqa: ANN401 - one of the client's forms
    """The vectors of a point: one without a name, or several by name."""
    if value is None:
        return None
    if is_reference(value):
        return _unpack(value, words)
    return {name: _unpack(item, words) for name, item in value.items()}


def _unpack(reference: Json, words: Words) -> list[float] | list[list[float]] | models.SparseVector:
    if "nnz" in reference:
        indices, values = unpack_sparse(reference, words)
        return models.SparseVector(indices=indices.tolist(), values=values.tolist())
    numbers: list[float] | list[list[float]] = unpack_dense(reference, words).tolist()
    return numbers


def record(value: Json, words: Words) -> models.Record:
    """A point without a score."""
    return models.Record(
        id=value["id"],
        payload=value.get("payload"),
        vector=unpack_struct(value.get("vector"), words),
        order_value=value.get("order_value"),
    )


def scored_point(value: Json, words: Words) -> models.ScoredPoint:
    """A point with a score."""
    return models.ScoredPoint(
        id=value["id"],
        version=value["version"],
        score=value["score"],
        payload=value.get("payload"),
        vector=unpack_struct(value.get("vector"), words),
        order_value=value.get("order_value"),
    )
