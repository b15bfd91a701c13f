"""What holds records: anything is read as a stream, a bad row is named and the rest goes on."""

from __future__ import annotations

import enum
import hashlib
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_qwen_retrieval import tables
from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.metadata import json_metadata
from qdrant_qwen_retrieval.records import Rejected, as_row, check_output, open_records
from qdrant_qwen_retrieval.rows import Fields
from qwen_retrieval.errors import MissingDependencyError

NAMES = st.text(min_size=1, max_size=8)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(SCALARS | st.text(), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=5)


def read(source: Any, **options: Any) -> list[Record | Rejected]:
    return list(open_records(source, **options).records)


def only(source: Any, **options: Any) -> Record | Rejected:
    (one,) = read(source, **options)
    return one


def reason(row: Any, **options: Any) -> str:
    rejected = only([row], **options)
    assert isinstance(rejected, Rejected)
    return rejected.reason


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


# --------------------------------------------------------------------------------------------------- rows


def test_other_fields_and_the_title_join_the_metadata() -> None:
    row = {"id": "a", "text": "body", "title": "Head", "year": 2020, "metadata": {"lang": "en"}}
    assert only([row]) == Record("a", "body", {"title": "Head", "lang": "en", "year": 2020}, "Head")


def test_a_row_is_not_changed() -> None:
    row = {"id": "a", "text": "body", "metadata": {"lang": "en"}, "year": 2020}
    before = json.dumps(row)
    only([row])
    assert json.dumps(row) == before


def test_a_record_is_taken_as_it_is() -> None:
    record = Record("a", "body", {"lang": "en"}, "Head", ("one", "two"))
    assert only([record]) == record


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [("a", "a"), (7, "7"), (np.int64(7), "7"), (np.str_("a"), "a"), (uuid.UUID(int=1), str(uuid.UUID(int=1)))],
)
def test_ids_are_strings_integers_or_uuids(identifier: Any, expected: str) -> None:
    record = only([{"id": identifier, "text": "body"}])
    assert isinstance(record, Record)
    assert (record.id, type(record.id)) == (expected, str)
    assert only([replace(record, id=identifier)]) == record


@pytest.mark.parametrize("identifier", [None, True, 1.5, b"a", np.bool_(True)])
def test_other_ids_are_refused(identifier: object) -> None:
    rejected = only([{"id": identifier, "text": "body"}])
    assert isinstance(rejected, Rejected)
    assert rejected.id == "row 1 of the input"
    assert "the id must be a string or an integer, but is " in rejected.reason


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "b"}, "has no field 'id' (it has 'text'); name the right one with id_field=..., or make ids of the"),
        ({"id": "a", "body": "b"}, "has no field 'text' (it has 'id', 'body'); name the right one with text_field=..."),
        ({"id": "a", "text": None}, "the text must be a string, but is None"),
        ({"id": "a", "text": b"b"}, "the text must be a string, but is bytes"),
        ({"id": "a", "text": "b", "title": 3}, "the title must be a string, but is int"),
        ({"id": "a", "text": "b", "metadata": "{}"}, "the metadata must be a mapping, but is str"),
        ({"id": "a", "text": "b", "metadata": {"x": 1}, "x": 1}, "'x' stands both in the metadata and beside it"),
        (
            {"id": "a", "text": "b", "title": "A", "metadata": {"title": "B"}},
            "the title stands beside the metadata and differs from the one in it; keep one of them",
        ),
        ({"id": "a", "text": "b", "chunks": "b"}, "the chunks must be a list of strings, but are str"),
        ({"id": "a", "text": "b", "chunks": ["b", 3]}, "chunk 1 must be a string, but is int"),
        (Record("a", None), "the text must be a string, but is None"),  # type: ignore[arg-type]
        ("a text", "a record must be a mapping or a Record, but is str; a text needs an id"),
        (Path("a.txt"), "Path; give paths as a list"),
        (None, "a record must be a mapping or a Record, but is None"),
    ],
)
def test_a_bad_row_says_where_it_is_and_what_is_wrong(row: object, expected: str) -> None:
    good = {"id": "z", "text": "z"}
    first, rejected, last = read([good, row, good])
    assert first == last == Record("z", "z")
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("row 2 of the input: ")
    assert expected in rejected.reason
    has_id = isinstance(row, Record) or (isinstance(row, dict) and "id" in row)
    assert rejected.id == ("a" if has_id else "row 2 of the input")
    assert rejected.record == (
        as_row(row, Fields()) if isinstance(row, Record) else row if isinstance(row, dict) else None
    )


def test_a_record_with_chunks_needs_no_text() -> None:
    assert only([{"id": "a", "chunks": ["b", "c"]}]) == Record("a", "", chunks=("b", "c"))
    assert only([{"id": "a", "text": "t", "chunks": np.array(["b", "c"])}]) == Record("a", "t", chunks=("b", "c"))
    assert only([{"id": "a", "text": "t", "chunks": None, "title": None, "metadata": None}]) == Record("a", "t")


def test_other_fields_can_hold_id_and_text() -> None:
    row = {"title": "a", "content": "b", "id": 3}
    assert only([row], id_field="title", text_field="content") == Record("a", "b", {"id": 3})


def test_ids_can_be_made_of_the_texts() -> None:
    rows = [{"text": "one"}, {"text": "two"}, {"text": "one", "page": 2}, {"chunks": ["one"]}, {"text": "\ud800"}]
    ids = [record.id for record in read(rows, id_field=None) if isinstance(record, Record)]
    assert ids[0] == ids[2] == ids[3] == hashlib.blake2b(b"one", digest_size=16).hexdigest()
    assert len(set(ids)) == 3
    assert reason({"text": None}, id_field=None) == "row 1 of the input: the text must be a string, but is None"


def test_id_and_text_must_be_two_fields() -> None:
    with pytest.raises(ValueError, match="id_field and text_field are both 'text'"):
        open_records([], id_field="text")


@given(NAMES, st.text(), st.dictionaries(NAMES, JSON), st.text(), st.none() | st.lists(st.text(), min_size=1))
def test_a_record_comes_back_from_its_row(
    identifier: str, text: str, metadata: dict[str, Any], title: str, chunks: list[str] | None
) -> None:
    record = Record(identifier, text, metadata, title, None if chunks is None else tuple(chunks))
    again = only([as_row(record, Fields())])
    assert again == replace(record, metadata=({"title": title} if title else {}) | metadata)
    assert isinstance(again, Record)
    assert only([as_row(again, Fields())]) == again


# ---------------------------------------------------------------------------------------------- iterables


def test_a_generator_is_read_as_it_is_consumed() -> None:
    source = open_records({"id": number, "text": "x"} for number in count())
    assert source.total is None
    assert [record.id for record in islice(source.records, 3)] == ["0", "1", "2"]


def test_nothing_is_read_before_the_first_record_is_asked_for() -> None:
    def rows() -> Iterator[dict[str, str]]:
        pytest.fail("read")
        yield {}

    open_records(rows())


@pytest.mark.parametrize("kind", [list, tuple, set, dict.fromkeys])
def test_whatever_has_a_length_gives_the_total(kind: Any) -> None:
    rows = kind([Record(str(number), "x", ()) for number in range(3)])  # type: ignore[arg-type]
    assert open_records(rows.keys() if isinstance(rows, dict) else rows).total == 3


def test_a_length_that_nobody_knows_is_none() -> None:
    class Stream:
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter([{"id": 1, "text": "x"}])

        def __len__(self) -> int:
            raise TypeError("a stream has no length")

    assert open_records(Stream()).total is None
    assert only(Stream()) == Record("1", "x")


def test_what_a_generator_raises_passes_unchanged() -> None:
    error = LookupError("the database is gone")

    def rows() -> Iterator[dict[str, str]]:
        yield {"id": "a", "text": "x"}
        raise error

    records = open_records(rows()).records
    assert next(records) == Record("a", "x")
    with pytest.raises(LookupError) as raised:
        next(records)
    assert raised.value is error


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Record("a", "b"), "expected an iterable of records, but got one Record; put it into a list"),
        ({"train": []}, "but got one dict; put it into a list, or choose a split"),
        (b"a.jsonl", "expected an iterable of records, or paths, but got bytes"),
        (3, "but got int"),
        (None, "but got NoneType"),
    ],
)
def test_what_holds_no_records_is_refused(source: Any, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        open_records(source)


def test_a_data_frame_is_refused_with_what_to_give_instead() -> None:
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"id": ["a"], "text": ["b"]})
    for columns in (frame, arrow.table({"id": ["a"]})["id"]):
        with pytest.raises(TypeError, match=r"read by columns; give its rows: .*to_dict\('records'\) of pandas"):
            open_records(columns)
    assert only(frame.to_dict("records")) == Record("a", "b")


def test_an_empty_list_is_no_records() -> None:
    source = open_records([])
    assert (source.total, list(source.records)) == (0, [])


def test_hugging_face_datasets_are_read_and_streamed() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"id": [1, 2], "text": ["a", "b"], "label": [0, 1]})
    expected = [Record("1", "a", {"label": 0}), Record("2", "b", {"label": 1})]
    assert open_records(dataset).total == 2
    assert open_records(dataset.to_iterable_dataset()).total is None
    assert read(dataset) == read(dataset.to_iterable_dataset()) == expected
    assert read(dataset.with_format("numpy")) == expected
    with pytest.raises(ValueError, match=r"the dataset has no field 'key' .it has 'id', 'text', 'label'.; name the"):
        open_records(dataset, id_field="key")
    with pytest.raises(TypeError, match="choose a split"):
        open_records(datasets.DatasetDict(train=dataset))


# --------------------------------------------------------------------------------------------------- paths


def test_jsonl_is_read_line_by_line_and_bad_lines_are_named(tmp_path: Path) -> None:
    good = '{"id": 1, "text": "ä"}'
    bad: list[str | bytes] = [
        "not json",
        b'{"id": "\xe4"}',
        "[1]",
        '"x"',
        "null",
        '{"id": 2}',
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
    ]
    path = write(tmp_path / "notes.jsonl", b"\xef\xbb\xbf" + good.encode(), "", *bad, " \t\r", good + "\r")
    records = read(path)
    assert records[0] == records[-1] == Record("1", "ä")
    reasons = [record.reason for record in records[1:-1] if isinstance(record, Rejected)]
    assert [one.partition(f" of {path}: ")[0] for one in reasons] == [f"line {number}" for number in range(3, 11)]
    expected = [
        "it is not valid JSON: Expecting value",
        "it is not UTF-8: byte 9 is 0xe4",
        "it must be a JSON object, but is '[1]'",
        "it must be a JSON object, but is '\"x\"'",
        "it must be a JSON object, but is 'null'",
        "has no field 'text'",
        "it is nested too deeply",
        "it is not valid JSON: Exceeds the limit",
    ]
    for one, start in zip(reasons, expected, strict=True):
        assert start in one
    assert open_records(path).total == len(bad) + 4


@pytest.mark.parametrize(("content", "total"), [(b"", 0), (b"{}", 1), (b"{}\n", 1), (b"{}\n{}", 2), (b"\n\n", 2)])
def test_the_total_of_jsonl_is_its_lines(tmp_path: Path, content: bytes, total: int) -> None:
    assert open_records(write(tmp_path / "a.ndjson", content)).total == total


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 7)
    good = '{"id": 1, "text": "a"}'
    long = json.dumps({"id": 2, "text": "b" * 100})
    first, rejected, second, last = read(write(tmp_path / "a.jsonl", good, long, good, long))
    assert first == second == Record("1", "a")
    assert isinstance(rejected, Rejected)
    assert isinstance(last, Rejected)
    assert "line 2 of " in rejected.reason
    assert "longer than" in rejected.reason


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text('{"id": 1, "text": "a"}\n'))
    writer.start()
    source = open_records(path)
    assert (source.total, list(source.records)) == (None, [Record("1", "a")])
    writer.join()


def test_parquet_is_read_by_batches_and_bad_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tables, "PARQUET_ROWS", 2)
    broken = arrow.Array.from_buffers(
        arrow.string(), 5, [None, arrow.py_buffer(np.arange(6, dtype=np.int32).tobytes()), arrow.py_buffer(b"ab\xffde")]
    )
    table = arrow.table({"id": [1, 2, 3, None, 5], "text": broken, "tags": [["x"], None, [], [], ["y", "z"]]})
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path, row_group_size=3)
    one, two, three, four, five = read(path)
    assert (one, two) == (Record("1", "a", {"tags": ["x"]}), Record("2", "b", {"tags": None}))
    assert five == Record("5", "e", {"tags": ["y", "z"]})
    assert isinstance(three, Rejected)
    assert isinstance(four, Rejected)
    assert three.reason.startswith(f"row 3 of {path}: column 'text' cannot be read: 'utf-8'")
    assert four.reason == f"row 4 of {path}: the id must be a string or an integer, but is None"
    assert open_records(path).total == 5


def test_values_that_are_like_no_other_spoil_one_row_only() -> None:
    pandas = pytest.importorskip("pandas")
    good = {"id": "good", "text": "b"}
    rows: list[Any] = [{"id": "a", "text": "b", field: pandas.NA} for field in ("title", "metadata", "chunks")]
    rows += [{"id": "a", "text": pandas.NA}, Record("a", 3, {}, "", np.array(["b", "c"]))]  # type: ignore[arg-type]
    for row in rows:
        bad, kept = read([row, good])
        assert isinstance(bad, Rejected)
        assert (bad.id, bad.id_is) == ("a", "record")
        assert kept == Record("good", "b")


def test_a_file_that_is_read_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    outputs: list[tuple[Any, Any]] = [
        ("a.jsonl", tmp_path / "folder" / ".." / "a.jsonl"),
        (["b.jsonl", Path("a.jsonl")], "a.jsonl"),
        ("folder", "link/failed.txt"),
    ]
    for source, output in outputs:
        with pytest.raises(ValueError, match="would be read and written at the same time; write what fails to another"):
            check_output(source, output)
    records = [{"id": "a", "text": "a.jsonl"}]
    sources: list[Any] = ["folder", ["b.jsonl"], records, iter(records), "folder/a.jsonl.old"]
    for harmless in sources:
        check_output(harmless, "folder/a.jsonl")


@pytest.mark.parametrize("kind", ["table", "record_batch"])
def test_an_arrow_table_is_read_by_rows_and_checked_at_the_door(kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = getattr(arrow, kind)({"id": [1, None], "text": ["a", "b"], "year": [2020, 2021]})
    one, two = open_records(table).records
    assert one == Record("1", "a", {"year": 2020})
    assert isinstance(two, Rejected)
    assert two.reason == "row 2 of the table: the id must be a string or an integer, but is None"
    assert open_records(table).total == 2
    with pytest.raises(ValueError, match=r"the table has no field 'key' .it has 'id', 'text', 'year'.; name the"):
        open_records(table, id_field="key")


def test_a_parquet_file_is_checked_at_the_door(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"key": [1], "body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no field 'id' .it has 'key', 'body'.; name the right one"):
        open_records(tmp_path / "a.parquet")
    assert only(tmp_path / "a.parquet", id_field="key", text_field="body") == Record("1", "a")
    with pytest.raises(ValueError, match=r"b\.parquet is not a Parquet file, or is damaged"):
        open_records(write(tmp_path / "b.parquet", "PAR1 or not"))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "qwen-retrieval\[parquet\]"'):
        open_records(write(tmp_path / "a.parquet", "x"))


def test_several_paths_are_read_in_their_order_and_each_once(tmp_path: Path) -> None:
    first, second = write(tmp_path / "b.jsonl", '{"id": 1, "text": "a"}'), write(tmp_path / "a.jsonl", "{}", "")
    (tmp_path / "c.txt").write_text("c")
    paths: list[str | Path] = [first, str(second), first]
    source = open_records(paths)
    assert source.total == 2
    assert [record.id for record in source.records] == ["1", f"line 1 of {second}"]
    assert open_records([first, tmp_path / "c.txt"]).total is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a question?", "there is no file or folder 'a question.'; a text is given as a record"),
        (["one text", "another\n" * 1000], "there is no file or folder 'one text'; a text is given as a record"),
        ("x" * 5000, "…'; a text is given as a record"),
        ("with\0null", "a text is given as a record"),
        ([Path(__file__), Path("gone.txt")], r"there is no file or folder 'gone\.txt'$"),
    ],
)
def test_a_missing_file_is_an_error_at_the_door(source: Any, expected: str) -> None:
    with pytest.raises(FileNotFoundError, match=expected):
        open_records(source)


def test_an_unknown_kind_of_file_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot tell what is in .*a\.pdf: .* \.jsonl, \.ndjson, \.parquet, \.md, "):
        open_records([write(tmp_path / "a.txt", "x"), write(tmp_path / "a.pdf", "x")])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet"])
def test_a_file_that_may_not_be_read_is_an_error_at_the_door(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "x").chmod(0)
    with pytest.raises(PermissionError):
        open_records(tmp_path / name)


def test_a_large_source_needs_constant_memory(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = (json.dumps({"id": number, "text": "x" * 1000}) for number in range(30_000))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    column = arrow.array(["y" * 1000] * 30_000)
    parquet.write_table(arrow.table({"id": range(30_000), "text": column}), tmp_path / "a.parquet", row_group_size=2000)
    program = (
        "import sys, resource, pyarrow.parquet\n"
        "from qdrant_qwen_retrieval.records import open_records\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(1 for _ in open_records(sys.argv[1:]).records) == 60_000\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet")]
    grown = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 20  # of 60 MB of text


# ------------------------------------------------------------------------------------------------ metadata


class Color(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (date(2024, 1, 2), "2024-01-02"),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "2024-01-02T03:04:05+00:00"),
        (np.datetime64("2024-01-02T03:04:05.123456789"), "2024-01-02T03:04:05.123456789"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (PurePosixPath("a/b"), "a/b"),
        (Color.RED, "red"),
        (np.str_("a"), "a"),
        (np.bool_(True), True),
        (np.int32(3), 3),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(3), 3),
        ((1, ("a", None)), [1, ["a", None]]),
        ({"a": {"b": [date(2024, 1, 2)]}}, {"a": {"b": ["2024-01-02"]}}),
    ],
)
def test_values_with_one_obvious_form_become_json(value: object, expected: object) -> None:
    result = json_metadata({"key": value})
    assert result == {"key": expected}
    assert json.loads(json.dumps(result)) == result
    assert type(result["key"]) is type(expected)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"key": b"x"}, r"metadata\['key'\] is bytes, which has no JSON form"),
        ({"a": [0, {"b": {1, 2}}]}, r"metadata\['a'\]\[1\]\['b'\] is set, which has no JSON form"),
        ({"key": Decimal("1.5")}, "is Decimal, which has no JSON form; make it a string or a number"),
        ({"key": 1j}, "is complex"),
        ({"key": float("nan")}, r"metadata\['key'\] is nan, which JSON does not have"),
        ({"key": np.float32("inf")}, "is inf, which JSON does not have"),
        ({"key": np.datetime64("NaT")}, "is datetime64, which has no JSON form"),
        ({"key": 2**63}, "is 9223372036854775808, which does not fit into 64 bits"),
        ({"key": "\udc00"}, r"metadata\['key'\] is not valid Unicode: it has a lone surrogate U.DC00 at 0"),
        ({"a\udc00": 1}, r"the key 'a\\udc00' of metadata is not valid Unicode"),
        ({"a": {1: 2}}, r"the keys of metadata\['a'\] must be strings, but 1 is int"),
        ({"_qwen": 1}, "the metadata key '_qwen' is reserved; rename it"),
        ({"key": np.timedelta64(5, "ns")}, "is timedelta64, which has no JSON form"),
        ({"key": np.timedelta64(5, "D")}, "is timedelta64, which has no JSON form"),
        ({"key": "x" * 1_000_000}, "the metadata is 1,000,011 bytes of JSON, but 1,000,000 is the limit"),
    ],
)
def test_values_without_a_json_form_are_refused_by_their_key(metadata: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as raised:
        json_metadata(metadata)
    str(raised.value).encode()


def test_not_a_time_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"metadata\['key'\] is NaTType"):
        json_metadata({"key": pandas.NaT})


def test_metadata_that_contain_themselves_are_refused() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    with pytest.raises(ValueError, match="nested deeper than 60 levels"):
        json_metadata(endless)


@given(st.dictionaries(NAMES.filter(lambda name: name != "_qwen"), JSON))
def test_json_stays_as_it_is(metadata: dict[str, Any]) -> None:
    assert json_metadata(metadata) == metadata


def test_opening_records_imports_nothing_heavy() -> None:
    program = "import sys, qdrant_qwen_retrieval.records; print({'torch', 'pyarrow', 'datasets'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
