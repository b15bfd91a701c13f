"""The folder of an embedded store: which collections and aliases there are, and their settings.

    store.json                                      {"format": 1, "aliases": {alias: collection}}
    collections/<name and hash>/collection.json     {"format": 1, "name": ..., "settings": {...}}
    collections/<name and hash>/shard/              the engine's files

qdrant-edge knows one shard without a name, and no metadata; this is what a server would keep about it. A collection
exists as soon as its `collection.json` does, which is written last and renamed away first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_retrieval.errors import StoreError

FORMAT = 1
STORE_FILE, COLLECTION_FILE, COLLECTIONS, SHARD = "store.json", "collection.json", "collections", "shard"
GARBAGE = ".deleted-"
LOCAL_MODE_FILE = "meta.json"  # of qdrant-client's own `path=`, a format of pickles
OWN_FILES = {STORE_FILE, f"{STORE_FILE}.tmp", COLLECTIONS}  # and hidden ones, such as the lock
NAME_LENGTH = 40  # letters of the name in the folder's, for people; the hash tells collections apart


def folder_name(collection_name: str) -> str:
    """A name for the folder of a collection that every file system takes, whatever the collection is called.

    Percent-encoding would not do: names may be longer than file names, and differ in case only.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", collection_name.lower()).strip("-")[:NAME_LENGTH]
    digest = hashlib.blake2b(collection_name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{readable}-{digest}" if readable else digest


def has_store(root: Path) -> bool:
    """Whether a folder is one of a store."""
    return (root / STORE_FILE).is_file()


def check_usable(root: Path) -> None:
    """Refuse a folder that is in use for something else, before anything is written to it.

    Raises:
        StoreError: It has files and no store.
    """
    if has_store(root):
        return
    if (root / LOCAL_MODE_FILE).exists():
        raise StoreError(
            f"{root} is a folder of QdrantClient(path=...), which stores pickles; take another folder and "
            "copy the collections with QdrantClient(path=...).migrate(EmbeddedQdrantClient(...))"
        )
    for entry in root.iterdir():
        if entry.name not in OWN_FILES and not entry.name.startswith("."):
            raise StoreError(
                f"{root} is no store, and holds other things, such as {entry.name!r}; give a folder that is new or "
                "empty, or that holds a store"
            )


class StoreFolder:
    """What is written beside the engine's files, as it is while one engine's process holds the store's lock.

    Args:
        root: The folder.
        guard: Called before anything is written; raises StoreError if that process no longer holds the lock.

    Attributes:
        lock: Held by whoever changes what is there.
        settings: Of every collection by its name, as ``PUT /collections/{name}`` takes them.
        aliases: Other names of collections.

    Raises:
        StoreError: The files are damaged, or of a newer version.
    """

    def __init__(self, root: Path, guard: Callable[[], None]) -> None:
        self.root = root
        self._guard = guard
        self.lock = threading.RLock()
        self.settings: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        self._read()

    def resolve(self, name: str) -> str:
        """The name of a collection, by its name or an alias.

        Raises:
            ValueError: There is none, as local mode of qdrant-client says it.
        """
        name = self.aliases.get(name, name)
        if name not in self.settings:
            raise ValueError(f"Collection {name} not found")
        return name

    def shard(self, collection_name: str) -> str:
        """Where the engine's files of a collection are, below the root."""
        return f"{COLLECTIONS}/{folder_name(collection_name)}/{SHARD}"

    def write(self, collection_name: str, settings: dict[str, Any]) -> None:
        """Records a collection with its settings, new or old."""
        self._guard()
        content = {"format": FORMAT, "name": collection_name, "settings": settings}
        write_json(self._folder(collection_name) / COLLECTION_FILE, content)
        self.settings[collection_name] = settings

    def write_aliases(self, aliases: dict[str, str]) -> None:
        """Records all aliases."""
        self._guard()
        write_json(self.root / STORE_FILE, {"format": FORMAT, "aliases": aliases})
        self.aliases = aliases

    def forget(self, collection_name: str) -> None:
        """Drops a collection whose folder is no longer there, and its aliases."""
        del self.settings[collection_name]
        left = {alias: name for alias, name in self.aliases.items() if name != collection_name}
        if left != self.aliases:
            self.write_aliases(left)

    def has_leftovers(self, collection_name: str) -> bool:
        """Whether there is a folder of a creation that did not end.

        Raises:
            StoreError: There is one of a collection that somebody else has made.
        """
        folder = self._folder(collection_name)
        if (folder / COLLECTION_FILE).exists():
            raise StoreError(f"{folder} was made by another program while the store was open here; open it again")
        return folder.exists()

    def garbage(self) -> str:
        """A new name, below the root, for a folder that is to be removed: half a removal is not half a collection."""
        return f"{COLLECTIONS}/{GARBAGE}{uuid.uuid4().hex}"

    def _folder(self, collection_name: str) -> Path:
        return self.root / COLLECTIONS / folder_name(collection_name)

    def _read(self) -> None:
        if not has_store(self.root):
            write_json(self.root / STORE_FILE, {"format": FORMAT, "aliases": {}})
        aliases: dict[str, str] = read_json(self.root / STORE_FILE)["aliases"]
        for garbage in (self.root / COLLECTIONS).glob(f"{GARBAGE}*"):
            shutil.rmtree(garbage, ignore_errors=True)
        for path in sorted((self.root / COLLECTIONS).glob(f"*/{COLLECTION_FILE}")):
            content = read_json(path)
            self.settings[content["name"]] = content["settings"]
        self.aliases = {alias: name for alias, name in aliases.items() if name in self.settings}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a file as a whole, on the disk when this returns: the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the new name
        finally:
            os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of `write_json`.

    Raises:
        StoreError: It is damaged, or of another version.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error!r}; restore it from a copy") from error
    if found != FORMAT:
        raise StoreError(f"{path} has format {found!r}, and this version reads {FORMAT}; use a version that wrote it")
    return content
