"""``qwen-retrieval ingest``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display, guard
from .options import SMALLEST, Json, LoadOptions
from .search import note_failures
from .stores import StoreOptions, connect, load_recorded, recorded_if_any, without_weights

if TYPE_CHECKING:
    from qdrant_qwen_retrieval import IngestReport, QdrantIndex

NEW = "A new collection"


class Layout(StrEnum):
    """Whose Qdrant store can open the collection."""

    compact = "compact"
    langchain = "langchain"
    llama_index = "llama_index"
    haystack = "haystack"
    universal = "universal"


class Quantization(StrEnum):
    """What is searched in."""

    none = "none"
    scalar = "scalar"
    turbo4 = "turbo4"
    turbo2 = "turbo2"
    binary = "binary"


def ingest(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders, text, Markdown, rst, Python, .jsonl and .parquet files."),
    ],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Its name; made if it is not there.")],
    model: Annotated[
        str | None,
        typer.Option(help=f"By default the collection's; for a new one {SMALLEST}. As in the other commands."),
    ] = None,
    chunk_size: Annotated[int, typer.Option(min=0, help="Characters per chunk, 0 to keep records whole.")] = 1000,
    id_field: Annotated[str, typer.Option(help='The field that names a record; "" makes names of the texts.')] = "id",
    text_field: Annotated[str, typer.Option(help="The field that holds the text; others become metadata.")] = "text",
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Delete what is in the collection and not in PATH...")
    ] = False,
    dead_letter: Annotated[
        Path | None, typer.Option(help="JSON lines file for records that fail, with the reason.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; load no model, write nothing.")
    ] = False,
    as_json: Json = False,
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Length of the vectors; by default the model's.", rich_help_panel=NEW)
    ] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="Whose store can open it; compact by default.", rich_help_panel=NEW)
    ] = None,
    stages: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Search vectors of this length first; may be repeated.", rich_help_panel=NEW),
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="Search in codes, rescore with vectors.", rich_help_panel=NEW)
    ] = None,
    hybrid: Annotated[
        bool | None, typer.Option("--hybrid", help="Index words (BM25) beside vectors.", rich_help_panel=NEW)
    ] = None,
    *,
    store: StoreOptions,
    load: LoadOptions,
) -> None:
    """Embed files into a collection, and keep it up to date.

    Run again, it embeds only what is new or has changed; interrupted, the next run goes on where this one stopped.
    Records that cannot be ingested are left out and counted, and the exit code is then 3.
    """
    store.check()
    _check_sources(paths, id_field, text_field)
    settings = {
        "layout": layout and layout.value,
        "stages": stages or None,
        "quantization": quantization and quantization.value,
        "hybrid": hybrid,
    }
    options = {
        "id_field": id_field or None,
        "text_field": text_field,
        "chunk_size": chunk_size or None,
        "delete_missing": delete_missing,
        "dead_letter": dead_letter,
        "dry_run": dry_run,
    }
    with _open(store, collection, (model, dimensions), settings, load, dry_run) as index:
        report = _run(index, paths, options)
    typer.echo(json.dumps(report.to_dict(), indent=2)) if as_json else _print(report, collection)
    if not as_json and not dry_run:
        display.note(f'search it: qwen-retrieval search "…" {store.arguments()} --collection {shlex.quote(collection)}')
    if report.failed:
        note_failures(report)
        where = f"see {dead_letter}" if dead_letter and not dry_run else "--dead-letter FILE keeps what failed"
        display.note(f"failed records: {report.failed:,}; {where}")
        raise typer.Exit(guard.INCOMPLETE)


def _check_sources(paths: list[Path], id_field: str, text_field: str) -> None:
    """Find a wrong name, kind or field before a model is loaded."""
    from qdrant_qwen_retrieval.records import open_records

    for path in paths:
        path.stat()
    open_records(paths, id_field=id_field or None, text_field=text_field)


@contextmanager
def _open(
    store: StoreOptions,
    collection: str,
    chosen: tuple[str | None, int | None],
    settings: dict[str, Any],
    load: LoadOptions,
    dry_run: bool,
) -> Iterator[QdrantIndex]:
    """The index to write to; for a dry run without weights, and without making a folder."""
    from qdrant_qwen_retrieval import QdrantIndex

    if dry_run and not store.exists():
        store = StoreOptions(store=Path(":memory:"))
    model, dimensions = chosen
    with connect(store, create=True) as opened:
        manifest = recorded_if_any(opened, collection)
        name = model or (manifest.model if manifest else SMALLEST)
        make = without_weights if dry_run else load_recorded
        with (
            make(manifest, name, load, dimensions) as embedder,
            QdrantIndex(collection, embedder=embedder, client=opened.client, **settings) as index,
        ):
            yield index


def _run(index: QdrantIndex, paths: list[Path], options: dict[str, Any]) -> IngestReport:
    try:
        return index.ingest(paths, progress=True, **options)
    except KeyboardInterrupt as error:
        for line in getattr(error, "__notes__", ()):  # how far it came, and that the next run goes on from there
            display.note(line)
        raise


def _print(report: IngestReport, collection: str) -> None:
    """The figures of a report, as a table."""
    title = f"{collection}: what would be done" if report.dry_run else collection
    table = display.table(title, {"": False, "number": True, " ": False})
    rows = {
        "records": (report.records, _rate(report.records, report)),
        "chunks": (report.chunks, ""),
        "embedded": (report.embedded, "new, or with another text"),
        "skipped": (report.skipped, "unchanged"),
        "replaced": (report.replaced, "with another text or other metadata"),
        "deleted": (report.deleted, "points of records that are shorter or gone"),
        "failed": (report.failed, "records"),
        "tokens": (report.tokens, _rate(report.tokens, report)),
        "truncated": (report.truncated, "chunks longer than the model reads"),
        "points": (report.points, "in the collection then" if report.dry_run else "in the collection now"),
    }
    for name, (number, meaning) in rows.items():
        table.add_row(name, f"{number:,}", meaning)
    display.show(table)


def _rate(count: int, report: IngestReport) -> str:
    return "" if report.dry_run or not report.seconds else f"{count / report.seconds:,.0f} per second"
