"""Sends requests to a server, several at a time, and takes the time."""

from __future__ import annotations

import http.client
import json
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from benchmarks.peers.servers.apis import AnswerError, Api, Request, read
from qwen_retrieval.types import FloatArray

TIMEOUT = 600.0
"""Seconds without a byte after which a request is given up."""

SHOWN = 2000
"""Characters of a server's error message that are shown."""


@dataclass(frozen=True, slots=True)
class Round:
    """All requests of a workload, once.

    Attributes:
        seconds: From the first request's start to the last answer's last byte.
        latencies: (requests,) float64 seconds from a request's start to its answer's last byte, in input order.
        decoding: Seconds in which the answers were parsed and checked afterwards, in one thread.
        values: What the server computed, in input order: (n, hidden) rows or (n,) scores.
    """

    seconds: float
    latencies: FloatArray
    decoding: float
    values: FloatArray


class Client:
    """Connections to one server, kept open for a round.

    Args:
        url: The server, such as ``http://localhost:8000``.
        api: How it is asked.
        concurrency: Requests on their way at the same time.
        model: The name that the server knows its model by; None if it does not ask.

    Raises:
        ValueError: The URL is none, or the concurrency is not positive.
    """

    def __init__(self, url: str, api: Api, *, concurrency: int = 1, model: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must look like http://localhost:8000, but got {url!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, but got {concurrency}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._url, self._path = url, parts.path.rstrip("/") + api.path
        self._api, self._model, self._concurrency = api, model, concurrency
        self._all = [kind(parts.hostname, parts.port, timeout=TIMEOUT) for _ in range(concurrency)]
        self._free: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        for connection in self._all:
            self._free.put(connection)

    def run(self, requests: Sequence[Request]) -> Round:
        """Send all requests and wait for all answers.

        Raises:
            AnswerError: An answer has a status other than 200, or is not what was asked for.
            OSError: The server cannot be reached.
        """
        bodies = [self._body(request) for request in requests]
        start = time.perf_counter()
        try:
            with ThreadPoolExecutor(self._concurrency) as threads:
                answers = list(threads.map(self._post, bodies))
            seconds = time.perf_counter() - start
        finally:
            self._close()  # a server may give up what stays idle until the next round
        start = time.perf_counter()
        values = [
            read(self._api, json.loads(text), len(request.texts))
            for request, (text, _) in zip(requests, answers, strict=True)
        ]
        decoding = time.perf_counter() - start
        return Round(seconds, np.array([taken for _, taken in answers]), decoding, np.concatenate(values))

    def _body(self, request: Request) -> bytes:
        named = {} if self._model is None else {"model": self._model}
        return json.dumps(named | self._api.payload(request)).encode()

    def _post(self, body: bytes) -> tuple[bytes, float]:
        with self._connection() as connection:
            start = time.perf_counter()
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            taken = time.perf_counter() - start
        if answer.status != 200:
            shown = text[:SHOWN].decode(errors="replace")
            raise AnswerError(f"{self._url}{self._api.path} answered {answer.status} {answer.reason}: {shown}")
        return text, taken

    def _close(self) -> None:
        for connection in self._all:
            connection.close()  # opens itself again

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = self._free.get()
        try:
            yield connection
        finally:
            self._free.put(connection)
