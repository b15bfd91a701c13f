"""What is computed: the workloads W1 to W10, lengths drawn from a seed, and texts that have exactly these lengths.

Lengths are in tokens of the published tokenizer, without templates. A longer list of the same workload begins with the
shorter one. Texts are prose of the Python standard library's docstrings, in pieces of a few words, so that no two
begin alike.
"""

from __future__ import annotations

import ast
import functools
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

SEED = 20261120

RUN, WORD = 2, 7
"""Words of prose that stay together, and most tokens of a word: together less than our engine would share."""

Task = Literal["documents", "queries", "pairs"]
"""Embed documents, embed queries with the default instruction, or score pairs of a query and a document."""

Item = str | tuple[str, str]
"""A text to embed, or a query and a document to score."""

Draw = Callable[[random.Random], int]


def lognormal(mu: float, sigma: float, cap: int) -> Draw:
    """Lengths around exp(mu), at least 4 and at most `cap`."""
    return lambda rng: max(4, min(cap, round(rng.lognormvariate(mu, sigma))))


def fixed(length: int) -> Draw:
    """Always the same length."""
    return lambda _: length


def uniform(least: int, most: int) -> Draw:
    """Lengths from `least` to `most`, both included."""
    return lambda rng: rng.randint(least, most)


PASSAGES = lognormal(4.25, 0.42, 512)
"""As MS MARCO's passages: mean 76, one in a hundred above 185."""

QUERIES = uniform(4, 24)

LONGEST = 8191
"""With the end token 8,192, which all contenders take without cutting."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work.

    Attributes:
        name: Such as ``W1``.
        what: In a few words, for tables.
        task: What is asked for.
        draw: Length of one document, or of one query for the task ``queries``.
        cpu: How many items on a CPU.
        gpu: How many on a GPU with the 0.6B shape; larger shapes get fewer, see `default_items`.
        per_call: Items of one call; None for all in one. The items of a call to score pairs have one query.
    """

    name: str
    what: str
    task: Task
    draw: Draw
    cpu: int
    gpu: int
    per_call: int | None = None

    @property
    def kind(self) -> Literal["embedding", "reranking"]:
        """Which of the two models does it."""
        return "reranking" if self.task == "pairs" else "embedding"

    @property
    def is_latency(self) -> bool:
        """Whether somebody waits for each single item."""
        return self.per_call == 1


WORKLOADS: tuple[Workload, ...] = (
    Workload("W1", "passages of 76 tokens", "documents", PASSAGES, 64, 4096),
    Workload("W2", "4 to 8,192 tokens, mean 300", "documents", lognormal(5.2, 1.0, LONGEST), 16, 1024),
    Workload("W3", "documents of 512", "documents", fixed(512), 8, 512),
    Workload("W4", "documents of 8,192", "documents", fixed(LONGEST), 1, 24),
    Workload("W5", "queries with instruction", "queries", QUERIES, 64, 4096),
    Workload("W6", "1 query x 100 passages", "pairs", PASSAGES, 100, 100, 100),
    Workload("W7", "1 query x 100 documents of 512", "pairs", fixed(512), 20, 100, 100),
    Workload("W8", "64 queries x 100 passages", "pairs", PASSAGES, 200, 6400, 100),
    Workload("W9", "one query at a time", "queries", QUERIES, 20, 200, 1),
    Workload("W10a", "64 passages", "documents", PASSAGES, 64, 64),
    Workload("W10b", "1 query x 20 passages", "pairs", PASSAGES, 20, 20, 20),
    Workload("W10c", "1 query x 100 passages", "pairs", PASSAGES, 100, 100, 100),
    Workload("W10d", "one query at a time", "queries", QUERIES, 20, 20, 1),
)
"""All workloads; W10, the CPU set, is four."""


def select(names: Sequence[str]) -> list[Workload]:
    """Workloads by name, in the order of `WORKLOADS`; ``W10`` names all four of its parts.

    Raises:
        ValueError: A name is unknown.
    """
    known = {workload.name for workload in WORKLOADS} | {"W10"}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"workload must be one of {', '.join(sorted(known))}, but got {', '.join(unknown)}")
    return [one for one in WORKLOADS if one.name in names or (one.name.startswith("W10") and "W10" in names)]


def default_items(workload: Workload, device: str, model: str, scale: float = 1.0) -> int:
    """How many items to measure: fewer on a CPU, and on a GPU fewer the larger the model.

    Args:
        workload: The work.
        device: "cpu", or anything else for a GPU.
        model: "0.6B", "4B" or "8B".
        scale: Multiplies the number; at least one item is left.
    """
    share = 1.0 if device == "cpu" or workload.is_latency else {"0.6B": 1.0, "4B": 1 / 4, "8B": 1 / 8}[model]
    least = min(workload.gpu, workload.per_call or 1)  # a call is not cut for a larger model
    wanted = workload.cpu if device == "cpu" else max(least, round(workload.gpu * share))
    return max(1, round(wanted * scale))


def draw_lengths(draw: Draw, count: int, seed: str) -> list[int]:
    """`count` token counts; a longer list of the same seed begins with these."""
    rng = random.Random(f"{SEED} {seed}")
    return [draw(rng) for _ in range(count)]


def prose(most: int = 2_000_000) -> str:
    """The docstrings of the standard library's modules, one after the other, until they are `most` characters."""
    folder, parts, size = Path(sysconfig.get_path("stdlib")), [], 0
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        text = ast.get_docstring(tree) or ""
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text += "\n" + (ast.get_docstring(node) or "")
        parts.append(text)
        size += len(text)
        if size > most:
            break
    return " ".join(" ".join(parts).split())


@functools.cache
def _ascii_words() -> tuple[str, ...]:
    # Only what begins with a letter: at a space before a letter the tokenizer always cuts, so that counts add up.
    return tuple(word for word in prose(250_000).split() if re.fullmatch(r"[A-Za-z][!-~]*", word))


class Writer:
    """Writes texts of exactly so many tokens.

    Args:
        tokenizer: The published tokenizer, or one that splits before each space followed by a letter as it does.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        distinct = list(dict.fromkeys(_ascii_words()))
        inner = tokenizer.encode_batch_fast([f" {word}" for word in distinct], add_special_tokens=False)
        first = tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        self._inner = {word: len(one.ids) for word, one in zip(distinct, inner, strict=True)}
        self._first = {word: len(one.ids) for word, one in zip(distinct, first, strict=True)}
        self._words = [word for word in _ascii_words() if max(self._inner[word], self._first[word]) <= WORD]
        self._short = [word for word in distinct if self._inner[word] == 1 and self._first[word] == 1]

    @classmethod
    def from_folder(cls, folder: Path) -> Writer:
        """A writer for the tokenizer in a checkpoint's folder."""
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def texts(self, lengths: Sequence[int], seed: str) -> list[str]:
        """One text of each length, the same for the same seed."""
        rng = random.Random(f"{SEED} {seed} texts")
        return [self._text(length, rng) for length in lengths]

    def _text(self, length: int, rng: random.Random) -> str:
        words: list[str] = []
        left = length
        for word in self._stream(rng):
            cost = (self._inner if words else self._first)[word]
            if cost > left:  # one token fits always
                word, cost = rng.choice(self._short), 1
            words.append(word)
            left -= cost
            if not left:
                break
        return " ".join(words)

    def _stream(self, rng: random.Random) -> Iterator[str]:
        while True:
            start = rng.randrange(len(self._words) - RUN)
            yield from self._words[start : start + RUN]


def write_items(workload: Workload, count: int, writer: Writer) -> list[Item]:
    """The workload's first `count` items."""
    texts = writer.texts(draw_lengths(workload.draw, count, workload.name), workload.name)
    if workload.task != "pairs":
        return list(texts)
    per_call = workload.per_call or count
    lengths = draw_lengths(QUERIES, -(-count // per_call), f"{workload.name} queries")
    queries = writer.texts(lengths, f"{workload.name} queries")
    return [(queries[i // per_call], text) for i, text in enumerate(texts)]


def calls(workload: Workload, items: Sequence[Item]) -> list[list[Item]]:
    """The items, call by call."""
    step = workload.per_call or max(1, len(items))
    return [list(items[start : start + step]) for start in range(0, len(items), step)]


def documents(count: int, folder: Path) -> list[str]:
    """`count` passages of W1, by the tokenizer in `folder`."""
    return [str(text) for text in write_items(WORKLOADS[0], count, Writer.from_folder(folder))]
