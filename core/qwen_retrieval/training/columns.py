"""A batch as sentence-transformers' trainer hands it to a loss: columns of queries, documents, and hard negatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Features = Mapping[str, Any]
"""One column of a batch, tokenised: input_ids and attention_mask, (B, length) each."""


def check_columns(sentence_features: Iterable[Features]) -> list[Features]:
    """The columns of a batch, of which there must be two at least: a query and its document."""
    columns = list(sentence_features)
    if len(columns) < 2:
        raise ValueError(
            f"a batch must have two columns at least, query and document, but this one has {len(columns)}; "
            "further columns are hard negatives"
        )
    return columns


def stack_columns(vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The (B, d) vectors of each column as queries, documents and (B, K, d) negatives."""
    negatives = torch.stack(list(vectors[2:]), dim=1) if len(vectors) > 2 else None
    return vectors[0], vectors[1], negatives


def text_ids(columns: Sequence[Features]) -> Tensor:
    """Numbers that are equal where the tokens are.

    Args:
        columns: C columns of B texts each.

    Returns:
        (B, C) int64, on the device of the features.
    """
    seen: dict[bytes, int] = {}
    numbers = [[seen.setdefault(tokens, len(seen)) for tokens in _token_bytes(column)] for column in columns]
    return torch.tensor(numbers, device=columns[0]["input_ids"].device).T


def _token_bytes(column: Features) -> list[bytes]:
    """The tokens of each text without padding; texts may also stand one after another, without any."""
    ids = column["input_ids"].cpu().numpy()
    if "cu_seq_lens_q" in column:  # flattened: ids are (1, total)
        return [part.tobytes() for part in np.split(ids[0], column["cu_seq_lens_q"].cpu().numpy()[1:-1])]
    kept = column["attention_mask"].cpu().numpy().astype(bool)
    return [row[mask].tobytes() for row, mask in zip(ids, kept, strict=True)]
