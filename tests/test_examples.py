"""Every example runs as it stands, offline, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qdrant_qwen_retrieval import describe

SCORE = re.compile(r"(?:relevance )?(\d\.\d+)")
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
ON_THEIR_OWN = [path for path in EXAMPLES if path.stem != "ray_ingest"]  # that one has tests of its own


def run(*arguments: str | Path, cwd: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "error", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("example", ON_THEIR_OWN, ids=lambda path: path.name)
def test_example_runs_without_a_warning_and_prints_the_best_first(example: Path, tmp_path: Path) -> None:
    found = [line for line in run(example, cwd=tmp_path) if SCORE.match(line)]
    scores = [float(match[1]) for line in found if (match := SCORE.match(line))]
    assert len(scores) >= 3
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert "shutil.rmtree" in found[0] or example.name == "search_folder.py"


def test_qdrant_ingest_keeps_the_collection_in_the_folder_it_is_given(tmp_path: Path) -> None:
    (example,) = (path for path in EXAMPLES if path.stem == "qdrant_ingest")
    lines = run(example, "store", cwd=tmp_path)
    records, embedded = (int(number) for number in re.findall(r"\d+", lines[0]))
    description = describe("python", path=tmp_path / "store")
    assert (description.records, description.points) == (records, embedded)
    assert records > 100
    assert lines[-1] == f"The second time 0 chunks are embedded, {embedded} are there already."


def test_search_folder_searches_the_folder_it_is_given(tmp_path: Path) -> None:
    (example,) = (path for path in EXAMPLES if path.stem == "search_folder")
    (tmp_path / "notes.md").write_text("# Backup\n\nCopy every file to the other disk.\n")
    (line,) = run(example, tmp_path, "copy a file", cwd=tmp_path)
    assert "notes.md#Backup" in line
