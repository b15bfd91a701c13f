"""What is measured: the closed loop, the open loop, and single queries beside a bulk job, round by round."""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.load_drivers import (
    LEAD,
    Arrivals,
    Contender,
    Outcome,
    Saturation,
    Work,
    drive_tasks,
    drive_threads,
    percentile,
    poisson,
)
from benchmarks.results import spread
from qwen_retrieval import Embedder

FEWEST_CALLS = 32
"""Calls of a closed loop at least: a p99 of fewer is their maximum, and means little here too."""

OVERLOADED = 0.2
"""Share of the calls given up from which a contender is spared higher loads."""

QUERY_SHARE = 0.1
"""Load of single queries beside a bulk job: this share of the time they would keep an idle model busy."""

QUERY_CALLERS = 16
"""Callers for these: more than ever wait at once."""

Row = dict[str, Any]


def drive(contender: Contender, form: str, begin: Callable[[], Work], callers: int, runner: asyncio.Runner) -> Outcome:
    """Make the calls by threads or by tasks.

    Args:
        contender: What is called.
        form: "threads" or "tasks".
        begin: Makes the work, once everything is ready: a schedule starts when it is made.
        callers: How many.
        runner: The event loop of tasks.
    """
    gc.collect()
    if form == "threads":
        return drive_threads(contender.call, begin(), callers)
    return runner.run(drive_tasks(contender.acall, begin(), callers))


def measure(contender: Contender, form: str, begin: Callable[[], Work], callers: int, runner: asyncio.Runner) -> Row:
    """The summary of a run, and the processor time of a call, which other programs disturb less than latency."""
    start = 0.0

    def timed() -> Work:
        nonlocal start
        start = time.process_time()  # not before: a garbage collection comes first
        return begin()

    outcome = drive(contender, form, timed, callers, runner)
    return outcome.summary() | {"cpu_ms": 1e3 * (time.process_time() - start) / len(outcome.spans)}


def warm_up(contenders: Sequence[Contender], forms: Sequence[str], runner: asyncio.Runner) -> None:
    """A few calls of each, so that nothing is loaded or allocated for the first time on the clock."""
    for contender in contenders:
        for form in forms:
            drive(contender, form, lambda: Saturation(8), 2, runner)


def closed_loop(
    contenders: Sequence[Contender], forms: Sequence[str], callers: Sequence[int], calls_each: int, rounds: int
) -> list[Row]:
    """Calls per second and latency of every contender, in turn, for every number of callers.

    Ratios are to the first contender with as many callers of the same form, in the same round.
    """
    rows: dict[tuple[str, int, str], list[Row]] = {}
    with asyncio.Runner() as runner:
        warm_up(contenders, forms, runner)
        for _ in range(rounds):
            for form in forms:
                for count in callers:
                    for contender in contenders:
                        calls = max(FEWEST_CALLS, calls_each * count)
                        found = measure(contender, form, partial(Saturation, calls), count, runner)
                        rows.setdefault((form, count, contender.name), []).append(found)
    first = contenders[0].name
    return [
        {"form": form, "callers": count, "contender": name, **_compare(found, rows[form, count, first])}
        for (form, count, name), found in rows.items()
    ]


def open_loop(
    contenders: Sequence[Contender],
    forms: Sequence[str],
    shares: Sequence[float],
    callers: int,
    seconds: float,
    rounds: int,
) -> list[Row]:
    """Latency of every contender, in turn, when calls arrive at the same times for all.

    Args:
        contenders: The first one's closed loop, measured in every round, is what the load is a share of.
        forms: "threads", "tasks".
        shares: Loads.
        callers: Most calls at once; the next waits, and its latency counts.
        seconds: Length of each schedule.
        rounds: How often.
    """
    rows: dict[tuple[str, float, str], list[Row]] = {}
    with asyncio.Runner() as runner:
        warm_up(contenders, forms, runner)
        for number in range(rounds):
            for form in forms:
                capacity = drive(contenders[0], form, lambda: Saturation(4 * callers), callers, runner).per_second
                overloaded: set[str] = set()
                for share in shares:
                    times = poisson(share * capacity, seconds, seed=number)
                    for contender in contenders:
                        if contender.name in overloaded:
                            continue
                        found = measure(contender, form, partial(Arrivals, times), callers, runner)
                        if found["given_up"] > OVERLOADED * len(times):
                            overloaded.add(contender.name)
                        found |= {"round": number, "offered_per_second": share * capacity}
                        rows.setdefault((form, share, contender.name), []).append(found)
    first = contenders[0].name
    return [
        {"form": form, "share": share, "contender": name, **_compare(found, rows[form, share, first])}
        for (form, share, name), found in rows.items()
    ]


def _compare(found: Sequence[Row], ours: Sequence[Row]) -> Row:
    """Median and spread over the rounds, of the numbers and of their ratios to the first contender's."""
    pairs = list(zip(found, ours, strict=False))  # a contender that is overloaded in a round has fewer
    names = ("per_second", "cpu_ms", "p50_ms", "p95_ms", "p99_ms")
    errors: dict[str, int] = {}
    for row in found:
        for kind, count in row["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
    return {
        **{name: spread([row[name] for row in found]) for name in names},
        **{f"{name}_ratio": spread([row[name] / one[name] for row, one in pairs]) for name in names},
        "given_up": sum(row["given_up"] for row in found),
        "errors": errors,
        "rounds": list(found),
    }


def beside_bulk(
    contender: Contender, embedder: Embedder, documents: Sequence[str], forms: Sequence[str], rounds: int
) -> list[Row]:
    """Latency of single queries while `embed_documents` runs, and what that loses by them.

    Queries arrive so rarely that they would keep an idle model busy for `QUERY_SHARE` of the time.
    """
    reports = []
    with asyncio.Runner() as runner:
        for form in forms:
            embedder.embed_documents(documents[:64])
            found = [_bulk_round(contender, embedder, documents, form, runner, seed) for seed in range(rounds)]
            reports.append({"form": form, "documents": len(documents), **_summarise(found), "rounds": found})
    return reports


def _bulk_round(
    contender: Contender, embedder: Embedder, documents: Sequence[str], form: str, runner: asyncio.Runner, seed: int
) -> Row:
    one = drive(contender, form, lambda: Saturation(FEWEST_CALLS), 1, runner)
    rate = QUERY_SHARE / statistics.mean(one.latencies)
    start, batches = time.perf_counter(), embedder._worker.batches
    embedder.embed_documents(documents)
    bulk, batches = time.perf_counter() - start, embedder._worker.batches - batches
    alone = drive(contender, form, lambda: Arrivals(poisson(rate, bulk, seed=seed)), QUERY_CALLERS, runner)

    job = _BulkJob(embedder, documents, poisson(rate, 20 * bulk, seed=seed))
    beside = drive(contender, form, job.begin, QUERY_CALLERS, runner)
    job.thread.join()
    during = Outcome([span for span in beside.spans if job.start <= span[0] < job.end], beside.errors)
    batch = bulk / batches
    return {
        "batch_ms": 1e3 * batch,
        "alone": alone.summary(),
        "beside": during.summary(),
        "longer_than_alone": {p: _ratio(during, alone, p) for p in (50, 95, 99)},
        "in_batches": {p: percentile(during.latencies, p) / batch for p in (50, 95, 99)},
        "bulk_share_kept": bulk / (job.end - job.start),
        "queries": len(during.spans),
    }


class _BulkJob:
    """A bulk job that begins with the arrivals beside it, and ends them when it is done."""

    def __init__(self, embedder: Embedder, documents: Sequence[str], times: Sequence[float]) -> None:
        self.thread = threading.Thread(target=self._run)
        self.start = self.end = 0.0
        self._embedder = embedder
        self._documents = documents
        self._times = times

    def begin(self) -> Arrivals:
        self._arrivals = Arrivals(self._times)
        self.thread.start()
        return self._arrivals

    def _run(self) -> None:
        time.sleep(LEAD)
        self.start = time.perf_counter()
        self._embedder.embed_documents(self._documents)
        self.end = time.perf_counter()
        self._arrivals.stop()


def _ratio(these: Outcome, those: Outcome, percent: float) -> float:
    return percentile(these.latencies, percent) / percentile(those.latencies, percent)


def _summarise(found: Sequence[Row]) -> Row:
    return {
        "batch_ms": spread([one["batch_ms"] for one in found]),
        "bulk_share_kept": spread([one["bulk_share_kept"] for one in found]),
        **{
            f"p{p}_{name}": spread([one[name][p] for one in found])
            for name in ("longer_than_alone", "in_batches")
            for p in (50, 95, 99)
        },
    }
