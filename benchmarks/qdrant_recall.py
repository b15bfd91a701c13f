"""What quantization, shorter numbers and shorter vectors cost in recall, and what they save.

    python -m benchmarks.qdrant_recall [--beir FOLDER ...] [--random 100000] [--dimensions 1024] [--out FOLDER]

Each corpus is ingested once per setting into the embedded engine, and searched with each oversampling. Recall@10 is the
share of the ten nearest vectors, compared one by one in float32, that a search finds. Codes and shorter vectors are
compared one by one too, so that their loss is seen alone; that of a graph has a row of its own. A corpus is a folder in
BEIR's format (corpus.jsonl, queries.jsonl), embedded by the demo model, or random unit vectors, which are the hardest
case: nothing is near to anything. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import models
from rich.console import Console
from rich.table import Table

from benchmarks.qdrant_workload import PrecomputedEmbedder, exact_neighbours, machine, unit_vectors
from qdrant_qwen_retrieval import QdrantIndex, Record
from qdrant_qwen_retrieval.settings import Quantization
from qwen_retrieval import Embedder
from qwen_retrieval.types import FloatArray

LIMIT = 10
OVERSAMPLING = (1.0, 2.0, 4.0, 8.0)
STAGE_FRACTIONS = (2, 4, 8)


@dataclass(frozen=True)
class Corpus:
    """Vectors to search, and to search for.

    Attributes:
        name: What to call it.
        vectors: (n, dimensions), unit rows.
        queries: (m, dimensions), unit rows.
    """

    name: str
    vectors: FloatArray
    queries: FloatArray


@dataclass(frozen=True)
class Setting:
    """One way to set up a collection."""

    label: str
    options: dict[str, Any]
    bytes_searched: float
    """Per vector, of what the search reads first: codes, or the shortest vectors."""
    graph: bool = False


def random_corpus(count: int, dimensions: int, queries: int) -> Corpus:
    """Random directions, and others to search for."""
    rows = unit_vectors(count + queries, dimensions)
    return Corpus(f"random-{count}", rows[:count], rows[count:])


def beir_corpus(folder: Path, limit: int) -> Corpus:
    """A folder in BEIR's format, embedded by the demo model."""
    with Embedder.from_pretrained("demo") as embedder:
        texts = [f"{row.get('title') or ''}\n{row['text']}".strip() for row in _rows(folder / "corpus.jsonl")]
        queries = [row["text"] for row in _rows(folder / "queries.jsonl")][:limit]
        return Corpus(folder.name, embedder.embed_documents(texts), embedder.embed_queries(queries))


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def settings_for(dimensions: int) -> list[Setting]:
    """Everything that may be asked for, one thing at a time, and a stage together with scalar codes."""
    sizes: dict[Quantization, float] = {
        "scalar": dimensions + 4,
        "turbo4": dimensions / 2 + 8,
        "turbo2": dimensions / 4 + 8,
        "binary": dimensions / 8,
    }
    found = [
        Setting("float32", {}, 4 * dimensions),
        Setting("float32, graph", {}, 4 * dimensions, graph=True),
        Setting("float16", {"datatype": "float16"}, 2 * dimensions),
    ]
    found += [Setting(name, {"quantization": name}, size) for name, size in sizes.items()]
    stages = [dimensions // part for part in STAGE_FRACTIONS]
    found += [Setting(f"stage of {length}", {"stages": [length]}, 4 * length) for length in stages]
    both = {"stages": [stages[1]], "quantization": "scalar", "datatype": "float16"}
    return [*found, Setting(f"stage of {stages[1]}, scalar, float16", both, stages[1] + 4)]


def measure(corpus: Corpus, setting: Setting, nearest: list[list[int]]) -> dict[str, Any]:
    """Recall for each oversampling, and bytes on the disk.

    Args:
        corpus: What to ingest.
        setting: Into what.
        nearest: The right answers.
    """
    # Documents first, then queries: a text is the number of its vector.
    embedder = PrecomputedEmbedder(np.concatenate([corpus.vectors, corpus.queries]))
    count = len(corpus.vectors)
    with tempfile.TemporaryDirectory() as folder:
        with QdrantIndex("bench", embedder=embedder, path=folder, **setting.options) as index:
            # Small corpora too are to have graphs and codes, which the engine makes for 10 MB of vectors and more.
            index.collection.ensure()
            graph = models.HnswConfigDiff() if setting.graph else models.HnswConfigDiff(m=0)
            threshold = models.OptimizersConfigDiff(indexing_threshold=1)
            index.client.update_collection("bench", optimizers_config=threshold, hnsw_config=graph)
            start = time.perf_counter()
            index.ingest((Record(str(n), f"{n:09}") for n in range(count)), chunk_size=None, optimize=True)
            seconds = time.perf_counter() - start
            texts = [f"{count + n:09}" for n in range(len(corpus.queries))]
            recall = {
                times: _recall([index.search(text, limit=LIMIT, oversampling=times) for text in texts], nearest)
                for times in OVERSAMPLING
            }
            exact = _recall([index.search(text, limit=LIMIT, exact=True) for text in texts], nearest)
        size = _vector_bytes(Path(folder))
    return {
        "setting": setting.label,
        "recall": {str(times): value for times, value in recall.items()},
        "exact": exact,
        "bytes_searched": setting.bytes_searched,
        "bytes_on_disk": size / count,
        "seconds": seconds,
    }


def _recall(results: list[list[Any]], nearest: list[list[int]]) -> float:
    """The share of the right answers that were found."""
    found = sum(
        len({int(hit.record_id) for hit in hits} & set(right)) for hits, right in zip(results, nearest, strict=True)
    )
    return found / sum(map(len, nearest))


def _vector_bytes(folder: Path) -> int:
    """Bytes of vectors, codes and graphs; not of the log and the payloads, which are the same for all settings."""
    kept = [path for path in folder.rglob("*") if path.is_file() and _is_of_vectors(path.relative_to(folder))]
    return sum(path.stat().st_blocks * 512 for path in kept)


def _is_of_vectors(path: Path) -> bool:
    return any(part.startswith(("vector_storage", "vector_index")) for part in path.parts)


def show(corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    """The table of one corpus."""
    headers = [f"os {times:g}" for times in OVERSAMPLING]
    table = Table("setting", "bytes searched", "bytes on disk", *headers, "exact", "ingest, s")
    for row in rows:
        table.add_row(
            row["setting"],
            f"{row['bytes_searched']:,.0f}",
            f"{row['bytes_on_disk']:,.0f}",
            *(f"{value:.3f}" for value in row["recall"].values()),
            f"{row['exact']:.3f}",
            f"{row['seconds']:.1f}",
        )
    console = Console(width=130)
    console.print(f"{corpus.name}: {len(corpus.vectors):,} vectors of {corpus.vectors.shape[1]}, recall@{LIMIT}")
    console.print(table)


def plot(reports: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Recall over the bytes that a search reads: a panel per corpus, a line per setting, a circle per oversampling."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(reports), figsize=(6 * len(reports), 6), sharey=True, squeeze=False)
    sizes = [20 + 25 * number for number in range(len(OVERSAMPLING))]
    for panel, (name, rows) in zip(panels[0], reports.items(), strict=True):
        for number, row in enumerate(rows):
            color = plt.get_cmap("tab20")(number)
            places, values = [row["bytes_searched"]] * len(sizes), list(row["recall"].values())
            panel.plot(places, values, color=color, linewidth=1)
            panel.scatter(places, values, s=sizes, alpha=0.7, color=[color], label=row["setting"])
        panel.set_xscale("log", base=2)
        panel.set_title(name)
        panel.set_xlabel("bytes per vector that the search reads first")
        panel.grid(visible=True, alpha=0.3)
        panel.legend(fontsize=7, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    panels[0][0].set_ylabel(f"recall@{LIMIT}; larger circles: oversampling {', '.join(f'{x:g}' for x in OVERSAMPLING)}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Recall benchmark; see benchmarks/README.md")
    parser.add_argument("--beir", type=Path, nargs="*", default=[], help="folders in BEIR's format")
    parser.add_argument("--random", type=int, default=100_000, help="random vectors; 0 for none")
    parser.add_argument("--dimensions", type=int, default=1024, help="of the random vectors")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for qdrant-recall.json and qdrant-recall.png")
    options = parser.parse_args()
    corpora = [beir_corpus(folder, options.queries) for folder in options.beir]
    if options.random:
        corpora.append(random_corpus(options.random, options.dimensions, options.queries))
    reports: dict[str, list[dict[str, Any]]] = {}
    for corpus in corpora:
        nearest = exact_neighbours(corpus.vectors, corpus.queries, LIMIT)
        rows = reports[corpus.name] = []
        for setting in settings_for(corpus.vectors.shape[1]):
            rows.append(measure(corpus, setting, nearest))
            print(f"{corpus.name}: {setting.label}: {rows[-1]['recall']}")
        show(corpus, rows)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        report = json.dumps({"machine": machine(), "corpora": reports}, indent=2)
        (options.out / "qdrant-recall.json").write_text(report + "\n")
        plot(reports, options.out / "qdrant-recall.png")


if __name__ == "__main__":
    main()
