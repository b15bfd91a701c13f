"""Every adapter through the same list, and all of them at once over one model.

A new framework is one more row: a subclass of each suite.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval import Embedder, Reranker, TruncationWarning, loading
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)
from qwen_retrieval.testing.conformance import (
    CANDIDATES,
    QUERY,
    TEXTS,
    Candidate,
    EmbeddingsConformance,
    Ranked,
    RerankerConformance,
)

MISSING = "no/such-model"

DELAY = 0.003
"""Seconds of a forward pass: an engine that takes no time at all never has anybody waiting for it."""


def fake_embedder(engine: FakeEmbeddingEngine) -> Embedder:
    return Embedder(engine, ByteTokenizer(), fake_embedding_spec())


def fake_reranker(engine: FakeRerankingEngine) -> Reranker:
    return Reranker(engine, ByteTokenizer(), fake_reranking_spec())


class OurEmbeddings(EmbeddingsConformance):
    """Hooks that all our embedding classes share."""

    def setup_method(self) -> None:
        self.engine = FakeEmbeddingEngine(delay=DELAY)

    def wrap(self, embedder: Embedder | None, **options: Any) -> Any:
        """The class under test, over a given embedder, or a named model if there is none."""
        raise NotImplementedError

    def make(self, **options: Any) -> Any:
        return self.wrap(fake_embedder(self.engine), **options)

    def make_unloadable(self) -> Any:
        return self.wrap(None, **self.names(MISSING), local_files_only=True)

    def make_failing(self, error: Exception) -> Any:
        return self.wrap(fake_embedder(FakeEmbeddingEngine(fail_on=lambda _: error)))

    def names(self, model: str) -> dict[str, Any]:
        return {"model": model}

    def reference(self, texts: Sequence[str], *, query: bool, **options: Any) -> list[list[float]]:
        with fake_embedder(FakeEmbeddingEngine()) as embedder:
            embed = embedder.embed_queries if query else embedder.embed_documents
            found: list[list[float]] = embed(texts, **options).tolist()
            return found

    def forward_passes(self) -> int:
        return self.engine.calls

    def test_any_texts_have_the_vectors_of_the_model(self) -> None:
        subject = self.make()

        @settings(max_examples=25)
        @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
        def check(texts: list[str]) -> None:
            self._equals_reference(self.embed_documents(subject, texts), texts, query=False)
            self._equals_reference([self.embed_query(subject, texts[0])], texts[:1], query=True)

        check()

    def test_pickling_a_named_model_takes_settings_and_no_weights(self) -> None:
        subject = self.wrap(None, **self.names("demo"), dimensions=64, instruction="code_search")
        expected = self.embed_query(subject, QUERY)
        pickled = pickle.dumps(subject)
        assert len(pickled) < 4096
        assert self.embed_query(pickle.loads(pickled), QUERY) == expected
        assert self.embed_query(subject, QUERY) == expected


class OurReranker(RerankerConformance):
    """Hooks that all our reranking classes share."""

    def setup_method(self) -> None:
        self.engine = FakeRerankingEngine(delay=DELAY)

    def wrap(self, reranker: Reranker | None, **options: Any) -> Any:
        """The class under test, over a given reranker, or a named model if there is none."""
        raise NotImplementedError

    def make(self, **options: Any) -> Any:
        return self.wrap(fake_reranker(self.engine), **options)

    def make_unloadable(self) -> Any:
        return self.wrap(None, model=MISSING, local_files_only=True)

    def make_failing(self, error: Exception) -> Any:
        return self.wrap(fake_reranker(FakeRerankingEngine(fail_on=lambda _: error)))

    def reference(self, query: str, texts: Sequence[str], **options: Any) -> list[float]:
        with fake_reranker(FakeRerankingEngine()) as reranker:
            found: list[float] = reranker.score(query, texts, **options).tolist()
            return found

    def forward_passes(self) -> int:
        return self.engine.calls

    def test_pickling_a_named_model_takes_settings_and_no_weights(self) -> None:
        subject = self.wrap(None, model="demo", top_n=3)
        expected = self._ranked(subject)
        pickled = pickle.dumps(subject)
        assert len(pickled) < 4096
        assert self._ranked(pickle.loads(pickled)) == expected
        assert self._ranked(subject) == expected


# -- LangChain ---------------------------------------------------------------------------------------------------------


class TestLangChainEmbeddings(OurEmbeddings):
    def wrap(self, embedder: Embedder | None, **options: Any) -> Any:
        from langchain_qwen_retrieval import QwenEmbeddings

        return QwenEmbeddings(embedder=embedder, **options)

    def embed_query(self, subject: Any, query: str) -> list[float]:
        found: list[float] = subject.embed_query(query)
        return found

    async def aembed_query(self, subject: Any, query: str) -> list[float]:
        found: list[float] = await subject.aembed_query(query)
        return found

    def embed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = subject.embed_documents(texts)
        return found

    async def aembed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = await subject.aembed_documents(texts)
        return found


class TestLangChainReranker(OurReranker):
    def wrap(self, reranker: Reranker | None, **options: Any) -> Any:
        from langchain_qwen_retrieval import QwenReranker

        return QwenReranker(reranker=reranker, **options)

    def to_document(self, candidate: Candidate) -> Any:
        from langchain_core.documents import Document

        return Document(candidate.text, id=candidate.id, metadata=dict(candidate.metadata))

    def from_document(self, document: Any) -> Ranked:
        metadata = dict(document.metadata)
        return Ranked(document.page_content, document.id, metadata, metadata.pop("relevance_score"))

    def rerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = subject.compress_documents(documents, query)
        return found

    async def arerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = await subject.acompress_documents(documents, query)
        return found


# -- LlamaIndex --------------------------------------------------------------------------------------------------------


class TestLlamaIndexEmbedding(OurEmbeddings):
    def wrap(self, embedder: Embedder | None, **options: Any) -> Any:
        from llama_index.embeddings.qwen_retrieval import QwenEmbedding

        return QwenEmbedding(embedder=embedder, **options)

    def names(self, model: str) -> dict[str, Any]:
        return {"model_name": model}

    def embed_query(self, subject: Any, query: str) -> list[float]:
        found: list[float] = subject.get_query_embedding(query)
        return found

    async def aembed_query(self, subject: Any, query: str) -> list[float]:
        found: list[float] = await subject.aget_query_embedding(query)
        return found

    def embed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = subject.get_text_embedding_batch(texts)
        return found

    async def aembed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = await subject.aget_text_embedding_batch(texts)
        return found


class TestLlamaIndexRerank(OurReranker):
    def wrap(self, reranker: Reranker | None, **options: Any) -> Any:
        from llama_index.postprocessor.qwen_retrieval import QwenRerank

        return QwenRerank(reranker=reranker, **options)

    def to_document(self, candidate: Candidate) -> Any:
        from llama_index.core.schema import NodeWithScore, TextNode

        metadata = dict(candidate.metadata)
        node = TextNode(text=candidate.text, id_=candidate.id, metadata=metadata)
        node.excluded_embed_metadata_keys = list(metadata)  # so that the model sees the text alone
        return NodeWithScore(node=node, score=0.5)

    def from_document(self, document: Any) -> Ranked:
        return Ranked(document.node.text, document.node.node_id, document.node.metadata, document.score)

    def rerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = subject.postprocess_nodes(documents, query_str=query)
        return found

    async def arerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = await subject.apostprocess_nodes(documents, query_str=query)
        return found


# -- Haystack ----------------------------------------------------------------------------------------------------------


@dataclass
class Embedders:
    """Haystack has one component for queries and one for documents."""

    text: Any
    document: Any


class TestHaystackEmbedders(OurEmbeddings):
    def wrap(self, embedder: Embedder | None, **options: Any) -> Any:
        from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder, QwenTextEmbedder

        for_queries = {name: value for name, value in options.items() if name != "document_instruction"}
        for_documents = {name: value for name, value in options.items() if name != "instruction"}
        if embedder is None:
            return Embedders(QwenTextEmbedder(**for_queries), QwenDocumentEmbedder(**for_documents))
        return Embedders(
            QwenTextEmbedder.from_embedder(embedder, **for_queries),
            QwenDocumentEmbedder.from_embedder(embedder, **for_documents),
        )

    def embed_query(self, subject: Any, query: str) -> list[float]:
        found: list[float] = subject.text.run(query)["embedding"]
        return found

    async def aembed_query(self, subject: Any, query: str) -> list[float]:
        found: list[float] = (await subject.text.run_async(query))["embedding"]
        return found

    def embed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        from haystack import Document

        found = subject.document.run([Document(content=text) for text in texts])
        return [document.embedding for document in found["documents"]]

    async def aembed_documents(self, subject: Any, texts: list[str]) -> list[list[float]]:
        from haystack import Document

        found = await subject.document.run_async([Document(content=text) for text in texts])
        return [document.embedding for document in found["documents"]]


class TestHaystackRanker(OurReranker):
    def wrap(self, reranker: Reranker | None, **options: Any) -> Any:
        from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker

        options = {"top_k": options.pop("top_n", None), **options}
        return QwenRanker(**options) if reranker is None else QwenRanker.from_reranker(reranker, **options)

    def to_document(self, candidate: Candidate) -> Any:
        from haystack import Document

        return Document(content=candidate.text, id=candidate.id, meta=dict(candidate.metadata), score=0.5)

    def from_document(self, document: Any) -> Ranked:
        return Ranked(document.content, document.id, document.meta, document.score)

    def rerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = subject.run(query=query, documents=documents)["documents"]
        return found

    async def arerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:
        found: Sequence[Any] = (await subject.run_async(query=query, documents=documents))["documents"]
        return found


# -- all of them at once -----------------------------------------------------------------------------------------------

EMBEDDINGS: list[type[OurEmbeddings]] = [TestLangChainEmbeddings, TestLlamaIndexEmbedding, TestHaystackEmbedders]
RERANKERS: list[type[OurReranker]] = [TestLangChainReranker, TestLlamaIndexRerank, TestHaystackRanker]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of each model that is loaded during a test."""
    kinds: list[str] = []

    def counted(read: Callable[[loading.LoadConfig], Any]) -> Callable[[loading.LoadConfig], Any]:
        def read_and_count(config: loading.LoadConfig) -> Any:
            kinds.append(config.kind)
            return read(config)

        return read_and_count

    monkeypatch.setattr(loading, "_cache", {})  # whatever another test has loaded
    monkeypatch.setattr(loading, "_read_embedding", counted(loading._read_embedding))
    monkeypatch.setattr(loading, "_read_reranking", counted(loading._read_reranking))
    return kinds


def test_one_model_is_loaded_once_by_all_adapters_from_threads_and_event_loops(loads: list[str]) -> None:
    embedders = [(row(), row().wrap(None, **row().names("demo"))) for row in EMBEDDINGS]
    rerankers = [(row(), row().wrap(None, model="demo")) for row in RERANKERS]
    assert loads == []
    documents = list(CANDIDATES[:3])
    calls: list[Callable[[], object]] = []
    for one, subject in embedders:
        calls += [
            lambda one=one, subject=subject: one.embed_query(subject, QUERY),  # type: ignore[misc]
            lambda one=one, subject=subject: asyncio.run(one.aembed_query(subject, QUERY)),  # type: ignore[misc]
        ]
    for other, subject in rerankers:
        found = [other.to_document(candidate) for candidate in documents]
        calls += [
            lambda one=other, subject=subject, found=found: one.rerank(subject, QUERY, found),  # type: ignore[misc]
            lambda one=other, subject=subject, found=found: asyncio.run(one.arerank(subject, QUERY, found)),  # type: ignore[misc]
        ]
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], object]) -> object:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(start, calls))
    assert sorted(loads) == ["embedding", "reranking"]


def test_adapters_of_different_frameworks_share_batches() -> None:
    with Embedder.from_pretrained("demo") as embedder:
        embedders = [(row(), row().wrap(None, **row().names("demo"))) for row in EMBEDDINGS]

        async def ask() -> list[list[float]]:
            queries = [(one, subject, f"{QUERY} {number}") for number in range(20) for one, subject in embedders]
            return await asyncio.gather(*(one.aembed_query(subject, query) for one, subject, query in queries))

        before = embedder._worker.batches
        found = asyncio.run(ask())
        assert embedder._worker.batches - before <= 15
    for number in range(20):
        for vector in found[3 * number + 1 : 3 * number + 3]:
            assert vector == pytest.approx(found[3 * number], abs=1e-5)


@pytest.mark.parametrize("row", RERANKERS)
def test_adapters_of_different_frameworks_agree(row: type[OurReranker]) -> None:
    one, other = row(), RERANKERS[0]()
    one.setup_method()
    other.setup_method()
    assert one._ranked(one.make()) == other._ranked(other.make())
    assert len(TEXTS) == len(one._ranked(one.make()))


@pytest.mark.parametrize("row", EMBEDDINGS)
def test_a_warning_points_at_the_line_outside_of_our_packages(row: type[OurEmbeddings]) -> None:
    one = row()
    subject = one.wrap(Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), max_length=8))
    with pytest.warns(TruncationWarning) as caught:
        one.embed_documents(subject, ["much longer than eight tokens"])
    assert "qwen_retrieval" not in caught[0].filename


def test_the_suites_fail_for_an_adapter_that_breaks_a_promise() -> None:
    class Careless(TestLangChainReranker):
        """Returns what it was given, in the order in which it came, as many do when something goes wrong."""

        def rerank(self, subject: Any, query: str, documents: list[Any]) -> Sequence[Any]:  # noqa: ARG002
            for number, document in enumerate(documents):
                document.metadata["relevance_score"] = number
            return documents

    for name in ("what_is_given_is_not_changed", "the_best_comes_first", "top_n_keeps_the_best"):
        careless = Careless()
        careless.setup_method()
        test = getattr(careless, f"test_{name}")
        with pytest.raises(AssertionError):
            test(1) if "top_n" in name else test()


def test_without_a_reference_nothing_is_compared_and_pytest_says_so() -> None:
    class Outsider(TestLangChainReranker):
        def reference(self, query: str, texts: Sequence[str], **options: Any) -> Any:  # noqa: ARG002
            return None

    outsider = Outsider()
    outsider.setup_method()
    with pytest.raises(pytest.skip.Exception, match="no reference"):
        outsider.test_every_document_has_the_score_of_the_model()
