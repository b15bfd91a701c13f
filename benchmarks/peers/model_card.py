"""The transformers snippets of the model cards, in batches.

Qwen3-Embedding and Qwen3-Reranker, README, "Transformers Usage": padding on the left, an attention mask, the last
position's hidden state or logits. The reranker's snippet makes one batch of all pairs; here the sweep decides.
Gradients are off in both, although the embedder's snippet does not say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.contenders import Contender, Setting
from benchmarks.peers import shared_model
from benchmarks.workloads import Item, Task
from qwen_retrieval.types import FloatArray


class ModelCard(Contender):
    """Either of the two models."""

    name = "transformers, model card"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._model = shared_model.load(setting)
        self._tokenizer = shared_model.load_tokenizer(setting)

    @property
    def device(self) -> str:
        """See `Contender.device`."""
        return self._setting.device

    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        """See `Contender.run`."""
        parts = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        rows = [self._compute(task, self._pad(task, part)).float().cpu() for part in parts]
        return cast("FloatArray", torch.cat(rows).numpy())

    def prepare(self, task: Task, items: Sequence[Item], batch_size: int) -> Callable[[], object]:
        """See `Contender.prepare`."""
        starts = range(0, len(items), batch_size)
        batches = [self._pad(task, items[start : start + batch_size]) for start in starts]
        return lambda: [self._compute(task, batch) for batch in batches]

    def _pad(self, task: Task, items: Sequence[Item]) -> Any:  # noqa: ANN401 - transformers' BatchEncoding
        ids = shared_model.token_ids(self._setting, task, items)
        return self._tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt").to(self._setting.device)

    @torch.inference_mode()
    def _compute(self, task: Task, batch: Any) -> Tensor:  # noqa: ANN401 - transformers' BatchEncoding
        if task != "pairs":
            return shared_model.finish_embedding(self._model(**batch).last_hidden_state[:, -1])
        yes, no = shared_model.answers(self._setting)
        logits = self._model(**batch).logits[:, -1, :]  # (n, vocabulary)
        scores = torch.nn.functional.log_softmax(torch.stack([logits[:, no], logits[:, yes]], dim=1), dim=1)
        # Log-odds where the card takes exp(): random weights saturate probabilities, which then are equal anyway.
        return scores[:, 1] - scores[:, 0]


def contender(setting: Setting) -> Contender | None:
    """It can do all that is asked for."""
    return ModelCard(setting)
