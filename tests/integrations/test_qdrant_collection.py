"""Stores, and the collections in them: how they are opened and made, and what guards them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from qdrant_qwen_retrieval import bulk
from qdrant_qwen_retrieval.chunks import Chunk
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.manifest import KEY, Manifest
from qdrant_qwen_retrieval.settings import Settings, check_options
from qdrant_qwen_retrieval.stores import Store, open_store
from qwen_retrieval.errors import CollectionMismatchError, CollectionNotFoundError, StoreError
from tests.integrations.qdrant_parts import DIMENSIONS, make_embedder, memory_store, open_collection
from tests.qdrant_server import Reply, Server, serve

SECRET = "s3cr3t-k3y-that-nobody-may-see"


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


def connect(server: Server, **options: Any) -> Store:
    return open_store(url=server.url, grpc_port=server.grpc_port, **options)


def chunks(*texts: str) -> list[Chunk]:
    return [Chunk("r", index, len(texts), text, {}) for index, text in enumerate(texts)]


class TestOpeningAStore:
    @pytest.mark.parametrize(
        ("arguments", "found"),
        [({}, "none"), ({"path": "a", "url": "http://b"}, "both path and url")],
    )
    def test_exactly_one_of_path_url_and_client_names_it(self, arguments: dict[str, Any], found: str) -> None:
        with pytest.raises(ValueError, match=f"exactly one of path .* but got {found}"):
            open_store(**arguments)

    def test_a_client_in_qdrant_clients_own_folder_mode_is_refused_with_the_reason(self, tmp_path: Path) -> None:
        client = QdrantClient(path=str(tmp_path))
        with pytest.raises(StoreError, match=r"pickles .* give path= .* embedded engine"):
            open_store(client=client)
        client.close()

    def test_what_is_no_client_is_refused(self) -> None:
        with pytest.raises(TypeError, match="got an AsyncQdrantClient; asearch needs no async client"):
            open_store(client=AsyncQdrantClient(":memory:"))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be a QdrantClient, but got str"):
            open_store(client="http://localhost")  # type: ignore[arg-type]

    @pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", ""])
    def test_what_is_no_url_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="url must look like"):
            open_store(url=url)

    def test_a_url_given_as_path_is_told_apart(self) -> None:
        with pytest.raises(ValueError, match="give a server as url"):
            open_store("http://localhost:6333")

    def test_what_belongs_to_a_server_is_refused_elsewhere(self) -> None:
        with pytest.raises(ValueError, match="belong to a server"):
            open_store(":memory:", api_key=SECRET)

    def test_a_client_that_was_given_stays_open(self) -> None:
        client = QdrantClient(":memory:")
        open_store(client=client).close()
        assert client.get_collections().collections == []

    @pytest.mark.parametrize("given", [False, True], ids=["own client", "given client"])
    def test_threads_that_write_into_memory_together_lose_nothing(self, given: bool) -> None:
        client = QdrantClient(":memory:")
        store = open_store(client=client) if given else memory_store()
        store = open_store(client=store.client)  # locked once, however often it is opened
        vector = models.VectorParams(size=4, distance=models.Distance.COSINE)
        store.client.create_collection("c", vectors_config=vector)

        def write(thread: int) -> None:
            for number in range(50):
                point = models.PointStruct(id=thread * 1000 + number, vector=[1.0, thread, number, 0.0], payload={})
                store.client.upsert("c", [point])
                store.client.query_points("c", [1.0, 0.0, 0.0, 0.0])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        assert store.client.count("c").count == 200


class HaystackSecret:
    def resolve_value(self) -> str:
        return SECRET


class TestTheKeyOfAServer:
    @pytest.mark.parametrize("key", [SECRET, SecretStr(SECRET), HaystackSecret(), f"{SECRET}\n"])
    @pytest.mark.parametrize("grpc", [True, False], ids=["grpc", "rest"])
    def test_it_opens_the_server(self, key: Any, grpc: bool) -> None:
        with serve(QdrantClient(":memory:"), api_key=SECRET) as server:
            store = connect(server, api_key=key, prefer_grpc=grpc)
            assert store.client.get_collections().collections == []
            store.close()

    def test_it_is_taken_from_the_environment_for_a_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QDRANT_API_KEY", SECRET)
        with serve(QdrantClient(":memory:"), api_key=SECRET) as server:
            store = connect(server)
            assert store.client.get_collections().collections == []
            store.close()
        assert memory_store().kind == "memory"

    @pytest.mark.parametrize("grpc", [True, False], ids=["grpc", "rest"])
    @pytest.mark.parametrize("right", ["another", None], ids=["refused", "unreachable"])
    def test_no_error_repr_or_log_shows_it(
        self, grpc: bool, right: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with serve(QdrantClient(":memory:"), api_key=right) as server:
            store = connect(server, api_key=SECRET, prefer_grpc=grpc, timeout=5)
            if right is None:
                server.stop()
            with pytest.raises(StoreError) as caught, store.reached():
                store.client.get_collections()
        expected = "refuses the key" if right else "does not answer"
        assert expected in str(caught.value)
        assert server.url in str(caught.value)
        for shown in (str(caught.value), repr(caught.value.__cause__), str(caught.value.__cause__), repr(store)):
            assert SECRET not in shown
        assert SECRET not in caplog.text
        store.close()

    @pytest.mark.parametrize("url", [f"http://user:{SECRET}@host", f"http://host?api-key={SECRET}"])
    def test_it_is_refused_within_a_url_and_not_repeated(self, url: str) -> None:
        with pytest.raises(ValueError, match="give the key of the server as api_key") as caught:
            open_store(url=url)
        assert SECRET not in str(caught.value)

    def test_one_that_no_header_can_carry_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(ValueError, match="printable ASCII") as caught:
            open_store(url="http://localhost", api_key=f"{SECRET}\n{SECRET}")
        assert SECRET not in str(caught.value)

    def test_plain_http_to_another_machine_is_warned_of(self) -> None:
        with pytest.warns(UserWarning, match="goes to qdrant.example over plain http") as caught:
            open_store(url="http://qdrant.example:6333", api_key=SECRET).close()
        assert SECRET not in str(caught[0].message)

    def test_https_and_this_machine_are_not_warned_of(self) -> None:
        for url in ("https://qdrant.example", "localhost:6333", "http://127.0.0.1", "http://[::1]:6333"):
            open_store(url=url, api_key=SECRET).close()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"stages": [8]},
    {"hybrid": True},
    {"stages": [12, 8], "hybrid": True, "language": "german", "layout": "universal", "quantization": "turbo4"},
    {"on_disk": True, "datatype": "float16", "shard_number": 2},
]


class TestMakingACollection:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("grpc", [True, False], ids=["grpc", "rest"])
    def test_what_it_is_made_with_is_kept_with_it(self, server: Server, grpc: bool, options: dict[str, Any]) -> None:
        store = connect(server, prefer_grpc=grpc)
        made = open_collection(store, **options)
        assert made.ensure() is True
        assert made.ensure() is False
        assert Collection(store, "test").manifest == made.manifest
        assert open_collection(store, **options).manifest == made.manifest
        store.close()

    def test_a_single_vector_has_no_name(self, server: Server) -> None:
        store = connect(server)
        open_collection(store).ensure()
        vectors = store.client.get_collection("test").config.params.vectors
        assert isinstance(vectors, models.VectorParams)
        assert vectors.size == DIMENSIONS
        store.close()

    def test_the_shortest_vector_alone_has_graph_and_codes(self, server: Server) -> None:
        store = connect(server)
        open_collection(store, stages=[8, 12], quantization="binary", hybrid=True, on_disk=True).ensure()
        params = store.client.get_collection("test").config.params
        vectors = params.vectors
        assert isinstance(vectors, dict)
        assert {name: vector.size for name, vector in vectors.items()} == {"mrl_8": 8, "mrl_12": 12, "text-dense": 16}
        assert vectors["mrl_8"].hnsw_config is None
        assert isinstance(vectors["mrl_8"].quantization_config, models.BinaryQuantization)
        assert vectors["mrl_8"].quantization_config.binary.always_ram is True
        for name in ("mrl_12", "text-dense"):
            graph = vectors[name].hnsw_config
            assert graph is not None
            assert graph.m == 0
            assert vectors[name].quantization_config is None
        assert all(vector.on_disk for vector in vectors.values())
        assert params.on_disk_payload is True
        assert params.sparse_vectors is not None
        assert params.sparse_vectors["text-sparse"].modifier == models.Modifier.IDF
        store.close()

    def test_payload_indexes_are_made_before_there_are_points(self, server: Server) -> None:
        store = connect(server)
        fields = {"year": "integer", "at": "datetime"}
        collection = Collection(store, "test", make_embedder(), indexed_fields=fields)
        collection.ensure()
        kinds = {
            path: index.data_type.value for path, index in store.client.get_collection("test").payload_schema.items()
        }
        assert kinds == {"_qwen.record": "keyword", "doc_id": "keyword", "meta.year": "integer", "meta.at": "datetime"}
        assert server.operations("create_collection", "upsert", "create_payload_index")[0] == "create_collection"
        store.close()

    def test_indexes_that_are_missing_are_made_later(self, server: Server) -> None:
        """A run may be killed between the collection and its indexes, and a field may be added."""
        store = connect(server)
        open_collection(store).ensure()
        store.client.delete_payload_index("test", "_qwen.record")
        Collection(store, "test", make_embedder(), indexed_fields={"year": "integer"}).ensure()
        assert {"_qwen.record", "meta.year"} <= store.client.get_collection("test").payload_schema.keys()
        with pytest.raises(CollectionMismatchError, match=r"'meta.year' .* indexed as 'integer', not 'keyword'"):
            Collection(store, "test", make_embedder(), indexed_fields={"year": "keyword"}).ensure()
        store.close()

    def test_indexes_lie_on_disk_with_the_rest(self, server: Server) -> None:
        store = connect(server)
        Collection(store, "test", make_embedder(), options={"on_disk": True}).ensure()
        index = store.client.get_collection("test").payload_schema["_qwen.record"]
        assert isinstance(index.params, models.KeywordIndexParams)
        assert index.params.on_disk is True
        store.close()

    def test_a_server_without_metadata_gets_no_half_made_collection(self) -> None:
        with serve(QdrantClient(":memory:"), version="1.15.4") as old:
            store = connect(old)
            with pytest.raises(StoreError, match=r"must be Qdrant 1.16 or later"):
                open_collection(store).ensure()
            assert store.client.get_collections().collections == []
            store.close()

    def test_an_error_of_the_server_is_no_lost_race(self, server: Server) -> None:
        store = connect(server, prefer_grpc=False)
        server.faults.add(Reply(400, "no room"), on="create_collection")
        with pytest.raises(StoreError, match="no room"), store.reached():
            open_collection(store).ensure()
        store.close()

    @pytest.mark.parametrize("make", [memory_store, None], ids=["memory", "server"])
    def test_many_may_make_it_at_once_and_one_does(self, server: Server, make: Callable[[], Store] | None) -> None:
        store = make() if make else connect(server)
        embedder = make_embedder()
        collections = [open_collection(store, embedder) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(Collection.ensure, collections))
        assert sum(made) >= 1
        assert {collection.manifest for collection in collections} == {collections[0].manifest}
        store.close()

    def test_who_loses_the_race_with_other_settings_is_refused(self) -> None:
        store = memory_store()
        late = open_collection(store, stages=[8])
        open_collection(store).ensure()
        with pytest.raises(CollectionMismatchError, match=r"stages is \(\), not \(8,\)"):
            late.ensure()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stages": [DIMENSIONS]}, "shorter than the vectors"),
            ({"stages": [4]}, "4"),
            ({"stages": [8, 8]}, "differ from each other"),
            ({"stages": [0]}, "a stage must be at least 1"),
            ({"layout": "mine"}, "layout must be one of"),
            ({"quantization": "int8"}, "quantization must be one of"),
            ({"datatype": "uint8"}, "datatype must be one of"),
            ({"language": "german"}, "together with hybrid=True"),
            ({"hybrid": True, "language": "klingon"}, "language must be one that BM25 knows"),
            ({"shard_number": 0}, "shard_number must be at least 1"),
        ],
        ids=str,
    )
    def test_settings_that_cannot_be_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            open_collection(**options)

    @pytest.mark.parametrize(
        "options", [{"hybrid": 1}, {"stages": 8}, {"stages": ["8"]}, {"shard_number": "2"}], ids=str
    )
    def test_settings_of_another_type_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            open_collection(**options)

    def test_fields_that_cannot_be_indexed_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"indexed_fields\['year'\] must be one of"):
            Collection(memory_store(), "test", make_embedder(), indexed_fields={"year": "number"})

    def test_vectors_on_disk_have_codes_in_memory(self) -> None:
        assert Settings.choose({"on_disk": True}).quantization == "scalar"
        assert Settings.choose({"on_disk": True, "quantization": "none"}).quantization == "none"


class TestOpeningACollection:
    def test_one_that_was_not_made_here_is_refused(self) -> None:
        store = memory_store()
        vector = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
        store.client.create_collection("test", vectors_config=vector, metadata={"mine": 1})
        with pytest.raises(CollectionMismatchError, match="was not made by qdrant_qwen_retrieval"):
            open_collection(store)

    @pytest.mark.parametrize("version", [0, 2, None])
    def test_one_of_another_version_is_refused(self, version: int | None) -> None:
        store = memory_store()
        made = open_collection(store)
        made.ensure()
        store.client.update_collection("test", metadata={KEY: made.manifest.to_dict() | {"version": version or "x"}})
        with pytest.raises(CollectionMismatchError, match="another version"):
            Collection(store, "test")

    def test_one_whose_manifest_is_damaged_is_refused(self) -> None:
        store = memory_store()
        made = open_collection(store)
        made.ensure()
        store.client.update_collection("test", metadata={KEY: made.manifest.to_dict() | {"settings": {"colour": 1}}})
        with pytest.raises(CollectionMismatchError, match=r"manifest .* is damaged"):
            Collection(store, "test")

    def test_all_that_differs_is_named_with_both_sides(self) -> None:
        store = memory_store()
        open_collection(store, stages=[8]).ensure()
        with pytest.raises(CollectionMismatchError) as caught:
            open_collection(store, stages=[12], layout="universal", hybrid=True)
        for difference in (
            "stages is (8,), not (12,)",
            "layout is 'compact', not 'universal'",
            "hybrid is False, not True",
        ):
            assert difference in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            ({"dimensions": 8}, "dimensions is 16, not 8"),
            ({"max_length": 100}, "max_length is 8192, not 100"),
            ({"control_tokens": "keep"}, "control_tokens is 'escape', not 'keep'"),
        ],
        ids=str,
    )
    def test_another_model_is_refused(self, options: dict[str, Any], difference: str) -> None:
        store = memory_store()
        open_collection(store).ensure()
        with pytest.raises(CollectionMismatchError, match=difference):
            open_collection(store, make_embedder(**options))

    def test_another_instruction_for_queries_is_no_other_model(self) -> None:
        store = memory_store()
        open_collection(store).ensure()
        assert open_collection(store, make_embedder(instruction="Find recipes")).exists()

    def test_settings_that_are_not_given_are_those_of_the_collection(self) -> None:
        store = memory_store()
        made = open_collection(store, stages=[12, 8], hybrid=True, layout="langchain")
        made.ensure()
        opened = open_collection(store)
        assert opened.settings == made.settings
        assert opened.layout.name == "langchain"

    def test_without_a_model_it_must_exist(self) -> None:
        store = memory_store()
        open_collection(store).ensure()
        assert Collection(store, "test").count() == 0
        with pytest.raises(CollectionNotFoundError, match=r"no collection 'tset' in :memory: .*it has 'test'"):
            Collection(store, "tset")

    def test_what_appears_after_opening_is_compared_too(self) -> None:
        store = memory_store()
        early = open_collection(store)
        open_collection(store, layout="langchain").ensure()
        assert early.count() == 0
        assert early.layout.name == "langchain"


@given(
    st.builds(
        Manifest,
        model=st.text(min_size=1),
        revision=st.none() | st.text(),
        dimensions=st.integers(1, 4096),
        max_length=st.integers(1, 32768),
        control_tokens=st.sampled_from(["escape", "keep", "error"]),
        fingerprint=st.text(),
        instruction=st.text(),
        settings=st.builds(
            Settings, stages=st.lists(st.integers(1, 4096), unique=True).map(lambda s: tuple(sorted(s)))
        ),
    )
)
@settings(max_examples=30, deadline=None)
def test_a_manifest_survives_its_dictionary(manifest: Manifest) -> None:
    assert Manifest.from_metadata("c", {KEY: manifest.to_dict()}) == manifest


class TestPoints:
    def test_they_have_all_vectors_of_unit_length(self) -> None:
        embedder = make_embedder()
        collection = open_collection(embedder=embedder, stages=[8, 12], hybrid=True)
        texts = ["the foxes run", "two dogs"]
        dense = embedder.embed_documents(texts)
        for point, text, row in zip(collection.points(chunks(*texts), dense), texts, dense, strict=True):
            vectors: Any = point.vector
            assert vectors.keys() == {"text-dense", "mrl_8", "mrl_12", "text-sparse"}
            for length in (8, 12):
                short = row[:length] / np.linalg.norm(row[:length])
                np.testing.assert_allclose(vectors[f"mrl_{length}"], short, rtol=1e-5)
            np.testing.assert_allclose(vectors["text-dense"], row)
            assert len(vectors["text-sparse"].indices) == len(text.removeprefix("the ").split())

    @pytest.mark.parametrize("shape", [(1, 16), (2, 8), (2,)])
    def test_vectors_of_another_shape_are_refused_before_they_are_sent(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"must have the shape \(2, 16\)"):
            open_collection().points(chunks("a", "b"), np.ones(shape, dtype=np.float32))

    @pytest.mark.parametrize("number", [np.nan, np.inf])
    def test_vectors_that_are_not_finite_are_refused(self, number: float) -> None:
        dense = np.ones((2, 16), dtype=np.float32)
        dense[1, 3] = number
        with pytest.raises(ValueError, match="must be finite"):
            open_collection().points(chunks("a", "b"), dense)

    def test_there_may_be_none(self) -> None:
        assert list(open_collection(stages=[8], hybrid=True).points([], np.empty((0, 16), dtype=np.float32))) == []

    @pytest.mark.parametrize("layout", ["compact", "langchain", "llama_index", "haystack", "universal"])
    @pytest.mark.parametrize("kind", ["memory", "server"])
    def test_marks_are_found_for_those_that_exist(self, layout: str, kind: str, server: Server) -> None:
        embedder = make_embedder()
        store = memory_store() if kind == "memory" else connect(server)
        collection = open_collection(store, embedder, layout=layout)
        some = chunks("a", "b")
        ids = [*(chunk.point_id for chunk in some), Chunk("other", 0, 1, "", {}).point_id]
        assert collection.marks(ids) == {}
        collection.ensure()
        collection.client.upsert("test", [*collection.points(some, embedder.embed_documents(["a", "b"]))])
        assert collection.marks(ids) == {chunk.point_id: chunk.bookkeeping for chunk in some}
        assert collection.count() == 2
        store.close()


def threshold(store: Store) -> int | None:
    return store.client.get_collection("test").config.optimizer_config.indexing_threshold


def loads(store: Store) -> list[str]:
    return [key for key in store.client.get_collection("test").config.metadata or {} if key != KEY]


class TestBulkLoad:
    @pytest.fixture(params=[True, False], ids=["grpc", "rest"])
    def store(self, server: Server, request: pytest.FixtureRequest) -> Iterator[Store]:
        store = connect(server, prefer_grpc=request.param)
        open_collection(store).ensure()
        store.client.update_collection("test", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=12_345))
        yield store
        store.close()

    def test_indexing_is_put_off_and_restored_exactly(self, store: Store) -> None:
        with open_collection(store).bulk_load():
            assert threshold(store) == bulk.DEFERRED
        assert threshold(store) == 12_345
        assert loads(store) == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_it_is_restored_after_a_failure(self, store: Store, error: type[BaseException]) -> None:
        with pytest.raises(error), open_collection(store).bulk_load():
            raise error
        assert threshold(store) == 12_345
        assert loads(store) == []

    def test_the_old_value_is_noted_before_it_is_changed(self, server: Server, store: Store) -> None:
        server.forget_requests()
        with open_collection(store).bulk_load():
            changes = [request.body for request in server.requests if request.operation == "update_collection"]
        assert changes[0].metadata is not None
        assert changes[0].optimizers_config is None
        assert changes[1].optimizers_config.indexing_threshold == bulk.DEFERRED

    def test_passing_faults_do_not_keep_it_from_being_restored(self, server: Server, store: Store) -> None:
        with open_collection(store).bulk_load():
            server.faults.add(Reply(503), on="update_collection", times=2)
        assert threshold(store) == 12_345

    def test_of_loads_that_overlap_the_last_one_restores(self, store: Store) -> None:
        first, second = open_collection(store).bulk_load(), open_collection(store).bulk_load()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threshold(store) == bulk.DEFERRED
        second.__exit__(None, None, None)
        assert threshold(store) == 12_345
        assert loads(store) == []

    def test_many_loads_at_once_leave_the_old_value(self, store: Store) -> None:
        everyone = threading.Barrier(4)

        def load(_: int) -> int | None:
            with bulk.deferred_indexing(store.client, "test"):
                everyone.wait()
                return threshold(store)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(load, range(4))) == [bulk.DEFERRED] * 4
        assert threshold(store) == 12_345
        assert loads(store) == []

    def test_a_load_of_another_machine_is_dead_when_it_says_nothing_any_more(self, store: Store) -> None:
        def note(renewed: float) -> None:
            load = {"indexing_threshold": 12_345, "renewed": renewed, "machine": "another", "process": 1}
            diff = models.OptimizersConfigDiff(indexing_threshold=bulk.DEFERRED)
            store.client.update_collection(
                "test", optimizers_config=diff, metadata={"qwen_retrieval_load:somebody": load}
            )

        note(time.time() - 60)
        assert bulk.restore_indexing(store.client, "test") is False
        assert threshold(store) == bulk.DEFERRED
        note(time.time() - bulk.LEASE - 60)
        assert bulk.restore_indexing(store.client, "test") is True
        assert threshold(store) == 12_345

    def test_a_load_says_that_it_still_runs(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk, "RENEWED_EVERY", 0.01)
        with bulk.deferred_indexing(store.client, "test"):
            (key,) = loads(store)

            def renewed() -> float:
                metadata = store.client.get_collection("test").config.metadata or {}
                return float(metadata[key]["renewed"])

            first, end = renewed(), time.monotonic() + 10
            while renewed() == first:
                assert time.monotonic() < end, "it is never renewed"
        assert loads(store) == []

    @pytest.mark.parametrize("chosen", [0, bulk.DEFERRED])
    def test_who_has_switched_indexing_off_keeps_it_so(self, store: Store, chosen: int) -> None:
        diff = models.OptimizersConfigDiff(indexing_threshold=chosen)
        store.client.update_collection("test", optimizers_config=diff)
        with bulk.deferred_indexing(store.client, "test"):
            assert threshold(store) == chosen
        assert threshold(store) == chosen

    def test_a_collection_that_is_indexed_takes_more_as_it_is(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bulk, "SMALL", 1)
        diff = models.OptimizersConfigDiff(indexing_threshold=1)
        store.client.update_collection("test", optimizers_config=diff)
        texts = [str(number) for number in range(40)]
        embedder = make_embedder()
        points = list(open_collection(store, embedder).points(chunks(*texts), embedder.embed_documents(texts)))
        store.client.upsert("test", points)
        with bulk.deferred_indexing(store.client, "test"):
            assert threshold(store) == 1

    def test_a_key_that_may_only_read_opens_what_a_killed_load_left(self) -> None:
        with serve(QdrantClient(":memory:"), api_key="rw", read_only_key="ro") as server:
            store = connect(server, api_key="rw")
            open_collection(store).ensure()
            load = {"indexing_threshold": 12_345, "renewed": 0.0, "machine": "another", "process": 1}
            store.client.update_collection("test", metadata={"qwen_retrieval_load:somebody": load})
            reader = connect(server, api_key="ro")
            assert open_collection(reader).exists()
            reader.close()
            store.close()

    def test_other_stores_have_nothing_to_put_off(self) -> None:
        collection = open_collection()
        collection.ensure()
        with collection.bulk_load():
            assert collection.count() == 0


class TestAfterAKill:
    @pytest.fixture
    def killed(self, server: Server) -> Iterator[Store]:
        """A store in which a load was killed on this machine."""
        store = connect(server)
        open_collection(store).ensure()
        store.client.update_collection("test", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=12_345))
        program = (
            "import os, sys\n"
            "from qdrant_client import QdrantClient\n"
            "from qdrant_qwen_retrieval.bulk import deferred_indexing\n"
            "client = QdrantClient(url=sys.argv[1], check_compatibility=False)\n"
            "with deferred_indexing(client, 'test'):\n"
            "    os._exit(9)\n"
        )
        url = str(store.client.init_options["url"])
        process = subprocess.run([sys.executable, "-c", program, url], check=False, timeout=60)
        assert process.returncode == 9
        assert threshold(store) == bulk.DEFERRED
        yield store
        store.close()

    def test_the_next_who_opens_the_collection_restores_what_a_killed_load_left(self, killed: Store) -> None:
        open_collection(killed)
        assert threshold(killed) == 12_345
        assert loads(killed) == []

    def test_the_next_load_does_not_take_the_raised_value_for_the_old_one(self, killed: Store) -> None:
        with bulk.deferred_indexing(killed.client, "test"):
            assert threshold(killed) == bulk.DEFERRED
        assert threshold(killed) == 12_345
        assert loads(killed) == []


def test_options_are_recorded_in_one_form() -> None:
    assert check_options({"stages": (512, 256), "layout": None}) == {"stages": (256, 512)}
