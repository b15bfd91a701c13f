"""The published figures: that they agree with each other and with their page, and how a run is put beside them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from qwen_retrieval.evaluation.published import (
    BENCHMARKS,
    FIRST_STAGE,
    Figure,
    Measured,
    command,
    compare,
    comparison_table,
    figures,
    page,
    runs,
)
from qwen_retrieval.specs import CHECKPOINTS

PAGE = Path(__file__).parents[2] / "docs" / "published-figures.md"
# Tasks of each type, as mteb 2.26 has them; test_mteb counts the benchmarks' tasks.
TASKS = {
    "MTEB English v2": {
        "Classification": 8, "Clustering": 8, "PairClassification": 3, "Reranking": 2, "Retrieval": 10, "STS": 9,
        "Summarization": 1,
    },
    "MMTEB": {
        "BitextMining": 13, "Classification": 43, "Clustering": 16, "InstructionReranking": 3,
        "MultilabelClassification": 5, "PairClassification": 11, "Reranking": 6, "Retrieval": 18, "STS": 16,
    },
}  # fmt: skip


def value(benchmark: str, model: str, metric: str = "Mean (Task)") -> float:
    found = {(f.benchmark, f.model, f.metric): f.value for f in figures()}
    return found[benchmark, model, metric]


def of_types(benchmark: str, model: str) -> dict[str, float]:
    own = [f for f in figures() if (f.benchmark, f.model) == (benchmark, model)]
    return {f.metric: f.value for f in own if not f.metric.startswith("Mean")}


def embedders() -> list[str]:
    return [checkpoint.repository for checkpoint in CHECKPOINTS if checkpoint.kind == "embedding"]


def test_the_page_is_what_the_data_say() -> None:
    assert PAGE.read_text("utf-8") == page(), (
        "run: python -m qwen_retrieval.evaluation.published > docs/published-figures.md"
    )


def test_the_page_has_every_figure_and_says_whether_it_was_run() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| Qwen/")]

    assert len(rows) == len(figures())
    assert sum(line.endswith("| no |") for line in rows) == len(figures()) - len(runs())


def test_every_figure_is_of_a_known_model_and_benchmark_and_stands_once() -> None:
    repositories = {checkpoint.repository for checkpoint in CHECKPOINTS}

    assert {figure.model for figure in figures()} == repositories
    assert {figure.benchmark for figure in figures()} == set(BENCHMARKS)
    keys = [(figure.benchmark, figure.model, figure.metric) for figure in figures()]
    assert len(keys) == len(set(keys)) == 115


def test_rerankers_have_figures_where_they_were_measured_and_nowhere_else() -> None:
    reranked = {figure.benchmark for figure in figures() if "Reranker" in figure.model}

    assert reranked == {name for name, benchmark in BENCHMARKS.items() if benchmark.reranked}


@pytest.mark.parametrize("model", embedders())
@pytest.mark.parametrize("table", ["MTEB English v2", "C-MTEB", "MMTEB"])
def test_the_mean_of_the_types_is_the_mean_of_their_figures(table: str, model: str) -> None:
    types = of_types(table, model)

    # Each number is rounded, which allows for 0.01; the 0.6B model's mean of MMTEB is 0.012 off in print.
    assert sum(types.values()) / len(types) == pytest.approx(value(table, model, "Mean (Type)"), abs=0.0125)


@pytest.mark.parametrize("model", embedders())
@pytest.mark.parametrize("table", TASKS)
def test_the_mean_of_the_tasks_is_that_of_the_types_by_their_numbers(table: str, model: str) -> None:
    types, tasks = of_types(table, model), TASKS[table]
    assert set(types) == set(tasks)

    mean = sum(types[name] * number for name, number in tasks.items()) / sum(tasks.values())

    assert mean == pytest.approx(value(table, model), abs=0.0101)


@pytest.mark.parametrize(
    ("column", "table"), [("MTEB-R", "MTEB English v2"), ("CMTEB-R", "C-MTEB"), ("MMTEB-R", "MMTEB")]
)
def test_the_columns_of_the_rerankers_begin_with_the_retrieval_of_the_embedder(column: str, table: str) -> None:
    assert value(column, FIRST_STAGE) == pytest.approx(value(table, FIRST_STAGE, "Retrieval"), abs=0.0101)


def test_a_run_stands_beside_the_published_figures() -> None:
    small = "Qwen/Qwen3-Embedding-0.6B"
    measured = [
        Measured("MTEB-R", small, "Mean (Task)", 61.80, 10),
        Measured("MTEB-R", "Qwen/Qwen3-Reranker-0.6B", "Mean (Task)", 60.00, 10),
        Measured("MTEB-R", small, "Retrieval", 61.80, 10),
    ]

    rows = {(row.model, row.metric): row for row in compare(measured, benchmarks={"MTEB-R"})}

    assert len(rows) == 5
    assert rows[small, "Mean (Task)"].verdict == "agrees"
    assert rows[small, "Mean (Task)"].difference == pytest.approx(-0.02)
    assert rows["Qwen/Qwen3-Reranker-0.6B", "Mean (Task)"].verdict == "differs"
    assert rows["Qwen/Qwen3-Reranker-8B", "Mean (Task)"].verdict == "not run"
    assert rows[small, "Retrieval"].verdict == "not published"


def test_a_difference_of_exactly_the_tolerance_agrees() -> None:
    model = "Qwen/Qwen3-Reranker-4B"
    allowed = BENCHMARKS["MLDR"].tolerance
    assert allowed is not None

    def verdict(measured: float) -> str:
        rows = compare([Measured("MLDR", model, "Mean (Task)", measured, 1)], benchmarks={"MLDR"})
        return next(row.verdict for row in rows if row.model == model)

    published = value("MLDR", model)
    assert verdict(published - allowed) == verdict(published + allowed) == "agrees"
    assert verdict(published - allowed - 0.01) == verdict(published + allowed + 0.01) == "differs"


def test_nothing_is_claimed_of_figures_that_others_measured() -> None:
    rows = compare([Measured("JMTEB v1", FIRST_STAGE, "Retrieval", 1.0, 1)], benchmarks={"JMTEB v1"})

    assert {row.verdict for row in rows} == {"no claim", "not run"}


def test_without_a_run_every_figure_is_marked_as_not_run() -> None:
    rows = compare([])

    assert len(rows) == len(figures())
    assert {row.verdict for row in rows} == {"not run"}


def test_two_results_for_one_figure_are_refused() -> None:
    twice = [Measured("MLDR", FIRST_STAGE, "Mean (Task)", score, 1) for score in (50.0, 51.0)]

    with pytest.raises(ValueError, match="measured once"):
        compare(twice)


def test_the_table_shows_both_numbers_and_their_difference() -> None:
    rows = compare([Measured("FollowIR", FIRST_STAGE, "Mean (Task)", 5.0, 3)], benchmarks={"FollowIR"})
    out = io.StringIO()

    Console(file=out, width=120).print(comparison_table(rows))

    line = next(line for line in out.getvalue().splitlines() if FIRST_STAGE in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][3:] == ["5.00", "5.09", "-0.09", "agrees"]
    assert out.getvalue().count("not run") == 3


def test_the_command_of_a_reranker_begins_with_the_embedder_of_the_paper() -> None:
    by_model = {figure.model: figure for figure in figures() if figure.benchmark == "MTEB-Code"}

    def models(figure: Figure) -> str:
        return command(figure).split('"MTEB-Code" ')[1]

    assert models(by_model["Qwen/Qwen3-Embedding-8B"]) == "--model Qwen/Qwen3-Embedding-8B"
    assert models(by_model["Qwen/Qwen3-Reranker-8B"]) == (
        "--model Qwen/Qwen3-Embedding-0.6B --reranker Qwen/Qwen3-Reranker-8B"
    )
