"""Results of evaluations of any size, made without a model: random values, real comparisons and advice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qwen_retrieval.evaluation import Evaluation, Sweep
from qwen_retrieval.evaluation.recommendation import advise
from qwen_retrieval.evaluation.results import SCHEMA, Data, Example, Passage, Query, Setup, Step, System
from qwen_retrieval.evaluation.settings import plan
from qwen_retrieval.evaluation.significance import compare

METRICS = ("ndcg@10", "recall@100")


def evaluation(
    sweep: Sweep | None = None, *, reranker: bool = False, queries: int = 40, gains: dict[str, float] | None = None
) -> Evaluation:
    """An evaluation of all systems of a sweep.

    Args:
        sweep: By default one system alone.
        reranker: Whether there is one.
        queries: How many.
        gains: System -> how much its mean is above 0.4, which is the others'.
    """
    sweep = sweep or Sweep(bm25_language=None)
    random = np.random.default_rng(0)
    common = random.uniform(0.2, 0.6, queries)
    rows = plan(sweep, sweep.dimensions or (64,), has_reranker=reranker)
    systems = tuple(_measured(row, common + (gains or {}).get(row.name, 0.0), random) for row in rows)
    setup = _setup(sweep, systems, reranker=reranker)
    table = compare("baseline", {s.name: np.array(s.values) for s in systems}, setup.baseline, resamples=2000)
    advice, compared = advise(systems, setup, table)
    return Evaluation(
        schema=SCHEMA,
        data=Data("commands", 1200, queries, queries, ("1 document is empty",)),
        setup=setup,
        systems=systems,
        steps=(Step("embedding documents", 1200, 1200, 2.5),),
        comparisons=table + compared,
        advice=advice,
        queries=tuple(Query(f"q{number}", f"question {number}") for number in range(queries)),
        worst=tuple(_example(f"q{number}", systems) for number in range(2)),
    )


def _measured(row: System, values: np.ndarray, random: np.random.Generator) -> System:
    noise = random.normal(0, 0.02, len(values))
    values = np.clip(values + noise - noise.mean(), 0, 1)
    return replace(
        row,
        query_seconds=None if row.kind == "bm25" else 0.01,
        rerank_seconds=0.02 * row.rerank_depth if row.rerank_depth else None,
        means=dict.fromkeys(METRICS, float(values.mean())),
        values=tuple(values.tolist()),
    )


def _setup(sweep: Sweep, systems: tuple[System, ...], *, reranker: bool) -> Setup:
    base = next(system.name for system in systems if system.kind == "embedder")
    return Setup(
        version="1.2.3",
        created="2026-01-01T00:00:00+00:00",
        embedder="demo",
        reranker="demo" if reranker else None,
        device="cpu",
        dtype="float32",
        instructions={name: "Find it" if text is None else text for name, text in sweep.instructions.items()},
        rerank_instruction="Judge it" if reranker else None,
        metrics=METRICS,
        base=base,
        baseline=base,
        resamples=2000,
        seed=0,
    )


def _example(query: str, systems: tuple[System, ...]) -> Example:
    right, wrong = Passage("right", "the right document", 1), Passage("wrong", "another document", 0)
    return Example(query, (right,), {system.name: (wrong, right) for system in systems[:2]})
