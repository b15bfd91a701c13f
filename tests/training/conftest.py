"""Tiny random checkpoints with the demo pair's tokenizers, and a handful of examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_retrieval.hub import model_folder
from tests.checkpoints import TINY, write_checkpoint

SHAPE = TINY | {"num_hidden_layers": 2, "bos_token_id": 8192, "eos_token_id": 8194}
VOCABULARY = 8197


def tokenizer_folder(tmp: Path, kind: str) -> Path:
    source, target = model_folder("demo", kind), tmp / f"tokenizer-{kind}"  # type: ignore[arg-type]
    target.mkdir()
    for file in source.glob("tokenizer*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizer_folder(tmp, "embedding")
    return write_checkpoint(tmp / "tiny-embedder", tokenizer, SHAPE, prefix=False, vocab_size=VOCABULARY, gain=1.0)


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizer_folder(tmp, "reranking")
    return write_checkpoint(tmp / "tiny-reranker", tokenizer, SHAPE, prefix=True, vocab_size=VOCABULARY, gain=1.0)


WORDS = [
    "read",
    "write",
    "sort",
    "parse",
    "open",
    "close",
    "copy",
    "split",
    "join",
    "merge",
    "count",
    "match",
    "list",
    "file",
    "path",
    "time",
    "date",
    "json",
    "text",
    "line",
]


def write_examples(path: Path) -> Path:
    """Twenty examples with none, one or two negatives, of two instructions."""
    lines = []
    for i, word in enumerate(WORDS):
        negatives = [f"How to {WORDS[i - n]} a thing." for n in range(1, 1 + i % 3)]
        example = {"query": f"{word} it", "positive": f"How to {word} something, in words.", "negatives": negatives}
        lines.append(json.dumps(example | ({"instruction": "Find the manual"} if i % 2 else {})))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_examples(tmp_path / "data.jsonl")


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "data.jsonl")
