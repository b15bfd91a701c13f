"""The command: what it makes of its options, and a whole run on a tiny checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import floors, models
from benchmarks.agenda import Agenda, Options, affordable
from benchmarks.checkpoints import shape, write_checkpoint
from benchmarks.contenders import OURS, Contender, Ours, Setting, load_contenders
from benchmarks.measure import Clock, Entrant, best_of, one_round, try_batch_sizes
from benchmarks.probes import count_launches, error_against
from benchmarks.results import Results, Run, Sweep
from benchmarks.workloads import Item, Task
from qwen_retrieval.types import FloatArray

TINY = replace(shape("0.6B"), layers=2, hidden_size=64, heads=4, kv_heads=2, head_dim=32, ffn_size=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: Path) -> Path:
    """Checkpoints of a tiny shape where those of 0.6B belong."""
    root = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(tokenizer_folders, root / "tokenizers")
    write_checkpoint(root / "0.6B" / "embedding", root / "0.6B" / "weights", root / "tokenizers", TINY, "embedding")
    write_checkpoint(root / "0.6B" / "reranking", root / "0.6B" / "weights", root / "tokenizers", TINY, "reranking")
    return root


def options(folder: Path, *arguments: str) -> Options:
    return models.options_of(models.parse(["--device", "cpu", "--dtype", "float32", *arguments]), folder)


def test_options_stand_over_their_preset(tmp_path: Path) -> None:
    found = options(tmp_path, "--gpu-table", "--workload", "W6", "--rounds", "7", "--seconds", "0")
    assert [one.name for one in found.workloads] == ["W6"]
    assert found.models == ["0.6B", "4B", "8B"]
    assert (found.rounds, found.device_rounds, found.seconds, found.peers) == (7, 2, None, None)
    assert options(tmp_path, "--gpu-table").seconds == 540
    assert options(tmp_path, "--alone").peers == []


def test_an_unknown_workload_ends_the_command_with_its_name() -> None:
    with pytest.raises(SystemExit, match="got W99"):
        models.main(["--workload", "W99", "--device", "cpu"])


def test_a_run_writes_a_file_with_all_that_was_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(floors.PRODUCT, "cpu", 128)  # the ceiling would take longer than all the rest
    monkeypatch.setitem(floors.COPY, "cpu", 1 << 20)
    out = tmp_path / "run.json"
    asked = options(folder, "--quick", "--alone", "--rounds", "2", "--scale", "0.1", "--seconds", "0")
    asked = replace(asked, out=out)
    Agenda(asked, Results.begin([], "cpu")).work()
    found = Results.read(out)
    assert [one.workload for one in found.measurements] == ["W10a", "W10d", "W10b"]
    for measured in found.measurements:
        ours = measured.runs[OURS]
        assert len(ours.seconds) == len(ours.processor_seconds) == 2
        assert len(ours.device_seconds) == 1
        assert ours.launches
        assert measured.needed_tokens <= measured.given_tokens
    assert found.measurements[1].latencies(OURS) is not None
    assert found.measurements[2].needed_tokens < found.measurements[2].given_tokens
    assert found.skipped == []


def test_without_time_everything_is_skipped_and_the_file_says_so(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    asked = replace(options(folder, "--workload", "W1", "--alone"), seconds=0.0, out=out)
    Agenda(asked, Results.begin([], "cpu")).work()
    assert Results.read(out).skipped == ["W1 with 0.6B: the time was used up"]


def test_what_a_short_clock_allows_is_whole_calls_or_fewer_items() -> None:
    one: list[list[Item]] = [["a"] * 10]
    assert affordable(one, per_item=1.0, rounds=2, left=8.0) == [["a"] * 4]
    assert affordable(one, per_item=1.0, rounds=2, left=0.0) == [["a"]]
    assert affordable(one, per_item=1.0, rounds=2, left=float("inf")) == one
    many: list[list[Item]] = [["a"] * 10, ["b"] * 10]
    assert affordable(many, per_item=1.0, rounds=1, left=15.0) == [["a"] * 10]
    assert Clock(None).part(0.1).left == float("inf")


class Forgetful(Contender):
    """Has memory for four items at a time only."""

    name = key = "forgetful"

    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        del task
        if batch_size > 4:
            raise torch.OutOfMemoryError
        return np.zeros(len(items), dtype=np.float32)


def test_a_batch_that_does_not_fit_into_memory_is_not_chosen() -> None:
    tried = try_batch_sizes(Forgetful(), "documents", ["a"], [2, 4, 8])
    assert [one.batch_size for one in tried] == [2, 4, 8]
    assert tried[2].seconds is None
    assert best_of(tried) in (2, 4)
    assert best_of([Sweep(8, None)]) is None


def test_a_batch_that_proves_too_large_in_a_round_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(floors.COPY, "cpu", 1 << 20)
    entrant = Entrant(Forgetful(), 16, Run("texts", 16))
    one_round([entrant], "documents", [["a", "b"], ["c"]], floors.Ceiling({}))
    assert entrant.batch_size == entrant.run.batch_size == 4
    assert len(entrant.run.seconds) == 1
    assert len(entrant.run.call_seconds[0]) == 2


def test_errors_are_the_worst_of_all_rows() -> None:
    unit = np.eye(2, dtype=np.float32)
    assert error_against(unit, unit) == 0.0
    assert error_against(unit, np.array([[1, 0], [1, 0]], dtype=np.float32)) == 1.0
    assert error_against(np.array([1.0, 2.0], np.float32), np.array([1.5, 0.0], np.float32)) == 2.0


def test_operators_of_one_batch_are_counted(folder: Path) -> None:
    ours = Ours(Setting(folder / "0.6B" / "embedding", "embedding", "cpu", "float32"))
    batch = ours.prepare("documents", ["a text", "another"], 1 << 20)
    first, second = (count_launches(batch, "cpu") for _ in range(2))
    assert first == second > 10 * TINY.layers
    ours.close()


@pytest.mark.parametrize("kind", ["embedding", "reranking"])
def test_peers_see_the_same_tokens_and_give_the_same_numbers(folder: Path, kind: str) -> None:
    pytest.importorskip("transformers")
    from benchmarks.peers import shared_model

    setting = Setting(folder / "0.6B" / kind, kind, "cpu", "float32")  # type: ignore[arg-type]
    task: Task = "pairs" if kind == "reranking" else "queries"
    texts = ["short", "A somewhat longer text, with a comma.", "Größe 5"]
    items: list[Item] = [("What is this?", text) for text in texts] if task == "pairs" else list(texts)
    contenders = load_contenders(setting)
    ours = contenders[0]
    assert isinstance(ours, Ours)
    assert ours.token_ids(task, items) == shared_model.token_ids(setting, task, items)
    reference = shared_model.reference(setting, task, items)
    assert len(contenders) > 1
    for contender in contenders:
        if contender.key not in ("llama.cpp", "qwen-retrieval, 8 bits"):
            assert error_against(reference, contender.run(task, items, 2)) < 1e-4
            assert contender.prepare(task, items, 2) is not None
        contender.close()
