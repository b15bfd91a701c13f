"""What inputs begin with in one call after the other, template and instruction, computed once and kept.

Inputs of one batch share what they have in common anyway; this is for the next batch. Half of a query is instruction,
and on a CPU, whose time grows with every token, leaving that out nearly halves it. On a GPU it would save nothing:
there one query takes as long as its weights take to be read.

Which beginnings are to be expected is said by those who know the template, not found out from what came before: each is
computed by itself, so that a call has the same bits whatever was asked for earlier.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from qwen_retrieval.engine.decoder import Beginning
from qwen_retrieval.types import TokenIds

MOST = 8
"""Beginnings that are kept, those that were expected last: a model rarely has more instructions in use."""

SHORTEST = 8
"""Tokens of the shortest beginning that is worth it."""

LONGEST = 512
"""Tokens of the longest beginning that is kept: 59 MB for 0.6B and 75 MB for 8B in half precision."""


@dataclass(slots=True)
class Expected:
    """A beginning that inputs are expected to have.

    Attributes:
        tokens: Its token ids.
        computed: What attention sees of them; None if no input has had it so far.
    """

    tokens: TokenIds
    computed: Beginning | None = None


class Beginnings:
    """The beginnings that a model expects. Any thread may call this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: OrderedDict[tuple[int, ...], Expected] = OrderedDict()  # the last expected comes last

    def expect(self, tokens: TokenIds) -> None:
        """Inputs that begin with `tokens` are about to come, and will come again. Too few or too many are ignored."""
        if not SHORTEST <= len(tokens) <= LONGEST:
            return
        name = tuple(tokens)
        with self._lock:
            if name not in self._expected:
                self._expected[name] = Expected(list(tokens))
            self._expected.move_to_end(name)
            if len(self._expected) > MOST:
                self._expected.popitem(last=False)

    def of(self, batch: list[TokenIds]) -> Expected | None:
        """The longest expected beginning that all inputs have, and go on from; None if they have none."""
        with self._lock:
            expected = list(self._expected.values())
        matching = (one for one in expected if all(_goes_on_from(ids, one.tokens) for ids in batch))
        return max(matching, key=lambda one: len(one.tokens), default=None)


def _goes_on_from(ids: TokenIds, beginning: TokenIds) -> bool:
    return len(ids) > len(beginning) and ids[: len(beginning)] == beginning
