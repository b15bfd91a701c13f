"""The command in this process, with fake models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from typer.testing import CliRunner

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.cli import app
from qwen_retrieval.specs import resolve_model
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)

RUNNER = CliRunner()
LOADING_ONLY = {"device", "dtype", "batch_invariant", "revision", "token", "cache_dir", "local_files_only"}


class Loads:
    """Stands in for ``from_pretrained`` of both classes, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @property
    def names(self) -> list[str]:
        """The models that were loaded, in order."""
        return [model for model, _ in self.asked]

    def embedder(self, model: str, **options: Any) -> Embedder:
        self.asked.append((model, options))
        spec = replace(fake_embedding_spec(), model=resolve_model(model, "embedding"))
        return Embedder(FakeEmbeddingEngine(), ByteTokenizer(), spec, **_parts(options))

    def reranker(self, model: str, **options: Any) -> Reranker:
        self.asked.append((model, options))
        return Reranker(FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec(), **_parts(options))


def _parts(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in LOADING_ONLY}


def run(*arguments: str, stdin: str | bytes = "", code: int = 0) -> str:
    """Run the command in this process, and return what it printed: stdout if it succeeded, else stderr."""
    result = RUNNER.invoke(app, list(arguments), input=stdin)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout if code == 0 else result.stderr


def fails(*arguments: str, stdin: str | bytes = "") -> str:
    """Run the command, which must fail with one line on stderr; return that line."""
    line = run(*arguments, stdin=stdin, code=1)
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line.strip()
