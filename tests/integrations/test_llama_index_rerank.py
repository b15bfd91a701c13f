"""QwenRerank: order, scores, nodes, events."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.bridge.pydantic import SecretStr
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

from llama_index.postprocessor.qwen_retrieval import QwenRerank
from qwen_retrieval import Reranker
from qwen_retrieval.testing import FakeRerankingEngine
from tests.integrations.llama_index_parts import (
    QUERY,
    TEXTS,
    listening,
    make_reranker,
    nodes_of,
    rerank,
    ticks_during,
)

Nodes = list[NodeWithScore]


def call_sync(reranker: QwenRerank, nodes: Nodes, query: str = QUERY) -> Nodes:
    return reranker.postprocess_nodes(nodes, query_str=query)


def call_async(reranker: QwenRerank, nodes: Nodes, query: str = QUERY) -> Nodes:
    return asyncio.run(reranker.apostprocess_nodes(nodes, query_str=query))


both = pytest.mark.parametrize("call", [call_sync, call_async], ids=["sync", "async"])
Call = Callable[..., Nodes]


def ids(nodes: Nodes) -> list[str]:
    return [one.node.node_id for one in nodes]


@both
def test_nodes_come_back_as_the_core_ranks_them(call: Call) -> None:
    results = make_reranker().rerank(QUERY, TEXTS)
    ranked = call(rerank(), nodes_of(TEXTS))
    assert ids(ranked) == [str(result.index) for result in results]
    assert [one.score for one in ranked] == [result.relevance_score for result in results]
    assert ranked[0].text == TEXTS[0]


@both
def test_the_input_is_left_as_it_is(call: Call) -> None:
    nodes = nodes_of(TEXTS, metadata={"title": "T"})
    before = copy.deepcopy(nodes)
    ranked = call(rerank(keep_retrieval_score=True, top_n=2), nodes)
    assert nodes == before
    assert all(one is not given for one in ranked for given in nodes)


def test_nodes_are_shared_where_nothing_changes_in_them() -> None:
    nodes = nodes_of(TEXTS)
    by_id = {one.node.node_id: one.node for one in nodes}
    assert all(one.node is by_id[one.node.node_id] for one in call_sync(rerank(), nodes))


def test_scores_are_python_floats_between_0_and_1() -> None:
    # https://github.com/run-llama/llama_index/issues/10780 and 16743: np.float32 breaks JSON
    ranked = call_sync(rerank(), nodes_of(TEXTS))
    assert {type(one.score) for one in ranked} == {float}
    assert all(0 <= one.get_score() <= 1 for one in ranked)
    assert len(json.loads(json.dumps([one.to_dict() for one in ranked]))) == 4


def test_scores_are_log_odds_on_request() -> None:
    results = make_reranker().rerank(QUERY, TEXTS)
    ranked = call_sync(rerank(scale="log_odds"), nodes_of(TEXTS))
    assert [one.score for one in ranked] == [result.log_odds for result in results]


@both
@pytest.mark.parametrize(("top_n", "count"), [(None, 4), (1, 1), (3, 3), (4, 4), (100, 4)])
def test_top_n_keeps_the_best(call: Call, top_n: int | None, count: int) -> None:
    everything = call(rerank(), nodes_of(TEXTS))
    assert ids(call(rerank(top_n=top_n), nodes_of(TEXTS))) == ids(everything)[:count]


@both
@pytest.mark.parametrize("scale", ["probability", "log_odds"])
def test_the_threshold_is_inclusive_and_in_the_unit_of_the_scores(call: Call, scale: Any) -> None:
    # https://github.com/run-llama/llama_index/issues/18518: how to drop what is irrelevant
    everything = call(rerank(scale=scale), nodes_of(TEXTS))
    threshold = everything[1].score
    assert ids(call(rerank(scale=scale, score_threshold=threshold), nodes_of(TEXTS))) == ids(everything)[:2]
    assert ids(call(rerank(scale=scale, score_threshold=threshold, top_n=1), nodes_of(TEXTS))) == ids(everything)[:1]
    assert call(rerank(scale=scale, score_threshold=100), nodes_of(TEXTS)) == []


def test_equal_scores_keep_the_order_given() -> None:
    nodes = nodes_of(["same", TEXTS[0], "same", "same"])
    assert ids(call_sync(rerank(), nodes)) == ["1", "0", "2", "3"]


def test_scores_belong_to_their_nodes() -> None:
    # https://github.com/run-llama/llama_index/issues/20597: scores of a sorted answer put on the nodes in input order
    log_odds = make_reranker().log_odds(QUERY, TEXTS[::-1]).tolist()
    ranked = call_sync(rerank(scale="log_odds"), nodes_of(TEXTS[::-1]))
    assert {int(one.node.node_id): one.score for one in ranked} == dict(enumerate(log_odds))


@both
def test_a_node_that_several_retrievers_found_is_kept_once(call: Call) -> None:
    node, other = TextNode(id_="a", text=TEXTS[0]), TextNode(id_="b", text=TEXTS[1])
    nodes = [
        NodeWithScore(node=node),
        NodeWithScore(node=other, score=0.3),
        NodeWithScore(node=node, score=0.2),
        NodeWithScore(node=node, score=0.9),
    ]
    engine = FakeRerankingEngine()
    ranked = call(rerank(engine, keep_retrieval_score=True), nodes)
    assert ids(ranked) == ["a", "b"]
    assert [one.node.metadata["retrieval_score"] for one in ranked] == [0.9, 0.3]
    assert engine.inputs == 2


@both
def test_no_nodes_give_no_nodes_without_loading(call: Call) -> None:
    reranker = QwenRerank(model="nobody/knows-this-model", local_files_only=True)
    assert call(reranker, []) == []
    assert not reranker._lazy.loaded


def test_a_missing_query_is_an_error() -> None:
    for nodes in (nodes_of(TEXTS), []):
        with pytest.raises(ValueError, match="query_bundle must be given"):
            rerank().postprocess_nodes(nodes)
    with pytest.raises(ValueError, match="Cannot specify both"):
        rerank().postprocess_nodes([], QueryBundle(QUERY), QUERY)


@both
def test_a_failing_model_is_an_error_and_no_empty_list(call: Call) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        call(rerank(FakeRerankingEngine(fail_on=lambda _: RuntimeError("broken"))), nodes_of(TEXTS))


def test_the_retrieval_score_is_kept_where_no_model_reads_it() -> None:
    # Other adapters write it into the metadata of the shared node, from where it gets into prompts.
    nodes = nodes_of(TEXTS, metadata={"title": "T"}, excluded_llm_metadata_keys=["secret"])
    ranked = call_sync(rerank(keep_retrieval_score=True), nodes)
    first = ranked[0].node
    assert first.metadata == {"title": "T", "retrieval_score": 1.0}
    assert "retrieval_score" in first.get_content(MetadataMode.ALL)
    assert "retrieval_score" not in first.get_content(MetadataMode.EMBED) + first.get_content(MetadataMode.LLM)
    assert first.excluded_llm_metadata_keys == ["secret", "retrieval_score"]
    again = call_sync(rerank(keep_retrieval_score=True), ranked)
    assert again[0].node.metadata["retrieval_score"] == ranked[0].score
    assert [one.score for one in again] == [one.score for one in ranked]


def test_nodes_without_scores_are_reranked_too() -> None:
    nodes = [NodeWithScore(node=one.node) for one in nodes_of(TEXTS)]
    ranked = call_sync(rerank(keep_retrieval_score=True), nodes)
    assert ids(ranked)[0] == "0"
    assert ranked[0].node.metadata["retrieval_score"] is None


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (None, "title: T\n\nbody"),
        (MetadataMode.EMBED, "title: T\n\nbody"),
        (MetadataMode.NONE, "body"),
        ("llm", "page: 3\n\nbody"),
    ],
)
def test_the_model_sees_the_metadata_of_the_mode(mode: MetadataMode | None, text: str) -> None:
    (node,) = nodes_of(
        ["body"],
        metadata={"title": "T", "page": 3},
        excluded_embed_metadata_keys=["page"],
        excluded_llm_metadata_keys=["title"],
    )
    reranker = rerank() if mode is None else rerank(metadata_mode=mode)
    (ranked,) = call_sync(reranker, [node])
    assert ranked.score == make_reranker().rerank(QUERY, [text])[0].relevance_score


def test_the_instruction_counts_and_may_be_named() -> None:
    sentence = "Given a question about coding, retrieval code or passage that can solve user's question"
    scores = [
        [one.score for one in call_sync(reranker, nodes_of(TEXTS))]
        for reranker in (
            rerank(),
            rerank(instruction="code_search"),
            rerank(instruction=sentence),
            rerank().model_copy(update={"instruction": sentence}),
        )
    ]
    assert scores[0] != scores[1]
    assert scores[1] == scores[2] == scores[3]


def test_other_kinds_of_nodes_stay_what_they_are() -> None:
    node = IndexNode(id_="i", index_id="below", text=TEXTS[0], obj=object())
    (ranked,) = call_sync(rerank(keep_retrieval_score=True), [NodeWithScore(node=node, score=0.5)])
    assert isinstance(ranked.node, IndexNode)
    assert ranked.node.obj is node.obj
    assert ranked.node.index_id == "below"


async def test_async_reranking_leaves_the_event_loop_to_others() -> None:
    # https://github.com/run-llama/llama_index/issues/16911 and 22596
    reranker = rerank(FakeRerankingEngine(delay=0.3))
    _, ticks = await ticks_during(reranker.apostprocess_nodes(nodes_of(TEXTS), query_str=QUERY))
    assert ticks > 10  # of about 60


async def test_concurrent_rerankings_share_forward_passes() -> None:
    engine = FakeRerankingEngine(delay=0.02)
    reranker = rerank(engine)
    found = await asyncio.gather(
        *(reranker.apostprocess_nodes(nodes_of(TEXTS), query_str=f"query {i}") for i in range(32))
    )
    assert engine.calls < 16
    assert found[3] == call_sync(reranker, nodes_of(TEXTS), "query 3")


class TestEvents:
    @both
    def test_start_and_end_come_in_pairs(self, call: Call) -> None:
        nodes = nodes_of(TEXTS)
        with listening() as (recorder, _):
            ranked = call(rerank(top_n=2), nodes)
        start, end = recorder.events
        assert isinstance(start, ReRankStartEvent)
        assert isinstance(end, ReRankEndEvent)
        assert (start.top_n, start.model_name, start.nodes) == (2, "fake-reranker", nodes)
        assert isinstance(start.query, QueryBundle)
        assert start.query.query_str == QUERY
        assert end.nodes == ranked

    @both
    def test_for_no_nodes_too(self, call: Call) -> None:
        with listening() as (recorder, _):
            call(rerank(), [])
        assert [type(event) for event in recorder.events] == [ReRankStartEvent, ReRankEndEvent]

    @both
    def test_without_top_n_the_start_says_how_many_nodes_there_are(self, call: Call) -> None:
        # The event refuses None.
        with listening() as (recorder, _):
            call(rerank(), nodes_of(TEXTS))
        assert isinstance(recorder.events[0], ReRankStartEvent)
        assert recorder.events[0].top_n == 4

    def test_none_starts_without_a_query(self) -> None:
        with listening() as (recorder, _), pytest.raises(ValueError, match="query_bundle"):
            rerank().postprocess_nodes(nodes_of(TEXTS))
        assert [event for event in recorder.events if isinstance(event, ReRankStartEvent)] == []

    @both
    def test_an_error_is_reported_before_the_end(self, call: Call) -> None:
        reranker = rerank(FakeRerankingEngine(fail_on=lambda _: RuntimeError("broken")))
        with listening() as (recorder, spans), pytest.raises(RuntimeError, match="broken"):
            call(reranker, nodes_of(TEXTS))
        assert [type(event) for event in recorder.events][:3] == [ReRankStartEvent, ExceptionEvent, ReRankEndEvent]
        assert next(name for name in spans.left if "postprocess" in name).startswith("dropped")

    @both
    def test_sync_and_async_are_one_span_each(self, call: Call) -> None:
        with listening() as (_, spans):
            call(rerank(), nodes_of(TEXTS))
        name = "QwenRerank._postprocess_nodes" if call is call_sync else "QwenRerank._apostprocess_nodes"
        assert spans.entered == [(name, None)]
        assert spans.left == [name]

    @both
    def test_callbacks_hear_of_it(self, call: Call) -> None:
        handler = LlamaDebugHandler(print_trace_on_end=False)
        call(rerank(top_n=2, callback_manager=CallbackManager([handler])), nodes_of(TEXTS))
        ((start, end),) = handler.get_event_pairs(CBEventType.RERANKING)
        assert start.payload is not None
        assert end.payload is not None
        assert start.payload[EventPayload.QUERY_STR] == QUERY
        assert (start.payload[EventPayload.TOP_K], start.payload[EventPayload.MODEL_NAME]) == (2, "fake-reranker")
        assert len(end.payload[EventPayload.NODES]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topn": 2}, "topn\n.*not permitted"),
        ({"model_name": "demo"}, "model_name is called model here"),
        ({"trust_remote_code": True}, "trust_remote_code is not needed here"),
        ({"score_threshold": float("nan")}, "score_threshold must be a number or None, but got nan"),
        ({"top_n": 0}, "top_n must be at least 1, or None for all, but got 0"),
        ({"top_n": -1}, "top_n must be at least 1"),
        ({"scale": "logits"}, "'probability' or 'log_odds'"),
        ({"metadata_mode": "some"}, "'all', 'embed', 'llm' or 'none'"),
        ({"reranker": "demo"}, "instance of Reranker"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        QwenRerank(**{"token": "secret", **options})
    assert "secret" not in str(caught.value)


def test_a_reranker_that_is_given_has_its_own_options() -> None:
    with pytest.raises(ValueError, match="given without dtype, model"):
        QwenRerank(reranker=make_reranker(), model="demo", dtype="float32")


def test_a_view_takes_another_reranker_by_itself() -> None:
    other = Reranker.from_pretrained("demo", device="cpu")
    for reranker in (rerank(top_n=2), QwenRerank(top_n=2), QwenRerank(model="0.6B", top_n=2)):
        view = reranker.model_copy(update={"reranker": other})
        assert (view.reranker, view.model, view.top_n) == (other, "demo", 2)
    other.close()


def test_a_view_shares_what_is_loaded_by_name() -> None:
    reranker = QwenRerank(model="demo")
    assert reranker.model_copy(update={"top_n": 2})._lazy is reranker._lazy


def test_a_token_that_is_a_plain_string_becomes_a_secret() -> None:
    reranker = QwenRerank(model="demo")
    reranker.token = "hf_secret"
    assert QwenRerank(model="demo", token="hf_secret").token == reranker.token == SecretStr("hf_secret")


def test_no_callback_manager_is_one_without_handlers() -> None:
    assert ids(call_sync(rerank(callback_manager=None), nodes_of(TEXTS)))[0] == "0"


def test_a_dictionary_describes_it() -> None:
    reranker = QwenRerank(model="demo", top_n=3, score_threshold=0.5, scale="log_odds", keep_retrieval_score=True)
    described = reranker.to_dict()
    assert QwenRerank.from_dict(described).to_dict() == described
    assert QwenRerank.from_json(reranker.to_json()).to_dict() == described
    assert json.loads(reranker.to_json())["class_name"] == "QwenRerank"


def test_copies_and_pickles_carry_no_weights() -> None:
    reranker = QwenRerank(model="demo", top_n=1, token=SecretStr("hf_secret"), device="cpu")
    ranked = call_sync(reranker, nodes_of(TEXTS))
    pickled = pickle.dumps(reranker)
    assert len(pickled) < 2000
    assert b"hf_secret" not in pickled
    assert "hf_secret" not in repr(reranker) + reranker.to_json()
    assert call_sync(pickle.loads(pickled), nodes_of(TEXTS)) == ranked
    assert copy.deepcopy(reranker)._load() is reranker._load()
    reranker.close()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(rerank())


def test_it_is_what_llama_index_expects() -> None:
    assert issubclass(QwenRerank, BaseNodePostprocessor)
    assert QwenRerank.class_name() == "QwenRerank"
