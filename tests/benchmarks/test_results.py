"""What a run leaves behind: ratios, percentiles, the file, the tables and the plots."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import plots, report
from benchmarks.results import Measurement, Results, Run, Sweep, percentile, spread

ROOT = Path(__file__).parents[2]
# The first is a real run, short and on a busy machine: for reading here, not for quoting.
COMMITTED = [ROOT / "tests/data/models-run.json", *sorted((ROOT / "benchmarks/results").glob("*-models-*.json"))]


def measurement(*, calls: int = 1, task: str = "documents", device: str = "cpu", workload: str = "W1") -> Measurement:
    ours = Run("tokens", 4096, [Sweep(4096, 1.0, 10**7)], [1.0, 2.0, 1.0], [1.0], processor_seconds=[2.0, 2.0, 1.0])
    peer = Run("texts", 8, [Sweep(8, 4.0, 10**8), Sweep(16, None)], [4.0, 4.0, 5.0], [3.0], processor_seconds=[4.0] * 3)
    if calls > 1:
        ours.call_seconds = peer.call_seconds = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
    ours.error, ours.launches, ours.peak_bytes = 1e-4, 729, 10**9
    return Measurement(
        workload, "passages", task, "0.6B", device, "bfloat16", 10, calls, 800, 750, 10**12, 10**9, 0.5,
        {"bfloat16": 2e12}, 1e10, 2, "", {"qwen-retrieval": ours, "a peer": peer},
    )  # fmt: skip


def results() -> Results:
    one, two = measurement(), measurement(calls=2, workload="W9")
    two.given_tokens = 2_000
    return Results(["python"], {"processor": "a computer"}, "2026-11-21", [one, two], ["W4 with 8B: no time"])


def test_ratios_are_taken_round_by_round() -> None:
    measured = measurement()
    assert measured.ratios("a peer") == [4.0, 2.0, 5.0]
    assert measured.ratios("a peer", device=True) == [3.0]
    assert spread(measured.ratios("a peer")) == {"median": 4.0, "lowest": 2.0, "highest": 5.0}


def test_rates_are_those_of_the_median_round() -> None:
    measured = measurement()
    assert measured.items_per_second("a peer") == 2.5
    assert measured.tokens_per_second("a peer") == 200.0
    assert measured.fraction_of_floor("qwen-retrieval") == 0.5


def test_idle_is_what_the_threads_did_not_use() -> None:
    measured = measurement()
    assert measured.idle("qwen-retrieval") == 0.5  # of two threads, one was busy in the median round
    assert measured.idle("a peer") == 0.5
    on_gpu = measurement(device="cuda")
    assert on_gpu.idle("a peer") is None
    on_gpu.runs["a peer"].busy = 0.75
    assert on_gpu.idle("a peer") == 0.25


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 3.0), (75, 4.0), (99, 4.96), (100, 5.0)])
def test_percentiles_lie_between_two_values_by_proportion(percent: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], percent) == pytest.approx(expected)


def test_latencies_are_of_all_calls_of_all_rounds() -> None:
    assert measurement().latencies("a peer") is None
    found = measurement(calls=2).latencies("a peer")
    assert found is not None
    assert found["p50"] == pytest.approx(0.35)
    assert found["p99"] == pytest.approx(0.595)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    written = results()
    written.write(path)
    assert Results.read(path) == written
    content = json.loads(path.read_text())
    figures = content["measurements"][0]["summary"]["a peer"]
    assert figures["ours_times_faster"] == {"median": 4.0, "lowest": 2.0, "highest": 5.0}
    assert "ours_times_faster" not in content["measurements"][0]["summary"]["qwen-retrieval"]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"machine": {}, "reports": []}')
    with pytest.raises(ValueError, match="no results of schema 1"):
        Results.read(path)


def printed(found: Results) -> str:
    console = Console(width=report.WIDTH, record=True, file=io.StringIO())
    for measured in found.measurements:
        report.show_measurement(measured, console)
    report.show(found, console)
    return console.export_text()


def test_tables_show_every_contender_and_what_was_skipped() -> None:
    text = printed(results())
    assert "4.00x (2.00 – 5.00)" in text
    assert "350.0 / 595.0" in text
    assert "skipped: W4 with 8B: no time" in text


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_results_are_read_and_shown(path: Path) -> None:
    found = Results.read(path)
    assert found.measurements
    text = printed(found)
    for measured in found.measurements:
        assert 0 < measured.fraction_of_floor("qwen-retrieval") < 1
        for peer in list(measured.runs)[1:]:
            assert f"{spread(measured.ratios(peer))['median']:.2f}x" in text


def test_committed_results_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "run-floor.png" in [path.name for path in plots.draw(Results.read(COMMITTED[0]), tmp_path / "run")]


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = plots.draw(results(), tmp_path / "run")
    assert [path.name for path in drawn] == ["run-memory.png", "run-floor.png"]  # of one length there is no line
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plots.draw(Results(["python"], {}, "2026-11-21"), tmp_path / "nothing") == []
