"""The LangChain adapter in LangChain's own machinery: stores, compressors, agents, chains, caches, traces."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker, DocumentCompressorPipeline
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.stores import InMemoryByteStore
from langchain_core.tools import create_retriever_tool, tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import CharacterTextSplitter
from pydantic import Field, ValidationError
from qdrant_client import QdrantClient, models
from typing_extensions import override

from langchain_qwen_retrieval import QwenEmbeddings, QwenReranker, QwenRetriever
from qwen_retrieval import Embedder, Reranker, RerankResult, TruncationWarning, errors
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)

QUERY = "copy a file"
TEXTS = ["math.sin of x", "copy a file", "copy a directory", "file a copy", "delete everything"]
TOKEN = "hf_secret_token"


def make_embedder(engine: FakeEmbeddingEngine | None = None, **options: Any) -> Embedder:
    return Embedder(engine or FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), **options)


def make_reranker(engine: FakeRerankingEngine | None = None, **options: Any) -> Reranker:
    return Reranker(engine or FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec(), **options)


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [
        Document(text, id=f"id-{number}", metadata={"number": number, "nested": {"tags": ["a"]}})
        for number, text in enumerate(texts)
    ]


def ids(found: Sequence[Document]) -> list[str | None]:
    return [document.id for document in found]


def scores(found: Sequence[Document], key: str = "relevance_score") -> list[float]:
    return [document.metadata[key] for document in found]


@pytest.fixture
def embeddings() -> QwenEmbeddings:
    return QwenEmbeddings(embedder=make_embedder())


@pytest.fixture
def reranker() -> QwenReranker:
    return QwenReranker(reranker=make_reranker())


@pytest.fixture
def store(embeddings: QwenEmbeddings) -> InMemoryVectorStore:
    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents([f"{text} {number}" for number in range(20) for text in TEXTS]))
    return store


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each load, in order; what is loaded are the fakes."""
    seen: list[dict[str, Any]] = []

    def load_embedder(model: str, **options: Any) -> Embedder:
        seen.append({"model": model, **options})
        return make_embedder()

    def load_reranker(model: str, **options: Any) -> Reranker:
        seen.append({"model": model, **options})
        return make_reranker()

    monkeypatch.setattr(Embedder, "from_pretrained", load_embedder)
    monkeypatch.setattr(Reranker, "from_pretrained", load_reranker)
    return seen


class Listing(BaseRetriever):
    """A retriever that is no vector store's and takes no arguments; it says whether sync or async was called."""

    found: list[Document]
    calls: list[str] = Field(default_factory=list)

    @override
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.calls.append("sync")
        return list(self.found)

    @override
    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        self.calls.append("async")
        return list(self.found)


class Runs(BaseCallbackHandler):
    """Collects runs by their ids."""

    def __init__(self) -> None:
        self.runs: dict[Any, dict[str, Any]] = {}

    @override
    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, parent_run_id: Any = None, **kw: Any) -> Any:
        self.runs[run_id] = {"name": kw.get("name"), "parent": parent_run_id, "inputs": inputs}

    @override
    def on_chain_end(self, outputs: Any, *, run_id: Any, **kwargs: Any) -> Any:
        self.runs[run_id]["outputs"] = outputs

    @override
    def on_chain_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> Any:
        self.runs[run_id]["error"] = error

    @override
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: Any, parent_run_id: Any = None, **kw: Any
    ) -> Any:
        self.on_chain_start(serialized, query, run_id=run_id, parent_run_id=parent_run_id, **kw)

    @override
    def on_retriever_end(self, documents: Any, *, run_id: Any, **kwargs: Any) -> Any:
        self.on_chain_end(documents, run_id=run_id)

    @override
    def on_retriever_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> Any:
        self.on_chain_error(error, run_id=run_id)

    def named(self, name: str) -> dict[str, Any]:
        (run,) = [run for run in self.runs.values() if run["name"] == name]
        return run

    def parent_of(self, name: str) -> str | None:
        parent = self.runs.get(self.named(name)["parent"])
        return parent["name"] if parent else None


class AsyncRuns(AsyncCallbackHandler):
    """Collects the names of runs, asynchronously."""

    def __init__(self) -> None:
        self.names: list[Any] = []

    @override
    async def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.names.append(kwargs.get("name"))


class FakeChatModel(GenericFakeChatModel):
    """Says what it is told to, and lets itself be given tools."""

    @override
    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self


def chat_model(*messages: AIMessage | str) -> FakeChatModel:
    return FakeChatModel(messages=iter(messages))


def calls_tool(name: str, query: str = QUERY) -> AIMessage:
    return AIMessage(content="", tool_calls=[{"name": name, "args": {"query": query}, "id": "call-1"}])


# -- options and loading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [QwenEmbeddings, QwenReranker])
def test_the_options_reach_the_core_under_its_names(kind: Any, loads: list[dict[str, Any]]) -> None:
    # HuggingFaceEmbeddings needs model_kwargs in model_kwargs for a dtype:
    # https://github.com/langchain-ai/langchain/issues/28436
    options = {"max_length": 100, "max_batch_tokens": 1000, "batch_size": 8, "on_overflow": "error"}
    options |= {"control_tokens": "keep", "show_progress": True, "dtype": "float32", "revision": "main"}
    options |= {"local_files_only": True, "batch_invariant": True}
    kind(model="org/model", device="cpu", token=TOKEN, cache_folder="/cache", **options).warm_up()
    assert loads == [{"model": "org/model", "device": "cpu", "token": TOKEN, "cache_dir": "/cache", **options}]


@pytest.mark.parametrize("kind", [QwenEmbeddings, QwenReranker])
def test_several_devices_survive_a_dump_and_reach_the_core(kind: Any, loads: list[dict[str, Any]]) -> None:
    dumped = kind(device=["cuda:0", "cuda:1"]).model_dump_json()
    again = kind.model_validate_json(dumped)
    assert again.device == ["cuda:0", "cuda:1"]
    pickle.loads(pickle.dumps(again)).warm_up()
    assert loads[0]["device"] == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("kind", "model"), [(QwenEmbeddings, "Qwen/Qwen3-Embedding-0.6B"), (QwenReranker, "Qwen/Qwen3-Reranker-0.6B")]
)
def test_the_default_is_the_small_published_model_on_the_best_device(
    kind: Any, model: str, loads: list[dict[str, Any]]
) -> None:
    kind().warm_up()
    assert (loads[0]["model"], loads[0]["device"], loads[0]["token"]) == (model, "auto", None)


@pytest.mark.parametrize("kind", [QwenEmbeddings, QwenReranker])
def test_model_name_is_another_word_for_model(kind: Any) -> None:
    assert kind(model_name="demo").model == "demo"
    with pytest.raises(ValidationError, match="model_name"):
        kind(model_name="demo", model="4B")


def test_the_model_that_is_named_is_the_model_that_is_loaded(loads: list[dict[str, Any]]) -> None:
    # DashScopeRerank of langchain-community replaces the user's model by its default unless it is given a client.
    QwenReranker(model="8B").rerank(QUERY, TEXTS)
    assert [load["model"] for load in loads] == ["8B"]


def test_a_changed_field_counts_from_the_next_call_on(loads: list[dict[str, Any]]) -> None:
    embeddings = QwenEmbeddings(model="a/a")
    plain = embeddings.embed_query(QUERY)
    embeddings.instruction = "code_search"
    assert embeddings.embed_query(QUERY) != plain
    embeddings.dimensions = 16
    assert len(embeddings.embed_query(QUERY)) == 16
    assert len(loads) == 1
    embeddings.max_length = 50
    embeddings.embed_query(QUERY)
    assert [load["max_length"] for load in loads] == [None, 50]


def test_views_share_the_model(loads: list[dict[str, Any]]) -> None:
    # https://github.com/langchain-ai/langchain/issues/27505: a second copy of the weights for every object
    embeddings = QwenEmbeddings(model="a/a")
    view = embeddings.model_copy(update={"instruction": "code_search"})
    short = copy.deepcopy(view).model_copy(update={"dimensions": 16}, deep=True)
    vectors = [one.embed_query(QUERY) for one in (embeddings, view, short)]
    assert len(loads) == 1
    assert vectors[0] != vectors[1]
    assert len(vectors[2]) == 16
    assert (embeddings.instruction, view.instruction, short.instruction) == (None, "code_search", "code_search")


def test_close_gives_the_model_back_and_the_next_call_loads_again(loads: list[dict[str, Any]]) -> None:
    # https://github.com/langchain-ai/langchain/issues/17678: memory that nothing gives back
    reranker = QwenReranker(model="a/a")
    reranker.warm_up()
    reranker.close()
    reranker.rerank(QUERY, TEXTS)
    assert len(loads) == 2


def test_close_leaves_a_model_open_that_it_was_given(embeddings: QwenEmbeddings) -> None:
    embeddings.close()
    assert embeddings.embed_query(QUERY)


@pytest.mark.parametrize("kind", [QwenEmbeddings, QwenReranker])
@pytest.mark.parametrize("name", ["topn", "modle", "encode_kwargs"])
def test_an_unknown_option_is_refused_wherever_it_is_given(kind: Any, name: str) -> None:
    # pydantic's own defaults ignore unknown arguments, and take anything in assignments and in model_copy.
    adapter = kind(model="demo")
    with pytest.raises(ValidationError):
        kind(model="demo", **{name: 1})
    with pytest.raises(ValidationError):
        adapter.model_copy(update={name: 1})
    with pytest.raises(ValidationError):
        setattr(adapter, name, 1)


def test_an_impossible_length_is_refused_before_anything_is_loaded(loads: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match=r"dimensions must be between 32 and 1024 .*, but got 2000"):
        QwenEmbeddings(dimensions=2000)
    with pytest.raises(ValidationError, match=r"dimensions must be between 8 and 64 .*, but got 65"):
        QwenEmbeddings(embedder=make_embedder(), dimensions=65)
    embeddings = QwenEmbeddings(dimensions=1024)
    with pytest.raises(ValidationError, match="dimensions"):
        embeddings.dimensions = 5
    with pytest.raises(ValidationError, match="dimensions"):
        embeddings.model = "demo"
    assert (embeddings.dimensions, embeddings.model) == (1024, "Qwen/Qwen3-Embedding-0.6B")
    assert loads == []


@pytest.mark.parametrize(
    ("options", "name"), [({"model": "4B"}, "model"), ({"max_length": 9}, "max_length"), ({"device": "cpu"}, "device")]
)
def test_a_model_that_is_given_has_its_own_options(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=f"embedder has its own {name}"):
        QwenEmbeddings(embedder=make_embedder(), **options)
    with pytest.raises(ValidationError, match=f"reranker has its own {name}"):
        QwenReranker(reranker=make_reranker(), **options)


def test_the_token_is_nowhere_to_be_seen() -> None:
    for adapter in (QwenEmbeddings(token=TOKEN), QwenReranker(token=TOKEN)):  # type: ignore[arg-type]
        shown = [repr(adapter), str(adapter), str(adapter.model_dump()), adapter.model_dump_json()]
        shown += [json.dumps(dumpd(adapter)), str(pickle.dumps(adapter))]
        assert [text for text in shown if TOKEN in text] == []
        assert pickle.loads(pickle.dumps(adapter)).token is None
        assert "token" not in adapter.model_dump()  # a masked one would be taken for a token when read again
        assert adapter.model_copy(update={"device": "cpu"}).token == adapter.token
    retriever = QwenRetriever(retriever=Listing(found=[]), reranker=QwenReranker(token=TOKEN))  # type: ignore[arg-type]
    assert TOKEN not in json.dumps(dumpd(retriever)) + repr(retriever)


@pytest.mark.parametrize("options", [{"dimensions": 5, "token": TOKEN}, {"tokn": TOKEN}, {"token": [TOKEN]}])
def test_the_token_is_in_no_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        QwenEmbeddings(model="demo", **options)
    assert TOKEN not in str(caught.value)


def test_the_repr_says_what_is_not_the_default(embeddings: QwenEmbeddings) -> None:
    assert repr(QwenEmbeddings(model="demo", dimensions=64)) == "QwenEmbeddings(model='demo', dimensions=64)"
    assert repr(embeddings) == "QwenEmbeddings(model='fake-embedding')"


def test_a_dump_makes_an_equal_adapter() -> None:
    options: dict[str, Any] = {"model": "demo", "top_n": 3, "metadata_fields": ["title"], "scale": "log_odds"}
    dumped = QwenReranker(**options).model_dump()
    assert dumped | options == dumped
    assert QwenReranker(**dumped).model_dump() == dumped
    assert QwenReranker.model_validate_json(QwenReranker(**options).model_dump_json()).model_dump() == dumped


def test_another_process_loads_what_a_pickle_names() -> None:
    # HuggingFaceEmbeddings pickles the whole model.
    pair = QwenEmbeddings(model="demo", dimensions=32), QwenReranker(model="demo", scale="log_odds")
    vector, score = pair[0].embed_query(QUERY), pair[1].score([(QUERY, TEXTS[1])])
    pickled = pickle.dumps(pair)
    assert len(pickled) < 10_000
    code = (
        "import pickle, sys, json\n"
        "embeddings, reranker = pickle.load(sys.stdin.buffer)\n"
        f"print(json.dumps([embeddings.embed_query({QUERY!r}), reranker.score([({QUERY!r}, {TEXTS[1]!r})])]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    there = json.loads(done.stdout)
    assert there[0] == pytest.approx(vector, abs=1e-6)
    assert there[1] == pytest.approx(score, abs=1e-5)


def test_a_model_that_was_given_cannot_be_pickled(embeddings: QwenEmbeddings, reranker: QwenReranker) -> None:
    for adapter in (embeddings, reranker):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(adapter)


def test_without_langchain_the_error_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'langchain_core':\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import langchain_qwen_retrieval"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "qwen-retrieval[langchain]"' in done.stderr.splitlines()[-1]


def test_the_adapter_needs_langchain_core_only() -> None:
    # https://github.com/langchain-ai/langchain-community/issues/674: the community package is at its end, and
    # https://github.com/AnswerDotAI/RAGatouille/issues/275: langchain.retrievers is gone.
    code = "import sys, langchain_qwen_retrieval; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "langchain_core" in loaded
    assert loaded.isdisjoint({"langchain", "langchain_classic", "langchain_community", "torch", "transformers"})


# -- embeddings ------------------------------------------------------------------------------------------------------


def test_line_breaks_are_kept(embeddings: QwenEmbeddings) -> None:
    # HuggingFaceEmbeddings replaces every newline by a space, which the models have not needed for long:
    # https://github.com/openai/openai-python/issues/418
    code = "def f(x):\n    return x"
    assert embeddings.embed_query(code) != embeddings.embed_query(code.replace("\n", " "))
    assert embeddings.embed_documents([code]) != embeddings.embed_documents([code.replace("\n", " ")])
    assert embeddings.embed_documents([code])[0] == make_embedder().embed_documents([code])[0].tolist()


def test_queries_have_the_instruction_and_documents_have_none(embeddings: QwenEmbeddings) -> None:
    # https://github.com/QwenLM/Qwen3-Embedding/issues/30, https://github.com/QwenLM/Qwen3-Embedding/issues/97
    core = make_embedder()
    assert embeddings.embed_query(QUERY) == core.embed_queries([QUERY])[0].tolist()
    assert embeddings.embed_documents([QUERY])[0] == core.embed_documents([QUERY])[0].tolist()
    assert embeddings.embed_query(QUERY) != embeddings.embed_documents([QUERY])[0]


def test_queries_and_documents_have_the_same_settings(embeddings: QwenEmbeddings) -> None:
    # query_encode_kwargs replaces encode_kwargs in HuggingFaceEmbeddings, so that queries lose their normalisation:
    # https://github.com/langchain-ai/langchain/pull/27857
    short = embeddings.model_copy(update={"dimensions": 16, "instruction": "Find code"})
    query, document = short.embed_query(QUERY), short.embed_documents([QUERY])[0]
    assert len(query) == len(document) == 16
    for vector in (query, document):
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)


def test_symmetric_tasks_have_an_instruction_on_both_sides(embeddings: QwenEmbeddings) -> None:
    both = embeddings.model_copy(update={"instruction": "Find twins", "document_instruction": "Find twins"})
    assert both.embed_query(QUERY) == pytest.approx(both.embed_documents([QUERY])[0], abs=1e-6)


def test_nothing_is_loaded_for_nothing(loads: list[dict[str, Any]]) -> None:
    assert QwenEmbeddings().embed_documents([]) == []
    assert QwenReranker().compress_documents([], QUERY) == []
    assert QwenReranker().rerank(QUERY, []) == []
    assert QwenReranker().score([]) == []
    assert QwenRetriever(retriever=Listing(found=[])).invoke(QUERY) == []
    assert loads == []


async def test_sync_methods_work_inside_an_event_loop(embeddings: QwenEmbeddings, reranker: QwenReranker) -> None:
    # InfinityEmbeddingsLocal of langchain-community calls asyncio.run, which a running loop refuses.
    assert embeddings.embed_query(QUERY) == await embeddings.aembed_query(QUERY)
    assert reranker.rerank(QUERY, TEXTS) == await reranker.arerank(QUERY, TEXTS)


async def test_concurrent_queries_share_forward_passes() -> None:
    # HuggingFaceEmbeddings runs concurrent calls in threads at once, without a lock and without batches.
    engine = FakeEmbeddingEngine(delay=0.01)
    embeddings = QwenEmbeddings(embedder=make_embedder(engine))
    await asyncio.gather(*(embeddings.aembed_query(f"query {number}") for number in range(64)))
    assert engine.calls < 16


@pytest.mark.parametrize("kind", [QwenEmbeddings, QwenReranker])
async def test_concurrent_first_calls_load_once(kind: Any, loads: list[dict[str, Any]]) -> None:
    # https://github.com/langchain-ai/langchain/issues/28497, https://github.com/memgraph/memgraph/issues/3913
    adapter = kind(model="a/a")
    if kind is QwenEmbeddings:
        calls = [adapter.aembed_query(QUERY), asyncio.to_thread(adapter.embed_query, QUERY)]
    else:
        calls = [adapter.arerank(QUERY, TEXTS), asyncio.to_thread(adapter.rerank, QUERY, TEXTS)]
    first, second = await asyncio.gather(*calls)
    assert first == second
    assert len(loads) == 1


async def test_a_cancelled_first_call_does_not_load_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # https://github.com/basicmachines-co/basic-memory/pull/1143
    loads: list[str] = []

    def load_slowly(model: str, **_: Any) -> Embedder:
        loads.append(model)
        time.sleep(0.1)
        return make_embedder()

    monkeypatch.setattr(Embedder, "from_pretrained", load_slowly)
    embeddings = QwenEmbeddings(model="a/a")
    first = asyncio.create_task(embeddings.aembed_query(QUERY))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await embeddings.aembed_query(QUERY)
    assert loads == ["a/a"]


def test_progress_is_shown_for_many_documents_and_not_for_a_query(capsys: pytest.CaptureFixture[str]) -> None:
    # https://github.com/langchain-ai/langchain/pull/16758
    embeddings = QwenEmbeddings(embedder=make_embedder(show_progress=True))
    embeddings.embed_query(QUERY)
    assert capsys.readouterr().err == ""
    embeddings.embed_documents([f"document {number}" for number in range(65)])
    assert "65/65" in capsys.readouterr().err


@pytest.mark.parametrize("many", ["a string", ["fine", 3]])
def test_what_is_no_list_of_texts_is_refused(many: Any, embeddings: QwenEmbeddings, reranker: QwenReranker) -> None:
    with pytest.raises(TypeError, match="string"):
        embeddings.embed_documents(many)
    with pytest.raises(TypeError, match="string"):
        reranker.rerank(QUERY, many)


# -- caches and the indexing API -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": 32},
        {"instruction": "Find code"},
        {"document_instruction": "Find twins"},
        {"revision": "v2"},
        {"max_length": 100},
        {"control_tokens": "keep"},
        {"model": "Qwen/Qwen3-Embedding-4B"},
    ],
    ids=str,
)
def test_whatever_changes_a_vector_changes_the_fingerprint(change: dict[str, Any], loads: list[dict[str, Any]]) -> None:
    embeddings = QwenEmbeddings()
    assert embeddings.model_copy(update=change).fingerprint != embeddings.fingerprint
    assert embeddings.model_copy(update={"device": "cpu"}).fingerprint == embeddings.fingerprint
    assert loads == []


def test_an_embedder_that_is_given_has_a_fingerprint_too(embeddings: QwenEmbeddings) -> None:
    names = {
        embeddings.model_copy(update=change).fingerprint
        for change in ({}, {"dimensions": 16}, {"instruction": "Find code"}, {"document_instruction": "Find twins"})
    }
    assert len(names) == 4
    assert embeddings.fingerprint == make_embedder().fingerprint
    assert embeddings.model_copy(update={"dimensions": 64}).fingerprint == embeddings.fingerprint


def cached(embeddings: QwenEmbeddings, of_documents: Any, of_queries: Any) -> CacheBackedEmbeddings:
    """The recipe of `QwenEmbeddings.fingerprint`."""
    return CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        of_documents,
        namespace=embeddings.fingerprint,
        query_embedding_cache=of_queries,
        key_encoder="sha256",
    )


def test_a_cache_keeps_queries_and_documents_apart() -> None:
    # CacheBackedEmbeddings with query_embedding_cache=True returns the query's vector for a document of the same text.
    engine = FakeEmbeddingEngine()
    embeddings = QwenEmbeddings(embedder=make_embedder(engine))
    cache = cached(embeddings, InMemoryByteStore(), InMemoryByteStore())
    expected = embeddings.embed_query(QUERY), embeddings.embed_documents([QUERY])
    before = engine.inputs
    for _ in range(2):
        assert (cache.embed_query(QUERY), cache.embed_documents([QUERY])) == expected
    assert engine.inputs == before + 2


def test_a_cache_never_serves_vectors_of_other_settings(embeddings: QwenEmbeddings) -> None:
    # With the name of the model as namespace, as in LangChain's own example, it serves vectors of the old length.
    stores = InMemoryByteStore(), InMemoryByteStore()
    short = embeddings.model_copy(update={"dimensions": 16})
    assert len(cached(embeddings, *stores).embed_documents([QUERY])[0]) == 64
    assert len(cached(short, *stores).embed_documents([QUERY])[0]) == 16


def indexed(found: list[Document], embeddings: QwenEmbeddings, managers: dict[str, InMemoryRecordManager]) -> Any:
    namespace = f"memory/texts/{embeddings.fingerprint}"
    if namespace not in managers:
        managers[namespace] = InMemoryRecordManager(namespace)
        managers[namespace].create_schema()
    store = InMemoryVectorStore(embeddings)
    return index(found, managers[namespace], store, cleanup=None, key_encoder="sha256")


def test_documents_are_indexed_again_when_the_settings_change(embeddings: QwenEmbeddings) -> None:
    # The indexing API hashes text and metadata only: with a fixed namespace, old vectors would stay.
    managers: dict[str, InMemoryRecordManager] = {}
    assert indexed(documents(), embeddings, managers)["num_added"] == len(TEXTS)
    assert indexed(documents(), embeddings, managers)["num_skipped"] == len(TEXTS)
    short = embeddings.model_copy(update={"dimensions": 16})
    assert indexed(documents(), short, managers)["num_added"] == len(TEXTS)


def test_reranked_documents_can_be_indexed(embeddings: QwenEmbeddings, reranker: QwenReranker) -> None:
    # A numpy score raises "Failed to hash metadata": https://github.com/langfuse/langfuse/issues/2761,
    # https://github.com/thinkany-ai/rag-search/issues/10, https://github.com/agent0ai/agent-zero/pull/1846
    found = reranker.compress_documents(documents(), QUERY)
    assert {type(score) for score in scores(found)} == {float}
    assert json.loads(json.dumps([one.metadata for one in found])) == [one.metadata for one in found]
    assert indexed(found, embeddings, {})["num_added"] == len(TEXTS)


# -- reranker --------------------------------------------------------------------------------------------------------


def test_the_order_and_the_scores_are_the_core_s(reranker: QwenReranker) -> None:
    results = make_reranker().rerank(QUERY, TEXTS)
    found = reranker.compress_documents(documents(), QUERY)
    assert ids(found) == [f"id-{result.index}" for result in results]
    assert scores(found) == [result.relevance_score for result in results]
    assert reranker.rerank(QUERY, TEXTS) == reranker.rerank(QUERY, documents()) == results


def test_the_template_of_the_model_is_applied() -> None:
    # Without it, the scores of Qwen3-Reranker are wrong: https://github.com/langchain-ai/langchain-community/issues/430,
    # https://github.com/vllm-project/vllm/issues/21681, https://github.com/QwenLM/Qwen3-Embedding/issues/96
    seen: list[list[int]] = []

    def look(batch: list[list[int]]) -> None:
        seen.extend(batch)

    engine = FakeRerankingEngine(fail_on=look)
    QwenReranker(reranker=make_reranker(engine)).score([(QUERY, TEXTS[0])])
    text = ByteTokenizer().decode(seen[0])
    assert text.startswith("<|im_start|>system\n")
    assert f"<Query>: {QUERY}\n<Document>: {TEXTS[0]}" in text
    assert text.endswith("<think>\n\n</think>\n\n")


def test_documents_keep_their_class_id_and_metadata_and_stay_as_they_are(reranker: QwenReranker) -> None:
    # Changed in place: https://github.com/langchain-ai/langchain-nvidia/issues/41, and the compressor of `rerankers`.
    # No id: https://github.com/langchain-ai/langchain-cohere/pull/131, and a dozen others.
    # No metadata: https://github.com/langchain-ai/langchain/issues/19142, VertexAIRank, OpenVINOReranker.
    class Page(Document):
        number: int = 0

    pages: list[Document] = [Page(page_content=text, id=text, number=3, metadata={"tags": ["a"]}) for text in TEXTS]
    before = copy.deepcopy(pages)
    for page in reranker.compress_documents(pages, QUERY):
        score = page.metadata.pop("relevance_score")
        assert isinstance(score, float)
        assert page in before
    assert pages == before


def test_a_second_stage_replaces_the_score_that_the_order_no_longer_has(reranker: QwenReranker) -> None:
    # In FlashrankRerank the old metadata overwrite the new score.
    first = reranker.compress_documents(documents(), QUERY)
    second = reranker.model_copy(update={"instruction": "Find sines"}).compress_documents(first, "sin of x")
    assert scores(second) == sorted(scores(second), reverse=True)
    assert ids(second) != ids(first)
    assert scores(first) == scores(reranker.compress_documents(documents(), QUERY))


def test_stages_with_keys_of_their_own_keep_both_scores(reranker: QwenReranker) -> None:
    second = reranker.model_copy(update={"score_key": "second_score"})
    pipeline = DocumentCompressorPipeline(transformers=[reranker, second])
    for document in pipeline.compress_documents(documents(), QUERY):
        assert document.metadata["relevance_score"] == document.metadata["second_score"]


def test_the_chosen_metadata_are_shown_to_the_model(reranker: QwenReranker) -> None:
    told = reranker.model_copy(update={"metadata_fields": ["title", "year", "draft", "author", "missing"]})
    metadata = {"title": "Copying", "year": 0, "draft": False, "author": None, "other": "unseen"}
    document = Document("Text.\n", metadata=metadata)
    (found,) = told.compress_documents([document], QUERY)
    shown = "title: Copying\nyear: 0\ndraft: False\nText.\n"
    assert found.metadata["relevance_score"] == make_reranker().rerank(QUERY, [shown])[0].relevance_score
    assert found.page_content == "Text.\n"


def test_copies_of_a_document_are_kept_once(reranker: QwenReranker) -> None:
    twice = [*documents(), *documents(), Document(QUERY), Document(QUERY), Document(QUERY, metadata={"page": 2})]
    found = reranker.compress_documents(twice, QUERY)
    assert len(found) == len(TEXTS) + 2
    assert len(reranker.rerank(QUERY, [QUERY, QUERY])) == 2  # plain texts are told apart by their place


def test_different_texts_with_the_same_id_are_different_documents(reranker: QwenReranker) -> None:
    # An id is unique in one store only, and whoever cuts a document into pieces keeps it.
    pieces = [Document(text, id="doc-1") for text in TEXTS]
    assert len(reranker.compress_documents(pieces, QUERY)) == len(TEXTS)


def test_an_error_names_the_document_that_was_given(reranker: QwenReranker) -> None:
    with pytest.raises(errors.InputError, match=r"documents\[3\]"):
        reranker.compress_documents([Document("a", id="1")] * 3 + [Document("bad \ud800", id="2")], QUERY)


@pytest.mark.parametrize("wrong", [["a"], [Document("a"), 7]])
def test_what_is_no_document_is_refused_with_advice(reranker: QwenReranker, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"documents\[\d\] is (str|int); `rerank` takes plain texts"):
        reranker.compress_documents(wrong, QUERY)


def test_an_iterator_of_documents_is_as_good_as_a_list(reranker: QwenReranker) -> None:
    assert reranker.compress_documents(iter(documents()), QUERY) == reranker.compress_documents(documents(), QUERY)  # type: ignore[arg-type]
    pairs = [(QUERY, text) for text in TEXTS]
    assert reranker.score(iter(pairs)) == reranker.score(pairs)  # type: ignore[arg-type]


def test_a_dump_names_the_model_that_was_given(reranker: QwenReranker) -> None:
    assert reranker.model_dump()["model"] == "fake-reranker"


def test_the_threshold_is_inclusive_and_comes_before_top_n(reranker: QwenReranker) -> None:
    # FlashrankRerank applies it after top_n; the others have none: https://github.com/langchain-ai/langchain-cohere/pull/137
    ranked = scores(reranker.compress_documents(documents(), QUERY))
    settings = {"score_threshold": ranked[2], "top_n": 10}
    found = reranker.model_copy(update=settings).compress_documents(documents(), QUERY)
    assert scores(found) == [score for score in ranked if score >= ranked[2]]
    assert scores(reranker.model_copy(update={"top_n": 2}).compress_documents(documents(), QUERY)) == ranked[:2]
    results = reranker.rerank(QUERY, TEXTS, top_n=1, score_threshold=ranked[2])
    assert [result.relevance_score for result in results] == ranked[:1]


def test_log_odds_are_the_unit_of_scores_and_threshold_alike(reranker: QwenReranker) -> None:
    # https://github.com/huggingface/sentence-transformers/issues/1262: thresholds that mean nothing
    raw = reranker.model_copy(update={"scale": "log_odds"})
    log_odds = scores(raw.compress_documents(documents(), QUERY))
    assert log_odds == [result.log_odds for result in make_reranker().rerank(QUERY, TEXTS)]
    assert raw.score([(QUERY, TEXTS[1])]) == log_odds[:1]
    above = raw.model_copy(update={"score_threshold": log_odds[1]})
    assert scores(above.compress_documents(documents(), QUERY)) == [one for one in log_odds if one >= log_odds[1]]
    assert all(0 <= score <= 1 for score in scores(reranker.compress_documents(documents(), QUERY)))


@pytest.mark.parametrize("top_n", [0, -1])
def test_a_top_n_below_one_is_refused(top_n: int, reranker: QwenReranker) -> None:
    # CrossEncoderReranker(top_n=-1) drops the last document.
    with pytest.raises(ValidationError, match=f"top_n must be at least 1, or None for all, but got {top_n}"):
        QwenReranker(top_n=top_n)
    with pytest.raises(ValueError, match="top_n"):
        reranker.rerank(QUERY, [], top_n=top_n)
    with pytest.raises(ValidationError, match="top_n"):
        reranker.top_n = top_n
    assert reranker.top_n is None


async def test_an_error_is_an_error() -> None:
    # PineconeRerank logs it and returns [].
    engine = FakeRerankingEngine(fail_on=lambda _: RuntimeError("the device is gone"))
    reranker = QwenReranker(reranker=make_reranker(engine))
    for callbacks in [None, list[BaseCallbackHandler]([Runs()])]:
        with pytest.raises(RuntimeError, match="the device is gone"):
            reranker.compress_documents(documents(), QUERY, callbacks=callbacks)
        with pytest.raises(RuntimeError, match="the device is gone"):
            await reranker.acompress_documents(documents(), QUERY, callbacks=callbacks)


def test_a_long_document_is_cut_and_the_template_is_not() -> None:
    # https://github.com/langchain-ai/langchain/issues/21812: 614 tokens where the model has 512 positions
    reranker = QwenReranker(reranker=make_reranker(max_length=700))
    runs = Runs()
    with pytest.warns(TruncationWarning):
        found = reranker.compress_documents(documents(["x" * 1000, QUERY]), QUERY, callbacks=[runs])
    assert len(found) == 2
    assert runs.named("QwenReranker")["outputs"]["truncated"] == 1


async def test_reranking_does_not_block_the_event_loop() -> None:
    # https://github.com/langchain-ai/langchain-cohere/pull/134, https://github.com/ogx-ai/ogx/issues/3332
    reranker = QwenReranker(reranker=make_reranker(FakeRerankingEngine(delay=0.5)))
    task = asyncio.create_task(reranker.acompress_documents(documents(), QUERY))
    longest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert longest < 0.4


def test_it_is_a_cross_encoder(reranker: QwenReranker) -> None:
    # HuggingFaceCrossEncoder returns a numpy array, and has no batch size and no instruction.
    pairs = [(QUERY, text) for text in TEXTS] + [("another query", "sin")]
    results = reranker.score(pairs)
    assert {type(score) for score in results} == {float}
    expected = {result.index: result.relevance_score for result in make_reranker().rerank(QUERY, TEXTS)}
    assert results[:-1] == pytest.approx([expected[position] for position in range(len(TEXTS))])
    told = reranker.model_copy(update={"instruction": "Find code"})
    assert told.score(pairs) != results
    classic = CrossEncoderReranker(model=reranker, top_n=2)
    best = [result.index for result in make_reranker().rerank(QUERY, TEXTS, top_n=2)]
    assert ids(classic.compress_documents(documents(), QUERY)) == [f"id-{position}" for position in best]


# -- LangChain's retrievers and compressors --------------------------------------------------------------------------


async def test_it_compresses_for_a_contextual_compression_retriever(
    store: InMemoryVectorStore, reranker: QwenReranker
) -> None:
    # https://github.com/langchain-ai/langchain/issues/33292: where that retriever is in LangChain 1
    compression = ContextualCompressionRetriever(
        base_compressor=reranker.model_copy(update={"top_n": 3}),
        base_retriever=store.as_retriever(search_kwargs={"k": 30}),
    )
    found = compression.invoke(QUERY)
    assert len(found) == 3
    assert found == await compression.ainvoke(QUERY)
    assert found == QwenRetriever(retriever=store, reranker=reranker, k=3, fetch_k=30).invoke(QUERY)


async def test_it_is_a_stage_of_a_compressor_pipeline(reranker: QwenReranker) -> None:
    splitter = CharacterTextSplitter(separator=". ", chunk_size=20, chunk_overlap=0)
    pipeline = DocumentCompressorPipeline(transformers=[splitter, reranker])
    whole = [Document("Return the sine. Copy a file. Delete all.", metadata={"source": "a"})]
    runs = Runs()
    found = pipeline.compress_documents(whole, QUERY, callbacks=[runs])
    assert found[0].page_content == "Copy a file"
    assert len(found) == 3
    assert found == await pipeline.acompress_documents(whole, QUERY)
    assert runs.named("QwenReranker")["outputs"]["count"] == 3


@pytest.fixture
def qdrant() -> Iterator[Callable[[QwenEmbeddings], QdrantVectorStore]]:
    client = QdrantClient(":memory:")

    def make(embeddings: QwenEmbeddings) -> QdrantVectorStore:
        size = len(embeddings.embed_query("length"))
        client.create_collection("texts", models.VectorParams(size=size, distance=models.Distance.COSINE))
        store = QdrantVectorStore(client, "texts", embeddings)
        store.add_documents(
            [Document(f"{text} {number}", metadata={"number": number}) for number in range(5) for text in TEXTS]
        )
        return store

    yield make
    client.close()


async def test_a_qdrant_store_feeds_the_retriever(
    qdrant: Callable[[QwenEmbeddings], QdrantVectorStore], embeddings: QwenEmbeddings, reranker: QwenReranker
) -> None:
    in_three = models.Filter(must=[models.FieldCondition(key="metadata.number", match=models.MatchValue(value=3))])
    retriever = QwenRetriever(retriever=qdrant(embeddings), reranker=reranker, k=2, search_kwargs={"filter": in_three})
    found = retriever.invoke("copy a file 3")
    assert found == await retriever.ainvoke("copy a file 3")
    assert found[0].page_content == "copy a file 3"
    assert {document.metadata["number"] for document in found} == {3}
    assert all(document.metadata["_id"] for document in found)  # this store sets no Document.id


async def test_async_searches_of_qdrant_share_forward_passes(
    qdrant: Callable[[QwenEmbeddings], QdrantVectorStore],
) -> None:
    # QdrantVectorStore has no async methods: its async calls run the sync embed_query in a few threads.
    embedding, reranking = FakeEmbeddingEngine(delay=0.01), FakeRerankingEngine(delay=0.01)
    store = qdrant(QwenEmbeddings(embedder=make_embedder(embedding)))
    retriever = QwenRetriever(retriever=store, reranker=QwenReranker(reranker=make_reranker(reranking)), fetch_k=8)
    embedding.calls = 0
    found = await asyncio.gather(*(retriever.ainvoke(f"copy a file {number}") for number in range(64)))
    assert all(len(one) == 4 for one in found)
    assert embedding.calls <= 32
    assert reranking.calls <= 40


# -- our retriever ---------------------------------------------------------------------------------------------------


def fetched(retriever: QwenRetriever, **arguments: Any) -> int:
    """How many candidates were reranked."""
    runs = Runs()
    retriever.invoke(QUERY, config={"callbacks": [runs]}, **arguments)
    number: int = runs.named("QwenReranker")["inputs"]["document_count"]
    return number


def test_a_vector_store_is_asked_for_fetch_k_candidates(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    retriever = QwenRetriever(retriever=store, reranker=reranker)
    assert len(retriever.invoke(QUERY)) == 4
    assert fetched(retriever) == 40
    assert fetched(retriever, fetch_k=7) == 7
    assert fetched(retriever, k=60) == 60
    assert fetched(QwenRetriever(retriever=store, reranker=reranker, fetch_k=9)) == 9


def test_the_k_of_a_vector_store_retriever_counts_where_no_fetch_k_is_set(
    store: InMemoryVectorStore, reranker: QwenReranker
) -> None:
    base = store.as_retriever(search_kwargs={"k": 50, "filter": lambda document: "sin" not in document.page_content})
    retriever = QwenRetriever(retriever=base, reranker=reranker)
    assert fetched(retriever) == 50
    assert fetched(retriever, fetch_k=7) == 7
    assert fetched(QwenRetriever(retriever=base, reranker=reranker, fetch_k=9)) == 9
    assert base.search_kwargs["k"] == 50
    assert not any("sin" in document.page_content for document in retriever.invoke("sin", k=50))


def test_other_retrievers_decide_for_themselves(reranker: QwenReranker) -> None:
    retriever = QwenRetriever(retriever=Listing(found=documents()), reranker=reranker)
    assert fetched(retriever) == len(TEXTS)
    assert fetched(retriever, fetch_k=4) == 4
    assert fetched(retriever, fetch_k=1, k=3) == 3
    assert retriever.invoke("math.sin of x", k=1)[0].page_content == "math.sin of x"


def test_any_runnable_that_returns_documents_is_a_retriever(reranker: QwenReranker) -> None:
    found = QwenRetriever(retriever=RunnableLambda(lambda _: documents()), reranker=reranker, k=1).invoke(QUERY)
    assert ids(found) == ["id-1"]


def test_search_arguments_go_to_the_search(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    only = {"filter": lambda document: "directory" in document.page_content}
    for base in (store, store.as_retriever()):
        found = QwenRetriever(retriever=base, reranker=reranker, search_kwargs=only).invoke(QUERY)
        assert all("directory" in document.page_content for document in found)
        assert len(found) == 4


def test_search_arguments_that_would_be_lost_are_refused(store: InMemoryVectorStore) -> None:
    with pytest.raises(ValidationError, match="search_kwargs must be given to the retriever itself"):
        QwenRetriever(retriever=Listing(found=[]), search_kwargs={"filter": 1})
    with pytest.raises(ValidationError, match="search_kwargs must not contain k"):
        QwenRetriever(retriever=store, search_kwargs={"k": 1})


def test_the_call_wins_over_the_retriever_and_the_retriever_over_its_reranker(store: InMemoryVectorStore) -> None:
    own: dict[str, Any] = {"top_n": 3, "score_threshold": 0.03, "instruction": "Of the reranker"}
    reranker = QwenReranker(reranker=make_reranker(), **own)

    def used(retriever: QwenRetriever, **arguments: Any) -> tuple[Any, ...]:
        runs = Runs()
        retriever.invoke(QUERY, config={"callbacks": [runs]}, **arguments)
        inputs = runs.named("QwenReranker")["inputs"]
        return inputs["top_n"], inputs["score_threshold"], inputs["instruction"]

    assert used(QwenRetriever(retriever=store, reranker=reranker)) == (3, 0.03, "Of the reranker")
    settings: dict[str, Any] = {"k": 2, "score_threshold": 0.02, "instruction": "Of the retriever"}
    retriever = QwenRetriever(retriever=store, reranker=reranker, **settings)
    assert used(retriever) == (2, 0.02, "Of the retriever")
    assert used(retriever, k=1, score_threshold=0, instruction="") == (1, 0, "")
    assert used(QwenRetriever(retriever=store, reranker=QwenReranker(reranker=make_reranker()))) == (4, None, None)
    assert (reranker.top_n, reranker.score_threshold, reranker.instruction) == tuple(own.values())


def test_a_threshold_may_leave_less_than_k(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    retriever = QwenRetriever(retriever=store, reranker=reranker)
    best = scores(retriever.invoke(QUERY))
    assert scores(retriever.invoke(QUERY, score_threshold=best[1])) == [score for score in best if score >= best[1]]
    assert retriever.invoke(QUERY, score_threshold=1.0) == []


async def test_a_misspelt_argument_of_a_call_is_refused(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    # In a ContextualCompressionRetriever invoke(query, top_n=1) goes to the base retriever, where it is lost.
    retriever = QwenRetriever(retriever=store, reranker=reranker)
    with pytest.raises(TypeError, match="top_k"):
        retriever.invoke(QUERY, top_k=1)
    with pytest.raises(TypeError, match="top_k"):
        await retriever.ainvoke(QUERY, top_k=1)
    with pytest.raises(ValidationError):
        QwenRetriever(retriever=store, reranker=reranker, top_k=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.invoke(QUERY, k=0)
    with pytest.raises(ValidationError, match="fetch_k must be at least 1"):
        retriever.fetch_k = 0


def test_fields_can_be_configured_at_run_time(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    retriever = QwenRetriever(retriever=store, reranker=reranker)
    configurable = retriever.configurable_fields(
        k=ConfigurableField(id="k"),
        score_threshold=ConfigurableField(id="threshold"),
        reranker=ConfigurableField(id="reranker"),
    )
    assert len(configurable.invoke(QUERY)) == 4
    assert len(configurable.invoke(QUERY, config={"configurable": {"k": 2}})) == 2
    assert configurable.with_config(configurable={"threshold": 1.0}).invoke(QUERY) == []
    raw = reranker.model_copy(update={"scale": "log_odds"})
    assert max(scores(configurable.invoke(QUERY, config={"configurable": {"reranker": raw}}))) > 1
    assert (
        "k"
        in configurable.config_schema(include=["configurable"]).model_json_schema()["$defs"]["Configurable"][
            "properties"
        ]
    )


async def test_it_is_async_all_the_way_down(reranker: QwenReranker) -> None:
    base = Listing(found=documents(), calls=[])
    await QwenRetriever(retriever=base, reranker=reranker).ainvoke(QUERY)
    assert base.calls == ["async"]


async def test_concurrent_calls_share_forward_passes() -> None:
    embedding, reranking = FakeEmbeddingEngine(delay=0.01), FakeRerankingEngine(delay=0.01)
    store = InMemoryVectorStore(QwenEmbeddings(embedder=make_embedder(embedding)))
    store.add_documents(documents())
    retriever = QwenRetriever(retriever=store, reranker=QwenReranker(reranker=make_reranker(reranking)))
    embedding.calls = 0
    await asyncio.gather(*(retriever.ainvoke(f"{QUERY} {number}") for number in range(64)))
    assert embedding.calls <= 16
    assert reranking.calls <= 32


async def test_it_is_a_link_of_a_chain(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    prompt = ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")
    best = QwenRetriever(retriever=store, reranker=reranker, k=1) | RunnableLambda(lambda found: found[0].page_content)
    chain = {"context": best, "question": RunnablePassthrough()} | prompt
    expected = f"Context: {best.invoke(QUERY)}\nQuestion: {QUERY}"
    assert chain.invoke(QUERY).to_messages()[0].content == expected
    assert (await chain.ainvoke(QUERY)).to_messages()[0].content == expected
    assert best.batch([QUERY, "sin of x"]) == await best.abatch([QUERY, "sin of x"])


async def test_the_reranker_is_a_link_of_a_chain_by_its_methods(
    store: InMemoryVectorStore, reranker: QwenReranker
) -> None:
    def rerank(given: dict[str, Any]) -> list[Document]:
        return reranker.compress_documents(given["documents"], given["query"])

    async def arerank(given: dict[str, Any]) -> list[Document]:
        return await reranker.acompress_documents(given["documents"], given["query"])

    parts: Any = {"query": RunnablePassthrough(), "documents": store.as_retriever()}
    chain = parts | RunnableLambda(rerank, arerank)
    runs = Runs()
    found = chain.invoke(QUERY, config={"callbacks": [runs]})
    assert found == await chain.ainvoke(QUERY)
    assert runs.parent_of("QwenReranker") == "rerank"  # found in the context


# -- tools and agents ------------------------------------------------------------------------------------------------


async def test_it_is_a_tool_whose_artifact_has_the_scores(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    retriever = QwenRetriever(retriever=store, reranker=reranker, k=2)
    search = create_retriever_tool(retriever, "search", "Searches the texts.", response_format="content_and_artifact")
    call = {"type": "tool_call", "name": "search", "args": {"query": QUERY}, "id": "1"}
    message = search.invoke(call)
    assert isinstance(message, ToolMessage)
    assert message.content == "\n\n".join(document.page_content for document in retriever.invoke(QUERY))
    assert scores(message.artifact) == scores(retriever.invoke(QUERY))
    assert (await search.ainvoke(call)).content == message.content


async def test_an_agent_searches_with_it(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    retriever = QwenRetriever(retriever=store, reranker=reranker, k=1)
    search = create_retriever_tool(retriever, "search", "Searches the texts.", response_format="content_and_artifact")
    question = {"messages": [HumanMessage("How do I copy a file?")]}
    expected = retriever.invoke(QUERY)
    for use_async in (False, True):
        agent: Any = create_agent(chat_model(calls_tool("search"), "With shutil."), [search])
        runs = Runs()
        config = {"callbacks": [runs]}
        state = await agent.ainvoke(question, config) if use_async else agent.invoke(question, config)
        found = next(message for message in state["messages"] if isinstance(message, ToolMessage))
        assert found.artifact == expected
        assert state["messages"][-1].content == "With shutil."
        assert runs.parent_of("QwenReranker") == "QwenRetriever"


def test_an_agent_s_own_tool_may_rerank(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    @tool(response_format="content_and_artifact")
    def search(query: str) -> tuple[str, list[Document]]:
        """Searches the texts."""
        found = reranker.compress_documents(store.similarity_search(query, k=20), query)
        return found[0].page_content, found[:1]

    runs = Runs()
    agent: Any = create_agent(chat_model(calls_tool("search"), "With shutil."), [search])
    state = agent.invoke({"messages": [HumanMessage("How?")]}, {"callbacks": [runs]})
    (answer,) = [message for message in state["messages"] if isinstance(message, ToolMessage)]
    assert answer.content == answer.artifact[0].page_content
    assert runs.named("QwenReranker")["inputs"]["document_count"] == 20


# -- traces ----------------------------------------------------------------------------------------------------------


async def test_retrieval_and_rerank_are_runs_below_the_retriever(
    store: InMemoryVectorStore, reranker: QwenReranker
) -> None:
    # https://github.com/langchain-ai/langchain/issues/8564, https://github.com/langchain-ai/langchain/issues/15253,
    # https://github.com/Arize-ai/phoenix/issues/1607: rerankers that no trace shows
    retriever = QwenRetriever(retriever=store, reranker=reranker, k=2)
    for use_async in (False, True):
        runs = Runs()
        config: Any = {"callbacks": [runs]}
        found = await retriever.ainvoke(QUERY, config) if use_async else retriever.invoke(QUERY, config)
        assert [run["name"] for run in runs.runs.values()] == ["QwenRetriever", "VectorStoreRetriever", "QwenReranker"]
        assert runs.parent_of("VectorStoreRetriever") == runs.parent_of("QwenReranker") == "QwenRetriever"
        run = runs.named("QwenReranker")
        assert run["inputs"] == {
            "query": QUERY,
            "document_count": 40,
            "model": "fake-reranker",
            "top_n": 2,
            "instruction": None,
            "score_threshold": None,
            "scale": "probability",
        }
        assert run["outputs"] == {"documents": found, "scores": scores(found), "count": 2, "truncated": 0}


async def test_the_rerank_is_a_run_below_other_retrievers(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    compression = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=store.as_retriever())
    runs, async_runs = Runs(), AsyncRuns()
    compression.invoke(QUERY, config={"callbacks": [runs]})
    assert runs.parent_of("QwenReranker") == "ContextualCompressionRetriever"
    await compression.ainvoke(QUERY, config={"callbacks": [async_runs]})
    assert async_runs.names == ["QwenReranker"]


async def test_a_failed_rerank_is_a_failed_run(store: InMemoryVectorStore) -> None:
    engine = FakeRerankingEngine(fail_on=lambda _: RuntimeError("the device is gone"))
    retriever = QwenRetriever(retriever=store, reranker=QwenReranker(reranker=make_reranker(engine)))
    runs = Runs()
    with pytest.raises(RuntimeError, match="the device is gone"):
        retriever.invoke(QUERY, config={"callbacks": [runs]})
    assert str(runs.named("QwenReranker")["error"]) == "the device is gone"
    assert str(runs.named("QwenRetriever")["error"]) == "the device is gone"


def test_a_subclass_is_traced_under_its_own_name() -> None:
    class LegalReranker(QwenReranker):
        """A reranker for contracts."""

    runs = Runs()
    LegalReranker(reranker=make_reranker()).compress_documents(documents(), QUERY, callbacks=[runs])
    assert runs.named("LegalReranker")["outputs"]["count"] == len(TEXTS)


def test_without_callbacks_there_is_no_run(reranker: QwenReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(QwenReranker, "_run")
    assert len(reranker.compress_documents(documents(), QUERY)) == len(TEXTS)
    assert len(reranker.compress_documents(documents(), QUERY, callbacks=[])) == len(TEXTS)


@pytest.mark.usefixtures("loads")
def test_a_trace_has_neither_token_nor_weights(store: InMemoryVectorStore) -> None:
    runs = Runs()
    reranker = QwenReranker(model="a/a", token=TOKEN)  # type: ignore[arg-type]
    QwenRetriever(retriever=store, reranker=reranker).invoke(QUERY, config={"callbacks": [runs]})
    shown = repr(list(runs.runs.values()))
    assert TOKEN not in shown
    assert "Engine" not in shown
    assert runs.named("QwenReranker")["inputs"]["model"] == "a/a"


def test_results_of_rerank_are_the_core_s_own(reranker: QwenReranker) -> None:
    (result,) = reranker.rerank(QUERY, [Document(QUERY)])
    assert isinstance(result, RerankResult)
    assert (result.index, type(result.relevance_score), type(result.log_odds)) == (0, float, float)


@pytest.mark.parametrize(("fetch_k", "k", "found"), [(50, 4, 50), (None, 4, 40), (None, 45, 45)])
def test_a_diverse_search_is_asked_for_as_many(fetch_k: int | None, k: int, found: int) -> None:
    # Maximal marginal relevance chooses from candidates of its own, 20 unless told otherwise.
    engine = FakeRerankingEngine()
    store = InMemoryVectorStore.from_texts(
        [f"text {number}" for number in range(60)], QwenEmbeddings(embedder=make_embedder())
    )
    retriever = QwenRetriever(
        retriever=store.as_retriever(search_type="mmr"),
        reranker=QwenReranker(reranker=make_reranker(engine)),
        fetch_k=fetch_k,
        k=k,
    )
    assert len(retriever.invoke(QUERY)) == k
    assert engine.inputs == found


def test_a_call_may_filter() -> None:
    store = InMemoryVectorStore.from_documents(documents(), QwenEmbeddings(embedder=make_embedder()))
    retriever = QwenRetriever(retriever=store, reranker=QwenReranker(reranker=make_reranker()))
    only = {"filter": lambda document: document.metadata["number"] == 2}
    assert [one.metadata["number"] for one in retriever.invoke(QUERY, search_kwargs=only)] == [2]
    with pytest.raises(ValueError, match="how many to search for is fetch_k"):
        retriever.invoke(QUERY, search_kwargs={"k": 2})


@pytest.mark.parametrize("arguments", [{"k": "3"}, {"fetch_k": 2.5}])
def test_a_count_that_is_no_integer_is_refused(arguments: dict[str, Any]) -> None:
    retriever = QwenRetriever(
        retriever=InMemoryVectorStore(QwenEmbeddings(embedder=make_embedder())),
        reranker=QwenReranker(reranker=make_reranker()),
    )
    with pytest.raises(TypeError, match="must be an integer, or None for the default, but got"):
        retriever.invoke(QUERY, **arguments)


def test_a_threshold_that_is_no_number_is_refused(store: InMemoryVectorStore, reranker: QwenReranker) -> None:
    with pytest.raises(ValidationError, match="score_threshold must be a number or None, but got nan"):
        QwenReranker(score_threshold=math.nan)
    with pytest.raises(ValueError, match="but got nan"):
        reranker.rerank(QUERY, TEXTS, score_threshold=math.nan)
    with pytest.raises(ValueError, match="but got nan"):
        QwenRetriever(retriever=store, reranker=reranker).invoke(QUERY, score_threshold=math.nan)
