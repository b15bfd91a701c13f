"""``qwen-retrieval search``, and what it shares with the quickstart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_retrieval.specs import DEMO

from . import display
from .options import MODEL_HELP, Instruction, Json, LoadOptions, load_reranker
from .stores import StoreOptions, choose, connect, load_recorded, recorded

if TYPE_CHECKING:
    from qdrant_qwen_retrieval import Hit, IngestReport, QdrantIndex, Record
    from qdrant_qwen_retrieval.manifest import Manifest
    from qwen_retrieval import Embedder, Reranker

RerankerName = Annotated[
    str | None, typer.Option("--reranker", help="Reranking model, or 'none'; by default the partner of the embedder.")
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Results per query.")]
Candidates = Annotated[
    int | None, typer.Option(min=1, help="Chunks that the reranker orders, per query; at least --limit.")
]
CONDITION = re.compile(r"(?P<field>[^=<>!]+)(?P<operator>>=|<=|!=|=|>|<)(?P<value>.*)", re.DOTALL)
SHOWN_FAILURES = 10
OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "!=": "not"}


def search(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What to search for.")],
    folder: Annotated[
        Path | None, typer.Option(help="Text, Markdown, rst and Python files; by default Python's documentation.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Which one of the store, if it has several.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Embedding model; by default the collection's, else demo. {MODEL_HELP}")
    ] = None,
    reranker: RerankerName = None,
    limit: Limit = 5,
    candidates: Candidates = None,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="FIELD=VALUE",
            help="Also !=, >=, <=, > and <. May be repeated: all must hold, of several values for a field one.",
        ),
    ] = None,
    instruction: Instruction = None,
    as_json: Json = False,
    *,
    store: StoreOptions,
    load: LoadOptions,
) -> None:
    """Search a collection, or a folder, or the documentation of the running Python.

    The embedder proposes candidates, the reranker orders them. With --store or --url a collection is searched that
    `ingest` has made, with the model that it was made with. Without, an index is made in memory and forgotten.
    """
    filter_ = parse_filter(conditions or [])
    if store.given and folder is not None:
        raise typer.BadParameter("--folder and --store or --url exclude each other")
    if collection is not None and not store.given:
        raise typer.BadParameter("--collection goes with --store or --url")
    opened = (
        _stored(store, collection, (model, reranker), load)
        if store.given
        else _in_memory(folder, (model or DEMO, reranker), load)
    )
    with opened as (index, second):
        ask(
            index, second, queries, as_json, limit=limit, candidates=candidates, filter=filter_, instruction=instruction
        )


def ask(
    index: QdrantIndex,
    reranker: Reranker | None,
    queries: Iterable[str],
    as_json: bool,
    **options: Any,  # noqa: ANN401 - passed on unchanged
) -> None:
    """Search for each of the queries, and print what is found; `options` are those of ``QdrantIndex.search``."""
    results: list[dict[str, Any]] = []
    for query in queries:
        hits = index.search(query, reranker=reranker, **options)
        if not as_json:
            _print(query, hits)
        results.append({"query": query, "hits": [_row(hit) for hit in hits]})
    if as_json:
        typer.echo(json.dumps(results, indent=2))


@contextmanager
def open_models(
    model: str, reranker: str | None, load: LoadOptions, manifest: Manifest | None = None
) -> Iterator[tuple[Embedder, Reranker | None]]:
    """Load the models of a search.

    Args:
        model: The embedding model.
        reranker: The reranking model, "none", or None for the embedding model's partner.
        load: How to load them.
        manifest: The collection's that is searched, if there is one.
    """
    name = reranker or partner(model)  # before anything is loaded: there may be none
    with load_recorded(manifest, model, load) as embedder:
        if name == "none":
            yield embedder, None
            return
        with load_reranker(name, load) as second:
            yield embedder, second


def partner(model: str) -> str:
    """The reranker that goes with an embedding model.

    Raises:
        ValueError: None is known.
    """
    from qwen_retrieval.specs import CHECKPOINTS

    if model == DEMO or model.lower() in {checkpoint.size.lower() for checkpoint in CHECKPOINTS}:
        return model
    for checkpoint in CHECKPOINTS:
        if checkpoint.repository.lower() == model.lower():
            return checkpoint.size
    raise ValueError(f"no reranker is known to belong to {model}; name one with --reranker, or --reranker none")


def parse_filter(conditions: Iterable[str]) -> dict[str, Any] | list[dict[str, Any]] | None:
    """What ``QdrantIndex.search`` takes as `filter`, from ``field=value``, ``field>=value`` and so on; None for none.

    A value that is a JSON number, string or boolean is that, null is a missing field, anything else is text. Several
    values of a field are alternatives; of all other conditions each must hold.

    Raises:
        typer.BadParameter: A condition has no operator, or a field has both a value and a range.
    """
    values: dict[str, list[Any]] = {}
    ranges: list[dict[str, dict[str, Any]]] = [{}]  # more for conditions on a field that do not go into one
    for condition in conditions:
        match = CONDITION.fullmatch(condition)
        if match is None:
            raise typer.BadParameter(f"a filter must be like lang=en or year>=2020, but got {condition!r}")
        field, value = match["field"].strip(), _json_or_text(match["value"].strip())
        if match["operator"] == "=":
            values.setdefault(field, []).append(value)
        else:
            operator = OPERATORS[match["operator"]]
            part = next((part for part in ranges if _goes_with(part.get(field, {}), operator)), None)
            if part is None:
                ranges.append(part := {})
            part.setdefault(field, {})[operator] = value
    first, *others = ranges
    if both := values.keys() & first.keys():
        raise typer.BadParameter(f"field {min(both)!r} has both a value and a range in the filter")
    whole = {**{field: one[0] if len(one) == 1 else one for field, one in values.items()}, **first}
    return [whole, *others] if others else whole or None


def _goes_with(conditions: dict[str, Any], operator: str) -> bool:
    """Whether one filter can have them on the same field: bounds, each once, or a value that it is not."""
    return not conditions if operator == "not" else not conditions.keys() & {operator, "not"}


def note_failures(report: IngestReport) -> None:
    """Say on stderr what was left out, and why."""
    for failure in report.failures[:SHOWN_FAILURES]:
        display.note(f"left out: {display.snippet(failure.id, 60)}: {display.snippet(failure.reason, 200)}")
    if report.failed > SHOWN_FAILURES:
        display.note(f"and {report.failed - SHOWN_FAILURES:,} more")


def documentation() -> Iterator[Record]:
    """What this Python and this project say about themselves."""
    from qdrant_qwen_retrieval import python_docs

    display.note("reading the documentation of this Python and of this project")
    return chain(python_docs.standard_library(), python_docs.project_documentation())


@contextmanager
def _stored(
    store: StoreOptions, collection: str | None, models: tuple[str | None, str | None], load: LoadOptions
) -> Iterator[tuple[QdrantIndex, Reranker | None]]:
    """A collection that is there, with the model that it was made with."""
    from qdrant_qwen_retrieval import QdrantIndex

    model, reranker = models
    with connect(store) as opened:
        name = choose(opened, collection)
        manifest = recorded(opened, name)
        with (
            open_models(model or manifest.model, reranker, load, manifest) as (embedder, second),
            QdrantIndex(name, embedder=embedder, client=opened.client) as index,
        ):
            yield index, second


@contextmanager
def _in_memory(
    folder: Path | None, models: tuple[str, str | None], load: LoadOptions
) -> Iterator[tuple[QdrantIndex, Reranker | None]]:
    """A collection of a folder, or of the documentation, that is forgotten afterwards."""
    from qdrant_qwen_retrieval import QdrantIndex
    from qdrant_qwen_retrieval.records import open_records

    if folder is not None:
        folder.stat()  # a wrong name must not cost a download,
        open_records(folder)  # nor a folder without text
    with (
        open_models(*models, load) as (embedder, second),
        QdrantIndex("search", embedder=embedder, path=":memory:") as index,
    ):
        report = index.ingest(documentation() if folder is None else folder, progress=True)
        note_failures(report)
        if not report.points:
            raise ValueError(f"there is no text to search in {folder or 'the sources of this Python'}")
        where = f"on {embedder.device} in {embedder.dtype}"
        display.note(f"indexed {report.points:,} chunks in {report.seconds:.1f} s {where}")
        yield index, second


def _json_or_text(value: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _row(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "retrieval_rank": hit.retrieval_rank,
        "relevance_score": hit.relevance_score,
        "retrieval_score": hit.retrieval_score,
        "id": hit.id,
        "record_id": hit.record_id,
        "index": hit.index,
        "point_id": hit.point_id,
        "text": hit.text,
        "metadata": hit.metadata,
    }


def _print(query: str, hits: list[Hit]) -> None:
    numbers = ("rank", "retrieved as", "relevance score", "retrieval score")
    table = display.table(display.snippet(query), dict.fromkeys(numbers, True) | {"source": False, "snippet": False})
    for hit in hits:
        relevance = "-" if hit.relevance_score is None else f"{hit.relevance_score:.4f}"
        scores = (str(hit.rank), str(hit.retrieval_rank), relevance, f"{hit.retrieval_score:.4f}")
        table.add_row(*scores, str(hit.metadata.get("source", hit.id)), display.snippet(hit.text))
    display.show(table)
