"""QwenEmbedding: vectors, options, async, copies and pickles, events."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr, SecretStr
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import TextNode

from llama_index.embeddings.qwen_retrieval import QwenEmbedding
from qwen_retrieval import Embedder
from qwen_retrieval.errors import ModelClosedError
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from tests.integrations.llama_index_parts import QUERY, TEXTS, embedding, listening, make_embedder, ticks_during


def norm(vector: list[float]) -> float:
    return float(np.linalg.norm(vector))


async def test_every_method_gives_python_floats_of_unit_length() -> None:
    embed = embedding(dimensions=16)
    vectors = [
        embed.get_query_embedding(QUERY),
        await embed.aget_query_embedding(QUERY),
        embed.get_text_embedding(QUERY),
        await embed.aget_text_embedding(QUERY),
        *embed.get_text_embedding_batch(TEXTS),
        *await embed.aget_text_embedding_batch(TEXTS),
        embed.get_agg_embedding_from_queries([QUERY]),
        await embed.aget_agg_embedding_from_queries([QUERY]),
    ]
    assert {type(number) for vector in vectors for number in vector} == {float}
    assert {len(vector) for vector in vectors} == {16}
    assert [norm(vector) for vector in vectors] == pytest.approx([1.0] * len(vectors), abs=1e-6)


async def test_queries_get_the_instruction_and_documents_do_not() -> None:
    # https://github.com/run-llama/llama_index/issues/18573: is it applied? HuggingFaceEmbedding drops it silently.
    embed, core = embedding(), make_embedder()
    query, document = core.embed_queries([QUERY])[0].tolist(), core.embed_documents([QUERY])[0].tolist()
    assert query != document
    assert embed.get_query_embedding(QUERY) == await embed.aget_query_embedding(QUERY) == query
    assert embed.get_text_embedding(QUERY) == await embed.aget_text_embedding(QUERY) == document
    assert embed.get_text_embedding_batch([QUERY]) == await embed.aget_text_embedding_batch([QUERY]) == [document]


def test_format_query_shows_what_the_model_sees() -> None:
    # Peers join instruction and query with a space; Qwen's template has none after "Query:".
    shown = "Instruct: Find the function\nQuery: a  b\n<|endoftext|>"
    assert embedding(instruction="Find the function").format_query(" a  b\n") == shown
    assert embedding(instruction="").format_query("a") == "a<|endoftext|>"


def test_an_instruction_may_be_named() -> None:
    sentence = "Given a question about coding, retrieval code or passage that can solve user's question"
    named, spelled = embedding(instruction="code_search"), embedding(instruction=sentence)
    assert named.get_query_embedding(QUERY) == spelled.get_query_embedding(QUERY)
    assert named.fingerprint == spelled.fingerprint


def test_documents_get_an_instruction_for_symmetric_tasks() -> None:
    task = "Retrieve semantically similar text"
    embed = embedding(instruction=task, document_instruction=task)
    assert embed.get_text_embedding(QUERY) == embed.get_query_embedding(QUERY)


@pytest.mark.parametrize("text", ["", "  two\n\nlines\t ", "naïve 🙂 日本語", "x" * 9_000])
def test_texts_reach_the_model_as_they_are(text: str) -> None:
    embed, core = embedding(max_length=None), make_embedder()
    if len(text) > 8192:
        with pytest.warns(UserWarning, match="1 of 1 inputs were longer than max_length"):
            embed.get_text_embedding(text)
    else:
        assert embed.get_text_embedding(text) == core.embed_documents([text])[0].tolist()


async def test_a_long_list_reaches_the_model_in_one_piece() -> None:
    # The base class hands over 10 texts at a time, and asynchronously one by one.
    engine = FakeEmbeddingEngine()
    texts = [f"text {i}" for i in range(300)]
    embed = embedding(engine)
    vectors = embed.get_text_embedding_batch(texts)
    assert engine.calls <= 5  # 64 texts per chunk
    assert await embed.aget_text_embedding_batch(texts) == vectors
    assert engine.calls <= 10
    assert vectors == [embed.get_text_embedding(text) for text in texts]


async def test_nothing_in_gives_nothing_out_without_loading() -> None:
    embed = QwenEmbedding(model_name="nobody/knows-this-model", local_files_only=True)
    assert embed.get_text_embedding_batch([]) == await embed.aget_text_embedding_batch([]) == []
    assert embed([]) == await embed.acall([]) == []


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda embed: embed.aget_query_embedding("q"), id="query"),
        pytest.param(lambda embed: embed.aget_text_embedding("t"), id="text"),
        pytest.param(lambda embed: embed.aget_text_embedding_batch(["t", "u"]), id="batch"),
        pytest.param(lambda embed: embed.acall([TextNode(text="t")]), id="nodes"),
    ],
)
async def test_async_methods_leave_the_event_loop_to_others(call: Callable[[QwenEmbedding], Any]) -> None:
    # https://github.com/run-llama/llama_index/issues/22744 and the base class, which computes inline
    _, ticks = await ticks_during(call(embedding(FakeEmbeddingEngine(delay=0.3))))
    assert ticks > 10  # of about 60


async def test_concurrent_queries_share_forward_passes() -> None:
    engine = FakeEmbeddingEngine(delay=0.02)
    embed = embedding(engine)
    vectors = await asyncio.gather(*(embed.aget_query_embedding(f"query {i}") for i in range(64)))
    assert engine.calls < 16
    assert vectors[7] == embed.get_query_embedding("query 7")


async def test_concurrent_batches_never_run_two_forward_passes_at_once() -> None:
    class Watched(FakeEmbeddingEngine):
        running = most = 0
        lock = threading.Lock()

        def embed(self, batch: list[list[int]]) -> Any:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            try:
                return super().embed(batch)
            finally:
                self.running -= 1

    engine = Watched(delay=0.01)
    embed = embedding(engine, embed_batch_size=5)
    await asyncio.gather(*(embed.aget_text_embedding_batch([f"{i} {j}" for j in range(20)]) for i in range(20)))
    assert engine.most == 1


def test_the_mean_of_several_queries_has_unit_length() -> None:
    embed = embedding()
    a, b = embed.get_query_embedding("a b c"), embed.get_query_embedding("something else")
    mean = embed.get_agg_embedding_from_queries(["a b c", "something else"])
    assert norm(mean) == pytest.approx(1, abs=1e-6)
    assert np.dot(mean, a) == pytest.approx(np.dot(mean, b), abs=1e-6)
    assert embed.get_agg_embedding_from_queries(["a b c", "d"], lambda vectors: vectors[0]) == a


async def test_the_queries_of_a_mean_share_forward_passes() -> None:
    engine = FakeEmbeddingEngine(delay=0.02)
    queries = [f"query {i}" for i in range(16)]
    mean = await embedding(engine).aget_agg_embedding_from_queries(queries)
    assert engine.calls <= 4
    assert mean == pytest.approx(embedding().get_agg_embedding_from_queries(queries), abs=1e-6)


async def test_vectors_become_lists_row_by_row_beside_the_event_loop() -> None:
    # A list of 10,000 vectors takes most of a second, in which `tolist` of the whole array lets nothing else run.
    made: list[tuple[int, threading.Thread]] = []

    class Watched(np.ndarray[Any, Any]):
        def tolist(self) -> Any:
            made.append((self.ndim, threading.current_thread()))
            return super().tolist()

    class Watching(Embedder):
        async def aembed_documents(self, *args: Any, **options: Any) -> Any:
            return (await super().aembed_documents(*args, **options)).view(Watched)

    embed = QwenEmbedding(embedder=Watching(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec()))
    assert await embed.aget_text_embedding_batch(TEXTS) == embedding().get_text_embedding_batch(TEXTS)
    assert [ndim for ndim, _ in made] == [1] * len(TEXTS)
    assert threading.main_thread() not in {thread for _, thread in made}


async def test_progress_is_that_of_the_model_and_not_of_whole_batches(capsys: pytest.CaptureFixture[str]) -> None:
    # LlamaIndex's bar moves once per `embed_batch_size` texts: for most corpora from nothing to the end.
    embed = QwenEmbedding(model_name="demo", device="cpu")
    texts = [f"text {i}" for i in range(70)]
    quiet = embed.get_text_embedding_batch(texts)
    embed.get_query_embedding(QUERY)
    assert capsys.readouterr().err == ""
    for shown in (
        embed.get_text_embedding_batch(texts, show_progress=True),
        await embed.aget_text_embedding_batch(texts, show_progress=True),
    ):
        assert shown == quiet
    bars = capsys.readouterr().err
    assert "70/70" in bars
    assert "inputs" in bars
    assert "Generating embeddings" not in bars
    embed.get_text_embedding_batch(texts)
    await embed.aget_query_embedding(QUERY)
    assert capsys.readouterr().err == ""
    embed.close()


async def test_concurrent_calls_show_progress_only_where_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    embed = QwenEmbedding(model_name="demo", device="cpu")
    first, second = [f"a {i}" for i in range(70)], [f"b {i}" for i in range(80)]
    await asyncio.gather(
        embed.aget_text_embedding_batch(first, show_progress=True), embed.aget_text_embedding_batch(second)
    )
    bars = capsys.readouterr().err
    assert "/70" in bars
    assert "/80" not in bars
    embed.close()


def test_an_embedder_that_is_given_leaves_the_bar_to_llama_index(capsys: pytest.CaptureFixture[str]) -> None:
    embedding().get_text_embedding_batch(TEXTS, show_progress=True)
    assert "Generating embeddings" in capsys.readouterr().err


def test_settings_take_it_as_embedding_model() -> None:
    before = Settings._embed_model
    try:
        Settings.embed_model = embed = embedding()
        assert Settings.embed_model is embed
        index = VectorStoreIndex([TextNode(text=text) for text in TEXTS])
        assert index.as_retriever(similarity_top_k=1).retrieve(QUERY)[0].text == TEXTS[0]
    finally:
        Settings._embed_model = before


def test_a_view_has_another_instruction_and_the_same_model() -> None:
    engine = FakeEmbeddingEngine()
    embed = embedding(engine)
    view = embed.model_copy(update={"instruction": "Find the opposite"})
    assert view.get_query_embedding(QUERY) == embedding(instruction="Find the opposite").get_query_embedding(QUERY)
    assert embed.instruction is None
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embed)
    calls = engine.calls
    retriever = index.as_retriever(embed_model=view, similarity_top_k=1)
    assert retriever.retrieve(QUERY)[0].text == TEXTS[0]
    assert engine.calls == calls + 1


def test_a_view_is_checked_like_a_new_object() -> None:
    # pydantic's model_copy checks nothing: a misspelt instruction would be ignored.
    embed = embedding()
    for update, message in (({"instruktion": "x"}, "instruktion\n.*not permitted"), ({"dimensions": 7}, "between 8")):
        with pytest.raises(ValueError, match=message):
            embed.model_copy(update=update)
    with pytest.raises(ValueError, match="no field"):
        embed.instruktion = "x"  # type: ignore[attr-defined]
    assert embed.dimensions is None


def test_a_view_shares_what_is_loaded_by_name() -> None:
    embed = QwenEmbedding(model_name="demo")
    view = embed.model_copy(update={"dimensions": 64})
    assert view._lazy is embed._lazy
    assert view._load() is embed._load()
    embed.close()
    assert not view._lazy.loaded


def test_a_view_knows_which_fields_were_set() -> None:
    view = QwenEmbedding(model_name="demo").model_copy(update={"dimensions": 64})
    assert view.model_fields_set == {"model_name", "dimensions"}


def test_a_view_of_a_subclass_needs_none_of_its_arguments() -> None:
    class Prefixed(QwenEmbedding):
        _prefix: str = PrivateAttr()

        def __init__(self, prefix: str, **options: Any) -> None:
            super().__init__(**options)
            self._prefix = prefix

        def _get_text_embedding(self, text: str) -> list[float]:
            return super()._get_text_embedding(self._prefix + text)

    embed = Prefixed("passage: ", embedder=make_embedder())
    view = embed.model_copy(update={"dimensions": 16})
    assert isinstance(view, Prefixed)
    assert view.get_text_embedding("a") == embedding(dimensions=16).get_text_embedding("passage: a")
    assert embed.dimensions is None
    with pytest.raises(ValueError, match="between 8"):
        embed.model_copy(update={"dimensions": 7})


def test_a_view_takes_another_embedder_by_itself() -> None:
    other = QwenEmbedding(embedder=Embedder.from_pretrained("demo", device="cpu")).embedder
    assert other is not None
    for embed in (embedding(instruction="Find"), QwenEmbedding(instruction="Find"), QwenEmbedding(model_name="0.6B")):
        view = embed.model_copy(update={"embedder": other})
        assert (view.embedder, view.model_name, view.instruction) == (other, "demo", embed.instruction)
    with pytest.raises(ValueError, match="given without model_name"):
        embedding().model_copy(update={"embedder": other, "model_name": "0.6B"})
    named = QwenEmbedding(embedder=other).model_copy(update={"embedder": None})
    assert (named.embedder, named.model_name) == (None, "demo")
    other.close()


def test_the_model_may_be_named_without_a_keyword() -> None:
    # As for HuggingFaceEmbedding; type checkers want the keyword.
    positional: Callable[..., QwenEmbedding] = QwenEmbedding
    embed = positional("demo", dimensions=32)
    assert embed.to_dict() == QwenEmbedding(model_name="demo", dimensions=32).to_dict()
    assert pickle.loads(pickle.dumps(embed)).model_name == "demo"
    assert embed.model_copy(update={"dimensions": 64}).model_name == "demo"
    assert positional().model_fields_set == set()
    for names, options in ((("demo", "0.6B"), {}), (("demo",), {"model_name": "0.6B"})):
        with pytest.raises(TypeError, match="model_name"):
            positional(*names, **options)


def test_a_field_that_is_assigned_counts_from_the_next_call_on() -> None:
    embed = embedding()
    embed.dimensions, embed.instruction = 8, "Find the opposite"
    expected = make_embedder(dimensions=8, instruction="Find the opposite").embed_queries([QUERY])[0].tolist()
    assert embed.get_query_embedding(QUERY) == expected
    embed.dimensions = 7
    with pytest.raises(ValueError, match="dimensions must be between 8 and 64"):
        embed.get_query_embedding(QUERY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimension": 64}, "dimension\n.*not permitted"),
        ({"query_instruction": "Find"}, "query_instruction is called instruction here"),
        ({"text_instruction": "Find"}, "text_instruction is called document_instruction here"),
        ({"model": "demo"}, "model is called model_name here"),
        ({"normalize": True}, "normalize is not needed here: vectors always have unit length"),
        ({"trust_remote_code": True}, "trust_remote_code is not needed here: code from a repository is never run"),
        ({"dimensions": 2048}, "dimensions must be between 32 and 1024"),
        ({"model_name": "demo", "dimensions": 16}, "dimensions must be between 32 and 192"),
        ({"on_overflow": "cut"}, "'truncate' or 'error'"),
        ({"max_batch_tokens": 0}, "greater than or equal to 1"),
        ({"embed_batch_size": 5000}, "less than or equal to 2048"),
        ({"embedder": "demo"}, "instance of Embedder"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(options: dict[str, Any], message: str) -> None:
    # https://github.com/run-llama/llama_index/issues/12281 and 15908: arguments that vanish
    with pytest.raises(ValueError, match=message) as caught:
        QwenEmbedding(**{"token": "secret", **options})
    assert "secret" not in str(caught.value)


def test_an_embedder_that_is_given_has_its_own_options() -> None:
    embedder = make_embedder()
    with pytest.raises(ValueError, match="given without max_length, device, model_name"):
        QwenEmbedding(embedder=embedder, model_name="demo", device="cpu", max_length=9)
    with pytest.raises(ValueError, match="dimensions must be between 8 and 64"):
        QwenEmbedding(embedder=embedder, dimensions=4)
    assert QwenEmbedding(embedder=embedder).model_name == "fake-embedding"


def test_a_dictionary_describes_it() -> None:
    embed = QwenEmbedding(
        model_name="demo", dimensions=64, instruction="Find", document_instruction="", max_length=100, revision="main"
    )
    described = embed.to_dict()
    assert described["class_name"] == "QwenEmbedding"
    assert described["fingerprint"] == embed.fingerprint
    assert QwenEmbedding.from_dict(described).to_dict() == described
    assert QwenEmbedding.from_json(embed.to_json()).to_dict() == json.loads(embed.to_json()) == described
    assert QwenEmbedding.from_dict(described, dimensions=32).dimensions == 32
    assert QwenEmbedding.from_dict(described, embed_batch_size=7, num_workers=2).num_workers == 2


def test_one_that_was_given_its_embedder_is_described_too() -> None:
    embed = embedding(dimensions=16)
    again = QwenEmbedding.from_dict(embed.to_dict(), embedder=embed.embedder)
    assert again.to_dict() == embed.to_dict()


def test_the_token_shows_nowhere() -> None:
    embed = QwenEmbedding(model_name="demo", token=SecretStr("hf_secret"))
    shown = [repr(embed), str(embed), embed.to_json(), str(embed.model_dump()), str(embed.to_payload())]
    assert [text for text in shown if "hf_secret" in text or "token=" in text] == []
    assert b"hf_secret" not in pickle.dumps(embed)
    assert embed._options("demo").token == "hf_secret"
    assert embed.model_copy(update={"token": "hf_other"})._options("demo").token == "hf_other"


def test_a_token_that_is_a_plain_string_becomes_a_secret() -> None:
    given, assigned = QwenEmbedding(model_name="demo", token="hf_secret"), QwenEmbedding(model_name="demo")
    assigned.token = "hf_secret"
    for embed in (given, assigned, QwenEmbedding(model_name="demo").model_copy(update={"token": "hf_secret"})):
        assert embed.token == SecretStr("hf_secret")
        shown = [repr(embed), str(embed), embed.to_json(), str(embed.model_dump()), str(embed.to_payload())]
        assert "hf_secret" not in "".join([*shown, str(embed.__dict__), str(embed.__getstate__())])
        assert b"hf_secret" not in pickle.dumps(embed)
        assert embed._options("demo").token == "hf_secret"
    assigned.token = None
    assert assigned._options("demo").token is None


def test_a_pickle_holds_settings_and_no_weights() -> None:
    # https://github.com/run-llama/llama_index/issues/13497, 13956, 14236, 10104: no attribute "_model" afterwards
    embed = QwenEmbedding(model_name="demo", device="cpu", dimensions=32, embed_batch_size=7, num_workers=2)
    vector = embed.get_query_embedding(QUERY)
    pickled = pickle.dumps(embed)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert (again.device, again.embed_batch_size, again.num_workers) == ("cpu", 7, 2)
    assert again.get_query_embedding(QUERY) == vector
    embed.close()
    again.close()


def test_several_devices_survive_a_pickle_and_reach_the_core() -> None:
    embed = QwenEmbedding(model_name="demo", device=["cpu", "cpu"], dimensions=32)
    again = pickle.loads(pickle.dumps(embed))
    assert again._options("demo").device == ("cpu", "cpu")
    assert len(again.get_query_embedding(QUERY)) == 32
    assert "device" not in embed.to_dict()  # where it is computed decides no numbers
    again.close()


def test_pickling_leaves_the_live_object_as_it_is() -> None:
    # https://github.com/run-llama/llama_index/issues/22578: what cannot be pickled was stripped from the object
    handler: Any = LlamaDebugHandler(print_trace_on_end=False)
    handler.lock = threading.Lock()
    embed = QwenEmbedding(model_name="demo", token=SecretStr("secret"), callback_manager=CallbackManager([handler]))
    before = dict(embed.__dict__)
    again = pickle.loads(pickle.dumps(embed))
    assert embed.__dict__ == before
    assert again.callback_manager.handlers == []
    assert again.token is None


def test_one_that_was_given_its_embedder_refuses_to_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot be pickled: load it by name"):
        pickle.dumps(embedding())


def test_copies_share_the_model() -> None:
    # https://github.com/run-llama/llama_index/issues/14837: a deep copy lost or doubled the model
    embed = QwenEmbedding(model_name="demo")
    copies = [copy.copy(embed), copy.deepcopy(embed), embed.model_copy(), embed.model_copy(deep=True)]
    embed.warm_up()
    assert all(one._load() is embed._load() for one in copies)
    copies[0].close()
    assert embed.get_query_embedding(QUERY)  # loads again
    embed.close()


def test_closing_does_not_close_an_embedder_that_was_given() -> None:
    embedder = make_embedder()
    embed = QwenEmbedding(embedder=embedder)
    embed.close()
    assert embed.get_query_embedding(QUERY)
    embedder.close()
    with pytest.raises(ModelClosedError):
        embed.get_query_embedding(QUERY)


def test_an_error_is_an_error() -> None:
    engine = FakeEmbeddingEngine(fail_on=lambda batch: RuntimeError("broken") if len(batch) > 2 else None)
    index_nodes = [TextNode(text=text) for text in TEXTS]
    with pytest.raises(RuntimeError, match="broken"):
        VectorStoreIndex(index_nodes, embed_model=embedding(engine))
    with pytest.raises(ValueError, match="control token"):
        QwenEmbedding(embedder=make_embedder(control_tokens="error")).get_text_embedding("a <|endoftext|> b")


async def test_events_come_in_pairs_and_say_how_it_was_embedded() -> None:
    embed = embedding(dimensions=16, instruction="Find")
    with listening() as (recorder, _):
        embed.get_query_embedding(QUERY)
        await embed.aget_text_embedding_batch(TEXTS)
    start, end, *others = recorder.events
    assert [type(event) for event in (start, end, *others)] == [EmbeddingStartEvent, EmbeddingEndEvent] * 2
    assert isinstance(start, EmbeddingStartEvent)
    assert start.model_dict["model_name"] == "fake-embedding"
    assert (start.model_dict["dimensions"], start.model_dict["instruction"]) == (16, "Find")
    assert isinstance(end, EmbeddingEndEvent)
    assert end.embeddings == [embed.get_query_embedding(QUERY)]


async def test_each_call_is_one_span() -> None:
    embed = embedding()
    with listening() as (_, spans):
        embed.get_query_embedding(QUERY)
        await embed.aget_query_embedding(QUERY)
        embed.get_text_embedding(QUERY)
        await embed.aget_text_embedding(QUERY)
        embed.get_text_embedding_batch(TEXTS)
        await embed.aget_text_embedding_batch(TEXTS)
    assert spans.entered == [
        ("QwenEmbedding.get_query_embedding", None),
        ("QwenEmbedding._get_query_embedding", "QwenEmbedding.get_query_embedding"),
        ("QwenEmbedding.aget_query_embedding", None),
        ("QwenEmbedding._aget_query_embedding", "QwenEmbedding.aget_query_embedding"),
        ("QwenEmbedding.get_text_embedding", None),
        ("QwenEmbedding._get_text_embedding", "QwenEmbedding.get_text_embedding"),
        ("QwenEmbedding.aget_text_embedding", None),
        ("QwenEmbedding.get_text_embedding_batch", None),
        ("QwenEmbedding.aget_text_embedding_batch", None),
    ]
    assert sorted(spans.left) == sorted(name for name, _ in spans.entered)


@pytest.mark.parametrize(
    "name",
    [f"{a}get_{kind}" for a in ("", "a") for kind in ("query_embedding", "text_embedding", "text_embedding_batch")],
)
async def test_tracers_that_patch_the_base_class_see_each_call_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As tracers without LlamaIndex's instrumentation do, with a wrapper that tells what it wraps.
    seen: list[str] = []
    original: Callable[..., Any] = getattr(BaseEmbedding, name)

    @functools.wraps(original)
    def traced(*args: Any, **options: Any) -> Any:
        seen.append(name)
        return original(*args, **options)

    monkeypatch.setattr(BaseEmbedding, name, traced)
    found = getattr(embedding(), name)([QUERY] if name.endswith("batch") else QUERY)
    assert (await found if name.startswith("a") else found)[0]
    assert seen == [name]


def test_callbacks_hear_of_it() -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    embedding(callback_manager=CallbackManager([handler])).get_text_embedding_batch(TEXTS)
    (pair,) = handler.get_event_pairs(CBEventType.EMBEDDING)
    assert len(pair) == 2


async def test_a_rate_limiter_is_asked() -> None:
    if "rate_limiter" not in BaseEmbedding.model_fields:
        pytest.skip("this llama-index-core has no rate limiters")
    from llama_index.core.rate_limiter import BaseRateLimiter

    class Counting(BaseRateLimiter):
        asked = 0

        def acquire(self, num_tokens: int = 0) -> None:  # noqa: ARG002
            self.asked += 1

        async def async_acquire(self, num_tokens: int = 0) -> None:
            self.acquire(num_tokens)

    limiter = Counting()
    embed = embedding(rate_limiter=limiter)
    embed.get_query_embedding(QUERY)
    await embed.aget_text_embedding_batch(TEXTS)
    assert limiter.asked == 2


def test_it_is_what_llama_index_expects() -> None:
    assert issubclass(QwenEmbedding, BaseEmbedding)
    assert QwenEmbedding.class_name() == "QwenEmbedding"
    assert "embedder" not in QwenEmbedding.model_json_schema()["properties"]


def test_importing_it_loads_no_torch_and_no_other_framework() -> None:
    code = (
        "import sys, llama_index.embeddings.qwen_retrieval, llama_index.postprocessor.qwen_retrieval;"
        "print(*sorted({'torch', 'transformers', 'langchain_core', 'haystack'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_without_llama_index_it_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "llama_index.core":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
try:
    import llama_index.PACKAGE.qwen_retrieval
except ImportError as error:
    print(error)
"""
    for package in ("embeddings", "postprocessor"):
        command = [sys.executable, "-c", code.replace("PACKAGE", package)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert 'pip install "qwen-retrieval[llama-index]"' in done.stdout, done.stderr
