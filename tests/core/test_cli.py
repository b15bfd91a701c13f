"""The command: exit codes, what goes to stdout, files that are whole or absent."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwen_retrieval
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.cli import app, outputs, records
from qwen_retrieval.cli.options import InputFormat
from qwen_retrieval.specs import CHECKPOINTS
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from tests.checkpoints import TINY, qwen3_config
from tests.command import RUNNER, Loads, fails, run

ORIGINAL_EMBEDDER = Embedder.from_pretrained

# The command with a fake model, for what needs a process of its own.
DRIVER = """
from qwen_retrieval import Embedder
from qwen_retrieval.cli import main, records
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

def load(model, **options):
    return Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())

Embedder.from_pretrained = load
records.MAX_RECORDS = 8
main()
"""


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loads:
    """Fake models, an empty current directory, no settings from outside."""
    fakes = Loads()
    monkeypatch.setattr(Embedder, "from_pretrained", fakes.embedder)
    monkeypatch.setattr(Reranker, "from_pretrained", fakes.reranker)
    monkeypatch.delenv("QWEN_RETRIEVAL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return fakes


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qwen_retrieval.cli", *arguments]


# ---------------------------------------------------------------------------------------------------- embed


def test_embed_writes_one_unit_row_per_line_of_text() -> None:
    Path("in.txt").write_text("one\n\nthree\r\n")
    run("embed", "in.txt", "-o", "out.npy")
    vectors = np.load("out.npy")
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_embed_gives_what_the_api_gives() -> None:
    run("embed", "-o", "out.npy", "--as", "query", "--instruction", "code_search", stdin="sort a list\n")
    embedder = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
    expected = embedder.embed_queries(["sort a list"], instruction="code_search")
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_embed_carries_the_other_fields_over_to_json_lines() -> None:
    Path("in.jsonl").write_text('{"id": 7, "body": "ü", "tags": ["a"]}\n\n{"body": "b"}\n')
    run("embed", "in.jsonl", "-o", "out.jsonl", "--field", "body")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [{key: value for key, value in row.items() if key != "embedding"} for row in rows] == [
        {"id": 7, "body": "ü", "tags": ["a"]},
        {"body": "b"},
    ]


def test_vectors_in_json_lines_and_parquet_are_exact() -> None:
    from pyarrow import parquet

    Path("in.jsonl").write_text('{"id": 1, "text": "one", "note": null}\n{"id": 2, "text": "two"}\n')
    for output in ("out.npy", "out.jsonl", "out.parquet"):
        run("embed", "in.jsonl", "-o", output, "--dimensions", "32")
    expected = np.load("out.npy")
    lines = [json.loads(line)["embedding"] for line in Path("out.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.array(lines, dtype=np.float32), expected)
    table = parquet.read_table("out.parquet")
    assert table.drop_columns("embedding").to_pylist() == [
        {"id": 1, "text": "one", "note": None},
        {"id": 2, "text": "two", "note": None},
    ]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), expected)


def test_embed_to_standard_output_prints_json_lines_only() -> None:
    printed = run("embed", "-o", "-", stdin='{"text": "a"}\n{"text": "b"}\n')
    assert [json.loads(line)["text"] for line in printed.splitlines()] == ["a", "b"]


@pytest.mark.parametrize("output", ["out.npy", "out.jsonl", "out.parquet"])
def test_an_empty_file_gives_an_empty_output(output: str) -> None:
    from pyarrow import parquet

    Path("in.jsonl").touch()
    run("embed", "in.jsonl", "-o", output)
    if output == "out.npy":
        assert np.load(output).shape == (0, 64)
    elif output == "out.jsonl":
        assert Path(output).read_text() == ""
    else:
        assert parquet.read_table(output).num_rows == 0


def test_embed_works_in_batches_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORDS", 3)
    Path("in.txt").write_text("".join(f"text {number}\n" for number in range(10)))
    run("embed", "in.txt", "-o", "out.npy")
    one_by_one = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
    expected = one_by_one.embed_documents([f"text {number}" for number in range(10)])
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_batches_end_when_they_hold_many_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_CHARACTERS", 10)
    Path("in.txt").write_text("123456\n123456\n1\n")
    with records.open_records("in.txt", "text", InputFormat.auto) as source:
        assert [len(batch) for batch in records.batches(source.records)] == [2, 1]


def test_options_reach_the_model(loads: Loads) -> None:
    options = ("--device", "cpu", "--dtype", "float32", "--max-length", "99", "--revision", "main")
    more = ("--cache-dir", "cache", "--local-files-only", "--on-overflow", "error", "--control-tokens", "keep")
    run("embed", "-o", "out.npy", "--model", "4B", *options, *more, "--batch-invariant", stdin="x\n")
    assert loads.asked == [
        (
            "4B",
            {
                "device": "cpu",
                "dtype": "float32",
                "batch_invariant": True,
                "max_length": 99,
                "on_overflow": "error",
                "control_tokens": "keep",
                "revision": "main",
                "cache_dir": "cache",
                "local_files_only": True,
                "dimensions": None,
            },
        )
    ]


def test_several_devices_are_separated_by_commas(loads: Loads) -> None:
    run("embed", "-o", "out.npy", "--device", "cuda:0,cuda:1", stdin="x\n")
    assert loads.asked[0][1]["device"] == ["cuda:0", "cuda:1"]


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"text": "a"}\n{"text": \n', "line 2 of in.jsonl is not valid JSON", id="invalid-json"),
        pytest.param(b'{"text": "a"}\n[1]\n', "line 2 of in.jsonl must be a JSON object, but is list", id="no-object"),
        pytest.param(b'{"title": "a"}\n', "has no field 'text' (it has 'title')", id="missing-field"),
        pytest.param(b'{"text": null}\n', "field 'text' in line 1 of in.jsonl must be a string", id="null"),
        pytest.param(b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 of in.jsonl is not UTF-8", id="not-utf-8"),
        pytest.param(b'{"text": "a", "embedding": 1}\n', "already has a field 'embedding'", id="vector-field-taken"),
        pytest.param(b"[" * 200_000 + b"\n", "line 1 of in.jsonl is nested too deeply", id="deep"),
        pytest.param(b'{"text": "\\ud800"}\n', "surrogate", id="lone-surrogate"),
    ],
)
def test_a_bad_line_is_named_and_leaves_no_output(content: bytes, message: str) -> None:
    Path("in.jsonl").write_bytes(content)
    assert message in fails("embed", "in.jsonl", "-o", "out.jsonl")
    assert os.listdir() == ["in.jsonl"]


def test_a_bad_first_line_is_found_before_the_model_is_loaded(loads: Loads) -> None:
    fails("embed", "-o", "out.npy", "--format", "jsonl", stdin="no json\n")
    assert loads.asked == []


def test_a_missing_file_is_named() -> None:
    assert fails("embed", "missing.txt", "-o", "out.npy") == "error: missing.txt: No such file or directory"


def test_a_directory_is_no_input_file() -> None:
    assert fails("embed", ".", "-o", "out.npy") == "error: .: Is a directory"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param("out.csv", "output must end in .npy, .jsonl, .parquet (or be -), but got 'out.csv'", id="suffix"),
        pytest.param("folder.npy", "folder.npy: is a directory", id="directory"),
        pytest.param("nowhere/out.npy", "nowhere: no such directory", id="no-parent"),
    ],
)
def test_an_impossible_output_is_refused_before_the_model_is_loaded(output: str, message: str, loads: Loads) -> None:
    Path("folder.npy").mkdir()
    assert fails("embed", "-o", output, stdin="x\n") == f"error: {message}"
    assert loads.asked == []


def test_parquet_without_pyarrow_gives_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "qwen-retrieval[parquet]"' in fails("embed", "-o", "out.parquet", stdin="x\n")


def test_fields_that_fit_no_parquet_column_are_refused() -> None:
    rows = '{"text": "a", "x": 1}\n{"text": "b", "x": "one"}\n'
    assert "write .jsonl instead" in fails("embed", "-o", "out.parquet", stdin=rows)


def test_a_field_that_appears_late_is_not_dropped_from_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORDS", 1)
    rows = '{"text": "a"}\n{"text": "b", "late": 1}\n'
    assert "field 'late' first appears after many rows" in fails("embed", "-o", "out.parquet", stdin=rows)
    assert os.listdir() == []


def test_an_invalid_option_of_the_model_is_one_line() -> None:
    assert "dimensions must be between" in fails("embed", "-o", "out.npy", "--dimensions", "7", stdin="x\n")


def test_truncation_is_a_one_line_warning() -> None:
    result = RUNNER.invoke(app, ["embed", "-o", "out.npy", "--max-length", "8"], input="much longer than that\n")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("warning: 1 of 1 inputs")
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    result = RUNNER.invoke(app, ["--debug", "embed", "no.txt", "-o", "out.npy"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "Traceback" not in fails("embed", "no.txt", "-o", "out.npy")


# ---------------------------------------------------------------------------------------------- whole or absent


def test_an_existing_output_survives_a_failed_run() -> None:
    Path("out.npy").write_text("before")
    fails("embed", "-o", "out.npy", "--format", "jsonl", stdin='{"text": "a"}\nbroken\n')
    assert Path("out.npy").read_text() == "before"


def test_input_and_output_may_be_the_same_file() -> None:
    Path("a.jsonl").write_text('{"text": "a"}\n')
    run("embed", "a.jsonl", "-o", "a.jsonl")
    assert json.loads(Path("a.jsonl").read_text()).keys() == {"text", "embedding"}


def test_a_link_is_followed_and_stays_a_link() -> None:
    Path("real.npy").touch()
    Path("link.npy").symlink_to("real.npy")
    run("embed", "-o", "link.npy", stdin="x\n")
    assert Path("link.npy").is_symlink()
    assert np.load("real.npy").shape == (1, 64)


def test_an_error_while_writing_removes_what_was_written() -> None:
    def write_half() -> None:
        with outputs.atomic_file("out.npy") as handle:
            handle.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert os.listdir() == []


def wait_for_output(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until the command has written a part of its output."""
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size for part in folder.glob(".out.jsonl.*.part")):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def endless_embed(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of `embed` with fake models that has written a part of its output and waits for more input."""
    arguments = [sys.executable, "-c", DRIVER, "embed", "-o", "out.jsonl", "--format", "text"]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdin is not None
    process.stdin.write(b"some text\n" * 1000)
    process.stdin.flush()
    wait_for_output(process, tmp_path)
    yield process
    process.kill()
    process.communicate()


def stopped(process: subprocess.Popen[bytes], number: signal.Signals) -> bytes:
    """Send a signal until the process ends: Python drops what a handler raises while an object is being deleted."""
    for patience in (10, 10, 30):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=patience)[1]
    raise AssertionError(f"{number.name} did not end the process")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, id="terminate"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="kill"),
    ],
)
def test_a_run_that_is_stopped_leaves_no_output(
    endless_embed: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    errors = stopped(endless_embed, number)
    assert endless_embed.returncode == code
    assert b"Traceback" not in errors
    assert not (tmp_path / "out.jsonl").exists()
    if number != signal.SIGKILL:
        assert os.listdir(tmp_path) == []


def test_ctrl_c_in_the_middle_of_a_long_run_of_a_real_model_leaves_no_output(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"text number {number} of many\n" for number in range(100_000)))
    arguments = command("embed", "in.txt", "-o", "out.jsonl", "--model", "demo")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, cwd=tmp_path)
    wait_for_output(process, tmp_path)
    assert (stopped(process, signal.SIGINT), process.returncode) == (b"interrupted\n", 130)
    assert os.listdir(tmp_path) == ["in.txt"]


def test_a_full_disk_is_one_line_and_leaves_no_output(tmp_path: Path) -> None:
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    arguments = [sys.executable, "-c", DRIVER, "embed", "-o", "out.npy"]
    done = subprocess.run(
        arguments, input=b"text\n" * 1000, capture_output=True, cwd=tmp_path, preexec_fn=limit_file_size, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"error: out.npy: File too large\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command("info", "0.6B"), stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


def test_a_reader_that_goes_away_is_no_error_message() -> None:
    process = subprocess.Popen(command("info", "0.6B"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


# --------------------------------------------------------------------------------------------------- rerank


def test_rerank_prints_one_json_line_per_document_best_first() -> None:
    documents = '{"id": "x", "text": "unrelated"}\n{"id": "y", "text": "sort a list"}\n'
    rows = [json.loads(line) for line in run("rerank", "-q", "sort a list", stdin=documents).splitlines()]
    assert [row["index"] for row in rows] == [1, 0]
    assert rows[0]["document"] == {"id": "y", "text": "sort a list"}
    assert rows[0].keys() == {"index", "relevance_score", "log_odds", "document"}
    assert rows[0]["relevance_score"] > rows[1]["relevance_score"]


def test_rerank_as_json_is_one_value() -> None:
    value = json.loads(run("rerank", "-q", "sort a list", "--json", "--top-n", "1", stdin="unrelated\nsort a list\n"))
    assert value["query"] == "sort a list"
    assert [row["document"] for row in value["results"]] == [{"text": "sort a list"}]


def test_rerank_as_a_table_shows_rank_score_index_and_document() -> None:
    printed = run("rerank", "-q", "b [red]", "--table", stdin="a\nb [bold]\n")
    for expected in ("rank", "relevance score", "index", "b [bold]", "b [red]"):
        assert expected in printed


def test_rerank_leaves_out_what_scores_below_the_threshold() -> None:
    assert run("rerank", "-q", "b", "--score-threshold", "1", stdin="a\nb\n") == ""


def test_rerank_without_documents_prints_nothing() -> None:
    assert run("rerank", "-q", "b") == ""
    assert json.loads(run("rerank", "-q", "b", "--json")) == {"query": "b", "results": []}


def test_rerank_passes_the_template_on(loads: Loads) -> None:
    run("rerank", "-q", "b", "--template", "vllm", stdin="a\n")
    assert loads.asked[0][1]["template"] == "vllm"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["rerank", "-q", "b", "--table", "--json"], id="two-formats"),
        pytest.param(["rerank"], id="no-query"),
        pytest.param(["rerank", "-q", "b", "--top-n", "0"], id="top-n-0"),
        pytest.param(["embed"], id="no-output"),
        pytest.param(["embed", "-o", "x.npy", "--as", "passage"], id="unknown-side"),
        pytest.param(["embed", "-o", "x.npy", "--bogus"], id="unknown-option"),
        pytest.param(["explain"], id="nothing-to-explain"),
        pytest.param(["search"], id="no-query-to-search"),
        pytest.param(["teleport"], id="unknown-command"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_nothing_to_stdout(arguments: list[str]) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


# ----------------------------------------------------------------------------------------- info and explain


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.repository)
def test_info_computes_the_published_number_of_weights(checkpoint: Any) -> None:
    (facts,) = json.loads(run("info", checkpoint.repository, "--json"))
    head = 0 if checkpoint.tied_head else checkpoint.rows * checkpoint.hidden_size
    assert facts["memory"]["float32"]["weights"] == 4 * (checkpoint.parameters - head)
    assert facts["parameters"] == checkpoint.parameters


def test_info_describes_both_models_of_a_size() -> None:
    assert [facts["kind"] for facts in json.loads(run("info", "0.6b", "--json"))] == ["embedding", "reranking"]
    printed = run("info", "0.6B")
    for expected in ("Qwen/Qwen3-Embedding-0.6B", "32 to 1024", r"Instruct: {instruction}\nQuery:{query}", "1.19 GB"):
        assert expected in printed


def test_info_reads_the_demo_pair_from_its_own_files() -> None:
    embedding, reranking = json.loads(run("info", "demo", "--json"))
    assert embedding["family"] == "demo embedding"
    assert reranking["family"] == "demo reranker"
    assert embedding["parameters"] < 20_000_000


def test_info_of_an_unknown_model_names_what_is_known() -> None:
    assert "Qwen/Qwen3-Embedding-0.6B" in fails("info", "no/such-model")


def test_info_of_a_folder_without_a_checkpoint_says_so() -> None:
    assert "config.json" in fails("info", ".")


@pytest.fixture
def folders(tmp_path: Path, tokenizer_folders: Path) -> Path:
    """Folders `embedding` and `reranker` with the published tokenizers and a configuration, but no weights."""
    for name in ("embedding", "reranker"):
        shutil.copytree(tokenizer_folders / name, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(qwen3_config(TINY)))
    return tmp_path


def test_explain_shows_a_query_with_the_published_template(folders: Path) -> None:
    printed = json.loads(run("explain", "--model", str(folders / "embedding"), "--query", "copy a file", "--json"))
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert printed["text"] == f"Instruct: {task}\nQuery:copy a file<|endoftext|>"
    assert printed["token_ids"][-1] == 151643
    assert "".join(printed["tokens"]) == printed["text"]
    assert printed["truncated_tokens"] == 0


def test_explain_shows_a_query_with_an_instruction_by_name(folders: Path) -> None:
    arguments = ("explain", "--model", str(folders / "embedding"), "--query", "x", "--instruction", "code_search")
    assert "Instruct: Given a question about coding, retrieval code" in run(*arguments)


@pytest.mark.parametrize("word", ["code_serch", "Translate"])
def test_a_word_that_names_no_instruction_is_refused_before_a_model_is_loaded(word: str, loads: Loads) -> None:
    commands = (
        ("embed", "-o", "-"),
        ("rerank", "-q", "x"),
        ("search", "x", "--folder", "."),
        ("explain", "--query", "x"),
        ("train", "embedder", "data.jsonl", "-o", "out"),
        ("synthesize", "c", "-o", "p", "--url", "http://localhost", "--model", "m", "--personas", "p"),
    )
    for command in commands:
        said = " ".join(run(*command, "--instruction", word, code=2).replace("│", " ").split())  # typer draws a box
        assert "is neither a preset nor a task" in said
    assert loads.asked == []


def test_explain_shows_a_document_without_an_instruction(folders: Path) -> None:
    printed = json.loads(run("explain", "--model", str(folders / "embedding"), "--document", "copy a file", "--json"))
    assert printed["text"] == "copy a file<|endoftext|>"


def test_explain_shows_the_pair_that_the_reranker_sees(folders: Path) -> None:
    printed = run("explain", "--model", str(folders / "reranker"), "--query", "q", "--document", "d")
    assert "<Query>: q\n<Document>: d<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n" in printed
    assert "271:'\\n\\n'" in printed


def test_explain_counts_what_is_cut(folders: Path) -> None:
    arguments = ("--document", "word " * 50, "--max-length", "20", "--json")
    printed = json.loads(run("explain", "--model", str(folders / "embedding"), *arguments))
    assert len(printed["token_ids"]) == 20
    assert printed["truncated_tokens"] == 32
    assert printed["text"].endswith("word<|endoftext|>")


def test_explain_agrees_with_the_api_about_the_demo_pair() -> None:
    printed = json.loads(run("explain", "--model", "demo", "--query", "copy a file", "--json"))
    with ORIGINAL_EMBEDDER("demo") as embedder:
        expected = embedder.explain_query("copy a file")
    assert printed["token_ids"] == expected.token_ids


# ------------------------------------------------------------------------------------------------- the rest


def test_version_is_that_of_the_package() -> None:
    assert run("--version") == f"qwen-retrieval {qwen_retrieval.__version__}\n"


def test_help_and_info_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\nfrom qwen_retrieval.cli import app\n"
        "for arguments in (['--help'], ['info', '4B'], ['explain', '--model', 'demo', '-q', 'x']):\n"
        "    try:\n        app(arguments)\n    except SystemExit as stop:\n        assert not stop.code\n"
        "sys.exit([name for name in ('torch', 'transformers', 'qdrant_client') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_json_lines_survive_lone_surrogates() -> None:
    assert json.loads(records.json_line({"a": "\ud800ü"})) == {"a": "\ud800ü"}
    assert records.json_line({"a": "ü"}) == '{"a": "ü"}'


def test_a_byte_order_mark_is_no_part_of_the_first_text() -> None:
    handle = io.BytesIO(b"\xef\xbb\xbfone\ntwo\n")
    found = records._records(handle, "in.txt", "text", InputFormat.auto)
    assert [record.text for record in found] == ["one", "two"]
