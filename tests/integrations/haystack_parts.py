"""Models that count what they do, and texts, for the tests of the Haystack components."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from haystack import Document

from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder, QwenTextEmbedder
from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)

QUERY = "copy a file"
TEXTS = [
    "shutil.copy copies a file to another place",
    "math.sin returns the sine of a number",
    "os.remove deletes a file",
    "shutil.copytree copies a whole folder",
]


def documents() -> list[Document]:
    return [Document(id=f"d{number}", content=text, meta={"number": number}) for number, text in enumerate(TEXTS)]


def make_embedder(engine: FakeEmbeddingEngine | None = None, **options: Any) -> Embedder:
    return Embedder(engine or FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), **options)


def make_reranker(engine: FakeRerankingEngine | None = None, **options: Any) -> Reranker:
    return Reranker(engine or FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec(), **options)


def text_embedder(engine: FakeEmbeddingEngine | None = None, **options: Any) -> QwenTextEmbedder:
    return QwenTextEmbedder.from_embedder(make_embedder(engine), **options)


def document_embedder(engine: FakeEmbeddingEngine | None = None, **options: Any) -> QwenDocumentEmbedder:
    return QwenDocumentEmbedder.from_embedder(make_embedder(engine), **options)


def ranker(engine: FakeRerankingEngine | None = None, **options: Any) -> QwenRanker:
    return QwenRanker.from_reranker(make_reranker(engine), **options)


class Loads:
    """Lets models be loaded by any name without files, and remembers with what options.

    Args:
        monkeypatch: Takes it back after the test.
        delay: Seconds that loading takes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delay: float = 0.0) -> None:
        self.options: list[dict[str, Any]] = []
        self.models: list[Embedder | Reranker] = []
        self.delay = delay
        for kind, make in ((Embedder, make_embedder), (Reranker, make_reranker)):
            monkeypatch.setattr(kind, "from_pretrained", partial(self._load, make))

    def __len__(self) -> int:
        return len(self.options)

    def _load(self, make: Callable[..., Embedder | Reranker], model: str, **options: Any) -> Embedder | Reranker:
        self.options.append({"model": model, **options})
        time.sleep(self.delay)
        of_parts = ("max_length", "max_batch_tokens", "batch_size", "on_overflow", "control_tokens", "show_progress")
        self.models.append(make(**{name: options[name] for name in of_parts}))
        return self.models[-1]
