"""What is measured in which order, within a budget of time: models, kinds, workloads.

The budget is divided up front: every workload has a weight, and gets its share of the time that is left when its turn
comes. It then has fewer items or fewer rounds if the share is too short for all, and is skipped if there is none left;
both are said in the table and in the file.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import measure, memory, plots, probes, report
from benchmarks.checkpoints import Kind, checkpoint, shape
from benchmarks.contenders import Contender, Ours, Setting, load_contenders
from benchmarks.floors import Ceiling, linear_parameters, need
from benchmarks.measure import Clock, Entrant
from benchmarks.results import Measurement, Results, Run
from benchmarks.workloads import Item, Workload, Writer, calls, default_items, select, write_items

WEIGHTS = {"0.6B": 1.0, "4B": 1.5, "8B": 2.0}
"""Shares of the time of one workload, by model."""

LOADING = 2.0
"""The time to write and load a checkpoint for all contenders, in workloads of the same model."""

FIRST = 2.0
"""The share of the first workload of a model, in which batch sizes are tried, in those of the others."""

SWEEP_SHARE = 0.4
"""The most of a workload's time that trying batch sizes may take."""

PROBED = 8
"""Items of the batch whose error and launches are looked at."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure; see the command line."""

    workloads: list[Workload]
    models: list[str]
    device: str
    dtype: str
    rounds: int
    device_rounds: int
    scale: float
    sweeps: bool
    seconds: float | None
    peers: list[str] | None
    memory: bool
    folder: Path
    out: Path | None


class Agenda:
    """One run of the command."""

    def __init__(self, options: Options, results: Results) -> None:
        self._options = options
        self._results = results
        self._clock = Clock(options.seconds)
        kinds: tuple[Kind, ...] = ("embedding", "reranking")
        self._jobs = [
            (model, kind, [workload for workload in options.workloads if workload.kind == kind])
            for model in options.models
            for kind in kinds
        ]
        self._weight_left = sum(
            WEIGHTS[model] * (LOADING + FIRST - 1 + len(part)) for model, _, part in self._jobs if part
        )

    def work(self) -> None:
        """Measure everything, print each table when it is there, write the file after each workload."""
        for model, kind, workloads in self._jobs:
            if workloads:
                self._work_with(model, kind, workloads)
        report.show(self._results)
        if self._options.out:
            for path in plots.draw(self._results, self._options.out.with_suffix("")):
                print(f"plot: {path}", file=sys.stderr)

    def _work_with(self, model: str, kind: Kind, workloads: list[Workload]) -> None:
        if self._clock.left <= 0:
            self._skip(model, workloads)
            return
        options = self._options
        setting = Setting(checkpoint(options.folder, model, kind), kind, options.device, options.dtype)
        contenders = load_contenders(setting, options.peers)
        self._weight_left -= WEIGHTS[model] * LOADING
        try:
            writer = Writer.from_folder(setting.folder)
            bench = Bench(options, setting, model, contenders, writer)
            for workload in workloads:
                weight = WEIGHTS[model] * (FIRST if workload is workloads[0] else 1.0)
                clock = self._clock.part(weight / self._weight_left)
                self._weight_left -= weight
                if clock.left <= 0:
                    self._skip(model, [workload])
                    continue
                try:
                    self._keep(bench.measure(workload, clock))
                except Exception as error:  # the next workload may do, and a GPU is not had every day
                    traceback.print_exc()
                    self._skip(model, [workload], repr(error))
        finally:
            for contender in contenders:
                contender.close()
            contenders.clear()
            measure.release(options.device)

    def _keep(self, measured: Measurement) -> None:
        self._results.measurements.append(measured)
        report.show_measurement(measured)
        self._write()

    def _skip(self, model: str, workloads: list[Workload], why: str = "the time was used up") -> None:
        for workload in workloads:
            self._results.skipped.append(f"{workload.name} with {model}: {why}")
            print(f"skipped: {self._results.skipped[-1]}", file=sys.stderr)
        self._write()

    def _write(self) -> None:
        if self._options.out:
            self._results.write(self._options.out)


class Bench:
    """The loaded contenders of one model, and how a workload is measured with them."""

    def __init__(
        self, options: Options, setting: Setting, model: str, contenders: list[Contender], writer: Writer
    ) -> None:
        self._options = options
        self._setting = setting
        self._model = model
        self._contenders = contenders
        self._writer = writer
        self._ceiling = Ceiling(dict.fromkeys(dict.fromkeys([setting.dtype, "float32"]), 0.0))
        if options.device != "cpu":
            self._ceiling = Ceiling({setting.dtype: 0.0})
        self._best_tokens: dict[str, float] = {}  # of a batch, by contender, once that was tried

    @property
    def _ours(self) -> Ours:
        ours = self._contenders[0]
        assert isinstance(ours, Ours)
        return ours

    def measure(self, workload: Workload, clock: Clock) -> Measurement:
        """Sweep, rounds, probes; whatever the clock allows."""
        options = self._options
        wanted = default_items(workload, options.device, self._model, options.scale)
        items = write_items(workload, wanted, self._writer)
        batches = calls(workload, items)
        ids = [self._ours.token_ids(workload.task, call) for call in batches]
        mean = sum(len(one) for part in ids for one in part) / wanted
        entrants, per_item = self._sweep(workload, batches[0], mean, clock.part(SWEEP_SHARE))
        kept = affordable(batches, per_item, options.rounds + options.device_rounds, clock.left)
        ids = [part[: len(call)] for part, call in zip(ids, kept, strict=False)]
        count = sum(map(len, kept))
        notes = [f"{count} of {wanted} items"] if count < wanted else []
        notes += self._rounds(workload, entrants, kept, clock)
        return self._record(workload, entrants, kept, ids, notes)

    def _sweep(self, workload: Workload, call: list[Item], mean: float, clock: Clock) -> tuple[list[Entrant], float]:
        """Each contender at its best batch size, and the seconds that one item takes all of them."""
        entrants, per_item = [], 0.0
        for contender in self._contenders:
            sizes = self._sizes(contender, mean, len(call), clock)
            per_text = 1.0 if contender.unit == "texts" else mean
            part = call[: max(1, round(max(sizes) / per_text))]
            tried = measure.try_batch_sizes(contender, workload.task, part, sizes)
            best = measure.best_of(tried)
            if best is None:
                print(f"{contender.name} does not fit into memory in {workload.name}", file=sys.stderr)
                continue
            if len(sizes) > 1:
                self._best_tokens[contender.name] = best * mean / per_text
            run = Run(contender.unit, best, sweep=tried, weight_bytes=contender.weight_bytes)
            run.error = self._errors.get(contender.name)
            entrants.append(Entrant(contender, best, run))
            per_item += min(one.seconds for one in tried if one.seconds is not None) / len(part)
        return entrants, per_item

    def _sizes(self, contender: Contender, mean: float, count: int, clock: Clock) -> list[int]:
        """What to try: with a budget, only what was best in the first workload."""
        sizes = contender.sweep(mean, count)
        if self._options.seconds is not None and contender.name in self._best_tokens:
            wanted = self._best_tokens[contender.name] / (1.0 if contender.unit == "tokens" else mean)
            return [min(sizes, key=lambda size: abs(size - wanted))]
        return sizes if self._options.sweeps and clock.left > 0 else [sizes[len(sizes) // 2]]

    def _rounds(
        self, workload: Workload, entrants: list[Entrant], batches: list[list[Item]], clock: Clock
    ) -> list[str]:
        options = self._options
        notes = []
        done = 0
        while done < options.rounds and (not done or clock.left > 0):
            measure.one_round(entrants, workload.task, batches, self._ceiling)
            done += 1
        if done < options.rounds:
            notes.append(f"{done} of {options.rounds} rounds")
        prepared = measure.prepare(entrants, workload.task, batches) if options.device_rounds else []
        done = 0
        while done < options.device_rounds and (not done or clock.left > 0):
            measure.one_device_round(entrants, prepared)
            done += 1
        if done < options.device_rounds:
            notes.append(f"{done} of {options.device_rounds} device rounds")
        return notes

    def _record(
        self,
        workload: Workload,
        entrants: list[Entrant],
        batches: list[list[Item]],
        ids: list[list[list[int]]],
        notes: list[str],
    ) -> Measurement:
        sizes = shape(self._model)
        needed = need(sizes, ids)
        weight_bytes = linear_parameters(sizes) * self._setting.torch_dtype.itemsize
        waiting = len(batches) if workload.is_latency else 0
        for entrant in entrants:
            self._probe(workload, entrant, batches[0])
        return Measurement(
            workload=workload.name,
            what=workload.what,
            task=workload.task,
            model=self._model,
            device=self._setting.device,
            dtype=self._setting.dtype,
            items=sum(map(len, batches)),
            calls=len(batches),
            given_tokens=needed.given,
            needed_tokens=needed.tokens,
            needed_flops=needed.flops,
            weight_bytes=weight_bytes,
            floor_seconds=self._ceiling.seconds(needed.flops, waiting, weight_bytes),
            flops_per_second=dict(self._ceiling.flops),
            bytes_per_second=self._ceiling.bytes,
            threads=torch.get_num_threads(),
            note=", ".join(notes),
            runs={entrant.contender.name: entrant.run for entrant in entrants},
        )

    def _probe(self, workload: Workload, entrant: Entrant, call: list[Item]) -> None:
        contender, device = entrant.contender, self._setting.device
        one = call[:PROBED]
        size = 1 << 30 if contender.unit == "tokens" else len(one)
        if batch := contender.prepare(workload.task, one, size):
            entrant.run.launches = probes.count_launches(batch, device)
        entrant.run.busy = probes.busy_share(
            lambda: contender.run(workload.task, call[: 4 * PROBED], entrant.batch_size), device
        )
        if self._options.memory and device == "cpu":
            entrant.run.peak_bytes = memory.peak_of(
                self._setting, contender.key, workload, len(call), entrant.batch_size
            )

    @functools.cached_property
    def _errors(self) -> dict[str, float]:
        """Against transformers in float32, on a few passages or pairs, once per model."""
        if importlib.util.find_spec("transformers") is None:
            return {}
        shared_model = importlib.import_module("benchmarks.peers.shared_model")
        workload = select(["W1" if self._setting.kind == "embedding" else "W6"])[0]
        items = write_items(replace(workload, per_call=None), PROBED, self._writer)
        try:
            reference = shared_model.reference(self._setting, workload.task, items)
        except torch.OutOfMemoryError:
            print(f"no errors: {self._model} in float32 does not fit into memory", file=sys.stderr)
            return {}
        finally:
            shared_model.load.cache_clear()  # those who use it have it by now
            measure.release(self._setting.device)
        return {
            one.name: probes.error_against(reference, one.run(workload.task, items, one.sweep(100.0, PROBED)[-1]))
            for one in self._contenders
        }


def affordable(batches: Sequence[list[Item]], per_item: float, rounds: int, left: float) -> list[list[Item]]:
    """The first calls, or the first items of the only one, whose rounds fit into the time that is left."""
    total = sum(map(len, batches))
    fitting = max(1, min(total, int(left / rounds / per_item))) if per_item and left < float("inf") else total
    if len(batches) == 1:
        return [batches[0][:fitting]]
    return list(batches[: max(1, fitting // len(batches[0]))])
