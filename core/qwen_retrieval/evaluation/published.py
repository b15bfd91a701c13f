"""The published figures of the models, as data with their sources, and what a run gives beside them.

``python -m qwen_retrieval.evaluation.published`` prints the page docs/published-figures.md.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

FIRST_STAGE = "Qwen/Qwen3-Embedding-0.6B"
"""The embedder whose first hundred documents every published reranker judged (paper, section 4)."""

MTEB_VERSION = "2.26.24"
"""The version of mteb that the adapters were tested with; the figures were measured with 1.38.9."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where figures stand.

    Attributes:
        title: What it is.
        url: Where it is.
        published: Its date, year-month-day; None if it has none.
        read: The day on which it was read.
    """

    title: str
    url: str
    published: str | None
    read: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A column or table of the published evaluation.

    Attributes:
        name: What the paper calls it.
        mteb_name: The benchmark or the task of mteb that it is; None if mteb does not have it.
        task_types: The types of tasks of that benchmark that count; all, if empty.
        reranked: Whether rerankers were measured on it.
        tolerance: How far a run may be off in points, and still agree. A judgement, not a measurement: it allows for
            bfloat16 instead of float16, and for data sets and metrics that changed since mteb 1.38.9. None for figures
            that are not claimed.
        note: What to know of it.
    """

    name: str
    mteb_name: str | None
    task_types: tuple[str, ...]
    reranked: bool
    tolerance: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One published number.

    Attributes:
        benchmark: The name of the benchmark.
        model: The repository of the model.
        metric: "Mean (Task)", "Mean (Type)", or a type of tasks for the mean of its tasks.
        value: The number, times 100 as published.
        source: Where it stands.
    """

    benchmark: str
    model: str
    metric: str
    value: float
    source: Source


@dataclass(frozen=True, slots=True)
class Measured:
    """One number of a run.

    Attributes:
        benchmark: What was run.
        model: The repository of the model, or any other name for it.
        metric: As in `Figure`.
        value: The number, times 100.
        tasks: How many tasks the model ran in this benchmark.
    """

    benchmark: str
    model: str
    metric: str
    value: float
    tasks: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published number, a number of a run, or both.

    Attributes:
        benchmark: The name of the benchmark.
        model: The model.
        metric: As in `Figure`.
        published: The published value, or None.
        measured: The value of the run, or None.
        tolerance: How far they may be apart; None if nothing is claimed.
    """

    benchmark: str
    model: str
    metric: str
    published: float | None
    measured: float | None
    tolerance: float | None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in points; None if one of them is missing."""
        if self.measured is None or self.published is None:
            return None
        return self.measured - self.published

    @property
    def verdict(self) -> str:
        """One of "not run", "not published", "no claim", "agrees" and "differs"."""
        if self.measured is None:
            return "not run"
        if self.published is None or self.difference is None:
            return "not published"
        if self.tolerance is None:
            return "no claim"
        # Published figures have two decimals: half of the last one is the least that can be told apart.
        return "agrees" if abs(self.difference) <= self.tolerance + 0.005 else "differs"


@cache
def _data() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


def _benchmarks() -> Iterator[Benchmark]:
    for entry in _data()["benchmarks"]:
        yield Benchmark(**{**entry, "task_types": tuple(entry["task_types"])})


BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _benchmarks()}
"""The published tables and columns, by the name that the paper uses."""


@cache
def figures() -> tuple[Figure, ...]:
    """Every published number, in the order of the tables."""
    sources = {key: Source(**entry) for key, entry in _data()["sources"].items()}
    return tuple(
        Figure(table["benchmark"], model, metric, value, sources[table["source"]])
        for table in _data()["tables"]
        for model, values in table["rows"].items()
        for metric, value in zip(table["metrics"], values, strict=True)
    )


@cache
def runs() -> tuple[Measured, ...]:
    """What this project has measured itself; each entry of the data names the fields of `Measured`."""
    return tuple(Measured(**entry) for entry in _data()["runs"])


def compare(measured: Iterable[Measured], *, benchmarks: Collection[str] | None = None) -> tuple[Comparison, ...]:
    """Put the results of a run beside the published figures.

    Args:
        measured: The results; none at all is allowed.
        benchmarks: The benchmarks whose published figures are listed even if they were not run; None for all.

    Returns:
        The published figures in their order, with the result of the run or without; then the results for which no
        figure was published.

    Raises:
        ValueError: Two results are of the same benchmark, model and metric.
    """
    results: dict[tuple[str, str, str], Measured] = {}
    for result in measured:
        key = (result.benchmark, result.model, result.metric)
        if key in results:
            raise ValueError(f"each benchmark, model and metric must be measured once, but {key} is there twice")
        results[key] = result
    rows = []
    for figure in figures():
        if benchmarks is None or figure.benchmark in benchmarks:
            own = results.pop((figure.benchmark, figure.model, figure.metric), None)
            rows.append(_beside(figure, own))
    left = (Comparison(r.benchmark, r.model, r.metric, None, r.value, None) for r in results.values())
    return (*rows, *left)


def _beside(figure: Figure, result: Measured | None) -> Comparison:
    tolerance = BENCHMARKS[figure.benchmark].tolerance
    value = None if result is None else result.value
    return Comparison(figure.benchmark, figure.model, figure.metric, figure.value, value, tolerance)


def comparison_table(comparisons: Iterable[Comparison]) -> Table:
    """A table for the terminal: benchmark, model, metric, this run, published, difference, verdict."""
    from rich.table import Table

    table = Table(title="This run beside the published figures")
    for header in ("benchmark", "model", "metric"):
        table.add_column(header)
    for header in ("this run", "published", "difference"):
        table.add_column(header, justify="right")
    table.add_column("")
    for row in comparisons:
        numbers = (_number(row.measured), _number(row.published), _number(row.difference, sign="+"))
        table.add_row(row.benchmark, row.model, row.metric, *numbers, row.verdict)
    return table


def command(figure: Figure) -> str:
    """The command that measures a figure; "" if mteb does not have the benchmark."""
    if BENCHMARKS[figure.benchmark].mteb_name is None:
        return ""
    models = (
        f"--model {figure.model}"
        if "Reranker" not in figure.model
        else (f"--model {FIRST_STAGE} --reranker {figure.model}")
    )
    return f'qwen-retrieval evaluate --mteb "{figure.benchmark}" {models}'


def page() -> str:
    """The text of docs/published-figures.md: every published figure with command, tolerance, and whether it was run."""
    benchmarks = "\n".join(_section(benchmark) for benchmark in BENCHMARKS.values())
    counts = {"runs": len(runs()) or "none", "figures": len(figures())}
    return _HEAD.format(version=MTEB_VERSION, first_stage=FIRST_STAGE, **counts) + benchmarks


_HEAD = """# Published figures

What the models' makers published, and how to measure it again. Written from `published.json` by
`python -m qwen_retrieval.evaluation.published`; a test keeps both equal.

- **Run here: {runs} of {figures}.** Checkpoints and data sets come from the hub; no run with them is recorded yet. What
  is tested is everything around them: the adapters in mteb's own conformance run, their scores against literal
  formulas on small data, and the choice of every task's instruction.
- **Version**: mteb {version}. The figures were measured with mteb 1.38.9, in float16.
- **Settings**: those of the published evaluation: its instruction for each task, 8192 tokens, control tokens in texts
  act, and the template "vllm" for rerankers, which judge the first 100 documents of {first_stage}.
- **Tolerance**: in points of 100. A judgement, not a measurement: it allows for bfloat16 instead of float16, and for
  data sets and metrics that changed since.
- **Sources**: read in public copies of the model cards and of the paper; a test checks that means agree with their
  parts, and tables with each other.
- Needs `pip install "qwen-retrieval[mteb]"`, and in practice a GPU.

"""


def _section(benchmark: Benchmark) -> str:
    own = [figure for figure in figures() if figure.benchmark == benchmark.name]
    source = own[0].source
    dated = f", {source.published}" if source.published else ""
    text = f"{benchmark.note} Source: [{source.title}]({source.url}){dated}, read {source.read}."
    head = f"## {benchmark.name}\n\n{textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)}\n"
    commands = "\n".join(f"    {line}" for line in dict.fromkeys(map(command, own)) if line)
    return "\n".join([head, f"{commands}\n" if commands else "", _expected(benchmark)]).replace("\n\n\n", "\n\n")


def _expected(benchmark: Benchmark) -> str:
    tolerance = "not claimed" if benchmark.tolerance is None else f"± {benchmark.tolerance}"
    lines = ["| model | metric | expected | tolerance | run here |", "|---|---|---|---|---|"]
    for row in compare(runs(), benchmarks={benchmark.name}):
        if row.published is not None:
            run = "no" if row.measured is None else f"{row.measured:.2f}: {row.verdict}"
            lines.append(f"| {row.model} | {row.metric} | {row.published:.2f} | {tolerance} | {run} |")
    return "\n".join([*lines, ""])


def _number(value: float | None, *, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - a page for standard output
