"""What is in a collection, told without a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.manifest import KEY, Manifest
from qdrant_qwen_retrieval.stores import ApiKey, Store, StoreKind, open_store, status_of

_FEW = 100_000
"""Points of a server's collection up to which its records are counted: it must look at every point for it."""


@dataclass(frozen=True, slots=True)
class Description:
    """What is in a collection.

    Attributes:
        collection: Its name.
        store: "memory", "embedded" or "server".
        place: ":memory:", the folder, or the URL.
        points: Points, that is chunks.
        records: Records they are parts of; None if counting them would take long, or is refused.
        model: The embedding model, as it was named.
        revision: Branch, tag or commit of it that was asked for.
        dimensions: Length of the full vectors.
        max_length: Longest text in tokens.
        control_tokens: What was done with control tokens in texts.
        fingerprint: A name for all that decides the vectors of documents.
        instruction: The instruction for queries of the embedder that made the collection.
        layout: How payloads are written.
        stages: Lengths of the shorter vectors.
        quantization: What is searched in.
        datatype: How numbers of vectors are kept.
        hybrid: Whether there are BM25 vectors.
        language: What BM25 takes the texts for; None without.
        on_disk: Whether vectors and payload are kept on the disk only.
        shard_number: Shards that were asked for; None for the server's default.
        replication_factor: Copies of each shard that were asked for; None for the server's default.
        status: "green" if all is well, "yellow" while the store builds an index, "grey" if it will do so at the next
            write, "red" if something failed.
        indexed_vectors: How many vectors are in a graph; the others are compared one by one.
        payload_indexes: Paths of the payload that are indexed, and as what.
        disk_bytes: What the store's folder takes on the disk, its other collections included; None for other stores.
    """

    collection: str
    store: StoreKind
    place: str
    points: int
    records: int | None
    model: str
    revision: str | None
    dimensions: int
    max_length: int
    control_tokens: str
    fingerprint: str
    instruction: str
    layout: str
    stages: tuple[int, ...]
    quantization: str
    datatype: str
    hybrid: bool
    language: str | None
    on_disk: bool
    shard_number: int | None
    replication_factor: int | None
    status: str
    indexed_vectors: int
    payload_indexes: dict[str, str]
    disk_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"stages": list(self.stages)}


def describe(
    collection: str,
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    client: QdrantClient | None = None,
    api_key: ApiKey | None = None,
    prefer_grpc: bool = True,
    grpc_port: int | None = None,
    timeout: int = 60,
) -> Description:
    """What is in a collection; no model is loaded.

    Args:
        collection: Its name.
        path: See `QdrantIndex`, as for all others.
        url: See `QdrantIndex`.
        client: See `QdrantIndex`.
        api_key: See `QdrantIndex`.
        prefer_grpc: See `QdrantIndex`.
        grpc_port: See `QdrantIndex`.
        timeout: See `QdrantIndex`.

    Raises:
        CollectionNotFoundError: There is none of that name, or no store in the folder.
        CollectionMismatchError: It was not made here.
        StoreError: The store cannot be used.
    """
    with _existing(path, url, client, api_key, prefer_grpc, grpc_port, timeout) as store:
        return describe_collection(Collection(store, collection))


def collections(
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    client: QdrantClient | None = None,
    api_key: ApiKey | None = None,
    prefer_grpc: bool = True,
    grpc_port: int | None = None,
    timeout: int = 60,
) -> list[Description]:
    """All collections of a store that were made here, by name; no model is loaded.

    Args:
        path: See `QdrantIndex`, as for all others.
        url: See `QdrantIndex`.
        client: See `QdrantIndex`.
        api_key: See `QdrantIndex`.
        prefer_grpc: See `QdrantIndex`.
        grpc_port: See `QdrantIndex`.
        timeout: See `QdrantIndex`.

    Raises:
        CollectionNotFoundError: There is no store in the folder.
        StoreError: The store cannot be used.
    """
    with _existing(path, url, client, api_key, prefer_grpc, grpc_port, timeout) as store:
        names = sorted(one.name for one in store.client.get_collections().collections)
        return [describe_collection(Collection(store, name)) for name in names if _is_ours(store, name)]


def describe_collection(collection: Collection) -> Description:
    """What is in an open collection.

    Raises:
        CollectionNotFoundError: It does not exist.
    """
    if not collection.is_there():
        raise collection.missing()
    store, manifest = collection.store, collection.manifest
    info = store.client.get_collection(collection.name)
    points = collection.count()
    return Description(
        collection=collection.name,
        store=store.kind,
        place=store.place,
        points=points,
        records=None if store.kind == "server" and points > _FEW else _count_records(collection),
        **{
            one.name: getattr(manifest, one.name) for one in fields(Manifest) if one.name not in ("settings", "version")
        },
        **asdict(manifest.settings),
        status=info.status.value,
        indexed_vectors=info.indexed_vectors_count or 0,
        payload_indexes={path: index.data_type.value for path, index in info.payload_schema.items()},
        disk_bytes=_folder_size(store.place) if store.kind == "embedded" else None,
    )


@contextmanager
def _existing(
    path: str | os.PathLike[str] | None,
    url: str | None,
    client: QdrantClient | None,
    api_key: ApiKey | None,
    prefer_grpc: bool,
    grpc_port: int | None,
    timeout: int,
) -> Iterator[Store]:
    """A store to look into, which is not made for that."""
    store = open_store(
        path,
        url=url,
        client=client,
        api_key=api_key,
        prefer_grpc=prefer_grpc,
        grpc_port=grpc_port,
        timeout=timeout,
        create=False,
    )
    try:
        with store.reached():
            yield store
    finally:
        store.close()


def _is_ours(store: Store, name: str) -> bool:
    return KEY in (store.client.get_collection(name).config.metadata or {})


def _count_records(collection: Collection) -> int | None:
    """The first chunk stands for its record, and it alone says how many chunks belong to it.

    None where the server refuses to look at fields without an index (strict mode).
    """
    path = f"{collection.layout.marks_path}.count"
    first = models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key=path))])
    try:
        return collection.client.count(collection.name, count_filter=first, exact=True).count
    except Exception as error:
        if status_of(error)[0] == 400:
            return None
        raise


def _folder_size(path: str) -> int:
    """Bytes that the files of a folder really take on the disk; 0 if there is none."""
    size = 0
    for file in Path(path).rglob("*"):
        try:
            found = file.stat(follow_symlinks=False)
        except OSError:
            continue  # the engine has removed it meanwhile
        # The engine allocates its log sparsely, 32 MiB at a time: count blocks where the system knows them.
        size += getattr(found, "st_blocks", -(-found.st_size // 512)) * 512
    return size
