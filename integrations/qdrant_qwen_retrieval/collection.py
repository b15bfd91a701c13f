"""A collection: made and opened with a check of what is in it, and the points that go into it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval import bm25
from qdrant_qwen_retrieval.bulk import deferred_indexing, patiently, restore_indexing, wait_until_indexed
from qdrant_qwen_retrieval.chunks import Chunk
from qdrant_qwen_retrieval.layouts import Layout, get_layout
from qdrant_qwen_retrieval.manifest import KEY, Manifest
from qdrant_qwen_retrieval.settings import (
    SPARSE,
    Settings,
    check_indexed_fields,
    check_options,
    index_params,
    schema,
    stage_name,
)
from qdrant_qwen_retrieval.stores import Store
from qwen_retrieval import Embedder
from qwen_retrieval.errors import CollectionMismatchError, CollectionNotFoundError, StoreError
from qwen_retrieval.types import FloatArray
from qwen_retrieval.vectors import truncate_dimensions

_log = logging.getLogger(__name__)

_LOOKUP = 1000
"""Points whose marks are asked for at once."""


class Collection:
    """One collection of a store, which must have been made here, with the same model.

    It is opened by name: if it exists, what it was made with is read and compared; if not, it is made by `ensure`. Any
    number of threads may share it.

    Args:
        store: Where it lies.
        name: Its name.
        embedder: The model of its vectors; None to open it without a model.
        options: Settings by the names of `Settings`; None, or missing, for what the collection has, and the default for
            a new one.
        indexed_fields: Fields of the metadata to index for filters: "keyword", "integer", "float", "bool", "datetime",
            "text", "uuid" or "geo". An index may be added to an existing collection.

    Raises:
        CollectionNotFoundError: It does not exist, and there is no embedder to make it for.
        CollectionMismatchError: It was made otherwise, or not here.
        TypeError: An option has the wrong type.
        ValueError: An option has an unknown value, or the embedder cannot give vectors for the `stages`.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        embedder: Embedder | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        indexed_fields: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"the name of a collection must be a string, but got {name!r}")
        self.store = store
        self.name = name
        self._embedder = embedder
        self._options = check_options(options or {})
        self._fields = check_indexed_fields(indexed_fields)
        self._lock = threading.Lock()
        self._opened = self._ready = False
        if not self.is_there():
            if embedder is None:
                raise self.missing()
            self._use(Manifest.of(embedder, Settings.choose(self._options)))
        self._index_kinds()  # refuses fields that the layout cannot filter by
        if self._opened and self._fields:
            self.ensure()  # an index that is asked for is there

    @property
    def client(self) -> QdrantClient:
        """The client, to be used by any number of threads."""
        return self.store.client

    @property
    def is_remote(self) -> bool:
        """Whether it lies on a server."""
        return self.store.kind == "server"

    @property
    def is_embedded(self) -> bool:
        """Whether it lies in a folder."""
        return self.store.kind == "embedded"

    @property
    def manifest(self) -> Manifest:
        """What it was made with, or will be."""
        return self._manifest

    @property
    def settings(self) -> Settings:
        """How it is set up, or will be."""
        return self._manifest.settings

    @property
    def layout(self) -> Layout:
        """How its payloads are written."""
        return self._layout

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Around calls of the client: see `Store.reached`. If somebody has deleted the collection, it can be made anew.

        Raises:
            CollectionNotFoundError: It does not exist.
            StoreError: The store cannot be used.
        """
        try:
            with self.store.reached():
                yield
        except CollectionNotFoundError:
            self._opened = self._ready = False
            raise

    def exists(self) -> bool:
        """Whether the store has it."""
        return self.client.collection_exists(self.name)

    def is_there(self) -> bool:
        """The same, asked only as long as it does not; what it was made with is compared when it is found.

        Raises:
            CollectionMismatchError: It was made otherwise, or not here.
        """
        if not self._opened and self.exists():
            self._adopt(self._read())
            self._repair()
        return self._opened

    def missing(self) -> CollectionNotFoundError:
        """The error for whoever needs it to exist."""
        found = sorted(one.name for one in self.client.get_collections().collections)
        others = f"it has {', '.join(map(repr, found[:10]))}" if found else "it has none yet"
        return CollectionNotFoundError(
            f"there is no collection {self.name!r} in {self.store.place} ({others}); ingest something into it first"
        )

    @patiently
    def ensure(self) -> bool:
        """Make it if it does not exist, with its payload indexes, before any point is in it.

        Several threads and processes may do so at the same time: one of them makes it, the others compare.

        Returns:
            Whether it was made by this call.

        Raises:
            CollectionMismatchError: Somebody has made it meanwhile, otherwise.
            StoreError: The server cannot keep what it was made with. Nothing is left behind.
        """
        with self._lock:
            if self._ready:
                return False
            made = not self.exists() and self._create()
            info = self._read()
            if made and KEY not in (info.config.metadata or {}):
                self.client.delete_collection(self.name)
                raise StoreError(
                    f"{self.store.place} keeps no metadata of collections, which say what model the vectors are of; "
                    "it must be Qdrant 1.16 or later. The collection has been removed again"
                )
            self._adopt(info)
            self._create_indexes(info)
            self._repair()
            self._ready = True
            return made

    def points(self, chunks: Sequence[Chunk], dense: FloatArray) -> Iterator[models.PointStruct]:
        """What is written for chunks: the id, all vectors, and the payload.

        Args:
            chunks: n chunks.
            dense: (n, dimensions), their vectors.

        Returns:
            n points, in order. Payloads are made one by one, because those of a record with large metadata would fill
            the memory.

        Raises:
            ValueError: The shape is another one, or a number is not finite: Qdrant would drop the point, or never find
                it, without a word.
        """
        dense = np.asarray(dense, dtype=np.float32)
        expected = (len(chunks), self.manifest.dimensions)
        if dense.shape != expected:
            raise ValueError(
                f"vectors for collection {self.name!r} must have the shape {expected}, but got {dense.shape}"
            )
        if not np.isfinite(dense).all():
            raise ValueError(f"vectors for collection {self.name!r} must be finite, but one has NaN or infinity")
        vectors = self._vectors([chunk.text for chunk in chunks], dense)
        return (
            models.PointStruct(id=chunk.point_id, vector=vector, payload=self.layout.payload(chunk))
            for chunk, vector in zip(chunks, vectors, strict=True)
        )

    def marks(self, point_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The bookkeeping of points, by their ids, for those that exist; {} if the collection does not."""
        found: dict[str, dict[str, Any]] = {}
        if not self.is_there():
            return found
        for start in range(0, len(point_ids), _LOOKUP):
            ids = list(point_ids[start : start + _LOOKUP])
            for point in self.client.retrieve(self.name, ids, with_payload=[self.layout.marks_path]):
                found[str(point.id)] = self.layout.marks(point.payload or {}) or {}
        return found

    def count(self, *, exact: bool = True) -> int:
        """Points in it, or about how many; 0 if it does not exist."""
        if not self.is_there():
            return 0
        return self.client.count(self.name, exact=exact).count

    @contextmanager
    def bulk_load(self) -> Iterator[None]:
        """Around the writing of many points: a server builds its index afterwards; see `deferred_indexing`.

        Raises:
            StoreError: The server cannot be used. What is raised inside passes unchanged.
        """
        with ExitStack() as load:
            if self.is_remote:
                with self.reached():
                    load.enter_context(deferred_indexing(self.client, self.name))
            yield
            with self.reached():
                load.close()

    def wait_until_indexed(self, timeout: float) -> bool:
        """Wait until a server has built its index; see `bulk.wait_until_indexed`."""
        return wait_until_indexed(self.client, self.name, timeout)

    def _vectors(self, texts: Sequence[str], dense: FloatArray) -> list[Any]:
        """One entry for each text: a list of floats, or vectors by name if there are several."""
        settings = self.settings
        if not settings.stages and not settings.hybrid:
            return list(dense.tolist())
        by_name: dict[str, list[Any]] = {settings.dense_name: dense.tolist()}
        for length in settings.stages:
            by_name[stage_name(length)] = truncate_dimensions(dense, length).tolist()  # (n, length)
        if settings.language is not None:
            by_name[SPARSE] = bm25.document_vectors(texts, settings.language)
        return [dict(zip(by_name, row, strict=True)) for row in zip(*by_name.values(), strict=True)]

    def _read(self) -> models.CollectionInfo:
        return self.client.get_collection(self.name)

    def _adopt(self, info: models.CollectionInfo) -> None:
        manifest = Manifest.from_metadata(self.name, info.config.metadata)
        manifest.check(self.name, self._options, self._embedder)
        self._use(manifest)
        self._opened = True

    def _repair(self) -> None:
        """Restore what a load has left behind that was killed."""
        if not self.is_remote:
            return
        try:
            restore_indexing(self.client, self.name)
        except Exception as error:  # a key that may only read, for one: searching works all the same
            _log.warning("the indexing threshold of collection %r could not be restored: %s", self.name, error)

    def _use(self, manifest: Manifest) -> None:
        self._manifest, self._layout = manifest, get_layout(manifest.settings.layout)

    def _create(self) -> bool:
        """Make it; False if somebody else was faster."""
        settings = self.settings
        vectors = schema(settings, self.manifest.dimensions)
        try:
            self.client.create_collection(
                self.name,
                vectors_config=vectors.vectors,
                sparse_vectors_config=vectors.sparse,
                shard_number=settings.shard_number,
                replication_factor=settings.replication_factor,
                on_disk_payload=settings.on_disk or None,
                metadata={KEY: self.manifest.to_dict()},
            )
        except Exception:
            if self.exists():
                return False
            raise
        return True

    def _create_indexes(self, info: models.CollectionInfo) -> None:
        """Make the payload indexes that are missing: a run may have been killed before all were made."""
        if self.store.kind == "memory":
            return  # it has none, and would warn
        schema = {_unquoted(path): index for path, index in info.payload_schema.items()}
        for path, kind in self._index_kinds().items():
            found = schema.get(_unquoted(path))
            if found is None:
                params = index_params(kind, on_disk=self.is_remote and self.settings.on_disk)
                self.client.create_payload_index(self.name, path, field_schema=params, wait=True)
            elif found.data_type.value != kind:
                raise CollectionMismatchError(
                    f"{path!r} of collection {self.name!r} is indexed as {found.data_type.value!r}, not {kind!r}: "
                    "ask for that, or delete the index with client.delete_payload_index first"
                )

    def _index_kinds(self) -> dict[str, str]:
        """Paths of the payload to be indexed, and as what."""
        fields = {self.layout.field(name): kind for name, kind in self._fields.items()}
        return dict.fromkeys(self.layout.keyword_paths, "keyword") | fields


def _unquoted(path: str) -> str:
    """A payload path for comparison: Qdrant gives it back with fewer quotation marks than it takes."""
    return path.replace('"', "")
