"""What a Qdrant server keeps and does, on top of a client that stores and searches."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse
from qdrant_client.local.payload_value_setter import merge_payload
from qdrant_client.local.qdrant_local import QdrantLocal

from tests.qdrant_server.settings import Settings, first_config, indexed_vectors, update
from tests.qdrant_server.strict import SETTING, missing_index

METADATA_SINCE = (1, 16)


class Refusal(Exception):
    """What a server answers with a status of its own."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        self.status, self.message, self.retry_after = status, message, retry_after
        super().__init__(message)


class Store:
    """The collections of a server.

    Args:
        backend: Stores and searches; one call at a time.
        version: Which server to be. Before 1.16 collections have no metadata.
        strict: Whether filters on fields without a payload index are refused, as Qdrant Cloud does it.
        settings_file: Where the settings of collections survive the process; None keeps them in memory.
    """

    def __init__(
        self,
        backend: QdrantClient,
        *,
        version: str = "1.20.0",
        strict: bool = False,
        settings_file: Path | None = None,
    ) -> None:
        self.backend = backend
        self.version = version
        self.strict = strict
        self.statuses: list[models.CollectionStatus] = []
        """What the next calls of get_collection say; "grey" stays until the collection is updated."""
        self._simulated = isinstance(getattr(backend, "_client", None), QdrantLocal)
        self._settings = Settings(settings_file)
        self._lock = threading.RLock()
        self._operations = 0

    def do(self, operation: str, collection: str, body: Any, *, wait: bool) -> Any:
        """Carry out an operation.

        Args:
            operation: The name of the client's method.
            collection: Its name, or an alias; "" where there is none.
            body: The client's model of the request.
            wait: False is answered at once, and what goes wrong later is not told, as a server does it.

        Raises:
            Refusal: With the status that a server gives.
        """
        act: Callable[..., Any] = self._write if operation in POINT_WRITES else getattr(self, f"_{operation}")
        with self._lock:
            if collection and operation not in _NEED_NO_COLLECTION:
                self._must_exist(collection)
            try:
                return act(collection, body) if collection else act(body)
            except Refusal:
                if wait or operation not in POINT_WRITES:
                    raise
                return self._done(models.UpdateStatus.ACKNOWLEDGED)
            except Exception as error:
                if wait or operation not in POINT_WRITES:
                    raise _refusal(error) from error
                return self._done(models.UpdateStatus.ACKNOWLEDGED)

    # -------------------------------------------------------------------------------------------- collections

    def _info(self, _: None) -> models.VersionInfo:
        return models.VersionInfo(title="qdrant - vector search engine", version=self.version, commit="0" * 40)

    def _get_collections(self, _: None) -> models.CollectionsResponse:
        return self.backend.get_collections()

    def _collection_exists(self, name: str, _: None) -> models.CollectionExistence:
        return models.CollectionExistence(exists=self.backend.collection_exists(name))

    def _create_collection(self, name: str, body: models.CreateCollection) -> bool:
        if self.backend.collection_exists(name):
            raise Refusal(409, f"Wrong input: Collection `{name}` already exists!")
        body.metadata = body.metadata if self._has_metadata else None
        given = {key: value for key, value in body if value is not None}
        given["vectors_config"] = given.pop("vectors", {})
        if "sparse_vectors" in given:
            given["sparse_vectors_config"] = given.pop("sparse_vectors")
        self.backend.create_collection(name, **_accepted_by_backend(given))
        self._settings.configs[name] = config = first_config(body)
        if self.strict:
            config.strict_mode_config = SETTING
        self._settings.indexes[name] = {}
        self._settings.save()
        return True

    def _update_collection(self, name: str, body: models.UpdateCollection) -> bool:
        name = self._resolve(name)
        config = self._config(name)
        update(config, body)
        if body.metadata is not None and self._has_metadata:
            config.metadata = merge_payload(dict(config.metadata or {}), body.metadata)
            self.backend.update_collection(name, metadata=body.metadata)
        self.statuses = [status for status in self.statuses if status != models.CollectionStatus.GREY]
        self._settings.save()
        return True

    def _delete_collection(self, name: str, _: None) -> bool:
        self._settings.forget(name)
        existed = self.backend.collection_exists(name)
        if existed:
            self.backend.delete_collection(name)
        self._settings.save()
        return existed

    def _get_collection(self, name: str, _: None) -> models.CollectionInfo:
        name = self._resolve(name)
        info = self.backend.get_collection(name).model_copy(deep=True)
        info.config = self._config(name).model_copy(deep=True)
        points = info.points_count or 0
        indexes = self._settings.indexes.get(name, {})
        info.payload_schema = {field: index.model_copy(update={"points": points}) for field, index in indexes.items()}
        info.indexed_vectors_count = indexed_vectors(info.config, points)
        info.status = self._status()
        return info

    def _status(self) -> models.CollectionStatus:
        if not self.statuses:
            return models.CollectionStatus.GREEN
        grey = self.statuses[0] == models.CollectionStatus.GREY
        return self.statuses[0] if grey else models.CollectionStatus(self.statuses.pop(0))

    def _update_collection_aliases(self, body: models.ChangeAliasesOperation) -> bool:
        return self.backend.update_collection_aliases(change_aliases_operations=body.actions)

    def _get_aliases(self, _: None) -> models.CollectionsAliasesResponse:
        return self.backend.get_aliases()

    def _get_collection_aliases(self, name: str, _: None) -> models.CollectionsAliasesResponse:
        return self.backend.get_collection_aliases(name)

    def _create_payload_index(self, name: str, body: models.CreateFieldIndex) -> models.UpdateResult:
        schema = body.field_schema
        if schema is None:
            raise Refusal(400, "Bad request: Can't auto-detect field type, please specify `field_schema`")
        kind = schema if isinstance(schema, models.PayloadSchemaType) else models.PayloadSchemaType(schema.type.value)
        params = None if isinstance(schema, models.PayloadSchemaType) else schema
        index = models.PayloadIndexInfo(data_type=kind, params=params, points=0)
        if not self._simulated or getattr(schema, "scoring", None):
            self.backend.create_payload_index(name, body.field_name, schema)
        self._settings.indexes.setdefault(self._resolve(name), {})[body.field_name] = index
        self._settings.save()
        return self._done()

    def _delete_payload_index(self, name: str, body: str) -> models.UpdateResult:
        if self._settings.indexes.get(self._resolve(name), {}).pop(body, None) is not None and not self._simulated:
            self.backend.delete_payload_index(name, body)
        self._settings.save()
        return self._done()

    # -------------------------------------------------------------------------------------------- points, writing

    def _write(self, name: str, body: Any) -> models.UpdateResult | list[models.UpdateResult]:
        if isinstance(body, models.UpdateOperations):
            return [self._write_one(name, operation) for operation in body.operations]
        return self._write_one(name, body)

    def _write_one(self, name: str, operation: models.UpdateOperation) -> models.UpdateResult:
        change = next(iter(operation.__dict__.values()))
        WRITES[type(operation)](self, name, change)
        return self._done()

    def _delete(self, name: str, selector: models.PointsSelector) -> None:
        self._check_filter(name, getattr(selector, "filter", None))
        self.backend.delete(name, points_selector=selector)

    def _clear_payload(self, name: str, selector: models.PointsSelector) -> None:
        self._check_filter(name, getattr(selector, "filter", None))
        self.backend.clear_payload(name, points_selector=selector)

    def _set_payload(self, name: str, change: models.SetPayload) -> None:
        self.backend.set_payload(name, change.payload, self._selected(name, change), change.key)

    def _overwrite_payload(self, name: str, change: models.SetPayload) -> None:
        self.backend.overwrite_payload(name, change.payload, self._selected(name, change))

    def _delete_payload(self, name: str, change: models.DeletePayload) -> None:
        self.backend.delete_payload(name, change.keys, self._selected(name, change))

    def _update_vectors(self, name: str, change: models.UpdateVectors) -> None:
        self.backend.update_vectors(name, change.points)

    def _delete_vectors(self, name: str, change: models.DeleteVectors) -> None:
        self.backend.delete_vectors(name, change.vector, self._selected(name, change))

    def _upsert(self, name: str, upsert: models.PointsList | models.PointsBatch) -> None:
        points = upsert.points if isinstance(upsert, models.PointsList) else upsert.batch
        for point in points if isinstance(points, list) else ():
            _check_id(point.id)
        options: dict[str, Any] = {"update_filter": upsert.update_filter, "update_mode": upsert.update_mode}
        self.backend.upsert(name, points, **{key: value for key, value in options.items() if value is not None})

    def _selected(self, name: str, change: Any) -> list[Any] | models.Filter:
        if change.points is None and change.filter is None:
            raise Refusal(422, "Validation error in JSON body: either list of point ids or filter must be provided")
        if change.filter is not None:
            self._check_filter(name, change.filter)
            return cast(models.Filter, change.filter)
        known = {str(record.id) for record in self.backend.retrieve(name, change.points, with_payload=False)}
        for identifier in change.points:
            if str(identifier) not in known:
                raise Refusal(404, f"Not found: No point with id {identifier} found")
        return list(change.points)

    def _done(self, status: models.UpdateStatus = models.UpdateStatus.COMPLETED) -> models.UpdateResult:
        self._operations += 1
        return models.UpdateResult(operation_id=self._operations, status=status)

    # -------------------------------------------------------------------------------------------- points, reading

    def _retrieve(self, name: str, body: models.PointRequest) -> list[models.Record]:
        payload = True if body.with_payload is None else body.with_payload
        return self.backend.retrieve(name, body.ids, with_payload=payload, with_vectors=body.with_vector or False)

    def _scroll(self, name: str, body: models.ScrollRequest) -> models.ScrollResult:
        self._check_filter(name, body.filter)
        self._check_order(name, body.order_by)
        records, following = self.backend.scroll(
            name,
            scroll_filter=body.filter,
            limit=10 if body.limit is None else body.limit,
            order_by=body.order_by,
            offset=body.offset,
            with_payload=True if body.with_payload is None else body.with_payload,
            with_vectors=body.with_vector or False,
        )
        return models.ScrollResult(points=records, next_page_offset=following)

    def _count(self, name: str, body: models.CountRequest) -> models.CountResult:
        self._check_filter(name, body.filter)
        return self.backend.count(name, count_filter=body.filter, exact=body.exact is not False)

    def _facet(self, name: str, body: models.FacetRequest) -> models.FacetResponse:
        self._check_filter(name, body.filter)
        if body.key not in self._settings.indexes.get(self._resolve(name), {}):
            raise Refusal(400, f"Bad request: No appropriate index for faceting: `{body.key}`")
        return self.backend.facet(name, body.key, facet_filter=body.filter, limit=body.limit or 10)

    def _query_points(self, name: str, body: models.QueryRequest) -> models.QueryResponse:
        return self.backend.query_points(name, offset=body.offset, limit=body.limit or 10, **self._query(name, body))

    def _query_batch_points(self, name: str, body: models.QueryRequestBatch) -> list[models.QueryResponse]:
        return [self._query_points(name, search) for search in body.searches]

    def _query_points_groups(self, name: str, body: models.QueryGroupsRequest) -> models.GroupsResult:
        return self.backend.query_points_groups(
            name,
            group_by=body.group_by,
            limit=body.limit or 3,
            group_size=body.group_size or 3,
            with_lookup=body.with_lookup,
            **self._query(name, body),
        )

    def _query(self, name: str, body: models.QueryRequest | models.QueryGroupsRequest) -> dict[str, Any]:
        self._check_filter(name, body.filter)
        prefetch = body.prefetch if isinstance(body.prefetch, list) else [body.prefetch] if body.prefetch else []
        self._check_prefetch(name, prefetch)
        return {
            "query": body.query,
            "using": body.using,
            "prefetch": [self._for_backend(stage) for stage in prefetch] or None,
            "query_filter": body.filter,
            "search_params": self._params(body.params),
            "with_payload": body.with_payload or False,
            "with_vectors": body.with_vector or False,
            "score_threshold": body.score_threshold,
            "lookup_from": body.lookup_from,
        }

    def _for_backend(self, stage: models.Prefetch) -> models.Prefetch:
        return stage.model_copy(update={"params": self._params(stage.params)})

    def _params(self, params: models.SearchParams | None) -> models.SearchParams | None:
        """Local mode warns of what it ignores, and a warning is an error in tests."""
        if params is None or not self._simulated:
            return params
        return models.SearchParams(idf=params.idf) if params.idf is not None else None

    # -------------------------------------------------------------------------------------------- checks

    def _must_exist(self, name: str) -> None:
        if not self.backend.collection_exists(name):
            raise Refusal(404, f"Not found: Collection `{name}` doesn't exist!")

    def _check_prefetch(self, name: str, stages: Iterable[models.Prefetch]) -> None:
        for stage in stages:
            self._check_filter(name, stage.filter)
            inner = stage.prefetch if isinstance(stage.prefetch, list) else [stage.prefetch] if stage.prefetch else []
            self._check_prefetch(name, inner)

    def _check_filter(self, name: str, condition: Any) -> None:
        if not self.strict or condition is None:
            return
        if (message := missing_index(condition, self._settings.indexes.get(self._resolve(name), {}))) is not None:
            raise Refusal(400, message)

    def _check_order(self, name: str, order_by: Any) -> None:
        key = order_by if isinstance(order_by, str) else getattr(order_by, "key", None)
        if key is not None and key not in self._settings.indexes.get(self._resolve(name), {}):
            raise Refusal(400, f"Bad request: No range index for `order_by` key: `{key}`. Please create one")

    # -------------------------------------------------------------------------------------------- settings

    @property
    def _has_metadata(self) -> bool:
        major, minor, *_ = self.version.split(".")
        return (int(major), int(minor)) >= METADATA_SINCE

    def _resolve(self, name: str) -> str:
        if name in self._settings.configs:
            return name
        aliases = {alias.alias_name: alias.collection_name for alias in self.backend.get_aliases().aliases}
        return aliases.get(name, name)

    def _config(self, name: str) -> models.CollectionConfig:
        if name not in self._settings.configs:  # made through the backend, not through the server
            self._settings.configs[name] = self.backend.get_collection(name).config.model_copy(deep=True)
        return self._settings.configs[name]


WRITES: Mapping[type[BaseModel], Callable[[Store, str, Any], None]] = {
    models.UpsertOperation: Store._upsert,
    models.DeleteOperation: Store._delete,
    models.SetPayloadOperation: Store._set_payload,
    models.OverwritePayloadOperation: Store._overwrite_payload,
    models.DeletePayloadOperation: Store._delete_payload,
    models.ClearPayloadOperation: Store._clear_payload,
    models.UpdateVectorsOperation: Store._update_vectors,
    models.DeleteVectorsOperation: Store._delete_vectors,
}
POINT_WRITES = frozenset({next(iter(operation.model_fields)) for operation in WRITES} | {"batch_update_points"})
_NEED_NO_COLLECTION = frozenset({"create_collection", "delete_collection", "collection_exists"})


def _refusal(error: Exception) -> Refusal:
    """The status that a server gives for what the backend says in its own way."""
    if isinstance(error, UnexpectedResponse):
        return Refusal(error.status_code or 500, bytes(error.content).decode(errors="replace"))
    if isinstance(error, OSError | MemoryError):
        return Refusal(500, f"Service internal error: {error}")
    message = str(error)
    return Refusal(400, message if message.startswith("Wrong input") else f"Wrong input: {message}")


def _check_id(identifier: Any) -> None:
    if isinstance(identifier, int):
        return
    try:
        uuid.UUID(str(identifier))
    except ValueError:
        message = f"value {identifier} is not a valid point ID, valid values are either an unsigned integer or a UUID"
        raise Refusal(400, f"Format error in JSON body: {message}") from None


def _accepted_by_backend(given: Mapping[str, Any]) -> dict[str, Any]:
    """What create_collection takes; shards and replicas are the facade's own business."""
    own = {"shard_number", "sharding_method", "replication_factor", "write_consistency_factor", "strict_mode_config"}
    return {key: value for key, value in given.items() if key not in own}
