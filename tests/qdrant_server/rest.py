"""The REST interface: routes, bodies and error bodies of a Qdrant server."""

from __future__ import annotations

import re
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from qdrant_client import models

from tests.qdrant_server.gate import Dropped, Gate, Request
from tests.qdrant_server.store import Refusal

LARGEST_BODY = 32 * 1024 * 1024  # service.max_request_size_mb


class Route(NamedTuple):
    """One line of the interface: `wrap` is the field of the model under which the body lies, "" if the body is it."""

    method: str
    path: str
    operation: str
    model: Any = None
    wrap: str = ""


_COLLECTION = "/collections/{name}"
_POINTS = f"{_COLLECTION}/points"
ROUTES = [
    Route("GET", "/", "info"),
    Route("GET", "/collections", "get_collections"),
    Route("POST", "/collections/aliases", "update_collection_aliases", models.ChangeAliasesOperation),
    Route("GET", "/aliases", "get_aliases"),
    Route("GET", f"{_COLLECTION}/aliases", "get_collection_aliases"),
    Route("GET", _COLLECTION, "get_collection"),
    Route("GET", f"{_COLLECTION}/exists", "collection_exists"),
    Route("PUT", _COLLECTION, "create_collection", models.CreateCollection),
    Route("PATCH", _COLLECTION, "update_collection", models.UpdateCollection),
    Route("DELETE", _COLLECTION, "delete_collection"),
    Route("PUT", f"{_COLLECTION}/index", "create_payload_index", models.CreateFieldIndex),
    Route("DELETE", f"{_COLLECTION}/index/{{field}}", "delete_payload_index"),
    Route("PUT", _POINTS, "upsert", models.UpsertOperation, "upsert"),
    Route("POST", f"{_POINTS}/delete", "delete", models.DeleteOperation, "delete"),
    Route("POST", f"{_POINTS}/payload", "set_payload", models.SetPayloadOperation, "set_payload"),
    Route("PUT", f"{_POINTS}/payload", "overwrite_payload", models.OverwritePayloadOperation, "overwrite_payload"),
    Route("POST", f"{_POINTS}/payload/delete", "delete_payload", models.DeletePayloadOperation, "delete_payload"),
    Route("POST", f"{_POINTS}/payload/clear", "clear_payload", models.ClearPayloadOperation, "clear_payload"),
    Route("PUT", f"{_POINTS}/vectors", "update_vectors", models.UpdateVectorsOperation, "update_vectors"),
    Route("POST", f"{_POINTS}/vectors/delete", "delete_vectors", models.DeleteVectorsOperation, "delete_vectors"),
    Route("POST", f"{_POINTS}/batch", "batch_update_points", models.UpdateOperations),
    Route("POST", _POINTS, "retrieve", models.PointRequest),
    Route("POST", f"{_POINTS}/scroll", "scroll", models.ScrollRequest),
    Route("POST", f"{_POINTS}/count", "count", models.CountRequest),
    Route("POST", f"{_COLLECTION}/facet", "facet", models.FacetRequest),
    Route("POST", f"{_POINTS}/query", "query_points", models.QueryRequest),
    Route("POST", f"{_POINTS}/query/batch", "query_batch_points", models.QueryRequestBatch),
    Route("POST", f"{_POINTS}/query/groups", "query_points_groups", models.QueryGroupsRequest),
]
_PATTERNS = [(route, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path) + "/?")) for route in ROUTES]
_PARSERS = {route.operation: TypeAdapter(route.model) for route in ROUTES if route.model is not None}


class Handler(BaseHTTPRequestHandler):
    """Answers what comes over one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RestServer

    def do_GET(self) -> None:
        """All methods alike."""
        self._started = time.perf_counter()
        try:
            status, headers, body = self._answer()
        except Dropped:
            self._hang_up()
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        """Silence: the gate keeps a log."""

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        gate = self.server.gate
        size = int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(size) if size <= LARGEST_BODY else self._overlong(size)
        path = urlsplit(self.path)
        found = _find(self.command, path.path)
        wait = parse_qs(path.query).get("wait", ["true" if found is None else "false"])[0] == "true"
        headers = {name.lower(): value for name, value in self.headers.items()}
        route = f"{self.command} {path.path}"
        request = Request("rest", found[0].operation if found else "", route, size=size, wait=wait, headers=headers)
        try:
            gate.admit(request)
            if found is None:
                raise Refusal(404, "")
            request.collection = found[1].get("name", "")
            request.body = _parse(found[0], found[1], content, size)
            result = gate.answer(request)
            bare = request.operation == "info"  # the only answer without an envelope
            return 200, _JSON, to_json(result) if bare else self._envelope(result=result, status="ok")
        except Refusal as refusal:
            gate.refuse(request, refusal)
            return self._refused(refusal)

    def _refused(self, refusal: Refusal) -> tuple[int, dict[str, str], bytes]:
        if refusal.status == 401:
            return 401, {"Content-Type": "text/plain; charset=utf-8"}, refusal.message.encode()
        headers = _JSON if refusal.retry_after is None else {**_JSON, "Retry-After": str(refusal.retry_after)}
        return refusal.status, headers, self._envelope(status={"error": refusal.message})

    def _envelope(self, **content: Any) -> bytes:
        return to_json({**content, "time": time.perf_counter() - self._started}, fallback=_number)

    def _overlong(self, size: int) -> bytes:
        while size > 0:
            size -= len(self.rfile.read(min(1 << 20, size)))
        self.close_connection = True
        return b""

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class RestServer(ThreadingHTTPServer):
    """Listens on loopback.

    Args:
        gate: What answers.
        port: 0 for any free one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, gate: Gate, port: int) -> None:
        self.gate = gate
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no error here."""


def _find(method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    for route, pattern in _PATTERNS:
        if route.method == method and (match := pattern.fullmatch(path)):
            return route, {name: unquote(value) for name, value in match.groupdict().items()}
    return None


def _parse(route: Route, names: dict[str, str], content: bytes, size: int) -> Any:
    if size > LARGEST_BODY:  # 400, not 413: what the server's JSON extractor gives
        limit = f"JSON payload ({size} bytes) is larger than allowed (limit: {LARGEST_BODY} bytes)"
        raise Refusal(400, f"Payload error: {limit}.")
    if route.model is None:
        return names.get("field")
    try:
        body = from_json(content, allow_inf_nan=False) if content else {}
        return _PARSERS[route.operation].validate_python({route.wrap: body} if route.wrap else body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise Refusal(400, f"Format error in JSON body: {first['loc']}: {first['msg']}") from error
    except ValueError as error:
        raise Refusal(400, f"Format error in JSON body: {error}") from error


def _number(value: Any) -> Any:
    return value.tolist()  # numpy


_JSON = {"Content-Type": "application/json"}
