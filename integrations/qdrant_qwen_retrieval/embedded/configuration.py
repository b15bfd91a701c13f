"""Settings of collections, in the JSON of the REST interface: checked, merged and described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from qdrant_client import models

from qdrant_qwen_retrieval.embedded.messages import plain
from qdrant_qwen_retrieval.embedded.vectors import by_name, is_unnamed

Json = dict[str, Any]
FORBIDDEN = '<>:"/\\|?*\0\x1f'  # in names, by the server; source: INVALID_NAME_CHARS in qdrant-client 1.20
MAX_SIZE = 65_536
DEFAULT_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
DEFAULT_OPTIMIZERS = {"default_segment_number": 0, "flush_interval_sec": 5, "indexing_threshold": 10_000}
DEFAULT_WAL = {"wal_capacity_mb": 32, "wal_segments_ahead": 0}
PARAMS = (
    "vectors",
    "sparse_vectors",
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "on_disk_payload",
    "payload",
    "id_tracker",
)


def validated(kind: type[BaseModel], request: Mapping[str, Any]) -> Json:
    """Settings as REST would take them; unknown ones are refused by the model."""
    given = {name: _plain_nested(value) for name, value in request.items() if value is not None}
    value: Json = plain(kind(**given))
    return value


def _plain_nested(value: Any) -> Any:  # noqa: ANN401
    """Models, and models by name, as JSON."""
    return {name: plain(item) for name, item in value.items()} if isinstance(value, Mapping) else plain(value)


def as_created(params: Json) -> Json:
    """Settings of a vector that is added, as they are written for one that is there from the start."""
    index = {key: value for key, value in params.items() if key == "datatype"}
    return {**{key: value for key, value in params.items() if key == "modifier"}, **({"index": index} if index else {})}


def check_settings(settings: Json) -> None:
    """Refuses what local mode and the server refuse, and what would change results and is not here.

    Raises:
        ValueError: A name or a size is not allowed.
        NotImplementedError: Shard keys or strict mode.
    """
    for name, params in by_name(settings.get("vectors")).items():
        check_vector_name(name, "dense")
        if not 1 <= params["size"] <= MAX_SIZE:
            raise ValueError(f"Vector size {params['size']} is invalid. Must be from 1 to {MAX_SIZE}.")
    for name in settings.get("sparse_vectors") or ():
        check_vector_name(name, "sparse")
    if settings.get("sharding_method") == "custom":
        raise NotImplementedError("an embedded store has no shard keys; use a Qdrant server for sharding_method=custom")
    if (settings.get("strict_mode_config") or {}).get("enabled"):
        raise NotImplementedError("an embedded store has no strict mode; use a Qdrant server for strict_mode_config")


def check_vector_name(name: str, kind: str) -> None:
    """Refuses a name that no server would take.

    Raises:
        ValueError: It is not allowed.
    """
    if name in (".", "..") or set(name) & set(FORBIDDEN) or len(name.encode()) > 200 or (kind == "sparse" and not name):
        raise ValueError(f"Invalid {kind} vector name {name!r}: by the server's rules it is not allowed")


def merged(settings: Json, changes: Json) -> Json:
    """Settings with changes, as the server merges them."""
    if "strict_mode_config" in changes:
        raise NotImplementedError("an embedded store has no strict mode; use a Qdrant server for strict_mode_config")
    merged = {**settings, **changes.get("params", {})}
    for name in ("hnsw_config", "optimizers_config"):
        if name in changes:
            merged[name] = {**settings.get(name, {}), **changes[name]}
    for name in ("vectors", "sparse_vectors"):
        if name in changes:
            merged[name] = _merged_vectors(settings.get(name), changes[name])
    if "quantization_config" in changes:
        merged["quantization_config"] = _quantization(changes["quantization_config"])
    return merged


def _merged_vectors(vectors: Json | None, changes: Json) -> Json:
    named = by_name(vectors)
    for name, change in changes.items():
        if name not in named:
            raise ValueError(f"Wrong input: Not existing vector name error: {name}")
        if "quantization_config" in change:
            _quantization(change["quantization_config"])
        hnsw = {**named[name].get("hnsw_config", {}), **change.get("hnsw_config", {})}
        named[name] = {**named[name], **change, **({"hnsw_config": hnsw} if hnsw else {})}
    return named[""] if vectors is not None and is_unnamed(vectors) else named


def _quantization(value: Any) -> Any:  # noqa: ANN401
    if value == models.Disabled.DISABLED.value:
        raise NotImplementedError(
            "the embedded engine cannot turn quantization off; create another collection, or search with "
            "models.QuantizationSearchParams(ignore=True)"
        )
    return value


def merged_metadata(old: Json | None, new: Json) -> Json:
    """Metadata with changes: a key that is changed to None goes."""
    kept = {key: value for key, value in (old or {}).items() if key not in new}
    return kept | {key: value for key, value in new.items() if value is not None}


def describe(settings: Json) -> models.CollectionConfig:
    """Settings as `get_collection` gives them, with the defaults of what is not set."""
    params = {name: settings[name] for name in PARAMS if name in settings}
    return models.CollectionConfig(
        params=models.CollectionParams(**params),
        hnsw_config=models.HnswConfig(**{**DEFAULT_HNSW, **settings.get("hnsw_config", {})}),
        optimizer_config=models.OptimizersConfig(**{**DEFAULT_OPTIMIZERS, **_optimizers(settings)}),
        wal_config=models.WalConfig(**{**DEFAULT_WAL, **settings.get("wal_config", {})}),
        quantization_config=settings.get("quantization_config"),
        metadata=settings.get("metadata"),
    )


def _optimizers(settings: Json) -> Json:
    given = dict(settings.get("optimizers_config", {}))
    if not isinstance(given.get("max_optimization_threads", 0), int):
        del given["max_optimization_threads"]  # "auto"
    return given
