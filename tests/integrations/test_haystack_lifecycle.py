"""When models are loaded, by whom they are shared, and when they go."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers import TextEmbeddingRetriever
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_integrations.common.qwen_retrieval.documents import as_vector
from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder, QwenTextEmbedder
from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker
from qwen_retrieval import loading
from qwen_retrieval.errors import ModelClosedError
from qwen_retrieval.testing import FakeEmbeddingEngine, FakeRerankingEngine
from tests.integrations.haystack_parts import (
    QUERY,
    Loads,
    document_embedder,
    documents,
    make_embedder,
    make_reranker,
    ranker,
    text_embedder,
)

CASES = [
    pytest.param(QwenTextEmbedder, {"text": QUERY}, id="text"),
    pytest.param(QwenDocumentEmbedder, {"documents": documents()}, id="documents"),
    pytest.param(QwenRanker, {"query": QUERY, "documents": documents()}, id="ranker"),
]


@pytest.mark.parametrize(("kind", "inputs"), CASES)
class TestLoading:
    def test_happens_at_the_first_run_and_once(
        self, kind: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads = Loads(monkeypatch)
        pipeline = Pipeline()
        pipeline.add_component("component", kind(model="any/model"))
        assert len(loads) == 0
        first = pipeline.run({"component": inputs})
        assert pipeline.run({"component": inputs}) == first
        assert len(loads) == 1

    async def test_is_done_once_for_threads_and_tasks_which_all_get_the_same(
        self, kind: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Concurrent requests broke tokenizers: https://github.com/deepset-ai/haystack/issues/1229"""
        loads = Loads(monkeypatch, delay=0.1)
        component = kind(model="any/model")
        start = threading.Barrier(8)

        def run_with_the_others() -> Any:
            start.wait()
            return component.run(**inputs)

        with ThreadPoolExecutor(8) as pool:
            threads = [asyncio.wrap_future(pool.submit(run_with_the_others)) for _ in range(8)]
            outputs = await asyncio.gather(*threads, *(component.run_async(**inputs) for _ in range(8)))
        assert all(output == outputs[0] for output in outputs)
        assert len(loads) == 1

    async def test_does_not_block_the_event_loop(
        self, kind: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`Pipeline.run_async` warms up on the event loop, and every run does; others load four times here."""
        import haystack.tools  # noqa: F401  # Haystack itself does, at the first run, and that takes time

        loads = Loads(monkeypatch, delay=0.4)
        pipeline = Pipeline()
        pipeline.add_component("component", kind(model="any/model"))
        ticking = asyncio.ensure_future(longest_pause())
        await asyncio.gather(*(pipeline.run_async({"component": inputs}) for _ in range(4)))
        assert await the_longest(ticking) < 0.2
        assert len(loads) == 1

    async def test_that_fails_is_an_error_and_is_tried_again(
        self, kind: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loads = Loads(monkeypatch)
        component = kind(model="any/model", batch_size=0)
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            component.warm_up()
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            await component.run_async(**inputs)
        component.batch_size = 1
        component.run(**inputs)
        assert len(loads) == 3

    async def test_starts_again_after_close(
        self, kind: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Models were kept for ever: https://github.com/deepset-ai/haystack/issues/4414"""
        loads = Loads(monkeypatch)
        component = kind(model="any/model")
        pipeline = Pipeline()
        pipeline.add_component("component", component)
        first = pipeline.run({"component": inputs})
        pipeline.close()
        await pipeline.close_async()  # nothing is left to close
        assert await pipeline.run_async({"component": inputs}) == first
        assert len(loads) == 2
        await pipeline.close_async()
        assert component.run(**inputs) == first["component"]
        assert len(loads) == 3
        for model in loads.models[:2]:
            with pytest.raises(ModelClosedError):
                model.embed_queries([QUERY]) if kind is not QwenRanker else model.score(QUERY, [QUERY])  # type: ignore[union-attr]

    def test_needs_no_model_to_close(self, kind: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        loads = Loads(monkeypatch)
        component = kind(model="any/model")
        component.close()
        component.run(**inputs)
        assert len(loads) == 1


async def longest_pause() -> float:
    """The longest time that the event loop kept this task waiting, until it is cancelled."""
    longest, before = 0.0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(0.005)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
    except asyncio.CancelledError:
        return longest


async def the_longest(ticking: asyncio.Future[float]) -> float:
    await asyncio.sleep(0.02)  # it has to wake up once more, or a pause that has just ended is not counted
    ticking.cancel()
    return await ticking


async def test_the_floats_of_many_documents_do_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    module = QwenDocumentEmbedder.__module__

    def slow_as_vector(values: list[float]) -> list[float]:
        time.sleep(0.001)  # as if vectors were far longer: 0.5 s in all, however fast the machine is
        return as_vector(values)

    monkeypatch.setattr(f"{module}.as_vector", slow_as_vector)
    component = document_embedder()
    many = [Document(content=f"text {number}") for number in range(500)]
    await component.run_async(many[:1])
    ticking = asyncio.ensure_future(longest_pause())
    assert len((await component.run_async(many))["documents"]) == 500
    assert await the_longest(ticking) < 0.3


async def test_a_given_model_is_left_open() -> None:
    embedder, reranker = make_embedder(), make_reranker()
    for component in (
        QwenTextEmbedder.from_embedder(embedder),
        QwenDocumentEmbedder.from_embedder(embedder),
        QwenRanker.from_reranker(reranker),
    ):
        component.warm_up()
        await component.warm_up_async()
        component.close()
        await component.close_async()
    assert len(embedder.embed_queries([QUERY])) == len(reranker.score(QUERY, [QUERY])) == 1


def test_composites_hand_the_end_down(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    retriever = TextEmbeddingRetriever(
        retriever=InMemoryEmbeddingRetriever(InMemoryDocumentStore()), text_embedder=QwenTextEmbedder(model="any/model")
    )
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)
    pipeline.warm_up()
    pipeline.run({"retriever": {"query": QUERY}})
    assert len(loads) == 1
    pipeline.close()
    with pytest.raises(ModelClosedError):
        loads.models[0].embed_queries([QUERY])  # type: ignore[union-attr]


def test_both_embedders_share_one_set_of_weights_until_the_last_of_them_is_closed() -> None:
    """The key of a peer's cache left options out: https://github.com/deepset-ai/haystack/pull/9844"""
    gc.collect()

    def in_memory() -> int:
        return sum(entry.model is not None for entry in loading._cache.values())

    before = in_memory()
    for_queries = QwenTextEmbedder(model="demo", dtype="float32", max_length=77)
    for_documents = QwenDocumentEmbedder(model="demo", dtype="float32", dimensions=64)
    for_queries.run(QUERY)
    for_documents.run(documents())
    shared = in_memory() - before
    for_queries.close()
    assert len(for_documents.run(documents())["documents"]) == 4
    for_documents.close()
    assert shared == 1
    assert in_memory() == before


async def test_many_single_queries_at_once_take_few_forward_passes() -> None:
    engine = FakeEmbeddingEngine(delay=0.02)
    component = text_embedder(engine)
    outputs = await asyncio.gather(*(component.run_async(f"query {number}") for number in range(64)))
    assert len({tuple(output["embedding"]) for output in outputs}) == 64
    assert engine.calls < 16
    assert {output["meta"]["tokens"] for output in outputs} == {
        text_embedder().run(text)["meta"]["tokens"] for text in ("query 1", "query 11")
    }


async def test_embedders_and_rankers_work_side_by_side() -> None:
    by_vector, by_relevance = document_embedder(), ranker(FakeRerankingEngine())
    embedded, ranked = await asyncio.gather(
        by_vector.run_async(documents()), by_relevance.run_async(QUERY, documents())
    )
    assert embedded["meta"]["model"] == "fake-embedding"
    assert ranked["meta"]["model"] == "fake-reranker"
