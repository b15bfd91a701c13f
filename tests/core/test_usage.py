"""What is asked of the models inside a block."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
from collections.abc import Generator
from dataclasses import asdict

import pytest

from qwen_retrieval import Embedder, Reranker, TruncationWarning
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)
from qwen_retrieval.usage import Usage, track_usage


def make(**options: int) -> Embedder:
    return Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), **options)  # type: ignore[arg-type]


def test_inputs_and_tokens_are_counted() -> None:
    with track_usage() as usage:
        make().embed_documents(["abc", "de"])
    assert (usage.inputs, usage.tokens, usage.truncated) == (2, 3 + 1 + 2 + 1, 0)


def test_an_input_that_occurs_twice_counts_once() -> None:
    with track_usage() as usage:
        make().embed_documents(["abc", "abc"])
    assert usage.inputs == 1


def test_what_was_cut_is_counted() -> None:
    with track_usage() as usage, pytest.warns(TruncationWarning):
        make(max_length=8).embed_documents(["a" * 100, "short"])
    assert (usage.inputs, usage.tokens, usage.truncated) == (2, 8 + 6, 1)


def test_what_happens_outside_does_not_count() -> None:
    with track_usage() as usage:
        pass
    make().embed_documents(["abc"])
    assert usage.inputs == 0


def test_blocks_nest() -> None:
    with track_usage() as outer:
        make().embed_documents(["abc"])
        with track_usage() as inner:
            make().embed_queries(["abc"])
    assert (outer.inputs, inner.inputs) == (2, 1)


async def test_concurrent_tasks_count_apart() -> None:
    embedder, reranker = make(), Reranker(FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec())

    async def embed(number: int) -> int:
        with track_usage() as usage:
            await embedder.aembed_documents([f"text {i}" for i in range(number)])
            await reranker.arerank("query", ["document"])
        return usage.inputs

    assert await asyncio.gather(*(embed(number) for number in range(1, 9))) == list(range(2, 10))


async def test_threads_that_copy_the_context_count_and_others_do_not() -> None:
    embedder = make()
    with track_usage() as usage:
        await asyncio.to_thread(embedder.embed_documents, ["abc"])
        thread = threading.Thread(target=embedder.embed_documents, args=(["def"],))
        thread.start()
        thread.join()
    assert usage.inputs == 1


def test_blocks_may_end_in_any_order() -> None:
    def block() -> Generator[Usage]:
        with track_usage() as usage:
            yield usage

    first, second = block(), block()
    one, other = next(first), next(second)
    first.close()
    make().embed_documents(["abc"])
    second.close()
    make().embed_documents(["def"])
    assert (one.inputs, other.inputs) == (0, 1)


def test_a_block_may_end_in_another_context() -> None:
    block = track_usage()
    contextvars.copy_context().run(block.__enter__)
    assert not block.__exit__(None, None, None)


def test_usage_can_be_logged_and_sent() -> None:
    usage = Usage(1, 2, 3)
    assert asdict(usage) == {"inputs": 1, "tokens": 2, "truncated": 3}
    assert pickle.loads(pickle.dumps(usage)) == usage
