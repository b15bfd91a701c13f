"""The command line: its subcommands and the options that come before them."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen_retrieval import __version__

from . import guard
from .collection import collection
from .embed import embed
from .evaluate import evaluate
from .explain import explain
from .info import info
from .ingest import ingest
from .quickstart import quickstart
from .rerank import rerank
from .search import search
from .synthesize import synthesize
from .train import train

app = typer.Typer(
    name="qwen-retrieval",
    help="Embed, rerank and search with Qwen3-Embedding and Qwen3-Reranker.",
    epilog="Exit codes: 0 done, 1 error (one line on stderr), 2 wrong usage, 3 done but for records that failed, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwen-retrieval {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="QWEN_RETRIEVAL_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    guard.show_tracebacks(debug)


for _command in (embed, rerank, ingest, search, collection, quickstart, evaluate, info, explain, synthesize):
    app.command()(guard.command(_command))
app.add_typer(train, name="train")


def main() -> None:
    """Run the command and leave the process with its exit code."""
    app()
