"""The components inside Haystack: pipelines, composites, breakpoints."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.preprocessors import EmbeddingBasedDocumentSplitter
from haystack.components.retrievers import MultiQueryEmbeddingRetriever, TextEmbeddingRetriever
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever, InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import BreakpointException
from haystack.core.super_component import SuperComponent
from haystack.dataclasses import ChatMessage
from haystack.dataclasses.breakpoints import Breakpoint, PipelineSnapshot
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy

from qwen_retrieval.testing import FakeEmbeddingEngine, FakeRerankingEngine
from tests.integrations.haystack_parts import (
    QUERY,
    TEXTS,
    document_embedder,
    documents,
    make_embedder,
    make_reranker,
    ranker,
    text_embedder,
)


@pytest.fixture
def store() -> InMemoryDocumentStore:
    """With the documents in it, put there by an indexing pipeline."""
    made = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", document_embedder())
    indexing.add_component("writer", DocumentWriter(made, policy=DuplicatePolicy.OVERWRITE))
    indexing.connect("embedder.documents", "writer.documents")
    assert indexing.run({"embedder": {"documents": documents()}})["writer"] == {"documents_written": 4}
    return made


def question_pipeline(store: InMemoryDocumentStore, engine: FakeRerankingEngine | None = None) -> Pipeline:
    """Text embedder, retriever, ranker and prompt builder."""
    pipeline = Pipeline()
    pipeline.add_component("text_embedder", text_embedder())
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    pipeline.add_component("ranker", ranker(engine, top_k=2))
    template = [ChatMessage.from_user("{% for one in documents %}{{ one.content }};{% endfor %} {{ question }}")]
    pipeline.add_component("prompt_builder", ChatPromptBuilder(template=template))
    pipeline.connect("text_embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "prompt_builder.documents")
    return pipeline


INPUTS = {"text_embedder": {"text": QUERY}, "ranker": {"query": QUERY}, "prompt_builder": {"question": QUERY}}


def hybrid_pipeline(store: InMemoryDocumentStore, engine: FakeRerankingEngine | None = None) -> Pipeline:
    """Keyword search and vector search straight into the ranker."""
    pipeline = Pipeline()
    pipeline.add_component("by_word", InMemoryBM25Retriever(store, top_k=3))
    pipeline.add_component(
        "by_vector",
        TextEmbeddingRetriever(retriever=InMemoryEmbeddingRetriever(store, top_k=3), text_embedder=text_embedder()),
    )
    pipeline.add_component("ranker", ranker(engine))
    pipeline.connect("by_word.documents", "ranker.documents")
    pipeline.connect("by_vector.documents", "ranker.documents")
    return pipeline


HYBRID_INPUTS = {name: {"query": QUERY} for name in ("by_word", "by_vector", "ranker")}


def test_the_store_holds_the_vectors_of_the_core(store: InMemoryDocumentStore) -> None:
    found = sorted(store.filter_documents(), key=lambda document: document.id)
    assert [document.embedding for document in found] == make_embedder().embed_documents(TEXTS).tolist()


def test_a_question_goes_through_to_the_prompt(store: InMemoryDocumentStore) -> None:
    output = question_pipeline(store).run(INPUTS)
    best = [TEXTS[result.index] for result in make_reranker().rerank(QUERY, TEXTS, top_n=2)]
    assert output["prompt_builder"]["prompt"][0].text == f"{best[0]};{best[1]}; {QUERY}"


async def test_a_pipeline_gives_the_same_when_it_is_run_async(store: InMemoryDocumentStore) -> None:
    pipeline = question_pipeline(store)
    assert (await pipeline.run_async(INPUTS))["prompt_builder"] == pipeline.run(INPUTS)["prompt_builder"]


def test_each_instruction_is_an_input_of_the_pipeline(store: InMemoryDocumentStore) -> None:
    inputs = {name: dict(values) for name, values in INPUTS.items()}
    for name in ("text_embedder", "ranker"):
        inputs[name]["instruction"] = "Find a poem"
    with_it = question_pipeline(store).run(inputs, include_outputs_from={"text_embedder", "ranker"})
    without = question_pipeline(store).run(INPUTS, include_outputs_from={"text_embedder", "ranker"})
    assert with_it["text_embedder"]["embedding"] != without["text_embedder"]["embedding"]
    assert with_it["ranker"]["documents"][0].score != without["ranker"]["documents"][0].score


def test_meta_is_an_output_of_the_pipeline(store: InMemoryDocumentStore) -> None:
    """An undeclared output is dropped: https://github.com/deepset-ai/haystack-core-integrations/issues/3605"""
    output = question_pipeline(store).run(INPUTS, include_outputs_from={"ranker"})
    assert output["text_embedder"]["meta"]["model"] == "fake-embedding"
    assert output["ranker"]["meta"]["model"] == "fake-reranker"
    assert output["ranker"]["meta"]["tokens"] > 0


async def test_what_two_retrievers_find_is_ranked_once(store: InMemoryDocumentStore) -> None:
    """https://github.com/deepset-ai/haystack/pull/10508"""
    for run in ("sync", "async"):
        engine = FakeRerankingEngine()
        pipeline = hybrid_pipeline(store, engine)
        if run == "sync":
            output = pipeline.run(HYBRID_INPUTS, include_outputs_from={"by_word", "by_vector"})
        else:
            output = await pipeline.run_async(HYBRID_INPUTS, include_outputs_from={"by_word", "by_vector"})
        found = [document.id for name in ("by_word", "by_vector") for document in output[name]["documents"]]
        ranked = [document.id for document in output["ranker"]["documents"]]
        assert len(set(found)) < len(found)
        assert sorted(ranked) == sorted(set(found))
        assert engine.inputs == len(ranked)
        scores = [document.score for document in output["ranker"]["documents"]]
        assert scores == sorted(scores, reverse=True)


def test_a_breakpoint_at_the_ranker_can_be_resumed_from_json(store: InMemoryDocumentStore) -> None:
    whole = question_pipeline(store).run(INPUTS)
    snapshots: list[PipelineSnapshot] = []
    with pytest.raises(BreakpointException):
        question_pipeline(store).run(
            INPUTS, break_point=Breakpoint("ranker"), snapshot_callback=lambda snapshot: snapshots.append(snapshot)
        )
    (snapshot,) = snapshots
    again = PipelineSnapshot.from_dict(json.loads(json.dumps(snapshot.to_dict())))
    resumed = question_pipeline(store).run(data={}, pipeline_snapshot=again)
    assert resumed["prompt_builder"] == whole["prompt_builder"]


def test_a_snapshot_holds_embedded_documents_as_they_are() -> None:
    pipeline = Pipeline()
    pipeline.add_component("embedder", document_embedder())
    pipeline.add_component("writer", DocumentWriter(InMemoryDocumentStore()))
    pipeline.connect("embedder.documents", "writer.documents")
    snapshots: list[PipelineSnapshot] = []
    with pytest.raises(BreakpointException):
        pipeline.run(
            {"embedder": {"documents": documents()}},
            break_point=Breakpoint("writer"),
            snapshot_callback=lambda snapshot: snapshots.append(snapshot),
        )
    written = json.loads(json.dumps(snapshots[0].to_dict()))
    assert make_embedder().embed_documents([TEXTS[0]])[0].tolist() in list(lists_in(written))


def lists_in(value: Any) -> Any:
    """Every list inside of plain values."""
    if isinstance(value, list):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from lists_in(part)


async def test_inside_a_text_embedding_retriever(store: InMemoryDocumentStore) -> None:
    retriever = TextEmbeddingRetriever(
        retriever=InMemoryEmbeddingRetriever(store, top_k=2), text_embedder=text_embedder()
    )
    alone = InMemoryEmbeddingRetriever(store, top_k=2).run(text_embedder().run(QUERY)["embedding"])
    assert retriever.run(query=QUERY) == alone
    assert await retriever.run_async(query=QUERY) == alone


async def test_inside_a_multi_query_retriever_whose_threads_share_the_model(store: InMemoryDocumentStore) -> None:
    engine = FakeEmbeddingEngine()
    retriever = MultiQueryEmbeddingRetriever(
        retriever=InMemoryEmbeddingRetriever(store, top_k=4), query_embedder=text_embedder(engine), max_workers=3
    )
    queries = [QUERY, "delete", "sine", "folder"]
    found = retriever.run(queries=queries)["documents"]
    assert {document.id for document in found} == {"d0", "d1", "d2", "d3"}
    assert (await retriever.run_async(queries=queries))["documents"] == found
    assert engine.inputs == 8


class Sentences:
    """Splits at full stops; Haystack's own splitter downloads a model."""

    def split_sentences(self, text: str) -> list[dict[str, Any]]:
        ends = [index + 1 for index, letter in enumerate(text) if letter == "."]
        return [
            {"sentence": text[start:end], "start": start, "end": end}
            for start, end in zip([0, *ends], ends, strict=False)
        ]


async def test_inside_a_document_splitter_that_goes_by_embeddings() -> None:
    splitter = EmbeddingBasedDocumentSplitter(
        document_embedder=document_embedder(), sentences_per_group=1, percentile=0.5, min_length=0, max_length=500
    )
    splitter.sentence_splitter = Sentences()  # type: ignore[assignment]
    same, other = "copy2 copies a file", "sin returns the sine"
    content = f"{same}.{same}.{other}.{other}."
    splits = splitter.run([Document(content=content)])["documents"]
    assert [split.content for split in splits] == [f"{same}.{same}.", f"{other}.{other}."]
    assert "".join(split.content or "" for split in splits) == content
    again = await splitter.run_async([Document(content=content)])
    assert [split.content for split in again["documents"]] == [split.content for split in splits]


def test_inside_a_super_component(store: InMemoryDocumentStore) -> None:
    search = SuperComponent(
        pipeline=hybrid_pipeline(store),
        input_mapping={"query": ["by_word.query", "by_vector.query", "ranker.query"], "top_k": ["ranker.top_k"]},
        output_mapping={"ranker.documents": "documents"},
    )
    outer = Pipeline()
    outer.add_component("search", search)
    output = outer.run({"search": {"query": QUERY, "top_k": 1}})
    best = make_reranker().rerank(QUERY, TEXTS, top_n=1)[0]
    assert [document.id for document in output["search"]["documents"]] == [f"d{best.index}"]


async def test_concurrent_pipeline_runs_share_batches(store: InMemoryDocumentStore) -> None:
    engine = FakeRerankingEngine(delay=0.02)
    pipeline = question_pipeline(store, engine)
    questions = [f"{QUERY} {number}" for number in range(16)]
    inputs = [{name: dict.fromkeys(values, text) for name, values in INPUTS.items()} for text in questions]
    outputs = await asyncio.gather(*(pipeline.run_async(one) for one in inputs))
    prompts = [output["prompt_builder"]["prompt"][0].text for output in outputs]
    assert [prompt.endswith(question) for prompt, question in zip(prompts, questions, strict=True)] == [True] * 16
    assert engine.inputs == 16 * 3
    assert engine.calls < 16
