"""What is called: the core, the adapters, the same without merging, and sentence-transformers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.load_drivers import Contender
from langchain_qwen_retrieval import QwenEmbeddings
from llama_index.embeddings.qwen_retrieval import QwenEmbedding
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.types import FloatArray, TokenIds

DOCUMENTS_PER_QUERY = 8
"""What a call of the reranker scores."""

SECONDS_PER_PASS, SECONDS_PER_TOKEN = 0.02, 1e-4
"""Of the simulated device: 200 tokens take as long again as none. The demo model on a processor has some 150, and the
0.6B model on a GPU a thousand or two. Long enough that a millisecond of the operating system's is little."""

SAME = 0.98
"""Cosine of a query's vectors above which two programs are taken to compute the same; bfloat16 costs up to 0.01."""


class SimulatedDevice:
    """An engine that waits instead of computing, as for a device that nothing else disturbs.

    It leaves the processor to callers and queue, so that what these do shows on a busy machine as well.

    Args:
        hidden_size: Length of the vectors.
    """

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        """Vectors of ones, (n, hidden_size), after the time that n inputs take."""
        return np.ones((len(self.score(batch)), self.hidden_size), dtype=np.float32)

    def score(self, batch: list[TokenIds]) -> FloatArray:
        """Zeros, (n,), after the time that n inputs take."""
        time.sleep(SECONDS_PER_PASS + SECONDS_PER_TOKEN * sum(map(len, batch)))
        return np.zeros(len(batch), dtype=np.float32)


class FairLock:
    """Lets threads in one at a time, in the order in which they came; `threading.Lock` promises no order."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


def of_embedder(embedder: Embedder, texts: Sequence[str]) -> list[Contender]:
    """The core and the adapters over one model."""

    def text(number: int) -> str:
        return texts[number % len(texts)]

    langchain, llama_index = QwenEmbeddings(embedder=embedder), QwenEmbedding(embedder=embedder)
    return [
        Contender("core", lambda n: embedder.embed_queries([text(n)]), lambda n: embedder.aembed_queries([text(n)])),
        Contender("LangChain", lambda n: langchain.embed_query(text(n)), lambda n: langchain.aembed_query(text(n))),
        Contender(
            "LlamaIndex",
            lambda n: llama_index.get_query_embedding(text(n)),
            lambda n: llama_index.aget_query_embedding(text(n)),
        ),
    ]


def of_reranker(reranker: Reranker, texts: Sequence[str], documents: Sequence[str]) -> Contender:
    """A call scores a query against `DOCUMENTS_PER_QUERY` documents, other ones in each call."""

    def arguments(number: int) -> tuple[str, list[str]]:
        start = number * DOCUMENTS_PER_QUERY
        found = [documents[place % len(documents)] for place in range(start, start + DOCUMENTS_PER_QUERY)]
        return texts[number % len(texts)], found

    return Contender("reranker", lambda n: reranker.score(*arguments(n)), lambda n: reranker.ascore(*arguments(n)))


def one_at_a_time(contender: Contender) -> Contender:
    """The same without merging: each call waits for its turn. For tasks, of one event loop only."""
    turn, aturn = FairLock(), asyncio.Lock()

    def call(number: int) -> object:
        with turn:
            return contender.call(number)

    async def acall(number: int) -> object:
        async with aturn:
            return await contender.acall(number)

    return replace(contender, name=f"{contender.name}, one at a time", call=call, acall=acall)


def sentence_transformers(folder: Path, embedder: Embedder, texts: Sequence[str]) -> Iterator[Contender]:
    """`SentenceTransformer.encode` of the same checkpoint, with the same inputs and dtype, with a lock and without.

    It has no queue. Tasks call it in threads, as frameworks do for models that have no async form.

    Args:
        folder: The embedder's checkpoint.
        embedder: The same model with us.
        texts: The queries.

    Raises:
        RuntimeError: Its vectors are others than ours.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    model = Transformer(str(folder), model_kwargs={"dtype": getattr(torch, embedder.dtype)})
    modules = [model, Pooling(embedder.spec.hidden_size, "lasttoken"), Normalize()]
    peer = SentenceTransformer(modules=modules, device=embedder.device)
    prompt = embedder.spec.family.query_template.format(instruction=embedder.instruction, query="")

    def encode(number: int) -> npt.NDArray[np.float32]:
        found = peer.encode([texts[number % len(texts)]], prompt=prompt, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)  # (1, hidden)

    theirs = encode(0)[0]
    cosine = float(embedder.embed_queries(texts[:1])[0] @ theirs / np.linalg.norm(theirs))
    if cosine < SAME:
        raise RuntimeError(f"both must compute the same, but the cosine of a query's vectors is {cosine:.3f}")
    locks: dict[str, AbstractContextManager[None]] = {"one at a time": FairLock(), "unlocked": nullcontext()}
    for name, lock in locks.items():
        yield _in_threads(f"sentence-transformers, {name}", encode, lock)


def _in_threads(name: str, run: Callable[[int], object], lock: AbstractContextManager[None]) -> Contender:
    def call(number: int) -> object:
        with lock:
            return run(number)

    return Contender(name, call, lambda number: asyncio.to_thread(call, number))
