"""The command: its options, its tables, files that are whole or absent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.cli import app
from qwen_retrieval.cli.evaluate import parse_instructions
from qwen_retrieval.evaluation import Evaluation
from tests.command import RUNNER, Loads, fails, run
from tests.evaluation import small


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loads:
    """Fake models, and the test set in the folder `commands` of an otherwise empty current directory."""
    fakes = Loads()
    monkeypatch.setattr(Embedder, "from_pretrained", fakes.embedder)
    monkeypatch.setattr(Reranker, "from_pretrained", fakes.reranker)
    monkeypatch.chdir(tmp_path)
    small.write_beir(tmp_path / "commands")
    return fakes


def test_a_beir_folder_becomes_tables_and_advice(loads: Loads) -> None:
    printed = run("evaluate", "commands", "--model", "demo", "--reranker", "demo", "--rerank-depth", "2,5",
                  "--dimensions", "64,16", "--quantization", "none,int8", "--json", "all.json")  # fmt: skip
    assert "commands: 8 queries, 12 documents" in printed
    result = Evaluation.from_json(Path("all.json").read_text("utf-8"))
    for system in result.systems:
        row = next(line for line in printed.splitlines() if line.startswith(f"  {system.name}  "))
        assert row.removeprefix(f"  {system.name}").split()[:5] == [f"{mean:.4f}" for mean in system.means.values()]
    assert all(f"{advice.topic}: {advice.text}" in printed for advice in result.advice)
    assert [advice.topic for advice in result.advice][:2] == ["data", "storage"]
    assert loads.names == ["demo", "demo"]
    assert not list(Path().glob(".*"))  # no unfinished file


def test_own_questions_are_evaluated_and_json_goes_to_stdout_alone() -> None:
    Path("docs.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n', "utf-8")
    Path("q.jsonl").write_text('{"query": "one", "relevant": [1]}\n', "utf-8")
    printed = run("evaluate", "--questions", "q.jsonl", "--corpus", "docs.jsonl", "--bm25-language", "off",
                  "--instruction", "none,default", "--json", "-")  # fmt: skip
    result = Evaluation.from_json(printed)
    assert [system.name for system in result.systems] == ["embedder 64", "embedder 64, instruction default"]
    assert result.setup.reranker is None


def test_notes_on_the_data_are_warnings() -> None:
    Path("docs.jsonl").write_text('{"id": 1, "text": "one"}\n', "utf-8")
    rows = '{"query": "one", "relevant": [1, 7]}\n{"query": "two", "relevant": []}\n'
    Path("q.jsonl").write_text(rows, "utf-8")
    result = RUNNER.invoke(app, ["evaluate", "--questions", "q.jsonl", "--corpus", "docs.jsonl"])
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: 1 queries without a relevant document were left out: '2'",
        "warning: 1 of 2 relevant documents are not in the corpus and count as not found: '7'",
    ]
    said = [line for line in result.stdout.splitlines() if line.startswith(("data: ", "bm25: "))]
    assert [line.split(":")[0] for line in said] == ["data", "data", "data", "bm25"]  # before what they qualify
    assert said[0] == "data: 1 queries without a relevant document were left out: '2'"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(["none,default"], {"none": "", "default": None}, id="names"),
        pytest.param(["code_search", "SciFact"], {"code_search": "code_search", "SciFact": "SciFact"}, id="presets"),
        pytest.param(["Find a, then b"], {"Find a, then b": "Find a, then b"}, id="sentence"),
        pytest.param(["mine=Find a, b=c"], {"mine": "Find a, b=c"}, id="named"),
    ],
)
def test_instructions_are_names_sentences_or_named_sentences(
    values: list[str], expected: dict[str, str | None]
) -> None:
    assert parse_instructions(values) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no data"),
        pytest.param(["commands", "--questions", "q.jsonl"], id="both"),
        pytest.param(["--questions", "q.jsonl"], id="no corpus"),
        pytest.param(["commands", "--dimensions", "many"], id="no integer"),
        pytest.param(["commands", "--instruction", "none,none"], id="twice"),
        pytest.param(["commands", "--instruction", "none,code_serch"], id="misspelt name"),
        pytest.param(["commands", "--rerank-instruction", "Translate"], id="unknown name"),
        pytest.param(["commands", "--instruction", "default,none,mine=Find it."], id="names and a sentence"),
        pytest.param(["commands", "--instruction", "mine=Find it.,none"], id="a sentence and a name"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments: list[str], loads: Loads) -> None:
    run("evaluate", *arguments, code=2)
    assert loads.asked == []


@pytest.mark.parametrize("module", ["pytrec_eval", "bm25s", "Stemmer", "jinja2"])
def test_what_is_not_installed_is_said_before_a_model_is_loaded(
    module: str, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "qwen_retrieval.evaluation.report", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert 'pip install "qwen-retrieval[evaluate]"' in fails("evaluate", "commands", "--html", "report.html")
    assert loads.asked == []


def test_unknown_measures_and_stemmers_are_refused_before_a_model_is_loaded(loads: Loads) -> None:
    assert fails("evaluate", "commands", "--metrics", "ndcg").startswith("error: a metric must be ndcg@k")
    assert fails("evaluate", "commands", "--bm25-language", "klingon").startswith("error: language must be none or")
    assert loads.asked == []


def test_what_cannot_be_read_or_written_is_said_before_a_model_is_loaded(loads: Loads) -> None:
    with Path("commands/queries.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    assert "line 9 of commands/queries.jsonl has no field 'text'" in fails("evaluate", "commands")
    assert fails("evaluate", "nowhere") == "error: nowhere has no judgements qrels/test.tsv"
    small.write_beir(Path("good"))
    assert fails("evaluate", "good", "--json", "no/where.json") == "error: no: no such directory"
    assert fails("evaluate", "good", "--quantization", "int4").startswith("error: quantizations must be among")
    assert loads.asked == []


def test_an_interruption_leaves_no_file_and_keeps_the_cache_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_retrieval.evaluation.sweep.search", interrupted)
    assert "interrupted" in run("evaluate", "commands", "--json", "all.json", "--cache", "kept", code=130)
    assert sorted(path.name for path in Path().iterdir()) == ["commands", "kept"]
    assert all(path.suffix == ".npy" for path in Path("kept").rglob("*") if path.is_file())


@pytest.mark.parametrize("library", ["bm25s", "Stemmer", "pytrec_eval"])
def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    line = fails("evaluate", "commands")
    assert line == f'error: {library} is not installed; run: pip install "qwen-retrieval[evaluate]"'


def test_the_results_are_plain_json() -> None:
    assert json.loads(run("evaluate", "commands", "--json", "-"))["schema"] == 1
