"""The shards of one store, opened when they are first used, and what can be done with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

from .filters import Json, Native, to_filter
from .nesting import MAX_LEVELS, check_key, check_nesting
from .queries import LookUp, QueryReader, to_order, to_payload_selector, to_vector
from .settings import datatype, index_schema, member, modifier, multivector, shard_config
from .wire import Packer, Words

FLUSH_EVERY = 64 << 20
"""Bytes of messages after which the log is cut: it holds all that was written since, and is read again at the start."""
WRITES = frozenset({"upsert", "update_vectors", "change"})
Reply = tuple[dict[str, Any], Packer | None]
DONE: Reply = ({}, None)


class Shards:
    """Everything in the folder of a store.

    Args:
        root: The folder; shards are named by their path in it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, edge.EdgeShard] = {}
        self._unflushed: dict[str, int] = {}

    def handle(self, request: Json, words: Words) -> Reply:
        """Does what a message asks for; acknowledged is what is in the log.

        Raises:
            Exception: What qdrant_edge refuses, as it says it.
        """
        operation: Callable[[Json, Words], Reply] = getattr(self, f"do_{request['op']}")
        return operation(request, words)

    def account(self, request: Json, size: int) -> None:
        """After a request of `size` bytes was answered: flushes a shard to which enough was written."""
        name = request.get("shard", "")
        if request["op"] in WRITES and name in self._open:
            self._unflushed[name] = self._unflushed.get(name, 0) + size
            if self._unflushed[name] >= FLUSH_EVERY:
                self._flush(name)

    def close(self) -> None:
        """Closes every shard, which writes them to the disk."""
        for name in list(self._open):
            self._close(name)

    def do_create(self, request: Json, _words: Words) -> Reply:
        """A new, empty shard."""
        folder = self._root / request["shard"]
        folder.mkdir(parents=True)
        self._open[request["shard"]] = edge.EdgeShard.create(str(folder), shard_config(request["config"]))
        return DONE

    def do_configure(self, request: Json, _words: Words) -> Reply:
        """Other settings, for what is optimized from now on."""
        config = shard_config(request["config"])
        self._close(request["shard"])
        folder = str(self._root / request["shard"])
        self._open[request["shard"]] = edge.EdgeShard.load(folder, config)
        return DONE

    def do_drop(self, request: Json, _words: Words) -> Reply:
        """Closes a shard and renames the folder it is in, if it is there, before anybody can open it again."""
        self._close(request["shard"])
        with contextlib.suppress(FileNotFoundError):  # a deletion that was cut short
            os.replace((self._root / request["shard"]).parent, self._root / request["garbage"])
        return DONE

    def do_ping(self, _request: Json, _words: Words) -> Reply:
        """Says that this process is there, and so has the lock."""
        return DONE

    def do_flush(self, request: Json, _words: Words) -> Reply:
        """Writes a shard to the disk and cuts its log."""
        self._flush(request["shard"])
        return DONE

    def do_optimize(self, request: Json, _words: Words) -> Reply:
        """Builds graphs and compressed vectors; takes from seconds to hours."""
        shard = self._shard(request)
        changed = shard.optimize()
        self._flush(request["shard"])
        return {"changed": changed}, None

    def do_info(self, request: Json, _words: Words) -> Reply:
        """Counts, and the payload indexes."""
        info = self._shard(request).info()
        schema = {
            name: {"data_type": str(index.data_type).rsplit(".", 1)[-1].lower(), "points": index.points}
            for name, index in info.payload_schema.items()
        }
        counts = {name: getattr(info, name) for name in ("points_count", "indexed_vectors_count", "segments_count")}
        return {**counts, "payload_schema": schema}, None

    def do_upsert(self, request: Json, words: Words) -> Reply:
        """New points, or new versions of points."""
        mode = request.get("mode")
        points = [edge.Point(p["id"], _struct(p["vector"], words), _payload(p)) for p in request["points"]]
        operation = edge.UpdateOperation.upsert_points(
            points, _stored_filter(request.get("condition")), None if mode is None else member(edge.UpdateMode, mode)
        )
        self._update(request, operation)
        return DONE

    def do_update_vectors(self, request: Json, words: Words) -> Reply:
        """Other vectors for points that exist."""
        points = [edge.PointVectors(point["id"], _struct(point["vector"], words)) for point in request["points"]]
        self._update(request, edge.UpdateOperation.update_vectors(points, _stored_filter(request.get("condition"))))
        return DONE

    def do_change(self, request: Json, _words: Words) -> Reply:
        """Deletes points or vectors, or changes payloads, of the points that are selected."""
        name, arguments = _CHANGES[request["change"]]
        given = [request.get(argument) for argument in arguments]
        parts = [check_key(key) for key in (request.get("key"), *request.get("keys", ())) if key is not None]
        check_nesting(request.get("payload"), "the payload", MAX_LEVELS - max(parts, default=0))
        if "filter" in request:
            operation = getattr(edge.UpdateOperation, f"{name}_by_filter")(_stored_filter(request["filter"]), *given)
        else:
            operation = getattr(edge.UpdateOperation, name)(request["ids"], *given)
        self._update(request, operation)
        return DONE

    def do_create_index(self, request: Json, _words: Words) -> Reply:
        """An index for a payload field."""
        schema = index_schema(request["schema"])
        check_key(request["field"])
        self._update(request, edge.UpdateOperation.create_field_index(request["field"], schema))
        return DONE

    def do_delete_index(self, request: Json, _words: Words) -> Reply:
        """Drops the index of a payload field."""
        self._update(request, edge.UpdateOperation.delete_field_index(request["field"]))
        return DONE

    def do_create_vector(self, request: Json, _words: Words) -> Reply:
        """One more named vector."""
        name, params = request["name"], request["params"]
        if request["kind"] == "sparse":
            operation = edge.UpdateOperation.create_sparse_vector(
                name, modifier(params.get("modifier")), datatype(params.get("datatype"))
            )
        else:
            operation = edge.UpdateOperation.create_dense_vector(
                name,
                params["size"],
                member(edge.Distance, params["distance"]),
                multivector(params.get("multivector_config")),
                datatype(params.get("datatype")),
            )
        self._update(request, operation)
        return DONE

    def do_delete_vector(self, request: Json, _words: Words) -> Reply:
        """Drops a named vector of all points."""
        self._update(request, edge.UpdateOperation.delete_vector_name(request["name"]))
        return DONE

    def do_query(self, request: Json, words: Words) -> Reply:
        """Several queries; one list of points each."""
        shard = self._shard(request)
        reader = QueryReader(words, request["shard"], lambda name: self._look_up(self._shard({"shard": name})))
        queries = [reader.request(query) for query in request["queries"]]
        packer = Packer()
        asked = [query.get("with_vector") for query in request["queries"]]
        results = [
            [_scored(point, wanted, packer) for point in found]
            for wanted, found in zip(asked, _run(shard, queries), strict=True)
        ]
        return {"results": results}, packer

    def do_scroll(self, request: Json, _words: Words) -> Reply:
        """A page of points, and where the next begins."""
        order = request.get("order_by")
        scroll = edge.ScrollRequest(
            offset=request.get("offset"),
            limit=request["limit"],
            filter=to_filter(request.get("filter")),
            with_payload=to_payload_selector(request["with_payload"]),
            with_vector=request["with_vector"],
            order_by=None if order is None else to_order(order),
        )
        records, offset = self._shard(request).scroll(scroll)
        packer = Packer()
        next_offset = None if offset is None else _plain_id(offset)
        return {"records": [_record(record, packer) for record in records], "next": next_offset}, packer

    def do_retrieve(self, request: Json, _words: Words) -> Reply:
        """Points by their ids, those that exist, in the order of the engine."""
        selector = to_payload_selector(request["with_payload"])
        records = self._shard(request).retrieve(request["ids"], selector, request["with_vector"])
        packer = Packer()
        return {"records": [_record(record, packer) for record in records]}, packer

    def do_count(self, request: Json, _words: Words) -> Reply:
        """How many points match."""
        count = edge.CountRequest(exact=request["exact"], filter=to_filter(request.get("filter")))
        return {"count": self._shard(request).count(count)}, None

    def do_facet(self, request: Json, _words: Words) -> Reply:
        """How often each value of a payload field occurs."""
        facet = edge.FacetRequest(request["key"], request["limit"], request["exact"], to_filter(request.get("filter")))
        hits = self._shard(request).facet(facet)
        return {"hits": [{"value": hit.value, "count": hit.count} for hit in hits]}, None

    def _close(self, name: str) -> None:
        shard = self._open.pop(name, None)
        if shard is not None:
            shard.close()

    def _shard(self, request: Mapping[str, Any]) -> edge.EdgeShard:
        name = request["shard"]
        if name not in self._open:
            if not (self._root / name).is_dir():
                raise ValueError(f"Collection not found: there is no {name} any more")
            self._open[name] = edge.EdgeShard.load(str(self._root / name))
        return self._open[name]

    def _update(self, request: Json, operation: edge.UpdateOperation) -> None:
        self._shard(request).update(operation)

    def _flush(self, name: str) -> None:
        self._shard({"shard": name}).flush()
        self._unflushed.pop(name, None)

    @staticmethod
    def _look_up(shard: edge.EdgeShard) -> LookUp:
        def vector_of(point_id: str | int, name: str) -> Native:
            for record in shard.retrieve([point_id], False, [name]):
                vector = record.vector
                found = vector.get(name) if isinstance(vector, dict) else vector
                if found is not None:
                    return found
                raise ValueError(f"point {point_id} has no vector {name!r} to query by")
            raise ValueError(f"Point with id {point_id} is not found in the collection")

        return vector_of


_CHANGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "delete": ("delete_points", ()),
    "delete_vectors": ("delete_vectors", ("names",)),
    "set_payload": ("set_payload", ("payload", "key")),
    "overwrite_payload": ("overwrite_payload", ("payload", "key")),
    "delete_payload": ("delete_payload", ("keys",)),
    "clear_payload": ("clear_payload", ()),
}
"""The name of the operation in qdrant_edge, and its arguments after the selection of points."""


def _run(shard: edge.EdgeShard, queries: list[edge.QueryRequest]) -> Iterable[list[edge.ScoredPoint]]:
    if len(queries) == 1:
        return [shard.query(queries[0])]
    return shard.query_batch(edge.QueryBatchRequest(queries))


def _payload(point: Json) -> dict[str, Any] | None:
    payload: dict[str, Any] | None = point.get("payload")
    check_nesting(payload, f"the payload of point {point['id']}")
    return payload


def _stored_filter(value: Json | None) -> edge.Filter | None:
    """The filter of a write, which goes into the log with it."""
    check_nesting(value, "the filter")
    return to_filter(value)


def _struct(vectors: Json, words: Words) -> dict[str, Native]:
    return {name: to_vector(reference, words) for name, reference in vectors.items()}


def _plain_id(value: Native) -> str | int:
    return value if isinstance(value, int) else str(value)


def _record(record: Native, packer: Packer) -> dict[str, Any]:
    plain: dict[str, Any] = {"id": _plain_id(record.id)}
    if record.payload is not None:
        plain["payload"] = record.payload
    if record.vector is not None:
        plain["vector"] = _pack_struct(record.vector, packer)
    if record.order_value is not None:
        plain["order_value"] = record.order_value
    return plain


def _scored(point: Native, with_vector: Native, packer: Packer) -> dict[str, Any]:
    plain = {**_record(point, packer), "score": point.score, "version": point.version}
    if not with_vector:
        plain.pop("vector", None)  # which MMR returns unasked (qdrant-edge-py 0.9)
    return plain


def _pack_struct(vector: Native, packer: Packer) -> dict[str, Any]:
    if isinstance(vector, dict):
        return {name: _pack(item, packer) for name, item in vector.items()}
    return _pack(vector, packer)


def _pack(vector: Native, packer: Packer) -> dict[str, Any]:
    if isinstance(vector, edge.SparseVector):
        values = np.asarray(vector.values, dtype=np.float32)
        return packer.sparse(np.asarray(vector.indices, dtype=np.uint32), values)
    return packer.dense(np.asarray(vector, dtype=np.float32))
