"""The plots of the report, from the results; each is None where there is nothing to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_retrieval.evaluation.plots import Plot, Point, draw, horizontal
from qwen_retrieval.evaluation.results import Evaluation, System

Intervals = Mapping[str, tuple[float, float]]
"""System -> ends of the 95 % interval of its mean."""

INTERVAL = "Bars are 95 % intervals over the queries."


def quality_by_dimension(result: Evaluation, intervals: Intervals) -> Plot | None:
    """The first measure over the length of the vectors, a line for each quantization."""
    grid = grid_of(result)
    sizes = [system.dimensions or 0 for system in grid]
    if len(set(sizes)) < 2:
        return None
    points = _points(result, grid, intervals, sizes, "dimensions")
    x = horizontal("dimensions (log scale)", sizes, log=True)
    caption = f"How much is lost with shorter vectors. {INTERVAL}"
    return draw("dimension", "Quality against dimension", caption, x, result.setup.metrics[0], points)


def quality_by_storage(result: Evaluation, intervals: Intervals) -> Plot | None:
    """The first measure over the bytes that are kept of each document, with the Pareto front."""
    grid = grid_of(result)
    sizes = [system.stored_bytes or 0 for system in grid]
    if len(set(sizes)) < 2:
        return None
    points = _points(result, grid, intervals, sizes, "bytes")
    x = horizontal("bytes per document (log scale)", sizes, log=True, ticks=[4**power for power in range(1, 12)])
    caption = (
        "The line is the Pareto front: no setting that was measured is better with the same bytes or fewer. "
        f"Named are the settings on it. {INTERVAL}"
    )
    return draw("storage", "Quality against storage", caption, x, result.setup.metrics[0], points, front=True)


def gain_of_reranking(result: Evaluation) -> Plot | None:
    """The difference that reranking makes in the first measure, over its depth."""
    compared = [one for one in result.comparisons if one.family == "reranking"]
    if not compared:
        return None
    metric, points = result.setup.metrics[0], []
    for one in sorted(compared, key=lambda one: result.system(one.system).rerank_depth or 0):
        depth = result.system(one.system).rerank_depth or 0
        text = f"first {depth} reranked: {one.difference:+z.3f} ({one.low:+z.3f} to {one.high:+z.3f})"
        points.append(Point(depth, one.difference, one.low, one.high, text))
    x = horizontal("documents reranked", [0, *(point.x for point in points)])
    points.insert(0, Point(0, 0, 0, 0, "without reranking: 0"))
    caption = f"Difference to {result.setup.base}, which it reorders. Bars are 95 % intervals of the difference."
    return draw("gain", "Gain of reranking", caption, x, f"gain in {metric}", {"reranked": points})


def cost_of_reranking(result: Evaluation) -> Plot | None:
    """The seconds that reranking took for each query, over its depth."""
    taken = sorted((s.rerank_depth or 0, s.rerank_seconds) for s in result.systems if s.rerank_seconds is not None)
    if not taken:
        return None
    points = [Point(depth, s, s, s, f"first {depth} reranked: {s:.3g} seconds") for depth, s in [(0, 0.0), *taken]]
    x = horizontal("documents reranked", [point.x for point in points])
    caption = "What reranking took for one query on the machine of this evaluation, in batches."
    return draw("cost", "Cost of reranking", caption, x, "seconds per query", {"reranked": points})


def grid_of(result: Evaluation) -> list[System]:
    """The systems that differ from the base in dimensions and quantization alone, with the base."""
    told = result.system(result.setup.base).instruction
    return [system for system in result.systems if system.kind == "embedder" and system.instruction == told]


def _points(
    result: Evaluation, grid: Sequence[System], intervals: Intervals, sizes: Sequence[int], unit: str
) -> dict[str, list[Point]]:
    """Quantization -> points by rising size."""
    metric = result.setup.metrics[0]
    groups: dict[str, list[Point]] = {_kept_as(system): [] for system in grid}  # in the order of the table
    for size, system in sorted(zip(sizes, grid, strict=True), key=lambda pair: pair[0]):
        mean, (low, high) = system.means[metric], intervals[system.name]
        text = f"{system.name}, {size:,} {unit}: {metric} {mean:.3f} ({low:.3f} to {high:.3f})"
        label = system.name.removeprefix("embedder ")
        groups[_kept_as(system)].append(Point(size, mean, low, high, text, label))
    return groups


def _kept_as(system: System) -> str:
    return "full precision" if system.quantization == "none" else str(system.quantization)
