"""QwenEmbedding and QwenRerank in the engines, retrievers and stores of LlamaIndex, with a pretended LLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import MockEmbedding, QueryBundle, Settings, StorageContext, VectorStoreIndex
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.indices.query.query_transform import HyDEQueryTransform, StepDecomposeQueryTransform
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SemanticSplitterNodeParser, SentenceSplitter
from llama_index.core.query_engine import MultiStepQueryEngine, RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import Document, NodeWithScore, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step
from qdrant_client import AsyncQdrantClient, QdrantClient

from qwen_retrieval.testing import FakeEmbeddingEngine, FakeRerankingEngine
from tests.integrations.llama_index_parts import QUERY, TEXTS, embedding, listening, rerank, ticks_during


@pytest.fixture(autouse=True)
def _no_other_models() -> Iterator[None]:
    """Whatever does not use the models it is given would otherwise ask for OpenAI's."""
    before = Settings._llm, Settings._embed_model
    Settings._llm, Settings._embed_model = MockLLM(), MockEmbedding(embed_dim=3)
    yield
    Settings._llm, Settings._embed_model = before


def nodes() -> list[TextNode]:
    return [TextNode(id_=str(i), text=text, metadata={"title": f"T{i}"}) for i, text in enumerate(TEXTS)]


@pytest.fixture
def index() -> VectorStoreIndex:
    return VectorStoreIndex(nodes(), embed_model=embedding())


def best(found: list[NodeWithScore]) -> str:
    return found[0].node.node_id


async def test_query_engine(index: VectorStoreIndex) -> None:
    reranker = rerank(top_n=2, keep_retrieval_score=True)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[reranker])
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert len(response.source_nodes) == 2
        assert best(response.source_nodes) == "0"
        assert TEXTS[0] in str(response)  # MockLLM repeats the prompt
        assert "retrieval_score" not in str(response)
        sources = json.loads(json.dumps([node.to_dict() for node in response.source_nodes]))
        assert sources[0]["score"] == response.source_nodes[0].score
        assert sources[0]["node"]["metadata"]["retrieval_score"] > sources[1]["node"]["metadata"]["retrieval_score"]


@pytest.mark.parametrize("mode", ["condense_plus_context", "context"])
async def test_chat_engines(index: VectorStoreIndex, mode: Any) -> None:
    def chat() -> BaseChatEngine:
        return index.as_chat_engine(
            chat_mode=mode,
            llm=MockLLM(),
            memory=ChatMemoryBuffer.from_defaults(token_limit=1000),  # the default leaves a database open
            similarity_top_k=4,
            node_postprocessors=[rerank(top_n=1)],
        )

    for response in (chat().chat(QUERY), await chat().achat(QUERY)):
        assert [node.node.node_id for node in response.source_nodes] == ["0"]


def test_multi_step_query_engine(index: VectorStoreIndex) -> None:
    inner = index.as_query_engine(llm=MockLLM(max_tokens=5), similarity_top_k=4, node_postprocessors=[rerank(top_n=1)])
    engine = MultiStepQueryEngine(
        inner,
        query_transform=StepDecomposeQueryTransform(llm=MockLLM(max_tokens=5)),
        index_summary="Python's library",
        num_steps=2,
        stop_fn=lambda _: False,
    )
    with listening() as (recorder, _):
        response = engine.query(QUERY)
    assert response.source_nodes
    starts = [event for event in recorder.events if isinstance(event, ReRankStartEvent)]
    ends = [event for event in recorder.events if isinstance(event, ReRankEndEvent)]
    assert len(starts) == len(ends) == 2


async def test_retriever_tool(index: VectorStoreIndex) -> None:
    retriever = index.as_retriever(similarity_top_k=4)
    tool = RetrieverTool.from_defaults(retriever, node_postprocessors=[rerank(top_n=1)])
    for output in (tool.call(QUERY), await tool.acall(QUERY)):
        assert TEXTS[0] in str(output.content)
        assert [best([node]) for node in output.raw_output] == ["0"]


async def test_query_fusion_retriever(index: VectorStoreIndex) -> None:
    other = VectorStoreIndex(nodes(), embed_model=embedding(instruction=""))
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=3), other.as_retriever(similarity_top_k=4)],
        llm=MockLLM(),
        num_queries=1,
        similarity_top_k=4,
        use_async=False,
    )
    engine = RetrieverQueryEngine.from_args(fusion, llm=MockLLM(), node_postprocessors=[rerank(top_n=2)])
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert best(response.source_nodes) == "0"
        assert len(response.source_nodes) == 2


async def test_an_answer_does_not_block_the_event_loop() -> None:
    index = VectorStoreIndex(nodes(), embed_model=embedding())
    slow = embedding(FakeEmbeddingEngine(delay=0.2))
    reranker = rerank(FakeRerankingEngine(delay=0.2))
    engine = index.as_query_engine(llm=MockLLM(), embed_model=slow, node_postprocessors=[reranker])
    _, ticks = await ticks_during(engine.aquery(QUERY))
    assert ticks > 20  # of about 80, if neither model blocks


async def test_many_answers_at_once_share_forward_passes(index: VectorStoreIndex) -> None:
    queries, pairs = FakeEmbeddingEngine(delay=0.05), FakeRerankingEngine(delay=0.05)
    engine = index.as_query_engine(
        llm=MockLLM(), embed_model=embedding(queries), similarity_top_k=4, node_postprocessors=[rerank(pairs)]
    )
    await asyncio.gather(*(engine.aquery(f"query {i}") for i in range(32)))
    assert queries.calls < 8
    assert pairs.calls < 16


class Retrieved(Event):
    """What a step hands to the next."""

    nodes: list[NodeWithScore]
    query: str


class RetrieveAndRerank(Workflow):
    """The two steps of LlamaIndex's notebook on RAG workflows, without blocking."""

    def __init__(self, index: VectorStoreIndex) -> None:
        super().__init__(timeout=60)
        self.retriever = index.as_retriever(similarity_top_k=4)
        self.reranker = rerank(top_n=2)

    @step
    async def retrieve(self, event: StartEvent) -> Retrieved:
        query = str(event.get("query"))
        return Retrieved(nodes=await self.retriever.aretrieve(query), query=query)

    @step
    async def rerank(self, event: Retrieved) -> StopEvent:
        return StopEvent(result=await self.reranker.apostprocess_nodes(event.nodes, query_str=event.query))


@pytest.mark.filterwarnings("ignore:ServiceManager is deprecated")  # the workflows of older versions use it themselves
async def test_workflow(index: VectorStoreIndex) -> None:
    result = await RetrieveAndRerank(index).run(query=QUERY)
    assert best(result) == "0"
    assert len(result) == 2


async def test_retriever_evaluator(index: VectorStoreIndex) -> None:
    # https://github.com/run-llama/llama_index/issues/10238: with and without reranking
    evaluator = RetrieverEvaluator.from_metric_names(
        ["hit_rate", "mrr"],
        retriever=index.as_retriever(similarity_top_k=4),
        node_postprocessors=[rerank(top_n=1)],
    )
    for result in (evaluator.evaluate(QUERY, ["0"]), await evaluator.aevaluate(QUERY, ["0"])):
        assert result.retrieved_ids == ["0"]
        assert result.metric_vals_dict == {"hit_rate": 1.0, "mrr": 1.0}


async def test_hyde_takes_the_query_path_and_keeps_unit_length(index: VectorStoreIndex) -> None:
    engine = TransformQueryEngine(
        index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[rerank(top_n=1)]),
        HyDEQueryTransform(llm=MockLLM()),
    )
    assert best(engine.query(QUERY).source_nodes) == "0"
    # A hypothetical document is embedded like a document by a view without instruction.
    view = embedding().model_copy(update={"instruction": ""})
    hypothetical = QueryBundle(QUERY, custom_embedding_strs=[TEXTS[0]])
    retriever = index.as_retriever(embed_model=view, similarity_top_k=1)
    for found in (retriever.retrieve(hypothetical), await retriever.aretrieve(hypothetical)):
        assert best(found) == "0"


def test_semantic_splitter_takes_the_document_path() -> None:
    engine = FakeEmbeddingEngine()
    splitter = SemanticSplitterNodeParser(embed_model=embedding(engine), sentence_splitter=str.splitlines)
    chunks = splitter.get_nodes_from_documents([Document(text="\n".join(TEXTS))])
    assert "".join("".join(chunk.get_content() for chunk in chunks).split()) == "".join("".join(TEXTS).split())
    assert engine.tokens < 3 * len(" ".join(TEXTS)) + 50  # no instructions among them


class TestQdrant:
    """The vector store of llama-index-vector-stores-qdrant, in memory, where there are no payload indexes."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("llama_index.vector_stores.qdrant")

    def test_sync(self) -> None:
        from llama_index.vector_stores.qdrant import QdrantVectorStore

        store = QdrantVectorStore(collection_name="texts", client=QdrantClient(":memory:"), index_doc_id=False)
        context = StorageContext.from_defaults(vector_store=store)
        texts = [TextNode(text=text, metadata={"title": "T"}) for text in TEXTS]  # with ids that Qdrant takes
        VectorStoreIndex(texts, storage_context=context, embed_model=embedding(dimensions=16))
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding(dimensions=16))
        found = index.as_retriever(similarity_top_k=4).retrieve(QUERY)
        ranked = rerank(keep_retrieval_score=True).postprocess_nodes(found, query_str=QUERY)
        assert ranked[0].text == TEXTS[0]
        assert ranked[0].node.metadata.keys() == {"title", "retrieval_score"}
        again = index.as_retriever(similarity_top_k=4).retrieve(QUERY)
        assert again[0].node.metadata.keys() == {"title"}

    async def test_async(self) -> None:
        from llama_index.vector_stores.qdrant import QdrantVectorStore

        store = QdrantVectorStore(collection_name="texts", aclient=AsyncQdrantClient(":memory:"), index_doc_id=False)
        embed = embedding(dimensions=16)
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embed], vector_store=store)
        await pipeline.arun(nodes=nodes())
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed, use_async=True)
        found = await index.as_retriever(similarity_top_k=4).aretrieve(QUERY)
        ranked = await rerank(top_n=1).apostprocess_nodes(found, query_str=QUERY)
        assert [one.text for one in ranked] == [TEXTS[0]]
