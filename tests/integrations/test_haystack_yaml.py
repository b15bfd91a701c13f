"""The components written down: dictionaries, YAML, pickles, and what is read from them."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
from haystack import Pipeline
from haystack import component as haystack_component
from haystack.components.preprocessors import EmbeddingBasedDocumentSplitter
from haystack.components.retrievers import MultiQueryEmbeddingRetriever, TextEmbeddingRetriever
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.core.errors import PipelineError
from haystack.core.super_component import SuperComponent
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice, Secret

from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder, QwenTextEmbedder
from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker
from tests.integrations.haystack_parts import (
    QUERY,
    Loads,
    document_embedder,
    documents,
    make_embedder,
    make_reranker,
    ranker,
    text_embedder,
)

# Other than the default, every one of them.
MODEL: dict[str, Any] = {
    "model": "demo",
    "device": ComponentDevice.from_str("cpu"),
    "token": Secret.from_env_var("MY_TOKEN", strict=False),
    "max_length": 300,
    "on_overflow": "error",
    "control_tokens": "keep",
    "batch_size": 3,
    "max_batch_tokens": 500,
    "dtype": "float32",
    "batch_invariant": True,
    "revision": "v1",
    "cache_dir": "models",
    "local_files_only": True,
}
EMBEDDER = MODEL | {"prefix": "<", "suffix": ">", "dimensions": 64}
META = {"meta_fields_to_embed": ["title", "page"], "embedding_separator": " | "}
RANKER = MODEL | META | {"progress_bar": True, "top_k": 3, "score_threshold": 0.25, "scale_score": False}
RANKER |= {"instruction": "code_search", "query_prefix": "q: ", "query_suffix": "?"}
RANKER |= {"document_prefix": "d: ", "document_suffix": "."}

COMPONENTS = [
    pytest.param(QwenTextEmbedder, EMBEDDER | {"progress_bar": True, "instruction": "code_search"}, id="text"),
    pytest.param(
        QwenDocumentEmbedder, EMBEDDER | META | {"progress_bar": False, "document_instruction": "x"}, id="doc"
    ),
    pytest.param(QwenRanker, RANKER, id="ranker"),
]


def in_a_fresh_process(code: str, *, stdin: str = "", **environment: str) -> str:
    """What `code` prints in a Python that has imported nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "parameters"), COMPONENTS)
class TestDictionary:
    def test_holds_every_parameter_and_makes_an_equal_component(self, kind: Any, parameters: dict[str, Any]) -> None:
        default = kind().to_dict()["init_parameters"]
        data = kind(**parameters).to_dict()
        assert data["init_parameters"].keys() == default.keys() == parameters.keys()
        assert [name for name, value in data["init_parameters"].items() if value == default[name]] == []
        assert kind.from_dict(data).to_dict() == data

    def test_leaves_the_component_alone(self, kind: Any, parameters: dict[str, Any]) -> None:
        """SentenceTransformers components turn their own dtype into a string when they are saved."""
        component = kind(**parameters)
        data = component.to_dict()
        assert {name: getattr(component, name) for name in parameters} == parameters
        assert component.to_dict() == data
        if names := data["init_parameters"].get("meta_fields_to_embed"):
            names.append("another")
            assert component.meta_fields_to_embed == ["title", "page"]

    def test_is_left_alone_by_from_dict(self, kind: Any, parameters: dict[str, Any]) -> None:
        """SentenceTransformers components change the dictionary that they are made from."""
        data = kind(**parameters).to_dict()
        before = copy.deepcopy(data)
        kind.from_dict(data)
        assert data == before

    def test_with_a_parameter_that_nobody_declared_is_refused(self, kind: Any, parameters: dict[str, Any]) -> None:
        data = kind(**parameters).to_dict()
        data["init_parameters"]["trust_remote_code"] = True
        with pytest.raises(TypeError, match="trust_remote_code"):
            kind.from_dict(data)

    def test_names_the_module_that_yaml_files_name(self, kind: Any, parameters: dict[str, Any]) -> None:
        module = {
            "QwenTextEmbedder": "embedders.qwen_retrieval.text_embedder",
            "QwenDocumentEmbedder": "embedders.qwen_retrieval.document_embedder",
            "QwenRanker": "rankers.qwen_retrieval.ranker",
        }[kind.__name__]
        expected = f"haystack_integrations.components.{module}.{kind.__name__}"
        assert kind(**parameters).to_dict()["type"] == expected


@pytest.mark.parametrize("kind", [QwenTextEmbedder, QwenDocumentEmbedder, QwenRanker])
class TestDescription:
    def test_keeps_an_open_choice_of_device_open(self, kind: Any) -> None:
        """Others write down the device of the machine that saved it: https://github.com/deepset-ai/haystack/pull/7686"""
        component = kind()
        component._options()
        data = component.to_dict()
        assert data["init_parameters"]["device"] is None
        assert kind.from_dict(data).device is None

    def test_keeps_a_chosen_device(self, kind: Any) -> None:
        data = kind(device=ComponentDevice.from_str("cuda:1")).to_dict()
        assert data["init_parameters"]["device"] == {"type": "single", "device": "cuda:1"}
        assert kind.from_dict(data).device == ComponentDevice.from_str("cuda:1")

    def test_keeps_several_devices(self, kind: Any) -> None:
        devices = [ComponentDevice.from_str("cuda:0"), ComponentDevice.from_str("cuda:1")]
        data = kind(device=devices).to_dict()
        assert data["init_parameters"]["device"] == [
            {"type": "single", "device": "cuda:0"},
            {"type": "single", "device": "cuda:1"},
        ]
        again = kind.from_dict(json.loads(json.dumps(data)))  # plain values only, as in YAML
        assert again.device == devices
        assert again._options().device == ("cuda:0", "cuda:1")
        assert copy.deepcopy(again).device == devices

    def test_keeps_the_name_of_a_secret_only(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MY_TOKEN", "hf_secret")
        component = kind(token=Secret.from_env_var("MY_TOKEN"))
        component._options()
        assert "hf_secret" not in f"{component.to_dict()}{component!r}"
        assert b"hf_secret" not in pickle.dumps(component)
        assert kind.from_dict(component.to_dict()).token == Secret.from_env_var("MY_TOKEN")

    def test_writes_down_no_secret_that_was_given_itself(self, kind: Any) -> None:
        component = kind(token=Secret.from_token("hf_secret"))
        for write in (component.to_dict, lambda: pickle.dumps(component)):
            with pytest.raises(ValueError, match="token"):
                write()

    def test_loads_no_model(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        loads = Loads(monkeypatch)
        pipeline = Pipeline()
        pipeline.add_component("component", kind(model="any/model"))
        copy.deepcopy(Pipeline.loads(pipeline.dumps()).get_component("component"))
        assert len(loads) == 0

    def test_turns_a_tuple_into_the_list_that_yaml_knows(self, kind: Any) -> None:
        if kind is not QwenTextEmbedder:
            pipeline = Pipeline()
            pipeline.add_component("component", kind(meta_fields_to_embed=("title",)))
            assert "!!python" not in pipeline.dumps()


def test_a_component_on_a_given_model_names_that_model() -> None:
    embedder = make_embedder(dimensions=16, instruction="Find a poem", max_length=300, on_overflow="error")
    reranker = make_reranker(instruction="Judge it", control_tokens="keep", batch_size=7)
    for_queries = QwenTextEmbedder.from_embedder(embedder).to_dict()["init_parameters"]
    assert (for_queries["model"], for_queries["dimensions"]) == ("fake-embedding", 16)
    assert for_queries["instruction"] == "Find a poem"
    for_documents = QwenDocumentEmbedder.from_embedder(embedder).to_dict()["init_parameters"]
    assert (for_documents["model"], for_documents["dimensions"]) == ("fake-embedding", 16)
    assert for_documents["document_instruction"] is None
    for_ranking = QwenRanker.from_reranker(reranker).to_dict()["init_parameters"]
    assert (for_ranking["model"], for_ranking["instruction"]) == ("fake-reranker", "Judge it")
    for own in (for_queries, for_documents):
        assert (own["max_length"], own["on_overflow"]) == (300, "error")
    assert (for_ranking["control_tokens"], for_ranking["batch_size"]) == ("keep", 7)


def test_a_pickle_holds_a_name_and_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    component = QwenTextEmbedder(model="any/model", dimensions=16)
    Pipeline().add_component("embedder", component)
    vector = component.run(QUERY)
    written = pickle.dumps(component)
    assert len(written) < 2000
    again = pickle.loads(written)
    assert again.run(QUERY) == vector
    assert len(loads) == 2
    Pipeline().add_component("embedder", again)  # it is in no pipeline yet


@pytest.mark.parametrize(
    "component", [text_embedder(), document_embedder(), ranker()], ids=lambda one: type(one).__name__
)
def test_a_component_on_a_given_model_cannot_be_pickled(component: Any) -> None:
    with pytest.raises(TypeError, match="cannot be pickled; name the model instead"):
        pickle.dumps(component)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_model_but_no_setting_and_no_pipeline(
    duplicate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)
    component = QwenRanker(model="any/model", token=Secret.from_token("hf_secret"), meta_fields_to_embed=["title"])
    Pipeline().add_component("ranker", component)
    component.warm_up()
    other = duplicate(component)
    Pipeline().add_component("ranker", other)
    other.meta_fields_to_embed.append("page")
    assert component.meta_fields_to_embed == ["title"]
    assert other.token == component.token
    assert other.run(QUERY, documents())["documents"] == component.run(QUERY, documents())["documents"]
    assert len(loads) == 1


@pytest.mark.parametrize("template", ["vllm", "jinja"])
def test_a_given_reranker_with_another_template_cannot_be_written_down(template: str) -> None:
    """What is read back would have the model card's, and other scores."""
    one = QwenRanker.from_reranker(make_reranker(template=template))
    pipeline = Pipeline()
    pipeline.add_component("ranker", one)
    with pytest.raises(ValueError, match=f"has the template '{template}'"):
        pipeline.dumps()
    for duplicate in (copy.copy(one), copy.deepcopy(one)):
        assert duplicate.run(QUERY, documents()) == one.run(QUERY, documents())


@haystack_component
class BoostedRanker(QwenRanker):
    """Takes a parameter of its own, and hands the others on."""

    def __init__(self, boost: float = 2.0, **others: Any) -> None:
        QwenRanker.__init__(self, **others)
        self.boost = boost


@haystack_component
class GermanEmbedder(QwenTextEmbedder):
    """Takes nothing but a parameter of its own."""

    def __init__(self, language: str = "en") -> None:
        QwenTextEmbedder.__init__(self, model="demo", prefix=f"{language}: ")
        self.language = language


AGAIN = [
    pytest.param(lambda one: type(one).from_dict(one.to_dict()), id="dictionary"),
    pytest.param(lambda one: pickle.loads(pickle.dumps(one)), id="pickle"),
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
]


@pytest.mark.parametrize("again", AGAIN)
def test_a_subclass_with_its_own_parameters_keeps_them(again: Any) -> None:
    boosted = BoostedRanker(boost=3.0, model="demo", top_k=2, document_suffix=".")
    same = again(boosted)
    assert (same.boost, same.model, same.top_k, same.document_suffix) == (3.0, "demo", 2, ".")
    assert same.to_dict() == boosted.to_dict()
    assert same.run(QUERY, documents()) == boosted.run(QUERY, documents())
    same.close()
    boosted.close()


@pytest.mark.parametrize("again", AGAIN)
def test_a_subclass_that_takes_less_is_written_down_with_less(again: Any) -> None:
    german = GermanEmbedder("de")
    assert german.to_dict()["init_parameters"] == {"language": "de"}
    same = again(german)
    assert (same.language, same.prefix) == ("de", "de: ")


def retriever() -> InMemoryEmbeddingRetriever:
    return InMemoryEmbeddingRetriever(InMemoryDocumentStore(index="nested"))


def all_components() -> dict[str, Any]:
    """Ours with nothing left at its default, and those of Haystack's own that have one of ours inside."""
    ours = {str(one.id): one.values[0](**one.values[1]) for one in COMPONENTS}  # type: ignore[operator, arg-type]
    inner = Pipeline()
    inner.add_component("embedder", QwenTextEmbedder(model="demo", dimensions=64))
    inner.add_component("retriever", retriever())
    inner.connect("embedder.embedding", "retriever.query_embedding")
    single, several = QwenTextEmbedder(model="demo"), QwenTextEmbedder(model="demo")
    return ours | {
        "multi": MultiQueryEmbeddingRetriever(retriever=retriever(), query_embedder=several),
        "single": TextEmbeddingRetriever(retriever=retriever(), text_embedder=single),
        "splitter": EmbeddingBasedDocumentSplitter(document_embedder=QwenDocumentEmbedder(model="demo")),
        "super": SuperComponent(pipeline=inner, input_mapping={"query": ["embedder.text"]}),
    }


def test_all_are_read_from_yaml_in_a_fresh_process_with_the_default_allow_list() -> None:
    """Haystack loads no class from outside its namespaces: haystack-core-integrations/issues/3537"""
    pipeline = Pipeline()
    for name, component in all_components().items():
        pipeline.add_component(name, component)
    text = pipeline.dumps()
    assert "!!" not in text
    assert text.count("haystack_integrations.components.") == 7
    code = """
import sys
class NoTorch:  # Haystack imports it where it can; we need it for models only
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is not installed", name=name)
sys.meta_path.insert(0, NoTorch())
from haystack import Pipeline
assert not [name for name in sys.modules if "qwen_retrieval" in name]
print(Pipeline.loads(sys.stdin.read()).dumps())
assert "qwen_retrieval.lazy" in sys.modules
assert not [name for name in sys.modules if "qwen_retrieval.engine" in name]  # no model was loaded
"""
    assert in_a_fresh_process(code, stdin=text).strip() == text.strip()


def test_a_module_that_only_forwards_the_class_cannot_be_named_in_yaml() -> None:
    """Haystack goes by the module that defines a class: the file names are part of every saved pipeline."""
    pipeline = Pipeline()
    pipeline.add_component("ranker", QwenRanker())
    text = pipeline.dumps().replace("qwen_retrieval.ranker.QwenRanker", "qwen_retrieval.QwenRanker")
    with pytest.raises(PipelineError, match="QwenRanker"):
        Pipeline.loads(text)


def test_without_haystack_the_import_says_what_to_install() -> None:
    code = """
import sys
sys.modules["haystack"] = None
for name in ("embedders", "rankers"):
    try:
        __import__(f"haystack_integrations.components.{name}.qwen_retrieval")
    except ImportError as error:
        print(error)
"""
    printed = in_a_fresh_process(code).splitlines()
    assert printed == ['haystack is not installed; run: pip install "qwen-retrieval[haystack]"'] * 2


def test_haystack_reports_nothing_during_these_tests() -> None:
    import haystack.telemetry._telemetry as telemetry

    assert telemetry.telemetry is None, "tests/conftest.py has to set HAYSTACK_TELEMETRY_ENABLED to false"
