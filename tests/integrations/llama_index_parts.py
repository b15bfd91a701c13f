"""What the tests of the LlamaIndex adapter have in common: fakes of the models, and ears for events and spans."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index.embeddings.qwen_retrieval import QwenEmbedding
from llama_index.postprocessor.qwen_retrieval import QwenRerank
from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)

T = TypeVar("T")

TEXTS = [
    "shutil.rmtree deletes a whole directory tree.",
    "math.sin returns the sine of x.",
    "json.dumps turns an object into JSON.",
    "tempfile.mkdtemp makes a temporary directory.",
]
QUERY = "delete a directory tree"


def make_embedder(engine: FakeEmbeddingEngine | None = None, **options: Any) -> Embedder:
    return Embedder(engine or FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), **options)


def make_reranker(engine: FakeRerankingEngine | None = None, **options: Any) -> Reranker:
    return Reranker(engine or FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec(), **options)


def embedding(engine: FakeEmbeddingEngine | None = None, **options: Any) -> QwenEmbedding:
    return QwenEmbedding(embedder=make_embedder(engine), **options)


def rerank(engine: FakeRerankingEngine | None = None, **options: Any) -> QwenRerank:
    return QwenRerank(reranker=make_reranker(engine), **options)


def nodes_of(texts: list[str], **options: Any) -> list[NodeWithScore]:
    """A node for each text, with ids "0", "1", … and falling retrieval scores."""
    nodes = [TextNode(id_=str(i), text=text, **options) for i, text in enumerate(texts)]
    return [NodeWithScore(node=node, score=1 - i / 100) for i, node in enumerate(nodes)]


class Recorder(BaseEventHandler):
    """Keeps the events that are dispatched."""

    events: list[BaseEvent] = []  # noqa: RUF012  # a field

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.events.append(event)


class Spans(BaseSpanHandler[Any]):
    """Keeps the names of spans, each with its parent's."""

    entered: list[tuple[str, str | None]] = []  # noqa: RUF012  # a field
    left: list[str] = []  # noqa: RUF012  # a field

    def span_enter(self, id_: str, *_: Any, parent_id: str | None = None, **__: Any) -> None:
        self.entered.append((_name(id_), parent_id and _name(parent_id)))

    def span_exit(self, id_: str, *_: Any, **__: Any) -> None:
        self.left.append(_name(id_))

    def span_drop(self, id_: str, *_: Any, **__: Any) -> None:
        self.left.append(f"dropped {_name(id_)}")

    def new_span(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


@contextmanager
def listening() -> Iterator[tuple[Recorder, Spans]]:
    """Hear what any dispatcher says inside the block."""
    root, recorder, spans = get_dispatcher(), Recorder(), Spans()
    events_before, spans_before = root.event_handlers, root.span_handlers
    root.event_handlers, root.span_handlers = [*events_before, recorder], [*spans_before, spans]
    try:
        yield recorder, spans
    finally:
        root.event_handlers, root.span_handlers = events_before, spans_before


async def ticks_during(awaitable: Awaitable[T]) -> tuple[T, int]:
    """What `awaitable` gives, and how often another coroutine, that ticks every 5 ms, had its turn meanwhile."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0.005)
            count += 1

    ticking = asyncio.create_task(tick())
    try:
        return await awaitable, count
    finally:
        ticking.cancel()


def _name(id_: str) -> str:
    """A span's id without the number at its end: ``Class.method``."""
    return id_.split("-")[0]
