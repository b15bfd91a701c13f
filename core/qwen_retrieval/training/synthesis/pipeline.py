"""The whole way from documents to training pairs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qwen_retrieval.templates import check_texts
from qwen_retrieval.training.filtering import TextEmbedder

from .chat import Chat, Usage
from .filters import FilterSettings, Pair, filter_pairs
from .generation import Generator, Outcome
from .journal import Journal
from .tasks import Document, SynthesisSettings, Task, distinct, plan_tasks


@dataclass(frozen=True, slots=True)
class SynthesisReport:
    """What became of the documents.

    Attributes:
        documents: Given.
        repeated: Of those, without text or with the text of one before.
        tasks: Queries that were asked for.
        recalled: Answers that were in the journal.
        malformed: Queries given up because an answer stayed malformed; they are not asked for again.
        refused: Queries that the endpoint refused; the next run asks for them again.
        reason: Why the first of those was refused, or "".
        dropped: Reason of `filter_pairs` -> how many pairs were left out for it.
        kept: Pairs that are left.
        cosines: How alike queries and documents were, in words; "" without an embedder.
        usage: What was sent in this run.
    """

    documents: int
    repeated: int
    tasks: int
    recalled: int
    malformed: int
    refused: int
    reason: str
    dropped: dict[str, int]
    kept: int
    cosines: str
    usage: Usage = field(default_factory=Usage)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        dropped = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.dropped.items()) or "none"
        lines = [
            f"{self.documents:,} documents, {self.repeated:,} of them repeated or empty; "
            f"{self.tasks:,} queries asked for",
            f"{self.usage.requests:,} requests, {self.usage.retries:,} of them repeated after a failure; "
            f"{self.recalled:,} answers were in the journal; "
            f"{self.usage.prompt_tokens:,} + {self.usage.completion_tokens:,} tokens",
            f"{self.malformed:,} queries given up as malformed, {self.refused:,} refused",
            f"left out: {dropped}",
            f"{self.kept:,} pairs",
        ]
        lines += [f"cosines: {self.cosines}"] if self.cosines else []
        lines += [f"the first refusal: {self.reason}"] if self.reason else []
        return "\n".join(lines)


def synthesize(
    documents: Iterable[Document],
    personas: Iterable[str],
    chat: Chat,
    journal: Journal,
    *,
    settings: SynthesisSettings | None = None,
    filters: FilterSettings | None = None,
    embedder: TextEmbedder | None = None,
    instruction: str | None = None,
    update: Callable[[int], None] = lambda _done: None,
) -> tuple[list[dict[str, Any]], SynthesisReport]:
    """Make training pairs of documents, as the Qwen3-Embedding report does (arXiv 2506.05176, appendix A.1).

    For each query a language model first chooses who would look for the document, with what type of question and how
    difficult a one; then it writes the query. What can be drawn is drawn by the settings' seed; the answers are as
    reproducible as the endpoint. A run that was stopped goes on from its journal and asks nothing twice.

    Args:
        documents: What the queries must find.
        personas: Who might ask, as in Persona Hub (arXiv 2406.20094): one sentence each.
        chat: The model; closed at the end.
        journal: Where the answers are written down.
        settings: What is asked for.
        filters: Which pairs are left out.
        embedder: Finds the five personas that fit a document, unlike pairs, and near-duplicates; without one, five
            personas are drawn, and cosines are not looked at.
        instruction: The task of the queries: written into every pair, and used for its cosine.
        update: Told how many queries are done.

    Returns:
        Pairs with the fields query, positive, instruction (if given) and meta, in the order of the documents; and the
        counts.

    Raises:
        EndpointError: The endpoint does not answer or refuses every request; run again to go on from there.
        ValueError: There are no personas.
        TypeError: A text is no string.
        RuntimeError: Called in a running event loop; there, use `Generator` and `filter_pairs`.
    """
    settings, given = settings or SynthesisSettings(), list(documents)
    people = list(dict.fromkeys(filter(None, map(str.strip, check_texts("personas", personas)))))
    if not people:
        raise ValueError("personas must not be empty; give at least one, better thousands")
    texts = distinct(given)
    tasks = plan_tasks(texts, settings)
    generator = Generator(chat, journal, people, settings, embedder=embedder)
    outcomes = asyncio.run(_generate(generator, chat, tasks, update))
    pairs = [pair_of(outcome, chat.model) for outcome in outcomes if outcome.query is not None]
    filtered = filter_pairs(pairs, filters or FilterSettings(), embedder=embedder, instruction=instruction)
    refusals = [outcome.reason for outcome in outcomes if outcome.failure == "refused"]
    report = SynthesisReport(
        documents=len(given),
        repeated=len(given) - len(texts),
        tasks=len(tasks),
        recalled=generator.recalled,
        malformed=sum(outcome.failure == "malformed" for outcome in outcomes),
        refused=len(refusals),
        reason=next(iter(refusals), ""),
        dropped=dict(filtered.dropped),
        kept=len(filtered.pairs),
        cosines=str(filtered.positives or ""),
        usage=chat.usage,
    )
    return [_line(pair, instruction) for pair in filtered.pairs], report


def pair_of(outcome: Outcome, model: str) -> Pair:
    """The pair that a task led to.

    Args:
        outcome: With a query.
        model: What wrote it.
    """
    task, configuration = outcome.task, outcome.configuration
    if configuration is None or outcome.query is None:
        raise ValueError(f"this task failed ({outcome.failure}); take those whose query is not None")
    meta: dict[str, Any] = {"document": task.document.id or task.document.key, **configuration.as_dict()}
    meta |= {"language": task.language, "words": task.words, "model": model}
    return Pair(outcome.query, task.document.text, meta)


async def _generate(
    generator: Generator, chat: Chat, tasks: Sequence[Task], update: Callable[[int], None]
) -> list[Outcome]:
    async with chat:
        return await generator.generate(tasks, update)


def _line(pair: Pair, instruction: str | None) -> dict[str, Any]:
    line: dict[str, Any] = {"query": pair.query, "positive": pair.positive}
    return line | ({"instruction": instruction} if instruction else {}) | {"meta": pair.meta}
