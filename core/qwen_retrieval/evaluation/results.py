"""What an evaluation gives: one tree of plain data, to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

SCHEMA = 1
"""Number of the JSON form; it grows when a field changes its meaning or goes away."""

Kind = Literal["bm25", "embedder", "reranker"]
Quantization = Literal["none", "int8", "binary", "binary+rescore"]
Topic = Literal["storage", "memory", "instruction", "reranking", "bm25", "data"]


@dataclass(frozen=True, slots=True)
class Data:
    """The test set.

    Attributes:
        name: What it is called.
        documents: How many there are.
        queries: How many were evaluated.
        judgements: How many relevant documents the queries have in all.
        notes: What was left out or is odd, one sentence each.
    """

    name: str
    documents: int
    queries: int
    judgements: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Setup:
    """What it was evaluated with.

    Attributes:
        version: Of qwen-retrieval.
        created: When, as ISO 8601 in UTC.
        embedder: The model, with the revision that was asked for.
        reranker: The same, or None.
        device: Where the embedder computed, such as "cuda:0".
        dtype: What it computed in.
        instructions: Name -> sentence, as the queries got it; "" for none.
        rerank_instruction: The reranker's sentence, or None without a reranker.
        metrics: The measures; the first is the one that is compared and advised by.
        base: Name of the system that others vary from: each option's first value, without reranking.
        baseline: Name of the system that all others are compared with.
        resamples: Of the significance tests.
        seed: Of their random numbers.
    """

    version: str
    created: str
    embedder: str
    reranker: str | None
    device: str
    dtype: str
    instructions: dict[str, str]
    rerank_instruction: str | None
    metrics: tuple[str, ...]
    base: str
    baseline: str
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table.

    Attributes:
        name: Unique in the evaluation.
        kind: "bm25", "embedder" alone, or the embedder with the "reranker".
        dimensions: Length of the vectors; None for BM25, as the next four.
        quantization: How the documents' vectors are kept. "binary+rescore" searches codes and sorts what it found, four
            times as much as asked for, by full vectors. Queries always have full precision.
        instruction: Name of the queries' instruction, a key of `Setup.instructions`.
        searched_bytes: Bytes of each document that a search looks through, so must be quick to reach: 4 for each
            dimension, 1 and a scale of 4 for ``int8``, 1/8 for the binary ones.
        stored_bytes: Bytes of each document that are kept in all: the same, and the full vectors for rescoring.
        rerank_depth: How many of the first documents were reranked; None without a reranker.
        query_seconds: What embedding one query took here, in batches; None if it was in the cache.
        rerank_seconds: What reranking took for one query here, in batches; None without a reranker.
        means: Measure -> mean over the queries.
        values: The first measure, of each query, in the order of `Evaluation.queries`.
    """

    name: str
    kind: Kind
    dimensions: int | None
    quantization: Quantization | None
    instruction: str | None
    searched_bytes: int | None
    stored_bytes: int | None
    rerank_depth: int | None
    query_seconds: float | None
    rerank_seconds: float | None
    means: dict[str, float]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What something took on this machine.

    Attributes:
        name: What was done.
        items: To how many texts, or pairs.
        computed: How many of them were not in the cache.
        seconds: How long those took.
    """

    name: str
    items: int
    computed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether one system is better than another in the first measure; see `significance.compare`.

    Attributes:
        family: Which comparisons it was corrected together with: "baseline" (the table's), or a topic of the advice.
        system: Name of the system.
        baseline: Name of the one it is compared with.
        difference: Mean over queries of the system's value less the baseline's.
        low: Lower end of the 95 % interval of that difference.
        high: Its upper end.
        p: p-value, two-sided.
        p_holm: The same, corrected for the family.
    """

    family: str
    system: str
    baseline: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Advice:
    """One recommendation; see `recommendation` for the rules.

    Attributes:
        topic: What it is about.
        system: Name of the system that is recommended, or None.
        text: The recommendation and its reason, in words.
    """

    topic: Topic
    system: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A document in a list of results.

    Attributes:
        id: Its id.
        text: Its beginning; "" if the corpus does not have it.
        grade: Its grade for the query; 0 if it was not judged.
    """

    id: str
    text: str
    grade: int


@dataclass(frozen=True, slots=True)
class Query:
    """A query that was evaluated.

    Attributes:
        id: Its id.
        text: Its text.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """A query that the best system did worst at, and what was found.

    Attributes:
        query: Its id.
        relevant: What should have been found, by falling grade.
        found: Name of a system -> its first documents: BM25, the base, and the best of the others.
    """

    query: str
    relevant: tuple[Passage, ...]
    found: dict[str, tuple[Passage, ...]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All results of one evaluation.

    Attributes:
        schema: Number of this form.
        data: The test set.
        setup: Models and settings.
        systems: The rows of the table: BM25, dimensions and quantizations, other instructions, reranking.
        steps: What was done, and how long it took here.
        comparisons: Which differences are significant.
        advice: What to use, and why.
        queries: The queries, in the order of the values of each system.
        worst: The queries that the best system did worst at, the worst first.
    """

    schema: int
    data: Data
    setup: Setup
    systems: tuple[System, ...]
    steps: tuple[Step, ...]
    comparisons: tuple[Comparison, ...]
    advice: tuple[Advice, ...]
    queries: tuple[Query, ...]
    worst: tuple[Example, ...]

    def system(self, name: str) -> System:
        """The system of that name.

        Raises:
            KeyError: There is none.
        """
        return {system.name: system for system in self.systems}[name]

    def to_json(self) -> str:
        """The results as one JSON object, with the names of the attributes; floats come back exactly."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The results that `to_json` wrote.

        Raises:
            ValueError: `text` is not JSON of this form, or of another version of it.
        """
        value = json.loads(text)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"expected results of an evaluation with schema {SCHEMA}, but got schema {schema!r}")
        try:
            result: Self = _decode(cls, value)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no complete results of an evaluation: {error!r}") from error
        return result


def _decode(kind: Any, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A value as its annotation says: dataclasses, tuples and dictionaries of them, and plain values."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{one.name: _decode(hints[one.name], value[one.name]) for one in fields(kind)})  # type: ignore[operator]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return tuple(_decode(arguments[0], one) for one in _checked(list, value))
    if origin is dict:
        return {name: _decode(arguments[1], one) for name, one in _checked(dict, value).items()}
    if origin in (Union, UnionType):
        return None if value is None else _decode(arguments[0], value)
    if origin is Literal:
        return _checked_choice(arguments, value)
    return float(value) if kind is float and type(value) is int else _checked(kind, value)


def _checked(kind: type[Any], value: Any) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, but got {value!r:.40}")
    return value


def _checked_choice(choices: Iterable[Any], value: Any) -> Any:  # noqa: ANN401
    if value not in choices:
        raise TypeError(f"expected one of {choices}, but got {value!r:.40}")
    return value
