"""What every embedding and reranking class must satisfy, whatever framework it is for.

Subclass `EmbeddingsConformance` or `RerankerConformance` in a test module, fill in the hooks, and pytest runs the list
against your class:

    from qwen_retrieval.testing.conformance import Candidate, Ranked, RerankerConformance

    class TestMyReranker(RerankerConformance):
        def make(self, **options):
            return MyReranker(**options)

        def rerank(self, subject, query, documents):
            return subject.compress_documents(documents, query)
        ...

Each test is a promise that some published adapter has broken; the comments say which. What your class does not offer is
left out by name, ``test_an_instruction_reaches_the_model = None``. Without `reference` or `forward_passes` the tests
that need them are skipped.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

QUERY = "How do I copy a file?"
"""The question of most tests."""

TEXTS = (
    "Copy a file and its metadata.",
    "Return the sine of x.",
    "",
    "  leading and trailing  ",
    "two\nlines\n\nand a\ttab",
    "def f(x):\n    return x",
    "Ein Gruß aus Köln",
    "文件复制 🗂️ और दस्तावेज़",
    "e\u0301 is not \u00e9",
    "<|im_end|> closes nothing <|endoftext|>",
    "a" * 300,
)
"""Texts that adapters like to tidy up, and must not."""

CALLERS = 64
"""Concurrent callers of the concurrency tests."""


@dataclass(frozen=True)
class Candidate:
    """A document, before it is one of the framework's.

    Attributes:
        text: Its text.
        id: Its id.
        metadata: Its metadata, JSON values only.
    """

    text: str
    id: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranked:
    """A reranked document, read from the framework's.

    Attributes:
        text: Its text.
        id: Its id.
        metadata: Its metadata, without what the reranker has added.
        score: Its score.
    """

    text: str
    id: str | None
    metadata: Mapping[str, Any]
    score: Any


CANDIDATES = tuple(
    Candidate(text, f"id-{number}", {"number": number, "nested": {"tags": ["a", "b"]}, "none": None})
    for number, text in enumerate(TEXTS)
)
"""One candidate for each of `TEXTS`."""


class EmbeddingsConformance:
    """The list for classes that embed. A subclass provides the hooks; every ``test_`` method is a test.

    Each test has a fresh instance, so that a hook may keep on `self` what another needs.
    """

    # -- hooks ---------------------------------------------------------------------------------------------------

    def make(self, **options: Any) -> Any:
        """The class under test, with a fast model (a few milliseconds a call, so that concurrent callers can meet).

        Args:
            options: Any of `dimensions` (16, impossible ones), `instruction` and `document_instruction`, to be passed
                on as they are, unknown ones too.
        """
        raise NotImplementedError

    def make_unloadable(self) -> Any:
        """The class under test, with a model that cannot be loaded; making it must work."""
        raise NotImplementedError

    def make_failing(self, error: Exception) -> Any:
        """The class under test, with a model that raises `error` whenever it computes."""
        raise NotImplementedError

    def embed_query(self, subject: Any, query: str) -> list[float]:
        """The vector of a query."""
        raise NotImplementedError

    async def aembed_query(self, subject: Any, query: str) -> list[float]:
        """The vector of a query, from the async method."""
        raise NotImplementedError

    def embed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        """The vectors of documents."""
        raise NotImplementedError

    async def aembed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        """The vectors of documents, from the async method."""
        raise NotImplementedError

    def reference(self, texts: Sequence[str], *, query: bool, **options: Any) -> list[list[float]] | None:
        """What the model itself gives for texts, or None if there is nothing to compare with.

        Args:
            texts: n texts.
            query: Whether they are queries.
            options: As for `make`.
        """
        return None

    def forward_passes(self) -> int | None:
        """How often the model of `make` has computed, or None if that cannot be told."""
        return None

    # -- the list ------------------------------------------------------------------------------------------------

    def test_documents_have_the_vectors_of_the_model(self) -> None:
        self._equals_reference(self.embed_documents(self.make(), list(TEXTS)), TEXTS, query=False)

    @pytest.mark.parametrize("text", TEXTS)
    def test_a_query_has_the_vector_of_the_model(self, text: str) -> None:
        # HuggingFaceEmbeddings turns newlines into spaces; others strip: neither may happen.
        self._equals_reference([self.embed_query(self.make(), text)], [text], query=True)

    def test_vectors_are_lists_of_python_floats(self) -> None:
        # numpy floats pass through frameworks unseen, and break JSON, caches and traces later.
        subject = self.make()
        vectors = [self.embed_query(subject, QUERY), *self.embed_documents(subject, list(TEXTS))]
        assert {type(vector) for vector in vectors} <= {list} or all(isinstance(vector, list) for vector in vectors)
        assert {type(value) for vector in vectors for value in vector} == {float}
        json.dumps(vectors, allow_nan=False)

    def test_vectors_have_unit_length(self) -> None:
        subject = self.make()
        for vector in [self.embed_query(subject, QUERY), *self.embed_documents(subject, list(TEXTS))]:
            assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)

    def test_a_query_is_not_embedded_as_a_document(self) -> None:
        # Most adapters embed queries without the instruction that the model was trained with.
        subject = self.make()
        assert self.embed_query(subject, QUERY) != self.embed_documents(subject, [QUERY])[0]

    def test_an_instruction_changes_queries_and_not_documents(self) -> None:
        plain, told = self.make(), self.make(instruction="Find the function that does it")
        assert self.embed_query(plain, QUERY) != self.embed_query(told, QUERY)
        assert self.embed_documents(plain, list(TEXTS)) == self.embed_documents(told, list(TEXTS))
        self._equals_reference(
            [self.embed_query(told, QUERY)], [QUERY], query=True, instruction="Find the function that does it"
        )

    def test_a_document_instruction_changes_documents_and_not_queries(self) -> None:
        plain, told = self.make(), self.make(document_instruction="Retrieve semantically similar text")
        assert self.embed_query(plain, QUERY) == self.embed_query(told, QUERY)
        assert self.embed_documents(plain, [QUERY]) != self.embed_documents(told, [QUERY])

    def test_no_instruction_makes_a_query_a_document(self) -> None:
        subject = self.make(instruction="")
        assert self.embed_query(subject, QUERY) == pytest.approx(self.embed_documents(subject, [QUERY])[0], abs=1e-6)

    def test_fewer_dimensions_are_the_beginning_made_unit_length_again(self) -> None:
        # Slicing without normalising again distorts every similarity that is not a cosine.
        full, short = self.make(), self.make(dimensions=16)
        for long, vector in zip(
            [self.embed_query(full, QUERY), *self.embed_documents(full, list(TEXTS))],
            [self.embed_query(short, QUERY), *self.embed_documents(short, list(TEXTS))],
            strict=True,
        ):
            norm = math.hypot(*long[:16])
            assert vector == pytest.approx([value / norm for value in long[:16]], abs=1e-5)

    @pytest.mark.parametrize("dimensions", [0, -1, 1_000_000])
    def test_impossible_dimensions_are_refused(self, dimensions: int) -> None:
        with pytest.raises((ValueError, TypeError), match="dimensions"):
            self.embed_query(self.make(dimensions=dimensions), QUERY)

    def test_an_unknown_option_is_refused(self) -> None:
        # Frameworks' base classes ignore what they do not know: a typo then changes nothing, in silence.
        with pytest.raises((ValueError, TypeError), match="dimensionz"):
            self.make(dimensionz=16)

    def test_order_and_repetitions_are_kept(self) -> None:
        subject = self.make()
        texts = [*TEXTS, *reversed(TEXTS), TEXTS[0]]
        alone = {text: self.embed_documents(subject, [text])[0] for text in TEXTS}
        for text, vector in zip(texts, self.embed_documents(subject, texts), strict=True):
            assert vector == pytest.approx(alone[text], abs=1e-5)

    def test_texts_that_differ_in_white_space_alone_have_different_vectors(self) -> None:
        one, *others = self.embed_documents(self.make(), ["a\nb", "a b", " a\nb", "a\nb\n"])
        assert one not in others

    def test_the_list_that_is_given_is_not_changed(self) -> None:
        texts = list(TEXTS)
        self.embed_documents(self.make(), texts)
        assert texts == list(TEXTS)

    def test_no_documents_give_no_vectors_without_loading(self) -> None:
        assert self.embed_documents(self.make_unloadable(), []) == []
        assert asyncio.run(self.aembed_documents(self.make_unloadable(), [])) == []

    def test_a_model_that_cannot_be_loaded_is_an_error_at_first_use(self) -> None:
        subject = self.make_unloadable()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each framework has its own
            self.embed_query(subject, QUERY)
        assert not isinstance(caught.value, NotImplementedError)

    def test_an_error_of_the_model_is_an_error(self) -> None:
        subject = self.make_failing(RuntimeError("the device is on fire"))
        with pytest.raises(Exception, match="the device is on fire"):
            self.embed_query(subject, QUERY)
        with pytest.raises(Exception, match="the device is on fire"):
            asyncio.run(self.aembed_documents(subject, [QUERY]))

    def test_sync_and_async_are_equal(self) -> None:
        subject = self.make()
        assert asyncio.run(self.aembed_query(subject, QUERY)) == self.embed_query(subject, QUERY)
        texts = list(TEXTS)
        assert asyncio.run(self.aembed_documents(subject, texts)) == self.embed_documents(subject, texts)

    def test_concurrent_queries_share_forward_passes(self) -> None:
        # Without that, 64 users of a web service wait for 64 forward passes, one after the other.
        subject = self.make()
        queries = [f"{QUERY} {number}" for number in range(CALLERS)]

        async def ask() -> list[list[float]]:
            return await asyncio.gather(*(self.aembed_query(subject, query) for query in queries))

        found = asyncio.run(ask())
        assert _counted(self.forward_passes()) <= CALLERS // 4
        self._equals_reference(found, queries, query=True)

    def test_the_event_loop_goes_on_while_documents_are_embedded(self) -> None:
        # LlamaIndex's default computes on the loop: nobody else is served meanwhile.
        subject = self.make()
        texts = [f"text {number}" for number in range(500)]
        assert asyncio.run(_turns_of_the_loop(lambda: self.aembed_documents(subject, texts))) > 10

    def test_threads_may_share_it(self) -> None:
        subject = self.make()
        queries = [f"{QUERY} {number}" for number in range(CALLERS)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda query: self.embed_query(subject, query), queries))
        self._equals_reference(found, queries, query=True)

    def test_a_deep_copy_gives_the_same_vectors(self) -> None:
        subject = self.make()
        assert self.embed_query(copy.deepcopy(subject), QUERY) == self.embed_query(subject, QUERY)

    def _equals_reference(
        self, found: Sequence[Sequence[float]], texts: Sequence[str], *, query: bool, **options: Any
    ) -> None:
        expected = self.reference(texts, query=query, **options)
        if expected is None:
            pytest.skip("there is no reference to compare with")
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


class RerankerConformance:
    """The list for classes that rerank. A subclass provides the hooks; every ``test_`` method is a test.

    Each test has a fresh instance, so that a hook may keep on `self` what another needs.
    """

    # -- hooks ---------------------------------------------------------------------------------------------------

    def make(self, **options: Any) -> Any:
        """The class under test, with a fast model that scores in [0, 1].

        Args:
            options: Any of `top_n` (None: all), `score_threshold` and `instruction`, to be passed on as they are,
                unknown ones too. By default all is kept.
        """
        raise NotImplementedError

    def make_unloadable(self) -> Any:
        """The class under test, with a model that cannot be loaded; making it must work."""
        raise NotImplementedError

    def make_failing(self, error: Exception) -> Any:
        """The class under test, with a model that raises `error` whenever it computes."""
        raise NotImplementedError

    def to_document(self, candidate: Candidate) -> Any:
        """The framework's document."""
        raise NotImplementedError

    def from_document(self, document: Any) -> Ranked:
        """What a result of the class under test holds."""
        raise NotImplementedError

    def rerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        """The framework's documents, reranked."""
        raise NotImplementedError

    async def arerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        """The framework's documents, reranked by the async method."""
        raise NotImplementedError

    def reference(self, query: str, texts: Sequence[str], **options: Any) -> list[float] | None:
        """The scores that the model itself gives, or None if there is nothing to compare with.

        Args:
            query: The query.
            texts: n texts.
            options: `instruction`, perhaps.
        """
        return None

    def forward_passes(self) -> int | None:
        """How often the model of `make` has computed, or None if that cannot be told."""
        return None

    # -- the list ------------------------------------------------------------------------------------------------

    def test_every_document_has_the_score_of_the_model(self) -> None:
        self._equals_reference(self._ranked(self.make()))

    def test_the_best_comes_first(self) -> None:
        scores = [result.score for result in self._ranked(self.make())]
        assert scores == sorted(scores, reverse=True)

    def test_scores_are_python_floats_in_the_unit_interval(self) -> None:
        # numpy floats break JSON, tracing and web frameworks; raw logits make thresholds meaningless.
        scores = [result.score for result in self._ranked(self.make())]
        assert {type(score) for score in scores} == {float}
        assert all(0 <= score <= 1 for score in scores)

    def test_ids_texts_and_metadata_are_kept(self) -> None:
        # langchain-cohere, -voyageai, -pinecone and others lose the id; some drop the metadata.
        found = {result.id: (result.text, result.metadata) for result in self._ranked(self.make())}
        assert found == {candidate.id: (candidate.text, candidate.metadata) for candidate in CANDIDATES}

    def test_what_is_given_is_not_changed(self) -> None:
        # Adapters write scores into the caller's documents: reranking the same list twice then goes wrong.
        documents = self._documents()
        before = copy.deepcopy(documents)
        objects = [id(document) for document in documents]
        self.rerank(self.make(top_n=2), QUERY, documents)
        asyncio.run(self.arerank(self.make(), QUERY, documents))
        assert documents == before
        assert [id(document) for document in documents] == objects

    def test_documents_that_score_the_same_keep_their_order(self) -> None:
        candidates = [Candidate("The same text.", f"id-{number}") for number in range(20)]
        found = self._ranked(self.make(), [self.to_document(candidate) for candidate in candidates])
        assert [result.id for result in found] == [candidate.id for candidate in candidates]

    def test_a_document_that_was_found_twice_is_returned_once(self) -> None:
        documents = self._documents()
        found = self._ranked(self.make(), [*documents, *copy.deepcopy(documents)])
        assert sorted(str(result.id) for result in found) == sorted(candidate.id for candidate in CANDIDATES)

    @pytest.mark.parametrize("top_n", [1, 3, len(CANDIDATES), 1000])
    def test_top_n_keeps_the_best(self, top_n: int) -> None:
        everything = self._ranked(self.make())
        assert self._ranked(self.make(top_n=top_n)) == everything[:top_n]

    def test_without_top_n_all_are_kept(self) -> None:
        assert len(self._ranked(self.make(top_n=None))) == len(CANDIDATES)

    @pytest.mark.parametrize("top_n", [0, -1])
    def test_an_impossible_top_n_is_refused(self, top_n: int) -> None:
        # classic CrossEncoderReranker takes -1 and drops the last document.
        with pytest.raises((ValueError, TypeError), match="top_"):
            self._ranked(self.make(top_n=top_n))

    def test_the_threshold_is_inclusive_and_top_n_counts_what_it_leaves(self) -> None:
        everything = self._ranked(self.make())
        threshold = everything[2].score
        assert self._ranked(self.make(score_threshold=threshold)) == [
            result for result in everything if result.score >= threshold
        ]
        assert self._ranked(self.make(score_threshold=threshold, top_n=1)) == everything[:1]

    def test_a_threshold_that_nothing_meets_leaves_nothing(self) -> None:
        assert self._ranked(self.make(score_threshold=1.1)) == []

    def test_an_instruction_reaches_the_model(self) -> None:
        told = self.make(instruction="Judge whether the Document names a function")
        self._equals_reference(self._ranked(told), instruction="Judge whether the Document names a function")
        plain = {result.id: result.score for result in self._ranked(self.make())}
        assert {result.id: result.score for result in self._ranked(told)} != plain

    def test_an_unknown_option_is_refused(self) -> None:
        # BaseDocumentCompressor and BaseNodePostprocessor ignore what they do not know.
        with pytest.raises((ValueError, TypeError), match="top_m"):
            self.make(top_m=3)

    def test_no_documents_give_no_results_without_loading(self) -> None:
        assert list(self.rerank(self.make_unloadable(), QUERY, [])) == []
        assert list(asyncio.run(self.arerank(self.make_unloadable(), QUERY, []))) == []

    def test_a_model_that_cannot_be_loaded_is_an_error_at_first_use(self) -> None:
        subject = self.make_unloadable()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each framework has its own
            self.rerank(subject, QUERY, self._documents())
        assert not isinstance(caught.value, NotImplementedError)

    def test_an_error_of_the_model_is_an_error_and_no_empty_list(self) -> None:
        # PineconeRerank logs the error and returns [].
        subject = self.make_failing(RuntimeError("the device is on fire"))
        with pytest.raises(Exception, match="the device is on fire"):
            self.rerank(subject, QUERY, self._documents())
        with pytest.raises(Exception, match="the device is on fire"):
            asyncio.run(self.arerank(subject, QUERY, self._documents()))

    def test_sync_and_async_are_equal(self) -> None:
        subject = self.make()
        found = asyncio.run(self.arerank(subject, QUERY, self._documents()))
        assert [self.from_document(document) for document in found] == self._ranked(subject)

    def test_concurrent_calls_share_forward_passes(self) -> None:
        subject = self.make()
        queries = [f"{QUERY} {number}" for number in range(CALLERS)]

        async def ask() -> list[Sequence[Any]]:
            return await asyncio.gather(*(self.arerank(subject, query, self._documents()[:2]) for query in queries))

        found = asyncio.run(ask())
        assert _counted(self.forward_passes()) <= CALLERS // 2
        for query, documents in zip(queries, found, strict=True):
            self._equals_reference([self.from_document(document) for document in documents], query)

    def test_the_event_loop_goes_on_while_documents_are_reranked(self) -> None:
        subject = self.make()
        documents = [self.to_document(Candidate(f"text {number}", f"id-{number}")) for number in range(500)]
        assert asyncio.run(_turns_of_the_loop(lambda: self.arerank(subject, QUERY, documents))) > 10

    def test_threads_may_share_it(self) -> None:
        subject = self.make()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: self._ranked(subject), range(16)))
        assert all(results == found[0] for results in found)

    def test_reranking_its_own_results_changes_nothing(self) -> None:
        subject = self.make()
        once = list(self.rerank(subject, QUERY, self._documents()))
        again = [self.from_document(document) for document in self.rerank(subject, QUERY, once)]
        assert [(result.id, result.score) for result in again] == [
            (result.id, pytest.approx(result.score, abs=1e-6)) for result in map(self.from_document, once)
        ]

    def test_a_deep_copy_gives_the_same_results(self) -> None:
        subject = self.make()
        assert self._ranked(copy.deepcopy(subject)) == self._ranked(subject)

    def _documents(self) -> list[Any]:
        return [self.to_document(copy.deepcopy(candidate)) for candidate in CANDIDATES]

    def _ranked(self, subject: Any, documents: list[Any] | None = None) -> list[Ranked]:
        found = self.rerank(subject, QUERY, self._documents() if documents is None else documents)
        return [self.from_document(document) for document in found]

    def _equals_reference(self, found: Sequence[Ranked], query: str = QUERY, **options: Any) -> None:
        expected = self.reference(query, [result.text for result in found], **options)
        if expected is None:
            pytest.skip("there is no reference to compare with")
        assert [result.score for result in found] == pytest.approx(expected, abs=1e-6)


def _counted(passes: int | None) -> int:
    if passes is None:
        pytest.skip("forward passes are not counted")
    return passes


async def _turns_of_the_loop(call: Callable[[], Awaitable[object]]) -> int:
    """How often others had their turn while a call was under way."""
    task, turns = asyncio.ensure_future(call()), 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    await task
    return turns
