"""A collection ingested once, opened by the Qdrant stores of LangChain, LlamaIndex and Haystack."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.dataclasses import SparseEmbedding
from haystack.document_stores.errors import DocumentStoreError
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.qdrant import (
    QdrantEmbeddingRetriever,
    QdrantHybridRetriever,
    QdrantSparseEmbeddingRetriever,
)
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore as LangChainStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import QdrantClient, models

from haystack_integrations.components.embedders.qwen_retrieval import QwenTextEmbedder
from langchain_qwen_retrieval import QwenEmbeddings
from llama_index.embeddings.qwen_retrieval import QwenEmbedding
from qdrant_qwen_retrieval import QdrantIndex, bm25
from qdrant_qwen_retrieval.chunks import Chunk, point_id
from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.frameworks import open_haystack, open_langchain, open_llama_index
from qdrant_qwen_retrieval.langchain_store import check_model
from qdrant_qwen_retrieval.stores import Store, open_store
from qwen_retrieval import Embedder
from qwen_retrieval.errors import CollectionMismatchError, CollectionNotFoundError, MissingDependencyError
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

EMBEDDER = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
OTHER = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), max_length=99)
QUERY = "copy a file"
SHAPES: dict[str, dict[str, Any]] = {"one": {}, "named": {"hybrid": True, "stages": [8]}}
AWKWARD = dict.fromkeys(
    [
        *["id", "content", "blob", "meta", "score", "embedding", "sparse_embedding", "dataframe", "content_type"],
        *["page_content", "metadata", "_id", "_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id"],
        *["text", "relationships", "a.b", "a[0]", ""],
    ],
    "awkward",
)
CHUNKS = [
    Chunk("files", 0, 2, "shutil.copy copies a file to another place", {"language": "en", "year": 2019, "rated": 4.5}),
    Chunk("files", 1, 2, "shutil.copytree copies a whole folder", {"language": "en", "year": 2019, "rated": 4.5}),
    Chunk(
        "maths", 0, 1, "math.sin returns the sine of a number", {"language": "en", "year": 2021, "by": {"name": "A"}}
    ),
    Chunk("zebra", 0, 1, "Das Zebra frisst Gras, das auf der Wiese wächst", {"language": "de", "year": 2023}),
    Chunk("awkward", 0, 1, "os.remove deletes a file", {"language": "en", "year": 2018} | AWKWARD),
]
TEXTS = {chunk.id: chunk.text for chunk in CHUNKS}
IDS = {chunk.point_id: chunk.id for chunk in CHUNKS}


def ranked(query: str, **metadata: Any) -> list[str]:
    """Ids of the chunks that have the metadata, as numpy ranks them."""
    found = [chunk for chunk in CHUNKS if metadata.items() <= chunk.metadata.items()]
    vectors = EMBEDDER.embed_documents([chunk.text for chunk in found])  # (n, 64)
    scores = vectors @ EMBEDDER.embed_queries([query])[0]  # (n,)
    return [found[row].id for row in np.argsort(-scores)]


@pytest.fixture(scope="module", params=["memory", "embedded"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_store(":memory:" if request.param == "memory" else tmp_path_factory.mktemp("store"))
    yield opened
    shared.cache_clear()
    opened.close()


def ingested(store: Store, layout: str, shape: str = "one") -> Collection:
    """A new collection with all chunks in it."""
    name = f"{layout}-{uuid.uuid4().hex[:8]}"
    collection = Collection(store, name, EMBEDDER, options={"layout": layout, **SHAPES[shape]})
    collection.ensure()
    points = list(collection.points(CHUNKS, EMBEDDER.embed_documents(list(TEXTS.values()))))
    collection.client.upsert(name, points)
    return collection


@functools.cache
def shared(store: Store, layout: str, shape: str = "one") -> Collection:
    """The same collection for all tests that only read."""
    return ingested(store, layout, shape)


@functools.cache
def memory_is_old() -> bool:
    """Whether the store in memory takes the same UUID in hexadecimal, as Haystack writes it, for another one.

    With qdrant-client 1.18 it does, and lets ``should=[]``, as LlamaIndex writes it, match nothing.
    """
    client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config=models.VectorParams(size=1, distance=models.Distance.DOT))
    client.upsert("c", [models.PointStruct(id=point_id("a"), vector=[1.0])])
    return not client.retrieve("c", [uuid.UUID(point_id("a")).hex])


def needs_ids(store: Store) -> None:
    if store.kind == "memory" and memory_is_old():
        pytest.skip("the store in memory of this qdrant-client knows neither Haystack's ids nor LlamaIndex's filters")


def opened_index(store: Store, **options: Any) -> QdrantIndex:
    """A new index over the store."""
    return QdrantIndex(f"index-{uuid.uuid4().hex[:8]}", embedder=EMBEDDER, client=store.client, **options)


def left(collection: Collection) -> set[str]:
    """Ids of the chunks that are still in it."""
    records, _ = collection.client.scroll(collection.name, limit=100)
    return {IDS.get(str(record.id), "a new one") for record in records}


def new_point(collection: Collection, point: str) -> models.Record:
    return collection.client.retrieve(collection.name, [point], with_vectors=True)[0]


def vector_names(point: models.Record) -> set[str]:
    return set(point.vector) if isinstance(point.vector, dict) else {""}


both_shapes = pytest.mark.parametrize("shape", SHAPES)
NO_NEW_HAYSTACK = "haystack-ai before 3.1 refuses payload fields that it does not know"


# LangChain


def langchain(collection: Collection, how: str) -> LangChainStore:
    embeddings = QwenEmbeddings(embedder=EMBEDDER)
    if how == "opened":
        return open_langchain(collection, embeddings)
    keys: dict[str, Any] = {"content_payload_key": "content", "metadata_payload_key": "meta"}
    named: dict[str, Any] = {"vector_name": "text-dense"} if collection.settings.hybrid else {}
    return LangChainStore(
        collection.client,
        collection.name,
        embeddings,
        **named,
        **(keys if collection.layout.name == "compact" else {}),
    )


langchain_stores = pytest.mark.parametrize(
    ("layout", "how"),
    [(layout, how) for layout in ("compact", "langchain", "universal") for how in ("opened", "plain")],
)


def chunk_ids(documents: list[LangChainDocument]) -> list[str]:
    return [IDS[document.metadata["_id"]] for document in documents]


def field(collection: Collection, name: str, value: str) -> models.Filter:
    """The filter as one writes it for LangChain."""
    path = collection.layout.field(name)
    return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchValue(value=value))])


@both_shapes
@langchain_stores
def test_langchain_searches_filters_and_fetches(store: Store, layout: str, how: str, shape: str) -> None:
    collection = shared(store, layout, shape)
    opened = langchain(collection, how)
    if how == "plain" or shape == "one":
        assert chunk_ids(opened.similarity_search(QUERY, k=10)) == ranked(QUERY)
    assert set(chunk_ids(opened.similarity_search(QUERY, k=10))) == set(TEXTS)
    german = opened.similarity_search(QUERY, filter=field(collection, "language", "de"))
    assert [(one.page_content, one.metadata["year"]) for one in german] == [(TEXTS["zebra"], 2023)]
    assert chunk_ids(opened.similarity_search(QUERY, filter=field(collection, "a.b", "awkward"))) == ["awkward"]
    diverse = opened.max_marginal_relevance_search(QUERY, k=2, fetch_k=5, lambda_mult=0.0)
    assert chunk_ids(diverse)[0] == ranked(QUERY)[0]
    assert len(set(chunk_ids(diverse))) == 2
    (fetched,) = opened.get_by_ids([point_id("maths")])
    assert fetched.page_content == TEXTS["maths"]
    assert fetched.metadata == {**CHUNKS[2].metadata, "_id": point_id("maths"), "_collection_name": collection.name}


@both_shapes
@langchain_stores
def test_langchain_deletes_and_writes(store: Store, layout: str, how: str, shape: str) -> None:
    collection = ingested(store, layout, shape)
    opened = langchain(collection, how)
    opened.delete([point_id("maths"), point_id("zebra")])
    assert left(collection) == set(TEXTS) - {"maths", "zebra"}
    identifier = str(uuid.uuid4())
    opened.add_texts(["a new text"], [{"year": 2026}], [identifier])
    point = new_point(collection, identifier)
    stored = collection.layout.read(point.payload or {})
    assert (stored.text, stored.metadata) == ("a new text", {"year": 2026})
    assert collection.layout.marks(point.payload or {}) is None
    if how == "opened":
        assert vector_names(point) == ({""} if shape == "one" else {"text-dense", "text-sparse"})
    assert "a new text" in [one.page_content for one in opened.similarity_search("a new text", k=1)]


@pytest.mark.parametrize("layout", ["compact", "universal"])
async def test_langchain_works_asynchronously(store: Store, layout: str) -> None:
    collection = ingested(store, layout)
    opened = langchain(collection, "opened")
    searches = await asyncio.gather(*(opened.asimilarity_search(QUERY, k=10) for _ in range(8)))
    assert [chunk_ids(one) for one in searches] == [ranked(QUERY)] * 8
    added = await asyncio.gather(*(opened.aadd_texts([f"text {number}"]) for number in range(8)))
    assert len(await opened.aget_by_ids([one for (one,) in added])) == 8
    await opened.adelete([one for (one,) in added])
    assert left(collection) == set(TEXTS)


class Misled(QwenEmbeddings):
    """Looks for something else than is asked for, so that only the words of the query can find it."""

    def embed_query(self, text: str) -> list[float]:  # noqa: ARG002
        return super().embed_query(TEXTS["maths"])


def test_langchain_searches_words_too_where_the_collection_has_them(store: Store) -> None:
    collection = shared(store, "compact", "named")
    misled = Misled(embedder=EMBEDDER)
    dense = chunk_ids(open_langchain(collection, misled, hybrid=False).similarity_search("Wiese", k=2))
    both = chunk_ids(open_langchain(collection, misled).similarity_search("Wiese", k=2))
    assert "zebra" not in dense
    assert set(both) == {"maths", "zebra"}
    with pytest.raises(ValueError, match="has no sparse vectors; ingest into a new one with hybrid=True"):
        open_langchain(shared(store, "compact"), misled, hybrid=True)


@pytest.mark.parametrize(
    ("embeddings", "difference"),
    [
        ({"embedder": OTHER}, "max_length is 8192, not 99"),
        ({"embedder": EMBEDDER, "dimensions": 32}, "dimensions is 64, not 32"),
        ({"model": "4B"}, "model is 'fake-embedding', not 'Qwen/Qwen3-Embedding-4B'"),
        ({"model": "4B"}, "dimensions is 64, not 2560"),
        ({"model": "fake-embedding", "revision": "v2"}, "revision is None, not 'v2'"),
        (
            {"embedder": EMBEDDER, "document_instruction": "Find duplicates"},
            "document_instruction is None, not 'Find d",
        ),
    ],
)
def test_langchain_embeddings_of_another_model_are_refused_before_they_are_loaded(
    store: Store, embeddings: dict[str, Any], difference: str
) -> None:
    given = QwenEmbeddings(**embeddings)
    with pytest.raises(CollectionMismatchError, match=difference):
        open_langchain(shared(store, "compact"), given)
    assert not given._lazy.loaded


def test_langchain_embeddings_of_the_same_model_are_not_refused_before_they_are_loaded(store: Store) -> None:
    manifest = shared(store, "compact").manifest
    for same in ({"model": "fake-embedding"}, {"embedder": EMBEDDER, "instruction": "code_search"}):
        check_model("corpus", manifest, QwenEmbeddings(**same))
    with Embedder.from_pretrained("demo") as embedder, QdrantIndex("c", embedder=embedder, path=":memory:") as index:
        index.ingest([{"id": "sine", "text": "Return the sine of x."}])
        named = QwenEmbeddings(model="demo")
        check_model(index.name, index.collection.manifest, named)
        assert not named._lazy.loaded
        assert len(open_langchain(index, named).similarity_search("sine")) == 1
        named.close()


class Foreign(Embeddings):
    """Somebody else's model, which happens to give vectors of the same length."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0] * 64 for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_langchain_embeddings_of_somebody_else_are_taken_on_trust(store: Store) -> None:
    assert len(open_langchain(shared(store, "compact"), Foreign()).similarity_search(QUERY, k=2)) == 2


# LlamaIndex


def llama_index(collection: Collection, how: str) -> LlamaIndexStore:
    if how == "opened":
        return open_llama_index(collection)
    return LlamaIndexStore(collection.name, collection.client)


llama_index_stores = pytest.mark.parametrize(
    ("layout", "how"),
    [
        ("compact", "opened"),
        ("llama_index", "opened"),
        ("llama_index", "plain"),
        ("universal", "opened"),
        ("universal", "plain"),
    ],
)


def query(text: str = QUERY, **options: Any) -> VectorStoreQuery:
    vector = EMBEDDER.embed_queries([text])[0].tolist()
    return VectorStoreQuery(query_embedding=vector, query_str=text, similarity_top_k=10, **options)


def found(opened: LlamaIndexStore, asked: VectorStoreQuery) -> list[str]:
    nodes = opened.query(asked).nodes
    assert nodes is not None
    return [IDS[node.node_id] for node in nodes]


def where(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


@both_shapes
@llama_index_stores
def test_llama_index_searches_filters_and_fetches(store: Store, layout: str, how: str, shape: str) -> None:
    opened = llama_index(shared(store, layout, shape), how)
    assert found(opened, query()) == ranked(QUERY)
    assert found(opened, query(filters=where("language", "de"))) == ["zebra"]
    assert found(opened, query(filters=where("by.name", "A"))) == ["maths"]
    assert set(found(opened, query(filters=where("year", 2021, FilterOperator.GTE)))) == {"maths", "zebra"}
    assert set(found(opened, query(filters=where("rated", 4.5)))) == {"files", "files#chunk-1"}
    either = MetadataFilters(
        filters=[where("language", "de"), where("year", [2021], FilterOperator.IN)], condition=FilterCondition.OR
    )
    assert set(found(opened, query(filters=either))) == {"maths", "zebra"}
    assert set(found(opened, query(doc_ids=["files"]))) == {"files", "files#chunk-1"}
    assert set(found(opened, query(filters=where("ref_doc_id", "files")))) == {"files", "files#chunk-1"}
    assert found(opened, query(node_ids=[point_id("maths")])) == ["maths"]
    nodes = {IDS[node.node_id]: node for node in opened.get_nodes([chunk.point_id for chunk in CHUNKS])}
    assert {identifier: node.metadata for identifier, node in nodes.items()} == {
        chunk.id: chunk.metadata for chunk in CHUNKS
    }
    assert {node.ref_doc_id for node in nodes.values()} == {chunk.record_id for chunk in CHUNKS}
    vector = EMBEDDER.embed_documents([TEXTS["maths"]])[0]
    assert nodes["maths"].get_embedding() == pytest.approx(vector.tolist(), abs=1e-6)


@both_shapes
@llama_index_stores
def test_llama_index_deletes_and_writes(store: Store, layout: str, how: str, shape: str) -> None:
    needs_ids(store)
    collection = ingested(store, layout, shape)
    opened = llama_index(collection, how)
    opened.delete("files")
    opened.delete_nodes([point_id("maths")])
    assert left(collection) == {"zebra", "awkward"}
    opened.delete_nodes(filters=where("language", "de"))
    assert left(collection) == {"awkward"}
    node = new_node()
    opened.add([node])
    point = new_point(collection, node.node_id)
    stored = collection.layout.read(point.payload or {})
    assert (stored.id, stored.record_id) == (node.node_id, "source")
    assert (stored.text, stored.metadata) == ("a new text", {"year": 2026})
    assert collection.layout.marks(point.payload or {}) is None
    if how == "opened":
        assert vector_names(point) == ({""} if shape == "one" else {"text-dense", "text-sparse"})
    (again,) = opened.get_nodes([node.node_id])
    assert (again.get_content(), again.metadata, again.ref_doc_id) == ("a new text", {"year": 2026}, "source")
    opened.delete("source")
    assert left(collection) == {"awkward"}


def new_node() -> TextNode:
    return TextNode(
        id_=str(uuid.uuid4()),
        text="a new text",
        metadata={"year": 2026},
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source")},
        embedding=EMBEDDER.embed_documents(["a new text"])[0].tolist(),
    )


@both_shapes
@pytest.mark.parametrize("layout", ["compact", "llama_index", "universal"])
async def test_llama_index_works_asynchronously(store: Store, layout: str, shape: str) -> None:
    collection = ingested(store, layout, shape)
    opened = open_llama_index(collection)
    results = await asyncio.gather(*(opened.aquery(query()) for _ in range(8)))
    assert [[IDS[node.node_id] for node in one.nodes or []] for one in results] == [ranked(QUERY)] * 8
    nodes: list[BaseNode] = [new_node() for _ in range(4)]
    await asyncio.gather(*(opened.async_add([node]) for node in nodes))
    assert len(await opened.aget_nodes([node.node_id for node in nodes])) == 4
    await opened.adelete("source")
    await opened.adelete_nodes([point_id("maths")])
    assert left(collection) == set(TEXTS) - {"maths"}


@pytest.mark.parametrize("layout", ["compact", "llama_index", "universal"])
def test_llama_index_searches_words_too_where_the_collection_has_them(store: Store, layout: str) -> None:
    # Its own default for a collection with "text-sparse" would load a model from the hub.
    opened = open_llama_index(shared(store, layout, "named"))
    assert found(opened, query("Wiese", mode=VectorStoreQueryMode.SPARSE)) == ["zebra"]
    hybrid = query("Wiese", mode=VectorStoreQueryMode.HYBRID, alpha=0.1)
    assert found(opened, hybrid)[0] == "zebra"


async def test_a_llama_index_retriever_asks_with_the_instruction(store: Store) -> None:
    opened = open_llama_index(shared(store, "compact"))
    index = VectorStoreIndex.from_vector_store(opened, embed_model=QwenEmbedding(embedder=EMBEDDER))
    retriever = index.as_retriever(similarity_top_k=10)
    for hits in (retriever.retrieve(QUERY), await retriever.aretrieve(QUERY)):
        assert [IDS[hit.node_id] for hit in hits] == ranked(QUERY)


@both_shapes
@pytest.mark.parametrize("layout", ["compact", "llama_index", "universal"])
async def test_what_llama_index_clears_is_an_empty_collection_that_works_on(
    store: Store, layout: str, shape: str
) -> None:
    collection = ingested(store, layout, shape)
    opened = open_llama_index(collection)
    opened.clear()
    assert left(collection) == set()
    assert Collection(store, collection.name, EMBEDDER).manifest == collection.manifest
    opened.add([new_node()])
    await opened.async_add([new_node()])
    assert len(opened.query(query()).nodes or []) == 2
    await opened.aclear()
    assert left(collection) == set()
    assert Collection(store, collection.name, EMBEDDER).manifest == collection.manifest


def test_an_index_ingests_again_what_llama_index_has_cleared(store: Store) -> None:
    records = [{"id": "maths", "text": TEXTS["maths"]}, {"id": "zebra", "text": TEXTS["zebra"]}]
    with opened_index(store) as index:
        index.ingest(records)
        open_llama_index(index).clear()
        assert index.count() == 0
        assert index.search("sine") == []
        assert index.ingest(records).embedded == 2
        assert [hit.text for hit in index.search("sine", limit=1)] == [TEXTS["maths"]]


# Haystack


def haystack(collection: Collection, how: str) -> QdrantDocumentStore:
    if how == "opened":
        try:
            return open_haystack(collection)
        except ValueError as error:
            if "haystack-ai before 3.1" in str(error):
                pytest.skip(NO_NEW_HAYSTACK)
            raise
    if collection.layout.name != "haystack":
        needs_new_haystack()
    plain = QdrantDocumentStore(
        ":memory:", index=collection.name, embedding_dim=64, use_sparse_embeddings=collection.settings.hybrid
    )
    plain._client = collection.client  # it takes none, but would open one of its own
    return plain


def needs_new_haystack() -> None:
    try:
        Document.from_dict({"content": "t", "meta": {"a": 1}, "other": 1})
    except ValueError:
        pytest.skip(NO_NEW_HAYSTACK)


haystack_stores = pytest.mark.parametrize(
    ("layout", "how"),
    [(layout, how) for layout in ("compact", "haystack", "universal") for how in ("opened", "plain")],
)


def by(name: str, value: Any, operator: str = "==") -> dict[str, Any]:
    return {"field": f"meta.{name}", "operator": operator, "value": value}


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


@both_shapes
@haystack_stores
def test_haystack_searches_filters_and_fetches(store: Store, layout: str, how: str, shape: str) -> None:
    needs_ids(store)
    opened = haystack(shared(store, layout, shape), how)
    pipeline = Pipeline()
    pipeline.add_component("embedder", QwenTextEmbedder.from_embedder(EMBEDDER))
    pipeline.add_component("retriever", QdrantEmbeddingRetriever(opened))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    results = pipeline.run({"embedder": {"text": QUERY}})["retriever"]["documents"]
    assert ids(results) == ranked(QUERY)
    assert {document.id: document.content for document in results} == TEXTS
    german = {"embedder": {"text": QUERY}, "retriever": {"filters": by("language", "de")}}
    assert ids(pipeline.run(german)["retriever"]["documents"]) == ["zebra"]
    assert opened.count_documents() == len(CHUNKS)
    both = {"operator": "AND", "conditions": [by("language", "en"), by("year", 2020, ">")]}
    assert ids(opened.filter_documents(both)) == ["maths"]
    assert ids(opened.filter_documents(by('"a.b"', "awkward"))) == ["awkward"]
    assert set(ids(opened.filter_documents())) == set(TEXTS)
    (fetched,) = opened.get_documents_by_id(["files#chunk-1"])
    assert CHUNKS[1].metadata.items() <= fetched.meta.items()
    assert fetched.embedding == pytest.approx(EMBEDDER.embed_documents([TEXTS[fetched.id]])[0].tolist(), abs=1e-6)
    if how == "opened":
        assert fetched.meta == {**CHUNKS[1].metadata, **({} if layout == "haystack" else {"doc_id": "files"})}


@both_shapes
@haystack_stores
def test_haystack_deletes_and_writes(store: Store, layout: str, how: str, shape: str) -> None:
    needs_ids(store)
    collection = ingested(store, layout, shape)
    opened = haystack(collection, how)
    opened.delete_documents(["maths", "files#chunk-1"])
    assert left(collection) == set(TEXTS) - {"maths", "files#chunk-1"}
    vector = EMBEDDER.embed_documents(["a new text"])[0].tolist()
    document = Document(id="mine", content="a new text", meta={"year": 2026}, embedding=vector)
    assert opened.write_documents([document], DuplicatePolicy.FAIL) == 1
    assert opened.write_documents([document], DuplicatePolicy.SKIP) == 0
    stored = collection.layout.read(new_point(collection, point_id("mine")).payload or {})
    assert (stored.id, stored.text, stored.metadata) == ("mine", "a new text", {"year": 2026})
    (again,) = opened.filter_documents(by("year", 2026))
    assert (again.id, again.content, again.meta) == ("mine", "a new text", {"year": 2026})


@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
def test_a_chunk_that_haystack_writes_back_is_ingested_again(store: Store, layout: str) -> None:
    needs_ids(store)
    collection = ingested(store, layout)
    opened = haystack(collection, "opened")
    (document,) = opened.get_documents_by_id(["maths"])
    opened.write_documents([document], DuplicatePolicy.OVERWRITE)
    assert collection.marks([point_id("maths")])[point_id("maths")] == {}
    assert collection.marks([point_id("zebra")])[point_id("zebra")] == CHUNKS[3].bookkeeping


@both_shapes
async def test_haystack_empties_a_collection_but_is_refused_to_make_it_anew(store: Store, shape: str) -> None:
    collection = ingested(store, "haystack", shape)
    opened = haystack(collection, "opened")
    again: dict[str, Any] = {"collection_name": collection.name, "distance": models.Distance.DOT, "embedding_dim": 64}
    refused = r"delete_all_documents\(\) empties it; to make it anew, call client.delete_collection\('haystack-"
    with pytest.raises(ValueError, match=refused):
        opened.delete_all_documents(recreate_index=True)
    with pytest.raises(ValueError, match=refused):
        await opened.delete_all_documents_async(recreate_index=True)
    with pytest.raises(ValueError, match=refused):
        opened.recreate_collection(**again)
    with pytest.raises(ValueError, match=refused):
        await opened.recreate_collection_async(**again)
    assert left(collection) == set(TEXTS)
    opened.delete_all_documents()
    assert left(collection) == set()
    points = collection.points(CHUNKS[:1], EMBEDDER.embed_documents([CHUNKS[0].text]))
    collection.client.upsert(collection.name, list(points))
    await opened.delete_all_documents_async()
    assert left(collection) == set()
    assert Collection(store, collection.name, EMBEDDER).manifest == collection.manifest


RECORDS: list[dict[str, Any]] = [
    {"id": "maths", "text": "sine cosine", "chunks": ["math.sin: the sine", "math.cos: the cosine"], "year": 2021},
    {"id": "zebra", "text": TEXTS["zebra"], "year": 2023},
]


async def change_year(opened: QdrantDocumentStore, how: str) -> int:
    changed = {"year": 1999, "reviewed": True}
    if how == "sync":
        return opened.update_by_filter(by("year", 2021), changed)
    return await opened.update_by_filter_async(by("year", 2021), changed)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
async def test_metadata_that_haystack_changes_is_the_sources_again_after_the_next_ingestion(
    store: Store, layout: str, shape: str, how: str
) -> None:
    with opened_index(store, layout=layout, **SHAPES[shape]) as index:
        index.ingest(RECORDS)
        before = {hit.id: hit.metadata for hit in index.search("sine", limit=10)}
        opened = haystack(index.collection, "opened")
        assert await change_year(opened, how) == 2
        assert {one.content for one in opened.filter_documents(by("year", 1999))} == set(RECORDS[0]["chunks"])
        hits = index.search("sine", limit=10, filter={"reviewed": True})
        assert {(hit.record_id, hit.index) for hit in hits} == {("maths", 0), ("maths", 1)}
        assert [hit.metadata for hit in hits] == [{"year": 1999, "reviewed": True}] * 2
        report = index.ingest(RECORDS)
        assert (report.embedded, report.replaced, report.skipped) == (0, 2, 1)
        assert {hit.id: hit.metadata for hit in index.search("sine", limit=10)} == before
        assert index.ingest(RECORDS).skipped == 3


@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
async def test_a_record_whose_metadata_haystack_has_changed_is_still_deleted_as_a_whole(
    store: Store, layout: str
) -> None:
    with opened_index(store, layout=layout) as index:
        index.ingest(RECORDS)
        opened = haystack(index.collection, "opened")
        await change_year(opened, "sync")
        assert index.ingest(RECORDS[1:], delete_missing=True).deleted == 2
        assert ids(opened.filter_documents()) == ["zebra"]


async def test_metadata_that_haystack_changes_is_changed_for_all_frameworks(store: Store) -> None:
    needs_new_haystack()
    with opened_index(store, layout="universal") as index:
        index.ingest(RECORDS)
        assert await change_year(open_haystack(index), "sync") == 2
        nodes, maths = open_llama_index(index), point_id("maths")
        (document,) = open_langchain(index, QwenEmbeddings(embedder=EMBEDDER)).get_by_ids([maths])
        assert (document.metadata["year"], document.metadata["reviewed"]) == (1999, True)
        (node,) = nodes.get_nodes([maths])
        assert (node.metadata, node.ref_doc_id) == ({"year": 1999, "reviewed": True}, "maths")
        assert len(nodes.query(query(filters=where("year", 1999))).nodes or []) == 2
        assert len(nodes.query(query(filters=where("year", 2021))).nodes or []) == 0


@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
def test_haystack_changes_metadata_as_it_is_ingested(store: Store, layout: str) -> None:
    collection = ingested(store, layout)
    opened = haystack(collection, "opened")
    opened.update_by_filter(by("year", 2023), {"seen": date(2026, 11, 21)})
    (document,) = opened.filter_documents(by("year", 2023))
    assert document.meta["seen"] == "2026-11-21"
    with pytest.raises(DocumentStoreError, match="the metadata key '_qwen' is reserved; rename it"):
        opened.update_by_filter(by("year", 2023), {"_qwen": {}})
    vector = EMBEDDER.embed_documents(["a new text"])[0].tolist()
    opened.write_documents([Document(id="mine", content="a new text", meta={"year": 2026}, embedding=vector)])
    assert opened.update_by_filter(by("year", 2026), {"year": 2027}) == 1
    (document,) = opened.filter_documents(by("year", 2027))
    assert (document.id, document.content, document.meta) == ("mine", "a new text", {"year": 2027})


@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
async def test_haystack_names_the_fields_of_the_metadata_and_no_bookkeeping(store: Store, layout: str) -> None:
    with opened_index(store, layout=layout) as index:
        index.ingest(RECORDS)
        opened = haystack(index.collection, "opened")
        assert opened.get_metadata_fields_info() == {"year": {"type": "long"}}
        assert await opened.get_metadata_fields_info_async() == {"year": {"type": "long"}}


def test_haystack_names_the_indexed_fields_where_there_are_some(store: Store) -> None:
    if store.kind == "memory":
        pytest.skip("the store in memory has no indexes")
    with opened_index(store, layout="haystack", indexed_fields={"year": "integer"}) as index:
        index.ingest(RECORDS)
        assert set(haystack(index.collection, "opened").get_metadata_fields_info()) == {"year"}


@both_shapes
@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
async def test_haystack_works_asynchronously(store: Store, layout: str, shape: str) -> None:
    needs_ids(store)
    collection = ingested(store, layout, shape)
    opened = haystack(collection, "opened")
    retriever, vector = QdrantEmbeddingRetriever(opened), EMBEDDER.embed_queries([QUERY])[0].tolist()
    results = await asyncio.gather(*(retriever.run_async(vector) for _ in range(8)))
    assert [ids(one["documents"]) for one in results] == [ranked(QUERY)] * 8
    assert await opened.count_documents_async() == len(CHUNKS)
    assert ids(await opened.filter_documents_async(by("language", "de"))) == ["zebra"]
    assert ids(await opened.get_documents_by_id_async(["maths"])) == ["maths"]
    await opened.write_documents_async([Document(id="mine", content="a new text", embedding=vector)])
    await opened.delete_documents_async(["maths"])
    assert left(collection) == (set(TEXTS) - {"maths"}) | {"a new one"}
    await opened.close_async()
    opened.close()
    assert opened.count_documents() == await opened.count_documents_async() == len(CHUNKS)


@pytest.mark.parametrize("layout", ["compact", "haystack", "universal"])
def test_haystack_searches_words_too_where_the_collection_has_them(store: Store, layout: str) -> None:
    opened = haystack(shared(store, layout, "named"), "opened")
    words = bm25.query_vector("Wiese", "english")
    sparse = SparseEmbedding(indices=words.indices, values=words.values)
    alone = QdrantSparseEmbeddingRetriever(opened).run(sparse)
    assert ids(alone["documents"]) == ["zebra"]
    vector = EMBEDDER.embed_documents([TEXTS["zebra"]])[0].tolist()
    assert ids(QdrantHybridRetriever(opened).run(vector, sparse)["documents"])[0] == "zebra"


def test_haystack_groups_the_chunks_of_a_record() -> None:
    store = open_store(":memory:")  # the engine's Python interface has no groups
    opened = haystack(ingested(store, "compact"), "opened")
    vector = EMBEDDER.embed_queries([QUERY])[0].tolist()
    grouped = QdrantEmbeddingRetriever(opened, group_by="doc_id", group_size=1, top_k=10).run(vector)["documents"]
    assert len({document.meta["doc_id"] for document in grouped}) == len(grouped) == 4
    assert all("_qwen" not in document.meta for document in grouped)
    store.close()


def test_an_opened_document_store_cannot_be_written_to_yaml(store: Store) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", QdrantEmbeddingRetriever(haystack(shared(store, "compact"), "opened")))
    theirs = r"QdrantDocumentStore\(url=…, index='compact-\w+', embedding_dim=64, use_sparse_embeddings=False\)"
    with pytest.raises(TypeError, match=f"uses the open client of an index, .* for YAML, make a {theirs}"):
        pipeline.dumps()


# All of them


@pytest.mark.parametrize("path", [":memory:", "folder"])
def test_one_universal_index_serves_all_three_frameworks(path: str, tmp_path: Path) -> None:
    needs_new_haystack()
    records = [{"id": "maths", "text": TEXTS["maths"], "year": 2021}, {"id": "zebra", "text": TEXTS["zebra"]}]
    folder = path if path == ":memory:" else tmp_path / path
    with QdrantIndex("corpus", embedder=EMBEDDER, path=folder, layout="universal") as index:
        index.ingest(records)
        chain = open_langchain(index, QwenEmbeddings(embedder=EMBEDDER))
        nodes, documents = open_llama_index(index), open_haystack(index)
        assert [one.page_content for one in chain.similarity_search("sine", k=1)] == [TEXTS["maths"]]
        assert found(nodes, query("sine"))[0] == "maths"
        assert ids(documents.filter_documents(by("year", 2021))) == ["maths"]
        nodes.delete("maths")
        assert documents.count_documents() == index.count() == 1
        assert chain.get_by_ids([point_id("maths")]) == []
        report = index.ingest(records)
        assert (report.embedded, report.skipped) == (1, 1)
        assert [hit.text for hit in index.search("sine", limit=1)] == [TEXTS["maths"]]


def run_as_a_program(code: str, folder: Path) -> str:
    """What a new user's program prints."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("function", [open_langchain, open_llama_index, open_haystack], ids=lambda one: one.__name__)
def test_the_example_of_each_function_runs_as_it_stands(function: Callable[..., object], tmp_path: Path) -> None:
    if function is open_haystack:
        needs_new_haystack()
    (code,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(function) or "", re.DOTALL)
    assert "Delete a directory tree." in run_as_a_program(code, tmp_path)


# What cannot be opened


def test_a_layout_that_a_framework_cannot_read_is_refused_with_those_that_it_can(store: Store) -> None:
    layouts = {name: shared(store, name) for name in ("langchain", "llama_index", "haystack")}
    embeddings = QwenEmbeddings(embedder=EMBEDDER)
    for name in ("llama_index", "haystack"):
        with pytest.raises(ValueError, match=rf"LangChain cannot read layout '{name}' .* compact, langchain and univ"):
            open_langchain(layouts[name], embeddings)
    for name in ("langchain", "haystack"):
        with pytest.raises(ValueError, match=rf"LlamaIndex cannot read layout '{name}' .* compact, llama_index and u"):
            open_llama_index(layouts[name])
    for name in ("langchain", "llama_index"):
        with pytest.raises(ValueError, match=rf"Haystack cannot read layout '{name}' .* compact, haystack and univers"):
            open_haystack(layouts[name])


def test_a_collection_that_is_not_there_yet_is_not_made(store: Store) -> None:
    collection = Collection(store, "nothing", EMBEDDER)
    for opening in (open_llama_index, open_haystack, lambda index: open_langchain(index, QwenEmbeddings())):
        with pytest.raises(CollectionNotFoundError, match="there is no collection 'nothing' yet; ingest"):
            opening(collection)
    assert not collection.exists()


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("langchain_qdrant", "langchain-qdrant"),
        ("llama_index.vector_stores.qdrant", "llama-index-vector-stores-qdrant"),
        ("haystack_integrations.document_stores.qdrant", "qdrant-haystack"),
    ],
)
def test_a_missing_store_is_named_with_the_line_that_installs_it(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for own in ("langchain_store", "llama_index_store", "haystack_store"):
        monkeypatch.delitem(sys.modules, f"qdrant_qwen_retrieval.{own}", raising=False)
    store = open_store(":memory:")
    collection, embeddings = ingested(store, "compact"), QwenEmbeddings(embedder=EMBEDDER)
    opening: dict[str, Callable[[], object]] = {
        "langchain_qdrant": lambda: open_langchain(collection, embeddings),
        "llama_index.vector_stores.qdrant": lambda: open_llama_index(collection),
        "haystack_integrations.document_stores.qdrant": lambda: open_haystack(collection),
    }
    with pytest.raises(MissingDependencyError, match=f'is not installed; run: pip install "{package}"'):
        opening[module]()
    store.close()


def test_no_framework_is_imported_before_it_is_opened() -> None:
    code = (
        "import sys; import qdrant_qwen_retrieval.frameworks, qdrant_qwen_retrieval.layouts;"
        "names = ('torch', 'langchain', 'llama_index.core', 'llama_index.vector_stores', 'haystack', 'pyarrow');"
        "print([name for name in sys.modules if name.startswith(names)])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
