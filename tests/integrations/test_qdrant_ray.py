"""examples/ray_ingest.py with two actors, against a server on loopback, compared with ingestions of one process."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_edge", reason="the embedded engine is not installed")
pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from pyarrow import Table, parquet

from qdrant_qwen_retrieval import QdrantIndex
from qwen_retrieval import Embedder

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ray_ingest.py"
ROWS = [
    {"key": f"item {number}", "body": f"Function {number} copies a file. " * (1 + number % 3 * 20), "year": number}
    for number in range(24)
]
UNUSABLE = {"key": "item 24", "body": "", "year": 24}
DRIVER = """
import json, runpy, sys, ray
folder, *runs = sys.argv[1:]
ray.init(num_cpus=3, object_store_memory=80 * 2**20, include_dashboard=False, _temp_dir=folder, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
for arguments in runs:
    sys.argv = json.loads(arguments)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Where a server listens: a process of its own, in front of the embedded engine."""
    command = [sys.executable, "-m", "tests.qdrant_server", "--path", str(tmp_path_factory.mktemp("server"))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()


@dataclass(frozen=True)
class Cluster:
    """Ray on this machine.

    Attributes:
        folder: Where it puts its files; its sockets allow no long path.
        token: Every process of it has this in its environment.
    """

    folder: str
    token: str

    def processes(self) -> list[int]:
        """Those that run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it has ended meanwhile, or is somebody else's
                if self.token.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """What the test may start; whatever still runs afterwards is ended."""
    cluster = Cluster(tempfile.mkdtemp(prefix="ray", dir="/tmp"), secrets.token_hex(16))
    yield cluster
    for process in cluster.processes():
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(cluster.folder)


def open_index(server: dict[str, Any], collection: str) -> QdrantIndex:
    embedder = Embedder.from_pretrained("demo", dtype="float32")
    return QdrantIndex(collection, embedder=embedder, url=server["url"], grpc_port=server["grpc_port"])


def ingest(index: QdrantIndex, source: Any) -> Any:
    return index.ingest(source, id_field="key", text_field="body")


def points(index: QdrantIndex) -> dict[str, Any]:
    found, _ = index.client.scroll(index.name, limit=1000, with_payload=True, with_vectors=True)
    return {str(point.id): point for point in found}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_actors_do_what_one_process_does_and_may_be_mixed_with_it(
    server: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "records.parquet"
    parquet.write_table(Table.from_pylist([*ROWS, UNUSABLE]), file)
    with open_index(server, "single") as single:
        expected_report = ingest(single, file)
        expected = points(single)
    with open_index(server, "ray") as index:
        before = ingest(index, ROWS[:5])  # a local ingestion that was stopped after five records

        command = [str(EXAMPLE), str(file), "--url", server["url"], "--grpc-port", str(server["grpc_port"])]
        command += ["--collection", "ray", "--rows", "5", "--id-field", "key", "--text-field", "body"]
        command += ["--dtype", "float32", "--actors"]
        runs = [json.dumps([*command, actors]) for actors in "21"]  # one is enough where nothing is left to do
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": cluster.token,  # or Ray would write one into the home folder
        }
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, cluster.folder, *runs],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

        failed, first, failed_again, second = done.stdout.splitlines()
        reports = [json.loads(line) for line in (first, second)]
        assert failed == failed_again
        assert failed.startswith("failed: item 24: ")
        assert [report["records"] for report in reports] == [25, 25]
        assert [report["failed"] for report in reports] == [1, 1]
        assert [report["points"] for report in reports] == [expected_report.points] * 2
        assert reports[0]["skipped"] == before.embedded
        assert reports[0]["embedded"] == expected_report.embedded - before.embedded
        assert (reports[1]["embedded"], reports[1]["skipped"]) == (0, expected_report.embedded)

        found = points(index)
        assert {id: point.payload for id, point in found.items()} == {id: one.payload for id, one in expected.items()}
        for id, point in found.items():
            np.testing.assert_allclose(point.vector, expected[id].vector, atol=1e-5)
        after = ingest(index, file)
        assert (after.embedded, after.skipped) == (0, expected_report.embedded)

    deadline = time.monotonic() + 30
    while cluster.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.processes() == []


def test_without_ray_the_example_says_what_to_install(tmp_path: Path) -> None:
    code = "import runpy, sys; sys.modules['ray'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith('ray is not installed; run: pip install "qwen-retrieval[ray]"\n')
