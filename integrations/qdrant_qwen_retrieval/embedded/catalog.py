"""Collections and aliases: the part of the backend that a server keeps beside its shards."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from qdrant_client import models

from qdrant_qwen_retrieval.embedded.backend import EdgeBase, done, jsonable
from qdrant_qwen_retrieval.embedded.configuration import (
    FORBIDDEN,
    as_created,
    check_settings,
    check_vector_name,
    describe,
    merged,
    merged_metadata,
    validated,
)
from qdrant_qwen_retrieval.embedded.folder import StoreFolder
from qdrant_qwen_retrieval.embedded.messages import check_options, plain
from qdrant_qwen_retrieval.embedded.vectors import by_name

MAX_NAME = 255


class CollectionsMixin(EdgeBase):
    """Creates, describes, changes and deletes collections."""

    def create_collection(
        self,
        collection_name: str,
        vectors_config: Any = None,  # noqa: ANN401 - params, or params by name
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401 - checked by the model of the request
    ) -> bool:
        """Makes an empty collection.

        Args:
            collection_name: By the server's rules: none of the characters that it forbids, at most 255.
            vectors_config: Dense vectors: one without a name, or several by name.
            sparse_vectors_config: Sparse vectors by name.
            metadata: JSON to keep with it.
            options: The other settings of a server. `shard_number`, `replication_factor`, `write_consistency_factor`
                and `wal_config` are recorded, for the day it moves to a server, and change nothing here.

        Returns:
            True.

        Raises:
            ValueError: The name is taken or not allowed, or a setting is wrong.
            NotImplementedError: A setting would change results, and the embedded engine does not have it.
        """
        timeout = options.pop("timeout", None)
        check_options("create_collection", {"timeout": timeout})
        request = {"vectors": vectors_config, "sparse_vectors": sparse_vectors_config, **options}
        settings = validated(models.CreateCollection, request)
        check_settings(settings)
        if metadata is not None:
            settings["metadata"] = jsonable(metadata)
        store = self._opened()
        folder = store.folder
        with folder.lock:
            _check_new_name(collection_name, folder)
            if folder.has_leftovers(collection_name):
                shutil.rmtree(store.drop(collection_name), ignore_errors=True)
            store.engine.call("create", shard=folder.shard(collection_name), config=settings)
            folder.write(collection_name, settings)
        return True

    def recreate_collection(self, collection_name: str, vectors_config: Any = None, **options: Any) -> bool:  # noqa: ANN401
        """Deletes a collection if it exists, and makes it again."""
        self.delete_collection(collection_name)
        return self.create_collection(collection_name, vectors_config, **options)

    def delete_collection(self, collection_name: str, **options: object) -> bool:
        """Deletes a collection with its points and aliases; False if there is none of this name."""
        check_options("delete_collection", options)
        store = self._opened()
        folder = store.folder
        with folder.lock:
            if collection_name not in folder.settings:
                return False
            garbage = store.drop(collection_name)
            folder.forget(collection_name)  # first: whoever interrupts what follows leaves no half collection
            shutil.rmtree(garbage, ignore_errors=True)  # what is left is removed when the store is opened
        return True

    def update_collection(
        self,
        collection_name: str,
        optimizers_config: models.OptimizersConfigDiff | None = None,
        collection_params: models.CollectionParamsDiff | None = None,
        vectors_config: Mapping[str, models.VectorParamsDiff] | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        quantization_config: Any = None,  # noqa: ANN401
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        strict_mode_config: models.StrictModeConfig | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: object,
    ) -> bool:
        """Changes settings; those of graphs and compressed vectors take effect with the next `optimize`.

        Args:
            collection_name: The collection.
            optimizers_config: Merged with what it has, as are `hnsw_config` and `vectors_config`.
            collection_params: `on_disk_payload`, `payload` and `id_tracker`; the others are recorded.
            vectors_config: By the name of the vector, "" for the one without.
            hnsw_config: Of the graph.
            quantization_config: Replaces the one it has.
            sparse_vectors_config: By the name of the vector.
            strict_mode_config: Not here.
            metadata: Its keys are added to those that are there; a key with None is removed.
            options: `timeout` changes nothing.

        Raises:
            ValueError: There is no such collection or vector.
            NotImplementedError: Strict mode, or turning quantization off.
        """
        check_options("update_collection", options)
        request = {
            "optimizers_config": optimizers_config,
            "params": collection_params,
            "vectors": vectors_config,
            "hnsw_config": hnsw_config,
            "quantization_config": quantization_config,
            "sparse_vectors": sparse_vectors_config,
            "strict_mode_config": strict_mode_config,
        }
        changes = validated(models.UpdateCollection, request)
        with self._recording(collection_name) as (name, settings):
            settings |= merged(settings, changes)
            if changes:
                self._call("configure", name, config=settings)
            if metadata is not None:
                settings["metadata"] = merged_metadata(settings.get("metadata"), jsonable(metadata))
        return True

    def get_collection(self, collection_name: str, **options: object) -> models.CollectionInfo:
        """What is in a collection, and its settings."""
        check_options("get_collection", options)
        settings = self._settings(collection_name)
        reply, _ = self._call("info", collection_name)
        recorded = settings.get("payload_schema", {})
        schema = {
            name: models.PayloadIndexInfo(params=recorded.get(name), **index)
            for name, index in reply.pop("payload_schema").items()
        }
        return models.CollectionInfo(
            status=models.CollectionStatus.GREEN,  # nothing runs by itself, and everything can be found
            optimizer_status=models.OptimizersStatusOneOf.OK,
            config=describe(settings),
            payload_schema=schema,
            **reply,
        )

    def get_collections(self, **options: object) -> models.CollectionsResponse:
        """The names of all collections."""
        check_options("get_collections", options)
        names = list(self._opened().folder.settings)
        return models.CollectionsResponse(collections=[models.CollectionDescription(name=name) for name in names])

    def collection_exists(self, collection_name: str, **options: object) -> bool:
        """Whether there is a collection or an alias of this name."""
        check_options("collection_exists", options)
        folder = self._opened().folder
        return folder.aliases.get(collection_name, collection_name) in folder.settings

    def update_collection_aliases(self, change_aliases_operations: Sequence[Any], **options: object) -> bool:
        """Creates, renames and deletes aliases, all of them or, if one is wrong, none."""
        check_options("update_collection_aliases", options)
        folder = self._opened().folder
        with folder.lock:
            aliases = dict(folder.aliases)
            for operation in change_aliases_operations:
                _apply_alias(operation, aliases, folder)
            folder.write_aliases(aliases)
        return True

    def get_collection_aliases(self, collection_name: str, **options: object) -> models.CollectionsAliasesResponse:
        """The aliases of a collection."""
        every = self.get_aliases(**options).aliases
        return models.CollectionsAliasesResponse(aliases=[a for a in every if a.collection_name == collection_name])

    def get_aliases(self, **options: object) -> models.CollectionsAliasesResponse:
        """All aliases."""
        check_options("get_aliases", options)
        aliases = self._opened().folder.aliases.items()
        return models.CollectionsAliasesResponse(
            aliases=[models.AliasDescription(alias_name=alias, collection_name=name) for alias, name in aliases]
        )

    def create_vector_name(
        self,
        collection_name: str,
        vector_name: str,
        vector_name_config: Any,  # noqa: ANN401
        **options: object,
    ) -> models.UpdateResult:
        """Adds a named vector, which the points do not have yet."""
        check_options("create_vector_name", options)
        config = plain(vector_name_config)
        kind = "dense" if "dense" in config else "sparse"
        check_vector_name(vector_name, kind)
        with self._recording(collection_name) as (name, settings):
            if vector_name in by_name(settings.get("vectors")) or vector_name in settings.get("sparse_vectors", {}):
                raise ValueError(f"collection {name} has a vector {vector_name!r}")
            params = config[kind]
            self._call("create_vector", name, name=vector_name, kind=kind, params=params)
            key = "vectors" if kind == "dense" else "sparse_vectors"
            recorded = params if kind == "dense" else as_created(params)
            settings[key] = {**by_name(settings.get(key)), vector_name: recorded}
        return done()

    def delete_vector_name(self, collection_name: str, vector_name: str, **options: object) -> models.UpdateResult:
        """Removes a named vector from the collection and all its points."""
        check_options("delete_vector_name", options)
        with self._recording(collection_name) as (name, settings):
            self._call("delete_vector", name, name=vector_name)
            for key in ("vectors", "sparse_vectors"):
                if key in settings:
                    settings[key] = {k: v for k, v in by_name(settings[key]).items() if k != vector_name}
        return done()

    def info(self) -> models.VersionInfo:
        """The version of the engine."""
        version = importlib.metadata.version("qdrant-edge-py")
        return models.VersionInfo(title="qdrant-edge", version=version, commit=None)

    def optimize(self, collection_name: str) -> bool:
        """Builds graphs and compressed vectors as the settings say; other threads of this program go on.

        Without it every search compares with every vector, which is exact and fast enough up to about 100 thousand
        points. Other calls to the same store wait until it ends: about half a minute for 20 thousand vectors of
        1024 dimensions on two cores.

        Returns:
            Whether there was anything to build.
        """
        reply, _ = self._call("optimize", collection_name)
        return bool(reply["changed"])

    def flush(self, collection_name: str) -> None:
        """Writes everything to the disk and cuts the log, also for the case that the power fails."""
        self._call("flush", collection_name)


def _check_new_name(name: str, folder: StoreFolder) -> None:
    bad = sorted(set(name) & set(FORBIDDEN))
    if bad:
        raise ValueError(f"Collection name cannot contain {bad[0]!r} char")
    if name in ("", ".", "..") or len(name) > MAX_NAME:
        raise ValueError(f"Collection name cannot be {name[:MAX_NAME]!r}: it is empty, dots, or too long")
    if name in folder.settings:
        raise ValueError(f"Collection {name} already exists")
    if name in folder.aliases:
        raise ValueError(f"Alias {name} already exists")


def _apply_alias(operation: Any, aliases: dict[str, str], folder: StoreFolder) -> None:  # noqa: ANN401
    """One change of aliases, with the errors of local mode."""
    if isinstance(operation, models.CreateAliasOperation):
        create = operation.create_alias
        if create.collection_name not in folder.settings:
            raise ValueError(f"Collection {create.collection_name} not found")
        _check_alias(create.alias_name, folder)
        aliases[create.alias_name] = create.collection_name
    elif isinstance(operation, models.DeleteAliasOperation):
        aliases.pop(operation.delete_alias.alias_name, None)
    elif isinstance(operation, models.RenameAliasOperation):
        rename = operation.rename_alias
        _check_alias(rename.new_alias_name, folder)
        if rename.old_alias_name not in aliases:
            raise ValueError(f"Alias {rename.old_alias_name} does not exist")
        aliases[rename.new_alias_name] = aliases.pop(rename.old_alias_name)
    else:
        raise TypeError(f"{type(operation).__name__} is no alias operation")


def _check_alias(name: str, folder: StoreFolder) -> None:
    if name in folder.settings:
        raise ValueError(f"Collection {name} already exists")
