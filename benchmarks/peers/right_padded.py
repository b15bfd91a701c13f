"""transformers as an expert would use it: sorted by tokens, padded on the right, no mask, no cache, no full head.

A causal model needs no mask for padding that comes after all real tokens, and without one torch takes its fastest
attention. The hidden state of the last real token is all that is needed; for reranking it meets two rows of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import Contender, Setting
from benchmarks.peers import shared_model
from benchmarks.workloads import Item, Task
from qwen_retrieval.types import FloatArray, TokenIds

Batch = tuple[Tensor, Tensor]
"""Padded ids (n, longest) and the place of each last token (n,)."""


class RightPadded(Contender):
    """Either of the two models."""

    name = "transformers, right-padded"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        model = shared_model.load(setting)
        self._decoder = model if setting.kind == "embedding" else model.model
        if setting.kind == "reranking":
            yes, no = shared_model.answers(setting)
            head = model.lm_head.weight
            self._direction = head[yes].float() - head[no].float()  # (hidden,)

    @property
    def device(self) -> str:
        """See `Contender.device`."""
        return self._setting.device

    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        """See `Contender.run`."""
        ids = shared_model.token_ids(self._setting, task, items)
        order, batches = self._batches(ids, batch_size)
        rows = torch.cat([self._compute(task, batch).cpu() for batch in batches]).numpy()
        return cast("FloatArray", rows[np.argsort(order)])

    def prepare(self, task: Task, items: Sequence[Item], batch_size: int) -> Callable[[], object]:
        """See `Contender.prepare`."""
        _, batches = self._batches(shared_model.token_ids(self._setting, task, items), batch_size)
        return lambda: [self._compute(task, batch) for batch in batches]

    def _batches(self, ids: list[TokenIds], batch_size: int) -> tuple[list[int], list[Batch]]:
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        starts = range(0, len(ids), batch_size)
        return order, [self._pad([ids[i] for i in order[start : start + batch_size]]) for start in starts]

    def _pad(self, ids: list[TokenIds]) -> Batch:
        rows = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (n, longest)
        last = torch.tensor([len(row) - 1 for row in ids])  # (n,)
        return padded.to(self._setting.device), last.to(self._setting.device)

    @torch.inference_mode()
    def _compute(self, task: Task, batch: Batch) -> Tensor:
        ids, last = batch
        hidden = self._decoder(input_ids=ids, use_cache=False).last_hidden_state  # (n, longest, hidden)
        hidden = hidden[torch.arange(len(last), device=last.device), last]  # (n, hidden)
        return hidden.float() @ self._direction if task == "pairs" else shared_model.finish_embedding(hidden)


def contender(setting: Setting) -> Contender | None:
    """It can do all that is asked for."""
    return RightPadded(setting)
