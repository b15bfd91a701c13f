"""What an error of a store means for a request: try again, send less, leave a point out, or give up.

Looked up in qdrant-client 1.20: ``http/api_client.py``, ``http/exceptions.py``, ``common/client_exceptions.py``,
``connection.py`` (gRPC) and ``local/``; what the server answers, in qdrant 1.19 ``src/actix/helpers.rs`` and
``src/tonic/mod.rs``.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from qdrant_qwen_retrieval.stores import status_of
from qwen_retrieval.errors import IngestError, StoreError


class Fault(Enum):
    """What to do about a failed request."""

    TRANSIENT = auto()
    """Send it again, later."""
    TOO_LARGE = auto()
    """Send it in smaller pieces."""
    BAD_POINT = auto()
    """A point in it will never be accepted."""
    FATAL = auto()
    """Nothing that is sent will be accepted."""


_TOO_LARGE = re.compile(r"larger than (allowed|max|limit)|too large|exceeds? (the )?(maximum|limit) .*size", re.I)
_DISK_FULL = re.compile(r"no space left|disk (space|is full)|out of disk", re.I)
_LOST_POINT = re.compile(r"no point with id", re.I)  # its payload should be rewritten, but somebody has deleted it
_UNUSABLE = re.compile(r"collection .*(not found|doesn't exist)|closed (channel|client)|client .*closed", re.I)

_BROKEN_CONNECTION = httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError
_REFUSED_BY_THE_CLIENT = ValueError, TypeError, OverflowError, KeyError
"""What the client raises for a point that it cannot put into a message, and qdrant-client's local mode for any."""


def fault_of(error: BaseException) -> Fault | None:
    """What to do about `error`; None if it does not come from the store at all."""
    if isinstance(error, IngestError):
        return Fault.FATAL
    if isinstance(error, StoreError):  # a client error that was explained, or the store's own end
        return (fault_of(error.__cause__) if error.__cause__ else None) or Fault.FATAL
    if isinstance(error, ResponseHandlingException):
        return Fault.TRANSIENT if isinstance(error.source, _BROKEN_CONNECTION) else Fault.FATAL
    if isinstance(error, QdrantException):  # the plain one: a Retry-After that the client cannot read
        return Fault.TRANSIENT
    if isinstance(error, UnexpectedResponse | grpc.RpcError):
        return _of_answer(*status_of(error))
    if isinstance(error, json.JSONDecodeError):
        return Fault.FATAL  # what answers is no Qdrant
    if isinstance(error, _REFUSED_BY_THE_CLIENT):
        return Fault.FATAL if _UNUSABLE.search(str(error)) else Fault.BAD_POINT
    return None


def _of_answer(status: int | None, detail: str) -> Fault:
    if _DISK_FULL.search(detail):
        return Fault.FATAL
    if status == 413 or (status in (400, 429) and _TOO_LARGE.search(detail)):
        return Fault.TOO_LARGE
    if status in (400, 409, 422) or (status == 404 and _LOST_POINT.search(detail)):
        return Fault.BAD_POINT
    if status is None or status in (408, 425, 429) or (status >= 500 and status != 501):
        return Fault.TRANSIENT
    return Fault.FATAL


def detail_of(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, UnexpectedResponse | grpc.RpcError):
        status, detail = status_of(error)
        return detail if status is None else f"{detail} (status {status})"
    if isinstance(error, ResponseHandlingException):
        error = error.source
    return " ".join(str(error).split())[:500] or type(error).__name__


def retry_after(error: BaseException) -> float:
    """Seconds that the store asks to wait; 0 if it does not say."""
    if isinstance(error, StoreError) and error.__cause__ is not None:
        return retry_after(error.__cause__)
    if isinstance(error, ResourceExhaustedResponse):
        return float(error.retry_after_s)
    if isinstance(error, QdrantException):
        return _seconds(str(error).partition("integer: ")[2])
    if isinstance(error, UnexpectedResponse):
        return _seconds(error.headers.get("retry-after", ""))
    if isinstance(error, grpc.RpcError) and hasattr(error, "trailing_metadata"):
        return _seconds(str(dict(error.trailing_metadata() or ()).get("retry-after", "")))
    return 0.0


def _seconds(value: str) -> float:
    """A Retry-After header: seconds, or a date (RFC 9110, section 10.2.3)."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
