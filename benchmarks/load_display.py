"""Tables in the terminal, and the plot of latency against load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")
RATIOS = {
    "ratios: calls/s": "per_second_ratio",
    "CPU time": "cpu_ms_ratio",
    "p50": "p50_ms_ratio",
    "p99": "p99_ms_ratio",
}


def callers(rows: Sequence[Row]) -> None:
    """The closed loop: ratios are to the first contender."""
    _latencies("callers", rows, lambda row: str(row["callers"]))


def arrivals(rows: Sequence[Row]) -> None:
    """The open loop; where calls were given up, percentiles are lower bounds."""
    _latencies("load", rows, lambda row: f"{row['share']:.0%}")


def _latencies(axis: str, rows: Sequence[Row], label: Callable[[Row], str]) -> None:
    table = Table("form", axis, "contender", "calls/s", *PERCENTILES, *RATIOS, "given up")
    for row in rows:
        failed = f", {row['errors']}" if row["errors"] else ""
        table.add_row(
            row["form"],
            label(row),
            row["contender"],
            f"{row['per_second']['median']:,.0f}",
            *(f"{row[name]['median']:,.1f}" for name in PERCENTILES),
            *(_spread(row[name]) for name in RATIOS.values()),
            f"{row['given_up']}{failed}",
        )
    Console(width=180).print(table)


def bulk(rows: Sequence[Row]) -> None:
    """Queries beside a bulk job."""
    table = Table("form", "batch, ms", "of batches: p50", "p95", "p99", "over alone: p50", "p99", "bulk job keeps")
    for row in rows:
        table.add_row(
            row["form"],
            _spread(row["batch_ms"]),
            *(_spread(row[f"p{p}_in_batches"]) for p in (50, 95, 99)),
            *(_spread(row[f"p{p}_longer_than_alone"]) for p in (50, 99)),
            _spread(row["bulk_share_kept"]),
        )
    Console(width=180).print(table)


def memory(rows: Sequence[Row]) -> None:
    """Growth per call."""
    table = Table("contender", "form", "calls", "bytes per call ± standard error", "blocks per call", "more objects")
    for row in rows:
        resident, blocks = row["resident_bytes_per_call"], row["blocks_per_call"]
        table.add_row(
            row["contender"],
            row["form"],
            f"{row['calls']:,}",
            f"{resident['per_call']:.3f} ± {resident['error']:.3f}",
            f"{blocks['per_call']:.5f} ± {blocks['error']:.5f}",
            str(row["grown"] or "none"),
        )
    Console(width=150).print(table)


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['lowest']:.2f} – {values['highest']:.2f})"


def plot(rows: Sequence[Row], path: Path) -> None:
    """p50 and p99 against load, a panel for each form; a hollow circle means that calls were given up."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    forms = list(dict.fromkeys(row["form"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, panels = plt.subplots(1, len(forms), figsize=(6 * len(forms), 5), sharey=True, squeeze=False)
    for panel, form in zip(panels[0], forms, strict=True):
        for number, name in enumerate(names):
            mine = [row for row in rows if (row["form"], row["contender"]) == (form, name)]
            shares, color = [row["share"] for row in mine], f"C{number}"
            for percentile, style in (("p50_ms", "-"), ("p99_ms", ":")):
                values = [row[percentile]["median"] for row in mine]
                panel.plot(shares, values, style, color=color, label=f"{name}, {percentile[:3]}")
                faces = ["none" if row["given_up"] else color for row in mine]
                panel.scatter(shares, values, facecolors=faces, edgecolors=color, s=24)
        panel.set(title=form, yscale="log", xlabel="arrivals, as a share of what the core answers at most")
        panel.grid(visible=True, alpha=0.3)
    panels[0][0].set_ylabel("latency from the scheduled arrival, ms")
    panels[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
