"""A test set of a dozen documents, and models that need no download."""

from __future__ import annotations

import json
from pathlib import Path

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.evaluation import RetrievalDataset
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)

DOCUMENTS = {
    "cp": "cp copies files and directories",
    "mv": "mv moves or renames files",
    "rm": "rm removes files or directories",
    "ls": "ls lists what a directory contains",
    "cat": "cat prints files on the standard output",
    "grep": "grep prints lines that match a pattern",
    "sort": "sort sorts lines of text",
    "wc": "wc counts lines, words and bytes",
    "tar": "tar stores many files in an archive",
    "ssh": "ssh logs into a remote machine",
    "df": "df shows how much space is free on file systems",
    "kill": "kill sends a signal to a process",
}
QUESTIONS = {
    "copy a file": ["cp"],
    "rename files": ["mv"],
    "delete a directory": ["rm"],
    "print matching lines": ["grep"],
    "count the words of a text": ["wc"],
    "put files into an archive": ["tar"],
    "free space": ["df"],
    "contents of files": ["cat", "ls"],
}


def dataset() -> RetrievalDataset:
    queries = {f"q{number}": text for number, text in enumerate(QUESTIONS)}
    relevant = zip(queries, QUESTIONS.values(), strict=True)
    return RetrievalDataset(queries, DOCUMENTS, {q: dict.fromkeys(ids, 1) for q, ids in relevant}, "commands")


def embedder(engine: FakeEmbeddingEngine | None = None) -> Embedder:
    return Embedder(engine or FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())


def reranker() -> Reranker:
    return Reranker(FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec())


def write_beir(folder: Path) -> Path:
    """The same test set in BEIR's format."""
    data = dataset()
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", data.corpus), ("queries", data.queries)):
        lines = (json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    rows = (f"{query}\t{id_}\t{grade}\n" for query, grades in data.qrels.items() for id_, grade in grades.items())
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), "utf-8")
    return folder
