"""The settings of collections as a server keeps them: defaults, what is given at creation, and changes merged in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from qdrant_client import models

# The server's defaults, config/config.yaml of 1.19: a server's own, so nobody may rely on other numbers.
HNSW = models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=0)
OPTIMIZERS = models.OptimizersConfig(
    deleted_threshold=0.2,
    vacuum_min_vector_number=1000,
    default_segment_number=0,
    indexing_threshold=10_000,
    flush_interval_sec=5,
)
WAL = models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0, wal_retain_closed=1)

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class UnknownVectorError(Exception):
    """A change of a vector that the collection does not have."""


class Settings:
    """Settings and payload indexes by collection.

    Args:
        file: Where they survive the process; None keeps them in memory.
    """

    def __init__(self, file: Path | None) -> None:
        self.configs: dict[str, models.CollectionConfig] = {}
        self.indexes: dict[str, dict[str, models.PayloadIndexInfo]] = {}
        self._file = file
        self._load()

    def forget(self, name: str) -> None:
        """The collection is gone."""
        self.configs.pop(name, None)
        self.indexes.pop(name, None)

    def _load(self) -> None:
        if self._file is None or not self._file.exists():
            return
        for name, kept in json.loads(self._file.read_text(encoding="utf-8")).items():
            self.configs[name] = models.CollectionConfig.model_validate(kept["config"])
            self.indexes[name] = {
                field: models.PayloadIndexInfo.model_validate(index) for field, index in kept["indexes"].items()
            }

    def save(self) -> None:
        """Put them into the file, whole or not at all."""
        if self._file is None:
            return
        kept = {
            name: {
                "config": _plain(config),
                "indexes": {field: _plain(index) for field, index in self.indexes.get(name, {}).items()},
            }
            for name, config in self.configs.items()
        }
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(self._file)


def _plain(model: BaseModel) -> object:
    return model.model_dump(mode="json", exclude_none=True)


def first_config(body: models.CreateCollection) -> models.CollectionConfig:
    """Of a new collection."""
    params = {
        name: value for name in models.CollectionParams.model_fields if (value := getattr(body, name, None)) is not None
    }
    strict = body.strict_mode_config
    return models.CollectionConfig(
        params=models.CollectionParams(**params),
        hnsw_config=merged(HNSW, body.hnsw_config),
        optimizer_config=merged(OPTIMIZERS, body.optimizers_config),
        wal_config=merged(WAL, body.wal_config),
        quantization_config=body.quantization_config,
        strict_mode_config=models.StrictModeConfigOutput(**strict.model_dump()) if strict else None,
        metadata=body.metadata,
    )


def update(config: models.CollectionConfig, body: models.UpdateCollection) -> None:
    """Merge a change of everything but the metadata."""
    update_vectors(config.params, body.vectors or {})
    config.params = merged(config.params, body.params)
    if body.sparse_vectors:
        config.params.sparse_vectors = {**(config.params.sparse_vectors or {}), **body.sparse_vectors}
    config.optimizer_config = merged(config.optimizer_config, body.optimizers_config)
    config.hnsw_config = merged(config.hnsw_config, body.hnsw_config)
    if isinstance(body.quantization_config, models.Disabled):
        config.quantization_config = None
    elif body.quantization_config is not None:
        config.quantization_config = body.quantization_config


def merged(current: AnyModel, change: BaseModel | None) -> AnyModel:
    """What a server makes of a diff: what is not given stays."""
    given = {key: value for key, value in change or () if value is not None}
    return current.model_copy(update=given, deep=True)


def update_vectors(params: models.CollectionParams, changes: Mapping[str, models.VectorParamsDiff]) -> None:
    """Merge changes of single vectors.

    Raises:
        UnknownVectorError: There is no vector of that name.
    """
    vectors = params.vectors
    for name, change in changes.items():
        known = vectors if isinstance(vectors, Mapping) else {"": vectors} if vectors else {}
        if name not in known:
            raise UnknownVectorError(f"Wrong input: Not existing vector name error: {name}")
        update = merged(known[name], change)
        if isinstance(change.quantization_config, models.Disabled):
            update.quantization_config = None
        if change.hnsw_config is not None:
            update.hnsw_config = merged(known[name].hnsw_config or models.HnswConfigDiff(), change.hnsw_config)
        if isinstance(vectors, dict):
            vectors[name] = update
        else:
            params.vectors = update


def indexed_vectors(config: models.CollectionConfig, points: int) -> int:
    """How many vectors are in a graph: those of segments larger than the threshold, which is in KB."""
    vectors = config.params.vectors or {}
    sizes = [vector.size for vector in vectors.values()] if isinstance(vectors, Mapping) else [vectors.size]
    threshold = config.optimizer_config.indexing_threshold or 0
    return sum(points for size in sizes if 0 < threshold <= points * size * 4 // 1024)
