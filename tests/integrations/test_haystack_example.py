"""examples/haystack_rag.py and the YAML file beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from haystack import Pipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "haystack_rag.py"
YAML = EXAMPLE.with_suffix(".yaml")


def run(*arguments: str | Path, cwd: Path) -> list[str]:
    environment = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "false"}
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    """What the example prints, and the file that it writes."""
    folder = tmp_path_factory.mktemp("example")
    printed = run(EXAMPLE, "pipeline.yaml", cwd=folder)
    return printed, (folder / "pipeline.yaml").read_text("utf-8")


def test_prints_three_hits_and_the_beginning_of_the_prompt(output: tuple[list[str], str]) -> None:
    printed, _ = output
    assert len(printed) == 9
    scores = [float(line.split()[0]) for line in printed[:3]]
    assert scores == sorted(scores, reverse=True)
    assert printed[0].endswith("rmtree    shutil.rmtree deletes an entire directory tree.")
    assert printed[4] == "Answer the question with the documents."
    assert printed[6] == "1. shutil.rmtree deletes an entire directory tree."


def test_the_yaml_file_is_the_pipeline_of_the_example(output: tuple[list[str], str]) -> None:
    """After loading both: the file leaves out parameters of the store that older versions of Haystack do not know."""
    _, written = output
    assert Pipeline.loads(YAML.read_text("utf-8")).to_dict() == Pipeline.loads(written).to_dict()


def test_the_yaml_file_is_loaded_and_run_by_a_fresh_process(tmp_path: Path) -> None:
    code = """
import sys
from haystack import Document, Pipeline
with open(sys.argv[1], encoding="utf-8") as file:
    pipeline = Pipeline.load(file)
from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder
texts = ["math.sin returns the sine of x.", "shutil.rmtree deletes a directory tree.", "re.sub replaces a pattern."]
documents = QwenDocumentEmbedder(model="demo").run([Document(content=text) for text in texts])["documents"]
pipeline.get_component("retriever").document_store.write_documents(documents)
question = "How do I delete a folder?"
inputs = {"text_embedder": {"text": question}, "ranker": {"query": question}, "prompt_builder": {"question": question}}
print(pipeline.run(inputs)["prompt_builder"]["prompt"][0].text)
pipeline.close()
"""
    assert "1. shutil.rmtree deletes a directory tree." in run("-c", code, YAML, cwd=tmp_path)
