"""Training data as JSON lines: a query, its positive, hard negatives; and the order in which they are trained on.

    {"query": "…", "positive": "…", "negatives": ["…"], "instruction": "…", "task": "…", "meta": {…}}

Only the first two are needed, and the last is not trained on. A file is read once from end to end, so that a bad line
is known before hours of training, and then line by line as batches need them: what is in memory is two numbers for each
line.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from qwen_retrieval.instructions import resolve_instruction

Indices = npt.NDArray[np.int64]

FIELDS = ("query", "positive", "negatives", "instruction", "task", "meta")
"""What a line may have, in the order in which it is written."""

PART_TOKENS, ALIKE = 4096, 0.9
"""A part of so many tokens takes in no input shorter than `ALIKE` times its longest: padding costs time."""


@dataclass(frozen=True, slots=True)
class Example:
    """One line of training data.

    Attributes:
        query: What is asked.
        positive: A document that answers it.
        negatives: Documents that do not, hardest first.
        instruction: The task in one sentence; None for the default of the training.
        task: Name of the task or source. Batches hold examples of one task; those without are told apart by their
            instruction.
        meta: How the line was made, as `synthesis` notes it: any JSON value. It is kept, and not trained on.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    task: str | None = None
    meta: Any = field(default=None, hash=False)


def parse_example(line: str | bytes) -> Example:
    """Read one line.

    Raises:
        ValueError: It is no JSON object with the fields of `Example`, or a field is empty or of another type.
    """
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"must be an object, but is {type(fields).__name__}")
    if unknown := [name for name in fields if name not in FIELDS]:
        raise ValueError(f"has the field {unknown[0]!r}, but the fields are {', '.join(FIELDS)}")
    negatives = [] if fields.get("negatives") is None else fields["negatives"]
    if not isinstance(negatives, list):
        raise ValueError(f"negatives must be a list of texts, but is {type(negatives).__name__}")
    return Example(
        query=_text("query", fields.get("query")),
        positive=_text("positive", fields.get("positive")),
        negatives=tuple(_text(f"negatives[{i}]", text) for i, text in enumerate(negatives)),
        instruction=_instruction(fields.get("instruction")),
        task=_optional("task", fields.get("task")),
        meta=fields.get("meta"),
    )


def _text(name: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty, but is {value!r:.60}")
    return _whole(name, value)


def _optional(name: str, value: Any) -> str | None:  # noqa: ANN401 - any JSON value
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, but is {value!r:.60}")
    return _whole(name, value)


def _instruction(value: Any) -> str | None:  # noqa: ANN401 - any JSON value
    """As it is; a misspelt name is known now, and not when its batch comes."""
    instruction = _optional("instruction", value)
    if instruction is not None:
        resolve_instruction(instruction)
    return instruction


def _whole(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} contains half of a surrogate pair at position {error.start}") from error
    return value


def read_examples(path: str | Path) -> Iterator[Example]:
    """The examples of a file in order, one at a time; empty lines are left out.

    Raises:
        ValueError: A line cannot be read; the message begins with file and line.
    """
    with open(path, "rb") as handle:
        yield from (example for _, _, example in _scan(handle, str(path)))


def write_examples(examples: Iterable[Example], handle: BinaryIO) -> int:
    """Write examples as JSON lines; returns how many."""
    count = 0
    for example in examples:
        values = {name: getattr(example, name) for name in FIELDS}
        kept = {name: value for name, value in values.items() if value not in (None, ())}
        handle.write(json.dumps(kept, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        count += 1
    return count


def _scan(handle: BinaryIO, name: str) -> Iterator[tuple[int, bytes, Example]]:
    """Where each example begins, its line, and itself."""
    place = 0
    for number, line in enumerate(handle, start=1):
        if line.strip():
            try:
                yield place, line, parse_example(line)
            except ValueError as error:
                raise ValueError(f"{name}:{number} {error}") from error
        place += len(line)


class ExampleFile:
    """A file of examples, each read from the disk when it is asked for.

    Args:
        path: JSON lines.

    Attributes:
        groups: (n,) int64, the same number for examples that may share a batch; see `Example.task`.
        queries: (n,) int64, the same number for the same query (by 63 bits of a hash).
        most_negatives: The most negatives that one example has.
        digest: SHA-256 of the examples, in hexadecimal.

    Raises:
        ValueError: A line cannot be read, with file and line; or the file has no examples.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        names: dict[tuple[str | None, str | None], int] = {}
        places, groups, queries, digest = array("q"), array("q"), array("q"), hashlib.sha256()
        self.most_negatives = 0
        with open(self.path, "rb") as handle:
            for place, line, example in _scan(handle, str(path)):
                digest.update(line)
                places.append(place)
                key = (example.task, None if example.task else example.instruction)
                groups.append(names.setdefault(key, len(names)))
                queries.append(_hash(example.query))
                self.most_negatives = max(self.most_negatives, len(example.negatives))
        if not places:
            raise ValueError(f"{path} has no examples")
        self._places = np.array(places, dtype=np.int64)
        self.groups: Indices = np.array(groups, dtype=np.int64)
        self.queries: Indices = np.array(queries, dtype=np.int64)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, indices: Iterable[int]) -> list[Example]:
        """The examples with these numbers, in that order."""
        with open(self.path, "rb") as handle:
            examples = []
            for index in indices:
                handle.seek(self._places[index])
                examples.append(parse_example(handle.readline()))
        return examples


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def hold_out(queries: Indices, share: float, *, seed: int) -> tuple[Indices, Indices]:
    """Keep some queries aside, with all their examples, so that none is on both sides.

    Args:
        queries: (n,) numbers of the queries, such as `ExampleFile.queries`.
        share: Of the distinct queries, from 0 (none) to less than 1; at least one if it is not 0.
        seed: Which ones.

    Returns:
        The numbers of the examples to train on, and of those held out; sorted.

    Raises:
        ValueError: The share is out of range, or leaves nothing to train on.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share that is held out must be from 0 to less than 1, but got {share}")
    distinct = np.unique(queries)
    count = max(1, round(share * len(distinct))) if share else 0
    if count >= len(distinct):
        raise ValueError(f"holding out {share:g} of {len(distinct)} distinct queries leaves nothing to train on")
    chosen = np.random.default_rng([seed, 1]).permutation(distinct)[:count]
    is_out = np.isin(queries, chosen)
    return np.flatnonzero(~is_out), np.flatnonzero(is_out)


def epoch_batches(indices: Indices, groups: Indices, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """All examples once, in batches of one group each, in an order that seed and epoch decide.

    In-batch negatives of another source are told apart by their source alone, which teaches nothing: so a batch has
    one, as in Nomic Embed (arXiv 2402.01613, "Weakly Supervised Contrastive Pretraining"). The Qwen3-Embedding report
    does not say how its batches are composed.

    Args:
        indices: (n,) the examples.
        groups: The group of every example of the file, from which those of `indices` are taken.
        batch_size: Most examples of a batch; the last one of a group is smaller.
        seed: Of the training.
        epoch: From 0.

    Returns:
        The batches, as numbers of examples.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
    generator = np.random.default_rng([seed, 2, epoch])
    own = groups[indices]
    batches: list[Indices] = []
    for group in np.unique(own):
        members = generator.permutation(indices[own == group])
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def cut_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Divide inputs into parts of at most `max_tokens` tokens with padding, and of alike lengths once they are large.

    Args:
        lengths: Tokens of each input.
        max_tokens: Rows times longest row; an input that is longer is a part of its own.

    Returns:
        Positions in `lengths`, the longest inputs first, so that what does not fit into memory fails at once.
    """
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[parts[-1][0]] if parts else 0
        padded = len(parts[-1]) * longest if parts else 0
        is_alike = padded < PART_TOKENS or lengths[index] >= ALIKE * longest
        if parts and padded + longest <= max_tokens and is_alike:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
