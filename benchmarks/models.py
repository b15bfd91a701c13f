"""How fast the models are, beside what people use today.

    python -m benchmarks.models                              the CPU set: W10, 0.6B, bfloat16 or what the CPU computes
    python -m benchmarks.models --quick                      the same, smaller: three minutes on two cores
    python -m benchmarks.models --gpu-table                  W1 - W9, 0.6B, 4B and 8B, in under ten minutes
    python -m benchmarks.models --workload W1 --workload W6 --model 0.6B --device cuda --rounds 5 --scale 0.1

See README.md beside this file for what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agenda import Agenda, Options
from benchmarks.checkpoints import MODELS
from benchmarks.contenders import PEERS
from benchmarks.results import Results
from benchmarks.workloads import select
from qwen_retrieval.engine.engine import resolve_device, resolve_dtype


@dataclass(frozen=True, slots=True)
class Preset:
    """What a run measures if nothing else is said.

    Attributes:
        workloads: Names.
        models: Names.
        rounds: End to end.
        device_rounds: On the device alone.
        scale: Of the number of items.
        sweeps: Whether batch sizes are tried, or the middle one is taken.
        seconds: Budget; None for none.
    """

    workloads: tuple[str, ...]
    models: tuple[str, ...]
    rounds: int
    device_rounds: int
    scale: float = 1.0
    sweeps: bool = True
    seconds: float | None = None


CPU_SET = Preset(("W10",), ("0.6B",), rounds=5, device_rounds=1)
QUICK = Preset(("W10a", "W10b", "W10d"), ("0.6B",), rounds=3, device_rounds=1, scale=0.2, sweeps=False, seconds=150)
GPU_TABLE = Preset(tuple(f"W{i}" for i in range(1, 10)), MODELS, rounds=5, device_rounds=2, seconds=540)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__.splitlines()[0])
    presets = parser.add_mutually_exclusive_group()
    presets.add_argument("--quick", dest="preset", action="store_const", const=QUICK, help="the CPU set in 3 minutes")
    presets.add_argument("--gpu-table", dest="preset", action="store_const", const=GPU_TABLE, help="in 10 minutes")
    parser.set_defaults(preset=CPU_SET)
    parser.add_argument("--workload", action="append", metavar="W1", help="W1 to W9, W10 or W10a to W10d; repeatable")
    parser.add_argument("--model", action="append", choices=MODELS, help="repeatable")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only these peers; repeatable")
    parser.add_argument("--alone", action="store_true", help="no peers")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default cuda for --gpu-table, else cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"], help="of all contenders")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--device-rounds", type=int, help="rounds that leave tokenization out")
    parser.add_argument("--scale", type=float, help="multiplies the number of items")
    parser.add_argument("--no-sweep", action="store_true", help="take the middle batch size instead of trying them")
    parser.add_argument("--seconds", type=float, help="budget, divided among the workloads; 0 for none")
    parser.add_argument("--memory", action="store_true", help="on a CPU: each contender's peak memory, in a process")
    parser.add_argument("--folder", type=Path, help="where to keep the random checkpoints between runs")
    parser.add_argument("--out", type=Path, help="the JSON file, written after each workload; plots go beside it")
    return parser.parse_args(arguments)


def options_of(parsed: argparse.Namespace, folder: Path) -> Options:
    """The command line over its preset.

    Raises:
        ValueError: A workload is unknown, or the machine has no such device.
    """
    preset: Preset = parsed.preset
    device = resolve_device(parsed.device or ("cuda" if preset is GPU_TABLE else "cpu"))
    seconds = preset.seconds if parsed.seconds is None else parsed.seconds or None
    return Options(
        workloads=select(parsed.workload or preset.workloads),
        models=parsed.model or list(preset.models),
        device=str(device),
        dtype=str(resolve_dtype(parsed.dtype, device)).removeprefix("torch."),
        rounds=parsed.rounds or preset.rounds,
        device_rounds=preset.device_rounds if parsed.device_rounds is None else parsed.device_rounds,
        scale=parsed.scale or preset.scale,
        sweeps=preset.sweeps and not parsed.no_sweep,
        seconds=seconds,
        peers=[] if parsed.alone else parsed.peer,
        memory=parsed.memory,
        folder=folder,
        out=parsed.out,
    )


def _command(arguments: list[str]) -> list[str]:
    """What was typed, without the folders of the machine that it was typed on."""
    return ["python", "-m", "benchmarks.models", *[Path(one).name if os.sep in one else one for one in arguments]]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            options = options_of(parsed, parsed.folder or Path(temporary))
        except ValueError as error:
            raise SystemExit(f"benchmarks.models: {error}") from error
        Agenda(options, Results.begin(_command(arguments), options.device)).work()


if __name__ == "__main__":
    main()
