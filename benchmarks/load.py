"""Latency under load: many callers, arrivals that do not wait, single queries beside a bulk job, memory of many calls.

    python -m benchmarks.load callers  [--callers 1 4 16 64 256] [--rounds 5] [--out FILE]
    python -m benchmarks.load arrivals [--shares 0.05 0.1 0.2 0.4 0.6 0.8] [--seconds 4] [--rounds 5] [--out FILE]
    python -m benchmarks.load bulk     [--documents 2000] [--rounds 5] [--out FILE]
    python -m benchmarks.load memory   [--calls 100000] [--out FILE]

`callers` is the closed loop, `arrivals` the open one; both with merging, without, and against sentence-transformers.
`--model 0.6B-random` takes the published shape with random weights instead of the demo pair, `--model simulated` an
engine that waits instead of computing: then a busy machine disturbs little, and queue and callers are what is measured.
`--forms threads` or `tasks` measures one form only, `--only` the contenders whose names begin so. See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from llama_index.core import MockEmbedding
from tokenizers import Tokenizer

from benchmarks import load_display, load_scenarios
from benchmarks.checkpoints import checkpoints
from benchmarks.load_contenders import SimulatedDevice, of_embedder, of_reranker, one_at_a_time, sentence_transformers
from benchmarks.load_drivers import Contender
from benchmarks.load_memory import Log, watch
from benchmarks.results import machine
from benchmarks.workloads import SEED, documents, prose
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.hub import model_folder
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

QUERIES = 8192
"""Distinct queries; more calls begin again."""


@dataclass(frozen=True, slots=True)
class Models:
    """What is measured, and what it is given."""

    embedder: Embedder
    reranker: Reranker
    folder: Path
    queries: list[str]

    @property
    def contenders(self) -> list[Contender]:
        """Everything that can be called, ours first."""
        ours = of_embedder(self.embedder, self.queries)
        reranker = of_reranker(self.reranker, self.queries, documents(512, self.folder))
        is_real = self.embedder.device != "custom"
        peers = sentence_transformers(self.folder, self.embedder, self.queries) if is_real else []
        return [ours[0], one_at_a_time(ours[0]), *peers, *ours[1:], reranker, one_at_a_time(reranker)]


def queries(count: int, tokenizer_folder: Path) -> list[str]:
    """Distinct pieces of prose of 4 to 24 tokens, which with the instruction makes W5 of `workloads`.

    Distinct, because equal inputs of a batch are computed once.

    Args:
        count: How many, or fewer if there is not so much prose.
        tokenizer_folder: A checkpoint's.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    ids = tokenizer.encode(prose(), add_special_tokens=False).ids
    rng, start, found = random.Random(SEED), 0, dict[str, None]()
    while len(found) < count and start < len(ids):
        length = rng.randint(4, 24)
        found[tokenizer.decode(ids[start : start + length]).strip()] = None
        start += length
    return list(found)


def load_models(name: str, dtype: str, scratch: Path, stack: ExitStack) -> Models:
    """The demo pair, its texts on a simulated device, or random weights of the 0.6B shape, written to `scratch`."""
    pair = checkpoints(scratch) if name == "0.6B-random" else (model_folder("demo", "embedding"), Path("demo"))
    embedder = stack.enter_context(Embedder.from_pretrained(str(pair[0]), dtype=dtype, device="cpu"))
    reranker = stack.enter_context(Reranker.from_pretrained(str(pair[1]), dtype=dtype, device="cpu"))
    if name == "simulated":
        device, budget = SimulatedDevice(embedder.spec.hidden_size), embedder.max_batch_tokens
        embedder = stack.enter_context(Embedder(device, embedder.tokenizer, embedder.spec, max_batch_tokens=budget))
        reranker = stack.enter_context(Reranker(device, reranker.tokenizer, reranker.spec, max_batch_tokens=budget))
    return Models(embedder, reranker, pair[0], queries(QUERIES, pair[0]))


def run_callers(models: Models, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The closed loop."""
    chosen = _chosen(models.contenders, options.only)
    return load_scenarios.closed_loop(chosen, options.forms, options.callers, options.calls_each, options.rounds)


def run_arrivals(models: Models, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The open loop."""
    chosen = _chosen(models.contenders, options.only or ["core", "sentence-transformers"])
    return load_scenarios.open_loop(
        chosen, options.forms, options.shares, max(options.callers), options.seconds, options.rounds
    )


def run_bulk(models: Models, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Single queries beside a bulk job."""
    texts = documents(options.documents, models.folder)
    core = of_embedder(models.embedder, models.queries)[0]
    return load_scenarios.beside_bulk(core, models.embedder, texts, options.forms, options.rounds)


def run_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Many calls of every adapter on a fake engine, so that the rest is what is watched."""
    # Without an instruction: of short inputs the fake engine, which is slow, leaves more to what is watched.
    embedder = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), instruction="")
    ours = of_embedder(embedder, ["How do I copy a file?", "What is a socket?"])
    # What callers themselves, and LlamaIndex by itself, take.
    nothing = Contender("nothing", lambda _: None, lambda _: asyncio.sleep(0))
    mock = MockEmbedding(embed_dim=embedder.dimensions)
    mocked = Contender(
        "mock of LlamaIndex", lambda _: mock.get_query_embedding("a"), lambda _: mock.aget_query_embedding("a")
    )
    reports: list[dict[str, Any]] = []
    with embedder:
        for contender in _chosen([nothing, mocked, *ours], options.only):
            for form in options.forms:
                log = watch(contender, options.calls, callers=16, parts=25, tasks=form == "tasks")
                reports.append({"contender": contender.name, "form": form, "calls": options.calls, **_describe(log)})
                load_display.memory(reports[-1:])
    return reports


def _describe(log: Log) -> dict[str, Any]:
    return {
        "resident_bytes_per_call": asdict(log.slope("resident")),
        "blocks_per_call": asdict(log.slope("blocks")),
        "grown": log.grown,
        "resident": log.resident.tolist(),
        "blocks": log.blocks.tolist(),
    }


def _chosen(contenders: Sequence[Contender], only: Sequence[str] | None) -> list[Contender]:
    found = [one for one in contenders if not only or one.name.startswith(tuple(only))]
    if not found:
        raise SystemExit(f"--only must begin the name of one of {[one.name for one in contenders]}, but got {only}")
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Latency under load; see benchmarks/README.md")
    parser.add_argument("what", choices=["callers", "arrivals", "bulk", "memory"])
    parser.add_argument("--model", choices=["demo", "simulated", "0.6B-random"], default="demo")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--forms", nargs="+", choices=["threads", "tasks"], default=["threads", "tasks"])
    parser.add_argument("--only", nargs="+", help="contenders whose names begin so")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--calls-each", type=int, default=4, help="of `callers`, and 32 calls in all at least")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4, 0.6, 0.8], help="of `arrivals`"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of arrivals at each load")
    parser.add_argument("--documents", type=int, default=2000, help="of `bulk`")
    parser.add_argument("--calls", type=int, default=100_000, help="of `memory`, for each adapter and form")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to keep the random checkpoints (2.4 GB) between runs")
    parser.add_argument("--out", type=Path, help="a JSON file; `arrivals` draws a plot beside it")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.what == "memory":
        reports = run_memory(options)
    else:
        run = {"callers": run_callers, "arrivals": run_arrivals, "bulk": run_bulk}[options.what]
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
            models = load_models(options.model, options.dtype, options.folder or Path(temporary), stack)
            reports = run(models, options)
        getattr(load_display, options.what)(reports)
    if options.out:
        about = {"machine": machine() | {"date": datetime.now(UTC).date().isoformat()}, "model": options.model}
        options.out.write_text(json.dumps({**about, options.what: reports}, indent=2) + "\n", encoding="utf-8")
        if options.what == "arrivals":
            load_display.plot(reports, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
