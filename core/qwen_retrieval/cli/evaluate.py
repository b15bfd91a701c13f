"""``qwen-retrieval evaluate``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from qwen_retrieval.instructions import PRESETS, looks_like_a_name, resolve_instruction, tasks

from . import display
from .options import MODEL_HELP, SMALLEST, LoadOptions, check_instruction, load_embedder, load_reranker
from .outputs import atomic_file, check_place

if TYPE_CHECKING:
    from qwen_retrieval.evaluation import Evaluation, RetrievalDataset, Sweep
    from qwen_retrieval.evaluation.results import Quantization, System

DATA, SWEEP, STATISTICS = "Test set", "What is varied", "Statistics"
NAMED = re.compile(r"(?P<name>[\w-]+)=(?P<text>.+)", re.DOTALL)
Value = TypeVar("Value")


def evaluate(
    data: Annotated[
        Path | None, typer.Argument(help="A folder in BEIR's format: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help='Instead: JSON lines {"query", "relevant"}, the latter a list of ids or {id: grade}; with --corpus.',
            rich_help_panel=DATA,
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines {"id", "text"}, with or without "title"; or a folder of texts, whose paths are their ids.',
            rich_help_panel=DATA,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which file of qrels/.", rich_help_panel=DATA)] = "test",
    qrels: Annotated[Path | None, typer.Option(help="The judgements, instead.", rich_help_panel=DATA)] = None,
    ignore_identical_ids: Annotated[
        bool,
        typer.Option(
            "--ignore-identical-ids",
            help="Never find a document with the query's own id, as ArguAna and Quora want it.",
            rich_help_panel=DATA,
        ),
    ] = False,
    mteb: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead: a published table such as MTEB-R, a benchmark or a task of mteb, with the paper's settings. "
            "Of the options below only the models, --device, --dtype, --revision, --cache and --json hold. Repeatable.",
            rich_help_panel=DATA,
        ),
    ] = None,
    model: Annotated[str, typer.Option(help=f"Embedding model. {MODEL_HELP}")] = SMALLEST,
    reranker: Annotated[str | None, typer.Option(help=f"Reranking model; by default none. {MODEL_HELP}")] = None,
    rerank_instruction: Annotated[
        str | None,
        typer.Option(
            help="The reranker's instruction: a preset, a task name, or a sentence.", callback=check_instruction
        ),
    ] = None,
    dimensions: Annotated[
        str | None, typer.Option(help="Lengths of vectors, such as 1024,512,256.", rich_help_panel=SWEEP)
    ] = None,
    quantization: Annotated[
        str, typer.Option(help="Of none, int8, binary, binary+rescore.", rich_help_panel=SWEEP)
    ] = "none",
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            help="none, default, presets and task names, with commas between; or one sentence, also as NAME=SENTENCE. "
            "May be repeated.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    rerank_depth: Annotated[
        str, typer.Option(help="How many documents to rerank, such as 20,50,100.", rich_help_panel=SWEEP)
    ] = "100",
    bm25_language: Annotated[
        str, typer.Option(help="BM25's stemmer: a language, none; or off for no BM25.", rich_help_panel=SWEEP)
    ] = "english",
    metrics: Annotated[
        str, typer.Option(help="ndcg@k, recall@k, mrr@k, map@k; the first decides.", rich_help_panel=STATISTICS)
    ] = "ndcg@10,recall@10,recall@100,mrr@10,map@100",
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The system that the others are compared with, such as BM25; by default the embedder alone.",
            rich_help_panel=STATISTICS,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the significance tests.", rich_help_panel=STATISTICS)] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps vectors, for the next run or after an interruption.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all results; - prints them instead of tables.")
    ] = None,
    html_file: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a report with plots, for a browser.")
    ] = None,
    *,
    load: LoadOptions,
) -> None:
    """Measure on your own questions which setting finds the right documents, and say which to use.

    BM25, the embedder alone and the embedder with a reranker come into one table, for all dimensions and quantizations,
    and for other instructions and reranking depths than the first. The first value of each option is the base, which
    the others vary from.
    """
    from qwen_retrieval.evaluation import Sweep
    from qwen_retrieval.evaluation import evaluate as measure

    _check_targets(json_file, html_file)
    if mteb:
        if (data, questions, corpus, html_file) != (None,) * 4:
            raise typer.BadParameter("--mteb brings its own data and writes no page: leave out DATA and --html")
        _run_mteb(mteb, model, reranker, load, cache, json_file)
        return
    dataset = _dataset(data, questions, corpus, split, qrels)
    for note in dataset.notes:
        display.note(f"warning: {note}")
    sweep = Sweep(
        dimensions=_values("--dimensions", dimensions or "", int),
        quantizations=_values("--quantization", quantization, _quantization),
        instructions=parse_instructions(instruction or ["default"]),
        rerank_depths=_values("--rerank-depth", rerank_depth, int),
        bm25_language=None if bm25_language == "off" else bm25_language,
    )
    measures = _values("--metrics", metrics, str)
    _check_measuring(dataset, measures, sweep, html=html_file is not None)
    with ExitStack() as stack:
        embedder = stack.enter_context(load_embedder(model, load))
        second = None
        if reranker is not None:
            second = stack.enter_context(load_reranker(reranker, load, instruction=rerank_instruction))
        result = measure(
            dataset,
            embedder=embedder,
            reranker=second,
            sweep=sweep,
            metrics=measures,
            baseline=baseline,
            ignore_identical_ids=ignore_identical_ids,
            cache=cache,
            seed=seed,
            progress=stack.enter_context(_bars()),
        )
    _write(result, json_file)
    if html_file is not None:
        _write_report(result, html_file)


def parse_instructions(values: Sequence[str]) -> dict[str, str | None]:
    """The instructions that were asked for, by name.

    Args:
        values: Each a list of known names with commas between, ``NAME=SENTENCE``, or a sentence, which may have commas.

    Returns:
        Name -> "" for none, None for the model's default, or what `resolve_instruction` knows; a sentence without a
        name is its own.

    Raises:
        typer.BadParameter: A name is unknown, occurs twice, or stands in one list with something that is none.
    """
    special = {"none": "", "default": None}
    known = {*special, *PRESETS, *tasks()}
    named: dict[str, str | None] = {}
    for value in values:
        parts = [part.strip() for part in value.split(",")]
        if all(map(looks_like_a_name, parts)):
            for name in set(parts) - set(special):
                check_instruction(name)
        if not known.issuperset(parts) and (parts[0] in known or parts[-1] in known):
            raise typer.BadParameter(f"--instruction {value!r} mixes names and a sentence; repeat --instruction for it")
        for part in parts if known.issuperset(parts) else [value.strip()]:
            match = None if part in known else NAMED.fullmatch(part)
            name = match["name"] if match else part
            if not name or name in named:
                raise typer.BadParameter(f"--instruction {name!r} is given twice or empty")
            named[name] = _sentence(match["text"]) if match else special.get(name, name)
    return named


def _sentence(text: str) -> str:
    try:
        return resolve_instruction(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _dataset(
    data: Path | None, questions: Path | None, corpus: Path | None, split: str, qrels: Path | None
) -> RetrievalDataset:
    from qwen_retrieval.evaluation import read_beir, read_questions

    if data is not None and questions is None and corpus is None:
        return read_beir(data, split=split, qrels=qrels)
    if data is not None or questions is None or corpus is None:
        raise typer.BadParameter("give a folder in BEIR's format, --questions and --corpus, or --mteb")
    return read_questions(questions, corpus)


def _check_measuring(dataset: RetrievalDataset, metrics: Sequence[str], sweep: Sweep, *, html: bool) -> None:
    """Refuse unknown measures and stemmers, and say what is not installed, before a model is loaded."""
    from qwen_retrieval.evaluation import Measures
    from qwen_retrieval.evaluation.bm25 import BM25

    Measures(dataset.qrels, metrics)
    if sweep.bm25_language is not None:
        BM25([], language=sweep.bm25_language)
    if html:
        import qwen_retrieval.evaluation.report  # noqa: F401


def _values(option: str, text: str, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"{option} must be integers with commas between, but got {text!r}") from None


def _quantization(name: str) -> Quantization:
    return cast("Quantization", name)  # `Sweep` refuses what is none


def _run_mteb(
    names: list[str], model: str, reranker: str | None, load: LoadOptions, folder: Path | None, json_file: str | None
) -> None:
    """The published evaluation, and its figures beside what came out."""
    from qwen_retrieval.evaluation.mteb import paper_embedder, paper_reranker, run_mteb
    from qwen_retrieval.evaluation.mteb.run import benchmark_tasks
    from qwen_retrieval.evaluation.published import comparison_table

    for name in names:  # unknown ones are refused before a model is loaded
        benchmark_tasks(name)
    options = {name: value for name, value in load.keywords().items() if name in ("device", "dtype", "revision")}
    with ExitStack() as stack:
        embedder = stack.enter_context(paper_embedder(model, **options))
        second = None if reranker is None else stack.enter_context(paper_reranker(reranker, **options))
        found = run_mteb(names, embedder, second, folder=folder, show_progress=True)
    text = json.dumps(found.as_json(), indent=2)
    if json_file == "-":
        typer.echo(text)
        return
    if json_file is not None:
        with atomic_file(json_file) as handle:
            handle.write(text.encode())
    display.show(comparison_table(found.comparisons()))


def _check_targets(json_file: str | None, html_file: str | None) -> None:
    if html_file == "-":
        raise typer.BadParameter("--html must be a file; only --json can be printed")
    for path in (json_file, html_file):
        if path not in (None, "-"):
            check_place(Path(path))


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each step."""
    with ExitStack() as stack:
        current: dict[str, display.Update] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in current:
                stack.close()
                current.clear()
                current[what] = stack.enter_context(display.progress(what, total))
            current[what](done)

        yield update


def _write(result: Evaluation, json_file: str | None) -> None:
    if json_file == "-":
        typer.echo(result.to_json())
        return
    if json_file is not None:
        with atomic_file(json_file) as handle:
            handle.write(result.to_json().encode(errors="backslashreplace"))
    display.show(_quality(result), _differences(result))
    for note in result.data.notes:
        typer.echo(f"data: {display.snippet(note, 1000)}")
    for advice in result.advice:
        typer.echo(f"{advice.topic}: {display.snippet(advice.text, 1000)}")


def _write_report(result: Evaluation, path: str) -> None:
    from qwen_retrieval.evaluation.report import render_report

    page = render_report(result).encode()
    with atomic_file(path) as handle:
        handle.write(page)


def _quality(result: Evaluation) -> Any:  # noqa: ANN401 - rich is imported where it is used
    data = result.data
    columns = {"system": False} | dict.fromkeys(result.setup.metrics, True)
    columns |= {"searched": True, "kept": True, "ms/query": True}
    table = display.table(f"{data.name}: {data.queries:,} queries, {data.documents:,} documents", columns)
    table.caption = (
        "searched, kept: bytes per document; ms/query: of the models, measured here, in batches, without search"
    )
    table.caption_justify = "left"
    for system in result.systems:
        means = [f"{system.means[name]:.4f}" for name in result.setup.metrics]
        sizes = [_or_dash(size, ",") for size in (system.searched_bytes, system.stored_bytes)]
        table.add_row(system.name, *means, *sizes, _or_dash(_milliseconds(system), ",.1f"))
    return table


def _differences(result: Evaluation) -> Any:  # noqa: ANN401
    title = f"Difference to {result.setup.baseline} in {result.setup.metrics[0]}"
    columns = {"system": False, "mean": True, "95 % interval": True, "p": True, "p (Holm)": True}
    table = display.table(title, columns)
    for one in (one for one in result.comparisons if one.family == "baseline"):
        interval = f"{one.low:+z.4f} to {one.high:+z.4f}"
        table.add_row(one.system, f"{one.difference:+z.4f}", interval, f"{one.p:.4f}", f"{one.p_holm:.4f}")
    return table


def _milliseconds(system: System) -> float | None:
    """What the models took for a query; None if its vectors came from the cache, or there is no model."""
    if system.query_seconds is None:
        return None
    return 1000 * (system.query_seconds + (system.rerank_seconds or 0))


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
