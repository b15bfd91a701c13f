"""Which store a command uses, and the model that a collection was made with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen_retrieval.errors import CollectionMismatchError, CollectionNotFoundError

from .options import ControlTokens, LoadOptions, load_embedder

if TYPE_CHECKING:
    from qdrant_qwen_retrieval.manifest import Manifest
    from qdrant_qwen_retrieval.stores import Store
    from qwen_retrieval import Embedder
    from qwen_retrieval.types import FloatArray, TokenIds

PANEL = "Store"


@dataclass(frozen=True)
class StoreOptions:
    """Where collections lie; each field is an option of every command that uses one.

    The key of a server is no option: command lines are kept in histories and seen by everyone who lists processes.
    """

    store: Annotated[Path | None, typer.Option(help="Folder of the collections.", rich_help_panel=PANEL)] = None
    url: Annotated[
        str | None,
        typer.Option(
            help="Qdrant server instead, such as http://localhost:6333. QDRANT_API_KEY holds its key.",
            rich_help_panel=PANEL,
        ),
    ] = None
    rest: Annotated[
        bool, typer.Option("--rest", help="Speak REST with the server instead of gRPC.", rich_help_panel=PANEL)
    ] = False
    grpc_port: Annotated[int | None, typer.Option(min=1, max=65535, help="6334 by default.", rich_help_panel=PANEL)] = (
        None
    )

    @property
    def given(self) -> bool:
        """Whether a folder or a server is named."""
        return self.store is not None or self.url is not None

    def check(self) -> None:
        """Refuse none and both of folder and server.

        Raises:
            typer.BadParameter: That is wrong usage.
        """
        if (self.store is None) == (self.url is None):
            raise typer.BadParameter("give either --store FOLDER or --url URL")
        if self.url is None and (self.rest or self.grpc_port is not None):
            raise typer.BadParameter("--rest and --grpc-port go with --url")

    def exists(self) -> bool:
        """Whether there is a store in the folder, which opening it would make; of a server, that is not asked."""
        from qdrant_qwen_retrieval.embedded.folder import has_store

        return self.store is None or has_store(self.store)

    def keywords(self) -> dict[str, Any]:
        """The arguments of ``QdrantIndex`` and ``describe`` that name the store."""
        path = None if self.store is None else str(self.store)
        return {"path": path, "url": self.url, "prefer_grpc": not self.rest, "grpc_port": self.grpc_port}

    def arguments(self) -> str:
        """The options that name the store again, for a command to be shown."""
        rest = " --rest" if self.rest else f" --grpc-port {self.grpc_port}" if self.grpc_port else ""
        return f"--url {shlex.quote(self.url)}{rest}" if self.url else f"--store {shlex.quote(str(self.store))}"


@contextmanager
def connect(options: StoreOptions, *, create: bool = False) -> Iterator[Store]:
    """Open the store, and turn what a server says into errors for the reader.

    Args:
        options: Which one.
        create: Whether a store is made in a folder that has none.

    Raises:
        CollectionNotFoundError: The folder has no store, and none shall be made.
        StoreError: See `qdrant_qwen_retrieval.stores.open_store`.
    """
    options.check()
    from qdrant_qwen_retrieval.stores import open_store

    store = open_store(**options.keywords(), create=create)
    try:
        with store.reached():
            yield store
    finally:
        store.close()


def names(store: Store) -> list[str]:
    """The collections of a store, in alphabetical order."""
    return sorted(collection.name for collection in store.client.get_collections().collections)


def recorded(store: Store, collection: str) -> Manifest:
    """What a collection was made with.

    Raises:
        CollectionMismatchError: It says nothing of that.
    """
    from qdrant_qwen_retrieval.manifest import Manifest

    return Manifest.from_metadata(collection, store.client.get_collection(collection).config.metadata)


def recorded_if_any(store: Store, collection: str) -> Manifest | None:
    """The same, or None if there is no such collection yet."""
    return recorded(store, collection) if store.client.collection_exists(collection) else None


def choose(store: Store, collection: str | None) -> str:
    """The name that was given, or of the only collection.

    Raises:
        CollectionNotFoundError: There is no such collection, or not exactly one to choose from.
    """
    known = names(store)
    if collection is None and len(known) == 1:
        return known[0]
    if collection in known:
        return collection
    if not known:
        raise CollectionNotFoundError(f"{store.place} has no collections; qwen-retrieval ingest makes one")
    problem = "needs --collection, one of" if collection is None else f"has no collection {collection!r}, but"
    raise CollectionNotFoundError(f"{store.place} {problem} {', '.join(known)}")


def load_recorded(manifest: Manifest | None, model: str, load: LoadOptions, dimensions: int | None = None) -> Embedder:
    """Load the embedder of a collection, as it was when the collection was made.

    Args:
        manifest: The collection's; None for a new one.
        model: The model to load.
        load: What was asked for. What was not is taken from the manifest, if that is of the same model.
        dimensions: Length of the vectors; None for the manifest's, or the full length.
    """
    load, dimensions = _as_recorded(manifest, model, load, dimensions)
    instruction = None if manifest is None else manifest.instruction
    return load_embedder(model, load, dimensions=dimensions, instruction=instruction)


def without_weights(manifest: Manifest | None, model: str, load: LoadOptions, dimensions: int | None) -> Embedder:
    """The same as `load_recorded`, but good for comparing settings only: of the model no weights are read."""
    from qwen_retrieval import Embedder
    from qwen_retrieval.hub import local_folder, model_folder
    from qwen_retrieval.loading import read_config
    from qwen_retrieval.specs import match_embedding, resolve_model
    from qwen_retrieval.tokenizer import HubTokenizer

    load, dimensions = _as_recorded(manifest, model, load, dimensions)
    name = resolve_model(model, "embedding")
    folder = model_folder(name, "embedding", weights=False, **load.hub_keywords())
    tokenizer = HubTokenizer.from_folder(folder)
    spec = match_embedding(str(local_folder(name) or name), read_config(folder), tokenizer)
    embedder = Embedder(_NoEngine(), tokenizer, spec, dimensions=dimensions, **load.template_keywords())
    embedder.revision = load.revision
    return embedder


class _NoEngine:
    """The engine of an embedder that shall embed nothing."""

    hidden_size = 0

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        raise AssertionError(f"a dry run must embed nothing, but was given {len(batch)} inputs")


def _as_recorded(
    manifest: Manifest | None, model: str, load: LoadOptions, dimensions: int | None
) -> tuple[LoadOptions, int | None]:
    """What was asked for, completed by what the manifest of the same model says; another model must not be loaded."""
    from qwen_retrieval.hub import local_folder
    from qwen_retrieval.specs import resolve_model

    name = resolve_model(model, "embedding")
    folder = local_folder(name)
    if manifest is None:
        return load, dimensions
    if manifest.model != str(folder or name):
        if folder is None:  # of a folder only its content tells, which opening the collection compares
            raise CollectionMismatchError(
                f"the collection was made with {manifest.model}, not with {name}; leave --model out, or name another "
                "collection"
            )
        return load, dimensions
    is_default = load.control_tokens is ControlTokens.escape
    completed = replace(
        load,
        revision=load.revision or manifest.revision,
        max_length=load.max_length or manifest.max_length,
        control_tokens=ControlTokens(manifest.control_tokens) if is_default else load.control_tokens,
    )
    return completed, dimensions or manifest.dimensions
