"""Queries, as the REST interface of Qdrant writes them, into those of qdrant-edge.

A query may name points instead of vectors. Their vectors are looked up here, and the points themselves are left out of
the result, as the server does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import qdrant_edge as edge

from .filters import Json, Native, geo_point, to_condition, to_filter
from .settings import member
from .wire import Words, is_reference, unpack_dense, unpack_sparse

RRF_K = 2
"""The server's constant of reciprocal rank fusion. Source: DEFAULT_RRF_K in qdrant/qdrant 1.19."""
DEFAULT_LIMIT = 10
DEFAULT_DIVERSITY = 0.5
LookUp = Callable[[str | int, str], Native]
"""The vector of a point, by the point's id and the vector's name."""


def to_vector(reference: Json, words: Words) -> Native:
    """A vector that a message refers to, as qdrant_edge reads it fastest: lists."""
    if "indices" in reference:
        return edge.SparseVector(reference["indices"], reference["values"])
    if "nnz" in reference:
        indices, values = unpack_sparse(dict(reference), words)
        return edge.SparseVector(indices.tolist(), values.tolist())
    return unpack_dense(dict(reference), words).tolist()


def to_params(value: Json | None) -> edge.SearchParams | None:
    """How to search."""
    if value is None:
        return None
    params = dict(value)
    if "quantization" in params:
        params["quantization"] = edge.QuantizationSearchParams(**params["quantization"])
    if "acorn" in params:
        params["acorn"] = edge.AcornSearchParams(**params["acorn"])
    if "idf" in params:
        params["idf"] = edge.IdfParams(to_filter(params["idf"].get("corpus")))
    return edge.SearchParams(**params)


def to_order(value: str | Json) -> edge.OrderBy:
    """By which payload field to order."""
    if isinstance(value, str):
        return edge.OrderBy(value)
    direction = value.get("direction")
    return edge.OrderBy(value["key"], direction and member(edge.Direction, direction), value.get("start_from"))


@dataclass
class QueryReader:
    """Reads the queries of one message.

    Attributes:
        words: The numbers of the message.
        searched: The shard that is searched.
        look_up: Gives a lookup for a shard.
    """

    words: Words
    searched: str
    look_up: Callable[[str], LookUp]

    def request(self, value: Json) -> edge.QueryRequest:
        """A whole query, with what is to be fetched before it."""
        query, excluded = self._query(value)
        return edge.QueryRequest(
            limit=value.get("limit", DEFAULT_LIMIT),
            offset=value.get("offset"),
            query=query,
            prefetches=self._prefetches(value),
            filter=_without(value.get("filter"), excluded),
            score_threshold=value.get("score_threshold"),
            params=to_params(value.get("params")),
            with_payload=to_payload_selector(value.get("with_payload")),
            with_vector=value.get("with_vector"),
        )

    def _prefetches(self, value: Json) -> list[edge.Prefetch] | None:
        prefetch = value.get("prefetch")
        return [self._prefetch(item) for item in prefetch] if prefetch else None

    def _prefetch(self, value: Json) -> edge.Prefetch:
        query, excluded = self._query(value)
        return edge.Prefetch(
            limit=value.get("limit", DEFAULT_LIMIT),
            query=query,
            prefetches=self._prefetches(value),
            filter=_without(value.get("filter"), excluded),
            score_threshold=value.get("score_threshold"),
            params=to_params(value.get("params")),
        )

    def _query(self, value: Json) -> tuple[Native, set[str | int]]:
        query = value.get("query")
        if query is None:
            return None, set()
        lookup = value.get("lookup_from") or {}
        named_in = lookup.get("shard", self.searched)
        vectors = _Vectors(self.words, self.look_up(named_in), str(lookup.get("vector", value.get("using", ""))))
        for name, make in _QUERIES.items():
            if name in query:
                native = make(vectors, query, value)
                return native, vectors.named if named_in == self.searched else set()
        raise NotImplementedError(f"the embedded engine has no query {sorted(query)}; use a Qdrant server")


@dataclass
class _Vectors:
    """The vectors that one query is made of; remembers which points were named."""

    words: Words
    look_up: LookUp
    vector_name: str
    named: set[str | int] = field(default_factory=set)

    def __call__(self, value: Any) -> Native:  # noqa: ANN401 - an id, a reference, or a sparse vector
        if isinstance(value, str | int):
            self.named.add(value)
            return self.look_up(value, self.vector_name)
        if is_reference(value) or "indices" in value:
            return to_vector(value, self.words)
        raise NotImplementedError(f"the embedded engine cannot query by {sorted(value)}; pass a vector")


def _nearest(vectors: _Vectors, query: Json, request: Json) -> Native:
    vector, mmr = vectors(query["nearest"]), query.get("mmr")
    if mmr is None:
        return edge.Query.Nearest(vector, request.get("using"))
    diversity = mmr.get("diversity", DEFAULT_DIVERSITY)
    candidates = mmr.get("candidates_limit") or request.get("limit", DEFAULT_LIMIT)
    return edge.Mmr(vector, 1.0 - diversity, candidates, request.get("using"))


def _recommend(vectors: _Vectors, query: Json, request: Json) -> Native:
    recommend, using = query["recommend"], request.get("using")
    positive = [vectors(item) for item in recommend.get("positive") or ()]
    negative = [vectors(item) for item in recommend.get("negative") or ()]
    strategy = recommend.get("strategy", "average_vector")
    if strategy == "average_vector":
        return edge.Query.Nearest(_average(positive, negative), using)
    examples = edge.RecommendQuery(positives=positive, negatives=negative)
    if strategy == "best_score":
        return edge.Query.RecommendBestScore(examples, using)
    return edge.Query.RecommendSumScores(examples, using)


def _average(positive: list[Native], negative: list[Native]) -> Native:
    """Twice the mean of what is wanted less the mean of what is not, as the server computes it."""
    if not positive:
        raise ValueError(
            "recommend by average_vector needs at least one positive example; give one, or take best_score"
        )
    if any(isinstance(item, edge.SparseVector) or np.ndim(item) != 1 for item in positive + negative):
        raise NotImplementedError(
            "the embedded engine averages dense vectors only; take the strategy best_score or sum_scores"
        )
    wanted = np.mean(np.asarray(positive, dtype=np.float32), axis=0)  # (d)
    if not negative:
        return wanted.tolist()
    return (wanted + wanted - np.mean(np.asarray(negative, dtype=np.float32), axis=0)).tolist()


def _discover(vectors: _Vectors, query: Json, request: Json) -> Native:
    discover = query["discover"]
    pairs = _pairs(vectors, discover.get("context") or [])
    return edge.Query.Discover(edge.DiscoverQuery(vectors(discover["target"]), pairs), request.get("using"))


def _context(vectors: _Vectors, query: Json, request: Json) -> Native:
    return edge.Query.Context(edge.ContextQuery(_pairs(vectors, query["context"])), request.get("using"))


def _pairs(vectors: _Vectors, value: list[Json] | Json) -> list[edge.ContextPair]:
    items = value if isinstance(value, list) else [value]
    return [edge.ContextPair(vectors(item["positive"]), vectors(item["negative"])) for item in items]


def _feedback(vectors: _Vectors, query: Json, request: Json) -> Native:
    feedback = query["relevance_feedback"]
    items = [edge.FeedbackItem(vectors(item["example"]), item["score"]) for item in feedback["feedback"]]
    strategy = edge.NaiveFeedbackStrategy(**feedback["strategy"]["naive"])
    naive = edge.FeedbackNaiveQuery(vectors(feedback["target"]), items, strategy)
    return edge.Query.FeedbackNaive(naive, request.get("using"))


def _fusion(_vectors: _Vectors, query: Json, _request: Json) -> Native:
    return edge.Fusion.Rrf(RRF_K) if query["fusion"] == "rrf" else edge.Fusion.Dbsf()


def _rrf(_vectors: _Vectors, query: Json, _request: Json) -> Native:
    return edge.Fusion.Rrf(query["rrf"].get("k") or RRF_K, query["rrf"].get("weights"))


def _formula(_vectors: _Vectors, query: Json, _request: Json) -> Native:
    return edge.Formula(to_expression(query["formula"]), query.get("defaults") or {})


def _text(_vectors: _Vectors, query: Json, request: Json) -> Native:
    text: Any = query["text"]
    asked: Json = {"query": text} if isinstance(text, str) else text
    scoring = asked.get("scoring")
    if scoring is not None:
        scoring = edge.Bm25Params(**{key: value for key, value in scoring.items() if key in ("k", "b")})
    return edge.TextQuery(request["using"], asked["query"], scoring)


_QUERIES: Mapping[str, Callable[[_Vectors, Json, Json], Native]] = {
    "nearest": _nearest,
    "recommend": _recommend,
    "discover": _discover,
    "context": _context,
    "relevance_feedback": _feedback,
    "fusion": _fusion,
    "rrf": _rrf,
    "formula": _formula,
    "text": _text,
    "order_by": lambda _vectors, query, _request: to_order(query["order_by"]),
    "sample": lambda _vectors, query, _request: member(edge.Sample, query["sample"]),
}

_LISTS = {
    "mult": edge.Expression.Mult,
    "sum": edge.Expression.Sum,
    "max": edge.Expression.Max,
    "min": edge.Expression.Min,
}
_UNARY = {
    "neg": edge.Expression.Neg,
    "abs": edge.Expression.Abs,
    "sqrt": edge.Expression.Sqrt,
    "exp": edge.Expression.Exp,
    "log10": edge.Expression.Log10,
    "ln": edge.Expression.Ln,
    "acosh": edge.Expression.Acosh,
}
_DECAYS = {"lin_decay": edge.DecayKind.Lin, "exp_decay": edge.DecayKind.Exp, "gauss_decay": edge.DecayKind.Gauss}


def to_expression(value: Any) -> Native:  # noqa: ANN401 - a number, a name, or a dict
    """A formula; a dict of no known kind is a condition."""
    if isinstance(value, int | float):
        return edge.Expression.Constant(float(value))
    if isinstance(value, str):
        return edge.Expression.Variable(value)
    ((name, content), *others) = value.items()
    if others or name not in _EXPRESSIONS:
        return edge.Expression.Condition(to_condition(value))
    return _EXPRESSIONS[name](content)


def _of_list(make: Native, value: list[Any]) -> Native:
    return make([to_expression(item) for item in value])


def _of_one(make: Native, value: Any) -> Native:  # noqa: ANN401 - an expression
    return make(to_expression(value))


def _decay(kind: Native, value: Json) -> Native:
    target = value.get("target")
    return edge.Expression.Decay(
        kind=kind,
        x=to_expression(value["x"]),
        target=None if target is None else to_expression(target),
        midpoint=value.get("midpoint"),
        scale=value.get("scale"),
    )


def _divide(value: Json) -> Native:
    left, right = to_expression(value["left"]), to_expression(value["right"])
    return edge.Expression.Div(left, right, value.get("by_zero_default"))


_EXPRESSIONS: Mapping[str, Callable[[Any], Native]] = {
    **{name: partial(_of_list, make) for name, make in _LISTS.items()},
    **{name: partial(_of_one, make) for name, make in _UNARY.items()},
    **{name: partial(_decay, kind) for name, kind in _DECAYS.items()},
    "div": _divide,
    "pow": lambda value: edge.Expression.Pow(to_expression(value["base"]), to_expression(value["exponent"])),
    "geo_distance": lambda value: edge.Expression.GeoDistance(geo_point(value["origin"]), value["to"]),
    "datetime": edge.Expression.Datetime,
    "datetime_key": edge.Expression.DatetimeKey,
}


def to_payload_selector(value: Any) -> Native:  # noqa: ANN401 - a bool, names, or a dict
    """Which fields of the payload to return."""
    if not isinstance(value, dict):
        return value
    if "include" in value:
        return edge.PayloadSelector.Include(value["include"])
    return edge.PayloadSelector.Exclude(value["exclude"])


def _without(value: Json | None, excluded: set[str | int]) -> edge.Filter | None:
    native = to_filter(value)
    if not excluded:
        return native
    return edge.Filter(must=None if native is None else [native], must_not=[edge.HasIdCondition(set(excluded))])
