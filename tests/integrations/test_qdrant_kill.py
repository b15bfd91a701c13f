"""kill -9 amid ingestions, again and again: nothing is lost, nothing is there twice, nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from qdrant_qwen_retrieval.report import Progress
from qdrant_qwen_retrieval.stores import open_store
from qwen_retrieval.errors import IngestError
from tests.integrations import qdrant_victim
from tests.integrations.qdrant_parts import assert_holds, make_embedder, open_collection, points_of, run

KILLS = 12
SEED = 4
PATIENCE = 60.0  # seconds; nothing here takes one

Run = list[tuple[str, Any]]


class Nursery:
    """Starts victims, which write into the file `log`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder
        self._runs = 0

    def ingest(self, version: int, kill: Callable[[int, Path], None] | None = None) -> Run:
        """One ingestion, whole or until `kill` has done its work. Returns what it has logged."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._runs += 1
        log = self._folder / f"{self._runs}.log"
        order = {"store": str(self._folder / "store"), "log": str(log), "version": version}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        victim = int(self._process.stdout.readline())
        if kill is not None:
            kill(victim, log)
        assert self._process.stdout.readline() == "gone\n"
        return entries(log)


def entries(log: Path) -> Run:
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def texts(log: Run, kind: str) -> list[str]:
    return [text for name, content in log if name == kind for text in content]


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with nursery_in(tmp_path) as nursery:
        yield nursery


@contextmanager
def nursery_in(folder: Path) -> Iterator[Nursery]:
    process = subprocess.Popen(
        [sys.executable, qdrant_victim.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Nursery(process, folder)
    finally:
        process.communicate()  # its input ends, and so does it
        assert process.returncode == 0


def killer(chance: random.Random) -> Callable[[int, Path], None]:
    """Kills a victim a moment after some of its writes were acknowledged, sometimes with the process of its engine."""
    writes, moment, with_engine = chance.randrange(7), chance.uniform(0, 0.03), chance.random() < 0.5

    def kill(victim: int, log: Path) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            done = entries(log)
            kinds = [kind for kind, _ in done]
            if "done" in kinds or kinds.count("acknowledged") + ("stored" in kinds) > writes:
                break
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moment)
        if with_engine:
            with suppress(ProcessLookupError):
                os.kill(next(content for kind, content in done if kind == "engine"), signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    return kill


@pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forked")
def test_killed_again_and_again_an_ingestion_is_completed_without_loss_and_without_doing_anything_twice(
    nursery: Nursery, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    acknowledged: set[str] = set()
    killed = 0
    for attempt in range(KILLS):
        version = 1 if attempt < KILLS // 2 else 2
        if attempt == KILLS // 2:  # the second version meets a store where the first was completed
            acknowledged = check(nursery.ingest(1), acknowledged, 1)
        log = nursery.ingest(version, killer(chance))
        killed += log[-1][0] != "done"
        acknowledged = check(log, acknowledged, version)
    last = nursery.ingest(2)
    check(last, acknowledged, 2)
    assert killed >= KILLS // 2, "most runs were over before they were killed"
    assert last[-1][1]["failed"] == 0
    assert_equals_a_clean_run(tmp_path / "store")
    again = nursery.ingest(2)
    assert texts(again, "embedded") == []


def test_when_the_engine_dies_the_run_ends_at_once_and_the_next_one_completes_it(tmp_path: Path) -> None:
    records = qdrant_victim.corpus(1)
    with make_embedder() as embedder:
        store = open_store(tmp_path / "store")
        told = 0

        def kill_engine(_: Progress) -> None:
            nonlocal told
            told += 1
            if told == 3:
                os.kill(cast(Any, store.client)._client._store.engine.pid, signal.SIGKILL)

        with pytest.raises(IngestError, match=r"killed by signal 9.* So far .* chunks written"):
            run(open_collection(store, embedder), embedder, records, batch_size=16, on_progress=kill_engine)
        store.close()
        store = open_store(tmp_path / "store")
        report = run(open_collection(store, embedder), embedder, records)
        assert report.skipped >= 2 * 16 - 4
        assert report.skipped + report.embedded == report.points
        assert_holds(open_collection(store, embedder), embedder, records)
        store.close()


def check(log: Run, acknowledged: set[str], version: int) -> set[str]:
    """Compare what a run has found and done with what was acknowledged before; returns what is acknowledged now."""
    stored, embedded = texts(log, "stored"), texts(log, "embedded")
    wanted = {text for one in qdrant_victim.corpus(version) for text in one.chunks or ()}
    if "stored" not in [kind for kind, _ in log]:  # killed before it could look
        return acknowledged
    assert len(stored) == len(set(stored)), "a chunk is stored twice"
    assert acknowledged & wanted <= set(stored), "what was acknowledged is lost"
    assert not set(embedded) & set(stored), "what was stored is embedded again"
    assert len(embedded) == len(set(embedded)), "a text is embedded twice"
    return set(stored) | set(texts(log, "acknowledged"))


def assert_equals_a_clean_run(folder: Path) -> None:
    """The store has the same points as one into which the second version was ingested at once."""
    expected = qdrant_victim.corpus(2)
    with make_embedder() as embedder:
        clean = open_collection(embedder=embedder)
        run(clean, embedder, expected)
        store = open_store(folder)
        try:
            collection = open_collection(store, embedder)
            assert_holds(collection, embedder, expected)
            found, wanted = points_of(collection), points_of(clean)
        finally:
            store.close()
    assert {name: (point.id, point.payload) for name, point in found.items()} == {
        name: (point.id, point.payload) for name, point in wanted.items()
    }
    for name, point in wanted.items():
        np.testing.assert_allclose(found[name].vector, point.vector, atol=1e-6)  # type: ignore[arg-type]
