"""The few types that cross room boundaries: token ids in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

TokenIds = list[int]
"""The token ids of one input, in order, complete: what the model sees and nothing else."""

FloatArray = npt.NDArray[np.float32]
"""A float32 numpy array; the docstring beside it gives the shape."""

ControlTokens = Literal["escape", "keep", "error"]
"""What to do with control tokens such as ``<|im_end|>`` in user text: spell them out, obey them, or refuse."""

OnOverflow = Literal["truncate", "error"]
"""What to do with an input longer than ``max_length``: cut it and warn, or refuse."""

QUANTIZED_DTYPES = ("int8", "float8")
"""Dtypes in which matrices are multiplied that change results by more than rounding."""

Scale = Literal["probability", "log_odds"]
"""What a relevance score is in: a probability in [0, 1], or log-odds (any real number), which do not saturate."""


class Tokenizer(Protocol):
    """Text to ids, without templates, truncation or end tokens: those belong to `templates`."""

    @property
    def size(self) -> int:
        """One more than the largest id that can come out of `encode`."""

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The strings that stand for one control id each, such as ``<|endoftext|>`` or ``<think>``."""

    def encode(self, texts: Sequence[str], *, control_tokens: bool) -> list[TokenIds]:
        """Encode each text. Control-token strings become control ids only if `control_tokens` is true."""

    def decode(self, ids: TokenIds) -> str:
        """The text of `ids`, control tokens included."""

    def token_id(self, token: str) -> int | None:
        """The id of one token, or None if the vocabulary has no such token."""


class EmbeddingEngine(Protocol):
    """Anything that turns token ids into hidden states."""

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        """The hidden state of each input's last token, after the final norm.

        Args:
            batch: n inputs of at least one token each.

        Returns:
            (n, hidden) float32, in input order, not normalised.
        """


class RerankingEngine(Protocol):
    """Anything that turns token ids of query-document pairs into log-odds."""

    def score(self, batch: list[TokenIds]) -> FloatArray:
        """The log-odds of "yes" over "no" after each input's last token.

        Args:
            batch: n inputs of at least one token each.

        Returns:
            (n,) float32, in input order.
        """


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One document's place in a ranking.

    Attributes:
        index: Position of the document in the list that was given, from 0.
        relevance_score: Probability in [0, 1] that the document meets the query, as the model sees it.
        log_odds: The same as log-odds (any real number), which does not saturate: ``sigmoid(log_odds)``
            is `relevance_score`.
    """

    index: int
    relevance_score: float
    log_odds: float

    def score(self, scale: Scale) -> float:
        """`relevance_score` or `log_odds`.

        Raises:
            ValueError: `scale` is neither "probability" nor "log_odds".
        """
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be 'probability' or 'log_odds', but got {scale!r}")
        return self.relevance_score if scale == "probability" else self.log_odds
