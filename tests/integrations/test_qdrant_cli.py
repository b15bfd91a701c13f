"""The commands that keep and search collections: ingest, search, collection, quickstart."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from qdrant_client import QdrantClient

from qdrant_qwen_retrieval import IngestReport, QdrantIndex, Record, settings
from qdrant_qwen_retrieval.layouts import LayoutName
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.cli import app
from qwen_retrieval.cli.ingest import Layout, Quantization
from qwen_retrieval.cli.quickstart import QUESTIONS
from qwen_retrieval.cli.search import parse_filter
from tests.command import RUNNER, Loads, fails, run
from tests.qdrant_server import serve

STORE = ("--store", "store")
HANDBOOK = (*STORE, "--collection", "handbook")
DEMO = ("--model", "demo")


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loads:
    """Fake models, an empty current directory, no settings from outside."""
    fakes = Loads()
    monkeypatch.setattr(Embedder, "from_pretrained", fakes.embedder)
    monkeypatch.setattr(Reranker, "from_pretrained", fakes.reranker)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return fakes


@pytest.fixture
def docs() -> Path:
    """A folder with a page of two sections."""
    folder = Path("docs")
    folder.mkdir()
    (folder / "a.md").write_text("# Sorting\n\nsort a list in place\n\n# Other\n\nopen a socket\n")
    return folder


@pytest.fixture
def rows() -> Path:
    """A JSON lines file of three records with metadata."""
    path = Path("rows.jsonl")
    texts = {"a": "sort a list in place", "b": "open a socket", "c": "sort a dictionary"}
    lines = [{"id": name, "text": text, "year": 2020 + at} for at, (name, text) in enumerate(texts.items())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ingest(*arguments: str) -> dict[str, Any]:
    """Run `ingest` with the demo model, and return its report."""
    report: dict[str, Any] = json.loads(run("ingest", *arguments, *HANDBOOK, *DEMO, "--json"))
    return report


def search(*arguments: str) -> list[dict[str, Any]]:
    """Run `search` for one query in the collection, and return its hits."""
    (result,) = json.loads(run("search", *arguments, *HANDBOOK, "--json"))
    hits: list[dict[str, Any]] = result["hits"]
    return hits


# --------------------------------------------------------------------------------------------------- ingest


def test_ingest_reports_what_it_did(rows: Path) -> None:
    report = ingest(str(rows))
    assert report.keys() == IngestReport().to_dict().keys()
    assert [report[name] for name in ("records", "chunks", "embedded", "points", "failed")] == [3, 3, 3, 3, 0]
    assert report["tokens"] > 0


def test_a_second_ingest_embeds_only_what_has_changed(rows: Path) -> None:
    ingest(str(rows))
    rows.write_text(rows.read_text().replace("open a socket", "close a socket"))
    report = ingest(str(rows))
    assert (report["embedded"], report["replaced"], report["skipped"], report["points"]) == (1, 1, 2, 3)


def test_ingest_deletes_what_is_gone_only_if_asked(rows: Path) -> None:
    ingest(str(rows))
    rows.write_text(rows.read_text().splitlines()[0])
    assert ingest(str(rows))["points"] == 3
    report = ingest(str(rows), "--delete-missing")
    assert (report["deleted"], report["points"]) == (2, 1)


def test_ingest_prints_a_summary_and_how_to_go_on(rows: Path) -> None:
    result = RUNNER.invoke(app, ["ingest", str(rows), *HANDBOOK, *DEMO])
    assert result.exit_code == 0
    for expected in ("handbook", "records", "chunks", "embedded", "skipped", "tokens", "3"):
        assert expected in result.stdout
    assert "qwen-retrieval search" in result.stderr
    assert "--store store --collection handbook" in result.stderr


def test_progress_is_silent_where_nobody_watches(rows: Path) -> None:
    result = RUNNER.invoke(app, ["ingest", str(rows), *HANDBOOK, *DEMO, "--json"])
    assert result.stderr == ""


def test_a_dry_run_loads_nothing_and_writes_nothing(rows: Path, loads: Loads) -> None:
    report = ingest(str(rows), "--dry-run")
    assert report["dry_run"]
    assert (report["records"], report["chunks"], report["embedded"]) == (3, 3, 3)
    assert loads.asked == []
    assert not Path("store").exists()
    ingest(str(rows))
    assert json.loads(run("ingest", str(rows), *STORE, "-c", "new", *DEMO, "--dry-run", "--json"))["embedded"] == 3
    assert [facts["collection"] for facts in json.loads(run("collection", *STORE, "--json"))] == ["handbook"]


def test_a_dry_run_tells_what_is_new_and_what_has_changed(rows: Path, loads: Loads) -> None:
    ingest(str(rows))
    loads.asked.clear()
    rows.write_text(rows.read_text().replace("open a socket", "close a socket") + '{"id": "d", "text": "new"}\n')
    report = ingest(str(rows), "--dry-run")
    assert [report[name] for name in ("embedded", "replaced", "skipped", "points")] == [2, 1, 2, 4]
    assert loads.asked == []
    assert ingest(str(rows))["embedded"] == 2


def test_records_that_fail_are_left_out_and_the_exit_code_says_so(rows: Path) -> None:
    rows.write_text(rows.read_text() + '{"id": "bad", "text": ""}\nno json\n')
    result = RUNNER.invoke(
        app, ["ingest", str(rows), *HANDBOOK, *DEMO, "--dead-letter", "dead.jsonl", "--json"], catch_exceptions=False
    )
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["failed"], report["points"]) == (2, 3)
    assert len(Path("dead.jsonl").read_text().splitlines()) == 2
    assert "failed records: 2; see dead.jsonl" in result.stderr
    assert "bad" in result.stderr


def test_options_of_a_new_collection_reach_it(docs: Path) -> None:
    options = ("--layout", "langchain", "--dimensions", "32", "--stages", "8", "--stages", "16", "--chunk-size", "0")
    run("ingest", str(docs), *HANDBOOK, *DEMO, *options, "--quantization", "scalar", "--hybrid")
    facts = json.loads(run("collection", *HANDBOOK, "--json"))
    assert facts["layout"] == "langchain"
    assert facts["dimensions"] == 32
    assert facts["stages"] == [8, 16]
    assert facts["quantization"] == "scalar"
    assert facts["hybrid"] is True


def test_the_fields_of_id_and_text_can_be_named() -> None:
    Path("in.jsonl").write_text('{"key": "a", "body": "sort a list", "lang": "en"}\n')
    ingest("in.jsonl", "--id-field", "key", "--text-field", "body")
    (hit,) = search("sort")
    assert (hit["record_id"], hit["text"], hit["metadata"]) == ("a", "sort a list", {"lang": "en"})


def test_the_choices_of_the_command_are_those_of_the_package() -> None:
    assert [layout.value for layout in Layout] == list(get_args(LayoutName))
    assert [quantization.value for quantization in Quantization] == list(get_args(settings.Quantization))


def test_a_missing_path_is_named_before_anything_is_opened(loads: Loads) -> None:
    assert fails("ingest", "gone", *HANDBOOK, *DEMO) == "error: gone: No such file or directory"
    assert loads.asked == []
    assert not Path("store").exists()


def test_a_collection_is_not_mixed_with_another_model(rows: Path) -> None:
    ingest(str(rows))
    line = fails("ingest", str(rows), *HANDBOOK, "--model", "0.6B")
    assert "demo" in line
    assert "Qwen/Qwen3-Embedding-0.6B" in line


def test_a_collection_keeps_its_model_and_length_without_being_told(rows: Path, loads: Loads) -> None:
    run("ingest", str(rows), *HANDBOOK, *DEMO, "--dimensions", "32", "--max-length", "64")
    loads.asked.clear()
    run("ingest", str(rows), *HANDBOOK)
    assert [(model, options["dimensions"], options["max_length"]) for model, options in loads.asked] == [
        ("demo", 32, 64)
    ]


def test_another_layout_is_refused(rows: Path) -> None:
    ingest(str(rows))
    line = fails("ingest", str(rows), *HANDBOOK, *DEMO, "--layout", "haystack")
    assert "compact" in line
    assert "haystack" in line


def test_a_locked_store_is_one_line(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdrant_qwen_retrieval.embedded.engine.LOCK_PATIENCE", 0.1)
    ingest(str(rows))
    code = "import sys; from qdrant_qwen_retrieval import EmbeddedQdrantClient\n"
    code += "client = EmbeddedQdrantClient('store'); print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    line = fails("search", "x", *HANDBOOK)
    other.communicate("")
    assert "store" in line
    assert "process" in line


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_server_is_used_like_a_folder(rows: Path, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = QdrantClient(":memory:")
    with serve(backend, api_key="open-sesame") as server:
        place = ("--url", server.url, *(("--rest",) if protocol == "rest" else ("--grpc-port", str(server.grpc_port))))
        line = fails("ingest", str(rows), *place, "-c", "handbook", *DEMO)
        assert "QDRANT_API_KEY" in line
        monkeypatch.setenv("QDRANT_API_KEY", "open-sesame")
        printed = RUNNER.invoke(app, ["ingest", str(rows), *place, "-c", "handbook", *DEMO])
        assert (printed.exit_code, "sesame" in printed.output) == (0, False)
        assert " ".join(place) in printed.stderr
        (result,) = json.loads(run("search", "open a socket", *place, "--json"))
        assert result["hits"][0]["record_id"] == "b"
        assert [facts["points"] for facts in json.loads(run("collection", *place, "--json"))] == [3]
        assert {request.transport for request in server.requests} == {protocol}
    backend.close()


def test_a_server_that_does_not_answer_is_one_line(rows: Path) -> None:
    line = fails("ingest", str(rows), "--url", "http://127.0.0.1:9", "--rest", "--collection", "x", *DEMO)
    assert "does not answer" in line


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["ingest", *HANDBOOK], id="no-path"),
        pytest.param(["ingest", ".", "--collection", "x"], id="no-store"),
        pytest.param(["ingest", ".", *STORE], id="no-collection"),
        pytest.param(["ingest", ".", *HANDBOOK, "--url", "http://localhost:6333"], id="two-stores"),
        pytest.param(["ingest", ".", *HANDBOOK, "--rest"], id="rest-to-a-folder"),
        pytest.param(["ingest", ".", *HANDBOOK, "--layout", "rhombic"], id="unknown-layout"),
        pytest.param(["ingest", ".", *HANDBOOK, "--api-key", "secret"], id="key-on-the-command-line"),
        pytest.param(["search"], id="no-query"),
        pytest.param(["search", "x", *STORE, "--folder", "."], id="store-and-folder"),
        pytest.param(["search", "x", "--collection", "handbook"], id="collection-of-no-store"),
        pytest.param(["search", "x", *HANDBOOK, "--filter", "year"], id="filter-without-value"),
        pytest.param(["search", "x", *HANDBOOK, "--filter", "=2021"], id="filter-without-field"),
        pytest.param(["search", "x", "--filter", "year=1", "--filter", "year>1"], id="value-and-range"),
        pytest.param(["search", "x", "--limit", "0"], id="limit-0"),
        pytest.param(["collection"], id="collections-of-no-store"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_nothing_to_stdout(arguments: list[str]) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


# The command with a fake model that presses Ctrl-C, as a terminal does it: for the whole group of processes.
DRIVER = """
import os, signal
from dataclasses import replace
from qwen_retrieval import Embedder
from qwen_retrieval.cli import main
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

def press(batch):
    if engine.inputs > 2048:
        os.killpg(0, signal.SIGINT)

def load(model, **options):
    return Embedder(engine, ByteTokenizer(), replace(fake_embedding_spec(), model="demo"))

engine = FakeEmbeddingEngine(fail_on=press)
Embedder.from_pretrained = load
main()
"""


def test_ctrl_c_keeps_what_is_there_and_the_next_run_goes_on(tmp_path: Path) -> None:
    lines = (json.dumps({"id": str(number), "text": f"text {number}"}) for number in range(5000))
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    arguments = [sys.executable, "-c", DRIVER, "ingest", "many.jsonl", *HANDBOOK, *DEMO]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, start_new_session=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "goes on from there" in done.stderr
    (facts,) = json.loads(run("collection", *STORE, "--json"))
    assert 0 < facts["points"] < 5000
    report = ingest("many.jsonl", "--dry-run")
    assert (report["skipped"], report["embedded"]) == (facts["points"], 5000 - facts["points"])


# --------------------------------------------------------------------------------------------------- search


def test_search_finds_what_was_ingested_with_the_model_that_it_was_ingested_with(rows: Path, loads: Loads) -> None:
    run("ingest", str(rows), *HANDBOOK, *DEMO, "--dimensions", "32", "--revision", "main")
    loads.asked.clear()
    hits = search("open a socket")
    assert hits[0]["record_id"] == "b"
    assert hits[0]["metadata"] == {"year": 2021}
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert sorted(hit["retrieval_rank"] for hit in hits) == [1, 2, 3]
    assert loads.names == ["demo", "demo"]
    assert loads.asked[0][1]["dimensions"] == 32


def test_search_is_for_what_the_collection_was_made_for(rows: Path, loads: Loads) -> None:
    embedder = loads.embedder("demo", instruction="code_search")
    with QdrantIndex("handbook", embedder=embedder, path="store") as index:
        index.ingest(rows)
        expected = [hit.retrieval_score for hit in index.search("sort")]
        other = [hit.retrieval_score for hit in index.search("sort", instruction="web_search")]
    assert [hit["retrieval_score"] for hit in search("sort", "--reranker", "none")] == pytest.approx(expected)
    other_found = search("sort", "--reranker", "none", "--instruction", "web_search")
    assert [hit["retrieval_score"] for hit in other_found] == pytest.approx(other)
    assert expected != pytest.approx(other)


def test_a_hit_explains_itself(rows: Path) -> None:
    ingest(str(rows))
    (hit,) = search("sort", "--limit", "1")
    assert hit.keys() == {
        "rank", "retrieval_rank", "relevance_score", "retrieval_score", "id", "record_id", "index", "point_id", "text",
        "metadata",
    }  # fmt: skip


def test_the_only_collection_needs_no_name(rows: Path) -> None:
    ingest(str(rows))
    (result,) = json.loads(run("search", "open a socket", *STORE, "--json"))
    assert result["hits"][0]["record_id"] == "b"
    run("ingest", str(rows), *STORE, "--collection", "second", *DEMO)
    line = fails("search", "open a socket", *STORE)
    assert "handbook" in line
    assert "second" in line


def test_search_prints_ranks_before_and_after_and_both_scores(rows: Path) -> None:
    ingest(str(rows))
    printed = run("search", "open a socket", *HANDBOOK)
    for expected in ("open a socket", "rank", "retrieved as", "relevance score", "retrieval score", "b", "sort a list"):
        assert expected in printed


def test_search_without_reranker_keeps_the_order_of_retrieval(rows: Path, loads: Loads) -> None:
    ingest(str(rows))
    loads.asked.clear()
    hits = search("sort", "--reranker", "none", "-n", "2")
    assert len(hits) == 2
    assert all(hit["relevance_score"] is None and hit["rank"] == hit["retrieval_rank"] for hit in hits)
    assert loads.names == ["demo"]


def test_search_is_filtered_by_metadata(rows: Path) -> None:
    ingest(str(rows))
    assert {hit["record_id"] for hit in search("sort", "--filter", "year>=2021")} == {"b", "c"}


def test_of_several_conditions_on_one_field_all_hold(rows: Path) -> None:
    ingest(str(rows))
    for conditions, expected in (
        (["year!=2020", "year!=x"], {"b", "c"}),
        (["year!=2020", "year!=2021"], {"c"}),
        (["year>=2021", "year>=2020"], {"b", "c"}),
        (["year>=2021", "year!=2022"], {"b"}),
    ):
        arguments = [argument for condition in conditions for argument in ("--filter", condition)]
        assert {hit["record_id"] for hit in search("sort", *arguments)} == expected


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param([], None, id="none"),
        pytest.param(["year=2021"], {"year": 2021}, id="number"),
        pytest.param(['year="2021"'], {"year": "2021"}, id="quoted-number"),
        pytest.param(["done=true"], {"done": True}, id="boolean"),
        pytest.param(["lang = en us "], {"lang": "en us"}, id="text"),
        pytest.param(["url=https://x?a=b"], {"url": "https://x?a=b"}, id="text-with-operators"),
        pytest.param(["year=2020", "year=2022"], {"year": [2020, 2022]}, id="any-of"),
        pytest.param(["year>2020", "year<=2022"], {"year": {"gt": 2020, "lte": 2022}}, id="between"),
        pytest.param(["year>=2020", "lang=en"], {"lang": "en", "year": {"gte": 2020}}, id="both"),
        pytest.param(["year!=2021"], {"year": {"not": 2021}}, id="not-equal"),
        pytest.param(["year=null"], {"year": None}, id="missing"),
        pytest.param(
            ["year!=2020", "lang=en", "year!=x", "year>=2019"],
            [{"lang": "en", "year": {"not": 2020}}, {"year": {"not": "x"}}, {"year": {"gte": 2019}}],
            id="neither-nor",
        ),
        pytest.param(
            ["year>=2", "year<9", "year>=3"], [{"year": {"gte": 2, "lt": 9}}, {"year": {"gte": 3}}], id="twice"
        ),
    ],
)
def test_a_filter_is_what_the_conditions_say(conditions: list[str], expected: Any) -> None:
    assert parse_filter(conditions) == expected


def test_a_model_that_the_collection_was_not_made_with_is_refused(rows: Path) -> None:
    ingest(str(rows))
    line = fails("search", "sort", *HANDBOOK, "--model", "4B")
    assert "demo" in line
    assert "Qwen/Qwen3-Embedding-4B" in line


def test_a_missing_store_or_collection_is_one_line_and_makes_nothing(rows: Path, loads: Loads) -> None:
    line = fails("search", "x", *HANDBOOK)
    assert "there is no store in 'store'" in line
    assert not Path("store").exists()
    Path("store").mkdir()
    assert "there is no store in 'store'" in fails("search", "x", *HANDBOOK)
    assert "there is no store in 'store'" in fails("collection", *STORE)
    assert not list(Path("store").iterdir())
    ingest(str(rows))
    loads.asked.clear()
    line = fails("search", "x", *STORE, "--collection", "other")
    assert "other" in line
    assert "handbook" in line
    assert loads.asked == []


def test_search_answers_each_query_from_the_folder(docs: Path) -> None:
    (docs / "b.bin.txt").write_bytes(b"\0\1")
    result = RUNNER.invoke(app, ["search", "sort a list", "open a socket", "--folder", "docs", "--json"])
    assert result.exit_code == 0
    first, second = json.loads(result.stdout)
    assert first["query"] == "sort a list"
    assert first["hits"][0]["record_id"].startswith("a.md")
    assert "open a socket" in second["hits"][0]["text"]
    assert "b.bin.txt: it is binary" in result.stderr


@pytest.mark.parametrize(
    ("model", "reranker"), [("demo", "demo"), ("4B", "4B"), ("Qwen/Qwen3-Embedding-8B", "8B")], ids=str
)
def test_search_takes_the_reranker_that_goes_with_the_embedder(model: str, reranker: str, loads: Loads) -> None:
    Path("a.txt").write_text("text")
    run("search", "x", "--folder", ".", "--model", model)
    assert loads.names == [model, reranker]


def test_search_asks_for_the_reranker_of_an_unknown_model() -> None:
    Path("a.txt").write_text("text")
    assert "--reranker" in fails("search", "x", "--folder", ".", "--model", "someone/else")


def test_search_in_an_empty_or_missing_folder_says_so() -> None:
    assert "there is no text in the folder" in fails("search", "x", "--folder", ".")
    assert fails("search", "x", "--folder", "gone") == "error: gone: No such file or directory"


@pytest.fixture
def documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that documents one function."""
    records = [Record("shutil.rmtree", "Recursively delete a directory tree.")]
    monkeypatch.setattr("qdrant_qwen_retrieval.python_docs.standard_library", lambda: iter(records))


@pytest.mark.usefixtures("documentation")
def test_search_without_a_folder_searches_the_documentation() -> None:
    (result,) = json.loads(run("search", "Recursively delete a directory tree.", "--json"))
    assert result["hits"][0]["record_id"] == "shutil.rmtree"
    assert any(hit["record_id"].startswith("README.md") for hit in result["hits"])


# ----------------------------------------------------------------------------------------------- collection


def test_collection_says_what_it_holds_and_with_which_model_without_loading_it(rows: Path, loads: Loads) -> None:
    ingest(str(rows))
    loads.asked.clear()
    facts = json.loads(run("collection", *HANDBOOK, "--json"))
    assert facts["collection"] == "handbook"
    assert facts["model"] == "demo"
    assert facts["dimensions"] == 64
    assert facts["layout"] == "compact"
    assert facts["points"] == 3
    printed = run("collection", *HANDBOOK)
    for expected in ("handbook", "demo", "64", "compact", "points", "3"):
        assert expected in printed
    assert loads.asked == []


def test_collection_without_a_name_lists_all(rows: Path) -> None:
    ingest(str(rows))
    run("ingest", str(rows), *STORE, "--collection", "second", *DEMO)
    assert [facts["collection"] for facts in json.loads(run("collection", *STORE, "--json"))] == ["handbook", "second"]
    printed = run("collection", *STORE)
    assert "handbook" in printed
    assert "second" in printed


def test_an_unknown_collection_names_those_that_are_there(rows: Path) -> None:
    ingest(str(rows))
    assert "handbook" in fails("collection", *STORE, "--collection", "other")


# ----------------------------------------------------------------------------------------------- quickstart


@pytest.mark.usefixtures("documentation")
def test_quickstart_answers_every_question_with_a_table(loads: Loads) -> None:
    printed = run("quickstart", "--model", "0.6B")
    assert len(QUESTIONS) >= 5
    for question in QUESTIONS:
        assert question in printed
    assert printed.count("retrieval score") == len(QUESTIONS)
    assert loads.names == ["0.6B", "0.6B"]


@pytest.mark.usefixtures("documentation")
def test_a_second_quickstart_embeds_nothing_and_says_so() -> None:
    first = RUNNER.invoke(app, ["quickstart", *STORE])
    second = RUNNER.invoke(app, ["quickstart", *STORE])
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout == second.stdout
    assert "nothing had to be embedded" in second.stderr
    assert "nothing had to be embedded" not in first.stderr


@pytest.mark.usefixtures("documentation")
def test_quickstart_ends_with_a_command_that_works() -> None:
    result = RUNNER.invoke(app, ["quickstart", *STORE])
    shown = result.stderr.splitlines()[-1].removeprefix("ask yourself: ")
    assert shown.startswith("qwen-retrieval search ")
    assert "retrieval score" in run(*shlex.split(shown)[1:])
