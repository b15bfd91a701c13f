"""What goes into an Embedder and a Reranker, and what comes out, with engines that compute next to nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval import Embedder, Reranker, RerankResult, TruncationWarning
from qwen_retrieval.errors import ControlTokenError, InputError, InputTooLongError, ModelClosedError, NonFiniteError
from qwen_retrieval.loading import LoadedModel
from qwen_retrieval.model import FEW
from qwen_retrieval.testing import (
    ByteTokenizer,
    FailOn,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.types import TokenIds
from qwen_retrieval.worker import Worker
from tests.threads import none_left

PATIENCE = 60.0
"""Seconds after which a test that hangs fails instead. No test depends on it otherwise."""

QUERY = "When does water boil?"


@dataclass
class Models:
    """One of each, with their engines."""

    embedding_engine: FakeEmbeddingEngine
    reranking_engine: FakeRerankingEngine
    embedder: Embedder
    reranker: Reranker

    @property
    def calls(self) -> int:
        return self.embedding_engine.calls + self.reranking_engine.calls

    @property
    def inputs(self) -> int:
        return self.embedding_engine.inputs + self.reranking_engine.inputs

    def close(self) -> None:
        self.embedder.close()
        self.reranker.close()


def make(*, fail_on: FailOn | None = None, delay: float = 0.0, **options: Any) -> Models:
    embedding, reranking = (
        FakeEmbeddingEngine(delay=delay, fail_on=fail_on),
        FakeRerankingEngine(delay=delay, fail_on=fail_on),
    )
    return Models(
        embedding,
        reranking,
        Embedder(embedding, ByteTokenizer(), fake_embedding_spec(), **options),
        Reranker(reranking, ByteTokenizer(), fake_reranking_spec(), **options),
    )


@pytest.fixture
def build() -> Iterator[Callable[..., Models]]:
    """`make`, and what it made is closed in the end."""
    made: list[Models] = []

    def build_one(**options: Any) -> Models:
        made.append(make(**options))
        return made[-1]

    yield build_one
    for models in made:
        models.close()


@pytest.fixture
def models(build: Callable[..., Models]) -> Models:
    """With the default options."""
    return build()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    with none_left():
        yield


Call = Callable[[Models, Any], Any]

SYNC: dict[str, Call] = {
    "embed_queries": lambda models, texts: models.embedder.embed_queries(texts),
    "embed_documents": lambda models, texts: models.embedder.embed_documents(texts),
    "score": lambda models, texts: models.reranker.score(QUERY, texts),
    "log_odds": lambda models, texts: models.reranker.log_odds(QUERY, texts),
    "rerank": lambda models, texts: models.reranker.rerank(QUERY, texts),
}
ASYNC: dict[str, Call] = {
    "aembed_queries": lambda models, texts: asyncio.run(models.embedder.aembed_queries(texts)),
    "aembed_documents": lambda models, texts: asyncio.run(models.embedder.aembed_documents(texts)),
    "ascore": lambda models, texts: asyncio.run(models.reranker.ascore(QUERY, texts)),
    "alog_odds": lambda models, texts: asyncio.run(models.reranker.alog_odds(QUERY, texts)),
    "arerank": lambda models, texts: asyncio.run(models.reranker.arerank(QUERY, texts)),
}
CALLS = SYNC | ASYNC

every_call = pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items()])
every_sync_call = pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in SYNC.items()])


def column(result: Any) -> list[Any]:
    """The results of a call in input order, comparable."""
    if isinstance(result, np.ndarray):
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
        values: list[Any] = result.tolist()
        return values
    return [(each.relevance_score, each.log_odds) for each in sorted(result, key=lambda each: each.index)]


# Odd inputs


@every_call
@pytest.mark.parametrize("texts", [None, 7, 1.5, b"bytes", {"a": 1}, {"a"}], ids=repr)
def test_what_is_no_list_is_a_type_error_that_names_its_type(models: Models, call: Call, texts: Any) -> None:
    with pytest.raises(TypeError, match=f"must be a list of strings, but got {type(texts).__name__}"):
        call(models, texts)
    assert models.calls == 0


@every_call
def test_a_bare_string_is_a_type_error_that_says_what_to_write(models: Models, call: Call) -> None:
    with pytest.raises(TypeError, match=r"must be a list of strings, but got a single string; write \[text\]"):
        call(models, "Water boils at 100 degrees.")
    assert models.calls == 0


@every_call
@pytest.mark.parametrize("odd", [None, 7, b"bytes", ["nested"], float("nan")], ids=repr)
def test_an_element_that_is_no_string_is_named(models: Models, call: Call, odd: Any) -> None:
    texts = [*(str(i) for i in range(70)), odd]
    with pytest.raises(TypeError, match=rf"\[70\] is {type(odd).__name__}"):
        call(models, texts)
    assert models.calls == 0


@every_call
def test_a_lone_surrogate_is_refused_with_its_place(models: Models, call: Call) -> None:
    with pytest.raises(InputError, match=r"\[1\] contains the lone surrogate U\+D83D at position 5; .* read it with"):
        call(models, ["fine", "half \ud83d an emoji"])
    assert models.calls == 0


@every_call
def test_no_texts_give_no_results_and_compute_nothing(models: Models, call: Call) -> None:
    result = call(models, [])
    assert len(result) == 0
    if isinstance(result, np.ndarray):
        assert result.dtype == np.float32
        assert result.shape in {(0,), (0, 64)}
    assert models.calls == 0


@every_call
def test_empty_and_blank_texts_and_nul_are_texts(models: Models, call: Call) -> None:
    texts = ["", " ", "\t\n", "\0", "a\0b", "ab", "\ufeff", "é", "日本語", "👩‍👩‍👧"]
    assert len(column(call(models, texts))) == len(texts)
    assert models.inputs == len(texts)  # and no two of them are the same


def test_nul_is_a_letter_like_any_other(models: Models) -> None:
    vectors = models.embedder.embed_documents(["a\0b", "ab", "a"])
    assert len(np.unique(vectors, axis=0)) == 3


@every_sync_call
def test_a_megabyte_of_text_is_cut_with_a_warning(models: Models, call: Call) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 inputs were longer than max_length and were cut, by 99"):
        assert len(call(models, ["short", "x" * 1_000_000])) == 2


@every_sync_call
def test_a_megabyte_of_text_is_refused_if_nothing_may_be_cut(build: Callable[..., Models], call: Call) -> None:
    models = build(on_overflow="error")
    with pytest.raises(InputTooLongError, match=r"\[1\].*max_length is 8192"):
        call(models, ["short", "x" * 1_000_000])
    assert models.calls == 0


def test_a_query_longer_than_the_limit_is_cut_with_a_warning(models: Models) -> None:
    with pytest.warns(TruncationWarning, match="1 of 1 inputs"):
        assert models.embedder.embed_queries(["x" * 10_000]).shape == (1, 64)
    with pytest.warns(TruncationWarning, match="2 of 2 inputs"):
        assert models.reranker.score("x" * 10_000, ["one", "two"]).shape == (2,)


@every_call
def test_ten_thousand_empty_texts_are_computed_once(models: Models, call: Call) -> None:
    result = column(call(models, [""] * 10_000))
    assert len(result) == 10_000
    assert result.count(result[0]) == 10_000
    assert (models.calls, models.inputs) == (1, 1)


def test_a_hundred_thousand_documents_come_back_in_order(models: Models) -> None:
    texts = [f"{i % 5000}" for i in range(100_000)]
    vectors = models.embedder.embed_documents(texts)
    assert vectors.shape == (100_000, 64)
    assert models.inputs == 5000
    assert np.array_equal(vectors[:5000], vectors[95_000:])
    assert np.array_equal(vectors[[7, 4321]], models.embedder.embed_documents(["7", "4321"]))


@every_call
def test_the_list_that_is_given_stays_as_it_is(models: Models, call: Call) -> None:
    texts = ["b", "a", "<|im_end|>", "b", ""]
    given_texts = list(texts)
    call(models, given_texts)
    assert given_texts == texts


@every_sync_call
def test_tuples_generators_and_arrays_of_strings_are_lists_too(models: Models, call: Call) -> None:
    texts = ["one", "two", "three"]
    expected = column(call(models, texts))
    for same in (tuple(texts), iter(texts), np.array(texts), (text for text in texts)):
        assert column(call(models, same)) == expected


# Rows


@settings(max_examples=50)
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=200))
def test_duplicates_are_computed_once_and_rows_come_back_in_order(texts: list[str]) -> None:
    models = make()
    vectors = models.embedder.embed_documents(texts)
    log_odds = models.reranker.log_odds(QUERY, texts)
    assert models.inputs == 2 * len(set(texts))
    alone = {text: models.embedder.embed_documents([text])[0] for text in set(texts)}
    scored = {text: models.reranker.log_odds(QUERY, [text])[0] for text in set(texts)}
    assert np.array_equal(vectors, np.stack([alone[text] for text in texts]))
    assert log_odds.tolist() == [scored[text] for text in texts]
    models.close()


@settings(max_examples=20)
@given(texts=st.lists(st.sampled_from("abcdefgh"), max_size=150), budget=st.integers(1, 500))
def test_async_gives_what_sync_gives_whatever_the_budget(texts: list[str], budget: int) -> None:
    models, reference = make(max_batch_tokens=budget), make()
    for sync, twin in zip(SYNC.values(), ASYNC.values(), strict=True):
        assert column(twin(models, texts)) == column(sync(reference, texts))
    models.close()
    reference.close()


def test_vectors_have_unit_length_in_every_dimension(build: Callable[..., Models]) -> None:
    texts = ["", "a", "Water boils at 100 degrees."]
    full = build().embedder.embed_documents(texts)
    engine = FakeEmbeddingEngine()
    with Embedder(engine, ByteTokenizer(), fake_embedding_spec(), dimensions=16) as short:
        cut = short.embed_documents(texts)
        assert short.embed_documents([]).shape == (0, 16)
    assert np.allclose(np.linalg.norm(full, axis=1), 1)
    assert np.allclose(np.linalg.norm(cut, axis=1), 1)
    lengths = np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    assert np.allclose(cut, full[:, :16] / lengths, atol=1e-6)


def test_scores_are_the_probabilities_of_the_log_odds(models: Models) -> None:
    texts = ["Water boils at 100 degrees.", "Cats sleep most of the day.", ""]
    log_odds = models.reranker.log_odds(QUERY, texts)
    assert np.allclose(models.reranker.score(QUERY, texts), 1 / (1 + np.exp(-log_odds)))
    pairs = [(QUERY, text) for text in texts]
    assert np.array_equal(models.reranker.log_odds_of_pairs(pairs), log_odds)
    for result in models.reranker.rerank(QUERY, texts):
        assert result.log_odds == log_odds[result.index]
        assert result.relevance_score == pytest.approx(1 / (1 + np.exp(-result.log_odds)))


def test_pairs_may_have_different_queries(models: Models) -> None:
    pairs = [("one", "a"), ("two", "a"), ("one", "b"), ("one", "a")]
    together = models.reranker.log_odds_of_pairs(pairs)
    assert together.tolist() == [models.reranker.log_odds(query, [text])[0] for query, text in pairs]
    assert asyncio.run(models.reranker.alog_odds_of_pairs(pairs)).tolist() == together.tolist()
    assert models.reranker.log_odds_of_pairs([]).shape == (0,)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c"), None], ids=repr)
def test_what_is_no_pair_is_named(models: Models, pair: Any) -> None:
    with pytest.raises(TypeError, match=r"pairs must be a list of \(query, document\) tuples, but pairs\[1\] is"):
        models.reranker.log_odds_of_pairs([("a", "b"), pair])


# Ranking


def rank(models: Models, texts: Sequence[str], **options: Any) -> list[int]:
    return [result.index for result in models.reranker.rerank(QUERY, texts, **options)]


DOCUMENTS = ["Cats sleep.", "When does water boil? At 100.", "water", "Cats sleep.", "When does water boil?", "water"]


def test_results_come_by_falling_relevance_and_ties_keep_their_order(models: Models) -> None:
    scores = models.reranker.score(QUERY, DOCUMENTS)
    order = rank(models, DOCUMENTS)
    assert order == sorted(range(len(DOCUMENTS)), key=lambda i: -scores[i])
    assert order.index(0) < order.index(3)
    assert order.index(2) < order.index(5)
    assert order[0] == 4


def test_results_hold_plain_python_numbers(models: Models) -> None:
    for result in models.reranker.rerank(QUERY, DOCUMENTS):
        assert isinstance(result, RerankResult)
        assert [type(value) for value in (result.index, result.relevance_score, result.log_odds)] == [int, float, float]


def test_top_n_keeps_the_best_and_may_exceed_what_there_is(models: Models) -> None:
    order = rank(models, DOCUMENTS)
    assert rank(models, DOCUMENTS, top_n=2) == order[:2]
    assert rank(models, DOCUMENTS, top_n=100) == order
    assert rank(models, [], top_n=2) == []


def test_the_threshold_is_applied_before_top_n(models: Models) -> None:
    results = models.reranker.rerank(QUERY, DOCUMENTS)
    threshold = results[2].relevance_score  # at least, so this one stays
    kept = [result.index for result in results if result.relevance_score >= threshold]
    assert rank(models, DOCUMENTS, score_threshold=threshold) == kept
    assert rank(models, DOCUMENTS, score_threshold=threshold, top_n=2) == kept[:2]
    assert rank(models, DOCUMENTS, score_threshold=threshold, top_n=100) == kept
    assert rank(models, DOCUMENTS, score_threshold=1.1) == []
    assert rank(models, DOCUMENTS, score_threshold=0.0) == [result.index for result in results]


@pytest.mark.parametrize("top_n", [0, -1])
def test_a_top_n_below_one_is_refused_before_anything_is_computed(models: Models, top_n: int) -> None:
    rule = f"top_n must be at least 1, or None for all, but got {top_n}"
    with pytest.raises(ValueError, match=rule):
        models.reranker.rerank(QUERY, DOCUMENTS, top_n=top_n)
    with pytest.raises(ValueError, match=rule):
        asyncio.run(models.reranker.arerank(QUERY, DOCUMENTS, top_n=top_n))
    assert models.calls == 0


@pytest.mark.parametrize("query", [None, 7, b"water", ["water"]], ids=repr)
def test_a_query_that_is_no_string_is_refused(models: Models, query: Any) -> None:
    for call in (models.reranker.score, models.reranker.log_odds, models.reranker.rerank):
        with pytest.raises(TypeError, match=f"query must be a string, but got {type(query).__name__}"):
            call(query, DOCUMENTS)
    assert models.calls == 0


# Refusals name the caller's positions


def texts_with(odd: str, *positions: int) -> list[str]:
    """120 texts, half of them the same, with `odd` at some places."""
    return [odd if i in positions else str(i) if i % 2 else "the same" for i in range(120)]


@every_call
def test_too_long_a_text_is_named_before_anything_is_computed(build: Callable[..., Models], call: Call) -> None:
    models = build(on_overflow="error", max_length=600)
    with pytest.raises(InputTooLongError, match=r"(queries|documents)\[(96|118)\]") as caught:
        call(models, texts_with("x" * 1000, 96, 118))
    assert "118" not in str(caught.value)
    assert models.calls == 0


@every_call
def test_a_control_token_is_named_before_anything_is_computed(build: Callable[..., Models], call: Call) -> None:
    models = build(control_tokens="error")
    rule = r"(queries|documents)\[96\] contains the control token '<\|im_end\|>' at position 2"
    with pytest.raises(ControlTokenError, match=rule):
        call(models, texts_with("a <|im_end|>", 96, 118))
    assert models.calls == 0


def test_a_control_token_in_the_instruction_is_refused_too(build: Callable[..., Models]) -> None:
    models = build(control_tokens="error")
    with pytest.raises(ControlTokenError, match="instruction contains the control token '<think>'"):
        models.embedder.embed_queries(["water"], instruction="<think> of a passage")
    with pytest.raises(ControlTokenError, match="instruction contains the control token '<think>'"):
        models.reranker.score(QUERY, ["water"], instruction="<think> of a passage")
    assert models.calls == 0


def test_an_instruction_that_leaves_no_room_is_named_and_no_position_of_a_part(build: Callable[..., Models]) -> None:
    length = len(build().reranker.explain(QUERY, "x" * 10).token_ids)
    models = build(max_length=length)
    documents = texts_with("x" * 100, 118)
    for call in (SYNC["score"], ASYNC["ascore"]):
        with pytest.raises(InputTooLongError, match=r"the instruction .* is \d+ token\(s\) too long") as caught:
            call(models, documents)
        assert "[" not in str(caught.value)
    assert models.reranker.score(QUERY, documents[:118]).shape == (118,)


def non_finite(batch: list[TokenIds]) -> NonFiniteError | None:
    rows = tuple(i for i, ids in enumerate(batch) if b"poison" in bytes(id_ for id_ in ids if id_ < 256))
    return NonFiniteError(rows) if rows else None


@every_call
def test_inputs_without_a_finite_result_are_named_by_the_callers_positions(
    build: Callable[..., Models], call: Call
) -> None:
    models = build(fail_on=non_finite, max_batch_tokens=2000)
    texts = [*(f"text {i}" for i in range(150)), "poison", "text 1", "poison"]
    texts[100] = texts[99]
    with pytest.raises(NonFiniteError, match=r"2 input.*at position 150, 152, even in float32") as caught:
        call(models, texts)
    assert caught.value.rows == (150, 152)
    assert len(call(models, texts[:150])) == 150


# Failures


@every_call
def test_an_engine_that_fails_reaches_the_caller_and_what_is_pending_is_cancelled(
    build: Callable[..., Models], call: Call
) -> None:
    broken = True

    def fail(_: list[TokenIds]) -> BaseException | None:
        return MemoryError("out of luck") if broken else None

    models = build(fail_on=fail, max_batch_tokens=1000)
    texts = [f"text {i}" for i in range(2000)]
    with pytest.raises(MemoryError, match="out of luck"):
        call(models, texts)
    broken = False
    assert len(call(models, texts[:3])) == 3
    assert models.inputs < 1000


def test_a_failure_of_one_caller_is_not_that_of_another(build: Callable[..., Models]) -> None:
    def fail(batch: list[TokenIds]) -> BaseException | None:
        return ValueError("bad") if any(b"bad" in bytes(id_ for id_ in ids if id_ < 256) for ids in batch) else None

    models = build(fail_on=fail, delay=0.01)

    async def ask() -> list[Any]:
        calls = [models.embedder.aembed_documents(["bad" if i == 5 else f"good {i}"]) for i in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(ask())
    assert [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [5]
    assert isinstance(outcomes[5], ValueError)


@every_call
def test_a_closed_model_says_so(models: Models, call: Call) -> None:
    models.close()
    with pytest.raises(ModelClosedError, match="was closed; load the model again"):
        call(models, ["text"])


def test_closing_while_another_thread_waits_ends_its_wait(build: Callable[..., Models]) -> None:
    entered, gate = threading.Event(), threading.Event()

    def hold(_: list[TokenIds]) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    models = build(fail_on=hold, max_batch_tokens=100)
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            models.embedder.embed_documents([f"document {i}" for i in range(500)])
        except ModelClosedError as error:
            outcome.append(error)

    caller = threading.Thread(target=work)
    caller.start()
    assert entered.wait(PATIENCE)
    closer = threading.Thread(target=models.embedder.close)
    closer.start()
    gate.set()
    for thread in (caller, closer):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(outcome) == 1
    assert models.inputs < 500


# Truncation


def the_warning(caught: list[warnings.WarningMessage]) -> str:
    """The text of the one warning, which must point at this file."""
    assert [warning.category for warning in caught] == [TruncationWarning]
    assert caught[0].filename == __file__
    return str(caught[0].message)


TOO_LONG = "x" * 1000


@every_sync_call
def test_cut_texts_are_warned_of_once_per_call_at_the_callers_line(build: Callable[..., Models], call: Call) -> None:
    models = build(max_length=600)
    texts = texts_with(TOO_LONG, 3, 96, 118)
    for _ in range(2):
        with pytest.warns(TruncationWarning) as caught:
            call(models, texts)
        assert the_warning(list(caught)).startswith("3 of 120 inputs were longer than max_length and were cut, by ")


async def test_async_calls_warn_at_the_callers_line_too(build: Callable[..., Models]) -> None:
    models = build(max_length=600)
    for call in (
        lambda: models.embedder.aembed_queries([TOO_LONG]),
        lambda: models.embedder.aembed_documents([TOO_LONG]),
        lambda: models.reranker.ascore(QUERY, [TOO_LONG]),
        lambda: models.reranker.alog_odds(QUERY, [TOO_LONG]),
        lambda: models.reranker.alog_odds_of_pairs([(QUERY, TOO_LONG)]),
        lambda: models.reranker.arerank(QUERY, [TOO_LONG]),
    ):
        with pytest.warns(TruncationWarning) as caught:
            await call()
        assert the_warning(list(caught)).startswith("1 of 1 inputs were longer than max_length")


def test_the_warning_says_how_much_was_cut(build: Callable[..., Models]) -> None:
    models = build(max_length=600)
    with pytest.warns(TruncationWarning, match=r"2 of 3 inputs .* cut, by 51 tokens at most; raise max_length"):
        models.embedder.embed_documents(["x" * 601, "x" * 650, "x"])
    assert models.embedder.explain_document("x" * 650).truncated_tokens == 51


@every_call
def test_what_fits_is_not_warned_of(models: Models, call: Call) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(models, ["x" * 1000])


# Progress


@every_sync_call
@pytest.mark.parametrize(("count", "shown"), [(FEW, False), (FEW + 1, True)])
def test_progress_is_shown_for_more_than_a_chunk(
    build: Callable[..., Models], call: Call, count: int, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    call(build(show_progress=True), [str(i) for i in range(count)])
    output = capsys.readouterr()
    assert output.out == ""
    assert (f"{count}/{count}" in output.err) is shown
    assert bool(output.err) is shown


@every_sync_call
def test_nothing_is_printed_unless_asked_for(models: Models, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    call(models, [str(i) for i in range(300)])
    assert capsys.readouterr() == ("", "")


# Concurrency


class CountingTokenizer(ByteTokenizer):
    """Counts what it has encoded, so that a test knows when all callers have come."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str], *, control_tokens: bool) -> list[TokenIds]:
        with self._lock:
            self.calls += 1
        return super().encode(texts, control_tokens=control_tokens)


async def test_concurrent_queries_share_batches() -> None:
    gate = threading.Event()

    def hold(_: list[TokenIds]) -> None:
        assert gate.wait(PATIENCE)

    engine, tokenizer = FakeEmbeddingEngine(fail_on=hold), CountingTokenizer()
    with Embedder(engine, tokenizer, fake_embedding_spec()) as embedder:
        before = tokenizer.calls
        tasks = [asyncio.create_task(embedder.aembed_queries([f"query {i}"])) for i in range(64)]
        while tokenizer.calls < before + 64:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        gate.set()
        together = np.concatenate(await asyncio.gather(*tasks))
        assert engine.calls <= 16
        assert engine.inputs == 64
        assert np.array_equal(together, embedder.embed_queries([f"query {i}" for i in range(64)]))


class NotingTokenizer(ByteTokenizer):
    """Notes in which threads it works."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()

    def encode(self, texts: Sequence[str], *, control_tokens: bool) -> list[TokenIds]:
        self.threads.add(threading.current_thread())
        return super().encode(texts, control_tokens=control_tokens)


async def test_texts_are_tokenised_aside_from_the_loop() -> None:
    tokenizer = NotingTokenizer()
    with Embedder(FakeEmbeddingEngine(), tokenizer, fake_embedding_spec()) as embedder:
        tokenizer.threads.clear()
        await embedder.aembed_documents(["a text"])
    assert tokenizer.threads
    assert threading.current_thread() not in tokenizer.threads


async def test_the_loop_goes_on_while_the_engine_computes() -> None:
    entered, gate = threading.Event(), threading.Event()

    def hold(_: list[TokenIds]) -> None:
        entered.set()
        assert gate.wait(PATIENCE), "the event loop stood still"

    with Embedder(FakeEmbeddingEngine(fail_on=hold), ByteTokenizer(), fake_embedding_spec()) as embedder:
        task = asyncio.create_task(embedder.aembed_documents(["Water"]))
        while not entered.is_set():
            await asyncio.sleep(0)
        ticks = 0
        while ticks < 100:  # all of them while the engine is in its batch
            await asyncio.sleep(0)
            ticks += 1
        assert not task.done()
        gate.set()
        assert (await task).shape == (1, 64)


async def test_a_cancelled_task_cancels_its_pending_work() -> None:
    entered, gate = threading.Event(), threading.Event()

    def hold(_: list[TokenIds]) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    engine = FakeEmbeddingEngine(fail_on=hold)
    with Embedder(engine, ByteTokenizer(), fake_embedding_spec(), max_batch_tokens=100) as embedder:
        task = asyncio.create_task(embedder.aembed_documents([f"document {i}" for i in range(1000)]))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        assert (await embedder.aembed_documents(["Water"])).shape == (1, 64)
        assert engine.calls <= 3  # the batch under way and this one, and no other of the 1,000


async def test_a_call_that_is_too_slow_can_be_given_up() -> None:
    gate = threading.Event()

    def hold(_: list[TokenIds]) -> None:
        assert gate.wait(PATIENCE)

    with Embedder(FakeEmbeddingEngine(fail_on=hold), ByteTokenizer(), fake_embedding_spec()) as embedder:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(embedder.aembed_documents(["Water"]), 0.01)
        gate.set()
        assert (await embedder.aembed_documents(["Water"])).shape == (1, 64)


def test_threads_that_share_a_model_each_get_their_own_rows(models: Models) -> None:
    expected = {i: models.embedder.embed_documents([f"{i} {j}" for j in range(20)]) for i in range(8)}
    outcomes: dict[int, Any] = {}
    start = threading.Barrier(8)

    def work(i: int) -> None:
        start.wait(PATIENCE)
        outcomes[i] = models.embedder.embed_documents([f"{i} {j}" for j in range(20)])

    callers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    assert all(np.array_equal(outcomes[i], expected[i]) for i in range(8))


INTERRUPTED = """
    import asyncio, sys, threading
    from qwen_retrieval import Embedder
    from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

    def announce(batch):
        print("computing", flush=True)

    engine = FakeEmbeddingEngine(delay=0.05, fail_on=announce)
    embedder = Embedder(engine, ByteTokenizer(), fake_embedding_spec(), max_batch_tokens=100)
    texts = [f"document {i}" for i in range(20_000)]
    try:
        CALL
    except KeyboardInterrupt:
        print("interrupted")
    CLOSE
    print(engine.calls < 1000, [thread.name for thread in threading.enumerate() if "qwen" in thread.name])
"""
SYNC_CALL, ASYNC_CALL = "embedder.embed_documents(texts)", "asyncio.run(embedder.aembed_documents(texts))"


def interrupt(code: str) -> tuple[int, list[str], str]:
    """Exit status, output without the announcements, and errors of a process that gets Ctrl-C while it computes."""
    command = [sys.executable, "-u", "-c", dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    return process.returncode, [line for line in output.splitlines() if line != "computing"], errors


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as a terminal does")
@pytest.mark.parametrize("call", [SYNC_CALL, ASYNC_CALL], ids=["sync", "async"])
def test_ctrl_c_in_a_long_run_is_caught_where_it_was_made_and_leaves_no_thread(call: str) -> None:
    code = INTERRUPTED.replace("CALL", call).replace("CLOSE", "embedder.close()")
    status, output, errors = interrupt(code)
    assert (status, errors) == (0, "")
    assert output == ["interrupted", "True []"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as a terminal does")
@pytest.mark.parametrize("call", [SYNC_CALL, ASYNC_CALL], ids=["sync", "async"])
def test_ctrl_c_that_nobody_catches_ends_the_process(call: str) -> None:
    code = INTERRUPTED.replace("CALL", call).replace("KeyboardInterrupt", "ZeroDivisionError").replace("CLOSE", "")
    status, output, errors = interrupt(code)
    assert status in (-signal.SIGINT, 130)
    assert output == []
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("batch_size", [1, 3, 64, 100])
def test_batch_size_caps_the_inputs_of_a_call_in_a_forward_pass(batch_size: int) -> None:
    sizes: list[int] = []
    engine = FakeEmbeddingEngine(fail_on=lambda batch: sizes.append(len(batch)))
    texts = [f"text {number}" for number in range(150)]
    with (
        Embedder(engine, ByteTokenizer(), fake_embedding_spec(), batch_size=batch_size) as embedder,
        Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec()) as unlimited,
    ):
        assert np.array_equal(embedder.embed_documents(texts), unlimited.embed_documents(texts))
    assert max(sizes) <= batch_size
    assert sum(sizes) == 150


@pytest.mark.parametrize("options", [{"max_batch_tokens": 1}, {"batch_size": 3}], ids=["tokens", "batch_size"])
def test_a_long_call_keeps_all_devices_busy(options: dict[str, Any]) -> None:
    """Neither of the two engines computes a batch unless the other does as well."""
    both = threading.Barrier(2)

    def meet(_: list[TokenIds]) -> None:
        both.wait(PATIENCE)

    engines = [FakeEmbeddingEngine(fail_on=meet) for _ in range(2)]
    worker = Worker(*(engine.embed for engine in engines), name="two devices")
    loaded: LoadedModel[Any] = LoadedModel(
        engines=tuple(engines),
        worker=worker,
        tokenizer=cast("HubTokenizer", ByteTokenizer()),
        spec=fake_embedding_spec(),
        revision=None,
        device="one, two",
        dtype="float32",
        max_batch_tokens=1000,
        release=worker.close,
    )
    texts = [f"text {number}" for number in range(192)]
    with (
        Embedder(engines[0], ByteTokenizer(), loaded.spec, loaded=loaded, **options) as embedder,
        Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec()) as alone,
    ):
        assert np.array_equal(embedder.embed_documents(texts), alone.embed_documents(texts))
    assert engines[0].calls == engines[1].calls == (192 / options.get("batch_size", 1)) / 2


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, or None for as many as fit, but got 0"):
        Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), batch_size=0)


@given(st.integers(8, 64))
def test_dimensions_of_a_call_are_those_of_an_embedder_made_for_them(dimensions: int) -> None:
    with (
        Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), dimensions=32) as general,
        Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), dimensions=dimensions) as made_for_it,
    ):
        for found, expected in [
            (general.embed_queries([QUERY], dimensions=dimensions), made_for_it.embed_queries([QUERY])),
            (general.embed_documents([QUERY], dimensions=dimensions), made_for_it.embed_documents([QUERY])),
            (general.embed_documents([], dimensions=dimensions), made_for_it.embed_documents([])),
        ]:
            assert found.shape[1] == dimensions
            assert np.array_equal(found, expected)


async def test_impossible_dimensions_of_a_call_are_refused() -> None:
    with Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec()) as embedder:
        with pytest.raises(ValueError, match="dimensions must be between 8 and 64 for fake-embedding, but got 65"):
            embedder.embed_queries([QUERY], dimensions=65)
        with pytest.raises(ValueError, match="but got 7"):
            await embedder.aembed_documents([], dimensions=7)
