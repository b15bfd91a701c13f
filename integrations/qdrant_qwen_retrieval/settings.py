"""How a collection is set up: what may be chosen when it is made, and what Qdrant is told then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from qdrant_client import models

from qdrant_qwen_retrieval import bm25
from qdrant_qwen_retrieval.layouts import LayoutName
from qwen_retrieval.ranking import check_count

Quantization = Literal["none", "scalar", "turbo4", "turbo2", "binary"]
"""What the engine searches in: the vectors themselves, or codes of 8, 4, 2 or 1 bit per dimension that it makes of
them. It keeps the vectors too, and rescores with them."""

Datatype = Literal["float32", "float16"]
"""How the engine keeps a number of a vector. Others are not offered: signed int8 in Qdrant's uint8 loses half of the
results without a word (recall@10 0.45 measured on 20,000 vectors), float16 loses none."""

OVERSAMPLING: Mapping[Quantization, float] = {"none": 1.0, "scalar": 2.0, "turbo4": 4.0, "turbo2": 8.0, "binary": 8.0}
"""How many times `limit` the codes propose for rescoring, unless told otherwise.

Without it rescoring only puts the same results in another order. Recall@10 for 1, 2, 4 and 8, of 3,673 English texts in
192 dimensions: scalar .97, 1, 1, 1; turbo4 .92, 1, 1, 1; turbo2 .78, .93, .99, 1; binary .37, .51, .63, .74. See
`benchmarks/README.md`.
"""

STAGE_OVERSAMPLING = 8.0
"""How many times `limit` a search with shorter vectors proposes to the next longer ones, unless told otherwise.

Recall@10 of the same texts for 1, 2, 4 and 8: half the length .58, .75, .86, .94; a quarter .35, .49, .62, .74.
"""

DENSE, SPARSE, UNNAMED = "text-dense", "text-sparse", ""
"""Names of vectors under which the stores of LlamaIndex and Haystack look too (0.10 and 13.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a collection is made with. None of it can be changed afterwards without making it anew.

    Attributes:
        layout: How payloads are written: which framework's own store can read the collection.
        stages: Lengths of shorter vectors to search in first, ascending; () to search in the full ones.
        quantization: See `Quantization`. With `stages` it is applied to the shortest vectors, the only ones with a
            graph.
        datatype: See `Datatype`.
        hybrid: Whether sparse BM25 vectors are stored too.
        language: Of the texts, for stemming and stop words of BM25; None without `hybrid`.
        on_disk: Vectors, payload and payload indexes on the disk, only graph and quantized vectors in memory.
        shard_number: Shards on a cluster; None for the server's default.
        replication_factor: Copies of each shard; None for the server's default.
    """

    layout: LayoutName = "compact"
    stages: tuple[int, ...] = ()
    quantization: Quantization = "none"
    datatype: Datatype = "float32"
    hybrid: bool = False
    language: str | None = None
    on_disk: bool = False
    shard_number: int | None = None
    replication_factor: int | None = None

    @classmethod
    def choose(cls, options: Mapping[str, Any]) -> Settings:
        """The settings of a new collection.

        Args:
            options: By the names above; what is not in it gets the default: with `on_disk` scalar quantization, so that
                something of the vectors is in memory, and with `hybrid` English.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option has an unknown value, or one that does not fit the others.
        """
        defaults: dict[str, Any] = {}
        if options.get("on_disk"):
            defaults["quantization"] = "scalar"
        if options.get("hybrid"):
            defaults["language"] = bm25.DEFAULT_LANGUAGE
        elif options.get("language") is not None:
            raise ValueError("language is for BM25: give it together with hybrid=True")
        return cls(**{**defaults, **options})

    @property
    def dense_name(self) -> str:
        """The name of the full vectors: none at all if there are no others."""
        return DENSE if self.stages or self.hybrid else UNNAMED

    @property
    def searched_name(self) -> str:
        """The name of the vectors that have the graph."""
        return stage_name(self.stages[0]) if self.stages else self.dense_name


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, None left out, each checked for itself and in the form in which it is recorded.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: An option has an unknown value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, choices in (("layout", LayoutName), ("quantization", Quantization), ("datatype", Datatype)):
        if name in given and given[name] not in get_args(choices):
            raise ValueError(f"{name} must be one of {get_args(choices)}, but got {given[name]!r}")
    for name in ("hybrid", "on_disk"):
        if not isinstance(given.get(name, False), bool):
            raise TypeError(f"{name} must be True or False, but got {given[name]!r}")
    for name in ("shard_number", "replication_factor"):
        check_count(given.get(name), name=name, none="the server's default")
    if "stages" in given:
        given["stages"] = _check_stages(given["stages"])
    if "language" in given:
        bm25.load(given["language"])
    return given


def _check_stages(stages: Iterable[int]) -> tuple[int, ...]:
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        raise TypeError(f"stages must be a list of vector lengths, such as [256], but got {stages!r}")
    found = tuple(stages)
    for length in found:
        check_count(length, name="a stage", none="none")
        if length is None:
            raise TypeError("a stage must be an integer, but got None")
    if len(set(found)) != len(found):
        raise ValueError(f"stages must differ from each other, but got {list(found)}")
    return tuple(sorted(found))


def stage_name(length: int) -> str:
    """The name of the vectors of that length."""
    return f"mrl_{length}"


@dataclass(frozen=True, slots=True)
class Schema:
    """What Qdrant is told of the vectors when a collection is made.

    Attributes:
        vectors: The dense ones: one configuration if there is a single, unnamed vector.
        sparse: The sparse ones, or None.
    """

    vectors: models.VectorParams | dict[str, models.VectorParams]
    sparse: dict[str, models.SparseVectorParams] | None = field(default=None)


def schema(settings: Settings, dimensions: int) -> Schema:
    """What Qdrant is told of the vectors.

    With stages, the shortest vectors alone have a graph and are quantized; the others are only read to rescore, as in
    https://qdrant.tech/documentation/concepts/hybrid-queries/#multi-stage-queries.

    Args:
        settings: The collection's.
        dimensions: Length of the full vectors.
    """
    lengths = {stage_name(length): length for length in settings.stages} | {settings.dense_name: dimensions}
    vectors = {
        name: _vector(settings, length, searched=name == settings.searched_name) for name, length in lengths.items()
    }
    if not settings.hybrid:
        return Schema(vectors[UNNAMED] if settings.dense_name == UNNAMED else vectors)
    index = models.SparseIndexParams(on_disk=settings.on_disk)
    return Schema(vectors, {SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF, index=index)})


def _vector(settings: Settings, length: int, *, searched: bool) -> models.VectorParams:
    return models.VectorParams(
        size=length,
        distance=models.Distance.COSINE,
        datatype=None if settings.datatype == "float32" else models.Datatype(settings.datatype),
        on_disk=settings.on_disk or None,  # `memory` replaces it, but servers know that only from 1.19 on
        hnsw_config=None if searched else models.HnswConfigDiff(m=0),
        quantization_config=_quantization(settings.quantization) if searched else None,
    )


def _quantization(quantization: Quantization) -> models.QuantizationConfig | None:
    if quantization == "none":
        return None
    if quantization == "scalar":
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        return models.ScalarQuantization(scalar=scalar)
    if quantization == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    bits = models.TurboQuantBitSize.BITS4 if quantization == "turbo4" else models.TurboQuantBitSize.BITS2
    return models.TurboQuantization(turbo=models.TurboQuantQuantizationConfig(bits=bits, always_ram=True))


INDEX_TYPES: Mapping[str, Any] = {
    "keyword": models.KeywordIndexParams,
    "integer": models.IntegerIndexParams,
    "float": models.FloatIndexParams,
    "bool": models.BoolIndexParams,
    "datetime": models.DatetimeIndexParams,
    "text": models.TextIndexParams,
    "uuid": models.UuidIndexParams,
    "geo": models.GeoIndexParams,
}
"""What a field of the metadata can be indexed as."""


def check_indexed_fields(indexed_fields: Mapping[str, str] | None) -> dict[str, str]:
    """Fields to index, checked.

    Raises:
        TypeError: It is no mapping of strings.
        ValueError: A type is unknown.
    """
    if indexed_fields is not None and not isinstance(indexed_fields, Mapping):
        raise TypeError(f'indexed_fields must be like {{"year": "integer"}}, but got {indexed_fields!r}')
    for name, kind in (indexed_fields or {}).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"indexed_fields must have names of fields as keys, but got {name!r}")
        if kind not in INDEX_TYPES:
            raise ValueError(f"indexed_fields[{name!r}] must be one of {', '.join(INDEX_TYPES)}, but got {kind!r}")
    return dict(indexed_fields or {})


def index_params(kind: str, *, on_disk: bool) -> Any:  # noqa: ANN401
    """What Qdrant is told of an index of that kind."""
    return INDEX_TYPES[kind](type=kind, on_disk=True) if on_disk else models.PayloadSchemaType(kind)


FIELDS: tuple[str, ...] = tuple(one.name for one in fields(Settings))
"""The names of all settings."""
