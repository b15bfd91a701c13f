"""Hard negatives: documents that a model ranks high for a query, but not so high that they probably answer it.

The rule is TopK-PercPos of NV-Retriever (arXiv 2407.15831, section 3): a negative may score at most 95 % of what the
positive does, the best of the rules compared there. What lies above is taken for an answer that nobody has marked, near
duplicates of the positive among them. The Qwen3-Embedding report does not say how its negatives were found.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from qwen_retrieval.types import FloatArray

from .data import Example
from .filtering import TextEmbedder

QUERY_BLOCK, DOCUMENT_BLOCK = 512, 32_768
"""Similarities in memory at a time: 64 MB."""

Update = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class MiningSettings:
    """Which documents become negatives.

    Attributes:
        count: Most negatives of an example, those it has already included; 7 in ms-swift.
        first: Best rank that is taken, from 0; the query's positives have no rank.
        last: Ranks from this one on are not taken; the wider the window, the easier the negatives.
        ratio: A negative scores at most this part of what the example's positive scores. Over 1, documents that rank
            above the positive are taken too: false ones among them harm an embedder, but a reranker that never meets
            its embedder's mistakes learns to repeat them. Of a positive that scores nearly 0, it is nearly 0 too.
        margin: If it is not 0, a negative also scores at least this much less than the positive.
        seed: Which documents of the window are taken.
    """

    count: int = 7
    first: int = 0
    last: int = 100
    ratio: float = 0.95
    margin: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, but got {self.count}")
        if not 0 <= self.first < self.last:
            raise ValueError(f"ranks must be 0 <= first < last, but got first={self.first} and last={self.last}")
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"ratio must be positive, but got {self.ratio}")
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, but got {self.margin}")

    def limit(self, positive: float) -> float:
        """The highest similarity of a negative, given that of the positive; a ratio works alike on both sides of 0."""
        below = abs(positive) * (1 - self.ratio)
        return positive - (max(below, self.margin) if self.margin else below)


def mine_negatives(
    embedder: TextEmbedder,
    examples: Sequence[Example],
    corpus: Iterable[str],
    settings: MiningSettings | None = None,
    *,
    update: Update | None = None,
) -> Iterator[Example]:
    """Find negatives for each example, by exact search over all documents.

    The corpus is embedded once, and its vectors stay in memory: 4 d bytes a document. What is drawn for a query depends
    on seed and query alone, not on the order of the examples.

    Args:
        embedder: Ranks the documents; better a strong one.
        examples: The queries and what answers them; a query with several positives has an example for each.
        corpus: Documents; the same text, but for case and spaces, counts once.
        settings: See `MiningSettings`.
        update: Told how many examples are done.

    Yields:
        The examples in order, each with as many negatives as were found, its own first, then the most similar first.

    Raises:
        ValueError: The corpus is empty.
    """
    settings = settings or MiningSettings()
    documents = list({_key(text): text for text in corpus}.values())
    if not documents:
        raise ValueError("the corpus has no documents to find negatives in")
    keys = [_key(text) for text in documents]
    known: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        known[example.query].add(_key(example.positive))
    vectors = torch.from_numpy(embedder.embed_documents(documents))  # (n, d)
    most = max(map(len, known.values()), default=0)
    for start in range(0, len(examples), QUERY_BLOCK):
        block = examples[start : start + QUERY_BLOCK]
        asked = torch.from_numpy(_embed_queries(embedder, block))  # (q, d)
        answers = embedder.embed_documents([example.positive for example in block])  # (q, d)
        positive = np.einsum("qd,qd->q", asked.numpy(), answers)  # (q,)
        scores, ranks = exact_top(asked, vectors, settings.last + most)
        for row, example in enumerate(block):
            ranked = [
                (float(score), int(index))
                for score, index in zip(scores[row], ranks[row], strict=True)
                if keys[index] not in known[example.query]
            ]
            found = _choose(example, ranked, settings.limit(float(positive[row])), keys, settings)
            yield replace(example, negatives=(*example.negatives, *(documents[i] for i in found)))
        if update:
            update(start + len(block))


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def _embed_queries(embedder: TextEmbedder, examples: Sequence[Example]) -> FloatArray:
    """(n, d), each query with the instruction of its example."""
    places: dict[str | None, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        places[example.instruction].append(i)
    parts = [embedder.embed_queries([examples[i].query for i in own], instruction=i_) for i_, own in places.items()]
    order = np.argsort(np.concatenate([np.array(own) for own in places.values()]))
    return np.concatenate(parts)[order]


def exact_top(
    queries: torch.Tensor, documents: torch.Tensor, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The most similar documents of each query, by blocks of documents.

    Args:
        queries: (q, d) float32.
        documents: (n, d) float32.
        count: How many; all if there are fewer.

    Returns:
        (q, count) similarities, the highest first, and the numbers of the documents.
    """
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(documents), DOCUMENT_BLOCK):
        block = queries @ documents[start : start + DOCUMENT_BLOCK].T  # (q, b)
        best, places = block.topk(min(count, block.shape[1]), dim=1)
        scores, numbers = torch.cat([scores, best], dim=1), torch.cat([numbers, places + start], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, numbers = scores[:, :count], numbers.gather(1, order)[:, :count]
    return scores.numpy(), numbers.numpy()


def _choose(
    example: Example, ranked: list[tuple[float, int]], limit: float, keys: Sequence[str], settings: MiningSettings
) -> list[int]:
    """Numbers of documents drawn from the window of ranks, the most similar first."""
    has = {_key(text) for text in example.negatives}
    window = ranked[settings.first : settings.last]
    allowed = [index for score, index in window if score <= limit and keys[index] not in has]
    wanted = min(max(0, settings.count - len(example.negatives)), len(allowed))
    digest = hashlib.blake2b(f"{settings.seed} {example.query}".encode(), digest_size=8).digest()
    drawn = np.random.default_rng(int.from_bytes(digest, "little")).choice(len(allowed), wanted, replace=False)
    return [allowed[i] for i in sorted(drawn)]
