"""The report: one HTML file that a person reads, prints and sends, from the results of an evaluation."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.evaluation import figures, plots
from qwen_retrieval.evaluation.examples import CHARACTERS
from qwen_retrieval.evaluation.results import Advice, Comparison, Evaluation, Example, System
from qwen_retrieval.evaluation.significance import ALPHA, bootstrap_interval

with needs_extra("jinja2", "evaluate"):
    import jinja2
    from markupsafe import Markup

_UNPRINTABLE = dict.fromkeys(
    [*range(9), 0xB, 0xC, *range(0xE, 0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF],
    "\N{REPLACEMENT CHARACTER}",
)
"""Control characters, which HTML does not allow, and halves of surrogate pairs, which UTF-8 cannot write."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table of systems.

    Attributes:
        system: The system.
        low: Lower end of the 95 % interval of its first measure's mean.
        high: Its upper end.
        comparison: With the baseline; None for the baseline itself.
        verdict: "better", "worse" or "" for no significant difference.
        milliseconds: What the models took for a query; None if that was not measured.
    """

    system: System
    low: float
    high: float
    comparison: Comparison | None
    verdict: str
    milliseconds: float | None


@dataclass(frozen=True, slots=True)
class Gain:
    """What an instruction changes.

    Attributes:
        name: The instruction's.
        text: Its sentence; "" for none.
        comparison: With none, or with the base.
        verdict: As in `Row`.
        places: Pixels of the lower end, the difference and the upper end, from the left.
    """

    name: str
    text: str
    comparison: Comparison
    verdict: str
    places: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """A query that went wrong, with its text.

    Attributes:
        text: The query.
        value: The first measure of the best system for it.
        example: What should have been found, and what was.
        values: System -> its first measure for this query.
    """

    text: str
    value: float
    example: Example
    values: Mapping[str, float]


def render_report(result: Evaluation) -> str:
    """The results as one HTML page, which needs no other file and no network.

    All texts in it are escaped, and its Content-Security-Policy lets only its own style and script work. Sections for
    what was not evaluated (no second dimension, no instructions, no reranker) are left out.

    Args:
        result: What `evaluate` returned, or `Evaluation.from_json` read.

    Returns:
        The page, to be written as UTF-8.
    """
    intervals = mean_intervals(result)
    drawn = [
        figures.quality_by_dimension(result, intervals),
        figures.quality_by_storage(result, intervals),
        figures.gain_of_reranking(result),
        figures.cost_of_reranking(result),
    ]
    gains, scale = _gains(result)
    return _template().render(
        result=result,
        headline=headline(result),
        caveat=caveat(result),
        advice=_in_order(result),
        rows=_rows(result, intervals),
        plots=[plot for plot in drawn if plot is not None],
        gains=gains,
        gain_scale=scale,
        failures=_failures(result),
        cut_at=CHARACTERS,
        size=(plots.WIDTH, plots.HEIGHT),
    )


def headline(result: Evaluation) -> str:
    """What to use, in one sentence: the settings that the advice names, together.

    Args:
        result: The results.

    Returns:
        Such as "Use embedder 256 int8 with the instruction 'task', and rerank the first 50."
    """
    advised = {one.topic: one.system for one in result.advice}
    if _words_win(result):
        return "Use BM25: on this data no setting of the embedder that was measured is better."
    if len(result.systems) == 1:
        return f"Only {result.setup.base} was measured: {_score(result, result.systems[0])}."
    words = f"Use {advised.get('storage') or result.setup.base}"
    if (told := advised.get("instruction")) is not None:
        name = result.system(told).instruction or ""
        words += f" with the instruction {name!r}" if result.setup.instructions[name] else " without an instruction"
    if "reranking" in advised:
        reranked = result.system(advised["reranking"] or result.setup.base)
        words += f", and rerank the first {reranked.rerank_depth}" if reranked.rerank_depth else ", without reranking"
    return f"{words}."


def caveat(result: Evaluation) -> str:
    """Whether the settings of the headline were measured together; "" if one system has them all."""
    base = result.setup.base
    advised = {one.system for one in result.advice if one.topic in ("storage", "instruction", "reranking")}
    if len(advised - {None, base}) < 2 or _words_win(result):
        return ""
    return f"Each of these was measured by itself, as a change of {base}; all together they were not measured."


def _in_order(result: Evaluation) -> list[Advice]:
    """The advice, the data's first; that on BM25 next where it is the headline."""
    first = ("data", "bm25") if _words_win(result) else ("data",)
    return sorted(result.advice, key=lambda one: first.index(one.topic) if one.topic in first else len(first))


def mean_intervals(result: Evaluation) -> dict[str, tuple[float, float]]:
    """The 95 % bootstrap interval over queries of each system's mean in the first measure, by name."""
    values = np.array([system.values for system in result.systems]).T  # (q, s)
    low, high = bootstrap_interval(values, resamples=result.setup.resamples, seed=result.setup.seed)
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return {system.name: pair for system, pair in zip(result.systems, ends, strict=True)}


def _words_win(result: Evaluation) -> bool:
    """Whether BM25 is significantly better than the base, and no other system has a higher mean."""
    best = _best(result)
    return best.kind == "bm25" and any(one.topic == "bm25" and one.system == best.name for one in result.advice)


def _best(result: Evaluation) -> System:
    return max(result.systems, key=lambda system: system.means[result.setup.metrics[0]])


def _score(result: Evaluation, system: System) -> str:
    metric = result.setup.metrics[0]
    return f"{metric} {system.means[metric]:.3f}"


def _rows(result: Evaluation, intervals: figures.Intervals) -> list[Row]:
    compared = {one.system: one for one in result.comparisons if one.family == "baseline"}
    rows = []
    for system in result.systems:
        found = compared.get(system.name)
        seconds = system.query_seconds
        spent = None if seconds is None else 1000 * (seconds + (system.rerank_seconds or 0))
        rows.append(Row(system, *intervals[system.name], found, _verdict(found), spent))
    return rows


def _verdict(found: Comparison | None) -> str:
    if found is None or found.p_holm >= ALPHA:
        return ""
    return "better" if found.difference > 0 else "worse"


def _gains(result: Evaluation) -> tuple[list[Gain], plots.Axis | None]:
    compared = [one for one in result.comparisons if one.family == "instruction"]
    if not compared:
        return [], None
    ends = [0.0, *(end for one in compared for end in (one.low, one.high))]
    scale = plots.linear(f"gain in {result.setup.metrics[0]}", ends, 8, 232)
    gains = []
    for one in compared:
        name = result.system(one.system).instruction or ""
        places = (scale.at(one.low), scale.at(one.difference), scale.at(one.high))
        gains.append(Gain(name, result.setup.instructions[name], one, _verdict(one), places))
    return gains, scale


def _failures(result: Evaluation) -> list[Failure]:
    rows = {query.id: row for row, query in enumerate(result.queries)}
    best = _best(result)
    failures = []
    for example in result.worst:
        row = rows[example.query]
        values = {name: result.system(name).values[row] for name in example.found}
        failures.append(Failure(result.queries[row].text, best.values[row], example, values))
    return failures


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("qwen_retrieval.evaluation")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    for name in ("style", "script"):
        text = loader.get_source(environment, f"report.{'css' if name == 'style' else 'js'}")[0]
        environment.globals[name] = Markup(text)  # a file of this package
        environment.globals[f"{name}_hash"] = b64encode(sha256(text.encode()).digest()).decode()
    return environment.get_template("report.html")


def _printable(value: Any) -> Any:  # noqa: ANN401 - whatever a template prints
    return value.translate(_UNPRINTABLE) if isinstance(value, str) else value
