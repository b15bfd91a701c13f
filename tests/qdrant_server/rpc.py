"""The gRPC interface: the client's own messages, translated to its REST models and back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message  # type: ignore[import-untyped]
from qdrant_client import grpc as messages
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_field_type_to_payload_schema

from tests.qdrant_server.gate import Dropped, Gate, Request
from tests.qdrant_server.store import Refusal

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
THREADS = 16


class Call(NamedTuple):
    """One call of the interface: message -> (collection, model), and result -> message."""

    operation: str
    parse: Callable[[Any], tuple[str, Any]]
    render: Callable[[Any], Message]


class RpcServer:
    """Listens on loopback.

    Args:
        gate: What answers.
        port: 0 for any free one.
    """

    def __init__(self, gate: Gate, port: int) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(ThreadPoolExecutor(THREADS, thread_name_prefix="qdrant-rpc"), options=options)
        for name, calls in {"Points": POINTS, "Collections": COLLECTIONS, "Qdrant": ROOT}.items():
            servicer = _servicer(name, getattr(messages, f"{name}Servicer"), calls, gate)
            getattr(messages, f"add_{name}Servicer_to_server")(servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def stop(self) -> None:
        """At once; calls under way are cut off."""
        self._server.stop(grace=None).wait()


def _servicer(service: str, base: type, calls: dict[str, Call], gate: Gate) -> Any:
    methods = {name: _method(f"/qdrant.{service}/{name}", call, gate) for name, call in calls.items()}
    return type(base.__name__, (base,), methods)()


def _method(route: str, call: Call, gate: Gate) -> Callable[[Any, Any, grpc.ServicerContext], Message]:
    def handle(_: Any, message: Any, context: grpc.ServicerContext) -> Message:
        headers = {str(name): str(value) for name, value in context.invocation_metadata()}
        wait = message.wait if "wait" in message.DESCRIPTOR.fields_by_name else True
        request = Request("grpc", call.operation, route, size=message.ByteSize(), wait=wait, headers=headers)
        try:
            gate.admit(request)
            request.collection, request.body = _parsed(call, message)
            return call.render(gate.answer(request))
        except Refusal as refusal:
            gate.refuse(request, refusal)
            if refusal.retry_after is not None:
                context.set_trailing_metadata((("retry-after", str(refusal.retry_after)),))
            context.abort(CODES[refusal.status], refusal.message)
        except Dropped:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        raise AssertionError("abort raises")

    return handle


def _parsed(call: Call, message: Any) -> tuple[str, Any]:
    try:
        return call.parse(message)
    except ValueError as error:  # pydantic's too
        raise Refusal(400, f"Wrong input: {error}") from error


# ------------------------------------------------------------------------------------------------ requests


def _named(message: Any) -> tuple[str, None]:
    return message.collection_name, None


def _nothing(_: Any) -> tuple[str, None]:
    return "", None


def _field(message: Any, name: str, convert: Callable[[Any], Any]) -> Any:
    return convert(getattr(message, name)) if message.HasField(name) else None


def _create(message: Any) -> tuple[str, models.CreateCollection]:
    plain = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")
    converted = {
        "vectors": ("vectors_config", GrpcToRest.convert_vectors_config),
        "sparse_vectors": ("sparse_vectors_config", GrpcToRest.convert_sparse_vector_config),
        "hnsw_config": ("hnsw_config", GrpcToRest.convert_hnsw_config_diff),
        "wal_config": ("wal_config", GrpcToRest.convert_wal_config_diff),
        "optimizers_config": ("optimizers_config", GrpcToRest.convert_optimizers_config_diff),
        "quantization_config": ("quantization_config", GrpcToRest.convert_quantization_config),
        "sharding_method": ("sharding_method", GrpcToRest.convert_sharding_method),
        "strict_mode_config": ("strict_mode_config", GrpcToRest.convert_strict_mode_config),
        "payload": ("payload", GrpcToRest.convert_payload_storage_params),
        "id_tracker": ("id_tracker", GrpcToRest.convert_id_tracker_params),
    }
    body = {name: _field(message, name, lambda value: value) for name in plain}
    body |= {name: _field(message, theirs, convert) for name, (theirs, convert) in converted.items()}
    metadata = GrpcToRest.convert_payload(message.metadata) if len(message.metadata) else None
    return message.collection_name, models.CreateCollection(**body, metadata=metadata)


def _update(message: Any) -> tuple[str, models.UpdateCollection]:
    return message.collection_name, GrpcToRest.convert_update_collection(message)


def _aliases(message: Any) -> tuple[str, models.ChangeAliasesOperation]:
    actions = [GrpcToRest.convert_alias_operations(action) for action in message.actions]
    return "", models.ChangeAliasesOperation(actions=actions)


def _create_index(message: Any) -> tuple[str, models.CreateFieldIndex]:
    schema: models.PayloadFieldSchema
    if message.HasField("field_index_params"):
        schema = GrpcToRest.convert_payload_schema_params(message.field_index_params)
    else:
        schema = GrpcToRest.convert_payload_schema_type(grpc_field_type_to_payload_schema(message.field_type))
    return message.collection_name, models.CreateFieldIndex(field_name=message.field_name, field_schema=schema)


def _delete_index(message: Any) -> tuple[str, str]:
    return message.collection_name, message.field_name


def _operation(kind: str) -> Callable[[Any], tuple[str, models.UpdateOperation]]:
    """A message of its own, such as UpsertPoints, as the one of the same meaning in a batch."""

    def parse(message: Any) -> tuple[str, models.UpdateOperation]:
        operation = messages.PointsUpdateOperation()
        inner = getattr(operation, kind)
        inner.SetInParent()
        for descriptor, value in message.ListFields():
            if descriptor.name in inner.DESCRIPTOR.fields_by_name:
                _copy(inner, descriptor.name, value)
        return message.collection_name, GrpcToRest.convert_points_update_operation(operation)

    return parse


def _copy(target: Any, name: str, value: Any) -> None:
    if isinstance(value, Message):
        getattr(target, name).CopyFrom(value)
    elif hasattr(getattr(target, name), "MergeFrom"):  # repeated fields and maps
        getattr(target, name).MergeFrom(value)
    else:
        setattr(target, name, value)


def _batch(message: Any) -> tuple[str, models.UpdateOperations]:
    operations = [GrpcToRest.convert_points_update_operation(operation) for operation in message.operations]
    return message.collection_name, models.UpdateOperations(operations=operations)


def _get(message: Any) -> tuple[str, models.PointRequest]:
    return message.collection_name, models.PointRequest(
        ids=[GrpcToRest.convert_point_id(identifier) for identifier in message.ids],
        with_payload=_field(message, "with_payload", GrpcToRest.convert_with_payload_interface),
        with_vector=_field(message, "with_vectors", GrpcToRest.convert_with_vectors_selector),
    )


def _scroll(message: Any) -> tuple[str, models.ScrollRequest]:
    return message.collection_name, models.ScrollRequest(
        offset=_field(message, "offset", GrpcToRest.convert_point_id),
        limit=_field(message, "limit", int),
        filter=_field(message, "filter", GrpcToRest.convert_filter),
        with_payload=_field(message, "with_payload", GrpcToRest.convert_with_payload_interface),
        with_vector=_field(message, "with_vectors", GrpcToRest.convert_with_vectors_selector),
        order_by=_field(message, "order_by", GrpcToRest.convert_order_by),
    )


def _count(message: Any) -> tuple[str, models.CountRequest]:
    condition = _field(message, "filter", GrpcToRest.convert_filter)
    return message.collection_name, models.CountRequest(filter=condition, exact=_field(message, "exact", bool))


def _facet(message: Any) -> tuple[str, models.FacetRequest]:
    return message.collection_name, models.FacetRequest(
        key=message.key,
        limit=_field(message, "limit", int),
        filter=_field(message, "filter", GrpcToRest.convert_filter),
        exact=_field(message, "exact", bool),
    )


def _query(message: Any) -> tuple[str, models.QueryRequest]:
    return message.collection_name, GrpcToRest.convert_query_points(message)


def _query_batch(message: Any) -> tuple[str, models.QueryRequestBatch]:
    searches = [GrpcToRest.convert_query_points(search) for search in message.query_points]
    return message.collection_name, models.QueryRequestBatch(searches=searches)


def _query_groups(message: Any) -> tuple[str, models.QueryGroupsRequest]:
    return message.collection_name, models.QueryGroupsRequest(
        prefetch=[GrpcToRest.convert_prefetch_query(stage) for stage in message.prefetch] or None,
        query=_field(message, "query", GrpcToRest.convert_query),
        using=_field(message, "using", str),
        filter=_field(message, "filter", GrpcToRest.convert_filter),
        params=_field(message, "params", GrpcToRest.convert_search_params),
        score_threshold=_field(message, "score_threshold", float),
        with_payload=_field(message, "with_payload", GrpcToRest.convert_with_payload_interface),
        with_vector=_field(message, "with_vectors", GrpcToRest.convert_with_vectors_selector),
        lookup_from=_field(message, "lookup_from", GrpcToRest.convert_lookup_location),
        limit=_field(message, "limit", int),
        group_size=_field(message, "group_size", int),
        group_by=message.group_by,
        with_lookup=_field(message, "with_lookup", GrpcToRest.convert_with_lookup),
    )


# ------------------------------------------------------------------------------------------------ answers


def _flag(result: bool) -> Message:
    return messages.CollectionOperationResponse(result=result)


def _written(result: models.UpdateResult) -> Message:
    return messages.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))


def _all_written(results: list[models.UpdateResult]) -> Message:
    return messages.UpdateBatchResponse(result=[RestToGrpc.convert_update_result(result) for result in results])


def _records(records: list[models.Record]) -> list[Message]:
    for record in records:
        record.payload = record.payload or {}
    return [RestToGrpc.convert_record(record) for record in records]


def _scored(points: list[models.ScoredPoint]) -> list[Message]:
    return [RestToGrpc.convert_scored_point(point) for point in points]


def _scrolled(result: models.ScrollResult) -> Message:
    following = result.next_page_offset
    offset = None if following is None else RestToGrpc.convert_extended_point_id(following)
    return messages.ScrollResponse(result=_records(result.points), next_page_offset=offset)


def _facets(result: models.FacetResponse) -> Message:
    return messages.FacetResponse(hits=[RestToGrpc.convert_facet_value_hit(hit) for hit in result.hits])


def _found_in_batch(responses: list[models.QueryResponse]) -> Message:
    results = [messages.BatchResult(result=_scored(response.points)) for response in responses]
    return messages.QueryBatchResponse(result=results)


def _collections(result: models.CollectionsResponse) -> Message:
    described = [messages.CollectionDescription(name=collection.name) for collection in result.collections]
    return messages.ListCollectionsResponse(collections=described)


def _alias_list(result: models.CollectionsAliasesResponse) -> Message:
    aliases = [RestToGrpc.convert_alias_description(alias) for alias in result.aliases]
    return messages.ListAliasesResponse(aliases=aliases)


POINTS = {
    "Upsert": Call("upsert", _operation("upsert"), _written),
    "Delete": Call("delete", _operation("delete_points"), _written),
    "SetPayload": Call("set_payload", _operation("set_payload"), _written),
    "OverwritePayload": Call("overwrite_payload", _operation("overwrite_payload"), _written),
    "DeletePayload": Call("delete_payload", _operation("delete_payload"), _written),
    "ClearPayload": Call("clear_payload", _operation("clear_payload"), _written),
    "UpdateVectors": Call("update_vectors", _operation("update_vectors"), _written),
    "DeleteVectors": Call("delete_vectors", _operation("delete_vectors"), _written),
    "UpdateBatch": Call("batch_update_points", _batch, _all_written),
    "CreateFieldIndex": Call("create_payload_index", _create_index, _written),
    "DeleteFieldIndex": Call("delete_payload_index", _delete_index, _written),
    "Get": Call("retrieve", _get, lambda result: messages.GetResponse(result=_records(result))),
    "Scroll": Call("scroll", _scroll, _scrolled),
    "Count": Call(
        "count", _count, lambda result: messages.CountResponse(result=RestToGrpc.convert_count_result(result))
    ),
    "Facet": Call("facet", _facet, _facets),
    "Query": Call("query_points", _query, lambda result: messages.QueryResponse(result=_scored(result.points))),
    "QueryBatch": Call("query_batch_points", _query_batch, _found_in_batch),
    "QueryGroups": Call(
        "query_points_groups",
        _query_groups,
        lambda result: messages.QueryGroupsResponse(result=RestToGrpc.convert_groups_result(result)),
    ),
}
COLLECTIONS = {
    "Get": Call(
        "get_collection",
        _named,
        lambda info: messages.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info)),
    ),
    "List": Call("get_collections", _nothing, _collections),
    "Create": Call("create_collection", _create, _flag),
    "Update": Call("update_collection", _update, _flag),
    "Delete": Call("delete_collection", _named, _flag),
    "CollectionExists": Call(
        "collection_exists",
        _named,
        lambda result: messages.CollectionExistsResponse(result=messages.CollectionExists(exists=result.exists)),
    ),
    "UpdateAliases": Call("update_collection_aliases", _aliases, _flag),
    "ListAliases": Call("get_aliases", _nothing, _alias_list),
    "ListCollectionAliases": Call("get_collection_aliases", _named, _alias_list),
}
ROOT = {
    "HealthCheck": Call(
        "info",
        _nothing,
        lambda info: messages.HealthCheckReply(title=info.title, version=info.version, commit=info.commit),
    ),
}
