"""Vectors of embedded documents are cheap to deep-copy, and otherwise nothing but lists.

Pipelines deep-copy the input of every component: https://github.com/deepset-ai/haystack/issues/9349
"""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml  # type: ignore[import-untyped]
from haystack import Document
from haystack.components.agents.state.state import State
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.marshal.yaml import YamlDumper

from tests.integrations.haystack_parts import TEXTS, document_embedder, documents, make_embedder

EXPECTED = make_embedder().embed_documents(TEXTS).tolist()[0]


@pytest.fixture
def document() -> Document:
    embedded: Document = document_embedder().run(documents())["documents"][0]
    return embedded


class Counted(float):
    """A number that notices when it is copied."""

    copies = 0

    def __deepcopy__(self, memo: object) -> Counted:
        Counted.copies += 1
        return self


def test_numbers_are_not_copied_one_by_one(document: Document) -> None:
    assert document.embedding is not None
    document.embedding[0] = Counted(0.5)
    second = copy.deepcopy(copy.deepcopy(document))
    assert second.embedding == document.embedding
    assert Counted.copies == 0
    assert copy.deepcopy([Counted(0.5)]) == [0.5]
    assert Counted.copies == 1  # as with a plain list


def test_changing_a_copy_changes_nothing_else(document: Document) -> None:
    assert document.embedding is not None
    for duplicate in (copy.deepcopy(document), replace(document, embedding=copy.copy(document.embedding))):
        assert duplicate.embedding is not None
        duplicate.embedding[0] = 99.0
        duplicate.embedding.append(1.0)
    assert document.embedding == EXPECTED


def test_what_one_document_holds_twice_its_copy_holds_twice(document: Document) -> None:
    first, second = copy.deepcopy([document.embedding, document.embedding])
    assert first is second


def test_it_is_equal_to_a_list_and_behaves_like_one(document: Document) -> None:
    vector = document.embedding
    assert isinstance(vector, list)
    assert vector == EXPECTED
    assert vector == EXPECTED
    assert repr(vector) == repr(EXPECTED)
    assert document == replace(document, embedding=EXPECTED)
    assert [type(part) for part in (vector[:2], vector.__add__([1.0]), vector * 2, vector.copy())] == [list] * 4
    assert sorted(vector) == sorted(EXPECTED)
    with pytest.raises(TypeError):
        hash(vector)


def test_everything_that_takes_a_document_apart_gets_plain_lists(document: Document) -> None:
    for plain in (
        document.to_dict()["embedding"],
        document.to_dict(flatten=False)["embedding"],
        asdict(document)["embedding"],
        pickle.loads(pickle.dumps(document)).embedding,
        copy.copy(document.embedding),
        Document.from_dict(document.to_dict()).embedding,
        pydantic.TypeAdapter(list[float]).validate_python(document.embedding, strict=True),
    ):
        assert type(plain) is list
        assert plain == EXPECTED


def test_json_and_yaml_are_the_same_as_with_a_list(document: Document) -> None:
    as_dict, plain = document.to_dict(), replace(document, embedding=EXPECTED).to_dict()
    assert json.dumps(as_dict) == json.dumps(plain)
    assert json.dumps(document.embedding) == json.dumps(EXPECTED)
    assert yaml.safe_dump(as_dict) == yaml.safe_dump(plain)
    assert yaml.dump(as_dict) == yaml.dump(plain)


@pytest.mark.parametrize("dumper", [yaml.Dumper, yaml.SafeDumper, YamlDumper], ids=lambda one: str(one.__name__))
def test_yaml_of_a_vector_alone_is_that_of_a_list(document: Document, dumper: Any) -> None:
    vector = document.embedding
    assert yaml.dump({"vector": vector}, Dumper=dumper) == yaml.dump({"vector": EXPECTED}, Dumper=dumper)
    assert yaml.dump([vector, vector], Dumper=dumper) == yaml.dump([EXPECTED, EXPECTED], Dumper=dumper)


def test_a_pickle_needs_nothing_of_this_package(document: Document) -> None:
    assert b"qwen" not in pickle.dumps(document)


def test_the_state_of_an_agent_keeps_it(document: Document) -> None:
    state = State(schema={"documents": {"type": list[Document]}})
    state.set("documents", [document])
    again = State.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again.get("documents")[0].embedding == EXPECTED


def test_stores_take_it(document: Document, tmp_path: Path) -> None:
    store = InMemoryDocumentStore()
    store.write_documents([document])
    file = str(tmp_path / "store.json")
    store.save_to_disk(file)
    (loaded,) = InMemoryDocumentStore.load_from_disk(file).filter_documents()
    assert loaded.embedding == EXPECTED
    (found,) = store.embedding_retrieval(EXPECTED, return_embedding=True)
    assert found.embedding == EXPECTED


def test_qdrant_takes_it(document: Document) -> None:
    qdrant = pytest.importorskip("qdrant_client", reason="Qdrant's client is an extra of its own")
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("docs", vectors_config=qdrant.models.VectorParams(size=64, distance="Cosine"))
    point = qdrant.models.PointStruct(id=1, vector=document.embedding, payload=document.to_dict(flatten=False))
    client.upsert("docs", [point])
    (hit,) = client.query_points("docs", query=document.embedding, with_vectors=True).points
    assert hit.vector == pytest.approx(EXPECTED, abs=1e-6)
    assert hit.payload["embedding"] == EXPECTED
    client.close()
