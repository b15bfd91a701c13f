"""Ingestion into a collection in memory: what is embedded and written, what is left alone, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.http.exceptions import UnexpectedResponse

from qdrant_qwen_retrieval import QdrantIndex, ingest
from qdrant_qwen_retrieval.chunks import Record, point_id
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.records import open_records
from qdrant_qwen_retrieval.report import IngestWarning, Progress
from qdrant_qwen_retrieval.rows import RecordSource, Rejected
from qdrant_qwen_retrieval.seen import Seen
from qdrant_qwen_retrieval.stores import Store, open_store
from qwen_retrieval import Embedder
from qwen_retrieval.errors import CollectionNotFoundError, IngestError, NonFiniteError
from qwen_retrieval.usage import track_usage
from tests.integrations.qdrant_parts import (
    RecordingEngine,
    assert_holds,
    make_embedder,
    memory_store,
    open_collection,
    points_of,
    record,
    run,
    texts_of,
)
from tests.threads import none_left

WRITES = ("upsert", "batch_update_points", "delete")


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def embedder(engine: RecordingEngine) -> Iterator[Embedder]:
    with make_embedder(engine) as embedder:
        yield embedder


@pytest.fixture
def collection(embedder: Embedder) -> Collection:
    return open_collection(embedder=embedder)


def corpus(size: int = 20) -> list[Record]:
    return [record(f"r{i}", *(f"text {i}, part {j}" for j in range(i % 4 + 1)), number=i) for i in range(size)]


def before_writes(collection: Collection, call: Callable[[str], Any]) -> None:
    """Have `call` called with the name of each write before it is done."""

    def around(name: str, write: Callable[[], Any]) -> Any:
        call(name)
        return write()

    for name in WRITES:
        _wrap(collection.client, name, partial(around, name))


def after_writes(collection: Collection, call: Callable[[str], Any]) -> None:
    """Have `call` called with the name of each write when it is acknowledged."""

    def around(name: str, write: Callable[[], Any]) -> Any:
        result = write()
        call(name)
        return result

    for name in WRITES:
        _wrap(collection.client, name, partial(around, name))


def _wrap(client: Any, name: str, around: Callable[[Callable[[], Any]], Any]) -> None:
    method = getattr(client, name)
    setattr(client, name, lambda *args, **kwargs: around(lambda: method(*args, **kwargs)))


class TestWhatIsEmbedded:
    def test_all_records_are_stored_with_their_texts_metadata_and_vectors(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        report = run(collection, embedder, corpus())
        assert_holds(collection, embedder, corpus())
        assert (report.records, report.chunks, report.embedded, report.points) == (20, 50, 50, 50)
        assert (report.skipped, report.replaced, report.deleted, report.failed) == (0, 0, 0, 0)
        assert report.seconds > 0

    def test_a_second_run_embeds_and_writes_nothing(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine
    ) -> None:
        run(collection, embedder, corpus())
        engine.texts.clear()
        writes: list[str] = []
        before_writes(collection, writes.append)
        report = run(collection, embedder, corpus(), delete_missing=True)
        assert (engine.texts, writes) == ([], [])
        assert (report.skipped, report.embedded, report.replaced, report.tokens) == (50, 0, 0, 0)

    def test_only_chunks_whose_text_has_changed_are_embedded_again(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine
    ) -> None:
        run(collection, embedder, [record("a", "one", "two", "three"), record("b", "four")])
        engine.texts.clear()
        new = [record("a", "one", "zwei", "three"), record("b", "four")]
        report = run(collection, embedder, new)
        assert engine.texts == ["zwei"]
        assert (report.embedded, report.replaced, report.skipped, report.points) == (1, 1, 3, 4)
        assert_holds(collection, embedder, new)

    def test_changed_metadata_are_written_without_embedding(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine
    ) -> None:
        run(collection, embedder, [record("a", "one", "two", year=1), record("b", "three", year=1)])
        engine.texts.clear()
        new = [record("a", "one", "two", author="x"), record("b", "three", year=1)]
        report = run(collection, embedder, new)
        assert engine.texts == []
        assert (report.embedded, report.replaced, report.skipped) == (0, 2, 1)
        assert_holds(collection, embedder, new)

    @pytest.mark.parametrize(("old", "new"), [(1, 5), (5, 1), (3, 4), (4, 3), (1, 30), (30, 1), (30, 25)])
    def test_records_grow_and_shrink(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine, old: int, new: int
    ) -> None:
        run(collection, embedder, [record("a", *map(str, range(old)))])
        engine.texts.clear()
        report = run(collection, embedder, [record("a", *map(str, range(new)))])
        assert len(engine.texts) == report.embedded == max(0, new - old)
        assert report.deleted == max(0, old - new)
        assert report.points == new
        assert_holds(collection, embedder, [record("a", *map(str, range(new)))])

    def test_records_that_vanish_stay_unless_they_are_to_be_deleted(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        run(collection, embedder, corpus())
        assert run(collection, embedder, corpus(5)).points == 50
        report = run(collection, embedder, corpus(5), delete_missing=True)
        assert (report.deleted, report.points) == (39, 11)
        assert_holds(collection, embedder, corpus(5))

    def test_a_record_of_many_batches_is_stored_whole(self, collection: Collection, embedder: Embedder) -> None:
        records = [record("a", "x"), record("b", *map(str, range(50))), record("c", "y", "z")]
        report = run(collection, embedder, records, batch_size=4)
        assert report.points == 53
        assert_holds(collection, embedder, records)

    def test_texts_are_split(self, collection: Collection, embedder: Embedder) -> None:
        run(collection, embedder, [Record("a", "one two three")], splitter=str.split)
        assert texts_of(collection) == {"a": "one", "a#chunk-1": "two", "a#chunk-2": "three"}

    def test_a_point_of_a_framework_with_the_same_id_is_replaced(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        collection.ensure()
        foreign = models.PointStruct(id=point_id("a"), vector=[1.0] * 16, payload={"content": "old"})
        collection.client.upsert(collection.name, [foreign])
        report = run(collection, embedder, [record("a", "new")])
        assert (report.embedded, report.replaced, report.points) == (1, 1, 1)
        assert_holds(collection, embedder, [record("a", "new")])

    def test_an_empty_input_makes_nothing(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        report = run(collection, embedder, [], dead_letter=tmp_path / "dead.jsonl", delete_missing=True)
        assert (report.records, report.points, report.failures) == (0, 0, ())
        assert not collection.exists()
        assert engine.calls == 0
        assert not (tmp_path / "dead.jsonl").exists()

    def test_the_report_counts_tokens_and_cut_texts(self, collection: Collection, engine: RecordingEngine) -> None:
        embedder = make_embedder(engine, max_length=8)
        with track_usage() as usage, pytest.warns(UserWarning, match="longer than max_length"):
            report = run(collection, embedder, [record("a", "x" * 20, "abc"), record("b", "y")], workers=1)
        assert (report.tokens, report.truncated) == (8 + 4 + 2, 1)
        assert (usage.tokens, usage.truncated) == (14, 1)


class TestBadRecords:
    def test_the_second_record_of_an_id_fails(self, collection: Collection, embedder: Embedder) -> None:
        report = run(collection, embedder, [record("a", "first"), record("b", "x"), record("a", "second")])
        assert texts_of(collection) == {"a": "first", "b": "x"}
        assert [(one.id, one.reason) for one in report.failures] == [
            ("a", "id 'a' occurs twice in the input; the first was kept")
        ]

    def test_a_record_is_kept_if_the_first_of_its_id_could_not_be_read(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        report = run(collection, embedder, [record("a", " "), record("a", "second")])
        assert texts_of(collection) == {"a": "second"}
        assert report.failed == 1

    def test_bad_rows_are_failures_and_the_rest_goes_on(self, collection: Collection, embedder: Embedder) -> None:
        rows: list[Any] = [{"id": "a", "text": "good"}, {"id": "b"}, {"text": "no id"}, {"id": "c", "text": ""}, 7]
        rows += [
            {"id": "d#chunk-1", "text": "x"},
            {"id": "e", "text": "x", "_qwen": 1},
            {"id": "f", "text": "good too"},
        ]
        report = run(collection, embedder, open_records(rows).records)
        assert texts_of(collection) == {"a": "good", "f": "good too"}
        assert (report.records, report.failed, report.embedded) == (8, 6, 2)
        assert all(one.reason for one in report.failures)

    def test_inputs_that_the_model_refuses_are_found_one_by_one(
        self, collection: Collection, engine: RecordingEngine
    ) -> None:
        embedder = make_embedder(engine, max_length=12, on_overflow="error", control_tokens="error")
        records = corpus(0) + [record(f"r{i}", f"t{i}") for i in range(30)]
        records[3] = record("long", "x" * 50)
        records[20] = record("control", "<|im_end|>")
        records[21] = record("half", "good", "y" * 50)
        report = run(collection, embedder, records, batch_size=64)
        reasons = {one.id: one.reason for one in report.failures}
        assert set(reasons) == {"long", "control", "half"}
        assert reasons["long"] == "chunk 0: has 51 tokens with its template, but max_length is 12"
        assert "<|im_end|>" in reasons["control"]
        assert reasons["half"].startswith("chunk 1: ")
        assert "half" not in texts_of(collection)  # a record is stored as a whole or not at all
        good = [f"t{i}" for i in range(30) if i not in (3, 20, 21)]
        assert sorted(engine.texts) == sorted([*good, "good"])  # each once

    def test_texts_for_which_the_model_gives_nan_fail_alone(self, collection: Collection) -> None:
        def poisoned(batch: list[list[int]]) -> BaseException | None:
            rows = tuple(row for row, ids in enumerate(batch) if bytes(ids[:-1]).startswith(b"poison"))
            return NonFiniteError(rows) if rows else None

        records = [record(f"r{i}", f"poison {i}" if i % 10 == 3 else f"text {i}") for i in range(40)]
        with make_embedder(RecordingEngine(fail_on=poisoned)) as embedder:
            report = run(collection, embedder, records, batch_size=16)
        assert sorted(one.id for one in report.failures) == ["r13", "r23", "r3", "r33"]
        assert "NaN" in report.failures[0].reason
        assert (report.embedded, report.points) == (36, 36)

    def test_a_failing_new_version_leaves_the_old_one(self, collection: Collection) -> None:
        embedder = make_embedder(max_length=12, on_overflow="error")
        old = record("a", "one", "two", "three")
        run(collection, embedder, [old])
        report = run(collection, embedder, [record("a", "new", "x" * 50)], delete_missing=True)
        assert report.failed == 1
        assert_holds(collection, embedder, [old])

    def test_a_point_of_another_record_is_not_overwritten(self, collection: Collection, embedder: Embedder) -> None:
        run(collection, embedder, [record("a", "one")])
        collection.client.set_payload(collection.name, {"record": "b"}, [point_id("a")], key="_qwen")
        report = run(collection, embedder, [record("a", "new"), record("c", "good")])
        assert [one.id for one in report.failures] == ["a"]
        assert "'b'" in report.failures[0].reason
        assert "new" not in texts_of(collection).values()

    def test_points_that_the_store_refuses_fail_alone(self, collection: Collection, embedder: Embedder) -> None:
        collection.ensure()
        refuse(collection, "r6", "r13#chunk-1")
        report = run(collection, embedder, corpus(), batch_size=64)
        assert {one.id: one.reason for one in report.failures} == {
            "r6": "chunk 0: the store refuses it: Wrong input: not this one",
            "r13": "chunk 1: the store refuses it: Wrong input: not this one",
        }
        stored = texts_of(collection)
        assert "r6#chunk-1" not in stored  # its first chunk is refused: no other is written
        assert stored.keys() >= {one.id for one in corpus() if one.id != "r6"}

    def test_changed_metadata_of_a_point_that_somebody_has_deleted_fail(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        run(collection, embedder, [record("a", "one", n=1), record("b", "two", n=1)])
        delete = collection.client.delete
        _wrap(
            collection.client,
            "batch_update_points",
            lambda write: (delete(collection.name, models.PointIdsList(points=[point_id("a")])), write())[1],
        )
        report = run(collection, embedder, [record("a", "one", n=2), record("b", "two", n=2)])
        assert [one.id for one in report.failures] == ["a"]
        assert (report.replaced, report.points) == (1, 1)


def refuse(collection: Collection, *chunk_ids: str) -> None:
    bad = {point_id(identifier) for identifier in chunk_ids}
    upsert = collection.client.upsert

    def picky(name: str, points: list[models.PointStruct], **options: Any) -> Any:
        if bad.intersection(point.id for point in points):
            raise ValueError("Wrong input: not this one")
        return upsert(name, points, **options)

    collection.client.upsert = picky  # type: ignore[method-assign, assignment]


class TestWhatOthersHaveChanged:
    def test_chunks_without_their_first_one_go_when_the_record_gets_shorter(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        run(collection, embedder, [record("r", "one", "two", "three", "four"), record("s", "one", "two")])
        collection.client.delete(collection.name, [point_id("r")])  # what Haystack's delete_documents(["r"]) does
        changed = [record("r", "new"), record("s", "one", "two")]
        foreseen = run(collection, embedder, changed, dry_run=True)
        report = run(collection, embedder, changed)
        assert report.deleted == foreseen.deleted == 3
        assert_holds(collection, embedder, changed)

    def test_a_collection_that_was_deleted_is_made_again(self, embedder: Embedder) -> None:
        with QdrantIndex("c", embedder=embedder, path=":memory:") as index:
            index.ingest([record("a", "one")])
            index.client.delete_collection("c")
            with pytest.raises(CollectionNotFoundError, match="c"):
                index.search("one")
            assert index.ingest([record("a", "one")]).points == 1
            index.client.delete_collection("c")
            assert index.ingest([record("a", "one")]).points == 1


class TestDeadLetter:
    def test_it_has_values_as_they_would_have_been_stored(
        self, collection: Collection, embedder: Embedder, tmp_path: Path
    ) -> None:
        path = tmp_path / "dead.jsonl"
        metadata = {"year": np.int64(2020), "when": datetime(2020, 1, 2, 3, 4), "tags": np.array(["a", "b"]), "x": b"y"}
        run(collection, embedder, open_records([{"id": "a", "text": "t", **metadata}]).records, dead_letter=path)
        (line,) = path.read_text().splitlines()
        assert json.loads(line)["record"] == {
            "id": "a",
            "text": "t",
            "metadata": {"year": 2020, "when": "2020-01-02T03:04:00", "tags": ["a", "b"], "x": "b'y'"},
        }

    def test_an_id_that_is_not_made_of_the_text_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "a.txt").write_text("x" * 50)
        embedder = make_embedder(max_length=12, on_overflow="error")
        with embedder, QdrantIndex("c", embedder=embedder, path=":memory:") as index:
            index.ingest(tmp_path / "docs", id_field=None, dead_letter=tmp_path / "dead.jsonl")
        assert json.loads((tmp_path / "dead.jsonl").read_text())["record"]["id"] == "a.txt"

    def test_failures_can_be_corrected_and_ingested_again(self, collection: Collection, tmp_path: Path) -> None:
        embedder = make_embedder(max_length=12, on_overflow="error")
        path = tmp_path / "dead.jsonl"
        long = Record("long", "x" * 50, {"year": 1, "title": "T"}, title="T")
        rows: list[Any] = [
            long,
            record("own", "ok", "y" * 50),
            {"id": "empty", "text": "", "n": 1},
            {"id": "good", "text": "g"},
        ]
        report = run(collection, embedder, open_records(rows).records, dead_letter=path)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert {line["id"]: line["reason"] for line in lines} == {one.id: one.reason for one in report.failures}
        assert {line["id"] for line in lines} == {"long", "own", "empty"}
        corrected = [line["record"] for line in lines]
        for one in corrected:
            one["text"] = "short"
            if one.get("chunks"):
                one["chunks"][1] = "ok too"
        report = run(collection, embedder, open_records(corrected).records)
        assert (report.failed, report.points) == (0, 5)
        assert points_of(collection)["long"].payload["meta"] == {"year": 1, "title": "T"}  # type: ignore[index]

    @pytest.mark.parametrize("id_field", ["key", None])
    def test_it_has_the_field_names_of_the_source_whatever_failed(self, tmp_path: Path, id_field: str | None) -> None:
        path = tmp_path / "dead.jsonl"
        fields: dict[str, Any] = {"id_field": id_field, "text_field": "body"}
        rows: list[Any] = [
            {"key": "long", "body": "x" * 50, "year": 1},  # the model refuses it
            {"key": "blank", "body": " "},  # it cannot be split
            {"key": "bad", "body": "x", "metadata": 1},  # it is no record
        ]
        embedder = make_embedder(max_length=12, on_overflow="error")
        with embedder, QdrantIndex("c", embedder=embedder, path=":memory:") as index:
            assert index.ingest(rows, **fields, dead_letter=path).failed == 3
            corrected = [json.loads(line)["record"] for line in path.read_text().splitlines()]
            assert len(corrected) == 3
            for number, row in enumerate(corrected):
                row |= {"body": f"short {number}", "metadata": {}}
            report = index.ingest(corrected, **fields)
            assert (report.failed, report.points) == (0, 3)

    def test_rows_that_are_no_json_are_spelled_out(
        self, collection: Collection, embedder: Embedder, tmp_path: Path
    ) -> None:
        path = tmp_path / "dead.jsonl"
        circle: dict[str, Any] = {}
        circle["self"] = circle
        bad: dict[str, Any] = {"id": "a", "nan": float("nan"), "bytes": b"\xff", "half": "\ud800", "é": [1, circle]}
        run(collection, embedder, [Rejected("a", "bad", bad), Rejected("line 2", "no JSON")], dead_letter=path)
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        assert first["record"]["nan"] == "nan"
        assert first["record"]["half"] == "\ud800"
        assert second == {"id": "line 2", "reason": "no JSON", "record": None}

    def test_the_file_is_made_with_the_first_failure_and_never_emptied(
        self, collection: Collection, embedder: Embedder, tmp_path: Path
    ) -> None:
        path = tmp_path / "dead.jsonl"
        run(collection, embedder, [record("a", "x")], dead_letter=path)
        assert not path.exists()
        for _ in range(2):
            run(collection, embedder, [record("b", " ")], dead_letter=path)
        assert len(path.read_text().splitlines()) == 2

    def test_a_path_that_cannot_be_written_is_refused_before_anything_is_read(
        self, collection: Collection, embedder: Embedder, tmp_path: Path
    ) -> None:
        def unread() -> Iterator[Record]:
            raise AssertionError("was read")
            yield

        for path, reason in ((tmp_path, "is a folder"), (tmp_path / "no" / "dead.jsonl", "does not; make it first")):
            with pytest.raises(ValueError, match=reason):
                run(collection, embedder, unread(), dead_letter=path)


class TestDeletingWhatIsMissing:
    def test_failed_records_count_as_being_in_the_input(self, collection: Collection, embedder: Embedder) -> None:
        old = [record("a", "one"), record("b", "two"), record("c", "three", "four")]
        run(collection, embedder, old)
        rows = open_records([{"id": "a", "text": ""}, {"id": "c", "chunks": "no list"}]).records
        report = run(collection, embedder, rows, delete_missing=True)
        assert (report.failed, report.deleted) == (2, 1)
        assert_holds(collection, embedder, [old[0], old[2]])

    @pytest.mark.parametrize(
        "unknown",
        [
            Rejected("line 7 of x.jsonl", "line 7 of x.jsonl: is not valid JSON"),
            Rejected("row 2 of the input", "row 2 of the input: has no field 'id'", {"text": "x"}),
        ],
        ids=lambda one: one.id,
    )
    def test_nothing_is_deleted_if_a_row_might_be_any_record(
        self, collection: Collection, embedder: Embedder, unknown: Rejected
    ) -> None:
        run(collection, embedder, corpus(5))
        with pytest.warns(IngestWarning, match=f"deleted nothing: {unknown.id} could not be read"):
            report = run(collection, embedder, [corpus(1)[0], unknown], delete_missing=True)
        assert report.deleted == 0
        assert_holds(collection, embedder, corpus(5))

    def test_what_a_file_that_cannot_be_read_may_hold_is_kept_and_the_rest_is_not(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        old = [record(name, name) for name in ("a.md", "guide.md", "guide.md#Setup", "lib/x.md", "new.md")]
        run(collection, embedder, old)
        files = [Rejected(name, f"{name}: is not readable", id_is="prefix") for name in ("guide.md", "lib/")]
        report = run(collection, embedder, [*files, old[-1]], delete_missing=True)
        assert (report.failed, report.deleted) == (2, 1)
        assert_holds(collection, embedder, old[1:])

    def test_an_empty_input_deletes_nothing(self, collection: Collection, embedder: Embedder) -> None:
        run(collection, embedder, corpus(5))
        with pytest.warns(IngestWarning, match="the input is empty"):
            report = run(collection, embedder, [], delete_missing=True)
        assert (report.deleted, report.points) == (0, 11)

    def test_points_of_frameworks_stay(self, collection: Collection, embedder: Embedder) -> None:
        run(collection, embedder, corpus(3))
        foreign = models.PointStruct(id=point_id("x"), vector=[1.0] * 16, payload={"content": "theirs"})
        collection.client.upsert(collection.name, [foreign])
        report = run(collection, embedder, corpus(1), delete_missing=True)
        assert (report.deleted, report.points) == (5, 2)

    def test_all_pages_of_a_collection_are_looked_through(
        self, collection: Collection, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qdrant_qwen_retrieval.reconciliation._PAGE", 7)
        run(collection, embedder, corpus(40))
        report = run(collection, embedder, corpus(40)[::3], delete_missing=True)
        assert_holds(collection, embedder, corpus(40)[::3])
        assert report.deleted == 100 - report.chunks


class TestDryRun:
    def test_it_works_without_a_collection_and_makes_none(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine, tmp_path: Path
    ) -> None:
        path = tmp_path / "dead.jsonl"
        records = [*corpus(), record("bad", " ")]
        report = run(collection, embedder, records, dry_run=True, delete_missing=True, dead_letter=path)
        assert (report.embedded, report.points, report.failed, report.dry_run) == (50, 50, 1, True)
        assert not collection.exists()
        assert engine.calls == 0
        assert not path.exists()

    def test_it_tells_what_a_run_would_do(self, collection: Collection, embedder: Embedder) -> None:
        run(collection, embedder, corpus())
        changed = [record("r3", "new"), record("r2", *corpus(3)[2].chunks or (), n=1), record("new", "x"), corpus(2)[1]]
        writes: list[str] = []
        before_writes(collection, writes.append)
        foreseen = run(collection, embedder, changed, dry_run=True, delete_missing=True)
        assert writes == []
        assert_holds(collection, embedder, corpus())
        done = run(collection, embedder, changed, delete_missing=True)
        for name in ("records", "chunks", "embedded", "skipped", "replaced", "deleted", "failed", "points"):
            assert getattr(foreseen, name) == getattr(done, name), name


class TestHowItEnds:
    def test_what_the_source_raises_passes_on_and_what_was_read_is_kept(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        def source() -> Iterator[Record]:
            yield from corpus(16)
            raise RuntimeError("the source is dry")

        with none_left(), embedder, pytest.raises(RuntimeError, match="the source is dry") as caught:
            run(collection, embedder, source(), batch_size=4)
        assert "So far 16 records were read" in caught.value.__notes__[0]
        assert len(threads_of_ours()) == 0
        stored = texts_of(collection)
        assert (
            stored.items()
            <= {
                f"{one.id}#chunk-{i}" if i else one.id: text
                for one in corpus()
                for i, text in enumerate(one.chunks or ())
            }.items()
        )

    def test_ctrl_c_ends_the_run_and_the_next_one_completes_it(
        self, collection: Collection, embedder: Embedder, engine: RecordingEngine
    ) -> None:
        acknowledged = threading.Event()
        after_writes(collection, lambda _: acknowledged.set())
        main = threading.get_ident()

        def interrupt() -> None:
            acknowledged.wait(30)
            signal.pthread_kill(main, signal.SIGINT)

        def endless() -> Iterator[Record]:
            number = 0
            while True:
                number += 1
                yield record(f"r{number}", f"text {number}")

        killer = threading.Thread(target=interrupt)
        killer.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            run(collection, embedder, endless())
        killer.join()
        assert "the next run goes on from there" in caught.value.__notes__[0]
        assert threads_of_ours() == []
        kept = texts_of(collection)
        assert kept
        engine.texts.clear()
        records = [record(identifier, text) for identifier, text in kept.items()] + [record("new", "one")]
        assert run(collection, embedder, records).embedded == 1
        assert engine.texts == ["one"]

    def test_ctrl_c_does_not_wait_for_all_that_is_being_embedded(self, collection: Collection) -> None:
        main, calls = threading.get_ident(), 0

        def interrupt(_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                signal.pthread_kill(main, signal.SIGINT)

        engine = RecordingEngine(delay=0.01, fail_on=interrupt)
        records = [record(f"r{number}", f"text {number}") for number in range(4000)]
        with make_embedder(engine, batch_size=1) as embedder, pytest.raises(KeyboardInterrupt):
            run(collection, embedder, records, batch_size=1000, workers=4)
        assert calls < 400
        assert threads_of_ours() == []

    def test_an_error_of_the_model_stops_the_reading(self, collection: Collection) -> None:
        read = 0

        def source() -> Iterator[Record]:
            nonlocal read
            for one in corpus(1000):
                read += 1
                yield one

        with (
            make_embedder(RecordingEngine(fail_on=lambda _: MemoryError("no memory"))) as embedder,
            pytest.raises(MemoryError, match="no memory"),
        ):
            run(collection, embedder, source())
        assert read < 100
        assert threads_of_ours() == []

    def test_what_on_progress_raises_ends_the_run(self, collection: Collection, embedder: Embedder) -> None:
        def refuse(progress: Progress) -> None:
            raise LookupError(f"enough after {progress.chunks} chunks")

        with pytest.raises(LookupError, match="enough after"):
            run(collection, embedder, corpus(200), on_progress=refuse)
        assert threads_of_ours() == []
        run(collection, embedder, corpus(20))
        assert texts_of(collection).keys() >= {one.id for one in corpus(20)}

    def test_progress_is_told_after_each_batch_one_call_at_a_time(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        told: list[Progress] = []
        busy = threading.Lock()

        def tell(progress: Progress) -> None:
            assert busy.acquire(blocking=False)
            told.append(progress)
            busy.release()

        report = run(collection, embedder, [*corpus(), record("bad", "")], total=21, on_progress=tell, workers=4)
        last = told[-1]
        assert len(told) > 5
        assert (last.records, last.total, last.chunks, last.embedded) == (21, 21, 50, 50)
        assert (last.failed, last.tokens) == (1, report.tokens)
        for name in ("records", "chunks", "embedded", "tokens", "seconds"):
            figures = [getattr(one, name) for one in told]
            assert figures == sorted(figures)

    def test_the_source_is_closed(self, collection: Collection) -> None:
        closed = []

        def source() -> Iterator[Record]:
            try:
                yield from corpus(100)
            finally:
                closed.append(threading.get_ident())

        with (
            make_embedder(RecordingEngine(fail_on=lambda _: MemoryError("no memory"))) as broken,
            pytest.raises(MemoryError),
        ):
            ingest.run(
                collection,
                broken,
                RecordSource(source(), None),
                splitter=None,
                delete_missing=False,
                dead_letter=None,
                on_progress=None,
                dry_run=False,
                batch_size=4,
                workers=2,
                check_count=True,
            )
        assert closed == [threading.get_ident()]

    def test_an_error_is_heard_with_the_next_row_and_not_with_the_next_batch(self, collection: Collection) -> None:
        failed = threading.Event()

        def fail(_: object) -> Exception:
            failed.set()
            return MemoryError("no memory")

        read = 0

        def source() -> Iterator[Record]:
            nonlocal read
            yield from corpus(8)
            assert failed.wait(10)
            for number in range(100_000):
                read += 1
                yield record(f"late {number}", "x")

        with make_embedder(RecordingEngine(fail_on=fail)) as broken, pytest.raises(MemoryError):
            run(collection, broken, source(), batch_size=8, workers=1)
        assert read < 100_000

    def test_what_the_source_raises_is_not_taken_for_an_error_of_the_store(self, embedder: Embedder) -> None:
        refusal = UnexpectedResponse(401, "no", b"no", httpx.Headers())

        def source() -> Iterator[Record]:
            yield record("a", "one")
            raise refusal  # of another server, that the records come from

        with (
            QdrantIndex("c", embedder=embedder, path=":memory:") as index,
            pytest.raises(UnexpectedResponse) as caught,
        ):
            index.ingest(source())
        assert caught.value is refusal
        assert "So far 1 records were read" in caught.value.__notes__[0]

    def test_chunks_of_a_long_record_count_as_soon_as_they_are_written(self, collection: Collection) -> None:
        seen: list[int] = []
        calls = itertools.count(1)
        engine = RecordingEngine(fail_on=lambda _: MemoryError("no memory") if next(calls) > 3 else None)
        long = record("long", *(f"c{number}" for number in range(40)))
        with make_embedder(engine) as broken, pytest.raises(MemoryError) as caught:
            run(collection, broken, [long], batch_size=8, on_progress=lambda progress: seen.append(progress.chunks))
        assert seen == [8, 16, 24]
        assert "24 chunks written" in caught.value.__notes__[0]
        assert collection.count() == 24

    def test_the_same_text_twice_is_one_record_if_ids_are_made_of_texts(self, embedder: Embedder) -> None:
        with QdrantIndex("c", embedder=embedder, path=":memory:") as index:
            report = index.ingest([{"text": "same"}, {"text": "same"}, {"text": "other"}], id_field=None)
            assert (report.records, report.chunks, report.failed, report.points) == (3, 2, 0, 2)

    @pytest.mark.parametrize("option", ["batch_size", "workers"])
    def test_sizes_below_one_are_refused(self, collection: Collection, embedder: Embedder, option: str) -> None:
        with pytest.raises(ValueError, match=f"{option} must be at least 1, but got 0"):
            run(collection, embedder, corpus(), **cast(Any, {option: 0}))

    def test_the_store_is_told_of_a_load_once_and_only_if_something_is_written(
        self, collection: Collection, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []

        @contextlib.contextmanager
        def bulk_load() -> Iterator[None]:
            told.append("begin")
            try:
                yield
            finally:
                told.append("end")

        monkeypatch.setattr(collection, "bulk_load", bulk_load)
        run(collection, embedder, corpus(), workers=4)
        assert told == ["begin", "end"]
        run(collection, embedder, corpus())
        assert told == ["begin", "end"]
        before_writes(collection, lambda _: (_ for _ in ()).throw(MemoryError("no memory")))
        with pytest.raises(MemoryError):
            run(collection, embedder, [record("new", "x")])
        assert told == ["begin", "end"] * 2


def threads_of_ours() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("qwen-retrieval ingest")]


class TestBackPressure:
    def test_a_slow_store_stops_the_reading(self, collection: Collection, embedder: Embedder) -> None:
        read, ahead = 0, []
        batch_size, workers = 4, 3

        def source() -> Iterator[Record]:
            nonlocal read
            for number in range(400):
                read += 1
                ahead.append(read - len(acknowledged))
                yield record(f"r{number}", f"text {number}")

        acknowledged: list[int] = []
        upsert = collection.client.upsert

        def counting(name: str, points: list[models.PointStruct], **options: Any) -> Any:
            result = upsert(name, points, **options)
            acknowledged.extend(range(len(points)))
            return result

        collection.client.upsert = counting  # type: ignore[method-assign, assignment]
        run(collection, embedder, source(), batch_size=batch_size, workers=workers)
        # One batch in each thread, one that waits for a thread, one being filled, and the record that did not fit.
        assert max(ahead) <= (workers + 2) * batch_size + 1
        assert len(acknowledged) == 400

    def test_a_store_that_hangs_stops_it_for_good(self, collection: Collection, embedder: Embedder) -> None:
        read, stopped, release = 0, threading.Event(), threading.Event()

        def source() -> Iterator[Record]:
            nonlocal read
            for number in range(100):
                read += 1
                yield record(f"r{number}", f"text {number}")

        def hang(_: str) -> None:
            stopped.set()
            release.wait(30)

        before_writes(collection, hang)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(run, collection, embedder, source(), batch_size=4, workers=2)
            stopped.wait(30)
            last = -1
            while last != read:  # until the reader stands still
                last = read
                release.wait(0.05)
            assert last <= (2 + 2) * 4 + 1
            release.set()
            assert going.result(30).points == 100

    def test_large_texts_count_by_their_size(
        self, collection: Collection, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qdrant_qwen_retrieval.batches.BATCH_CHARACTERS", 3000)
        monkeypatch.setattr(ingest, "IN_FLIGHT_CHARACTERS", 5000)
        ahead = 0
        most: list[int] = []

        def source() -> Iterator[Record]:
            nonlocal ahead
            for number in range(50):
                ahead += 1
                most.append(ahead)
                yield record(f"r{number}", f"{number:4}" + "x" * 996)

        def written(_: str) -> None:
            nonlocal ahead
            ahead -= 2

        after_writes(collection, written)
        run(collection, embedder, source(), batch_size=1000, workers=8)
        assert max(most) <= 2 * 2 + 2 + 1 + 2  # two batches of two under way, one filled, one record more

    def test_record_ids_take_no_memory(self) -> None:
        with Seen() as seen:
            tracemalloc.start()
            for number in range(20_000):
                assert seen.add(f"record {number}", 1)
            grown, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert grown < 100_000
            assert not seen.add("record 7", 1)
            assert "record 7" in seen
            assert "record x" not in seen
            seen.fail("record 7")
            assert sum(1 for _ in seen.stored()) == 19_999


@pytest.fixture(params=["memory", "embedded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(":memory:" if request.param == "memory" else tmp_path / "store")
    yield opened
    opened.close()


class TestFourThreads:
    def test_disjoint_records_are_all_stored(self, store: Store) -> None:
        parts = [[record(f"{t}-{i}", *(f"{t} {i} {j}" for j in range(3))) for i in range(30)] for t in range(4)]
        with make_embedder() as embedder:
            collection = open_collection(store, embedder)
            with ThreadPoolExecutor(4) as pool:
                for done in [pool.submit(run, collection, embedder, part) for part in parts]:
                    assert done.result(60).embedded == 90
            assert_holds(collection, embedder, [one for part in parts for one in part])

    def test_overlapping_records_are_stored_once(self, store: Store) -> None:
        with make_embedder() as embedder:
            collection = open_collection(store, embedder)
            with ThreadPoolExecutor(4) as pool:
                for done in [pool.submit(run, collection, embedder, corpus(60)) for _ in range(4)]:
                    done.result(60)
            assert_holds(collection, embedder, corpus(60))
            assert run(collection, embedder, corpus(60)).skipped == 150


class TestCountsAtTheEnd:
    def test_a_store_that_loses_points_is_found_out(self, collection: Collection, embedder: Embedder) -> None:
        upsert = collection.client.upsert
        lossy = lambda name, points, **options: upsert(  # noqa: E731
            name, [point for point in points if point.id != point_id("r5")], **options
        )
        collection.client.upsert = lossy  # type: ignore[method-assign, assignment]
        with pytest.raises(IngestError, match=r"1 of the 50 of this run are not in it, such as 'r5'"):
            run(collection, embedder, corpus(), batch_size=64)

    def test_another_writer_is_no_error_and_nothing_to_warn_of(
        self, collection: Collection, embedder: Embedder, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        foreign = models.PointStruct(id=point_id("x"), vector=[1.0] * 16, payload={"content": "theirs"})
        upsert = collection.client.upsert
        after_writes(collection, lambda _: upsert(collection.name, [foreign]))
        report = run(collection, embedder, corpus())
        assert report.points == 51
        assert "51 points, where 50 were expected: somebody else writes to it" in caplog.text

    def test_without_the_check_nothing_is_counted_exactly_or_looked_up_again(
        self, collection: Collection, embedder: Embedder
    ) -> None:
        run(collection, embedder, corpus())
        asked: list[bool] = []
        lookups: list[int] = []
        count, retrieve = collection.client.count, collection.client.retrieve

        def counting(name: str, *, exact: bool) -> Any:
            asked.append(exact)
            return count(name, exact=exact)

        def retrieving(name: str, ids: list[str], **options: Any) -> Any:
            lookups.append(len(ids))
            return retrieve(name, ids, **options)

        collection.client.count = counting  # type: ignore[method-assign, assignment]
        collection.client.retrieve = retrieving  # type: ignore[method-assign, assignment]
        report = run(collection, embedder, corpus(), check_count=False)
        assert (asked, sum(lookups), report.skipped, report.points) == ([False], 50, 50, 50)


VERSIONS = st.dictionaries(
    st.sampled_from(["a", "b", "ü ç", "d/e"]),
    st.tuples(st.lists(st.sampled_from(["x", "y", "z", "w w"]), min_size=1, max_size=6), st.integers(0, 2)),
    min_size=1,
)


def version(content: dict[str, tuple[list[str], int]]) -> list[Record]:
    return [record(identifier, *chunks, n=n) for identifier, (chunks, n) in content.items()]


@settings(max_examples=25)
@given(st.lists(VERSIONS, min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 3))
def test_after_each_run_the_collection_is_the_corpus(versions: list[Any], batch_size: int, workers: int) -> None:
    with make_embedder() as embedder:
        collection = open_collection(embedder=embedder)
        for records in map(version, versions):
            run(collection, embedder, records, batch_size=batch_size, workers=workers, delete_missing=True)
            assert_holds(collection, embedder, records)


class Killed(BaseException):
    """Stands for the end of the process: nothing is done after it."""


@settings(max_examples=40)
@given(VERSIONS, VERSIONS, VERSIONS, st.integers(0, 6), st.integers(1, 3))
def test_a_run_that_was_killed_before_any_write_is_repaired_by_the_next_version(
    old: Any, new: Any, next_one: Any, kill_at: int, batch_size: int
) -> None:
    with make_embedder() as embedder:
        store = memory_store()
        collection = open_collection(store, embedder)
        run(collection, embedder, version(old), delete_missing=True)
        remaining = kill_at

        def kill(_: str) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise Killed

        before_writes(collection, kill)
        with contextlib.suppress(Killed):
            run(collection, embedder, version(new), batch_size=batch_size, workers=1)
        remaining = 10**9
        final = {**old, **new, **next_one}  # no record vanishes, so that nothing has to be looked for
        run(collection, embedder, version(final), batch_size=batch_size)
        assert_holds(collection, embedder, version(final))
