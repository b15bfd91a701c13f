"""Settings of a collection, as the REST interface of Qdrant writes them, into those of qdrant-edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qdrant_edge as edge

HNSW_DEFAULTS: Mapping[str, int] = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
"""Of the server. Source: config/config.yaml in qdrant/qdrant 1.19."""
OPTIMIZERS = (
    "deleted_threshold",
    "vacuum_min_vector_number",
    "default_segment_number",
    "max_segment_size",
    "indexing_threshold",
    "prevent_unoptimized",
)
QUANTIZATIONS: Mapping[str, tuple[type, Mapping[str, type]]] = {
    "scalar": (edge.ScalarQuantizationConfig, {"type": edge.ScalarType}),
    "product": (edge.ProductQuantizationConfig, {"compression": edge.CompressionRatio}),
    "binary": (
        edge.BinaryQuantizationConfig,
        {"encoding": edge.BinaryQuantizationEncoding, "query_encoding": edge.BinaryQuantizationQueryEncoding},
    ),
    "turbo": (edge.TurboQuantQuantizationConfig, {"bits": edge.TurboQuantBitSize}),
}
INDEXES: Mapping[str, type] = {
    "keyword": edge.KeywordIndexParams,
    "integer": edge.IntegerIndexParams,
    "float": edge.FloatIndexParams,
    "geo": edge.GeoIndexParams,
    "text": edge.TextIndexParams,
    "bool": edge.BoolIndexParams,
    "datetime": edge.DatetimeIndexParams,
    "uuid": edge.UuidIndexParams,
}


def member(kind: type, value: str) -> Any:  # noqa: ANN401 - the enums of qdrant_edge have no common type
    """The member of an enum of qdrant_edge that REST calls `value`, such as "one_and_half_bits".

    Raises:
        NotImplementedError: This version of qdrant-edge has no such member.
    """
    wanted = value.replace("_", "").lower()
    for name in dir(kind):
        if not name.startswith("_") and name.replace("_", "").lower() == wanted:
            return getattr(kind, name)
    raise NotImplementedError(f"the embedded engine has no {kind.__name__} {value!r}; use a Qdrant server")


def shard_config(settings: Mapping[str, Any]) -> edge.EdgeConfig:
    """The settings of ``PUT /collections/{name}`` for a shard."""
    general = settings.get("hnsw_config") or {}
    vectors = settings.get("vectors") or {}
    named = {"": vectors} if isinstance(vectors.get("size"), int) else vectors
    return edge.EdgeConfig(
        vectors={name: dense_params(params, general) for name, params in named.items()},
        sparse_vectors={name: sparse_params(params) for name, params in (settings.get("sparse_vectors") or {}).items()},
        on_disk_payload=settings.get("on_disk_payload"),
        hnsw_config=hnsw(general, {}),
        quantization_config=quantization(settings.get("quantization_config")),
        optimizers=optimizers(settings.get("optimizers_config") or {}),
        payload_memory=memory(settings.get("payload") or {}),
        id_tracker_memory=memory(settings.get("id_tracker") or {}),
    )


def dense_params(params: Mapping[str, Any], general: Mapping[str, Any]) -> edge.EdgeVectorParams:
    """One dense vector; its own HNSW settings go before those of the collection."""
    own = params.get("hnsw_config")
    return edge.EdgeVectorParams(
        size=params["size"],
        distance=member(edge.Distance, params["distance"]),
        on_disk=params.get("on_disk"),
        multivector_config=multivector(params.get("multivector_config")),
        datatype=datatype(params.get("datatype")),
        quantization_config=quantization(params.get("quantization_config")),
        hnsw_config=hnsw(own, general) if own else None,
        memory=memory(params),
    )


def sparse_params(params: Mapping[str, Any]) -> edge.EdgeSparseVectorParams:
    """One sparse vector."""
    index = params.get("index") or {}
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=index.get("full_scan_threshold"),
        on_disk=index.get("on_disk"),
        modifier=modifier(params.get("modifier")),
        datatype=datatype(index.get("datatype")),
        memory=memory(index),
    )


def modifier(value: str | None) -> edge.Modifier | None:
    """What sparse queries are multiplied with; "none" is nothing."""
    return None if value in (None, "none") else member(edge.Modifier, value)


def multivector(config: Mapping[str, Any] | None) -> edge.MultiVectorConfig | None:
    """How several vectors of one point are compared."""
    return None if config is None else edge.MultiVectorConfig(member(edge.MultiVectorComparator, config["comparator"]))


def datatype(value: str | None) -> edge.VectorStorageDatatype | None:
    """What the numbers of a vector are stored as."""
    return None if value is None else member(edge.VectorStorageDatatype, value)


def memory(params: Mapping[str, Any]) -> edge.Memory | None:
    """Where a component is held."""
    value = params.get("memory")
    return None if value is None else member(edge.Memory, value)


def hnsw(config: Mapping[str, Any], general: Mapping[str, Any]) -> edge.HnswIndexConfig:
    """Settings of the graph, filled up from the general ones and the defaults."""
    merged = {**HNSW_DEFAULTS, **general, **config}
    return edge.HnswIndexConfig(**{**merged, "memory": memory(merged)})


def optimizers(config: Mapping[str, Any]) -> edge.EdgeOptimizersConfig:
    """When `optimize` does what; the settings of a server's background work have no meaning here."""
    return edge.EdgeOptimizersConfig(**{key: config[key] for key in OPTIMIZERS if key in config})


def quantization(config: Mapping[str, Any] | None) -> Any:  # noqa: ANN401 - one of four types
    """How vectors are compressed for the search."""
    if config is None:
        return None
    ((name, params),) = config.items()
    if name not in QUANTIZATIONS:
        raise NotImplementedError(f"the embedded engine has no {name!r} quantization; use a Qdrant server")
    kind, enums = QUANTIZATIONS[name]
    values = {key: member(enums[key], value) if key in enums else value for key, value in params.items()}
    return kind(**{**values, "memory": memory(params)})


def index_schema(schema: str | Mapping[str, Any]) -> Any:  # noqa: ANN401 - one of nine types
    """What a payload index is made for: "keyword", or ``{"type": "keyword", "is_tenant": true}``."""
    if isinstance(schema, str):
        return member(edge.PayloadSchemaType, schema)
    params = dict(schema)
    kind = params.pop("type")
    if kind == "text":
        params = _text_params(params)
    return INDEXES[kind](**{**params, "memory": memory(params)})


def _text_params(params: dict[str, Any]) -> dict[str, Any]:
    if "tokenizer" in params:
        params["tokenizer"] = member(edge.TokenizerType, params["tokenizer"])
    if "stopwords" in params:
        params["stopwords"] = _stopwords(params["stopwords"])
    if isinstance(stemmer := params.get("stemmer"), dict):
        params["stemmer"] = (
            edge.DisabledStemmer()
            if stemmer["type"] == "none"
            else edge.SnowballParams(member(edge.SnowballLanguage, stemmer["language"]))
        )
    if isinstance(scoring := params.get("scoring"), dict):
        params["scoring"] = edge.TextScoringParams(member(edge.TextScoringType, scoring["type"]))
    return params


def _stopwords(value: str | dict[str, Any]) -> Any:  # noqa: ANN401 - one of two types
    if isinstance(value, str):
        return member(edge.Language, value)
    languages = {member(edge.Language, name) for name in value.get("languages") or ()}
    return edge.StopwordsSet(languages=languages or None, custom=set(value.get("custom") or ()) or None)
