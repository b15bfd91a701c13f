"""What the README shows is what happens.

After a change of the demo models, ``python tests/test_readme.py`` puts what they print now into the README.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
LINES = README.splitlines()
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
PYTHON_BLOCKS = BLOCK.findall(README)
NUMBER = re.compile(r"-?\d+\.\d+")


def output(code: str, folder: Path) -> str:
    """What a program prints, which must be nothing but that."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(path: Path) -> str:
    """What a file says."""
    return path.read_text("utf-8")


def line_of(text: str) -> int:
    """The number of the first line that contains `text`, from 1."""
    return next(number for number, line in enumerate(LINES, start=1) if text in line)


@pytest.mark.parametrize(("code", "printed"), PYTHON_BLOCKS, ids=["embed-and-rerank", "qdrant", "frameworks", "python"])
def test_python_blocks_print_what_the_readme_says(code: str, printed: str, tmp_path: Path) -> None:
    found = output(code, tmp_path)
    assert NUMBER.sub("#", found).splitlines() == NUMBER.sub("#", printed).splitlines()
    numbers = [float(number) for number in NUMBER.findall(found)]
    # bfloat16 where the processor has it, float32 elsewhere: near 0.5 a probability moves by up to 0.06
    assert numbers == pytest.approx([float(number) for number in NUMBER.findall(printed)], abs=0.1)


def test_no_python_block_is_without_its_output() -> None:
    assert README.count("```python\n") == len(PYTHON_BLOCKS)


def test_install_is_shown_by_line_20() -> None:
    assert line_of("pip install qwen-retrieval") <= 20


def test_embed_and_rerank_with_its_output_is_shown_by_line_40() -> None:
    code, printed = PYTHON_BLOCKS[0]
    assert len(code.strip().splitlines()) <= 10
    assert line_of(printed.strip().splitlines()[-1]) + 1 <= 40


def test_there_are_at_most_three_badges() -> None:
    assert README.count("[![") <= 3


def test_ci_calls_the_test_command_that_the_readme_names() -> None:
    assert re.search(r"^make test\b", README, re.MULTILINE)
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_make_targets_that_the_readme_names_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE)) <= set(targets)


def test_the_commands_that_the_readme_names_exist() -> None:
    from qwen_retrieval.cli import app

    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {str(group.name) for group in app.registered_groups}
    assert set(re.findall(r"^qwen-retrieval (\w+)", README, re.MULTILINE)) <= names


def test_the_tests_that_the_readme_names_exist() -> None:
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "core/qwen_retrieval/testing").glob("*.py")]
    defined = set(re.findall(r"^\s*(?:async )?(?:def|class) (\w+)", "\n".join(map(read, sources)), re.MULTILINE))
    named = set(re.findall(r"`([Tt]est_?\w+)`", README))
    assert len(named) > 25
    assert named <= defined


def test_every_promise_of_the_table_names_a_test() -> None:
    table = README.split("| promise | elsewhere | tests |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"`[Tt]est\w+`", row.split(" | ")[-1])] == []


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`from ([\w.]+) import", README))))
def test_the_imports_that_the_readme_names_work(module: str) -> None:
    names = {
        name
        for line in re.findall(rf"`from {re.escape(module)} import ([\w, ]+)`", README)
        for name in line.split(", ")
    }
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:tests|core|examples|benchmarks|demo)/[\w./-]+)`", text)
    assert [path for path in links + files if not (ROOT / path).exists()] == []


if __name__ == "__main__":
    refreshed = BLOCK.sub(lambda block: f"```python\n{block[1]}```\n\n```text\n{output(block[1], ROOT)}```", README)
    (ROOT / "README.md").write_text(refreshed, "utf-8")
