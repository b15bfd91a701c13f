"""Ingesting into Qdrant and searching in it, side by side with what people use today.

    python -m benchmarks.qdrant_ingest speed    [--sizes 10000 100000] [--dimensions 1024] [--rounds 5] [--out FILE]
    python -m benchmarks.qdrant_ingest overhead [--records 2000] [--rounds 5] [--out FILE]
    python -m benchmarks.qdrant_ingest memory   [--records 1000000] [--dimensions 1024] [--out FILE]

`speed` compares stores, with vectors that are known beforehand; `overhead` compares an ingestion with the demo model
with the embedding in it; `memory` watches an ingestion from a generator. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.qdrant_contenders import CONTENDERS, Contender
from benchmarks.qdrant_memory import MemoryLog
from benchmarks.qdrant_workload import PrecomputedEmbedder, exact_neighbours, machine, records, unit_vectors
from qdrant_qwen_retrieval import QdrantIndex, Record
from qwen_retrieval import Embedder

OURS, MIXED = "ours, embedded", "path="
WARM_UP = 64


def compare_stores(size: int, dimensions: int, rounds: int, queries: int, path_limit: int) -> dict[str, Any]:
    """Points per second and the median latency of a search, of every store, in turn, with the same records.

    Args:
        size: Records.
        dimensions: Of their vectors.
        rounds: How often each store is filled anew.
        queries: Searches per round; each asks for ten.
        path_limit: Records for stores on qdrant-client's ``path=``, which takes hours for many.
    """
    embedder = PrecomputedEmbedder(unit_vectors(size, dimensions))
    corpus = list(records(size))
    asked = corpus[:: max(1, size // queries)][:queries]
    nearest = exact_neighbours(
        embedder.embed_documents([record.text for record in corpus]),
        embedder.embed_queries([record.text for record in asked]),
        10,
    )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for fill in CONTENDERS.values():
        _round(fill, embedder, corpus[:WARM_UP], asked[:2], nearest)
    for _ in range(rounds):
        for name, fill in CONTENDERS.items():
            part = corpus[:path_limit] if name.endswith(MIXED) else corpus
            found[name].append(_round(fill, embedder, part, asked, nearest))
    return {"records": size, "dimensions": dimensions, "queries": queries, "stores": _summary(found)}


def _round(
    fill: Contender,
    embedder: PrecomputedEmbedder,
    corpus: list[Record],
    asked: list[Record],
    nearest: list[list[int]],
) -> dict[str, float]:
    """One round of one store."""
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = fill(embedder, Path(folder), corpus)
        seconds = time.perf_counter() - start
        latencies, hits = [], 0
        for record, expected in zip(asked, nearest, strict=False):
            start = time.perf_counter()
            numbers = store.search(record.text)
            latencies.append(time.perf_counter() - start)
            hits += len(set(numbers) & set(expected))
        store.close()
    return {
        "points": len(corpus),
        "points_per_second": len(corpus) / seconds,
        "search_ms": 1000 * statistics.median(latencies),
        "recall": hits / (10 * len(asked)),
    }


def _summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and how many times faster ours was, round by round."""
    result = {}
    for name, rounds in found.items():
        pairs = list(zip(found[OURS], rounds, strict=True))
        result[name] = {
            "points": int(rounds[0]["points"]),
            "recall": rounds[0]["recall"],
            "points_per_second": _spread([one["points_per_second"] for one in rounds]),
            "search_ms": _spread([one["search_ms"] for one in rounds]),
            "ours_ingests_times_faster": _spread(
                [ours["points_per_second"] / one["points_per_second"] for ours, one in pairs]
            ),
            "ours_searches_times_faster": _spread([one["search_ms"] / ours["search_ms"] for ours, one in pairs]),
        }
    return result


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def compare_with_embedding(count: int, rounds: int) -> dict[str, Any]:
    """Seconds of an ingestion with the demo model over seconds of `embed_documents` alone, on the same texts."""
    corpus = list(records(count))
    texts = [record.text for record in corpus]
    ratios, alone, ingested = [], [], []
    with Embedder.from_pretrained("demo") as embedder:
        embedder.embed_documents(texts[:WARM_UP])
        for _ in range(rounds):
            start = time.perf_counter()
            embedder.embed_documents(texts)
            alone.append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                with QdrantIndex("bench", embedder=embedder, path=folder) as index:
                    index.ingest(corpus, chunk_size=None)
                    ingested.append(time.perf_counter() - start)
            ratios.append(ingested[-1] / alone[-1])
    return {"records": count, "ratio": _spread(ratios), "embedding_seconds": alone, "ingestion_seconds": ingested}


def watch_memory(count: int, dimensions: int) -> dict[str, Any]:
    """Memory of an ingestion from a generator, of this process and of the engine's, as it goes on."""
    embedder = PrecomputedEmbedder(unit_vectors(min(count, 2000), dimensions))
    log = MemoryLog()

    def source() -> Iterator[Record]:
        for number, record in enumerate(records(count)):
            if number % max(1, count // 20) == 0:
                log.note(number)
            yield record

    with tempfile.TemporaryDirectory() as folder, QdrantIndex("bench", embedder=embedder, path=folder) as index:
        start = time.perf_counter()
        report = index.ingest(source(), chunk_size=None, optimize=False)
        seconds = time.perf_counter() - start
        log.note(count)
        points = index.count()
    assert report.embedded == points == count
    return {"records": count, "dimensions": dimensions, "points_per_second": count / seconds, "memory": log.rows}


def show_speed(report: dict[str, Any]) -> None:
    """The table of one size."""
    table = Table("store", "points", "points/s", "ours / it", "search p50", "it / ours", "recall@10")
    for name, one in report["stores"].items():
        ingest, search = one["ours_ingests_times_faster"], one["ours_searches_times_faster"]
        is_whole = one["points"] == report["records"]  # or searches are not of the same points
        table.add_row(
            name,
            f"{one['points']:,}",
            f"{one['points_per_second']['median']:,.0f}",
            f"{ingest['median']:.2f}x ({ingest['lowest']:.2f} – {ingest['highest']:.2f})",
            f"{one['search_ms']['median']:.2f} ms",
            f"{search['median']:.2f}x ({search['lowest']:.2f} – {search['highest']:.2f})" if is_whole else "",
            f"{one['recall']:.3f}" if is_whole else "",
        )
    console = Console(width=130)
    console.print(f"{report['records']:,} records of {report['dimensions']} dimensions")
    console.print(table)


def show_overhead(report: dict[str, Any]) -> None:
    """The ratio in one line."""
    ratio = report["ratio"]
    print(
        f"{report['records']:,} records: ingesting takes {ratio['median']:.3f}x ({ratio['lowest']:.3f} – "
        f"{ratio['highest']:.3f}) the time of embedding alone"
    )


def show_memory(report: dict[str, Any]) -> None:
    """Memory as the ingestion goes on."""
    table = Table("records", "this process, MB", "engine, MB", "engine with mapped files, MB")
    for row in report["memory"]:
        table.add_row(f"{row['records']:,}", *(f"{row[name]:,.0f}" for name in ("own", "engine", "engine_mapped")))
    print(f"{report['points_per_second']:,.0f} points/s")
    Console(width=100).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Qdrant benchmark; see benchmarks/README.md")
    parser.add_argument("what", choices=["speed", "overhead", "memory"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="of `speed`")
    parser.add_argument("--queries", type=int, default=50, help="of `speed`, per round")
    parser.add_argument("--path-limit", type=int, default=2000, help="records for qdrant-client's path= mode")
    parser.add_argument("--records", type=int, help="of `overhead` (2,000) and `memory` (1,000,000)")
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    reports = []
    if options.what == "speed":
        for size in options.sizes:
            rounds, queries, limit = options.rounds, options.queries, options.path_limit
            reports.append(compare_stores(size, options.dimensions, rounds, queries, limit))
            show_speed(reports[-1])
    elif options.what == "overhead":
        reports.append(compare_with_embedding(options.records or 2000, options.rounds))
        show_overhead(reports[-1])
    else:
        reports.append(watch_memory(options.records or 1_000_000, options.dimensions))
        show_memory(reports[-1])
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), options.what: reports}, indent=2) + "\n")


if __name__ == "__main__":
    main()
