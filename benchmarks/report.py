"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from benchmarks.results import Measurement, Results, Run, spread

WIDTH = 190


def console() -> Console:
    """Wide enough for all columns, whatever the terminal is."""
    return Console(width=WIDTH)


def show(results: Results, to: Console | None = None) -> None:
    """Everything: one short row per workload and contender, and what was skipped."""
    to = to or console()
    table = Table("workload", "model", "contender", "items/s", "tokens/s", "ours is faster", "of floor", "p50 / p99 ms")
    for measured in results.measurements:
        for name in measured.runs:
            head = (f"{measured.workload} {measured.what}", measured.model) if name == _first(measured) else ("", "")
            table.add_row(
                *head,
                name,
                f"{measured.items_per_second(name):,.2f}",
                f"{measured.tokens_per_second(name):,.0f}",
                _ratio(measured, name),
                f"{measured.fraction_of_floor(name):.0%}",
                _latency(measured, name),
            )
    to.print(table)
    for line in results.skipped:
        to.print(f"skipped: {line}")


def show_measurement(measured: Measurement, to: Console | None = None) -> None:
    """One workload, with all that was looked at."""
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in measured.flops_per_second.items())
    title = (
        f"{measured.workload} {measured.what}, {measured.model} {measured.dtype} on {measured.device}: "
        f"{measured.items:,} items in {measured.calls} call(s), {measured.given_tokens:,} tokens, "
        f"{measured.needed_tokens:,} needed; product {rates}, copy {measured.bytes_per_second / 1e9:.0f} GB/s"
    )
    table = Table(*COLUMNS, title=title + (f"; {measured.note}" if measured.note else ""), title_justify="left")
    for name, run in measured.runs.items():
        table.add_row(*[cell(measured, name, run) for cell in COLUMNS.values()])
    (to or console()).print(table)


def _first(measured: Measurement) -> str:
    return next(iter(measured.runs))


def _ratio(measured: Measurement, name: str, *, device: bool = False) -> str:
    ratios = measured.ratios(name, device=device) if name != _first(measured) else []
    if not ratios:
        return ""
    found = spread(ratios)
    return f"{found['median']:.2f}x ({found['lowest']:.2f} – {found['highest']:.2f})"


def _latency(measured: Measurement, name: str) -> str:
    found = measured.latencies(name)
    return f"{found['p50'] * 1e3:,.1f} / {found['p99'] * 1e3:,.1f}" if found else ""


def _error(measured: Measurement, run: Run) -> str:
    if run.error is None:
        return ""
    return f"{run.error:.3f}" if measured.task == "pairs" else f"{run.error:.1e}"


def _megabytes(run: Run) -> str:
    weights = "" if run.weight_bytes is None else f"{run.weight_bytes / 1e6:,.0f} + "
    return "" if run.peak_bytes is None else f"{weights}{run.peak_bytes / 1e6:,.0f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


Cell = Callable[[Measurement, str, Run], str]
COLUMNS: dict[str, Cell] = {
    "contender": lambda m, n, r: n,  # noqa: ARG005
    "batch": lambda m, n, r: f"{r.batch_size:,} {r.unit}",  # noqa: ARG005
    "items/s": lambda m, n, r: f"{m.items_per_second(n):,.2f}",  # noqa: ARG005
    "tokens/s": lambda m, n, r: f"{m.tokens_per_second(n):,.0f}",  # noqa: ARG005
    "ours is faster": lambda m, n, r: _ratio(m, n),  # noqa: ARG005
    "on the device": lambda m, n, r: _ratio(m, n, device=True),  # noqa: ARG005
    "of floor": lambda m, n, r: f"{m.fraction_of_floor(n):.0%}",  # noqa: ARG005
    "p50 / p99 ms": lambda m, n, r: _latency(m, n),  # noqa: ARG005
    "memory, MB": lambda m, n, r: _megabytes(r),  # noqa: ARG005
    "error": lambda m, n, r: _error(m, r),  # noqa: ARG005
    "launches": lambda m, n, r: "" if r.launches is None else f"{r.launches:,}",  # noqa: ARG005
    "idle": lambda m, n, r: _share(m.idle(n)),  # noqa: ARG005
}
"""Heading, and what stands below it."""
