"""Writing points: the part of the backend that changes what is in a collection."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qdrant_client import models

from qdrant_qwen_retrieval.embedded.backend import EdgeBase, done
from qdrant_qwen_retrieval.embedded.edge_process.wire import Packer
from qdrant_qwen_retrieval.embedded.messages import check_options, plain, selection
from qdrant_qwen_retrieval.embedded.vectors import Point, check_payloads, pack_points, points_of

MESSAGE_POINTS = 256
"""Points in one message, so that neither process holds more than a few megabytes beside what the caller has."""
UPLOAD_OPTIONS = {"batch_size", "parallel", "method", "max_retries"}  # of a network


class PointsMixin(EdgeBase):
    """Writes. Each is applied, and in the log, when it returns: it survives the end of both processes.

    The log is on the disk when the system wants it so; what must survive a power cut needs `flush` or `close`.
    """

    def upsert(
        self,
        collection_name: str,
        points: models.Batch | Sequence[models.PointStruct],
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
        **options: object,
    ) -> models.UpdateResult:
        """Inserts points, or replaces those with the same ids.

        Args:
            collection_name: The collection.
            points: Each with all its vectors; nothing is written unless all are right. More than 256 go to the engine
                in several operations.
            update_filter: Replaces only points that match it.
            update_mode: "insert_only" or "update_only"; both by default.
            options: `wait`, `ordering` and `timeout` change nothing.

        Raises:
            ValueError: There is no such collection, or a point is wrong, or there are none.
        """
        check_options("upsert", options)
        given = list(points_of(points))
        if not given:
            raise ValueError("Empty update request: no points were given")
        batches = [given[start : start + MESSAGE_POINTS] for start in range(0, len(given), MESSAGE_POINTS)]
        if len(batches) > 1:
            self._check_points(collection_name, batches)
        for batch in batches:
            self._upsert(collection_name, batch, update_filter, update_mode)
        return done()

    def upload_points(
        self,
        collection_name: str,
        points: Iterable[models.PointStruct],
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
        **options: object,
    ) -> None:
        """Upserts points as they come, 256 at a time; those before one that is wrong are written."""
        check_options("upload_points", {name: value for name, value in options.items() if name not in UPLOAD_OPTIONS})
        iterator = iter(points_of(points))
        while batch := list(itertools.islice(iterator, MESSAGE_POINTS)):
            self._upsert(collection_name, batch, update_filter, update_mode)

    def upload_collection(
        self,
        collection_name: str,
        vectors: Any,  # noqa: ANN401 - an array, arrays by name, or an iterable of vectors
        payload: Iterable[dict[Any, Any]] | None = None,
        ids: Iterable[Any] | None = None,
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
        **options: object,
    ) -> None:
        """Upserts vectors with their payloads, 256 at a time, with random ids if none are given."""
        check_options("upload_collection", {key: value for key, value in options.items() if key not in UPLOAD_OPTIONS})
        identifiers = iter(lambda: str(uuid.uuid4()), None) if ids is None else ids
        rows = zip(identifiers, _rows(vectors), itertools.repeat(None) if payload is None else payload, strict=False)
        while batch := list(itertools.islice(rows, MESSAGE_POINTS)):
            self._upsert(collection_name, batch, update_filter, update_mode)

    def update_vectors(
        self,
        collection_name: str,
        points: Sequence[models.PointVectors],
        update_filter: models.Filter | None = None,
        **options: object,
    ) -> models.UpdateResult:
        """Replaces the vectors that are given, and keeps the others and the payload."""
        check_options("update_vectors", options)
        packer = Packer()
        packed = pack_points(points_of(points), self._schema(collection_name), packer)
        self._call("update_vectors", collection_name, packer, points=packed, condition=plain(update_filter))
        return done()

    def delete_vectors(
        self,
        collection_name: str,
        vectors: Sequence[str],
        points: Any,  # noqa: ANN401
        **options: object,
    ) -> models.UpdateResult:
        """Removes named vectors of the points that are selected."""
        return self._change("delete_vectors", collection_name, points, options, names=list(vectors))

    def delete(self, collection_name: str, points_selector: Any, **options: object) -> models.UpdateResult:  # noqa: ANN401
        """Deletes points by their ids or a filter."""
        return self._change("delete", collection_name, points_selector, options)

    def set_payload(
        self,
        collection_name: str,
        payload: Mapping[str, Any],
        points: Any,  # noqa: ANN401
        key: str | None = None,
        **options: object,
    ) -> models.UpdateResult:
        """Sets fields of payloads, or of the object at `key`, and keeps the others."""
        return self._change("set_payload", collection_name, points, options, payload=payload, key=key)

    def overwrite_payload(
        self,
        collection_name: str,
        payload: Mapping[str, Any],
        points: Any,  # noqa: ANN401
        **options: object,
    ) -> models.UpdateResult:
        """Replaces payloads as a whole."""
        return self._change("overwrite_payload", collection_name, points, options, payload=payload)

    def delete_payload(
        self,
        collection_name: str,
        keys: Sequence[str],
        points: Any,  # noqa: ANN401
        **options: object,
    ) -> models.UpdateResult:
        """Removes fields of payloads."""
        return self._change("delete_payload", collection_name, points, options, keys=list(keys))

    def clear_payload(self, collection_name: str, points_selector: Any, **options: object) -> models.UpdateResult:  # noqa: ANN401
        """Removes payloads."""
        return self._change("clear_payload", collection_name, points_selector, options)

    def batch_update_points(
        self, collection_name: str, update_operations: Sequence[Any], **options: object
    ) -> list[models.UpdateResult]:
        """Several writes in their order. One that is refused ends it; those before it stay."""
        check_options("batch_update_points", options)
        return [self._operation(collection_name, operation) for operation in update_operations]

    def create_payload_index(
        self,
        collection_name: str,
        field_name: str,
        field_schema: Any = None,  # noqa: ANN401 - a type, or parameters
        field_type: Any = None,  # noqa: ANN401 - its old name
        **options: object,
    ) -> models.UpdateResult:
        """Makes an index for a payload field: filters become fast, and ordering and facets possible."""
        check_options("create_payload_index", options)
        schema = plain(field_schema if field_schema is not None else field_type)
        if schema is None:
            raise ValueError('create_payload_index needs a field_schema, such as "keyword"')
        schema = getattr(schema, "value", schema)
        with self._recording(collection_name) as (name, settings):
            self._call("create_index", name, field=field_name, schema=schema)
            _record_index(settings, field_name, schema)
        return done()

    def delete_payload_index(self, collection_name: str, field_name: str, **options: object) -> models.UpdateResult:
        """Removes the index of a payload field."""
        check_options("delete_payload_index", options)
        with self._recording(collection_name) as (name, settings):
            self._call("delete_index", name, field=field_name)
            _record_index(settings, field_name, None)
        return done()

    def _upsert(
        self,
        collection_name: str,
        points: Iterable[Point],
        update_filter: models.Filter | None,
        update_mode: models.UpdateMode | None,
    ) -> None:
        packer = Packer()
        packed = pack_points(points, self._schema(collection_name), packer)
        mode = getattr(update_mode, "value", update_mode)
        try:
            self._call("upsert", collection_name, packer, points=packed, condition=plain(update_filter), mode=mode)
        except (ValueError, TypeError):
            check_payloads(packed)
            raise

    def _check_points(self, collection_name: str, batches: Iterable[list[Point]]) -> None:
        schema = self._schema(collection_name)
        for batch in batches:
            check_payloads(pack_points(batch, schema, Packer()))

    def _change(
        self,
        change: str,
        collection_name: str,
        selector: Any,  # noqa: ANN401
        options: Mapping[str, object],
        **arguments: object,
    ) -> models.UpdateResult:
        check_options(change, options)
        self._call("change", collection_name, change=change, **selection(selector), **arguments)
        return done()

    def _operation(self, collection_name: str, operation: Any) -> models.UpdateResult:  # noqa: ANN401
        for kind, apply in _OPERATIONS.items():
            if isinstance(operation, kind):
                return apply(self, collection_name, operation)
        raise TypeError(f"batch_update_points: {type(operation).__name__} is no update operation")


def _record_index(settings: dict[str, Any], field_name: str, schema: Any) -> None:  # noqa: ANN401
    """Remembers the parameters of an index, which the engine does not give back."""
    indexes = {key: value for key, value in settings.get("payload_schema", {}).items() if key != field_name}
    if isinstance(schema, dict):
        indexes[field_name] = schema
    if indexes or "payload_schema" in settings:
        settings["payload_schema"] = indexes


def _rows(vectors: Any) -> Iterator[Any]:  # noqa: ANN401
    """One vector struct per point."""
    if not isinstance(vectors, Mapping):
        yield from vectors
        return
    if len({len(column) for column in vectors.values()}) > 1:
        raise ValueError("Each named vector should have the same number of vectors")
    for row in zip(*vectors.values(), strict=True):
        yield dict(zip(vectors, row, strict=True))


def _given(operation: Any) -> Any:  # noqa: ANN401
    """The points that an operation of a batch selects."""
    if operation.points is not None:
        return operation.points
    if operation.filter is None:
        raise ValueError("No filter or points provided")
    return operation.filter


def _upsert_operation(backend: PointsMixin, name: str, operation: models.UpsertOperation) -> models.UpdateResult:
    upsert = operation.upsert
    points = upsert.batch if isinstance(upsert, models.PointsBatch) else upsert.points
    return backend.upsert(name, points, upsert.update_filter, upsert.update_mode)


_OPERATIONS: Mapping[type, Callable[[PointsMixin, str, Any], models.UpdateResult]] = {
    models.UpsertOperation: _upsert_operation,
    models.DeleteOperation: lambda backend, name, op: backend.delete(name, op.delete),
    models.SetPayloadOperation: lambda backend, name, op: backend.set_payload(
        name, op.set_payload.payload, _given(op.set_payload), op.set_payload.key
    ),
    models.OverwritePayloadOperation: lambda backend, name, op: backend.overwrite_payload(
        name, op.overwrite_payload.payload, _given(op.overwrite_payload)
    ),
    models.DeletePayloadOperation: lambda backend, name, op: backend.delete_payload(
        name, op.delete_payload.keys, _given(op.delete_payload)
    ),
    models.ClearPayloadOperation: lambda backend, name, op: backend.clear_payload(name, op.clear_payload),
    models.UpdateVectorsOperation: lambda backend, name, op: backend.update_vectors(
        name, op.update_vectors.points, op.update_vectors.update_filter
    ),
    models.DeleteVectorsOperation: lambda backend, name, op: backend.delete_vectors(
        name, op.delete_vectors.vector, _given(op.delete_vectors)
    ),
}
