"""Which inputs go into one batch, and how: integers only, decided without a device.

Inputs that begin alike are computed once up to where they part. `pack` lays a batch out as a forest of segments: a
shared beginning is one segment, and the segments below it go on from there. A token attends to the tokens before it
in its own segment and to all tokens of the segments above, which together are exactly the beginning of its input. So
sharing changes how much is computed and nothing of what comes out.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qwen_retrieval.types import TokenIds

IndexArray = npt.NDArray[np.int64]
"""An int64 numpy array; the docstring beside it gives the shape."""

Item = TypeVar("Item")

MIN_SHARED_TOKENS = 16
"""A shared beginning shorter than this is computed anew for each input: a segment of its own would cost more."""

_COMPARED_AT_ONCE = 1 << 20
"""How many tokens `_shared_lengths` compares in one numpy call: enough to be fast, at most some 40 MB."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The forest of a packed batch: s segments, depth first, so that a segment's descendants follow it directly.

    Attributes:
        starts: (s,) int64, the row of each segment's first token in the packed batch.
        lengths: (s,) int64, tokens in each segment, at least 1.
        parents: (s,) int64, the index of the segment that each one goes on from, always a smaller one; -1 for none.
        depths: (s,) int64, how many tokens of the input stand before the segment: the position of its first token.
    """

    starts: IndexArray
    lengths: IndexArray
    parents: IndexArray
    depths: IndexArray


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """n inputs as one row of T tokens without padding, in which a shared beginning stands once.

    Attributes:
        token_ids: (T,) int64, segment after segment.
        positions: (T,) int64, the place of each token in its input, from 0.
        segments: Which tokens belong together and what they attend to.
        last: (n,) int64, the row of each input's last token, in input order. No two inputs share that row.
        behind: How many tokens all inputs begin with that are not in here, because they are computed already.
    """

    token_ids: IndexArray
    positions: IndexArray
    segments: Segments
    last: IndexArray
    behind: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens the inputs have together."""
        return int(self.positions[self.last].sum()) + len(self.last)

    @property
    def computed_tokens(self) -> int:
        """How many tokens have to be computed: T, at most `tokens`."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class SharingOrder:
    """n inputs in lexicographic order, where those that begin alike are neighbours, and what they cost in a batch.

    Attributes:
        indices: The position of each input in the list that was given.
        lengths: Tokens of each input.
        costs_so_far: Running sum of what each input adds to a batch that holds the one before it, at most.
    """

    indices: list[int]
    lengths: list[int]
    costs_so_far: list[int]

    def stop(self, start: int, max_batch_tokens: int) -> int:
        """The end of the longest stretch from `start` that fits.

        Inputs `start` to `stop` - 1 together compute at most `max_batch_tokens` tokens. That holds as well for
        several stretches in one batch, of this order or another: their costs add up to an upper bound.

        Returns:
            `start` itself if not even that input fits.
        """
        base = self.costs_so_far[start] - self.lengths[start]
        return bisect_right(self.costs_so_far, base + max_batch_tokens, lo=start)

    def cost(self, start: int, stop: int) -> int:
        """How many tokens inputs `start` to `stop` - 1 compute in one batch, at most; 0 if there are none."""
        if start == stop:
            return 0
        return self.lengths[start] + self.costs_so_far[stop - 1] - self.costs_so_far[start]


def dedupe(
    items: Sequence[Item], *, key: Callable[[Item], Hashable] | None = None
) -> tuple[list[Item], npt.NDArray[np.intp]]:
    """Leave out repetitions.

    Args:
        items: Any n items.
        key: What makes two items the same, for items that cannot be hashed: ``tuple`` for token ids.

    Returns:
        The u unique items in order of first appearance, and an (n,) index array `inverse` such that
        ``unique[inverse[i]] == items[i]``. Both are empty for no items.
    """
    places: dict[Hashable, int] = {}
    unique: list[Item] = []
    inverse: list[int] = []  # n
    for item in items:
        place = places.setdefault(item if key is None else key(item), len(unique))
        if place == len(unique):
            unique.append(item)
        inverse.append(place)
    return unique, np.array(inverse, dtype=np.intp)


def chunks(sizes: Sequence[int], most: int, count: int | None = None) -> Iterator[slice]:
    """Cut a list into stretches, in order, each as long as it may be.

    Args:
        sizes: How large each of n items is, in whatever unit.
        most: What the items of a stretch have together at most; one single item may have more.
        count: How many items a stretch has at most; None for any number.

    Yields:
        Slices of the list that cover it; none for no items.
    """
    start = together = 0
    for index, size in enumerate(sizes):
        together += size
        if index > start and (together > most or index - start == count):
            yield slice(start, index)
            start, together = index, size
    if start < len(sizes):
        yield slice(start, len(sizes))


def plan(inputs: Sequence[TokenIds], max_batch_tokens: int) -> list[list[int]]:
    """Split inputs into batches, those that begin alike together.

    Args:
        inputs: n inputs of at least one token each.
        max_batch_tokens: How many tokens `pack` may leave to compute in a batch.

    Returns:
        Indices of `inputs`, each exactly once. Only a batch of one single input may be larger than
        `max_batch_tokens`. No inputs, no batches.

    Raises:
        ValueError: An input has no tokens.
    """
    order = sharing_order(inputs)
    batches = []
    start = 0
    while start < len(inputs):
        stop = max(start + 1, order.stop(start, max_batch_tokens))
        batches.append(order.indices[start:stop])
        start = stop
    return batches


def sharing_order(inputs: Sequence[TokenIds], *, share: bool = True) -> SharingOrder:
    """Sort inputs so that those that begin alike are neighbours.

    Args:
        inputs: n inputs of at least one token each.
        share: Whether `pack` will compute shared beginnings once. If not, inputs stay as they are, at full cost.

    Raises:
        ValueError: An input has no tokens.
    """
    if (len(inputs) == 1 or not share) and all(inputs):  # nothing to sort; for one query somebody waits
        lengths = list(map(len, inputs))
        return SharingOrder(list(range(len(inputs))), lengths, list(accumulate(lengths)))
    table = _Table.of(inputs)
    # The deepest segment that holds both neighbours ends less than MIN_SHARED_TOKENS before they part: had they more
    # in common, `pack` would have put a deeper one below it. Neighbours that come in between share even more.
    costs = table.lengths - np.maximum(0, table.shared - (MIN_SHARED_TOKENS - 1))  # (n,)
    return SharingOrder(table.order.tolist(), table.lengths.tolist(), list(accumulate(costs.tolist())))


def pack(batch: Sequence[TokenIds], *, share: bool = True, behind: int = 0) -> PackedBatch:
    """Lay out a batch so that every shared beginning of MIN_SHARED_TOKENS or more stands once.

    Args:
        batch: n inputs of at least one token each. The same input may stand there twice: it still gets a last
            token of its own, as `PackedBatch.last` needs; use `dedupe` to compute it once.
        share: Whether shared beginnings stand once; if not, each input is a segment of its own.
        behind: How many tokens to leave out of each input: the first ones, which all have in common. At least one token
            of each input must be left.

    Returns:
        The packed batch; of no tokens for no inputs.

    Raises:
        ValueError: An input has no tokens, or none but those that are left out.
    """
    table = _Table.of([ids[behind:] for ids in batch] if behind else batch)
    # All of these are (s,); `sources` are rows of the table.
    shared = table.shared.tolist() if share else [0] * len(batch)
    sources, depths, lengths, parents = _forest(shared, table.lengths.tolist())
    ends = np.cumsum(lengths)
    starts = ends - lengths

    positions = np.arange(lengths.sum()) + np.repeat(depths - starts, lengths)  # (T,)
    token_ids = table.tokens[np.repeat(table.starts[sources], lengths) + positions].astype(np.int64)  # (T,)
    last = np.empty(len(batch), dtype=np.int64)  # (n,)
    # Depth first, the leaves come in the order of the table; a leaf is a segment that ends with its input.
    last[table.order] = ends[depths + lengths == table.lengths[sources]] - 1
    segments = Segments(starts, lengths, parents, depths + behind)
    return PackedBatch(token_ids, positions + behind, segments, last, behind)


@dataclass(frozen=True, slots=True)
class _Table:
    """Inputs in lexicographic order.

    Attributes:
        tokens: All tokens, input after input in the order given, uint32.
        order: (n,) index of each input in the list that was given.
        starts: (n,) where each input begins in `tokens`.
        lengths: (n,) tokens of each input.
        shared: (n,) how many tokens each input has in common with the one before, less than either has; 0 for the
            first.
    """

    tokens: npt.NDArray[np.uint32]
    order: IndexArray
    starts: IndexArray
    lengths: IndexArray
    shared: IndexArray

    @classmethod
    def of(cls, inputs: Sequence[TokenIds]) -> _Table:
        bounds = [0, *accumulate(map(len, inputs))]  # n + 1
        # `array` reads a list of ints two to three times faster than numpy does.
        tokens = np.frombuffer(b"".join([array("I", ids) for ids in inputs]), dtype=np.uint32)
        # Big-endian bytes compare like the numbers, and far faster than lists of them.
        digits = tokens.astype(">u4").tobytes()
        names = [digits[4 * start : 4 * stop] for start, stop in pairwise(bounds)]
        if not all(names):
            raise ValueError(f"every input must have at least one token, but input {names.index(b'')} has none")

        order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)  # (n,)
        starts = np.array(bounds[:-1], dtype=np.int64)[order]
        lengths = np.array(list(map(len, inputs)), dtype=np.int64)[order]
        return cls(tokens, order, starts, lengths, _shared_lengths(tokens, starts, lengths))


def _shared_lengths(tokens: npt.NDArray[np.uint32], starts: IndexArray, lengths: IndexArray) -> IndexArray:
    """How many tokens each input has in common with the one before, the last token of either not counted.

    Args:
        tokens: All tokens of all inputs.
        starts: (n,) where each input begins.
        lengths: (n,) its length.

    Returns:
        (n,) int64, 0 for the first.
    """
    shared = np.zeros(len(starts), dtype=np.int64)  # (n,)
    limits = np.minimum(lengths, np.roll(lengths, 1)) - 1  # (n,)
    alike = 1 + np.flatnonzero(limits[1:] > 0)  # inputs that so far agree with the one before
    compared, width = 0, MIN_SHARED_TOKENS
    while alike.size:
        width = min(width, int(limits[alike].max()) - compared)
        places = compared + np.arange(width)  # (width,)
        inside = places < limits[alike, None]  # (alike, width)
        here, before = starts[alike, None] + places, starts[alike - 1, None] + places
        equal = inside & (tokens.take(here, mode="clip") == tokens.take(before, mode="clip"))
        agreed = np.where(equal.all(axis=1), width, equal.argmin(axis=1))  # (alike,)
        shared[alike] += agreed
        compared += width
        alike = alike[(agreed == width) & (limits[alike] > compared)]
        # Most neighbours part at once; the few that do not have the more in common.
        width = max(MIN_SHARED_TOKENS, min(4 * width, _COMPARED_AT_ONCE // max(1, alike.size)))
    return shared


def _forest(shared: list[int], lengths: list[int]) -> tuple[IndexArray, IndexArray, IndexArray, IndexArray]:
    """The segments of inputs in lexicographic order.

    Args:
        shared: How many tokens each of the n inputs has in common with the one before.
        lengths: Tokens of each input.

    Returns:
        Four (s,) int64 arrays, depth first: an input that has the segment's tokens, the position of its first token
        there, its length, and its parent or -1.
    """
    segments: list[tuple[int, int, int, int]] = []
    # A stack, not recursion: thousands of inputs may each go on from the one before. Top: what comes next.
    groups = [(start, stop, 0, -1) for start, stop in reversed(_runs(shared, 0, len(shared), MIN_SHARED_TOKENS))]
    while groups:
        start, stop, depth, parent = groups.pop()
        alone = stop - start == 1
        end = lengths[start] if alone else min(shared[start + 1 : stop])
        segment = len(segments)
        segments.append((start, depth, end - depth, parent))
        if not alone:
            runs = _runs(shared, start, stop, end + MIN_SHARED_TOKENS)
            groups += [(first, after, end, segment) for first, after in reversed(runs)]
    columns = np.array(segments, dtype=np.int64).reshape(-1, 4).T.copy()  # (4, s)
    return columns[0], columns[1], columns[2], columns[3]


def _runs(shared: list[int], start: int, stop: int, at_least: int) -> list[tuple[int, int]]:
    """Cut inputs `start` to `stop` - 1 wherever neighbours have less than `at_least` tokens in common."""
    cuts = [start, *(place for place in range(start + 1, stop) if shared[place] < at_least), stop]
    return list(pairwise(cuts)) if start < stop else []
