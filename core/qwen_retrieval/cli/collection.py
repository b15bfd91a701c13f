"""``qwen-retrieval collection``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from . import display
from .options import Json
from .stores import StoreOptions

if TYPE_CHECKING:
    from qdrant_qwen_retrieval.description import Description


def collection(
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Its name; without one, all are listed.")
    ] = None,
    as_json: Json = False,
    *,
    store: StoreOptions,
) -> None:
    """Say what is in a collection, and with which model it was made; without a name, list all. No model is loaded."""
    store.check()
    from qdrant_qwen_retrieval.description import collections, describe

    if collection is not None:
        description = describe(collection, **store.keywords())
        typer.echo(json.dumps(description.to_dict(), indent=2)) if as_json else _print(description)
        return
    found = collections(**store.keywords())
    if not found:
        display.note("there are no collections")
    typer.echo(json.dumps([one.to_dict() for one in found], indent=2)) if as_json else _print_list(found)


def _print(description: Description) -> None:
    """All that is known of a collection, a line each; what is not set is left out."""
    facts = description.to_dict()
    table = display.table(str(facts.pop("collection")), {"": False, " ": False})
    for name, value in facts.items():
        if value is not None and value != [] and value != {}:
            table.add_row(name.replace("_", " "), _text(name, value))
    display.show(table)


def _text(name: str, value: object) -> str:
    if name == "disk_bytes" and isinstance(value, int):
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} ({kind})" for key, kind in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_list(found: list[Description]) -> None:
    """One line for each collection."""
    columns = {"collection": False, "model": False, "dimensions": True, "layout": False}
    table = display.table("collections", columns | {"records": True, "chunks": True, "status": False})
    for one in found:
        records = "-" if one.records is None else f"{one.records:,}"
        table.add_row(
            one.collection, one.model, str(one.dimensions), one.layout, records, f"{one.points:,}", one.status
        )
    display.show(table)
