"""What the host does around an engine, with an engine that computes nothing: CPU time by stage, and who waits for whom.

    python -m benchmarks.host [--rounds 5] [--rate 500000] [--cores 16]

Stages are CPU time, so that other programs on the machine count little. "Rust" is what the tokenizer's own threads
take, which spreads over the cores; everything else is Python, of which a process executes one thread at a time. The
last part is wall time: an engine that sleeps as long as a device of `--rate` tokens per second would compute, and a
tokenizer whose results are looked up and that sleeps for its measured time divided by `--cores`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.workloads import PASSAGES, QUERIES, SEED, draw_lengths, prose
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.batching import dedupe, pack, sharing_order
from qwen_retrieval.specs import QWEN3_EMBEDDING, QWEN3_RERANKER, WEB_SEARCH, EmbeddingSpec, RerankingSpec
from qwen_retrieval.templates import EmbeddingTemplate, Encoded, RerankingTemplate, check_texts
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.types import FloatArray, TokenIds, Tokenizer
from qwen_retrieval.vectors import truncate_dimensions
from tests.real_tokenizer import build_tokenizers

EMBEDDING = EmbeddingSpec("Qwen/Qwen3-Embedding-0.6B", QWEN3_EMBEDDING, hidden_size=1024, max_length=32_768)
RERANKING = RerankingSpec("Qwen/Qwen3-Reranker-0.6B", QWEN3_RERANKER, max_length=32_768)
BATCH_TOKENS = 16_384
TOKENIZATION = 1.7e-6
"""Seconds of CPU time per token that `look_up` pretends to take, as the first part measures them."""


class PacedEngine:
    """Lays a batch out as the real engines do, then sleeps as long as a device of some speed would compute."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.slept = 0.0
        self.computed = 0
        self.span: list[float] = []  # when the call began, and when its last batch was done
        self._rows = np.random.default_rng(0).standard_normal((BATCH_TOKENS, 1024), dtype=np.float32)

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        """Random rows, (n, 1024)."""
        self.span = [*self.span[:1], time.perf_counter()]
        tokens = pack(batch).computed_tokens
        start = time.perf_counter()
        time.sleep(tokens / self.rate)
        self.slept += time.perf_counter() - start
        self.computed += tokens
        self.span = [self.span[0], time.perf_counter()]
        return self._rows[: len(batch)].copy()

    def score(self, batch: list[TokenIds]) -> FloatArray:
        """Random numbers, (n,)."""
        return self.embed(batch)[:, 0]


class LookUp:
    """A tokenizer whose results are kept: what a call takes is the lists it makes, and a sleep for the rest."""

    def __init__(self, tokenizer: Tokenizer, cores: int) -> None:
        self.size, self.control_tokens = tokenizer.size, tokenizer.control_tokens
        self.decode, self.token_id = tokenizer.decode, tokenizer.token_id
        self._tokenizer = tokenizer
        self._cores = cores
        self._kept: dict[tuple[str, bool], array[int]] = {}

    def encode(self, texts: Sequence[str], *, control_tokens: bool) -> list[TokenIds]:
        """See `Tokenizer.encode`."""
        missing = [text for text in texts if (text, control_tokens) not in self._kept]
        for text, ids in zip(missing, self._tokenizer.encode(missing, control_tokens=control_tokens), strict=True):
            self._kept[text, control_tokens] = array("I", ids)
        found = [self._kept[text, control_tokens] for text in texts]
        time.sleep(TOKENIZATION * sum(map(len, found)) / self._cores)
        return [ids.tolist() for ids in found]


def texts(tokenizer: HubTokenizer, lengths: list[int], seed: int = SEED) -> list[str]:
    """Pieces of prose of these lengths in tokens, give or take a merge at the seams."""
    [ids] = tokenizer.encode([prose()], control_tokens=False)
    rng = random.Random(seed)
    starts = [rng.randrange(len(ids) - length) for length in lengths]
    return [tokenizer.decode(ids[start : start + n]).strip() for start, n in zip(starts, lengths, strict=True)]


def cpu_time(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of this thread, and of all other threads."""
    here, elsewhere = [], []
    for _ in range(rounds):
        process, thread = time.process_time(), time.thread_time()
        work()
        here.append(time.thread_time() - thread)
        elsewhere.append(time.process_time() - process - here[-1])
    return statistics.median(here), statistics.median(elsewhere)


def stages(name: str, encode: Callable[[int, int], list[Encoded]], count: int, at_once: int, rounds: int) -> None:
    """Print the CPU time of each step for `count` inputs, `at_once` of which make a batch."""
    starts = range(0, count, at_once)
    batches = [[one.ids for one in encode(start, start + at_once)] for start in starts]
    tokens = sum(len(ids) for batch in batches for ids in batch)
    rows = [np.random.default_rng(0).standard_normal((len(batch), 1024), dtype=np.float32) for batch in batches]
    work: dict[str, Callable[[], object]] = {
        "encode": lambda: [encode(start, start + at_once) for start in starts],
        "sharing_order": lambda: [sharing_order(batch) for batch in batches],
        "dedupe": lambda: [dedupe(batch, key=tuple) for batch in batches],
        "pack": lambda: [pack(batch) for batch in batches],
        "finish": lambda: [truncate_dimensions(part, 1024) for part in rows],
    }
    for step, run in work.items():
        here, elsewhere = cpu_time(run, rounds)
        print(
            f"{name:24} {step:14} Python {1e6 * here / count:8.2f} us/input {1e9 * here / tokens:7.1f} ns/token   "
            f"Rust {1e6 * elsewhere / count:8.2f} us/input {1e9 * elsewhere / tokens:7.1f} ns/token",
            flush=True,
        )


def paced(name: str, engine: PacedEngine, call: Callable[[], object], rounds: int) -> None:
    """Print how long the engine waited for the host."""
    call()  # fills the look-up
    idle, here = [], []
    for _ in range(rounds):
        engine.slept, engine.computed, engine.span = 0.0, 0, [time.perf_counter()]
        start = time.process_time()
        call()
        idle.append(1 - engine.slept / (engine.span[1] - engine.span[0]))
        here.append((time.process_time() - start) / engine.computed)
    print(
        f"{name:24} engine idle {100 * statistics.median(idle):5.1f} % "
        f"({100 * min(idle):.1f} - {100 * max(idle):.1f}), "
        f"Python {1e9 * statistics.median(here):.0f} ns per computed token",
        flush=True,
    )


def latency(name: str, call: Callable[[str], object], queries: list[str]) -> None:
    """Print CPU and wall time of a call with a single query."""
    cpu, wall = [], []
    for query in queries:
        start, process = time.perf_counter(), time.process_time()
        call(query)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - process)
    print(
        f"{name:24} CPU {1e6 * statistics.median(cpu):.0f} us, wall {1e6 * statistics.median(wall):.0f} us "
        f"(best {1e6 * min(wall):.0f})",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=500_000, help="tokens per second of the device")
    parser.add_argument("--cores", type=int, default=16, help="cores that tokenise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizers(Path(folder))
        first = HubTokenizer.from_folder(Path(folder) / "embedding")
        second = HubTokenizer.from_folder(Path(folder) / "reranker")
    documents = texts(first, draw_lengths(PASSAGES, 10_000, "documents"))
    long_documents = texts(first, [8_000] * 16)
    queries = texts(first, draw_lengths(QUERIES, 2_000, "queries"), SEED + 1)
    pairs = [(query, text) for place, query in enumerate(queries[:64]) for text in documents[100 * place :][:100]]

    embedding, reranking = EmbeddingTemplate(first, EMBEDDING), RerankingTemplate(second, RERANKING)
    rounds = options.rounds
    here, _ = cpu_time(lambda: (check_texts("documents", documents), dedupe(documents)), rounds)
    print(f"{'W1 documents':24} {'check, dedupe':14} Python {1e6 * here / len(documents):8.2f} us/input")
    stages("W1 documents", lambda i, j: embedding.encode_documents(documents[i:j]), 10_000, 200, rounds)
    stages("8,000-token documents", lambda i, j: embedding.encode_documents(long_documents[i:j]), 16, 2, rounds)
    stages("W5 queries", lambda i, j: embedding.encode_queries(queries[i:j], WEB_SEARCH), 2_000, 400, rounds)

    def encode_pairs(start: int, stop: int) -> list[Encoded]:
        part = pairs[start:stop]
        return reranking.encode_pairs([query for query, _ in part], [text for _, text in part], WEB_SEARCH)

    stages("W6 pairs", encode_pairs, 6_400, 100, rounds)

    engine = PacedEngine(1e15)
    with Embedder(engine, first, EMBEDDING) as embedder, Reranker(engine, second, RERANKING) as reranker:
        latency("W9 one query", lambda query: embedder.embed_queries([query]), queries[:500])
        latency("one pair", lambda query: reranker.score(query, documents[:1]), queries[:500])
    engine = PacedEngine(options.rate)
    known, known_pairs = LookUp(first, options.cores), LookUp(second, options.cores)
    with Embedder(engine, known, EMBEDDING) as embedder, Reranker(engine, known_pairs, RERANKING) as reranker:
        paced("W1 documents", engine, lambda: embedder.embed_documents(documents), rounds)
        paced("W5 queries", engine, lambda: embedder.embed_queries(queries), rounds)
        paced("8,000-token documents", engine, lambda: embedder.embed_documents(long_documents), rounds)
        paced("W6 in one call", engine, lambda: reranker.log_odds_of_pairs(pairs), rounds)
        calls = [(query, documents[100 * place :][:100]) for place, query in enumerate(queries[:64])]
        paced("W6 query by query", engine, lambda: [reranker.score(*call) for call in calls], rounds)


if __name__ == "__main__":
    main()
