"""Synthetic pairs, from an endpoint that is a thread of this process. Nobody sleeps."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_retrieval import Embedder
from qwen_retrieval.errors import EndpointError
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from qwen_retrieval.training.synthesis import (
    Chat,
    Document,
    FilterSettings,
    Journal,
    Pair,
    SynthesisReport,
    SynthesisSettings,
    filter_pairs,
    plan_tasks,
    synthesize,
)
from qwen_retrieval.training.synthesis.filters import near_duplicates, normalized
from qwen_retrieval.training.synthesis.personas import nearest_personas
from qwen_retrieval.training.synthesis.prompts import (
    Configuration,
    MalformedAnswerError,
    parse_configuration,
    parse_query,
    query_prompt,
)
from tests.command import run

KEY = "sk-very-secret-0123456789"
PERSONAS = ["A nurse on night shift", "A beekeeper", "A historian of trade", "A pilot", "A cook", "A judge"]
DOCUMENTS = [Document(f"Fact {n} about topic {n * 37}: it happened in {1900 + n}.", f"d{n}") for n in range(6)]
Reply = tuple[int, dict[str, str], Any]


def completion(content: str | None) -> Reply:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage}


def obliging(body: dict[str, Any]) -> Reply:
    """Chooses the first candidate, and asks for the passage's own number."""
    prompt = body["messages"][0]["content"]
    if "select the appropriate option" in prompt:
        first = re.findall(r"^1\. (.*)$", prompt, re.MULTILINE)[-1]
        return completion(
            json.dumps({"Character": first, "Question_Type": "acquire_knowledge", "Difficulty": "university"})
        )
    number = re.findall(r"Fact (\d+) ", prompt)[-1]
    return completion(json.dumps({"query": f"when did fact {number} happen"}))


class Endpoint:
    """Speaks chat completions at a free port, and remembers what it was asked."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Reply] = obliging
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.url = ""

    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.asked]

    def answer(self, body: dict[str, Any], key: str | None) -> Reply:
        with self.lock:
            self.asked.append(body)
            self.keys.append(key)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            return self.reply(body)
        finally:
            with self.lock:
                self.open -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, headers, value = self.endpoint.answer(body, self.headers["Authorization"])
        content = json.dumps(value).encode() if not isinstance(value, bytes) else value
        self.send_response_only(status)
        for name, text in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    handler = type("Bound", (Handler,), {"endpoint": endpoint})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served() as one:
        yield one


@pytest.fixture
def waits() -> list[float]:
    return []


Make = Callable[..., tuple[list[dict[str, Any]], SynthesisReport]]


@pytest.fixture
def make(endpoint: Endpoint, waits: list[float], tmp_path: Path) -> Make:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def call(documents: list[Document] = DOCUMENTS, **options: Any) -> tuple[list[dict[str, Any]], SynthesisReport]:
        chat = Chat(endpoint.url, "qwen3-32b", key=lambda: KEY, sleep=sleep)
        options = {"settings": SynthesisSettings(concurrency=2)} | options
        with Journal(tmp_path / "journal") as journal:
            return synthesize(documents, PERSONAS, chat, journal, **options)

    return call


def embedder() -> Embedder:
    return Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())


def once(*first: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Gives these replies, in turn, and then obliges."""
    left = list(first)
    return lambda body: left.pop(0) if left else obliging(body)


def test_each_document_gets_a_configuration_and_then_a_query(make: Make, endpoint: Endpoint) -> None:
    pairs, report = make(instruction="Find facts")
    assert [pair["query"] for pair in pairs] == [f"when did fact {n} happen" for n in range(6)]
    assert [pair["positive"] for pair in pairs] == [document.text for document in DOCUMENTS]
    assert pairs[3]["instruction"] == "Find facts"
    meta = pairs[3]["meta"]
    assert (meta["document"], meta["question_type"], meta["difficulty"]) == ("d3", "acquire_knowledge", "university")
    assert meta["character"] in PERSONAS
    asked = next(p for p in endpoint.prompts() if "**Requirment**\n" in p and DOCUMENTS[3].text in p)
    assert f"**Character**\n{meta['character']}\n" in asked
    assert f"should be {meta['words']} words" in asked
    assert (report.tasks, report.kept, report.usage.requests, report.usage.prompt_tokens) == (6, 6, 12, 120)


def test_a_second_run_asks_nothing_and_gives_the_same(make: Make, endpoint: Endpoint) -> None:
    first, _ = make()
    endpoint.asked.clear()
    second, report = make()
    assert (second, endpoint.asked, report.recalled) == (first, [], 12)


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(make: Make, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.reply = lambda body: obliging(body) if len(endpoint.asked) <= 5 else (403, {}, {})
    one = SynthesisSettings(concurrency=1)
    with pytest.raises(EndpointError, match="403"):
        make(settings=one)
    answered = endpoint.prompts()[:5]
    journal = tmp_path / "journal"
    journal.write_bytes(journal.read_bytes() + b'{"key": "cut sh')
    endpoint.asked.clear()
    endpoint.reply = obliging
    pairs, report = make(settings=one)
    assert (len(pairs), report.recalled, len(endpoint.asked)) == (6, 5, 7)
    assert set(endpoint.prompts()).isdisjoint(answered)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_malformed_answers_are_asked_again_with_what_was_wrong(make: Make, endpoint: Endpoint) -> None:
    endpoint.reply = once(completion("Sure! Here you are"), completion(None))
    pairs, report = make(DOCUMENTS[:1])
    assert (len(pairs), report.malformed, report.usage.requests) == (1, 0, 4)
    again = endpoint.asked[1]["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == "Sure! Here you are"
    assert "one JSON object" in again[2]["content"]


def test_a_question_that_stays_unanswered_is_given_up_once_and_for_all(make: Make, endpoint: Endpoint) -> None:
    endpoint.reply = lambda _body: completion("no")
    pairs, report = make(DOCUMENTS[:2])
    assert (pairs, report.malformed, len(endpoint.asked)) == ([], 2, 6)
    _, report = make(DOCUMENTS[:2])
    assert (report.malformed, report.recalled, len(endpoint.asked)) == (2, 2, 6)


def test_a_busy_endpoint_is_given_the_time_it_asks_for(make: Make, endpoint: Endpoint, waits: list[float]) -> None:
    dated = {"Date": "Tue, 01 Jul 2025 10:00:00 GMT", "Retry-After": "Tue, 01 Jul 2025 10:01:30 GMT"}
    endpoint.reply = once((429, {"Retry-After": "7"}, {}), (503, dated, {}), (500, {}, {}))
    pairs, report = make(DOCUMENTS[:1])
    assert (len(pairs), report.usage.retries) == (1, 3)
    assert 7 <= waits[0] <= 8
    assert 90 <= waits[1] <= 92
    assert 0 <= waits[2] <= 4


def test_an_endpoint_that_wants_a_day_of_rest_ends_the_run(make: Make, endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.reply = lambda _body: (429, {"Retry-After": "86400"}, {"error": "daily quota"})
    with pytest.raises(EndpointError, match=r"86,400 seconds.*daily quota"):
        make(DOCUMENTS[:1])
    assert waits == []


def test_an_endpoint_that_keeps_failing_ends_the_run(make: Make, endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.reply = lambda _body: (500, {}, {"error": "on fire"})
    with pytest.raises(EndpointError, match=r"tried 8 times.*on fire"):
        make(DOCUMENTS[:1])
    assert len(waits) == 7


def test_a_wrong_key_is_reported_at_once_and_never_shown(
    make: Make, endpoint: Endpoint, waits: list[float], tmp_path: Path
) -> None:
    endpoint.reply = lambda _body: (401, {}, {"error": f"Incorrect API key: {KEY}"})
    with pytest.raises(EndpointError, match=r"401.*Incorrect API key: \*\*\*") as caught:
        make(settings=SynthesisSettings(concurrency=1))
    assert (len(endpoint.asked), waits, endpoint.keys) == (1, [], [f"Bearer {KEY}"])
    shown = [str(caught.value), repr(caught.value), (tmp_path / "journal").read_text()]
    shown.append(repr(Chat(endpoint.url, "m", key=lambda: KEY, options={"user": KEY})))
    assert not any(KEY in text for text in shown)


def test_one_refused_document_does_not_stop_the_others(make: Make, endpoint: Endpoint) -> None:
    too_long: tuple[int, dict[str, str], dict[str, str]] = (400, {}, {"error": "maximum context length"})
    endpoint.reply = lambda body: too_long if "topic 74" in body["messages"][0]["content"] else obliging(body)
    pairs, report = make()
    assert (len(pairs), report.refused) == (5, 1)
    assert "maximum context length" in str(report)
    endpoint.reply = obliging
    pairs, report = make()
    assert (len(pairs), report.refused, report.usage.requests) == (6, 0, 2)


def test_when_all_is_refused_it_is_not_the_documents(make: Make, endpoint: Endpoint) -> None:
    endpoint.reply = lambda _body: (400, {}, {"error": "no such model"})
    many = [Document(f"Fact {n} of many") for n in range(40)]
    with pytest.raises(EndpointError, match=r"first 16 requests.*no such model"):
        make(many, settings=SynthesisSettings(concurrency=1))
    assert len(endpoint.asked) == 16


def test_no_more_requests_are_open_than_allowed(make: Make, endpoint: Endpoint) -> None:
    together = threading.Barrier(3)

    def reply(body: dict[str, Any]) -> Reply:
        together.wait(timeout=30)  # broken, and so an error, unless three are open at once
        return obliging(body)

    endpoint.reply = reply
    pairs, _ = make(settings=SynthesisSettings(concurrency=3))
    assert (len(pairs), endpoint.most_open) == (6, 3)


def test_repeated_and_empty_documents_are_asked_about_once(make: Make) -> None:
    _, report = make([DOCUMENTS[0], Document("  "), Document(DOCUMENTS[0].text, "again")])
    assert (report.documents, report.repeated, report.tasks) == (3, 2, 1)


def test_with_an_embedder_the_candidates_are_the_nearest_personas(make: Make, endpoint: Endpoint) -> None:
    engine_personas = nearest_personas(embedder(), [DOCUMENTS[0].text], PERSONAS)[0]
    filters = FilterSettings(positive_cosine=-1.0, duplicate_cosine=None)
    pairs, report = make(DOCUMENTS[:1], embedder=embedder(), filters=filters)
    candidates = re.findall(r"^\d\. (.*)$", endpoint.prompts()[0].split("**Character**:")[-1], re.MULTILINE)
    assert sorted(candidates) == sorted(engine_personas)
    assert -1 <= pairs[0]["meta"]["cosine"] <= 1
    assert "kept 1 of 1" in report.cosines


def test_the_nearest_personas_are_those_of_a_plain_sort() -> None:
    model = embedder()
    scores = (
        model.embed_queries(
            ["honey and bees"], instruction="Given a passage, retrieve the people who are likely to be interested in it"
        )
        @ model.embed_documents(PERSONAS).T
    )
    expected = [PERSONAS[i] for i in sorted(range(6), key=lambda i: -scores[0, i])[:5]]
    assert nearest_personas(model, ["honey and bees"], PERSONAS) == [expected]
    assert nearest_personas(model, [], PERSONAS) == []
    assert len(nearest_personas(model, ["x"], PERSONAS[:2])[0]) == 2


def test_a_larger_sample_contains_the_smaller_and_the_same_draws() -> None:
    languages = ("English", "German", "French")
    small = plan_tasks(DOCUMENTS, SynthesisSettings(limit=2, languages=languages))
    large = plan_tasks(DOCUMENTS[::-1], SynthesisSettings(limit=5, languages=languages, queries_per_document=2))
    assert set(small) < set(large)
    assert (len(small), len(large)) == (2, 10)
    assert plan_tasks(DOCUMENTS, SynthesisSettings(limit=2, seed=1)) != plan_tasks(
        DOCUMENTS, SynthesisSettings(limit=2)
    )


def test_queries_that_are_none_or_repeated_are_left_out_and_counted() -> None:
    def pair(query: str) -> Pair:
        return Pair(query, "Bees make honey.", {"language": "English"})

    queries = [" ?!", "ab", "Who says bees make  HONEY today?", "x" * 2000, "bee  HONEY", "Bee honey?", "Bienen"]
    settings = FilterSettings(is_language=lambda text, language: language == "English" and text != "Bienen")
    result = filter_pairs([pair(query) for query in queries], settings)
    assert [kept.query for kept in result.pairs] == ["bee  HONEY"]
    reasons = ("empty", "too_short", "contains_document", "too_long", "duplicate", "language")
    assert result.dropped == dict.fromkeys(reasons, 1)


def test_pairs_that_are_unlike_and_queries_that_are_alike_are_left_out() -> None:
    texts = ["aaaa bbbb", "aaaa bbbb.x", "zzzz yyyy"]
    pairs = [Pair(text, "aaaa bbbb aaaa bbbb", {}) for text in texts]
    model = embedder()
    vectors = model.embed_queries(texts)
    cosines = vectors @ model.embed_documents([pairs[0].positive])[0]
    assert cosines[2] < cosines[:2].min()
    settings = FilterSettings(
        positive_cosine=float(cosines[2]) + 1e-4, duplicate_cosine=float(vectors[0] @ vectors[1]) - 1e-4
    )
    result = filter_pairs(pairs, settings, embedder=model)
    assert [pair.query for pair in result.pairs] == ["aaaa bbbb"]
    assert result.dropped == {"unlike_document": 1, "near_duplicate": 1}


def test_near_duplicates_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_retrieval.training.synthesis.filters._CHUNK", 7)
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept: list[int] = []
    for i in range(50):
        if not any(vectors[i] @ vectors[j] > 0.9 for j in kept):
            kept.append(i)
    assert [i for i, found in enumerate(near_duplicates(vectors, 0.9)) if not found] == kept
    assert 5 < len(kept) < 45


GOOD = {"Character": "A cook", "Question_Type": "summary", "Difficulty": "phd"}


def test_answers_may_be_fenced_and_thought_about_and_nothing_else() -> None:
    expected = Configuration("A cook", "summary", "phd")
    for answer in (
        json.dumps(GOOD),
        f"<think>hm {{}}</think>\n{json.dumps(GOOD)}",
        f"```json\n{json.dumps(GOOD)}\n```",
    ):
        assert parse_configuration(answer, PERSONAS) == expected
    assert parse_query('{"query": " what? "}') == "what?"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(json.dumps(GOOD | {"Character": "5. A cook"}), id="a-number-before-the-persona"),
        pytest.param(json.dumps(GOOD | {"Difficulty": "hard"}), id="no-such-difficulty"),
        pytest.param(json.dumps(GOOD | {"Question_Type": "essay"}), id="no-such-type"),
        pytest.param(json.dumps(GOOD | {"More": ""}), id="one-key-more"),
        pytest.param(json.dumps([GOOD]), id="a-list"),
        pytest.param(json.dumps(GOOD | {"Character": 5}), id="a-number"),
        pytest.param(json.dumps(GOOD) + " I hope this helps.", id="text-behind"),
        pytest.param("[" * 100_000, id="nested-too-deeply"),
    ],
)
def test_other_answers_are_malformed(answer: str) -> None:
    with pytest.raises(MalformedAnswerError):
        parse_configuration(answer, PERSONAS)


def test_braces_in_a_passage_stay_what_they_are() -> None:
    passage = "f{x} {character} {0} %s"
    prompt = query_prompt(
        passage, Configuration("A cook", "summary", "phd"), corpus_language="English", language="German", words=10
    )
    assert passage in prompt
    assert "value in German language" in prompt


def test_a_damaged_line_in_the_middle_of_a_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"key": "a", "answer": "x"}\nbroken\n{"key": "b", "answer": "y"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is damaged"):
        Journal(path)


def test_a_journal_is_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal"), pytest.raises(BlockingIOError, match="another process"):
        Journal(tmp_path / "journal")


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://me:pass@host/v1", "http://host/v1?k=x"])
def test_urls_that_cannot_be_or_must_not_be_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url must") as caught:
        Chat(url, "m")
    assert "pass" not in str(caught.value).replace("password", "")


def test_names_of_languages_are_lingua_s() -> None:
    pytest.importorskip("lingua")
    from qwen_retrieval.training.synthesis import language_check

    check = language_check(["German"])
    assert check("Wie funktioniert eine Wärmepumpe im Winter?", "German")
    assert not check("how does a heat pump work in winter", "German")
    assert not check("热泵如何工作", "English")
    with pytest.raises(ValueError, match="Klingon"):
        language_check(["Klingon"])


def test_the_command_writes_pairs_and_goes_on_from_its_journal(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    corpus, personas, output = tmp_path / "corpus.jsonl", tmp_path / "personas.txt", tmp_path / "pairs.jsonl"
    lines = [json.dumps({"_id": document.id, "text": document.text}) for document in DOCUMENTS]
    corpus.write_text("\n".join(lines))
    personas.write_text("\n".join(PERSONAS))
    options = ["--url", endpoint.url, "--model", "qwen3", "--personas", str(personas), "--embedder", "none"]
    options += ["--no-check-language", "--api-key-variable", "MY_KEY", "--request", '{"temperature": 0.5}']
    counts = json.loads(run("synthesize", str(corpus), "-o", str(output), "--json", *options))
    assert (counts["kept"], counts["usage"]["requests"]) == (6, 12)
    assert endpoint.keys == [f"Bearer {KEY}"] * 12
    assert {body["temperature"] for body in endpoint.asked} == {0.5}
    pairs = [json.loads(line) for line in output.read_text().splitlines()]
    assert [pair["meta"]["document"] for pair in pairs] == [document.id for document in DOCUMENTS]
    counts = json.loads(run("synthesize", str(corpus), "-o", str(output), "--json", *options))
    assert (counts["recalled"], counts["usage"]["requests"]) == (12, 0)
    printed = run("synthesize", str(corpus), "-o", "-", "--journal", f"{output}.journal", *options)
    assert printed == output.read_text()
    assert "--journal" in run("synthesize", str(corpus), "-o", "-", *options, code=2)
    assert not any(KEY in path.read_text() for path in tmp_path.iterdir())


def test_texts_are_compared_without_what_does_not_matter() -> None:
    assert normalized("  Ｗhat IS\tit？ ") == "what is it"


@pytest.mark.parametrize("content", ['{"my": "settings"}', "line one\nline two", '{"key": 1}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"journal|damaged"):
        Journal(path)
    assert path.read_text() == content
