"""``qwen-retrieval synthesize``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display, guard
from .options import SMALLEST, Field, Format, InputFormat, LoadOptions, check_instruction, load_embedder
from .outputs import STANDARD_OUTPUT, check_lines_target, open_lines
from .records import Record, json_line, open_records

if TYPE_CHECKING:
    from qwen_retrieval.training.synthesis import Document, FilterSettings, SynthesisReport, SynthesisSettings

NONE = "none"
JOURNAL_SUFFIX = ".journal"


@dataclass(frozen=True)
class AskOptions:
    """What the language model is asked for; each field is an option."""

    corpus_language: Annotated[str, typer.Option(help="The language of the documents.", rich_help_panel="Queries")] = (
        "English"
    )
    language: Annotated[
        list[str] | None,
        typer.Option(help="A language of the queries; may be repeated.", show_default="that of the documents",
                     rich_help_panel="Queries"),
    ] = None  # fmt: skip
    words: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A length of queries in words; may be repeated.", show_default="5, 10, 20, 40",
                     rich_help_panel="Queries"),
    ] = None  # fmt: skip
    queries_per_document: Annotated[
        int, typer.Option(min=1, help="Queries asked for per document.", rich_help_panel="Queries")
    ] = 1
    limit: Annotated[int | None, typer.Option(min=1, help="Sample so many documents.", rich_help_panel="Queries")] = (
        None
    )
    seed: Annotated[int, typer.Option(help="Decides what is sampled and drawn.", rich_help_panel="Queries")] = 0
    concurrency: Annotated[int, typer.Option(min=1, help="Requests open at once.", rich_help_panel="Queries")] = 8

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the queries are drawn from."""
        return tuple(self.language or [self.corpus_language])

    def settings(self) -> SynthesisSettings:
        """The same, as the library has it."""
        from qwen_retrieval.training.synthesis import LENGTHS, SynthesisSettings

        return SynthesisSettings(
            corpus_language=self.corpus_language,
            languages=self.languages,
            lengths=tuple(self.words or LENGTHS),
            queries_per_document=self.queries_per_document,
            limit=self.limit,
            seed=self.seed,
            concurrency=self.concurrency,
        )


@dataclass(frozen=True)
class FilterOptions:
    """Which pairs are left out; each field is an option."""

    positive_cosine: Annotated[
        float,
        typer.Option(min=-1, max=1, help="Leave out pairs that are not more alike.", rich_help_panel="Filters"),
    ] = 0.7
    duplicate_cosine: Annotated[
        float,
        typer.Option(min=-1, max=1, help="Leave out queries more alike to another.", rich_help_panel="Filters"),
    ] = 0.95
    check_language: Annotated[
        bool, typer.Option(help="Leave out queries in a wrong language.", rich_help_panel="Filters")
    ] = True

    def settings(self, ask: AskOptions) -> FilterSettings:
        """The same, as the library has it."""
        from qwen_retrieval.training.synthesis import FilterSettings, language_check

        check = language_check([*ask.languages, ask.corpus_language]) if self.check_language else None
        return FilterSettings(
            positive_cosine=self.positive_cosine, duplicate_cosine=self.duplicate_cosine, is_language=check
        )


def synthesize(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Documents, as JSON lines or text lines.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A file for the pairs, JSON lines; - for stdout.")],
    url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint, as in http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="What the endpoint calls the language model.")],
    personas: Annotated[str, typer.Option(help="Who might ask: JSON lines with the field persona, or text lines.")],
    api_key_variable: Annotated[
        str, typer.Option(help="The environment variable that has the API key; unset for none.")
    ] = "OPENAI_API_KEY",
    request: Annotated[
        str, typer.Option(metavar="JSON", help='More fields of each request, as in {"temperature": 0.7}.')
    ] = "{}",
    journal: Annotated[Path | None, typer.Option(help="Keeps every answer.", show_default="OUTPUT.journal")] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="What the queries are for; is written into the pairs.", callback=check_instruction),
    ] = None,
    embedder: Annotated[
        str, typer.Option(help="Finds personas, unlike pairs and near-duplicates: as --model elsewhere, or 'none'.")
    ] = SMALLEST,
    field: Field = "text",
    input_format: Format = InputFormat.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON value.")] = False,
    *,
    ask: AskOptions,
    filters: FilterOptions,
    load: LoadOptions,
) -> None:
    """Let a language model write the queries of training pairs, by the recipe of the Qwen3-Embedding report.

    The output has one JSON line per pair: query, positive, instruction if one is given, and meta, which says how the
    query was made. Every answer is kept in the journal: run the same command again to go on where it stopped.
    """
    from qwen_retrieval.training.synthesis import Chat, Journal, environment_key
    from qwen_retrieval.training.synthesis import synthesize as run

    if output == STANDARD_OUTPUT and (journal is None or as_json):
        raise typer.BadParameter("--output - needs a file for --journal, and excludes --json, which is printed too")
    check_lines_target(output)
    chat = Chat(url, model, environment_key(api_key_variable), _request(request))
    documents = _documents(corpus, field, input_format)
    people = [record.text for record in _records(personas, "persona", InputFormat.auto)]
    settings, chosen = ask.settings(), filters.settings(ask)
    total = len(documents) * settings.queries_per_document
    path = journal or Path(output + JOURNAL_SUFFIX)
    with (
        nullcontext() if embedder == NONE else load_embedder(embedder, load) as loaded,
        Journal(path) as answers,
        open_lines(output) as handle,
        display.progress("asking", min(total, (settings.limit or total) * settings.queries_per_document)) as update,
    ):
        pairs, report = run(
            documents, people, chat, answers,
            settings=settings, filters=chosen, embedder=loaded, instruction=instruction, update=update,
        )  # fmt: skip
        handle.writelines(json_line(pair).encode() + b"\n" for pair in pairs)
    _show(report, as_json)


def _show(report: SynthesisReport, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        for line in str(report).splitlines():
            display.note(line)
    if report.refused:
        raise typer.Exit(guard.INCOMPLETE)


def _request(given: str) -> dict[str, Any]:
    try:
        options = json.loads(given)
    except ValueError as error:
        raise typer.BadParameter(f"--request is not valid JSON: {error}") from None
    if not isinstance(options, dict):
        raise typer.BadParameter(f"--request must be a JSON object, but is {type(options).__name__}")
    return options


def _documents(path: str, field: str, input_format: InputFormat) -> list[Document]:
    from qwen_retrieval.training.synthesis import Document

    return [Document(record.text, _id(record)) for record in _records(path, field, input_format)]


def _id(record: Record) -> str:
    """What the record calls itself: "_id" as in BEIR, or "id"."""
    value = record.fields.get("_id", record.fields.get("id", ""))
    return value if isinstance(value, str) else json.dumps(value)


def _records(path: str, field: str, input_format: InputFormat) -> list[Record]:
    with open_records(path, field, input_format) as source:
        return list(source.records)
