"""The benchmark's workloads against a server that runs already.

    python -m benchmarks.peers.servers URL --api vllm-rerank --server "vLLM 0.33.0" --hardware "1 x H200" \
        [--workloads W6 W8] [--concurrency 8] [--batch 100] [--rounds 5] [--folder weights] [--out FILE]

How to start the servers, with the same random weights as ours: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.checkpoints import MODELS, write_tokenizers
from benchmarks.peers.servers.apis import APIS, Api, Request
from benchmarks.peers.servers.client import Client, Round
from benchmarks.workloads import WORKLOADS, Item, Workload, Writer, calls, default_items, select, write_items
from qwen_retrieval.specs import QWEN3_EMBEDDING, QWEN3_RERANKER

WARM_UP = 4
"""Requests before the clock starts."""


def requests_of(workload: Workload, items: list[Item], batch: int) -> list[Request]:
    """The workload as HTTP requests of at most `batch` texts; those of a request to score have one query."""
    found = []
    for call in calls(workload, items):
        for start in range(0, len(call), batch):
            found.append(_request(workload, call[start : start + batch]))
    return found


def _request(workload: Workload, items: list[Item]) -> Request:
    if workload.task == "pairs":
        pairs = cast("list[tuple[str, str]]", items)
        return Request(tuple(document for _, document in pairs), query=pairs[0][0])
    texts = cast("list[str]", items)
    if workload.task == "documents":
        return Request(tuple(texts))
    template, instruction = QWEN3_EMBEDDING.query_template, QWEN3_EMBEDDING.default_instruction
    return Request(tuple(template.format(instruction=instruction, query=text) for text in texts))


def count_tokens(requests: list[Request], tokenizer: Tokenizer) -> int:
    """Tokens that the model is given, templates and end tokens included, counted once for each pair."""
    template, instruction = QWEN3_RERANKER.templates[0], QWEN3_RERANKER.default_instruction
    texts = []
    for request in requests:
        head = ""
        if request.query is not None:
            parts = template.instruction + template.query
            head = template.prefix + parts.format(instruction=instruction, query=request.query)
        tail = "" if request.query is None else template.suffix
        body = "{document}" if request.query is None else template.document
        texts += [head + body.format(document=text) + tail for text in request.texts]
    return sum(len(one.ids) for one in tokenizer.encode_batch_fast(texts))


def measure(options: argparse.Namespace, workload: Workload, items: list[Item], tokenizer: Tokenizer) -> dict[str, Any]:
    """Warm up, send everything in each round, and make the entry of the result file."""
    requests = requests_of(workload, items, options.batch)
    concurrency = 1 if workload.is_latency else options.concurrency
    client = Client(options.url, APIS[options.api], concurrency=concurrency, model=options.served_name)
    client.run(requests[:WARM_UP])
    rounds = [client.run(requests) for _ in range(options.rounds)]
    return report(options.server, workload, requests, count_tokens(requests, tokenizer), rounds)


def report(
    server: str, workload: Workload, requests: list[Request], tokens: int, rounds: list[Round]
) -> dict[str, Any]:
    """One entry of the result file; the keys are those of the other results."""
    items = sum(len(request.texts) for request in requests)
    seconds = [one.seconds for one in rounds]
    middle = float(np.median(seconds))
    latencies = np.concatenate([one.latencies for one in rounds])
    return {
        "workload": workload.name,
        "task": workload.task,
        "items": items,
        "requests": len(requests),
        "given_tokens": tokens,
        "seconds": {server: seconds},
        "items_per_second": {server: items / middle},
        "tokens_per_second": {server: tokens / middle},
        "latency_seconds": {f"p{share}": float(np.percentile(latencies, share)) for share in (50, 90, 99)},
        "decoding_seconds": float(np.median([one.decoding for one in rounds])),
    }


def show(reports: list[dict[str, Any]]) -> None:
    """The table in the terminal."""
    table = Table("workload", "items", "items/s (median)", "tokens/s", "spread", "p50", "p99 of a request")
    for one in reports:
        ((server, seconds),) = one["seconds"].items()
        table.add_row(
            one["workload"],
            str(one["items"]),
            f"{one['items_per_second'][server]:,.1f}",
            f"{one['tokens_per_second'][server]:,.0f}",
            f"{min(seconds):.3g} - {max(seconds):.3g} s",
            f"{1e3 * one['latency_seconds']['p50']:.1f} ms",
            f"{1e3 * one['latency_seconds']['p99']:.1f} ms",
        )
    Console(width=120).print(table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, or what stands for it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.servers", description="benchmark a server")
    parser.add_argument("url", help="such as http://localhost:8000")
    parser.add_argument("--api", choices=sorted(APIS), required=True)
    parser.add_argument("--server", required=True, help='name and version, such as "vLLM 0.33.0"')
    parser.add_argument("--hardware", required=True, help='where it runs, such as "1 x H200, 16 cores"')
    parser.add_argument("--command", default="", help="how it was started, for the result file")
    parser.add_argument("--model", choices=MODELS, default="0.6B", help="which shape it serves")
    parser.add_argument("--served-name", help="the model's name in requests, for servers that ask for one")
    parser.add_argument("--workloads", nargs="+", help="default: all of W1, W5 to W9 that the API can do")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at the same time; W9 has one")
    parser.add_argument("--batch", type=int, default=32, help="texts of a request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of items")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu", help="decides the number of items")
    parser.add_argument("--folder", type=Path, default=Path("weights"), help="where the checkpoints lie")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def choose(api: Api, names: list[str] | None) -> list[Workload]:
    """The workloads that were asked for.

    Raises:
        ValueError: One is unknown, or is not what the API does.
    """
    if names is None:
        return [one for one in WORKLOADS if one.name in ("W1", "W5", "W6", "W7", "W8", "W9") and one.kind == api.kind]
    chosen = select(names)
    if wrong := [one.name for one in chosen if one.kind != api.kind]:
        raise ValueError(f"{api.path} is for {api.kind}, but {', '.join(wrong)} is not")
    return chosen


def main() -> None:
    """Measure, print, write."""
    options = parse()
    api = APIS[options.api]
    tokenizers = options.folder / "tokenizers"
    write_tokenizers(tokenizers)
    place = tokenizers / ("embedding" if api.kind == "embedding" else "reranker")
    writer, tokenizer = Writer.from_folder(place), Tokenizer.from_file(str(place / "tokenizer.json"))
    machine = {name: str(value) for name, value in vars(options).items() if name not in ("out", "folder")}
    machine |= {"client": f"Python {platform.python_version()}"}
    reports = []
    for workload in choose(api, options.workloads):
        items = write_items(workload, default_items(workload, options.device, options.model, options.scale), writer)
        reports.append(measure(options, workload, items, tokenizer))
        show(reports[-1:])
        if options.out:
            options.out.write_text(json.dumps({"machine": machine, "reports": reports}, indent=2) + "\n")
    show(reports)


if __name__ == "__main__":
    main()
