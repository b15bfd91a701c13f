"""QdrantIndex on every store: what it ingests, deletes, describes, and how it ends."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from qdrant_qwen_retrieval import EmbeddedQdrantClient, IngestReport, Progress, QdrantIndex, collections, describe
from qdrant_qwen_retrieval import bulk as bulk_module
from qdrant_qwen_retrieval import index as index_module
from qwen_retrieval.errors import CollectionMismatchError, CollectionNotFoundError, StoreError
from tests.integrations.qdrant_parts import RecordingEngine, make_embedder, record
from tests.qdrant_server import Reply, Server

RECORDS = [record(name, f"{name} one", f"{name} two", colour=colour) for name, colour in (("a", "red"), ("b", "blue"))]
GREEN, YELLOW, GREY, RED = (models.CollectionStatus(one) for one in ("green", "yellow", "grey", "red"))


@pytest.fixture(params=["memory", "embedded", "grpc", "rest"])
def place(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> dict[str, Any]:
    """Arguments that name a store."""
    places: dict[str, dict[str, Any]] = {
        "memory": {"path": ":memory:"},
        "embedded": {"path": tmp_path},
        "grpc": {"url": server.url, "grpc_port": server.grpc_port},
        "rest": {"url": server.url, "prefer_grpc": False},
    }
    return places[request.param]


def remote(server: Server, **options: Any) -> QdrantIndex:
    return QdrantIndex("c", embedder=make_embedder(), url=server.url, grpc_port=server.grpc_port, **options)


class TestIngest:
    def test_the_same_again_embeds_nothing(self, place: dict[str, Any]) -> None:
        engine = RecordingEngine()
        with QdrantIndex("c", embedder=make_embedder(engine), **place) as index:
            assert index.count() == 0
            first = index.ingest(RECORDS)
            again = index.ingest(RECORDS)
            assert (first.embedded, again.embedded, again.skipped) == (4, 0, 4)
            assert engine.inputs == 4
            assert index.count() == 4

    @pytest.mark.filterwarnings("ignore:collection 'c' has .* somebody else writes to it:UserWarning")
    def test_threads_that_ingest_together_lose_nothing(self, place: dict[str, Any]) -> None:
        with QdrantIndex("c", embedder=make_embedder(), **place) as index:

            def ingest(thread: int) -> IngestReport:
                return index.ingest({"id": f"{thread}-{i}", "text": f"text {thread} {i}"} for i in range(25))

            with ThreadPoolExecutor(4) as pool:
                reports = list(pool.map(ingest, range(4)))
            assert sum(report.embedded for report in reports) == 100
            assert index.count() == 100

    def test_a_dry_run_leaves_no_collection(self, place: dict[str, Any]) -> None:
        with QdrantIndex("c", embedder=make_embedder(), **place) as index:
            report = index.ingest(RECORDS, dry_run=True)
            assert (report.embedded, report.dry_run) == (4, True)
            assert index.client.get_collections().collections == []

    @pytest.mark.parametrize(("size", "count"), [(1000, 1), (30, 4), (None, 1)])
    def test_texts_are_divided_by_characters_or_left_whole(self, size: int | None, count: int) -> None:
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        text = " ".join(f"This is sentence {number}." for number in range(5))
        report = index.ingest([{"id": "a", "text": text}], chunk_size=size)
        assert report.chunks >= count
        assert all(len(hit.text) <= (size or len(text)) for hit in index.search("sentence"))

    def test_a_splitter_of_ones_own_comes_first(self) -> None:
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        index.ingest([{"id": "a", "text": "x;y;z"}], splitter=lambda text: text.split(";"), chunk_size=1)
        assert {hit.id: hit.text for hit in index.search("x")} == {"a": "x", "a#chunk-1": "y", "a#chunk-2": "z"}

    def test_fields_may_have_other_names_and_come_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        path.write_text("\n".join(json.dumps({"key": str(i), "body": f"text {i}", "n": i}) for i in range(3)))
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        index.ingest(path, id_field="key", text_field="body", progress=True)
        assert [hit.metadata for hit in index.search("text", filter={"n": 2})] == [{"n": 2}]

    def test_vanished_records_are_deleted_on_request(self, place: dict[str, Any]) -> None:
        with QdrantIndex("c", embedder=make_embedder(), **place) as index:
            index.ingest(RECORDS)
            assert index.ingest(RECORDS[:1], delete_missing=True).deleted == 2
            assert {hit.record_id for hit in index.search("one")} == {"a"}

    def test_progress_goes_to_a_function(self) -> None:
        seen: list[Progress] = []
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        index.ingest(RECORDS, progress=seen.append, batch_size=2)
        assert (seen[-1].records, seen[-1].chunks, seen[-1].embedded) == (2, 4, 4)

    def test_progress_is_a_bar_on_a_terminal_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        for stream in (Terminal(), io.StringIO()):
            monkeypatch.setattr(sys, "stderr", stream)
            monkeypatch.setenv("TERM", "xterm")
            monkeypatch.setenv("COLUMNS", "120")
            index.ingest(RECORDS, progress=True)
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
            assert ("documents/s" in shown and "tokens/s" in shown) is stream.isatty()

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [({"progress": "yes"}, TypeError), ({"chunk_size": 0}, ValueError), ({"workers": 0}, ValueError)],
    )
    def test_arguments_that_make_no_sense_are_refused(self, arguments: Any, error: type[Exception]) -> None:
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:")
        with pytest.raises(error):
            index.ingest(RECORDS, **arguments)


class TestDelete:
    def test_a_record_goes_with_all_its_chunks(self, place: dict[str, Any]) -> None:
        with QdrantIndex("c", embedder=make_embedder(), **place) as index:
            assert index.delete(["a"]) == 0
            index.ingest(RECORDS)
            assert index.delete(iter(["a", "never seen"])) == 2
            assert index.count() == 2
            assert index.ingest(RECORDS).embedded == 2

    @pytest.mark.parametrize("layout", ["langchain", "llama_index", "haystack", "universal"])
    def test_it_finds_them_in_every_layout(self, layout: Any) -> None:
        index = QdrantIndex("c", embedder=make_embedder(), path=":memory:", layout=layout)
        index.ingest(RECORDS)
        assert (index.delete(["b"]), index.count()) == (2, 2)

    @pytest.mark.parametrize("ids", ["ab", [1], [b"a"]])
    def test_ids_that_are_none_are_refused(self, ids: Any) -> None:
        with pytest.raises(TypeError, match="record_ids must be a list of strings"):
            QdrantIndex("c", embedder=make_embedder(), path=":memory:").delete(ids)


def test_an_index_of_a_field_with_any_name_is_found_again(tmp_path: Path) -> None:
    with QdrantIndex("c", embedder=make_embedder(), path=tmp_path, indexed_fields={"année": "integer"}) as index:
        index.ingest([record("a", "one", année=2020)])
    with QdrantIndex("c", embedder=make_embedder(), path=tmp_path, indexed_fields={"année": "integer"}) as index:
        assert [hit.id for hit in index.search("one", filter={"année": 2020})] == ["a"]
    with pytest.raises(CollectionMismatchError, match="is indexed as 'integer', not 'keyword'"):
        QdrantIndex("c", embedder=make_embedder(), path=tmp_path, indexed_fields={"année": "keyword"})


class TestDescribe:
    def test_it_says_what_is_there_and_with_what_it_was_made(self, place: dict[str, Any]) -> None:
        embedder = make_embedder()
        options: dict[str, Any] = {"stages": [8], "hybrid": True, "indexed_fields": {"colour": "keyword"}}
        with QdrantIndex("c", embedder=embedder, **place, **options) as index:
            index.ingest(RECORDS)
            found = index.describe()
            assert replace(describe("c", client=index.client), place=found.place) == found
        assert (found.points, found.records, found.collection) == (4, 2, "c")
        assert (found.model, found.dimensions, found.stages, found.language) == ("fake-embedding", 16, (8,), "english")
        assert found.fingerprint == embedder.fingerprint_for(instruction="")
        assert json.loads(json.dumps(found.to_dict()))["layout"] == "compact"
        if found.store == "memory":
            assert (found.payload_indexes, found.disk_bytes) == ({}, None)
        else:
            assert found.payload_indexes.items() >= {"meta.colour": "keyword", "_qwen.record": "keyword"}.items()
            assert (found.disk_bytes is not None) == (found.store == "embedded")

    def test_it_needs_no_model(self, tmp_path: Path) -> None:
        with QdrantIndex("c", embedder=make_embedder(), path=tmp_path) as index:
            index.ingest(RECORDS)
        found = describe("c", path=tmp_path)
        assert (found.points, found.records, found.store, found.place) == (4, 2, "embedded", str(tmp_path))
        assert (found.disk_bytes or 0) > 0

    def test_it_makes_no_folder(self, tmp_path: Path) -> None:
        looks: list[Callable[[Path], object]] = [
            lambda path: describe("c", path=path),
            lambda path: collections(path=path),
            lambda path: QdrantIndex("c", path=path),
        ]
        for look in looks:
            with pytest.raises(CollectionNotFoundError, match="there is no store in"):
                look(tmp_path / "none")
            with pytest.raises(CollectionNotFoundError, match="there is no store in"):
                look(tmp_path)  # a folder, but no store
        assert list(tmp_path.iterdir()) == []

    def test_before_anything_was_ingested_there_is_nothing_to_describe(self) -> None:
        with pytest.raises(CollectionNotFoundError):
            QdrantIndex("c", embedder=make_embedder(), path=":memory:").describe()

    def test_a_server_that_refuses_to_count_records_is_described_all_the_same(self, server: Server) -> None:
        with remote(server) as index:
            index.ingest(RECORDS)
            refusal = Reply(400, "Bad request: Index required but not found")
            server.faults.add(refusal, on="count", where=lambda request: request.body.filter is not None)
            found = index.describe()
        assert (found.points, found.records) == (4, None)

    def test_collections_of_others_are_left_out_of_the_list(self, server: Server) -> None:
        with remote(server) as index:
            index.ingest(RECORDS)
            parameters = models.VectorParams(size=2, distance=models.Distance.COSINE)
            index.client.create_collection("b", vectors_config=parameters)
            QdrantIndex("a", embedder=make_embedder(), client=index.client, layout="haystack").collection.ensure()
        found = collections(url=server.url, grpc_port=server.grpc_port)
        assert [(one.collection, one.layout, one.points) for one in found] == [
            ("a", "haystack", 0),
            ("c", "compact", 4),
        ]


class TestOptimize:
    def test_the_engine_in_a_folder_builds_its_index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        built: list[str] = []
        monkeypatch.setattr(EmbeddedQdrantClient, "optimize", lambda _, name: built.append(name))
        with QdrantIndex("c", embedder=make_embedder(), path=tmp_path) as index:
            index.ingest(RECORDS)
            assert built == []  # so few are compared one by one as fast
            monkeypatch.setattr(index_module, "UNINDEXED", 3)
            index.ingest(RECORDS, dry_run=True)
            index.ingest(RECORDS, optimize=False)
            assert built == []
            index.ingest(RECORDS)
            assert built == ["c"]
            monkeypatch.setattr(index_module, "UNINDEXED", 100)
            index.ingest(RECORDS, optimize=True)
            assert built == ["c", "c"]

    def test_it_is_harmless(self, place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk_module, "POLL", 0.001)
        with QdrantIndex("c", embedder=make_embedder(), stages=[8], quantization="scalar", **place) as index:
            with pytest.raises(CollectionNotFoundError):
                index.optimize()
            index.ingest(RECORDS)
            before = index.search("a one")
            assert index.optimize() is True
            assert [hit.id for hit in index.search("a one")] == [hit.id for hit in before]

    def test_a_server_is_waited_for_and_woken(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bulk_module, "POLL", 0.001)
        with remote(server) as index:
            index.ingest(RECORDS)
            server.forget_requests()
            server.store.statuses = [GREEN, YELLOW, YELLOW, GREY]
            assert index.optimize() is True
            assert server.store.statuses == []
            assert server.operations("update_collection") == ["update_collection"]

    def test_a_server_that_takes_too_long_is_not_waited_for(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bulk_module, "POLL", 0.001)
        with remote(server) as index:
            index.ingest(RECORDS)
            server.store.statuses = [YELLOW] * 10_000
            assert index.optimize(timeout=0.01) is False

    def test_a_server_that_fails_says_so(self, server: Server) -> None:
        with remote(server) as index:
            index.ingest(RECORDS)
            server.store.statuses = [RED]
            with pytest.raises(StoreError, match="failed to index collection 'c'"):
                index.optimize()


class TestOpening:
    def test_a_folder_is_opened_again_with_what_is_in_it(self, tmp_path: Path) -> None:
        with QdrantIndex("c", embedder=make_embedder(), path=tmp_path, layout="universal", hybrid=True) as index:
            index.ingest(RECORDS)
        with QdrantIndex("c", embedder=make_embedder(), path=str(tmp_path)) as index:
            assert (index.name, index.layout, index.count()) == ("c", "universal", 4)
            assert index.search("b two", limit=1, instruction="", hybrid=False)[0].text == "b two"

    def test_a_refusal_leaves_the_folder_unlocked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with QdrantIndex("c", embedder=make_embedder(), path=tmp_path) as index:
            index.collection.ensure()
        closed: list[int] = []
        close = EmbeddedQdrantClient.close

        def closing(client: EmbeddedQdrantClient) -> None:
            closed.append(id(client))
            close(client)

        monkeypatch.setattr(EmbeddedQdrantClient, "close", closing)
        with pytest.raises(CollectionMismatchError) as caught:
            QdrantIndex("c", embedder=make_embedder(dimensions=8), path=tmp_path)
        assert len(closed) == 1, f"{caught} holds the client, so it was not the collector who closed it"

    def test_a_server_that_is_not_there_is_named(self, server: Server) -> None:
        server.stop()
        with pytest.raises(StoreError, match=f"{server.url} .*does not answer.*grpc_port"):
            remote(server, timeout=5)

    def test_what_is_no_embedder_is_refused(self) -> None:
        with pytest.raises(TypeError, match="embedder must be an Embedder, but got str"):
            QdrantIndex("c", embedder="demo", path=":memory:")  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["", None, 3])
    def test_what_is_no_name_is_refused(self, name: Any) -> None:
        with pytest.raises(TypeError, match="name of a collection"):
            QdrantIndex(name, embedder=make_embedder(), path=":memory:")

    def test_an_index_on_a_field_is_added_when_it_is_opened(self, server: Server) -> None:
        with remote(server) as index:
            index.ingest(RECORDS)
        with remote(server, indexed_fields={"colour": "keyword"}) as index:
            assert index.describe().payload_indexes["meta.colour"] == "keyword"

    def test_its_repr_says_where_it_is(self, server: Server) -> None:
        with remote(server, api_key="s3cr3t") as index:
            assert re.fullmatch(r"QdrantIndex\('c', server store 'http://127.*', model='fake-embedding'\)", repr(index))
            assert "s3cr3t" not in repr(index)


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)


def test_importing_it_loads_neither_torch_nor_a_framework() -> None:
    heavy = ["torch", "langchain_core", "llama_index.core", "haystack", "ray", "pyarrow", "datasets", "qdrant_edge"]
    program = f"import sys, qdrant_qwen_retrieval; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(program).stdout == "[]\n"


def test_without_qdrant_client_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['qdrant_client'] = None; import qdrant_qwen_retrieval"
    assert 'pip install "qwen-retrieval[qdrant]"' in run_python(program).stderr
