"""Retrieval test sets: folders in the format of BEIR, and the user's own questions and documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from qwen_retrieval.errors import QwenRetrievalError

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
_SHOWN = 3  # ids that a message names


class DatasetError(QwenRetrievalError, ValueError):
    """A test set cannot be used; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class RetrievalDataset:
    """Queries, the documents to find them in, and which of these are relevant.

    A query that no document is relevant to is left out, as in mteb: every measure of it would be 0, whatever is found.
    A relevant document that the corpus does not have stays in the judgements, as in trec_eval and BEIR: it counts as
    not found, so that figures stay comparable with published ones. Both are told in `notes`.

    Attributes:
        queries: Query id -> text, in the order of the file; only those with a relevant document.
        corpus: Document id -> text, in the order of the file, which decides between equal scores.
        qrels: Query id -> document id -> grade. A document is relevant from grade 1; others count as 0.
        name: What to call it.
        notes: What was left out or is odd, one sentence each.

    Raises:
        DatasetError: There are no documents or no queries to evaluate; a judgement names an unknown query; or no
            relevant document of any query is in the corpus; or an id is not valid Unicode.
    """

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    name: str = "dataset"
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        _check_ids(self.name, [*self.queries, *self.corpus, *(id_ for grades in self.qrels.values() for id_ in grades)])
        if not self.corpus:
            raise DatasetError(f"{self.name} has no documents")
        if unknown := [query for query in self.qrels if query not in self.queries]:
            raise DatasetError(f"{self.name} has judgements of {len(unknown)} unknown queries: {_named(unknown)}")
        relevant = {query: {d: g for d, g in self.qrels.get(query, {}).items() if g >= 1} for query in self.queries}
        notes = [*self.notes]
        if left_out := [query for query, documents in relevant.items() if not documents]:
            notes.append(f"{len(left_out)} queries without a relevant document were left out: {_named(left_out)}")
        judged = [document for documents in relevant.values() for document in documents]
        missing = [document for document in judged if document not in self.corpus]
        if len(missing) == len(judged):
            found = f"none of its {len(judged)} relevant documents ({_named(missing)}) is in the corpus"
            raise DatasetError(
                f"{self.name} has nothing to evaluate: {found if judged else 'no query has a judgement'}"
            )
        if missing:
            notes.append(
                f"{len(missing)} of {len(judged)} relevant documents are not in the corpus and count as not found: "
                f"{_named(missing)}"
            )
        kept = [query for query, documents in relevant.items() if documents]
        object.__setattr__(self, "queries", {query: self.queries[query] for query in kept})
        object.__setattr__(self, "qrels", {query: dict(self.qrels[query]) for query in kept})
        object.__setattr__(self, "notes", tuple(notes))


def _check_ids(name: str, ids: Iterable[str]) -> None:
    """An id that UTF-8 cannot write, such as the name of a broken file, would end the process inside of pytrec_eval."""
    for id_ in ids:
        try:
            id_.encode()
        except UnicodeEncodeError:
            raise DatasetError(f"{name} has the id {id_!r}, which is not valid Unicode; rename it") from None


def read_beir(
    folder: str | PathLike[str], *, split: str = "test", qrels: str | PathLike[str] | None = None
) -> RetrievalDataset:
    """Read a folder in the format of BEIR (arXiv 2104.08663; https://github.com/beir-cellar/beir).

    ``corpus.jsonl`` has a document per line, ``{"_id", "title", "text"}``, and ``queries.jsonl`` a query,
    ``{"_id", "text"}``; further fields are ignored. Title and text are joined by a space, as BEIR's and mteb's models
    do. ``qrels/SPLIT.tsv`` has a judgement per line: query id, document id and grade with tabs between, under a header.

    Args:
        folder: The folder.
        split: Which file of ``qrels/`` to read. Without such a folder, ``qrels.tsv`` is the split "test".
        qrels: The file with the judgements, instead of `split`'s.

    Returns:
        The test set; queries that the judgements do not name belong to other splits and are left out silently.

    Raises:
        FileNotFoundError: A file is missing.
        DatasetError: A line cannot be read, an id occurs twice, or a judgement names an unknown query; and see
            `RetrievalDataset`.
    """
    path = Path(folder)
    judgements = Path(qrels) if qrels is not None else _qrels_file(path, split)
    corpus = _texts(path / "corpus.jsonl", ("_id", "id"), "text", titled=True)
    queries = _texts(path / "queries.jsonl", ("_id", "id"), "text")
    grades = _read_qrels(judgements, queries)
    name = path.resolve().name
    return RetrievalDataset({query: queries[query] for query in grades}, corpus, grades, name)


def read_questions(questions: str | PathLike[str], corpus: str | PathLike[str]) -> RetrievalDataset:
    """Read the user's own questions, with the ids of the documents that answer them.

    Args:
        questions: JSON lines ``{"query": text, "relevant": [document ids]}``, or with grades ``{document id: grade}``
            in the place of the list; "id" names a query, which otherwise is called by the number of its line.
        corpus: JSON lines ``{"id", "text"}``, with a "title" or without, joined as in `read_beir`; or a folder, whose
            text files (``.txt``, ``.md``, ``.markdown``, ``.rst``) are documents with their paths below it as ids.

    Returns:
        The test set.

    Raises:
        FileNotFoundError: A file is missing.
        DatasetError: A line cannot be read, or an id occurs twice; and see `RetrievalDataset`.
    """
    path = Path(corpus)
    documents = _folder_texts(path) if path.is_dir() else _texts(path, ("id", "_id"), "text", titled=True)
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for number, where, fields in _json_lines(Path(questions)):
        query = _id(fields, ("id", "_id"), where) if {"id", "_id"} & fields.keys() else str(number)
        _add(queries, query, _text(fields, "query", where), where)
        if not queries[query].strip():
            raise DatasetError(f"{where} has an empty query")
        qrels[query] = _relevant(fields.get("relevant"), where)
    return RetrievalDataset(queries, documents, qrels, Path(questions).stem)


def _qrels_file(folder: Path, split: str) -> Path:
    single = folder / "qrels.tsv"
    if split == "test" and single.is_file() and not (folder / "qrels").is_dir():
        return single
    file = folder / "qrels" / f"{split}.tsv"
    if not file.is_file():
        splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
        hint = f"; it has the splits {', '.join(splits)}" if splits else ""
        raise FileNotFoundError(f"{folder} has no judgements qrels/{split}.tsv{hint}")
    return file


def _read_qrels(path: Path, queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        where = f"line {number} of {path}"
        columns = line.split("\t")
        if len(columns) != 3:
            raise DatasetError(f"{where} must have 3 columns with tabs between, but has {len(columns)}")
        query, document, value = (column.strip() for column in columns)
        grade = _integer(value)
        if grade is None and number == 1:
            continue  # the header
        if grade is None:
            raise DatasetError(f"{where} must end in a grade, an integer, but ends in {value!r}")
        if query not in queries:
            raise DatasetError(f"{where} judges the query {query!r}, which queries.jsonl does not have")
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise DatasetError(f"{where} judges {document!r} for the query {query!r} again, with another grade")
    return qrels


def _texts(path: Path, ids: tuple[str, ...], text: str, *, titled: bool = False) -> dict[str, str]:
    texts: dict[str, str] = {}
    for _, where, fields in _json_lines(path):
        content = _text(fields, text, where)
        if titled and fields.get("title") is not None:
            content = f"{_text(fields, 'title', where)} {content}".strip()
        _add(texts, _id(fields, ids, where), content, where)
    return texts


def _folder_texts(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and path.is_file())
    texts: dict[str, str] = {}
    for path in files:
        texts[path.relative_to(folder).as_posix()] = _decoded(path.read_bytes(), str(path))
    if not texts:
        raise DatasetError(f"{folder} has no documents: no file ends in {', '.join(TEXT_SUFFIXES)}")
    return texts


def _relevant(value: object, where: str) -> dict[str, int]:
    if isinstance(value, list) and all(_is_id(document) for document in value):
        if repeated := [str(document) for document, count in Counter(map(str, value)).items() if count > 1]:
            raise DatasetError(f"{where} names the relevant document {repeated[0]!r} twice")
        return {str(document): 1 for document in value}
    if isinstance(value, dict) and all(type(grade) is int for grade in value.values()):
        return dict(value)
    raise DatasetError(
        f'{where} must have the field "relevant": a list of document ids, or an object of document ids and integer '
        f"grades, but it is {json.dumps(value, ensure_ascii=False)[:60]}"
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line that is not blank."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decoded(raw, f"line {number} of {path}").strip("\r\n")
            if line.strip():
                yield number, line


def _json_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, line in _lines(path):
        where = f"line {number} of {path}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DatasetError(f"{where} must be a JSON object, but is {type(fields).__name__}")
        yield number, where, fields


def _decoded(raw: bytes, where: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
        text.encode()
    except UnicodeError as error:
        raise DatasetError(f"{where} is not UTF-8: {error}") from error
    return text


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    if name not in fields:
        known = ", ".join(map(repr, fields)) or "none"
        raise DatasetError(f"{where} has no field {name!r} (it has {known})")
    if not isinstance(fields[name], str):
        raise DatasetError(f"field {name!r} in {where} must be a string, but is {type(fields[name]).__name__}")
    return str(fields[name])


def _id(fields: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    value = next((fields[name] for name in names if name in fields), None)
    if not _is_id(value):
        raise DatasetError(f"{where} must have an id in the field {names[0]!r}, a string or an integer")
    return str(value)


def _is_id(value: object) -> bool:
    return (isinstance(value, str) and value != "") or type(value) is int


def _add(texts: dict[str, str], id_: str, text: str, where: str) -> None:
    if id_ in texts:
        raise DatasetError(f"{where} has the id {id_!r}, which an earlier line has already")
    texts[id_] = text


def _integer(value: str) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None


def _named(ids: list[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", …" if len(ids) > _SHOWN else "")
