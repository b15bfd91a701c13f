"""Which queries are asked for: documents sampled, and for each of their queries a language and a length drawn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwen_retrieval.templates import check_texts

LENGTHS = (5, 10, 20, 40)
"""Words of a query. The report draws a length, but does not print from what; ours."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that queries are made for.

    Attributes:
        text: The text.
        id: What the caller calls it; goes into the pairs' ``meta``.
    """

    text: str
    id: str = ""

    @property
    def key(self) -> str:
        """32 hexadecimal digits of the SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class SynthesisSettings:
    """What is asked for.

    Attributes:
        corpus_language: English name of the language of the documents.
        languages: English names; the language of each query is drawn from them.
        lengths: In words; the length of each query is drawn from them.
        queries_per_document: How many queries are asked for per document.
        limit: How many documents are sampled; None for all.
        seed: Decides all that is drawn. A larger limit, more queries and more documents add to what was drawn before,
            and change none of it.
        concurrency: How many requests are open at most.
        attempts: How often a question is asked until its answer is well-formed.

    Raises:
        ValueError: Something is empty or less than 1.
    """

    corpus_language: str = "English"
    languages: tuple[str, ...] = ("English",)
    lengths: tuple[int, ...] = LENGTHS
    queries_per_document: int = 1
    limit: int | None = None
    seed: int = 0
    concurrency: int = 8
    attempts: int = 3

    def __post_init__(self) -> None:
        numbers = {"queries_per_document": self.queries_per_document, "concurrency": self.concurrency}
        numbers |= {"attempts": self.attempts, "lengths": min(self.lengths, default=0)}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}")
        if not self.languages:
            raise ValueError("languages must name one language at least")


@dataclass(frozen=True, slots=True)
class Task:
    """One query that is asked for.

    Attributes:
        document: What it must find.
        index: Which of the document's queries, from 0.
        language: English name.
        words: How long it shall be.
    """

    document: Document
    index: int
    language: str
    words: int


def distinct(documents: Iterable[Document]) -> list[Document]:
    """The documents that have a text, the first of those with the same text, in order.

    Raises:
        TypeError: A text is no string.
        InputError: A text cannot be encoded.
    """
    given = list(documents)
    check_texts("documents", [document.text for document in given])
    return list({document.text: document for document in reversed(given) if document.text.strip()}.values())[::-1]


def plan_tasks(documents: Sequence[Document], settings: SynthesisSettings) -> list[Task]:
    """Sample documents, and draw what is asked for; both depend on the seed and each document's own text only.

    Args:
        documents: From `distinct`.
        settings: What is asked for.

    Returns:
        The tasks, in the order of the documents.
    """
    chosen = sorted(documents, key=lambda document: random.Random(f"{settings.seed} {document.key}").random())
    kept = {document.key for document in chosen[: settings.limit]}
    return [
        _drawn(document, index, settings)
        for document in documents
        if document.key in kept
        for index in range(settings.queries_per_document)
    ]


def _drawn(document: Document, index: int, settings: SynthesisSettings) -> Task:
    draw = random.Random(f"{settings.seed} {document.key} {index}")
    return Task(document, index, draw.choice(settings.languages), draw.choice(settings.lengths))
