"""What a search finds, and what it asks of the store for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval import Hit, QdrantIndex
from qdrant_qwen_retrieval.filters import to_filter
from qdrant_qwen_retrieval.layouts import get_layout
from qdrant_qwen_retrieval.settings import OVERSAMPLING, STAGE_OVERSAMPLING
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.errors import CollectionNotFoundError, StoreError
from qwen_retrieval.testing import ByteTokenizer, FakeRerankingEngine, fake_reranking_spec
from tests.integrations.qdrant_parts import make_embedder
from tests.qdrant_server import Server, serve

WORDS = ["cats", "dogs", "birds", "foxes", "mice", "whales", "ants", "bees", "crows", "deer", "eels", "frogs"]
CORPUS = [
    {
        "id": word,
        "text": f"a short text about {word}",
        "year": 2000 + number,
        "weight": number / 4,
        "wild": number > 1,
        "tags": [word[0], "animal"],
        "born": f"20{number:02d}-06-01",
        **({"nickname": word.upper()} if number == 3 else {}),
    }
    for number, word in enumerate(WORDS)
]
LAYOUTS = ["compact", "langchain", "llama_index", "haystack", "universal"]


def make_reranker(engine: FakeRerankingEngine | None = None) -> Reranker:
    return Reranker(engine or FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec())


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return make_embedder()


@pytest.fixture(scope="module", params=["memory", "embedded", "server"])
def index(request: pytest.FixtureRequest, embedder: Embedder, tmp_path_factory: Any) -> Iterator[QdrantIndex]:
    """A collection with everything, on each store."""
    options: Any = {"embedder": embedder, "stages": [8], "hybrid": True, "quantization": "scalar"}
    with serve(QdrantClient(":memory:")) as server:
        place: dict[str, Any] = {
            "memory": {"path": ":memory:"},
            "embedded": {"path": tmp_path_factory.mktemp("store")},
            "server": {"url": server.url, "grpc_port": server.grpc_port},
        }[request.param]
        with QdrantIndex("animals", **place, **options) as index:
            index.ingest(CORPUS)
            yield index


def ids(hits: list[Hit]) -> list[str]:
    return [hit.id for hit in hits]


class TestHits:
    def test_a_text_finds_itself_first(self, index: QdrantIndex) -> None:
        for record in CORPUS:
            (hit,) = index.search(str(record["text"]), limit=1, instruction="", hybrid=False)
            assert (hit.id, hit.record_id, hit.index, hit.text) == (record["id"], record["id"], 0, record["text"])
            assert hit.metadata["year"] == record["year"]
            assert hit.retrieval_score == pytest.approx(1.0, abs=1e-5)
            assert (hit.retrieval_rank, hit.rank, hit.relevance_score) == (1, 1, None)

    @pytest.mark.parametrize("exact", [False, True])
    def test_the_order_is_that_of_the_full_vectors(self, index: QdrantIndex, embedder: Embedder, exact: bool) -> None:
        query = "tell me about foxes"
        hits = index.search(query, limit=len(CORPUS), hybrid=False, exact=exact)
        vectors = embedder.embed_documents([str(record["text"]) for record in CORPUS])  # (n, dimensions)
        scores = vectors @ embedder.embed_queries([query])[0]  # (n,)
        np.testing.assert_allclose([hit.retrieval_score for hit in hits], np.sort(scores)[::-1], atol=1e-5)
        assert [hit.rank for hit in hits] == list(range(1, len(CORPUS) + 1))

    def test_the_instruction_changes_what_is_asked(self, index: QdrantIndex) -> None:
        one, other = (index.search("foxes", limit=1, instruction=task, hybrid=False)[0] for task in ("", "Find plants"))
        assert one.retrieval_score != other.retrieval_score

    def test_words_are_found_that_the_vectors_miss(self, index: QdrantIndex) -> None:
        assert ids(index.search("frogs", limit=1)) == ["frogs"]
        found = index.search("frogs", limit=len(CORPUS))
        assert len(set(ids(found))) == len(found)
        assert all(hit.retrieval_score > 0 for hit in found)

    def test_a_query_without_words_is_searched_by_vectors_alone(self, index: QdrantIndex) -> None:
        assert ids(index.search("?!", limit=5)) == ids(index.search("?!", limit=5, hybrid=False))

    def test_a_reranker_puts_candidates_in_its_own_order(self, index: QdrantIndex) -> None:
        reranker = make_reranker()
        hits = index.search("about whales", limit=3, reranker=reranker, candidates=8)
        candidates = index.search("about whales", limit=8)
        best = reranker.rerank("about whales", [hit.text for hit in candidates], top_n=3)
        assert ids(hits) == [candidates[result.index].id for result in best]
        assert [hit.retrieval_rank for hit in hits] == [result.index + 1 for result in best]
        assert [hit.relevance_score for hit in hits] == [result.relevance_score for result in best]
        assert [hit.rank for hit in hits] == [1, 2, 3]

    def test_both_models_read_the_instruction(self, index: QdrantIndex) -> None:
        reranker = make_reranker()
        (hit,) = index.search("whales", limit=1, reranker=reranker, instruction="Find fish")
        assert hit.relevance_score == reranker.score("whales", [hit.text], instruction="Find fish")[0]

    def test_a_threshold_is_for_relevance_if_there_is_a_reranker(self, index: QdrantIndex) -> None:
        every = index.search("whales", limit=12, reranker=make_reranker())
        least = every[0].relevance_score
        found = index.search("whales", limit=12, reranker=make_reranker(), score_threshold=least)
        assert ids(found) == ids([hit for hit in every if (hit.relevance_score or 0) >= (least or 0)])
        assert 1 <= len(found) < 12

    def test_a_threshold_is_for_retrieval_without_one(self, index: QdrantIndex) -> None:
        every = index.search("whales", limit=12, hybrid=False)
        found = index.search("whales", limit=12, hybrid=False, score_threshold=every[3].retrieval_score)
        assert ids(found) == ids(every[:4])

    def test_an_async_search_finds_the_same_and_does_not_block(self, index: QdrantIndex) -> None:
        async def search() -> list[list[Hit]]:
            return await asyncio.gather(*(index.asearch(word, limit=3) for word in WORDS))

        assert asyncio.run(search()) == [index.search(word, limit=3) for word in WORDS]

    def test_threads_may_search_while_others_write(self, index: QdrantIndex) -> None:
        expected = {word: index.search(word, limit=1, hybrid=False)[0].id for word in WORDS}
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                index.ingest([CORPUS[0] | {"text": "a short text about cats"}])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda word: index.search(word, limit=1, hybrid=False)[0].id, WORDS * 3))
        finally:
            stop.set()
            writer.join()
        assert found == [expected[word] for word in WORDS * 3]


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"year": 2003}, {"foxes"}),
    ({"year": [2003, 2005]}, {"foxes", "whales"}),
    ({"year": []}, set()),
    ({"year": {"gte": 2003, "lt": 2005}}, {"foxes", "mice"}),
    ({"year": {"not": [2000, 2001]}}, set(WORDS[2:])),
    ({"year": {"not": {"gt": 2001}}}, {"cats", "dogs"}),
    ({"weight": 0.75}, {"foxes"}),
    ({"weight": [0.75, 1.25]}, {"foxes", "whales"}),
    ({"wild": False}, {"cats", "dogs"}),
    ({"wild": [False]}, {"cats", "dogs"}),
    ({"tags": "b"}, {"birds", "bees"}),
    ({"tags": ["b", "w"]}, {"birds", "bees", "whales"}),
    ({"tags": "b", "year": 2002}, {"birds"}),
    ({"nickname": None}, set(WORDS) - {"foxes"}),
    ({"nickname": {"not": None}}, {"foxes"}),
    ({"born": {"gt": "2010-01-01"}}, {"eels", "frogs"}),
    ({"born": {"gt": date(2010, 1, 1)}}, {"eels", "frogs"}),
    ({"born": datetime(2011, 6, 1, tzinfo=UTC)}, {"frogs"}),
    ({}, set(WORDS)),
]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters='\0"\\'), min_size=1).filter(
    lambda name: name != "_qwen"
)


class TestFilters:
    @pytest.mark.parametrize(
        ("filter", "expected"), FILTERS, ids=lambda value: str(sorted(value) if isinstance(value, set) else value)
    )
    def test_they_keep_what_meets_them(self, index: QdrantIndex, filter: dict[str, Any], expected: set[str]) -> None:
        for hybrid in (True, False):
            found = ids(index.search("a text", limit=len(CORPUS), filter=filter, hybrid=hybrid))
            assert set(found) == expected
            assert len(found) == len(expected)

    def test_one_of_qdrant_is_passed_on(self, index: QdrantIndex) -> None:
        condition = models.FieldCondition(key="meta.year", match=models.MatchValue(value=2003))
        assert ids(index.search("a text", filter=models.Filter(must=[condition]))) == ["foxes"]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_fields_have_the_same_names_in_every_layout(self, layout: Any, embedder: Embedder) -> None:
        index = QdrantIndex("animals", embedder=embedder, path=":memory:", layout=layout)
        index.ingest(CORPUS)
        hits = index.search("a text", filter={"year": {"gte": 2010}, "tags": ["animal"]})
        assert {(hit.record_id, hit.metadata["year"]) for hit in hits} == {("eels", 2010), ("frogs", 2011)}

    @pytest.mark.parametrize(
        ("filter", "message"),
        [
            ({"year": {"around": 3}}, "bounds"),
            ({"year": {}}, "bounds"),
            ({"year": {"gte": 1, "not": 2}}, "bounds"),
        ],
    )
    def test_conditions_that_are_not_known_are_refused(self, filter: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            to_filter(filter, get_layout("compact"))

    @pytest.mark.parametrize(
        "filter", ["year = 3", [("year", 3)], {"year": {"gte": [1]}}, {"year": {"gte": True}}, {"year": b"3"}], ids=str
    )
    def test_values_that_cannot_be_filtered_by_are_refused(self, filter: Any) -> None:
        with pytest.raises(TypeError, match="filter"):
            to_filter(filter, get_layout("compact"))

    @given(st.dictionaries(NAMES, st.integers(0, 9), min_size=1))
    @settings(max_examples=12, deadline=None)
    def test_any_name_of_a_field_can_be_filtered_by(self, metadata: dict[str, int]) -> None:
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        index.ingest([{"id": "a", "text": "text", "metadata": metadata}])
        assert ids(index.search("text", filter=metadata)) == ["a"]
        name = min(metadata)
        assert index.search("text", filter={name: metadata[name] + 1}) == []


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"limit": 0}, ValueError),
            ({"limit": 2.5}, TypeError),
            ({"limit": None}, TypeError),
            ({"candidates": 20}, ValueError),
            ({"candidates": 5, "limit": 10, "reranker": True}, ValueError),
            ({"score_threshold": float("nan")}, ValueError),
            ({"oversampling": 0.5}, ValueError),
            ({"oversampling": float("inf")}, ValueError),
            ({"oversampling": "2"}, TypeError),
            ({"query": 3}, TypeError),
        ],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused(
        self, arguments: dict[str, Any], error: type[Exception], embedder: Embedder
    ) -> None:
        index = QdrantIndex("c", embedder=embedder, path=":memory:")
        index.ingest(CORPUS[:1])
        if arguments.get("reranker"):
            arguments = arguments | {"reranker": make_reranker()}
        with pytest.raises(error):
            index.search(**({"query": "text"} | arguments))

    def test_words_cannot_be_asked_of_a_collection_without_them(self, embedder: Embedder) -> None:
        index = QdrantIndex("c", embedder=embedder, path=":memory:")
        index.ingest(CORPUS[:1])
        with pytest.raises(ValueError, match="has no BM25 vectors; ingest into a new one"):
            index.search("text", hybrid=True)

    def test_without_a_model_the_error_names_the_one_to_load(self, embedder: Embedder) -> None:
        index = QdrantIndex("c", embedder=embedder, path=":memory:")
        index.ingest(CORPUS[:1])
        with pytest.raises(ValueError, match=r"from_pretrained\('fake-embedding'\)"):
            QdrantIndex("c", client=index.client).search("text")

    def test_before_anything_was_ingested_the_error_says_so(self, embedder: Embedder) -> None:
        with pytest.raises(CollectionNotFoundError, match="ingest something into it first"):
            QdrantIndex("c", embedder=embedder, path=":memory:").search("text")

    def test_an_empty_collection_has_no_hits(self, embedder: Embedder) -> None:
        index = QdrantIndex("c", embedder=embedder, path=":memory:", hybrid=True, stages=[8])
        index.collection.ensure()
        assert index.search("text") == []
        assert index.search("text", reranker=make_reranker()) == []


class TestWhatIsAskedOfAServer:
    """The plan of a search, as it arrives."""

    def asked(self, server: Server, embedder: Embedder, options: dict[str, Any], **search: Any) -> Any:
        with QdrantIndex(
            "c", embedder=embedder, url=server.url, grpc_port=server.grpc_port, prefer_grpc=False, **options
        ) as index:
            index.ingest(CORPUS[:2])
            index.search("text", **search)
        (request,) = [request for request in server.requests if request.operation == "query_points"]
        return request.body

    def test_codes_propose_more_than_is_wanted_and_are_rescored(self, server: Server, embedder: Embedder) -> None:
        body = self.asked(server, embedder, {"quantization": "turbo4"}, limit=5)
        assert body.params.quantization.rescore is True
        assert body.params.quantization.oversampling == OVERSAMPLING["turbo4"]
        assert (body.limit, body.prefetch, body.using) == (5, None, None)

    def test_oversampling_may_be_chosen(self, server: Server, embedder: Embedder) -> None:
        options = {"quantization": "binary", "stages": [8]}
        body = self.asked(server, embedder, options, limit=5, oversampling=7)
        assert body.prefetch.params.quantization.oversampling == 7
        assert body.prefetch.limit == 35

    def test_shorter_vectors_propose_to_longer_ones(self, server: Server, embedder: Embedder) -> None:
        body = self.asked(server, embedder, {"stages": [12, 8], "quantization": "scalar"}, limit=3, filter={"year": 1})
        middle = body.prefetch
        first = middle.prefetch
        assert [body.using, middle.using, first.using] == ["text-dense", "mrl_12", "mrl_8"]
        assert [body.limit, middle.limit, first.limit] == [3, 3 * STAGE_OVERSAMPLING, 3 * STAGE_OVERSAMPLING**2]
        queries = [
            step.query.nearest if hasattr(step.query, "nearest") else step.query for step in (body, middle, first)
        ]
        assert [len(query) for query in queries] == [16, 12, 8]
        np.testing.assert_allclose([np.linalg.norm(query) for query in queries], 1, rtol=1e-5)
        assert first.filter is not None
        assert first.params.quantization.oversampling == OVERSAMPLING["scalar"]

    def test_an_exact_search_uses_neither_codes_nor_shorter_vectors(self, server: Server, embedder: Embedder) -> None:
        body = self.asked(server, embedder, {"stages": [8], "quantization": "scalar"}, exact=True)
        assert body.prefetch is None
        assert body.using == "text-dense"
        assert body.params.exact is True
        assert body.params.quantization.ignore is True

    def test_both_sides_of_a_hybrid_search_are_filtered(self, server: Server, embedder: Embedder) -> None:
        body = self.asked(server, embedder, {"hybrid": True}, limit=4, filter={"year": 2000})
        assert [step.using for step in body.prefetch] == ["text-dense", "text-sparse"]
        assert all(step.filter is not None and step.limit == 8 for step in body.prefetch)
        assert body.query.fusion == models.Fusion.RRF

    @pytest.mark.parametrize(("limit", "candidates"), [(1, 20), (10, 50), (100, 200), (300, 300)])
    def test_a_reranker_sees_some_candidates_for_each_hit(
        self, server: Server, embedder: Embedder, limit: int, candidates: int
    ) -> None:
        assert self.asked(server, embedder, {}, limit=limit, reranker=make_reranker()).limit == candidates

    def test_a_field_that_a_strict_server_wants_indexed_is_named_with_the_way_out(self, embedder: Embedder) -> None:
        with serve(QdrantClient(":memory:"), strict=True) as server:
            place: dict[str, Any] = {"url": server.url, "grpc_port": server.grpc_port}
            with QdrantIndex("c", embedder=embedder, **place) as index:
                index.ingest(CORPUS[:2])
                with pytest.raises(StoreError, match=r'"meta.year".* in indexed_fields'):
                    index.search("text", filter={"year": 2000})
            with QdrantIndex("c", embedder=embedder, indexed_fields={"year": "integer"}, **place) as index:
                assert ids(index.search("text", filter={"year": 2000})) == ["cats"]
                assert index.delete(["cats"]) == 1
