"""Vectors of many texts: in parts, so that there is progress, and what is done is kept."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.evaluation.runs import Progress
from qwen_retrieval.types import FloatArray

PART = 1024
"""Texts that are embedded, and kept, at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Vectors, and what they cost.

    Attributes:
        vectors: (n, dimensions) float32, rows of unit length, in the order of the texts.
        computed: How many of them were not in the cache.
        seconds: How long those took.
    """

    vectors: FloatArray
    computed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TextEmbedder:
    """An embedder with a folder that keeps its vectors.

    Vectors are kept under the embedder's fingerprint (model, instruction, dimensions, lengths), one file for each 1,024
    texts, which the texts' own hash names. So a run that was interrupted goes on where it was, and nothing is found
    again that was made otherwise.

    Attributes:
        embedder: The embedder.
        dimensions: Length of the vectors.
        cache: The folder, made when needed, or None to keep nothing.
        progress: Told of the texts that are done.
    """

    embedder: Embedder
    dimensions: int
    cache: Path | None
    progress: Progress

    def documents(self, texts: Sequence[str]) -> Embedded:
        """The vectors of documents, which get no instruction."""
        folder = self._folder("documents", "")
        embed = lambda part: self.embedder.embed_documents(part, dimensions=self.dimensions)  # noqa: E731
        return self._embed("embedding documents", texts, embed, folder)

    def queries(self, texts: Sequence[str], instruction: str, name: str) -> Embedded:
        """The vectors of queries with an instruction, and how to call it; "" for none."""
        folder = self._folder("queries", instruction)
        embed = lambda part: self.embedder.embed_queries(  # noqa: E731
            part, instruction=instruction, dimensions=self.dimensions
        )
        return self._embed(f"embedding queries ({name})", texts, embed, folder)

    def _folder(self, side: str, instruction: str) -> Path | None:
        if self.cache is None:
            return None
        return (
            self.cache / f"{self.embedder.fingerprint_for(dimensions=self.dimensions, instruction=instruction)}-{side}"
        )

    def _embed(
        self, what: str, texts: Sequence[str], embed: Callable[[Sequence[str]], FloatArray], folder: Path | None
    ) -> Embedded:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        computed, seconds = 0, 0.0
        for start in range(0, len(texts), PART):
            part = texts[start : start + PART]
            file = None if folder is None else folder / f"{_digest(part)}.npy"
            found = None if file is None else _read(file, (len(part), self.dimensions))
            if found is None:
                began = time.perf_counter()
                found = embed(part)
                seconds += time.perf_counter() - began
                computed += len(part)
                if file is not None:
                    _write(file, found)
            vectors[start : start + PART] = found
            self.progress(what, start + len(part), len(texts))
        return Embedded(vectors, computed, seconds)


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]


def _read(file: Path, shape: tuple[int, int]) -> FloatArray | None:
    """The vectors in a file of the cache; None if there is none, or it is damaged."""
    try:
        vectors = np.load(file, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    fits = isinstance(vectors, np.ndarray) and vectors.shape == shape and vectors.dtype == np.float32
    return vectors if fits and np.isfinite(vectors).all() else None


def _write(file: Path, vectors: FloatArray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as handle:
            np.save(handle, vectors, allow_pickle=False)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
