"""``qwen-retrieval quickstart``."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen_retrieval.specs import DEMO

from . import display
from .options import MODEL_HELP, Json, LoadOptions
from .search import Candidates, Limit, RerankerName, ask, documentation, open_models
from .stores import StoreOptions, connect, recorded_if_any

if TYPE_CHECKING:
    from qdrant_qwen_retrieval import IngestReport

INSTRUCTION = "question_answering"
QUESTIONS = (
    "How can I measure the time of a small piece of code?",
    "create a temporary directory",
    "What is the difference between a deep copy and a shallow copy?",
    "compress data with gzip",
    "find the n largest items of a list",
    "How do I parse command line arguments?",
)
DEMO_NOTES = (
    "demo is a tiny pair, a demonstration and not a product: its cards have its figures, BM25's beside them.",
    "The published models answer with --model 0.6B (make quickstart MODEL=0.6B).",
)


def quickstart(
    model: Annotated[str, typer.Option(help=f"Embedding model. {MODEL_HELP}")] = DEMO,
    reranker: RerankerName = None,
    limit: Limit = 3,
    candidates: Candidates = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep the collection in this folder, for the next time and for `search`.")
    ] = None,
    as_json: Json = False,
    *,
    load: LoadOptions,
) -> None:
    """Ask real questions about the documentation of the running Python and of this project.

    With the demo pair nothing is downloaded; --model 0.6B, 4B or 8B uses the published models. With --store, a second
    run embeds nothing that is there already.
    """
    from qdrant_qwen_retrieval import QdrantIndex

    name = collection_name(model)
    with ExitStack() as stack:
        folder = store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quickstart-")))
        place = StoreOptions(store=folder)
        opened = stack.enter_context(connect(place, create=True))
        manifest = recorded_if_any(opened, name)
        embedder, second = stack.enter_context(open_models(model, reranker, load, manifest))
        index = stack.enter_context(QdrantIndex(name, embedder=embedder, client=opened.client))
        report = index.ingest(documentation(), delete_missing=True, progress=True)
        display.note(_summary(report, f"on {embedder.device} in {embedder.dtype}"))
        options = {"limit": limit, "candidates": candidates, "instruction": INSTRUCTION}
        ask(index, second, QUESTIONS, as_json, **options)
    if model == DEMO:
        for line in DEMO_NOTES:
            display.note(line)
    if store is not None:
        display.note(f'ask yourself: qwen-retrieval search "…" {place.arguments()} --collection {name}')


def collection_name(model: str) -> str:
    """The collection for a model: vectors of two models must not meet."""
    return "python-" + re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.").lower()


def _summary(report: IngestReport, where: str) -> str:
    if report.embedded:
        return f"embedded {report.embedded:,} of {report.points:,} chunks in {report.seconds:.1f} s {where}"
    return f"nothing had to be embedded: all {report.points:,} chunks are there, unchanged"
