"""Records whose vectors are known beforehand, so that a benchmark of a store measures the store."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import SEED, prose
from qdrant_qwen_retrieval import Record
from qwen_retrieval import Embedder
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from qwen_retrieval.types import FloatArray

PACKAGES = (
    "qwen-retrieval",
    "qdrant-client",
    "qdrant-edge-py",
    "langchain-qdrant",
    "llama-index-vector-stores-qdrant",
    "qdrant-haystack",
    "torch",
    "numpy",
)
_DIGITS, _CHARACTERS = 9, 1000


def unit_vectors(count: int, dimensions: int, *, seed: int = SEED) -> FloatArray:
    """(count, dimensions) float32, random directions: the hardest case, nothing is near to anything."""
    rows = np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def text_of(number: int) -> str:
    """1,000 characters of prose that begin with the number of their vector."""
    start = number * 37 % (len(_prose()) - _CHARACTERS)
    return f"{number:0{_DIGITS}} {_prose()[start : start + _CHARACTERS - _DIGITS - 1]}"


@lru_cache(maxsize=1)
def _prose() -> str:
    return prose()


def metadata_of(number: int) -> dict[str, Any]:
    """Five fields."""
    return {
        "source": f"library/part-{number % 100:02}.rst",
        "title": "shutil - High-level file operations",
        "section": "Directory and files operations",
        "language": "en",
        "year": 2000 + number % 27,
    }


def records(count: int) -> Iterator[Record]:
    """Records of one chunk each, one after the other."""
    for number in range(count):
        yield Record(f"document-{number:0{_DIGITS}}", text_of(number), metadata_of(number))


class PrecomputedEmbedder(Embedder):
    """Looks vectors up by the number that a text begins with, which costs next to nothing.

    Args:
        vectors: (n, dimensions); the number is taken modulo n.
    """

    def __init__(self, vectors: FloatArray) -> None:
        size = vectors.shape[1]
        super().__init__(FakeEmbeddingEngine(size), ByteTokenizer(), fake_embedding_spec(hidden_size=size))
        self._rows = vectors

    def embed_documents(self, documents: Sequence[str], **_: Any) -> FloatArray:  # noqa: ANN401
        """(n, dimensions), the vectors of the texts; a framework's own text, to measure the length, has the first."""
        numbers = [int(text[:_DIGITS]) if text[:_DIGITS].isdigit() else 0 for text in documents]
        return self._rows[np.array(numbers, dtype=np.int64) % len(self._rows)]

    async def aembed_documents(self, documents: Sequence[str], **_: Any) -> FloatArray:  # noqa: ANN401
        """The same."""
        return self.embed_documents(documents)

    def embed_queries(self, queries: Sequence[str], **_: Any) -> FloatArray:  # noqa: ANN401
        """The same: a query is the text of a record."""
        return self.embed_documents(queries)


def exact_neighbours(vectors: FloatArray, queries: FloatArray, limit: int) -> list[list[int]]:
    """The rows of `vectors` nearest to each query by cosine, best first, in float32."""
    similarities = queries @ vectors.T  # (queries, vectors)
    return [[int(row) for row in np.argsort(-line, kind="stable")[:limit]] for line in similarities]


def machine() -> dict[str, Any]:
    """What this was measured on, and when."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
