"""Test sets: what is read, what is refused with file and line, what is left out and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_retrieval.evaluation.datasets import DatasetError, RetrievalDataset, read_beir, read_questions


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "fruit"
    write_jsonl(
        folder / "corpus.jsonl",
        {"_id": "d1", "title": "Apple", "text": "grows on trees", "metadata": {}},
        {"_id": "d2", "title": "", "text": "Berries grow on shrubs"},
        {"_id": "d3", "text": "Cars do not grow"},
    )
    write_jsonl(folder / "queries.jsonl", {"_id": "q1", "text": "trees"}, {"_id": "q2", "text": "shrubs"})
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td3\t0\n", "utf-8")
    return folder


def test_a_beir_folder_is_read_as_beir_reads_it(beir: Path) -> None:
    dataset = read_beir(beir)
    assert dataset.corpus == {"d1": "Apple grows on trees", "d2": "Berries grow on shrubs", "d3": "Cars do not grow"}
    assert dataset.queries == {"q1": "trees"}  # q2 belongs to another split
    assert dataset.qrels == {"q1": {"d1": 2, "d3": 0}}
    assert (dataset.name, dataset.notes) == ("fruit", ())


def test_judgements_come_from_the_split_a_single_file_or_the_file_that_is_named(beir: Path) -> None:
    (beir / "qrels" / "dev.tsv").write_text("q2\td2\t1\n", "utf-8")  # no header: no judgement is lost
    assert list(read_beir(beir, split="dev").queries) == ["q2"]
    (beir / "other.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\n", "utf-8")
    assert read_beir(beir, qrels=beir / "other.tsv").qrels == {"q2": {"d1": 1}}
    with pytest.raises(FileNotFoundError, match=r"no judgements qrels/train\.tsv; it has the splits dev, test"):
        read_beir(beir, split="train")
    for file in (beir / "qrels").iterdir():
        file.unlink()
    (beir / "qrels").rmdir()
    (beir / "other.tsv").rename(beir / "qrels.tsv")
    assert list(read_beir(beir).queries) == ["q2"]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        pytest.param("corpus.jsonl", '{"_id": "d1", "text": "again"}', "has the id 'd1', which", id="twice"),
        pytest.param("corpus.jsonl", '{"_id": "d4", "text": 3}', "'text' in .* must be a string", id="number"),
        pytest.param(
            "corpus.jsonl", '{"_id": "d4", "body": ""}', r"no field 'text' \(it has '_id', 'body'\)", id="text"
        ),
        pytest.param("corpus.jsonl", '{"text": "x"}', "must have an id in the field '_id'", id="id"),
        pytest.param("corpus.jsonl", '{"_id": ', "is not valid JSON", id="json"),
        pytest.param("corpus.jsonl", "[]", "must be a JSON object, but is list", id="list"),
        pytest.param("qrels/test.tsv", "q9\td1\t1", "judges the query 'q9', which queries.jsonl does not", id="query"),
        pytest.param("qrels/test.tsv", "q1\td1\t1", "judges 'd1' for the query 'q1' again", id="grade"),
        pytest.param("qrels/test.tsv", "q1\td1\tyes", "must end in a grade, an integer, but ends in 'yes'", id="yes"),
        pytest.param("qrels/test.tsv", "q1 0 d1 1", "must have 3 columns with tabs between, but has 1", id="trec"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(beir: Path, file: str, line: str, message: str) -> None:
    path = beir / file
    path.write_text(path.read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(DatasetError, match=message) as caught:
        read_beir(beir)
    assert f"line 4 of {path}" in str(caught.value)


def test_bytes_that_are_no_utf_8_are_named(beir: Path) -> None:
    (beir / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "\xff"}\n')
    with pytest.raises(DatasetError, match=r"line 1 of .*queries\.jsonl is not UTF-8"):
        read_beir(beir)


def test_own_questions_may_have_lists_grades_and_ids(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "docs.jsonl", {"id": 1, "text": "one"}, {"id": "2", "title": "Two", "text": "two"})
    questions = write_jsonl(
        tmp_path / "mine.jsonl",
        {"query": "which is one?", "relevant": [1]},
        {"id": "graded", "query": "which is two?", "relevant": {"2": 3, "1": 0}},
    )
    dataset = read_questions(questions, corpus)
    assert dataset.queries == {"1": "which is one?", "graded": "which is two?"}
    assert dataset.corpus == {"1": "one", "2": "Two two"}
    assert dataset.qrels == {"1": {"1": 1}, "graded": {"2": 3, "1": 0}}
    assert dataset.name == "mine"


def test_a_folder_of_texts_is_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    (tmp_path / "docs" / "a.md").write_text("# A", "utf-8")
    (tmp_path / "docs" / "sub" / "b.txt").write_text("b", "utf-8")
    (tmp_path / "docs" / "c.png").write_bytes(b"\xff")
    questions = write_jsonl(tmp_path / "q.jsonl", {"query": "b?", "relevant": ["sub/b.txt"]})
    assert read_questions(questions, tmp_path / "docs").corpus == {"a.md": "# A", "sub/b.txt": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"query": "a"}, 'must have the field "relevant"', id="missing"),
        pytest.param({"query": "a", "relevant": "d1"}, 'but it is "d1"', id="no list"),
        pytest.param({"query": "a", "relevant": {"d1": 0.5}}, "integer grades", id="fraction"),
        pytest.param({"query": "a", "relevant": ["d1", "d1"]}, "names the relevant document 'd1' twice", id="twice"),
        pytest.param({"query": " ", "relevant": ["d1"]}, "has an empty query", id="empty"),
    ],
)
def test_a_bad_question_is_named_with_its_file_and_number(tmp_path: Path, row: Any, message: str) -> None:
    corpus = write_jsonl(tmp_path / "docs.jsonl", {"id": "d1", "text": "one"})
    questions = write_jsonl(tmp_path / "q.jsonl", {"query": "fine", "relevant": ["d1"]}, row)
    with pytest.raises(DatasetError, match=message) as caught:
        read_questions(questions, corpus)
    assert f"line 2 of {questions}" in str(caught.value)


def test_queries_without_relevant_documents_are_left_out_and_said() -> None:
    dataset = RetrievalDataset({"a": "x", "b": "y", "c": "z"}, {"d": "t"}, {"a": {"d": 1}, "b": {"d": 0}})
    assert list(dataset.queries) == ["a"]
    assert list(dataset.qrels) == ["a"]
    assert dataset.notes == ("2 queries without a relevant document were left out: 'b', 'c'",)


def test_relevant_documents_outside_of_the_corpus_count_as_not_found_and_are_said() -> None:
    dataset = RetrievalDataset({"a": "x"}, {"d": "t"}, {"a": {"d": 1, "gone": 1}})
    assert dataset.qrels == {"a": {"d": 1, "gone": 1}}
    assert dataset.notes == ("1 of 2 relevant documents are not in the corpus and count as not found: 'gone'",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        pytest.param(({"a": "x"}, {}, {"a": {"d": 1}}), "has no documents", id="documents"),
        pytest.param(({}, {"d": "t"}, {}), "no query has a judgement", id="queries"),
        pytest.param(({"a": "x"}, {"d": "t"}, {"a": {"e": 1}}), r"none of its 1 relevant .*'e'.* in the", id="other"),
        pytest.param(({"a": "x"}, {"d": "t"}, {"b": {"d": 1}}), "judgements of 1 unknown queries: 'b'", id="unknown"),
    ],
)
def test_nothing_to_evaluate_is_an_error_in_words(parts: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        RetrievalDataset(*parts)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(({"q\ud800": "?"}, {"d": "x"}, {"q\ud800": {"d": 1}}), id="query"),
        pytest.param(({"q": "?"}, {"d\udcff": "x"}, {"q": {"d\udcff": 1}}), id="document"),
        pytest.param(({"q": "?"}, {"d": "x"}, {"q": {"d": 1, "e\udcff": 1}}), id="judgement"),
    ],
)
def test_an_id_that_is_not_valid_unicode_is_refused_before_anything_is_computed(wrong: Any) -> None:
    with pytest.raises(DatasetError, match="which is not valid Unicode; rename it"):
        RetrievalDataset(*wrong)
