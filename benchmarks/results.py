"""What a run leaves behind: every raw second, and the figures that are computed from them. One JSON file.

{"schema": 1, "date": "2026-11-21", "command": [...], "machine": {...}, "measurements": [...], "skipped": [...]}
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
PACKAGES = ("torch", "transformers", "sentence-transformers", "llama-cpp-python", "tokenizers", "qwen-retrieval")


@dataclass(frozen=True, slots=True)
class Sweep:
    """One batch size that was tried.

    Attributes:
        batch_size: What the contender counts, see `Run.unit`.
        seconds: For the items of the sweep; None if memory did not suffice.
        peak_bytes: Memory of a GPU above what was allocated before.
    """

    batch_size: int
    seconds: float | None
    peak_bytes: int | None = None


@dataclass(slots=True)
class Run:
    """What was measured of one contender in one workload.

    Attributes:
        unit: What `batch_size` counts: "texts" or "tokens".
        batch_size: The best of `sweep`.
        sweep: What was tried.
        seconds: End to end, by round.
        device_seconds: Token ids in, by round; may have fewer rounds, or none.
        call_seconds: By round, of each call; nothing if there is only one.
        processor_seconds: Processor time of the process, all threads, by round, end to end.
        weight_bytes: GPU memory that loading took. Contenders of transformers share one model.
        peak_bytes: Peak memory; on a GPU above the weights, on a CPU the process's resident memory.
        error: Against transformers in float32: 1 - cosine at worst, or the largest difference of log-odds.
        launches: What one batch launches: kernels and graphs on a GPU, operators on a CPU.
        busy: Share of the wall time in which a GPU computes.
    """

    unit: str
    batch_size: int
    sweep: list[Sweep] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    device_seconds: list[float] = field(default_factory=list)
    call_seconds: list[list[float]] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    weight_bytes: int | None = None
    peak_bytes: int | None = None
    error: float | None = None
    launches: int | None = None
    busy: float | None = None


@dataclass(slots=True)
class Measurement:
    """One workload with one model.

    Attributes:
        workload: Such as "W1".
        what: In a few words.
        task: "documents", "queries" or "pairs".
        model: Such as "0.6B".
        device: Such as "cuda".
        dtype: Such as "bfloat16".
        items: Texts or pairs.
        calls: How many calls they were in.
        given_tokens: Of all inputs, templates included.
        needed_tokens: The same, common beginnings of a call once.
        needed_flops: Of the needed tokens.
        weight_bytes: Of the decoder's matrices.
        floor_seconds: See `floors`.
        flops_per_second: Measured ceiling by dtype.
        bytes_per_second: Measured ceiling.
        threads: Of torch on the CPU.
        note: What did not go as asked, such as fewer rounds.
        runs: By contender, the first of them ours.
    """

    workload: str
    what: str
    task: str
    model: str
    device: str
    dtype: str
    items: int
    calls: int
    given_tokens: int
    needed_tokens: int
    needed_flops: int
    weight_bytes: int
    floor_seconds: float
    flops_per_second: dict[str, float]
    bytes_per_second: float
    threads: int
    note: str = ""
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def ours(self) -> Run:
        """The first contender."""
        return next(iter(self.runs.values()))

    def ratios(self, peer: str, *, device: bool = False) -> list[float]:
        """How many times faster than `peer` ours was, round by round."""
        theirs, mine = self.runs[peer], self.ours
        pairs = (theirs.device_seconds, mine.device_seconds) if device else (theirs.seconds, mine.seconds)
        return [a / b for a, b in zip(*pairs, strict=False)]

    def median_seconds(self, name: str) -> float:
        """Of all items, end to end."""
        return statistics.median(self.runs[name].seconds)

    def items_per_second(self, name: str) -> float:
        """Texts or pairs."""
        return self.items / self.median_seconds(name)

    def tokens_per_second(self, name: str) -> float:
        """Tokens as given, template included, padding not."""
        return self.given_tokens / self.median_seconds(name)

    def fraction_of_floor(self, name: str) -> float:
        """The floor over the median: 1 would be as fast as the hardware allows."""
        return self.floor_seconds / self.median_seconds(name)

    def latencies(self, name: str) -> dict[str, float] | None:
        """Median and 99th percentile of all calls of all rounds, in seconds; None if there was one call only."""
        found = sorted(seconds for one in self.runs[name].call_seconds for seconds in one)
        return {"p50": percentile(found, 50), "p99": percentile(found, 99)} if found else None

    def idle(self, name: str) -> float | None:
        """Share of the time in which the device does nothing; on a CPU, of all threads that torch may use."""
        run = self.runs[name]
        if self.device != "cpu":
            return None if run.busy is None else 1 - run.busy
        busy = statistics.median(b / a for a, b in zip(run.seconds, run.processor_seconds, strict=True))
        return max(0.0, 1 - busy / self.threads)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, between two of them by proportion.

    Args:
        ordered: At least one number, in rising order.
        percent: From 0 to 100.
    """
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


@dataclass(slots=True)
class Results:
    """Everything of one run of the command."""

    command: list[str]
    machine: dict[str, Any]
    date: str
    measurements: list[Measurement] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, command: list[str], device: str) -> Results:
        """Nothing measured yet."""
        return cls(command, machine(device), datetime.now(UTC).date().isoformat())

    def write(self, path: Path) -> None:
        """Replace the file, so that it is whole at any time."""
        temporary = path.with_name(f"{path.name}.part")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def to_json(self) -> dict[str, Any]:
        """Raw numbers first; `summary` holds what is computed from them, for readers without this module."""
        content = {"schema": SCHEMA, **asdict(self)}
        for entry, measured in zip(content["measurements"], self.measurements, strict=True):
            entry["summary"] = {name: summary(measured, name) for name in measured.runs}
        return content

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote.

        Raises:
            ValueError: The file has another schema.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema", None) != SCHEMA:
            raise ValueError(f"{path} has no results of schema {SCHEMA}")
        measurements = [_measurement(one) for one in content.pop("measurements")]
        return cls(**content, measurements=measurements)


def _measurement(content: dict[str, Any]) -> Measurement:
    content.pop("summary")
    runs = content.pop("runs")
    read = {name: Run(**(run | {"sweep": [Sweep(**one) for one in run["sweep"]]})) for name, run in runs.items()}
    return Measurement(**content, runs=read)


def summary(measured: Measurement, name: str) -> dict[str, Any]:
    """The figures of one contender."""
    ours = next(iter(measured.runs))
    faster = {
        "ours_times_faster": spread(measured.ratios(name)),
        "ours_times_faster_on_device": spread(found) if (found := measured.ratios(name, device=True)) else None,
    }
    return {
        "items_per_second": measured.items_per_second(name),
        "tokens_per_second": measured.tokens_per_second(name),
        "fraction_of_floor": measured.fraction_of_floor(name),
        "latency_seconds": measured.latencies(name),
        "idle": measured.idle(name),
        **(faster if name != ours else {}),
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """What this is measured on."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    gpu = {} if device == "cpu" else {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "native_bfloat16": bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
        **gpu,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: found for package in PACKAGES if (found := _version(package))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
