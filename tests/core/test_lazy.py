"""Models by name, loaded when they are first used."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.lazy import LazyModel, ModelOptions
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

OPTIONS = ModelOptions(model="demo")


class SlowEmbedder(Embedder):
    """An embedder that takes its time to load, counts how often, and fails on request."""

    loads = 0
    errors: list[Exception] = []  # noqa: RUF012 - emptied by the tests
    threads: set[str] = set()  # noqa: RUF012
    names: list[str] = []  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, model: str, **options: Any) -> SlowEmbedder:
        cls.loads += 1
        cls.names.append(model)
        cls.threads.add(threading.current_thread().name)
        time.sleep(0.05)
        if cls.errors:
            raise cls.errors.pop()
        options = {name: options[name] for name in ("max_length", "batch_size")}
        return cls(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), **options)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    SlowEmbedder.loads = 0
    SlowEmbedder.errors.clear()
    SlowEmbedder.threads.clear()
    SlowEmbedder.names.clear()


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    lazy = LazyModel(SlowEmbedder)
    assert not lazy.loaded
    assert SlowEmbedder.loads == 0


def test_many_threads_wait_for_one_load() -> None:
    lazy = LazyModel(SlowEmbedder)
    with ThreadPoolExecutor(16) as pool:
        models = list(pool.map(lambda _: lazy.get(OPTIONS), range(16)))
    assert SlowEmbedder.loads == 1
    assert all(model is models[0] for model in models)


def test_many_tasks_and_event_loops_wait_for_one_load_off_their_threads() -> None:
    lazy = LazyModel(SlowEmbedder)

    async def ask() -> list[SlowEmbedder]:
        return await asyncio.gather(*(lazy.aget(OPTIONS) for _ in range(8)))

    with ThreadPoolExecutor(4) as pool:
        loops = list(pool.map(lambda _: asyncio.run(ask()), range(4)))
    assert SlowEmbedder.loads == 1
    assert len({id(model) for models in loops for model in models}) == 1
    assert SlowEmbedder.threads == {"load demo"}


async def test_the_event_loop_goes_on_while_a_model_is_loaded() -> None:
    lazy, ticks = LazyModel(SlowEmbedder), 0
    loading = asyncio.ensure_future(lazy.aget(OPTIONS))
    while not loading.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 3


async def test_cancelling_the_first_caller_neither_stops_nor_repeats_the_load() -> None:
    # https://github.com/basicmachines-co/basic-memory/pull/1143: a cancelled first load starts a second one
    lazy = LazyModel(SlowEmbedder)
    first = asyncio.ensure_future(lazy.aget(OPTIONS))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert isinstance(await lazy.aget(OPTIONS), SlowEmbedder)
    assert SlowEmbedder.loads == 1


async def test_an_error_after_its_caller_has_gone_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    lazy = LazyModel(SlowEmbedder)
    SlowEmbedder.errors.append(OSError("no network"))
    caller = asyncio.ensure_future(lazy.aget(OPTIONS))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0.1)
    gc.collect()
    assert caplog.records == []


def test_ctrl_c_ends_a_program_that_waits_for_a_load() -> None:
    code = """
import time
from qwen_retrieval import Embedder, lazy
from qwen_retrieval.lazy import LazyModel, ModelOptions

lazy._PATIENCE = 0.2

class Endless(Embedder):
    @classmethod
    def from_pretrained(cls, model, **options):
        print("loading", flush=True)
        time.sleep(600)

LazyModel(Endless).get(ModelOptions(model="demo"))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


def test_an_error_reaches_everybody_who_waits_and_the_next_call_tries_again() -> None:
    lazy = LazyModel(SlowEmbedder)
    SlowEmbedder.errors.append(OSError("no network"))

    def attempt(_: int) -> str:
        try:
            return type(lazy.get(OPTIONS)).__name__
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(attempt, range(4))) == {"no network"}
    assert attempt(0) == "SlowEmbedder"
    assert SlowEmbedder.loads == 2


def test_other_options_are_another_model() -> None:
    lazy = LazyModel(SlowEmbedder)
    long, short = lazy.get(OPTIONS), lazy.get(ModelOptions(model="demo", max_length=64, batch_size=2))
    assert long is not short
    assert short.batch_size == 2
    assert lazy.get(OPTIONS) is long
    assert SlowEmbedder.names == ["demo", "demo"]


def test_a_token_makes_no_other_model_and_stands_in_no_repr() -> None:
    options = ModelOptions(model="demo", token="hf_secret")
    assert options == OPTIONS
    assert hash(options) == hash(OPTIONS)
    assert "hf_secret" not in repr(options)


def test_copies_share_what_is_loaded() -> None:
    lazy = LazyModel(SlowEmbedder)
    model = lazy.get(OPTIONS)
    for other in (copy.copy(lazy), copy.deepcopy(lazy), copy.deepcopy({"deep": [lazy]})["deep"][0]):
        assert other.get(OPTIONS) is model
    assert copy.deepcopy(model) is model


def test_a_pickle_holds_no_model_and_loads_again() -> None:
    lazy = LazyModel(SlowEmbedder)
    lazy.get(OPTIONS)
    pickled = pickle.dumps(lazy)
    assert len(pickled) < 200
    again = pickle.loads(pickled)
    assert not again.loaded
    again.get(OPTIONS)
    assert SlowEmbedder.loads == 2


def test_closing_gives_back_and_the_next_call_loads_again() -> None:
    lazy = LazyModel(SlowEmbedder)
    first = lazy.get(OPTIONS)
    lazy.close()
    assert not lazy.loaded
    assert lazy.get(OPTIONS) is not first
    assert SlowEmbedder.loads == 2
    LazyModel(SlowEmbedder).close()  # nothing to close


def test_a_given_model_is_used_as_it_is_and_stays_the_callers() -> None:
    given = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
    lazy = LazyModel(Embedder, given)
    assert lazy.loaded
    assert lazy.get(ModelOptions(model="no/such-model")) is given
    assert asyncio.run(lazy.aget(OPTIONS)) is given
    lazy.close()
    assert given.embed_queries(["still open"]).shape == (1, 64)
    with pytest.raises(TypeError, match=r'given its Embedder cannot be pickled; name the model instead \(model="…"\)'):
        pickle.dumps(lazy)


FORKED = """
import multiprocessing
from qwen_retrieval import Reranker
from qwen_retrieval.lazy import LazyModel, ModelOptions

def rank(lazy, queue):
    queue.put(lazy.get(ModelOptions(model="demo")).rerank("copy a file", ["sine of x", "Copy a file."])[0].index)

lazy = LazyModel(Reranker)
lazy.get(ModelOptions(model="demo")).rerank("copy a file", ["sine of x"])
context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
child = context.Process(target=rank, args=(lazy, queue))
child.start()
child.join(60)
print(child.exitcode, queue.get() if child.exitcode == 0 else child.kill())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_loads_its_own_model() -> None:
    # Newer Pythons warn of forking with threads, rightly. A process of its own has no other threads than ours.
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) in (("0 0\n", ""), ("0 1\n", ""))


def test_a_thread_that_cannot_be_started_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = LazyModel(SlowEmbedder)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            lazy.get(OPTIONS)
    assert not lazy.loaded
    assert isinstance(lazy.get(OPTIONS), SlowEmbedder)


def test_what_a_failed_load_has_made_is_freed_at_once() -> None:
    class Part:
        """Stands for half of the weights."""

    parts: list[weakref.ref[Part]] = []

    class Failing(Embedder):
        @classmethod
        def from_pretrained(cls, model: str, **options: Any) -> Failing:
            part = Part()
            parts.append(weakref.ref(part))
            raise OSError(f"{model}: {len(options)} options, and {part} is lost")

    gc.disable()
    try:
        with pytest.raises(OSError, match="lost"):
            LazyModel(Failing).get(OPTIONS)
        sys.last_value = None
        assert parts[0]() is None
    finally:
        gc.enable()


def test_a_given_model_of_the_wrong_kind_is_refused() -> None:
    given: Any = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
    with pytest.raises(TypeError, match="a Reranker must be given, but got Embedder"):
        LazyModel(Reranker, given)
