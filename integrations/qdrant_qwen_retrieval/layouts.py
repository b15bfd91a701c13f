"""Payload layouts: what is stored beside the vectors, so that the Qdrant stores of other frameworks read it.

| layout      | payload                                                   | read by the plain store of           |
|-------------|-----------------------------------------------------------|--------------------------------------|
| compact     | ``id, content, meta{}, doc_id, _qwen``                    | Haystack (haystack-ai 3.1 and later) |
| langchain   | ``page_content, metadata{}, _qwen``                       | LangChain                            |
| llama_index | fields of the metadata, ``_node_content``, … , ``_qwen``  | LlamaIndex                           |
| haystack    | ``id, content, blob, meta{…, _qwen}, score, …``           | Haystack, any version                |
| universal   | all of the above but ``blob`` and ``score``               | all three (haystack-ai 3.1 and later)|

`frameworks` opens the compact layout with LangChain and LlamaIndex too. Sources: langchain-qdrant 1.1.0
(``qdrant.py``), llama-index-vector-stores-qdrant 0.10.4 (``base.py``) and llama-index-core 0.14
(``node_to_metadata_dict``), qdrant-haystack 13.1.0 (``converters.py``) and haystack-ai 3.4.0 (``Document.from_dict``).

A metadata field may have any name but ``_qwen``. Where a layout also spreads the metadata over the payload, names that
mean something to a framework there (``id``, ``content``, ``doc_id``, …) stay in the nested copy:

* compact, langchain, haystack: every field is nested, and filtered by ``Layout.field``.
* universal: every field is nested under ``meta`` and ``metadata`` and filtered there by ``Layout.field``. Reserved
  names are no fields of the payload itself, so LlamaIndex cannot filter by them.
* llama_index: reserved names are inside of the node's JSON only: read, but not filtered; `Layout.field` refuses them.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from qdrant_qwen_retrieval.chunks import BOOKKEEPING, Chunk, chunk_id

LayoutName = Literal["compact", "langchain", "llama_index", "haystack", "universal"]

_NODE_FIELDS: Final = frozenset({"_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id"})
_DOCUMENT_FIELDS: Final = frozenset(
    {"id", "content", "blob", "meta", "score", "embedding", "sparse_embedding"}
    | {"content_type", "id_hash_keys", "dataframe"}  # of older versions, dropped on reading
)
_NO_SOURCE = "None"  # what LlamaIndex writes for a node without a source
_UNQUOTED = re.compile(r"[A-Za-z0-9_-]+")
"""Keys that stand in a path as they are. Qdrant takes letters of all scripts; local mode and server agree on these."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a payload says about a chunk.

    Attributes:
        id: The chunk's id: that of its record for the first, else with its place added. Empty in a point that
            LangChain's own store has written, which keeps no id in the payload; the point's id names that one.
        record_id: The record that it is a part of; `id` for points that a framework has written without saying.
        index: Its place in the record, from 0; 0 for points that a framework has written.
        text: The chunk's text.
        metadata: The record's metadata, without any bookkeeping.
    """

    id: str
    record_id: str
    index: int
    text: str
    metadata: dict[str, Any]


class Layout(ABC):
    """How a chunk is stored in a payload, and read from it again; get one by `get_layout`.

    Attributes:
        name: Its name.
        marks_path: Path of the bookkeeping in the payload.
        record_path: Path of the record's id within it: a keyword field by which all chunks of a record are found.
        keyword_paths: Fields that get a keyword index when a collection is created.
        beside_metadata: What Haystack takes for metadata though it is none, except ``doc_id``.
    """

    name: LayoutName
    marks_path: str = BOOKKEEPING
    keyword_paths: tuple[str, ...] = (f"{BOOKKEEPING}.record",)
    beside_metadata: frozenset[str] = frozenset({BOOKKEEPING})

    @property
    def record_path(self) -> str:
        """Path of the record's id in the bookkeeping."""
        return f"{self.marks_path}.record"

    def payload(self, chunk: Chunk) -> dict[str, Any]:
        """The payload of a chunk's point."""
        return self._write(chunk, dict(chunk.metadata)) | {BOOKKEEPING: chunk.bookkeeping}

    def marks(self, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """`Chunk.bookkeeping` as it was stored; None for a point that a framework has written."""
        marks = payload.get(BOOKKEEPING)
        return marks if isinstance(marks, dict) else None

    def read(self, payload: Mapping[str, Any]) -> Stored:
        """The inverse of `payload`. Reads points that the layout's frameworks have written, too."""
        identifier, record_id, text, metadata = self._read(payload)
        marks = self.marks(payload)
        if marks is None:
            return Stored(identifier, record_id or identifier, 0, text, metadata)
        record_id, index = str(marks["record"]), int(marks["index"])
        return Stored(chunk_id(record_id, index), record_id, index, text, metadata)

    def changed(self, payload: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The payload of a chunk with other values for some fields of its metadata, wherever it has them.

        It remains a chunk of its record. Its bookkeeping says what is in it now, so that the next ingestion of the
        record sees a difference, and writes the record's own metadata again.

        Args:
            payload: Of a point with bookkeeping.
            metadata: JSON values of the fields to be changed or added.
        """
        stored, marks = self.read(payload), self.marks(payload) or {}
        fields = {**stored.metadata, **metadata}
        chunk = Chunk(stored.record_id, stored.index, int(marks.get("count", 0)), stored.text, fields)
        return {**payload, **self.payload(chunk)}

    def field(self, name: str) -> str:
        """The payload path of a metadata field, for filters and payload indexes.

        Args:
            name: The field's name, not a path: with ``"a.b"`` the field of that name is meant, not ``b`` within ``a``.

        Returns:
            The path, in which the name is quoted if it needs to be, as in ``meta."a.b"``.

        Raises:
            ValueError: Qdrant has no path for a name with a quotation mark or a backslash in it, or this layout does
                not store the field where filters reach it.
        """
        return f"{self._metadata_key}.{quote(name)}"

    _metadata_key: str = "meta"

    @abstractmethod
    def _write(self, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
        """The payload but for the bookkeeping. `metadata` is a copy that may be kept."""

    @abstractmethod
    def _read(self, payload: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        """Id, record id, text and metadata, as far as the payload says without the bookkeeping."""


class _Compact(Layout):
    name = "compact"
    keyword_paths = (*Layout.keyword_paths, "doc_id")

    def _write(self, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
        return {"id": chunk.id, "content": chunk.text, "meta": metadata, "doc_id": chunk.record_id}

    def _read(self, payload: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        identifier, record_id = str(payload.get("id") or ""), str(payload.get("doc_id") or "")
        return identifier, record_id, payload.get("content") or "", _metadata(payload, "meta")


class _LangChain(Layout):
    name = "langchain"
    _metadata_key = "metadata"

    def _write(self, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
        return {"page_content": chunk.text, "metadata": metadata}

    def _read(self, payload: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        return "", "", payload.get("page_content") or "", _metadata(payload, "metadata")


class _LlamaIndex(Layout):
    name = "llama_index"
    keyword_paths = (*Layout.keyword_paths, "doc_id")

    def field(self, name: str) -> str:
        if name in _NODE_FIELDS:
            raise ValueError(
                f'LlamaIndex keeps something of its own under "{name}", so that layout="llama_index" cannot filter by '
                "metadata of that name; rename the field, or use another layout"
            )
        return quote(name)

    def _write(self, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
        return metadata | _nodes_of(chunk)

    def _read(self, payload: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        node = json.loads(payload.get("_node_content") or "{}")
        source = str(payload.get("doc_id") or "")
        record_id = "" if source == _NO_SOURCE else source
        text = node.get("text") or (node.get("text_resource") or {}).get("text") or ""
        return str(node.get("id_") or ""), record_id, text, dict(node.get("metadata") or {})


class _Haystack(Layout):
    name = "haystack"
    marks_path = f"meta.{BOOKKEEPING}"  # haystack-ai 3.0 reads no field of its payload but those of a Document
    keyword_paths = (f"meta.{BOOKKEEPING}.record",)

    def payload(self, chunk: Chunk) -> dict[str, Any]:
        return self._write(chunk, dict(chunk.metadata) | {BOOKKEEPING: chunk.bookkeeping})

    def marks(self, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        return super().marks(payload.get("meta") or {})

    def _write(self, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
        document = {"id": chunk.id, "content": chunk.text, "meta": metadata}
        return document | {"blob": None, "score": None, "sparse_embedding": None}

    def _read(self, payload: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        return str(payload.get("id") or ""), "", payload.get("content") or "", _metadata(payload, "meta")


class _Universal(Layout):
    name = "universal"
    keyword_paths = (*Layout.keyword_paths, "doc_id")

    beside_metadata = (_NODE_FIELDS - {"doc_id"}) | {BOOKKEEPING, "page_content", "metadata"}
    _RESERVED = _DOCUMENT_FIELDS | _NODE_FIELDS | {"page_content", "metadata"}

    def _write(self, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
        spread = {name: value for name, value in metadata.items() if name not in self._RESERVED}
        compact, langchain = _LAYOUTS["compact"]._write(chunk, metadata), _LAYOUTS["langchain"]._write(chunk, metadata)
        return spread | langchain | compact | _nodes_of(chunk)

    def _read(self, payload: Mapping[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
        if self.marks(payload) is None:  # written by a framework's own store, which knows its own fields only
            for name, key in (("llama_index", "_node_content"), ("langchain", "page_content")):
                if key in payload:
                    return _LAYOUTS[name]._read(payload)
        return _LAYOUTS["compact"]._read(payload)


_LAYOUTS: Final[dict[str, Layout]] = {
    layout.name: layout for layout in (_Compact(), _LangChain(), _LlamaIndex(), _Haystack(), _Universal())
}


def get_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in _LAYOUTS:
        raise ValueError(f"there is no layout {name!r}; it is one of {', '.join(get_args(LayoutName))}")
    return _LAYOUTS[name]


def quote(key: str) -> str:
    """A key as a part of a payload path, in quotation marks if it needs them.

    Source: ``lib/segment/src/json_path/parse.rs`` of qdrant 1.19, which knows no escapes.

    Raises:
        ValueError: It contains a quotation mark or a backslash.
    """
    if '"' in key or "\\" in key:
        raise ValueError(
            f"Qdrant cannot filter by a field whose name contains a quotation mark or a backslash: {key!r}; rename it"
        )
    return key if _UNQUOTED.fullmatch(key) else f'"{key}"'


def node_fields(node_id: str, record_id: str, text: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What ``node_to_metadata_dict`` of llama-index-core adds to the metadata of a TextNode.

    Args:
        node_id: The point's id.
        record_id: The node's source, its ``ref_doc_id``; "" for a node without one.
        text: The node's.
        metadata: The node's.
    """
    node: dict[str, Any] = {
        "id_": node_id,
        "embedding": None,
        "metadata": metadata,
        "excluded_embed_metadata_keys": [],
        "excluded_llm_metadata_keys": [],
        "relationships": {"1": _source(record_id)} if record_id else {},  # "1" is NodeRelationship.SOURCE
        "metadata_template": "{key}: {value}",
        "metadata_separator": "\n",
        "text": text,
        "mimetype": "text/plain",
        "start_char_idx": None,
        "end_char_idx": None,
        "text_template": "{metadata_str}\n\n{content}",
        "class_name": "TextNode",
    }
    record = dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), record_id or _NO_SOURCE)
    return {"_node_content": json.dumps(node, ensure_ascii=False), "_node_type": "TextNode"} | record


def _source(record_id: str) -> dict[str, Any]:
    return {"node_id": record_id, "node_type": None, "metadata": {}, "hash": None, "class_name": "RelatedNodeInfo"}


def _nodes_of(chunk: Chunk) -> dict[str, Any]:
    return node_fields(chunk.point_id, chunk.record_id, chunk.text, dict(chunk.metadata))


def _metadata(payload: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Metadata under a key: {} if there is none, and without bookkeeping that Haystack may have written back there."""
    return {name: value for name, value in (payload.get(key) or {}).items() if name != BOOKKEEPING}
