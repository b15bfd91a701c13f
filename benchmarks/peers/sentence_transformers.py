"""sentence-transformers: `encode` for embedding, `CrossEncoder.predict` for reranking.

Its own path for Qwen3-Reranker: a causal model, the pair in a chat template, the log-odds of "yes" over "no" by
`LogitScore`. Both sort by the number of characters, longest first, and pad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import batch_to_device

from benchmarks.contenders import Contender, Setting
from benchmarks.workloads import Item, Task
from qwen_retrieval.specs import WEB_SEARCH
from qwen_retrieval.types import FloatArray

QUERY_PROMPT = f"Instruct: {WEB_SEARCH}\nQuery:"
"""The prompt `query` of the published embedders' config_sentence_transformers.json."""


class SentenceTransformers(Contender):
    """Either of the two models."""

    name = "sentence-transformers"

    def __init__(self, setting: Setting) -> None:
        self._device = setting.device
        kind: Any = SentenceTransformer if setting.kind == "embedding" else CrossEncoder
        self._model = kind(str(setting.folder), device=setting.device, model_kwargs={"dtype": setting.torch_dtype})
        if setting.kind == "reranking" and [type(part).__name__ for part in self._model] != [
            "Transformer",
            "LogitScore",
        ]:
            raise RuntimeError(f"CrossEncoder did not take its path for Qwen3-Reranker: {self._model}")

    @property
    def device(self) -> str:
        """See `Contender.device`."""
        return self._device

    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        """See `Contender.run`."""
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        if task == "pairs":
            # Log-odds: the probabilities of random weights would nearly all be 0 or 1.
            found = self._model.predict(list(items), activation_fn=torch.nn.Identity(), **options)
        else:
            found = self._model.encode(list(items), prompt=_prompt(task), normalize_embeddings=True, **options)
        return cast("FloatArray", found)

    def prepare(self, task: Task, items: Sequence[Item], batch_size: int) -> Callable[[], object]:
        """See `Contender.prepare`."""
        order = np.argsort([-_characters(item) for item in items])
        rows = [order[start : start + batch_size] for start in range(0, len(items), batch_size)]
        batches = [
            batch_to_device(self._model.preprocess([items[i] for i in row], prompt=_prompt(task)), self._model.device)
            for row in rows
        ]

        def compute() -> object:
            with torch.inference_mode():
                return [self._model(dict(batch)) for batch in batches]

        return compute


def _prompt(task: Task) -> str | None:
    return QUERY_PROMPT if task == "queries" else None


def _characters(item: Item) -> int:
    return len(item) if isinstance(item, str) else sum(map(len, item))


def contender(setting: Setting) -> Contender | None:
    """It can do all that is asked for."""
    return SentenceTransformers(setting)
