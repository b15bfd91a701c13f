"""Runs ingestions into an embedded store until it is killed: a nursery that forks one victim for each line it reads.

The libraries are imported once, before the forks. A victim is sent a JSON object with `store`, `log` and `version`, and
appends to the log, each as one line that is written at once: which texts it finds stored ("stored"), which it embeds
("embedded"), which points the store has acknowledged ("acknowledged"), and its end ("done").
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.stores import open_store
from tests.integrations.qdrant_parts import RecordingEngine, make_embedder, record, run

DELAY = 0.004
"""Seconds of a forward pass, so that a kill finds one under way."""


def corpus(version: int) -> list[Record]:
    """300 records; from the first version to the second they change, grow, shrink, vanish and appear."""
    records = []
    for number in range(100 * (version - 1), 300 + 100 * (version - 1)):
        size = (number + version) % 4 + 1 if number % 10 == 0 else number % 2 + 1
        texts = [f"text {number}, part {part}{' (new)' * (number % 7 == version)}" for part in range(size)]
        records.append(record(f"r{number}", *texts, version=version if number % 5 == 0 else 0))
    size = 60 if version == 1 else 40
    return [record("large", *(f"large {part}, {version * (part % 3)}" for part in range(size))), *records]


class LoggingEngine(RecordingEngine):
    def __init__(self, log: Any) -> None:
        super().__init__(delay=DELAY)
        self.log = log

    def embed(self, batch: list[Any]) -> Any:
        vectors = super().embed(batch)
        self.log("embedded", self.texts)
        self.texts = []
        return vectors


def ingest(store: str, log: str, version: int) -> None:
    """One whole ingestion of a version of the corpus."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(kind: str, content: Any) -> None:
        os.write(file, json.dumps([kind, content]).encode() + b"\n")

    opened = open_store(store)
    engine = LoggingEngine(write)
    embedder = make_embedder(engine)
    collection = Collection(opened, "test", embedder)
    write("engine", cast(Any, opened.client)._client._store.engine.pid)
    write("stored", stored_texts(collection))
    upsert = collection.client.upsert

    def logged(name: str, points: list[Any], **options: Any) -> Any:
        result = upsert(name, points, **options)
        write("acknowledged", [collection.layout.read(point.payload).text for point in points])
        return result

    collection.client.upsert = logged  # type: ignore[method-assign, assignment]
    report = run(collection, embedder, corpus(version), batch_size=16, workers=3, delete_missing=True)
    opened.close()
    embedder.close()
    write("done", report.to_dict())


def stored_texts(collection: Collection) -> list[str]:
    if not collection.exists():
        return []
    points, _ = collection.client.scroll(collection.name, limit=100_000)
    return [collection.layout.read(point.payload or {}).text for point in points]


def main() -> None:
    for line in sys.stdin:
        victim = os.fork()
        if not victim:
            try:
                ingest(**json.loads(line))
            finally:
                os._exit(0)
        print(victim, flush=True)
        os.waitpid(victim, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
