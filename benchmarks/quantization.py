"""What int8 costs in rankings and in accuracy, against float32 and beside bfloat16.

    python -m benchmarks.quantization [--beir FOLDER ...] [--queries 200] [--layers 28] [--out FILE]

A folder in BEIR's format (corpus.jsonl, queries.jsonl, qrels.tsv) is searched and reranked with the demo pair: the
published models are not needed, and not measured. How outlier channels are borne is measured on random weights of the
0.6B shape with such channels put in. "int8, not rotated" is what int8 would be without its rotation. See README.md
beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.engine import int8
from qwen_retrieval.engine.engine import load_embedding_engine
from qwen_retrieval.engine.weights import DecoderConfig
from qwen_retrieval.evaluation.datasets import RetrievalDataset, read_beir
from qwen_retrieval.evaluation.metrics import Measures, Values
from qwen_retrieval.evaluation.significance import bootstrap_interval
from qwen_retrieval.types import FloatArray
from tests.checkpoints import QWEN3_0_6B, qwen3_config, random_tensors

CONTENDERS = ("float32", "bfloat16", "int8", "int8, not rotated")
DEPTH = 100
"""Documents of a query that are reranked, and whose order is compared."""

OUTLIERS = ("none", "norms x30", "norms x10, undone nowhere", "MLP x30", "token table x30")
CHANNELS, MLP_CHANNELS = [7, 123, 400, 801], [11, 1500, 2222]


@contextmanager
def contender(name: str) -> Iterator[str]:
    """The dtype of a contender, while its models are loaded."""
    blocks = (1,) if name.endswith("not rotated") else int8.BLOCKS
    with mock.patch.object(int8, "BLOCKS", blocks):
        yield name.partition(",")[0]


def some_queries(data: RetrievalDataset, limit: int) -> RetrievalDataset:
    """The collection with `limit` of its queries, drawn from a seed."""
    drawn = set(random.Random(0).sample(list(data.queries), min(limit, len(data.queries))))
    queries = {name: text for name, text in data.queries.items() if name in drawn}
    return RetrievalDataset(queries, data.corpus, {name: data.qrels[name] for name in queries}, data.name)


def kendall_tau(a: FloatArray, b: FloatArray) -> float:
    """Rank correlation (Kendall 1938) of two lists of scores: 1 for the same order, -1 for the opposite one."""
    signs = [np.sign(scores[:, None] - scores) for scores in (a, b)]
    return float((signs[0] * signs[1]).sum() / (len(a) * (len(a) - 1)))


def search(data: RetrievalDataset, name: str) -> tuple[FloatArray, FloatArray]:
    """Vectors of a collection by the demo embedder: of the documents and of the queries."""
    with contender(name) as dtype, Embedder.from_pretrained("demo", dtype=dtype, device="cpu") as embedder:
        return embedder.embed_documents([*data.corpus.values()]), embedder.embed_queries([*data.queries.values()])


def rerank(data: RetrievalDataset, name: str, candidates: list[list[int]]) -> list[FloatArray]:
    """Log-odds of each query's candidates by the demo reranker."""
    with contender(name) as dtype, Reranker.from_pretrained("demo", dtype=dtype, device="cpu") as reranker:
        pairs, documents = zip(data.queries.values(), candidates, strict=True), [*data.corpus.values()]
        return [reranker.log_odds(query, [documents[n] for n in numbers]) for query, numbers in pairs]


def quality(data: RetrievalDataset, scores: dict[str, FloatArray]) -> list[dict[str, Any]]:
    """Rankings by each contender's scores of all documents, against the first one's; a row for each contender."""
    exact = next(iter(scores.values()))
    top = np.argsort(-exact, axis=1, kind="stable")[:, :DEPTH]
    found = {name: measures(data, values) for name, values in scores.items()}
    rows = []
    for name, values in scores.items():
        pairs = zip(np.take_along_axis(values, top, 1), np.take_along_axis(exact, top, 1), strict=True)
        gains = found[name]["ndcg@10"] - next(iter(found.values()))["ndcg@10"]
        low, high = bootstrap_interval(gains[:, None])
        means = {measure: float(per_query.mean()) for measure, per_query in found[name].items()}
        change = f"{low[0]:+.4f} to {high[0]:+.4f}"
        tau = float(np.mean([kendall_tau(*pair) for pair in pairs]))
        rows.append({"contender": name, **means, "change of nDCG, 95 %": change, "tau": tau})
    return rows


def measures(data: RetrievalDataset, scores: FloatArray) -> dict[str, Values]:
    """The measures of each query from scores of all documents."""
    names = [*data.corpus]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    run = {query: [names[n] for n in row] for query, row in zip(data.queries, order, strict=True)}
    return Measures(data.qrels, ("ndcg@10", "recall@10", f"recall@{DEPTH}"))(run)


def measure_searches(data: RetrievalDataset) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """A row for each contender, and the documents that float32 finds first for each query."""
    vectors = {name: search(data, name) for name in CONTENDERS}
    scores = {name: queries @ documents.T for name, (documents, queries) in vectors.items()}
    rows = quality(data, scores)
    for row, (documents, _) in zip(rows, vectors.values(), strict=True):
        cosines = (documents * vectors["float32"][0]).sum(axis=1)
        row |= {"cosine, mean": float(cosines.mean()), "cosine, lowest": float(cosines.min())}
    return rows, np.argsort(-scores["float32"], axis=1, kind="stable")[:, :DEPTH].tolist()


def measure_rerankings(data: RetrievalDataset, candidates: list[list[int]]) -> list[dict[str, Any]]:
    """A row for each contender, all on the same candidates."""
    found = {name: rerank(data, name, candidates) for name in CONTENDERS}
    scores = {name: np.full((len(candidates), len(data.corpus)), -np.inf, np.float32) for name in found}
    for name, values in found.items():
        np.put_along_axis(scores[name], np.array(candidates), np.stack(values), axis=1)
    rows = quality(data, scores)
    for row, values in zip(rows, found.values(), strict=True):
        differences = np.abs(np.stack(values) - np.stack(found["float32"]))
        row |= {"log-odds differ, mean": float(differences.mean()), "highest": float(differences.max())}
    return rows


def put_outliers(tensors: dict[str, torch.Tensor], kind: str) -> None:
    """Make a few channels of the activations many times larger, in place.

    "norms" and "MLP" undo it in the matrices that follow, so that the model computes the same; "norms x10, undone
    nowhere" and "token table" change it.
    """
    if kind == "token table x30":
        tensors["embed_tokens.weight"][:, CHANNELS] *= 30
    for name, tensor in tensors.items():
        if kind.startswith("norms") and name.endswith("layernorm.weight"):
            tensor[CHANNELS] *= 30 if kind == "norms x30" else 10
        if kind == "norms x30" and name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            tensor[:, CHANNELS] /= 30
        if kind == "MLP x30" and name.endswith("up_proj.weight"):
            tensor[MLP_CHANNELS] *= 30
        if kind == "MLP x30" and name.endswith("down_proj.weight"):
            tensor[:, MLP_CHANNELS] /= 30


def measure_outliers(kind: str, layers: int, folder: Path) -> list[dict[str, Any]]:
    """How near to float32 the vectors of random texts are, for each contender."""
    raw = qwen3_config(QWEN3_0_6B | {"num_hidden_layers": layers}, vocab_size=2000)
    tensors = random_tensors(raw, gain=1.0)
    put_outliers(tensors, kind)
    save_file(tensors, folder / "model.safetensors")
    del tensors
    rng = random.Random(0)
    inputs = [[rng.randrange(2000) for _ in range(rng.randrange(8, 60))] for _ in range(12)]
    vectors = {}
    for name in CONTENDERS:
        with contender(name) as dtype:
            engine = load_embedding_engine(folder, DecoderConfig.from_json(raw), "cpu", dtype)
        found = engine.embed(inputs).astype(np.float64)
        vectors[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
    rows = []
    for name, found in vectors.items():
        cosines = (found * vectors["float32"]).sum(axis=1)
        report = {"cosine, mean": float(cosines.mean()), "cosine, lowest": float(cosines.min())}
        rows.append({"contender": name, **report})
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table in the terminal."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4f}" for value in row.values()))
    Console(width=130).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What int8 costs; see benchmarks/README.md")
    parser.add_argument("--beir", type=Path, nargs="*", default=[], help="folders in BEIR's format")
    parser.add_argument("--queries", type=int, default=200, help="of each folder")
    parser.add_argument("--layers", type=int, default=28, help="of the random weights; 0 for none of this part")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    reports: dict[str, list[dict[str, Any]]] = {}
    for folder in options.beir:
        data = some_queries(read_beir(folder), options.queries)
        title = f"{folder.name}: {len(data.queries)} queries, {len(data.corpus)} documents"
        reports[f"{folder.name}, embedding"], candidates = measure_searches(data)
        show(f"{title}, embedding", reports[f"{folder.name}, embedding"])
        reports[f"{folder.name}, reranking"] = measure_rerankings(data, candidates)
        show(f"{title}, reranking the first {DEPTH}", reports[f"{folder.name}, reranking"])
    for kind in OUTLIERS if options.layers else ():
        with tempfile.TemporaryDirectory() as temporary:
            reports[kind] = measure_outliers(kind, options.layers, Path(temporary))
        show(f"random weights, outliers: {kind}", reports[kind])
    if options.out:
        options.out.write_text(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    main()
