"""What is varied, and the rows of the table that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from qwen_retrieval.evaluation.results import Kind, Quantization, System
from qwen_retrieval.ranking import check_count

BM25_NAME = "BM25"


@dataclass(frozen=True)
class Sweep:
    """What to vary. The first value of each is the base, which the others vary from.

    All dimensions meet all quantizations; the other instructions, and reranking, have the base's dimensions and
    quantization.

    Attributes:
        dimensions: Lengths of the vectors; () for the embedder's own.
        quantizations: How documents' vectors are kept.
        instructions: Name -> instruction of the queries: a sentence, the name of a preset or task, "" for none, or None
            for the embedder's own.
        rerank_depths: How many of the first documents to rerank, if there is a reranker.
        bm25_language: The stemmer of BM25, such as "english", or "none"; None leaves BM25 out.

    Raises:
        ValueError: A value is unknown, out of range or twice there, or an option other than `dimensions` is empty.
    """

    dimensions: Sequence[int] = ()
    quantizations: Sequence[Quantization] = ("none",)
    instructions: Mapping[str, str | None] = field(default_factory=lambda: {"default": None})
    rerank_depths: Sequence[int] = (100,)
    bm25_language: str | None = "english"

    def __post_init__(self) -> None:
        for name in ("dimensions", "quantizations", "rerank_depths"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must all differ, but got {', '.join(map(str, values))}")
        for name in ("quantizations", "instructions", "rerank_depths"):
            if not getattr(self, name):
                raise ValueError(f"{name} must have at least one value, but is empty")
        for depth in self.rerank_depths:
            check_count(depth, name="rerank_depths")
        for quantization in self.quantizations:
            if quantization not in get_args(Quantization):
                known = ", ".join(get_args(Quantization))
                raise ValueError(f"quantizations must be among {known}, but got {quantization!r}")


def plan(sweep: Sweep, sizes: Sequence[int], *, has_reranker: bool) -> list[System]:
    """The rows of the table, before anything is measured.

    Args:
        sweep: What to vary.
        sizes: The lengths of the vectors, at least one.
        has_reranker: Whether there are rows with a reranker.

    Returns:
        BM25, dimensions and quantizations (the first is the base), other instructions, reranking; without figures.
    """
    names = list(sweep.instructions)
    words = [_system(BM25_NAME, "bm25")] if sweep.bm25_language is not None else []
    grid = [_vectors(size, quantization, names[0]) for size in sizes for quantization in sweep.quantizations]
    base = grid[0]
    told = [replace(base, name=f"{base.name}, instruction {name}", instruction=name) for name in names[1:]]
    reranked = [
        replace(base, name=f"{base.name}, first {depth} reranked", kind="reranker", rerank_depth=depth)
        for depth in (sweep.rerank_depths if has_reranker else ())
    ]
    return [*words, *grid, *told, *reranked]


def document_bytes(dimensions: int, quantization: Quantization) -> tuple[int, int]:
    """The bytes of a document's vector: that a search looks through, and that are kept in all.

    Args:
        dimensions: Length of the vector.
        quantization: How it is kept; see `System`.
    """
    full, bits = 4 * dimensions, -(-dimensions // 8)
    sizes = {"none": (full, full), "int8": (dimensions + 4,) * 2, "binary": (bits, bits)}
    return (bits, bits + full) if quantization == "binary+rescore" else sizes[quantization]


def _vectors(size: int, quantization: Quantization, instruction: str) -> System:
    searched, stored = document_bytes(size, quantization)
    return replace(
        _system(f"embedder {size}" + ("" if quantization == "none" else f" {quantization}"), "embedder"),
        dimensions=size,
        quantization=quantization,
        instruction=instruction,
        searched_bytes=searched,
        stored_bytes=stored,
    )


def _system(name: str, kind: Kind) -> System:
    return System(
        name=name,
        kind=kind,
        dimensions=None,
        quantization=None,
        instruction=None,
        searched_bytes=None,
        stored_bytes=None,
        rerank_depth=None,
        query_seconds=None,
        rerank_seconds=None,
        means={},
        values=(),
    )
