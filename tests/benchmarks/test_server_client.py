"""The client that benchmarks other servers, against a server of a few lines in a thread."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from benchmarks.peers.servers import __main__ as program
from benchmarks.peers.servers.apis import APIS, AnswerError, Request
from benchmarks.peers.servers.client import Client
from benchmarks.workloads import Item, select
from qwen_retrieval.specs import QWEN3_RERANKER

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]
"""Path and body of a request to status and body of the answer."""

EMBEDDING = [name for name, api in APIS.items() if api.kind == "embedding"]
RERANKING = [name for name, api in APIS.items() if api.kind == "reranking"]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The URL of a server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            status, body = answer(self.path, json.loads(self.rfile.read(length)))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unit_vector(text: str) -> list[float]:
    """A direction that depends on the text's length."""
    angle = float(len(text))
    return [float(np.cos(angle)), float(np.sin(angle))]


def as_vllm(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Base64, last text first: the index says what is what."""
    assert path == "/v1/embeddings"
    rows = [
        {"index": i, "embedding": base64.b64encode(np.array(unit_vector(text), "<f4").tobytes()).decode()}
        for i, text in enumerate(body["input"])
    ]
    return 200, {"data": rows[::-1]}


def as_infinity(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    assert path == "/embeddings"
    return 200, {"data": [{"index": i, "embedding": unit_vector(text)} for i, text in enumerate(body["input"])]}


def as_tei(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    assert path == "/embed"
    assert body.keys() == {"inputs", "normalize", "truncate"}
    assert (body["normalize"], body["truncate"]) == (True, False)
    return 200, [unit_vector(text) for text in body["inputs"]]


def ranked(body: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Best first, as rerankers answer; the score is the length of query and document."""
    scores = [len(body["query"]) + len(text) for text in body["documents"]]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [{"index": i, key: float(scores[i])} for i in order]


def as_reranker(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    assert path in ("/v1/rerank", "/rerank")
    return 200, {"results": ranked(body, "relevance_score")}


def as_sglang(path: str, body: dict[str, Any]) -> tuple[int, Any]:
    assert path == "/v1/rerank"
    assert body["return_documents"] is False
    return 200, ranked(body, "score")


SERVERS: dict[str, Answer] = {
    "openai": as_vllm,
    "infinity": as_infinity,
    "tei": as_tei,
    "vllm-rerank": as_reranker,
    "infinity-rerank": as_reranker,
    "sglang-rerank": as_sglang,
}


def test_every_api_is_tested() -> None:
    assert SERVERS.keys() == APIS.keys()


@pytest.mark.parametrize("name", EMBEDDING)
def test_vectors_come_back_in_the_order_of_the_texts(name: str) -> None:
    requests = [Request(("a", "bbb")), Request(("cc",)), Request(("dddd", "e"))]
    with serving(SERVERS[name]) as url:
        found = Client(url, APIS[name], concurrency=2).run(requests)
    expected = [unit_vector(text) for text in ("a", "bbb", "cc", "dddd", "e")]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.latencies.shape == (3,)


@pytest.mark.parametrize("name", RERANKING)
def test_scores_come_back_in_the_order_of_the_documents(name: str) -> None:
    requests = [Request(("a", "bbb"), query="q"), Request(("cc",), query="long")]
    with serving(SERVERS[name]) as url:
        found = Client(url, APIS[name], concurrency=2).run(requests)
    assert found.values.tolist() == [2, 4, 6]


def test_requests_are_sent_at_the_same_time_but_no_more_than_allowed() -> None:
    together = threading.Barrier(3)
    now, most, lock = 0, 0, threading.Lock()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(timeout=30)
        with lock:
            now -= 1
        return as_infinity(path, body)

    with serving(answer) as url:
        Client(url, APIS["infinity"], concurrency=3).run([Request(("a",))] * 6)
    assert most == 3


def test_the_served_name_is_sent_if_there_is_one() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        bodies.append(body)
        return as_vllm(path, body)

    with serving(answer) as url:
        Client(url, APIS["openai"], model="qwen").run([Request(("a",))])
        Client(url, APIS["openai"]).run([Request(("a",))])
    assert bodies[0]["model"] == "qwen"
    assert "model" not in bodies[1]


def test_an_error_of_the_server_is_shown_with_its_status_and_message() -> None:
    with (
        serving(lambda *_: (422, {"error": "batch size 64 > maximum allowed batch size 32"})) as url,
        pytest.raises(AnswerError, match=r"/embed answered 422 .*maximum allowed batch size 32"),
    ):
        Client(url, APIS["tei"]).run([Request(("a",))])


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("tei", [[1.0, 0.0]], "must answer for 2 texts"),
        ("tei", [[1.0, 0.0]] * 3, "was sent 2 texts, but answered for 3"),
        ("tei", [[1.0, 0.0], [0.9, 0.0]], "unit length"),
        ("tei", [[1.0, 0.0], [1.0]], "must answer for 2 texts"),
        ("tei", [[1.0, 0.0], [float("nan"), 0.0]], "not finite"),
        ("openai", {"data": [{"index": 0, "embedding": [1.0]}] * 2}, "must answer for 2 texts"),
        ("openai", {"data": [{"index": i, "embedding": "no base64"} for i in (0, 1)]}, "must answer for 2 texts"),
        ("openai", {"object": "error"}, "must answer for 2 texts"),
        ("vllm-rerank", {"results": [{"index": 1, "relevance_score": 1.0}]}, "must answer for 2 texts"),
    ],
)  # fmt: skip
def test_answers_with_wrong_counts_or_lengths_are_refused(name: str, body: object, message: str) -> None:
    query = "q" if name in RERANKING else None
    with serving(lambda *_: (200, body)) as url, pytest.raises(AnswerError, match=message):
        Client(url, APIS[name]).run([Request(("a", "b"), query=query)])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://"])
def test_an_url_without_scheme_or_host_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must look like http://localhost:8000"):
        Client(url, APIS["tei"])


def test_pairs_are_sent_with_their_own_query_however_small_the_batch() -> None:
    (workload,) = select(["W8"])
    pairs = [("first", f"document {i}") for i in range(100)] + [("second", "another")]
    found = program.requests_of(workload, list(pairs), batch=64)
    assert [(one.query, len(one.texts)) for one in found] == [("first", 64), ("first", 36), ("second", 1)]
    assert found[2].texts == ("another",)


def test_queries_are_sent_with_the_published_template() -> None:
    (workload,) = select(["W5"])
    (found,) = program.requests_of(workload, ["a {query}", "b"], batch=8)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert found.texts == (f"Instruct: {task}\nQuery:a {{query}}", f"Instruct: {task}\nQuery:b")


def test_a_workload_that_the_api_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="/embed is for embedding, but W6 is not"):
        program.choose(APIS["tei"], ["W1", "W6"])


def words() -> Tokenizer:
    """Splits at spaces."""
    tokenizer = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def test_a_report_has_the_seconds_of_each_round_and_counts_the_template() -> None:
    (workload,) = select(["W6"])
    pairs: list[Item] = [("two words", f"document {i}") for i in range(5)]
    options = ["--api", "vllm-rerank", "--server", "fake", "--hardware", "none", "--rounds", "2", "--batch", "3"]
    with serving(as_reranker) as url:
        found = program.measure(program.parse([url, *options]), workload, pairs, words())
    assert (found["workload"], found["items"], found["requests"]) == ("W6", 5, 2)
    assert len(found["seconds"]["fake"]) == 2
    template, task = QWEN3_RERANKER.templates[0], QWEN3_RERANKER.default_instruction
    whole = template.prefix + template.instruction.format(instruction=task) + template.query + template.document
    added = len((whole + template.suffix).format(query="two words", document="document 1").split())
    assert found["given_tokens"] == 5 * added
    program.show([found])
