"""One transformers model per checkpoint, for the two contenders that use it bare and for the float32 reference."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.contenders import Setting
from benchmarks.workloads import Item, Task
from qwen_retrieval.specs import QWEN3_RERANKER, WEB_SEARCH
from qwen_retrieval.types import FloatArray, TokenIds

MAX_LENGTH = 8192
logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@functools.cache
def load(setting: Setting) -> Any:  # noqa: ANN401 - transformers' classes are not typed
    """The embedder's decoder, or the reranker with its head; kept until `load.cache_clear()`."""
    kind: Any = AutoModel if setting.kind == "embedding" else AutoModelForCausalLM
    return kind.from_pretrained(setting.folder, dtype=setting.torch_dtype).to(setting.device).eval()


@functools.cache
def load_tokenizer(setting: Setting) -> Any:  # noqa: ANN401 - transformers' classes are not typed
    """The checkpoint's tokenizer, padding on the left as in the model cards."""
    return AutoTokenizer.from_pretrained(setting.folder, padding_side="left")


@functools.cache
def answers(setting: Setting) -> tuple[int, int]:
    """Ids of "yes" and "no"."""
    yes, no = load_tokenizer(setting).convert_tokens_to_ids(["yes", "no"])
    return yes, no


def token_ids(setting: Setting, task: Task, items: Sequence[Item]) -> list[TokenIds]:
    """Each item as the model cards' snippets tokenise it, not padded."""
    tokenizer = load_tokenizer(setting)
    if task != "pairs":
        texts = [f"Instruct: {WEB_SEARCH}\nQuery:{item}" if task == "queries" else item for item in items]
        return cast("list[TokenIds]", tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"])
    pairs = cast("Sequence[tuple[str, str]]", items)
    template = QWEN3_RERANKER.template("canonical")
    head, tail = (tokenizer.encode(part, add_special_tokens=False) for part in (template.prefix, template.suffix))
    bodies = [f"<Instruct>: {WEB_SEARCH}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    room = MAX_LENGTH - len(head) - len(tail)
    inputs = tokenizer(bodies, padding=False, truncation="longest_first", max_length=room, add_special_tokens=False)
    return [head + ids + tail for ids in inputs["input_ids"]]


def finish_embedding(hidden: Tensor) -> Tensor:
    """(n, hidden) -> (n, hidden) float32 of unit length."""
    return torch.nn.functional.normalize(hidden.float(), p=2, dim=1)


@torch.inference_mode()
def reference(setting: Setting, task: Task, items: Sequence[Item]) -> FloatArray:
    """The same weights in float32, one item at a time, nothing padded: (n, hidden) unit rows or (n,) log-odds."""
    model = copy.deepcopy(load(setting)).float()
    rows = []
    for ids in token_ids(setting, task, items):
        given = torch.tensor([ids], device=setting.device)  # (1, tokens)
        if task == "pairs":
            yes, no = answers(setting)
            logits = model(input_ids=given, use_cache=False, logits_to_keep=1).logits[:, -1]  # (1, vocabulary)
            rows.append(logits[:, yes] - logits[:, no])
        else:
            rows.append(finish_embedding(model(input_ids=given, use_cache=False).last_hidden_state[:, -1]))
    return cast("FloatArray", torch.cat(rows).cpu().numpy())
