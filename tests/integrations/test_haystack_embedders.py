"""QwenTextEmbedder and QwenDocumentEmbedder, run on their own."""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from haystack import Document
from haystack.utils import ComponentDevice, Device, DeviceMap, Secret

from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder, QwenTextEmbedder
from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker
from qwen_retrieval import TruncationWarning
from qwen_retrieval.errors import ControlTokenError, InputTooLongError
from qwen_retrieval.fingerprint import embedding_fingerprint
from qwen_retrieval.testing import FakeEmbeddingEngine
from tests.integrations.haystack_parts import (
    QUERY,
    TEXTS,
    Loads,
    document_embedder,
    documents,
    make_embedder,
    ranker,
    text_embedder,
)


def vectors(embedded: list[Document]) -> list[list[float]]:
    found = [document.embedding for document in embedded]
    assert None not in found
    return [vector for vector in found if vector is not None]


def test_a_query_has_the_vector_of_the_core_as_python_floats() -> None:
    output = text_embedder().run(QUERY)
    assert output["embedding"] == make_embedder().embed_queries([QUERY])[0].tolist()
    assert type(output["embedding"]) is list
    assert {type(value) for value in output["embedding"]} == {float}


def test_documents_have_the_vectors_of_the_core_and_no_instruction() -> None:
    embedded = document_embedder().run(documents())["documents"]
    assert vectors(embedded) == make_embedder().embed_documents(TEXTS).tolist()
    assert all(type(value) is float for value in embedded[0].embedding)


def test_a_query_gets_the_instruction_of_the_run_before_that_of_the_component() -> None:
    """Prompts for a task had to be written into `prefix`: https://github.com/deepset-ai/haystack/pull/8806"""
    core = make_embedder()
    component = text_embedder(instruction="code_search")
    assert component.run(QUERY)["embedding"] == core.embed_queries([QUERY], instruction="code_search")[0].tolist()
    asked = component.run(QUERY, instruction="Find a poem")["embedding"]
    assert asked == core.embed_queries([QUERY], instruction="Find a poem")[0].tolist()
    assert component.run(QUERY, instruction="")["embedding"] == core.embed_documents([QUERY])[0].tolist()


def test_documents_get_an_instruction_only_on_request() -> None:
    embedded = document_embedder(document_instruction="Find the same text").run(documents())["documents"]
    core = make_embedder()
    assert vectors(embedded) == core.embed_documents(TEXTS, instruction="Find the same text").tolist()


def test_prefix_and_suffix_surround_the_text_and_nothing_is_stripped() -> None:
    text = "  two lines\nof text "
    output = text_embedder(prefix="<<", suffix=">>").run(text)
    assert output["embedding"] == make_embedder().embed_queries([f"<<{text}>>"])[0].tolist()
    (document,) = document_embedder(prefix="<<", suffix=">>").run([Document(content=text)])["documents"]
    assert document.embedding == make_embedder().embed_documents([f"<<{text}>>"])[0].tolist()


def test_shorter_vectors_have_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut vectors were left as they were: https://github.com/deepset-ai/haystack/issues/8040"""
    Loads(monkeypatch)
    query = QwenTextEmbedder(model="any/model", dimensions=16).run(QUERY)["embedding"]
    (document, *_) = QwenDocumentEmbedder(model="any/model", dimensions=16).run(documents())["documents"]
    assert [len(query), len(document.embedding)] == [16, 16]
    assert np.linalg.norm([query, document.embedding], axis=1) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("meta", "content", "text"),
    [
        pytest.param({"title": "T", "page": 3}, "text", "T|3|text", id="in-the-order-asked-for"),
        pytest.param({"title": "", "page": 0}, "text", "|0|text", id="falsy-values-count"),
        pytest.param({"title": False, "page": None}, "text", "False|text", id="none-does-not"),
        pytest.param({}, "text", "text", id="missing-ones-do-not"),
        pytest.param({"title": "T", "page": 3}, None, "T|3", id="no-content"),
        pytest.param({"title": "T"}, "", "T|", id="empty-content"),
        pytest.param({}, None, "", id="nothing-at-all"),
    ],
)
def test_metadata_stands_before_the_content(meta: dict[str, Any], content: str | None, text: str) -> None:
    """Falsy metadata was dropped: https://github.com/deepset-ai/haystack/pull/11412"""
    component = document_embedder(meta_fields_to_embed=["title", "page"], embedding_separator="|")
    (document,) = component.run([Document(content=content, meta=meta)])["documents"]
    assert document.embedding == make_embedder().embed_documents([text])[0].tolist()


def test_the_documents_given_are_left_alone_and_ids_metadata_and_scores_kept() -> None:
    """Input was changed in place: https://github.com/deepset-ai/haystack/pull/9693 and 10702"""
    given = [Document(id="a", content="x", meta={"n": [1]}, score=0.5), Document(id="b", content=None)]
    before = [document.to_dict() for document in given]
    embedded = document_embedder().run(given)["documents"]
    assert [document.to_dict() for document in given] == before
    assert [{**document.to_dict(), "embedding": None} for document in embedded] == before


def test_two_documents_with_the_same_id_have_a_vector_each() -> None:
    """OpenAIDocumentEmbedder and others go by id, so that one gets the other's vector."""
    given = [Document(id="same", content="one text"), Document(id="same", content="quite another")]
    embedded = document_embedder().run(given)["documents"]
    assert vectors(embedded) == make_embedder().embed_documents(["one text", "quite another"]).tolist()


def test_meta_counts_tokens_and_what_was_cut() -> None:
    """Inputs were cut silently: https://github.com/deepset-ai/haystack/issues/5184"""
    component = QwenDocumentEmbedder.from_embedder(make_embedder(max_length=12))
    with pytest.warns(TruncationWarning, match="2 of 4 inputs"):
        meta = component.run([Document(content=text) for text in ("short", "x" * 99, "y" * 99, "tiny")])["meta"]
    assert meta == {"model": "fake-embedding", "tokens": 6 + 12 + 12 + 5, "truncated": 2}
    assert text_embedder(instruction="").run("four")["meta"] == {"model": "fake-embedding", "tokens": 5, "truncated": 0}


def test_no_documents_give_no_documents_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    component = QwenDocumentEmbedder(model="any/model")
    assert component.run([]) == {"documents": [], "meta": {"model": "any/model", "tokens": 0, "truncated": 0}}
    assert len(loads) == 0


async def test_run_async_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    for_queries, for_documents = QwenTextEmbedder(model="any/model"), QwenDocumentEmbedder(model="any/model")
    assert await for_documents.run_async([]) == for_documents.run([])
    assert len(loads) == 0
    assert await for_queries.run_async(QUERY, instruction="x") == for_queries.run(QUERY, instruction="x")
    assert await for_documents.run_async(documents()) == for_documents.run(documents())


@pytest.mark.parametrize("text", [None, 3, ["a"], [Document(content="a")]], ids=repr)
async def test_a_text_embedder_given_something_else_names_its_sibling(text: Any) -> None:
    with pytest.raises(TypeError, match=r"text must be a string, but got .*QwenDocumentEmbedder"):
        text_embedder().run(text)
    with pytest.raises(TypeError, match=r"text must be a string, but got .*QwenDocumentEmbedder"):
        await text_embedder().run_async(text)


@pytest.mark.parametrize("given", [None, "a text", ["a text"], [Document(content="a"), "a text"]], ids=repr)
async def test_a_document_embedder_given_something_else_names_its_sibling(given: Any) -> None:
    with pytest.raises(TypeError, match=r"documents must be a list of Document, but .*QwenTextEmbedder"):
        document_embedder().run(given)
    with pytest.raises(TypeError, match=r"documents must be a list of Document, but .*QwenTextEmbedder"):
        await document_embedder().run_async(given)


def test_an_error_of_the_model_is_an_error_not_missing_vectors() -> None:
    """Failed batches shifted the vectors of the others: https://github.com/deepset-ai/haystack/issues/9474"""
    component = document_embedder(FakeEmbeddingEngine(fail_on=lambda _batch: RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        component.run(documents())


def test_what_must_not_be_cut_or_acted_on_is_refused() -> None:
    strict = QwenTextEmbedder.from_embedder(make_embedder(max_length=200, on_overflow="error", control_tokens="error"))
    with pytest.raises(InputTooLongError):
        strict.run("x" * 200)
    with pytest.raises(ControlTokenError):
        strict.run("<|endoftext|>")


def test_a_single_query_shows_no_progress_bar_by_default_and_many_documents_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """https://github.com/deepset-ai/haystack-core-integrations/issues/554"""
    Loads(monkeypatch)
    QwenTextEmbedder(model="any/model").run(QUERY)
    QwenDocumentEmbedder(model="any/model").run(documents())
    assert capfd.readouterr().err == ""
    QwenDocumentEmbedder(model="any/model").run([Document(content=str(number)) for number in range(100)])
    assert "100/100" in capfd.readouterr().err


def test_the_length_of_the_vectors_is_known_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores have to be told: https://github.com/deepset-ai/haystack/issues/10196 and 7612"""
    loads = Loads(monkeypatch)
    assert QwenDocumentEmbedder().embedding_dim == 1024
    assert QwenTextEmbedder(model="8B").embedding_dim == 4096
    assert QwenDocumentEmbedder(dimensions=256).embedding_dim == 256
    assert len(loads) == 0
    assert QwenDocumentEmbedder(model="unknown/model").embedding_dim == 64
    assert len(loads) == 1
    assert QwenTextEmbedder.from_embedder(make_embedder(dimensions=32)).embedding_dim == 32


def test_the_length_that_is_told_is_the_one_that_runs_give() -> None:
    component = QwenTextEmbedder(model="demo")
    component.run(QUERY)
    assert component.embedding_dim == len(component.run(QUERY)["embedding"])
    component.dimensions = 999
    with pytest.raises(ValueError, match="dimensions must be between"):
        component.embedding_dim  # noqa: B018
    component.close()
    given = QwenTextEmbedder.from_embedder(make_embedder(dimensions=16))
    for dimensions, expected in [(16, 16), (None, 16), (64, 64)]:
        given.dimensions = dimensions
        assert given.embedding_dim == len(given.run(QUERY)["embedding"]) == expected
        assert f"-{expected}-" in given.fingerprint
    given.dimensions = 65
    with pytest.raises(ValueError, match="dimensions must be between 8 and 64"):
        given.embedding_dim  # noqa: B018


def test_a_length_that_the_model_cannot_give_is_refused_at_once() -> None:
    """https://github.com/deepset-ai/haystack-core-integrations/issues/2066"""
    for kind in (QwenTextEmbedder, QwenDocumentEmbedder):
        with pytest.raises(ValueError, match="dimensions must be between 32 and 1024"):
            kind(dimensions=2000)


def test_a_given_embedder_gives_shorter_vectors_on_request_and_no_others() -> None:
    embedder = make_embedder()
    assert len(QwenTextEmbedder.from_embedder(embedder, dimensions=16).run(QUERY)["embedding"]) == 16
    (document, *_) = QwenDocumentEmbedder.from_embedder(embedder, dimensions=16).run(documents())["documents"]
    assert len(document.embedding) == 16
    for make in (QwenTextEmbedder.from_embedder, QwenDocumentEmbedder.from_embedder):
        with pytest.raises(ValueError, match="dimensions must be between 8 and 64"):
            make(embedder, dimensions=65)


def test_a_length_that_an_unknown_model_cannot_give_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Loads(monkeypatch)
    with pytest.raises(ValueError, match="dimensions must be between 8 and 64"):
        QwenTextEmbedder(model="unknown/model", dimensions=100).run(QUERY)


def test_a_changed_field_counts_from_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    component = QwenTextEmbedder(model="any/model")
    component.run(QUERY)
    component.dimensions, component.instruction, component.prefix = 16, "code_search", "> "
    expected = make_embedder().embed_queries(["> " + QUERY], instruction="code_search", dimensions=16)
    assert component.run(QUERY)["embedding"] == expected[0].tolist()
    assert len(loads) == 1
    component.max_length = 500
    component.run(QUERY)
    assert [options["max_length"] for options in loads.options] == [None, 500]


@pytest.mark.parametrize("kind", [QwenTextEmbedder, QwenDocumentEmbedder, QwenRanker])
def test_every_option_reaches_the_model(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`revision` and `local_files_only` were missing here and there: https://github.com/deepset-ai/haystack/pull/9400"""
    loads = Loads(monkeypatch)
    options = {"max_length": 999, "on_overflow": "error", "control_tokens": "keep", "batch_size": 3, "dtype": "float32"}
    options |= {"max_batch_tokens": 500, "revision": "v1", "cache_dir": "/cache", "local_files_only": True}
    options |= {"batch_invariant": True}
    monkeypatch.setenv("MY_TOKEN", "hf_secret")
    component = kind(
        model="any/model",
        device=ComponentDevice.from_str("cuda:1"),
        token=Secret.from_env_var("MY_TOKEN"),
        progress_bar=True,
        **options,
    )
    component.warm_up()
    own = {"model": "any/model", "device": "cuda:1", "token": "hf_secret", "show_progress": True}
    assert loads.options == [options | own]


@pytest.mark.parametrize("kind", [QwenTextEmbedder, QwenDocumentEmbedder, QwenRanker])
class TestConstruction:
    def test_takes_keywords_only_and_refuses_what_it_does_not_know(self, kind: Any) -> None:
        with pytest.raises(TypeError):
            kind("demo")
        with pytest.raises(TypeError, match="normalize_embeddings"):
            kind(normalize_embeddings=False)

    def test_shows_its_parameters_with_names_types_and_defaults(self, kind: Any) -> None:
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        assert {one.kind for one in parameters} == {inspect.Parameter.KEYWORD_ONLY}
        assert all(one.annotation is not one.empty and one.default is not one.empty for one in parameters)
        assert [one.name for one in parameters] == [one.name for one in fields(kind) if one.init]

    def test_asks_for_no_token_before_it_loads(self, kind: Any) -> None:
        kind(token=Secret.from_env_var("A_VARIABLE_THAT_IS_NOT_SET"))

    def test_refuses_a_device_map(self, kind: Any) -> None:
        both = DeviceMap({"layer1": Device.gpu(0), "layer2": Device.gpu(1)})
        with pytest.raises(ValueError, match="device must be a single device or a list of them, but got a device map"):
            kind(device=ComponentDevice.from_multiple(both))

    def test_refuses_a_plain_string_as_device(self, kind: Any) -> None:
        with pytest.raises(TypeError, match=r"but got 'cuda:0'; use ComponentDevice.from_str\('cuda:0'\)"):
            kind(device="cuda:0")

    def test_refuses_a_plain_string_as_token_and_does_not_show_it(self, kind: Any) -> None:
        with pytest.raises(TypeError, match="token must be a Secret") as caught:
            kind(token="hf_secret")
        assert "hf_secret" not in str(caught.value)

    def test_a_token_is_in_no_text_about_it(self, kind: Any) -> None:
        component = kind(token=Secret.from_token("hf_secret"))
        assert "hf_secret" not in f"{component!r} {component} {component.token!r} {component._options()!r}"

    def test_tells_haystack_the_names_of_published_models_only(self, kind: Any) -> None:
        """A folder's name would go to PostHog: `haystack.telemetry` sends what `_get_telemetry_data` returns."""
        assert kind()._get_telemetry_data() == {"model": kind().model}
        assert kind(model="models/secret-project")._get_telemetry_data() == {}
        assert kind(model="my-company/private")._get_telemetry_data() == {}


@pytest.mark.parametrize(
    "prefix", ["Instruct: Find a poem\nQuery:", "\nInstruct:Find a poem\nQuery: "], ids=["usual", "with-a-break"]
)
def test_a_prefix_that_holds_the_template_is_refused_because_it_would_be_there_twice(prefix: str) -> None:
    message = r"prefix holds the instruction template, which is added here; pass the sentence as instruction="
    with pytest.raises(ValueError, match=message):
        QwenTextEmbedder(prefix=prefix)
    component = text_embedder()
    component.prefix = prefix
    with pytest.raises(ValueError, match=message):
        component.run(QUERY)


@pytest.mark.parametrize("given", [None, 4, ["demo"]], ids=repr)
@pytest.mark.parametrize("kind", [QwenTextEmbedder, QwenDocumentEmbedder, QwenRanker])
def test_a_model_that_is_no_name_is_refused_and_shown(kind: Any, given: Any) -> None:
    with pytest.raises(TypeError, match=f"model must be a string, but got {re.escape(repr(given))}"):
        kind(model=given)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (text_embedder, "prefix"),
        (text_embedder, "suffix"),
        (document_embedder, "prefix"),
        (document_embedder, "suffix"),
        (document_embedder, "embedding_separator"),
    ],
)
async def test_what_is_put_around_texts_must_be_a_string(make: Any, name: str) -> None:
    message = f"{name} must be a string, but got None"
    with pytest.raises(TypeError, match=message):
        make(**{name: None})
    component = make()
    setattr(component, name, None)
    given = QUERY if make is text_embedder else []
    with pytest.raises(TypeError, match=message):
        component.run(given)
    with pytest.raises(TypeError, match=message):
        await component.run_async(given)


async def test_metadata_fields_that_are_assigned_are_checked_too() -> None:
    component: Any = document_embedder()
    component.meta_fields_to_embed = "title"
    with pytest.raises(TypeError, match="meta_fields_to_embed must be a list of strings or None, but got 'title'"):
        component.run(documents())
    with pytest.raises(TypeError, match="meta_fields_to_embed must be a list of strings or None, but got 'title'"):
        await component.run_async([])


@pytest.mark.parametrize("kind", [QwenDocumentEmbedder, QwenRanker])
def test_a_single_string_is_no_list_of_metadata_fields(kind: Any) -> None:
    with pytest.raises(TypeError, match="meta_fields_to_embed must be a list of strings or None, but got 'title'"):
        kind(meta_fields_to_embed="title")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "4B"},
        {"revision": "v2"},
        {"dimensions": 64},
        {"document_instruction": "code_search"},
        {"max_length": 99},
        {"control_tokens": "keep"},
        {"prefix": "text: "},
        {"suffix": "."},
        {"meta_fields_to_embed": ["title"]},
    ],
    ids=str,
)
def test_whatever_changes_the_vectors_changes_the_fingerprint(change: dict[str, Any]) -> None:
    plain = QwenDocumentEmbedder(model="0.6B")
    assert QwenDocumentEmbedder(**{"model": "0.6B", **change}).fingerprint != plain.fingerprint
    assert QwenDocumentEmbedder(model="0.6B", batch_size=3, embedding_separator=" ").fingerprint == plain.fingerprint


def test_the_fingerprint_is_that_of_the_core_and_of_the_other_embedder() -> None:
    expected = embedding_fingerprint("0.6B", dimensions=64)
    assert QwenDocumentEmbedder(model="0.6B", dimensions=64).fingerprint == expected
    assert QwenTextEmbedder(model="0.6B", dimensions=64).fingerprint == expected
    assert QwenTextEmbedder(model="0.6B", dimensions=64, instruction="code_search").fingerprint != expected
    embedder = make_embedder()
    assert QwenDocumentEmbedder.from_embedder(embedder).fingerprint == embedder.fingerprint


GIVEN = [
    pytest.param(text_embedder, {"text": QUERY}, id="text"),
    pytest.param(document_embedder, {"documents": documents()}, id="documents"),
    pytest.param(document_embedder, {"documents": []}, id="no-documents"),
    pytest.param(ranker, {"query": QUERY, "documents": documents()}, id="ranker"),
    pytest.param(ranker, {"query": QUERY, "documents": []}, id="ranker-of-nothing"),
]
OF_THE_MODEL: dict[str, Any] = {
    "model": "4B",
    "revision": "v2",
    "max_length": 99,
    "on_overflow": "error",
    "control_tokens": "keep",
    "batch_size": 3,
    "progress_bar": True,
    "device": ComponentDevice.from_str("cuda:1"),
    "token": None,
    "max_batch_tokens": 500,
    "dtype": "float32",
    "batch_invariant": True,
    "cache_dir": "/cache",
    "local_files_only": True,
}


@pytest.mark.parametrize("name", OF_THE_MODEL)
@pytest.mark.parametrize(("make", "inputs"), GIVEN)
async def test_what_belongs_to_a_given_model_cannot_be_assigned(make: Any, inputs: dict[str, Any], name: str) -> None:
    component = make()
    before, was = component.run(**inputs), getattr(component, name)
    setattr(component, name, OF_THE_MODEL[name])
    duplicate = copy.deepcopy(component)
    message = f"^{name} belongs to the model that this component was given; make a new component$"
    for act in (component.run, duplicate.run):
        with pytest.raises(ValueError, match=message):
            act(**inputs)
    with pytest.raises(ValueError, match=message):
        await component.run_async(**inputs)
    for tell in (component.warm_up, component.to_dict, lambda: component.fingerprint, lambda: component.embedding_dim):
        if make is not ranker or tell in (component.warm_up, component.to_dict):
            with pytest.raises(ValueError, match=message):
                tell()
    setattr(component, name, was)
    assert component.run(**inputs) == copy.copy(component).run(**inputs) == before


def test_how_a_given_model_is_used_can_be_assigned_and_is_told_as_it_is() -> None:
    core = make_embedder(dimensions=16, instruction="Find a poem")
    component = QwenTextEmbedder.from_embedder(core)
    component.prefix, component.instruction, component.dimensions = "> ", "code_search", 32
    expected = core.embed_queries(["> " + QUERY], instruction="code_search", dimensions=32)
    assert component.run(QUERY)["embedding"] == expected[0].tolist()
    component.prefix, component.instruction, component.dimensions = "", None, None  # the embedder's own
    assert component.run(QUERY)["embedding"] == core.embed_queries([QUERY])[0].tolist()
    assert component.fingerprint == core.fingerprint
    written = component.to_dict()["init_parameters"]
    assert (written["instruction"], written["dimensions"]) == ("Find a poem", 16)
    by_relevance = ranker()
    by_relevance.top_k = 1
    assert len(by_relevance.run(QUERY, documents())["documents"]) == 1


@pytest.mark.parametrize("make", [text_embedder, document_embedder, ranker])
def test_replace_makes_a_component_that_is_given_no_model(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    component = replace(make(), max_length=500)
    component.warm_up()
    assert [options["max_length"] for options in loads.options] == [500]
