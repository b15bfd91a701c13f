"""Pictures of a results file: throughput against length, memory against batch, fraction of the floor.

python -m benchmarks.plots results/2026-11-21-models.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import Measurement, Results


def draw(results: Results, stem: Path) -> list[Path]:
    """Draw what the results have numbers for.

    Args:
        results: Of one run.
        stem: Where to write: ``stem-length.png`` and so on; folder and name without a suffix.

    Returns:
        The files that were written; [] if matplotlib is missing, which is said on stderr.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        print('no plots without matplotlib; run: pip install "qwen-retrieval[bench]"', file=sys.stderr)
        return []
    mpl.use("Agg")
    drawn = []
    for name, plot in PLOTS.items():
        path = stem.with_name(f"{stem.name}-{name}.png")
        if plot(results.measurements, path):
            drawn.append(path)
    return drawn


def throughput_by_length(measurements: list[Measurement], path: Path) -> bool:
    """Tokens per second over tokens per item, one panel per model and task; False if no contender has two lengths."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in measurements:
        if one.calls == 1 or one.task == "pairs":
            lines = panels.setdefault(f"{one.model}, {'reranking' if one.task == 'pairs' else 'embedding'}", {})
            for name in one.runs:
                lines.setdefault(name, []).append((one.given_tokens / one.items, one.tokens_per_second(name)))
    panels = {title: lines for title, lines in panels.items() if any(len(points) > 1 for points in lines.values())}
    return _lines(panels, path, "tokens per item, template included", "tokens per second")


def memory_by_batch(measurements: list[Measurement], path: Path) -> bool:
    """A GPU's memory over the weights against the tokens of a batch, one panel per workload; False if none is known."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in measurements:
        for name, run in one.runs.items():
            per_unit = one.given_tokens / one.items if run.unit == "texts" else 1.0
            points = [(x.batch_size * per_unit, x.peak_bytes / 1e6) for x in run.sweep if x.peak_bytes is not None]
            if points:
                panels.setdefault(f"{one.workload}, {one.model}", {})[name] = points
    return _lines(panels, path, "real tokens of a batch", "MB over the weights")


def fraction_of_floor(measurements: list[Measurement], path: Path) -> bool:
    """Bars: one group per workload and model, one bar per contender."""
    names = list(dict.fromkeys(name for one in measurements for name in one.runs))
    if not names:
        return False
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(max(6.0, 1.1 * len(measurements)), 4.5))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        known = [(i, one.fraction_of_floor(name)) for i, one in enumerate(measurements) if name in one.runs]
        places = [i + (number - (len(names) - 1) / 2) * width for i, _ in known]
        axes.bar(places, [value for _, value in known], width, label=name)
    axes.set_xticks(range(len(measurements)), [f"{one.workload}\n{one.model}" for one in measurements], fontsize=8)
    axes.set_ylabel("floor / measured time")
    return _save(figure, axes, path)


def _lines(panels: dict[str, dict[str, list[tuple[float, float]]]], path: Path, across: str, up: str) -> bool:
    if not panels:
        return False
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_title(title)
        axes.set_xlabel(across)
        axes.set_ylim(bottom=0)
    grid[0][0].set_ylabel(up)
    return _save(figure, grid[0][0], path)


def _save(figure: Any, axes: Any, path: Path) -> bool:  # noqa: ANN401 - typed with and without matplotlib
    from matplotlib import pyplot as plt

    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
    axes.grid(visible=True, axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


PLOTS: dict[str, Callable[[list[Measurement], Path], bool]] = {
    "length": throughput_by_length,
    "memory": memory_by_batch,
    "floor": fraction_of_floor,
}
"""End of the file's name, and what draws it."""

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for written in draw(Results.read(Path(argument)), Path(argument).with_suffix("")):
            print(written)
