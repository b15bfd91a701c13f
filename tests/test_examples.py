"""Every example runs as it stands, offline, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qdrant_qwen_retrieval import describe

SCORE = re.compile(r"(?:relevance )?(\d\.\d+)")
EXAMPLES = {path.stem: path for path in (Path(__file__).parents[1] / "examples").glob("*.py")}
# One has tests of its own. The others run below with a folder of their own, and in .ci/run without: that takes long.
AS_THEY_STAND = sorted(EXAMPLES.keys() - {"ray_ingest", "qdrant_ingest", "search_folder"})


def run(*arguments: str | Path, cwd: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "error", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def best_of(lines: list[str]) -> str:
    """The first of at least three results, which must be the best one."""
    found = [line for line in lines if SCORE.match(line)]
    scores = [float(match[1]) for line in found if (match := SCORE.match(line))]
    assert len(scores) >= 3
    assert scores[:3] == sorted(scores[:3], reverse=True)
    return found[0]


@pytest.mark.parametrize("name", AS_THEY_STAND)
def test_example_runs_without_a_warning_and_prints_the_best_first(name: str, tmp_path: Path) -> None:
    assert "shutil.rmtree" in best_of(run(EXAMPLES[name], cwd=tmp_path))


def test_qdrant_ingest_keeps_the_collection_in_the_folder_it_is_given(tmp_path: Path) -> None:
    lines = run(EXAMPLES["qdrant_ingest"], "store", cwd=tmp_path)
    assert "heapq.nlargest" in best_of(lines)
    records, embedded = (int(number) for number in re.findall(r"\d+", lines[0]))
    description = describe("python", path=tmp_path / "store")
    assert (description.records, description.points) == (records, embedded)
    assert records > 100
    assert lines[-1] == f"The second time 0 chunks are embedded, {embedded} are there already."


def test_search_folder_searches_the_folder_it_is_given(tmp_path: Path) -> None:
    notes = {"Backup": "Copy every file to the other disk.", "Garden": "Water the roses.", "Music": "Practise scales."}
    for title, text in notes.items():
        (tmp_path / f"{title}.md").write_text(f"# {title}\n\n{text}\n")
    assert "Backup.md#Backup" in best_of(run(EXAMPLES["search_folder"], tmp_path, "copy a file", cwd=tmp_path))
