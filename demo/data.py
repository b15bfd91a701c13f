"""Pairs as token ids in batches of one source, and as files for the commands; instructions in many words."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pairs import Pair
from tokenizers import Tokenizer
from torch import Tensor

DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"
QUERY_TOKENS, DOCUMENT_TOKENS = 40, 96
_GIVEN = (
    "a web search query", "a question", "a question about software", "a keyword", "a search phrase", "a goal",
    "the following goal", "a claim", "a sentence", "a title", "a programming question", "a term", "a user query",
    "the user query", "a problem", "a topic", "a short description", "a request", "a task", "a financial question",
)  # fmt: skip
_FIND = ("retrieve", "find", "return", "select", "retrieval the", "search for", "identify", "rank")
_WHAT = (
    "relevant passages", "documents", "passages", "the documentation", "text", "paragraphs", "a possible solution",
    "articles", "code snippets", "functions", "definitions", "the best matching document", "relevant documents",
)  # fmt: skip
_THAT = (
    "that answer the query", "that answer the question", "that explain it", "that match", "that describe it",
    "that support or refute it", "that help", "related to it", "with the same meaning", "", "", "useful to the user",
)  # fmt: skip
_FREE = (
    "Retrieve semantically similar text.", "Find the section of the manual", "Which document answers this?",
    "Represent this sentence for searching relevant passages", "Search the Python documentation",
    "Classify the sentiment of a review", "Identify the topic of the text", "Find a recipe", "Retrieve tweets",
    "Find the function that does this", "Judge by meaning, not by words", "Retrieve duplicate questions",
)  # fmt: skip


def random_task(rng: random.Random) -> str:
    """An instruction in one of many wordings."""
    if rng.random() < 0.25:
        return rng.choice(_FREE)
    text = f"Given {rng.choice(_GIVEN)}, {rng.choice(_FIND)} {rng.choice(_WHAT)} {rng.choice(_THAT)}".strip()
    return text + rng.choice(["", "."])


@dataclass
class Encoded:
    """Pairs as token ids, with teacher vectors for some of them.

    Attributes:
        pairs: The pairs themselves.
        queries: Ids of the bare queries.
        documents: Ids of the documents.
        teacher: (n, 2, 384) vectors of query and document for the first n pairs.
    """

    pairs: Sequence[Pair]
    queries: list[list[int]]
    documents: list[list[int]]
    teacher: npt.NDArray[np.float16] | None = None
    by_source: dict[str, list[int]] = field(default_factory=dict)


def encode(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Ids without special tokens, cut at a limit."""
    return [e.ids[:limit] for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[Pair], teacher: npt.NDArray[np.float16] | None = None
) -> Encoded:
    """Token ids of pairs, and the pairs of each source.

    Args:
        tokenizer: The demo tokenizer.
        pairs: What to encode.
        teacher: Vectors of the first of them.
    """
    by_source: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        by_source[pair.source].append(index)
    queries = encode(tokenizer, [p.query for p in pairs], QUERY_TOKENS)
    documents = encode(tokenizer, [p.document for p in pairs], DOCUMENT_TOKENS)
    return Encoded(pairs, queries, documents, teacher, dict(by_source))


def weight_of(source: str, count: int) -> float:
    """How often a source is trained on: larger ones more often, and the Python documentation most.

    Args:
        source: Its name.
        count: How many pairs it has.
    """
    boost = 2.5 if source.startswith(("docs/", "python/")) else 0.7 if source.startswith("wordnet/") else 1.0
    return boost * count**0.75


class Batches:
    """Seeded batches, each from one source."""

    def __init__(self, data: Encoded, size: int, seed: int) -> None:
        self.data, self.size, self.rng = data, size, random.Random(seed)
        self.sources = sorted(data.by_source)
        self.weights = [weight_of(s, len(data.by_source[s])) for s in self.sources]

    def next(self) -> list[int]:
        """Indices of one batch."""
        members = self.data.by_source[self.rng.choices(self.sources, self.weights)[0]]
        chosen = self.rng.sample(members, min(self.size, len(members)))
        if len(chosen) < self.size // 2:  # a small source alone would be too easy
            other = self.data.by_source["docs/section"]
            chosen = list(dict.fromkeys([*chosen, *self.rng.sample(other, min(self.size - len(chosen), len(other)))]))
        return chosen


def text_ids(documents: Sequence[Sequence[int]]) -> Tensor:
    """(n, 1) numbers that are equal where two documents begin alike: near duplicates are not negatives."""
    numbers: dict[tuple[int, ...], int] = {}
    return torch.tensor([[numbers.setdefault(tuple(d[:24]), len(numbers))] for d in documents])


def distillable(data: Encoded, chosen: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Rows of a batch that have teacher vectors, and these vectors: queries first, then documents."""
    if data.teacher is None:
        return None
    rows = [row for row, index in enumerate(chosen) if index < len(data.teacher)]
    if len(rows) < 8:
        return None
    vectors = torch.from_numpy(data.teacher[[chosen[r] for r in rows]].astype(np.float32))
    return torch.tensor(rows), torch.cat([vectors[:, 0], vectors[:, 1]])


def mixture(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """About `count` pairs, of each source as many as `weight_of` says, at most each pair twice.

    Sources of less than 80 pairs are left out: the batches of a source hold its pairs only.
    """
    rng, by_source = random.Random(seed), defaultdict[str, list[Pair]](list)
    for pair in pairs:
        by_source[pair.source].append(pair)
    weights = {s: weight_of(s, len(own)) for s, own in sorted(by_source.items()) if len(own) >= 80}
    chosen: list[Pair] = []
    for source, weight in weights.items():
        own, wanted = by_source[source], round(count * weight / sum(weights.values()))
        chosen += own * (wanted // len(own) > 0) + rng.sample(own, min(len(own), wanted % len(own)))
    return chosen


def write_training(path: Path, pairs: Sequence[Pair], seed: int, *, default: float, none: float) -> None:
    """Write pairs as `qwen-retrieval train` reads them, under many instructions.

    Args:
        path: The JSON lines.
        pairs: What to write; the source is the task, so that batches are of one source.
        seed: Of the instructions.
        default: Share of the queries with the default instruction.
        none: Share of those without any.
    """
    rng = random.Random(seed)
    tasks = [random_task(rng) for _ in range(300)]
    with path.open("w", encoding="utf-8") as lines:
        for pair in pairs:
            fields = {"query": pair.query, "positive": pair.document, "task": pair.source}
            if (drawn := rng.random()) >= default:
                fields["instruction"] = "" if drawn >= 1 - none else rng.choice(tasks)
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")


def write_beir(folder: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as a test set in BEIR's format: each query has its one document to find among all."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": p.document} for i, p in enumerate(pairs)]
    queries = [{"_id": f"q{i}", "text": p.query} for i, p in enumerate(pairs)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(len(pairs)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
