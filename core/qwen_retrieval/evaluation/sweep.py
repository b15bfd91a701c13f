"""Many settings of an embedder and a reranker on one test set: each text is embedded once, each pair scored once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from os import PathLike
from pathlib import Path

import numpy as np

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.evaluation.bm25 import BM25
from qwen_retrieval.evaluation.datasets import RetrievalDataset
from qwen_retrieval.evaluation.embeddings import Embedded, TextEmbedder
from qwen_retrieval.evaluation.examples import worst_queries
from qwen_retrieval.evaluation.metrics import METRICS, Measures
from qwen_retrieval.evaluation.recommendation import advise
from qwen_retrieval.evaluation.results import SCHEMA, Data, Evaluation, Quantization, Query, Setup, Step, System
from qwen_retrieval.evaluation.runs import (
    OVERSAMPLING,
    FullVectors,
    Progress,
    Searchable,
    rerank,
    rescored,
    search,
    search_words,
)
from qwen_retrieval.evaluation.settings import BM25_NAME, Sweep, plan
from qwen_retrieval.evaluation.significance import RESAMPLES, compare
from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.ranking import check_count
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.specs import check_dimensions
from qwen_retrieval.types import FloatArray
from qwen_retrieval.vectors import IntArray, quantize, truncate_dimensions


def evaluate(
    dataset: RetrievalDataset,
    *,
    embedder: Embedder,
    reranker: Reranker | None = None,
    sweep: Sweep | None = None,
    metrics: Sequence[str] = METRICS,
    baseline: str | None = None,
    ignore_identical_ids: bool = False,
    cache: str | PathLike[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well settings of an embedder, a reranker and BM25 find the relevant documents.

    Search is exact: every query is compared with every document, and equal scores keep the order of the corpus. The
    vectors of all documents are in memory, 4 bytes for each dimension.

    Args:
        dataset: The test set, see `read_beir` and `read_questions`.
        embedder: Embeds documents once, and queries once for each instruction; shorter vectors are cut from long ones.
        reranker: Reranks what the base setting found, with the reranker's own instruction; None for none.
        sweep: What to vary; by default nothing, and a reranker to depth 100.
        metrics: See `Measures`; the first is compared and advised by.
        baseline: Name of the system that all others are compared with, such as "BM25"; by default the base.
        ignore_identical_ids: Never find a document with the id of the query, as ArguAna and Quora want it, whose
            queries are documents themselves. BEIR does so everywhere, mteb where the task says it.
        cache: A folder to keep vectors in, for an interrupted run and for the next one; None keeps none.
        resamples: Of the significance tests, at least 1.
        seed: Of their random numbers.
        progress: Told of each step how much is done.

    Returns:
        The table, its significance, what it took here, and advice.

    Raises:
        ValueError: An option is unknown or out of range.
        InputError: A text cannot be given to a model.
        MissingDependencyError: The extra ``evaluate`` is not installed.
        OSError: The cache cannot be read or written.
    """
    sweep = sweep or Sweep()
    check_count(resamples, name="resamples", none="")
    measures = Measures(dataset.qrels, metrics)
    sizes = [check_dimensions(embedder.spec, size) for size in sweep.dimensions] or [embedder.dimensions]
    rows = plan(sweep, sizes, has_reranker=reranker is not None)
    instructions = {name: _sentence(embedder, one) for name, one in sweep.instructions.items()}
    setup = _setup(embedder, reranker, rows, instructions, measures.names, baseline, resamples, seed)
    job = _Job(
        dataset,
        depth=max(measures.depth, *sweep.rerank_depths),
        excluded=_excluded(dataset, ignore_identical_ids),
        progress=progress or _silent,
    )
    if sweep.bm25_language is not None:
        job.run_bm25(sweep.bm25_language)
    texts = TextEmbedder(embedder, max(sizes), None if cache is None else Path(cache), job.progress)
    job.run_embedder([row for row in rows if row.kind == "embedder"], texts, instructions)
    if reranker is not None:
        job.run_reranker([row for row in rows if row.kind == "reranker"], reranker, setup.base)
    return _evaluation(job, setup, tuple(job.measured(row, measures) for row in rows))


def _evaluation(job: _Job, setup: Setup, systems: tuple[System, ...]) -> Evaluation:
    """What follows from the measured systems."""
    values = {system.name: np.array(system.values) for system in systems}
    table = compare("baseline", values, setup.baseline, resamples=setup.resamples, seed=setup.seed)
    advice, compared = advise(systems, setup, table)
    return Evaluation(
        schema=SCHEMA,
        data=_data(job.dataset),
        setup=setup,
        systems=systems,
        steps=tuple(job.steps),
        comparisons=table + compared,
        advice=advice,
        queries=tuple(Query(id_, text) for id_, text in job.dataset.queries.items()),
        worst=worst_queries(job.dataset, systems, setup.base, job.rankings),
    )


def _setup(
    embedder: Embedder,
    reranker: Reranker | None,
    rows: Sequence[System],
    instructions: dict[str, str],
    metrics: tuple[str, ...],
    baseline: str | None,
    resamples: int,
    seed: int,
) -> Setup:
    base = next(row.name for row in rows if row.kind == "embedder")
    if baseline is not None and baseline not in (names := [row.name for row in rows]):
        raise ValueError(f"baseline must be one of {', '.join(map(repr, names))}, but got {baseline!r}")
    return Setup(
        version=version("qwen-retrieval"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        embedder=_model(embedder),
        reranker=None if reranker is None else _model(reranker),
        device=embedder.device,
        dtype=embedder.dtype,
        instructions=instructions,
        rerank_instruction=None if reranker is None else reranker.instruction,
        metrics=metrics,
        base=base,
        baseline=baseline or base,
        resamples=resamples,
        seed=seed,
    )


class _Job:
    """One test set, and what each system found in it."""

    def __init__(self, dataset: RetrievalDataset, *, depth: int, excluded: IntArray, progress: Progress) -> None:
        self.dataset = dataset
        self.documents = list(dataset.corpus.values())
        self.queries = list(dataset.queries.values())
        self.depth = depth
        self.excluded = excluded
        self.progress = progress
        self.rankings: dict[str, IntArray] = {}
        self.steps: list[Step] = []
        self.query_seconds: dict[str, float | None] = {}
        self.rerank_seconds: dict[int, float] = {}

    def run_bm25(self, language: str) -> None:
        began = time.perf_counter()
        index = BM25(self.documents, language=language)
        self._step("indexing for BM25", len(self.documents), len(self.documents), began)
        began = time.perf_counter()
        self.rankings[BM25_NAME] = search_words(index, self.queries, self.depth, self.excluded, self.progress)
        self._step("searching with BM25", len(self.queries), len(self.queries), began)

    def run_embedder(self, rows: Sequence[System], texts: TextEmbedder, instructions: Mapping[str, str]) -> None:
        documents = texts.documents(self.documents)
        self.steps.append(Step("embedding documents", len(self.documents), documents.computed, documents.seconds))
        queries = {name: texts.queries(self.queries, text, name) for name, text in instructions.items()}
        for name, done in queries.items():
            self.steps.append(Step(f"embedding queries ({name})", len(self.queries), done.computed, done.seconds))
            self.query_seconds[name] = done.seconds / done.computed if done.computed else None
        layouts = dict.fromkeys((row.dimensions, row.quantization) for row in rows)
        for number, (dimensions, quantization) in enumerate(layouts):
            full = truncate_dimensions(documents.vectors, dimensions or texts.dimensions)  # (n, dimensions)
            index = _index(full, quantization)
            for row in rows:
                if (row.dimensions, row.quantization) == (dimensions, quantization):
                    self.rankings[row.name] = self._search(row, index, full, queries[row.instruction or ""])
            self.progress("searching", number + 1, len(layouts))

    def run_reranker(self, rows: Sequence[System], reranker: Reranker, base: str) -> None:
        depths = [row.rerank_depth or 0 for row in rows]
        found = rerank(reranker, self.queries, self.documents, self.rankings[base], depths, self.progress)
        for row, depth in zip(rows, depths, strict=True):
            done = found[depth]
            self.rankings[row.name] = done.ranking
            self.rerank_seconds[depth] = done.seconds / len(self.queries)
            self.steps.append(Step(f"reranking the first {depth}", done.pairs, done.pairs, done.seconds))

    def measured(self, system: System, measures: Measures) -> System:
        ids = list(self.dataset.corpus)
        rows = self.rankings[system.name].tolist()
        run = {query: [ids[i] for i in row if i >= 0] for query, row in zip(self.dataset.queries, rows, strict=True)}
        values = measures(run)
        return replace(
            system,
            query_seconds=self.query_seconds.get(system.instruction or ""),
            rerank_seconds=self.rerank_seconds.get(system.rerank_depth or 0),
            means={name: float(column.mean()) for name, column in values.items()},
            values=tuple(values[measures.names[0]].tolist()),
        )

    def _search(self, system: System, index: Searchable, full: FloatArray, queries: Embedded) -> IntArray:
        asked = truncate_dimensions(queries.vectors, full.shape[1])  # (q, dimensions)
        if system.quantization != "binary+rescore":
            return search(index, asked, self.depth, self.excluded)
        candidates = search(index, asked, self.depth * OVERSAMPLING, self.excluded)
        return rescored(candidates, asked, full, self.depth)

    def _step(self, name: str, items: int, computed: int, began: float) -> None:
        self.steps.append(Step(name, items, computed, time.perf_counter() - began))


def _index(vectors: FloatArray, quantization: Quantization | None) -> Searchable:
    if quantization == "int8":
        return quantize(vectors, "int8")
    return FullVectors(vectors) if quantization == "none" else quantize(vectors, "binary")


def _sentence(embedder: Embedder, instruction: str | None) -> str:
    return embedder.instruction if instruction is None else resolve_instruction(instruction)


def _excluded(dataset: RetrievalDataset, ignore_identical_ids: bool) -> IntArray:
    """(q,) the position of the document with the query's id, where that must not be found; else -1."""
    if not ignore_identical_ids:
        return np.full(len(dataset.queries), -1, dtype=np.int64)
    places = {document: place for place, document in enumerate(dataset.corpus)}
    return np.array([places.get(query, -1) for query in dataset.queries], dtype=np.int64)


def _data(dataset: RetrievalDataset) -> Data:
    judgements = sum(grade >= 1 for grades in dataset.qrels.values() for grade in grades.values())
    return Data(dataset.name, len(dataset.corpus), len(dataset.queries), judgements, dataset.notes)


def _model(model: Embedder | Reranker) -> str:
    return model.spec.model + (f"@{model.revision}" if model.revision else "")


def _silent(_what: str, _done: int, _total: int) -> None:
    pass
