"""Payload layouts: written and read back whole, in the shapes of the frameworks, and filtered on both engines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import qdrant_edge
from haystack import Document
from hypothesis import example, given
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval.chunks import Chunk, chunk_id
from qdrant_qwen_retrieval.layouts import Layout, LayoutName, Stored, get_layout

NAMES = get_args(LayoutName)
LAYOUTS = [pytest.param(get_layout(name), id=name) for name in NAMES]

# Every name that means something to a framework, or looks like a path.
RESERVED = [
    *["id", "content", "blob", "meta", "score", "embedding", "sparse_embedding", "dataframe", "content_type"],
    *["page_content", "metadata", "_id", "_collection_name", "id_hash_keys"],
    *["_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id", "text", "relationships", "node_info"],
    *["a.b", "a[0]", "[]", "", " ", "record", "é", "日本", "😀", "it's", "a\nb"],
]
AWKWARD: dict[str, Any] = {name: f"the field {name}" for name in RESERVED}
AWKWARD["nested"] = {"_qwen": [1, {"meta.x": None}]}

numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = (st.sampled_from(RESERVED) | st.text()).filter(lambda name: name != "_qwen")
chunks = st.builds(
    Chunk,
    record_id=st.text(min_size=1),
    index=st.integers(0, 3),
    count=st.just(4),
    text=st.text(),
    metadata=st.dictionaries(names, values, max_size=6),
)


def chunk(index: int = 0, **metadata: Any) -> Chunk:
    return Chunk("record", index, 2, "a text", metadata)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(one=chunks)
@example(one=Chunk("r", 1, 2, "t", AWKWARD))
@example(one=Chunk("None", 0, 1, "", {}))
def test_a_chunk_is_read_back_as_it_was_stored(layout: Layout, one: Chunk) -> None:
    payload = json.loads(json.dumps(layout.payload(one)))  # what a store makes of it
    assert layout.read(payload) == Stored(one.id, one.record_id, one.index, one.text, dict(one.metadata))
    assert layout.marks(payload) == one.bookkeeping


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bookkeeping_lies_under_one_key_where_the_paths_say(layout: Layout) -> None:
    payload: Any = layout.payload(chunk(1, year=2021))
    for key in layout.marks_path.split("."):
        payload = payload[key]
    assert payload == chunk(1, year=2021).bookkeeping
    assert layout.record_path == f"{layout.marks_path}.record"
    assert layout.record_path in layout.keyword_paths


@pytest.mark.parametrize("layout", LAYOUTS)
@given(one=chunks, fields=st.dictionaries(names, values, max_size=4))
@example(one=Chunk("r", 0, 2, "t", AWKWARD), fields=dict.fromkeys(RESERVED, "changed") | {"added": 1})
def test_changed_metadata_is_what_would_have_been_stored_with_it(
    layout: Layout, one: Chunk, fields: dict[str, Any]
) -> None:
    before = layout.payload(one)
    kept = json.dumps(before)
    changed = layout.changed(before, fields)
    assert changed == layout.payload(replace(one, metadata={**one.metadata, **fields}))
    assert json.dumps(before) == kept


def test_a_change_of_metadata_leaves_what_others_have_put_beside_it() -> None:
    payload = get_layout("compact").payload(chunk(year=2021)) | {"theirs": 1}
    assert get_layout("compact").changed(payload, {"year": 1999})["theirs"] == 1


def test_an_unknown_layout_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="there is no layout 'llamaindex'; it is one of compact, langchain, llama_ind"):
        get_layout("llamaindex")


def test_the_payload_is_what_each_framework_would_have_written() -> None:
    one = chunk(1, year=2021, tags=["a"])
    metadata = {"year": 2021, "tags": ["a"]}
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="record")}
    node = node_to_metadata_dict(
        TextNode(id_=one.point_id, text="a text", metadata=metadata, relationships=source),
        remove_text=False,
        flat_metadata=False,
    )
    document = Document(id="record#chunk-1", content="a text", meta=metadata).to_dict(flatten=False)
    marks = {"_qwen": one.bookkeeping}

    ours = get_layout("llama_index").payload(one)
    assert metadata_dict_to_node(ours) == metadata_dict_to_node(node)
    # llama-index-core 0.13 still had the misspelt name of a field beside the right one.
    expected = {key: value for key, value in json.loads(node["_node_content"]).items() if key != "metadata_seperator"}
    assert json.loads(ours["_node_content"]) == expected
    assert {**ours, "_node_content": ""} == {**node, "_node_content": "", **marks}

    del document["embedding"]  # the store takes it out
    assert get_layout("haystack").payload(one) == {**document, "meta": metadata | marks}
    assert get_layout("langchain").payload(one) == {"page_content": "a text", "metadata": metadata} | marks
    compact = {"id": "record#chunk-1", "content": "a text", "meta": metadata, "doc_id": "record"} | marks
    assert get_layout("compact").payload(one) == compact
    langchain = {"page_content": "a text", "metadata": metadata}
    assert get_layout("universal").payload(one) == node | langchain | compact | {"_node_content": ours["_node_content"]}


@pytest.mark.parametrize("name", ["llama_index", "universal"])
def test_reserved_names_stay_out_of_the_payload_itself(name: str) -> None:
    plain, awkward = (get_layout(name).payload(chunk(**metadata)) for metadata in ({}, AWKWARD))
    shared = [key for key in plain if key in AWKWARD and key not in ("metadata", "meta", "_node_content")]
    assert {key: awkward[key] for key in shared} == {key: plain[key] for key in shared}
    assert awkward["nested"] == AWKWARD["nested"]


def test_points_that_a_framework_has_written_are_read() -> None:
    metadata = {"year": 2021}
    node = node_to_metadata_dict(TextNode(id_="n", text="t", metadata=metadata), remove_text=False)
    langchain = {"page_content": "t", "metadata": metadata}
    document = Document(id="d", content="t", meta=metadata).to_dict(flatten=False)
    for name, payload, identifier in (
        ("langchain", langchain, ""),
        ("universal", langchain, ""),
        ("compact", {"content": "t", "meta": metadata}, ""),  # LangChain's store as open_langchain sets it up
        ("llama_index", node, "n"),
        ("universal", node, "n"),
        ("haystack", document, "d"),
        ("compact", document, "d"),
        ("universal", document, "d"),
    ):
        assert get_layout(name).read(payload) == Stored(identifier, identifier, 0, "t", metadata), name
        assert get_layout(name).marks(payload) is None, name


def test_langchain_may_have_written_no_metadata_at_all() -> None:
    assert get_layout("langchain").read({"page_content": "t", "metadata": None}).metadata == {}
    assert get_layout("compact").read({}) == Stored("", "", 0, "", {})


def test_bookkeeping_that_haystack_has_written_back_is_no_metadata() -> None:
    payload = Document(id="d", content="t", meta={"_qwen": {"record": "d"}, "year": 1}).to_dict(flatten=False)
    assert get_layout("compact").read(payload) == Stored("d", "d", 0, "t", {"year": 1})


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("year", "meta.year", id="plain"),
        pytest.param("a.b", 'meta."a.b"', id="dot"),
        pytest.param("a[0]", 'meta."a[0]"', id="brackets"),
        pytest.param("two words", 'meta."two words"', id="space"),
        pytest.param("", 'meta.""', id="empty"),
        pytest.param("größe", 'meta."größe"', id="not-ascii"),
        pytest.param("id", "meta.id", id="reserved"),
    ],
)
def test_fields_are_quoted_as_qdrant_wants_it(name: str, path: str) -> None:
    assert get_layout("compact").field(name) == get_layout("universal").field(name) == path
    assert get_layout("haystack").field(name) == path
    assert get_layout("langchain").field(name) == path.replace("meta", "metadata")
    assert get_layout("llama_index").field(name) == path.removeprefix("meta.")


@pytest.mark.parametrize("name", ['a"b', "a\\b"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_name_that_qdrant_has_no_path_for_is_refused(layout: Layout, name: str) -> None:
    with pytest.raises(ValueError, match="cannot filter by a field whose name contains a quotation mark"):
        layout.field(name)


@pytest.mark.parametrize("name", ["doc_id", "_node_content"])
def test_llama_index_cannot_filter_by_names_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f'keeps something of its own under "{name}"'):
        get_layout("llama_index").field(name)


class Engines:
    """A payload in qdrant-client's in-memory store and in the real engine."""

    def __init__(self, folder: str) -> None:
        distance = qdrant_edge.Distance.Cosine
        config = qdrant_edge.EdgeConfig(vectors=qdrant_edge.EdgeVectorParams(size=2, distance=distance))
        self.shard = qdrant_edge.EdgeShard.create(folder, config)
        self.client = QdrantClient(":memory:")
        self.client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))

    def put(self, payload: dict[str, Any]) -> None:
        self.client.upsert("c", [models.PointStruct(id=1, vector=[1.0, 0.0], payload=payload)])
        point = qdrant_edge.Point(1, [1.0, 0.0], payload)
        self.shard.update(qdrant_edge.UpdateOperation.upsert_points([point]))

    def payloads(self) -> list[Any]:
        return [self.client.retrieve("c", [1])[0].payload, self.shard.retrieve([1], True, False)[0].payload]

    def counts(self, path: str, value: str) -> list[int]:
        """How many points each of the two finds by the filter."""
        local = models.FieldCondition(key=path, match=models.MatchValue(value=value))
        edge = qdrant_edge.FieldCondition(key=path, match=qdrant_edge.MatchValue(value=value))
        request = qdrant_edge.CountRequest(exact=True, filter=qdrant_edge.Filter(must=[edge]))
        return [self.client.count("c", models.Filter(must=[local])).count, self.shard.count(request)]


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with tempfile.TemporaryDirectory() as folder:
        both = Engines(folder)
        yield both
        both.client.close()
        both.shard.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_engines_keep_any_metadata_and_filter_by_every_field(layout: Layout, engines: Engines) -> None:
    engines.put(layout.payload(Chunk("record", 1, 2, "a text", AWKWARD)))
    for payload in engines.payloads():
        assert layout.read(payload) == Stored(chunk_id("record", 1), "record", 1, "a text", AWKWARD)
    unreachable = {"_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id"}
    for name in RESERVED:
        if layout.name == "llama_index" and name in unreachable:
            continue
        assert engines.counts(layout.field(name), f"the field {name}") == [1, 1], name
        assert engines.counts(layout.field(name), "another value") == [0, 0], name
    assert engines.counts(layout.record_path, "record") == [1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bookkeeping_alone_can_be_fetched(layout: Layout, engines: Engines) -> None:
    engines.put(layout.payload(chunk(1, year=2021)))
    point = engines.client.retrieve("c", [1], with_payload=[layout.marks_path])[0]
    assert layout.marks(point.payload or {}) == chunk(1, year=2021).bookkeeping
