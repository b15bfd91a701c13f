"""Who takes part: one interface, our own models behind it, and how the peers are found.

A contender does a task end to end (texts in, numpy out) and on the device alone (token ids are there already). What
its size of a batch counts, texts or tokens, is its own affair; the best one is found by a sweep.
"""

from __future__ import annotations

import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.checkpoints import Kind
from benchmarks.workloads import Item, Task
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.batching import plan
from qwen_retrieval.loading import LoadConfig, LoadedModel, load_embedding, load_reranking
from qwen_retrieval.specs import WEB_SEARCH
from qwen_retrieval.templates import EmbeddingTemplate, RerankingTemplate
from qwen_retrieval.types import FloatArray, TokenIds

OURS = "qwen-retrieval"

CPU_SWEEP, GPU_SWEEP = (640, 1280, 2560), (4096, 16_384, 32_768)
"""Tokens of a batch, padding aside, that are tried for peers whose batches are counted in texts."""

OUR_CPU_SWEEP, OUR_GPU_SWEEP = (2048, 4096, 8192), (8192, 16_384, 32_768)
"""Token budgets that are tried for ours."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a contender is loaded with.

    Attributes:
        folder: The checkpoint.
        kind: What it is loaded as.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32" or "bfloat16".
    """

    folder: Path
    kind: Kind
    device: str
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        return cast("torch.dtype", getattr(torch, self.dtype))


class Contender(ABC):
    """Something that embeds and scores. Subclasses load their model when they are made.

    Attributes:
        name: For tables.
        key: What it is loaded by: `OURS`, or its name in `PEERS`.
        unit: What a batch size counts: "texts" or "tokens".
        weight_bytes: GPU memory that loading took; None on a CPU.
    """

    name: str
    key: str
    unit: str = "texts"
    weight_bytes: int | None = None

    @abstractmethod
    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        """Do it all, tokenization included.

        Args:
            task: What to do.
            items: n texts or pairs.
            batch_size: How much to compute at a time, in `unit`.

        Returns:
            (n, hidden) float32 rows of unit length, or (n,) float32 log-odds, in input order.
        """

    def prepare(self, task: Task, items: Sequence[Item], batch_size: int) -> Callable[[], object] | None:
        """Tokenise now; what is returned computes the same on the device alone. None if that cannot be separated."""
        del task, items, batch_size
        return None

    def sweep(self, mean_tokens: float, count: int) -> list[int]:
        """Batch sizes to try for inputs of so many tokens each, if a call has `count` of them."""
        targets = CPU_SWEEP if self.device == "cpu" else GPU_SWEEP
        return sorted({max(1, min(count, _power_of_two(tokens / mean_tokens))) for tokens in targets})

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda" or "cuda:N"."""
        return "cpu"

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back memory and threads."""


def _power_of_two(number: float) -> int:
    return 1 << round(math.log2(max(1.0, number)))


class Ours(Contender):
    """`Embedder` or `Reranker`, as a user calls it."""

    name = OURS
    unit = "tokens"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._users: dict[int, Embedder | Reranker] = {}
        load = load_embedding if setting.kind == "embedding" else load_reranking
        config = LoadConfig(str(setting.folder), setting.kind, dtype=setting.dtype, device=setting.device)
        self._loaded: LoadedModel[Any] = load(config)

    @property
    def device(self) -> str:
        """See `Contender.device`."""
        return self._setting.device

    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        """See `Contender.run`."""
        user = self._user(batch_size)
        if isinstance(user, Reranker):
            return user.log_odds_of_pairs(cast("Sequence[tuple[str, str]]", items))
        texts = cast("Sequence[str]", items)
        return user.embed_queries(texts) if task == "queries" else user.embed_documents(texts)

    def prepare(self, task: Task, items: Sequence[Item], batch_size: int) -> Callable[[], object]:
        """See `Contender.prepare`; laying out the batches counts, as the engine does it."""
        ids = self.token_ids(task, items)
        batches = [[ids[i] for i in rows] for rows in plan(ids, batch_size)]
        engine = self._loaded.engine
        compute = engine.score if self._setting.kind == "reranking" else engine.embed
        return lambda: [compute(batch) for batch in batches]

    def token_ids(self, task: Task, items: Sequence[Item]) -> list[TokenIds]:
        """What the model sees, template included."""
        return encode(self._loaded, task, items)

    def sweep(self, mean_tokens: float, count: int) -> list[int]:
        """See `Contender.sweep`: budgets that make a difference for so many tokens."""
        budgets = OUR_CPU_SWEEP if self.device == "cpu" else OUR_GPU_SWEEP
        total = mean_tokens * count
        useful = [budget for budget in budgets if budget < total]
        return [*useful, *[budget for budget in budgets if budget >= total][:1]]

    def close(self) -> None:
        """See `Contender.close`."""
        for user in self._users.values():
            user.close()
        self._loaded.release()

    def _user(self, budget: int) -> Embedder | Reranker:
        if budget not in self._users:
            kind = Embedder if self._setting.kind == "embedding" else Reranker
            self._users[budget] = kind.from_pretrained(
                str(self._setting.folder),
                device=self._setting.device,
                dtype=self._setting.dtype,
                max_batch_tokens=budget,
            )
        return self._users[budget]


def encode(loaded: LoadedModel[Any], task: Task, items: Sequence[Item]) -> list[TokenIds]:
    """What a model sees of each item, template included."""
    if task == "pairs":
        pairs = cast("Sequence[tuple[str, str]]", items)
        template = RerankingTemplate(loaded.tokenizer, loaded.spec)
        encoded = template.encode_pairs([q for q, _ in pairs], [d for _, d in pairs], WEB_SEARCH)
    else:
        texts = cast("Sequence[str]", items)
        embedding = EmbeddingTemplate(loaded.tokenizer, loaded.spec)
        encoded = (
            embedding.encode_queries(texts, WEB_SEARCH) if task == "queries" else embedding.encode_documents(texts)
        )
    return [one.ids for one in encoded]


PEERS: dict[str, tuple[str, str]] = {
    "qwen-retrieval, 8 bits": ("benchmarks.peers.eight_bits", "qwen_retrieval"),
    "sentence-transformers": ("benchmarks.peers.sentence_transformers", "sentence_transformers"),
    "transformers, model card": ("benchmarks.peers.model_card", "transformers"),
    "transformers, right-padded": ("benchmarks.peers.right_padded", "transformers"),
    "llama.cpp": ("benchmarks.peers.llama_cpp", "llama_cpp"),
}
"""By name: our module, whose `contender` makes it or gives None, and what must be installed for it."""


def load_contenders(setting: Setting, only: Sequence[str] | None = None) -> list[Contender]:
    """Ours, and each peer that is installed and can do this; who is left out is named on stderr.

    Args:
        setting: What to load.
        only: Names of the peers to take; None for all.
    """
    found: list[Contender] = []
    for name in [OURS, *(PEERS if only is None else only)]:
        before = _allocated(setting.device)
        contender = Ours(setting) if name == OURS else load_peer(name, setting)
        if contender is not None:
            contender.key = name
            contender.weight_bytes = None if before is None else (_allocated(setting.device) or 0) - before
            found.append(contender)
    return found


def load_peer(name: str, setting: Setting) -> Contender | None:
    """A peer by its name in `PEERS`; None, and the reason on stderr, if it is not there or cannot do this."""
    module, needs = PEERS[name]
    missing = next((one for one in (needs, module) if not _is_there(one)), None)
    if missing:
        print(f"{name} is left out: there is no module {missing}", file=sys.stderr)
        return None
    peer = importlib.import_module(module)
    try:
        if name == "llama.cpp":  # a program for CPUs here, which takes threads and no device
            found = peer.contender(setting.folder, torch.get_num_threads()) if setting.device == "cpu" else None
        else:
            found = peer.contender(setting)
    except Exception as error:  # of a library that is not ours: told, and the others are measured nevertheless
        print(f"{name} cannot be loaded: {error!r}", file=sys.stderr)
        return None
    if found is None:
        print(f"{name} is left out for {setting.kind} on {setting.device}", file=sys.stderr)
    return cast("Contender | None", found)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False


def _allocated(device: str) -> int | None:
    return None if device == "cpu" else torch.cuda.memory_allocated(device)
