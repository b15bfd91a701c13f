"""Asks for the queries of tasks, several at once, and writes down each answer before it asks for the next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qwen_retrieval.errors import EndpointError
from qwen_retrieval.training.filtering import TextEmbedder

from .chat import Chat, Message, RefusedError
from .journal import Journal, journal_key
from .personas import drawn_personas, nearest_personas
from .prompts import (
    VERSION,
    Configuration,
    MalformedAnswerError,
    configuration_prompt,
    parse_configuration,
    parse_query,
    query_prompt,
)
from .tasks import SynthesisSettings, Task

T = TypeVar("T")

_ALL_REFUSED = 16
"""So many requests refused, and none accepted: then it is not the documents."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: The task.
        configuration: The answer of the first stage, or None.
        query: The answer of the second stage; may be empty; None if a stage failed.
        failure: "", "malformed" or "refused".
        reason: Why it failed.
    """

    task: Task
    configuration: Configuration | None = None
    query: str | None = None
    failure: str = ""
    reason: str = ""


class Generator:
    """Asks a model for the queries of tasks.

    Args:
        chat: The model, opened with ``async with``.
        journal: Answers there are; new ones are added.
        personas: Who might ask.
        settings: What is asked for.
        embedder: Finds the personas that fit a document; without one they are drawn.

    Attributes:
        recalled: How many answers were in the journal.
    """

    def __init__(
        self,
        chat: Chat,
        journal: Journal,
        personas: Sequence[str],
        settings: SynthesisSettings,
        *,
        embedder: TextEmbedder | None = None,
    ) -> None:
        self.recalled = 0
        self._chat, self._journal, self._personas, self._settings = chat, journal, personas, settings
        self._embedder = embedder
        model = [VERSION, chat.model, dict(chat.options), settings.corpus_language]
        self._configuration_basis = [*model, "configuration", settings.seed, embedder is not None, list(personas)]
        self._configuration_basis = [journal_key(self._configuration_basis)]  # hash many personas once
        self._query_basis = [*model, "query"]
        self._candidates: dict[str, list[str]] = {}
        self._accepted = self._refused = 0
        self._stopped = False

    async def generate(
        self, tasks: Sequence[Task], update: Callable[[int], None] = lambda _done: None
    ) -> list[Outcome]:
        """Ask for everything that is not in the journal.

        When a request fails for good, no new ones are sent, but those that are open are waited for and written down.

        Args:
            tasks: What is asked for.
            update: Told how many tasks are done.

        Returns:
            What became of each task, in order.

        Raises:
            EndpointError: The endpoint does not answer, or refuses every request; the journal has what came before.
            OSError: The journal cannot be written.
        """
        self._find_candidates(tasks)
        outcomes: dict[int, Outcome] = {}
        remaining = iter(enumerate(tasks))
        workers = (self._work(remaining, outcomes, update) for _ in range(self._settings.concurrency))
        results = await asyncio.gather(*workers, return_exceptions=True)
        for error in filter(None, results):
            raise error
        return [outcomes[position] for position in range(len(tasks))]

    async def _work(
        self, remaining: Iterator[tuple[int, Task]], outcomes: dict[int, Outcome], update: Callable[[int], None]
    ) -> None:
        for position, task in remaining:
            if self._stopped:
                return
            try:
                outcomes[position] = await self._outcome(task)
            except BaseException:
                self._stopped = True
                raise
            update(len(outcomes))

    async def _outcome(self, task: Task) -> Outcome:
        configuration: Configuration | None = None
        try:
            configuration = await self._configure(task)
            return Outcome(task, configuration, await self._query(task, configuration))
        except MalformedAnswerError as error:
            return Outcome(task, configuration, failure="malformed", reason=str(error))
        except RefusedError as error:
            self._refused += 1
            if not self._accepted and self._refused >= _ALL_REFUSED:
                raise EndpointError(f"the first {self._refused} requests were all {error}") from None
            return Outcome(task, configuration, failure="refused", reason=str(error))

    async def _configure(self, task: Task) -> Configuration:
        def parse(answer: str) -> dict[str, str]:
            return parse_configuration(answer, self._candidates_of(task)).as_dict()

        key = self._configuration_key(task)
        if self._journal.get(key) is None:
            prompt = configuration_prompt(task.document.text, self._candidates_of(task), self._settings.corpus_language)
            return Configuration(**await self._asked(key, task, prompt, parse))
        return Configuration(**self._recalled(key))

    async def _query(self, task: Task, configuration: Configuration) -> str:
        asked = [task.document.key, task.index, task.language, task.words, configuration.as_dict()]
        key = journal_key(self._query_basis, asked)
        if self._journal.get(key) is None:
            corpus_language = self._settings.corpus_language
            prompt = query_prompt(
                task.document.text,
                configuration,
                corpus_language=corpus_language,
                language=task.language,
                words=task.words,
            )
            return await self._asked(key, task, prompt, parse_query)
        query: str = self._recalled(key)
        return query

    def _recalled(self, key: str) -> Any:  # noqa: ANN401 - the answer of either stage
        """An answer that is in the journal."""
        entry = self._journal.get(key)
        assert entry is not None
        self.recalled += 1
        if "malformed" in entry:
            raise MalformedAnswerError(entry["malformed"])
        return entry["answer"]

    async def _asked(self, key: str, task: Task, prompt: str, parse: Callable[[str], T]) -> T:
        """A new answer, which may need several attempts; told what was wrong, a model does better."""
        messages: list[Message] = [{"role": "user", "content": prompt}]
        about = {"document": task.document.key, "index": task.index}
        reason = ""
        for _ in range(self._settings.attempts):
            answer = await self._chat.ask(messages)
            self._accepted += 1
            try:
                parsed = parse(answer)
            except MalformedAnswerError as error:
                reason = str(error)
                correction = f"This cannot be used: {reason}. Return the JSON object only."
                messages = [
                    messages[0],
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": correction},
                ]
                continue
            self._journal.add(key, about | {"answer": parsed})
            return parsed
        self._journal.add(key, about | {"malformed": reason})
        raise MalformedAnswerError(reason)

    def _configuration_key(self, task: Task) -> str:
        return journal_key(self._configuration_basis, task.document.key, task.index)

    def _find_candidates(self, tasks: Sequence[Task]) -> None:
        """Retrieve the personas of the documents that are to be asked about, in one go."""
        if self._embedder is None:
            return
        missing = [task.document for task in tasks if self._journal.get(self._configuration_key(task)) is None]
        texts = list({document.text: document.key for document in missing}.items())
        found = nearest_personas(self._embedder, [text for text, _ in texts], self._personas)
        self._candidates = {key: personas for (_, key), personas in zip(texts, found, strict=True)}

    def _candidates_of(self, task: Task) -> list[str]:
        """In an order of each task's own: a model that likes the first best must not always choose the same."""
        seed = f"{self._settings.seed} {task.document.key} {task.index} personas"
        if self._embedder is None:
            return drawn_personas(seed, self._personas)
        candidates = self._candidates[task.document.key]
        return random.Random(seed).sample(candidates, len(candidates))
