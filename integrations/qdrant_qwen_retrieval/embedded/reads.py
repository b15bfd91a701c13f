"""Reading points: the part of the backend that searches and fetches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models
from qdrant_client.conversions import common_types as types  # models.QueryResponse is another class

from qdrant_qwen_retrieval.embedded.backend import EdgeBase, Json
from qdrant_qwen_retrieval.embedded.edge_process.wire import Packer
from qdrant_qwen_retrieval.embedded.messages import check_options, plain, query_json
from qdrant_qwen_retrieval.embedded.vectors import plain_id, record, scored_point

PAGE = 1_000  # points in one message, so that neither process holds all of a long answer twice


class ReadsMixin(EdgeBase):
    """Searches and fetches. `consistency` and `timeout` change nothing."""

    def query_points(
        self,
        collection_name: str,
        query: Any = None,  # noqa: ANN401 - a vector, an id, or one of the models of queries
        using: str | None = None,
        prefetch: models.Prefetch | list[models.Prefetch] | None = None,
        query_filter: models.Filter | None = None,
        search_params: models.SearchParams | None = None,
        limit: int = 10,
        offset: int | None = None,
        with_payload: Any = True,  # noqa: ANN401
        with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None,
        lookup_from: models.LookupLocation | None = None,
        **options: object,
    ) -> types.QueryResponse:
        """The points nearest to a vector, or as the query says."""
        check_options("query_points", options)
        request = models.QueryRequest.model_construct(
            query=query,
            using=using,
            prefetch=prefetch,
            filter=query_filter,
            params=search_params,
            limit=limit,
            offset=offset,
            with_payload=with_payload,
            with_vector=with_vectors,
            score_threshold=score_threshold,
            lookup_from=lookup_from,
        )
        return self.query_batch_points(collection_name, [request])[0]

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest], **options: object
    ) -> list[types.QueryResponse]:
        """Several queries in one pass over the collection."""
        check_options("query_batch_points", options)
        packer = Packer()
        queries = [self._query(request, packer) for request in requests]
        reply, words = self._call("query", collection_name, packer, queries=queries)
        results = [[scored_point(point, words) for point in points] for points in reply["results"]]
        return [types.QueryResponse(points=points) for points in results]

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        order_by: Any = None,  # noqa: ANN401
        offset: Any = None,  # noqa: ANN401
        with_payload: Any = True,  # noqa: ANN401
        with_vectors: bool | Sequence[str] = False,
        **options: object,
    ) -> tuple[list[models.Record], Any]:
        """Points in the order of their ids, or of an indexed field, and where the next page begins (None: nowhere)."""
        check_options("scroll", options)
        if limit < 1:
            raise ValueError(f"limit value {limit} is invalid. Must be 1 or larger.")
        arguments: Json = {
            "filter": plain(scroll_filter),
            "order_by": plain(order_by),
            "with_payload": plain(with_payload),
            "with_vector": with_vectors,
        }
        page = limit if order_by is not None else PAGE  # only pages in the order of ids can be continued
        records: list[models.Record] = []
        following = None if offset is None else plain_id(offset)
        while True:
            size = min(page, limit - len(records))
            reply, words = self._call("scroll", collection_name, limit=size, offset=following, **arguments)
            records += [record(item, words) for item in reply["records"]]
            following = reply["next"]
            if following is None or len(records) >= limit:
                return records, following

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[Any],
        with_payload: Any = True,  # noqa: ANN401
        with_vectors: bool | Sequence[str] = False,
        **options: object,
    ) -> list[models.Record]:
        """The points with these ids that exist, in this order."""
        check_options("retrieve", options)
        wanted = [plain_id(item) for item in ids]
        records: dict[Any, models.Record] = {}
        for start in range(0, len(wanted), PAGE):
            reply, words = self._call(
                "retrieve",
                collection_name,
                ids=wanted[start : start + PAGE],
                with_payload=plain(with_payload),
                with_vector=with_vectors,
            )
            records |= {item["id"]: record(item, words) for item in reply["records"]}
        return [records[item] for item in wanted if item in records]

    def count(
        self, collection_name: str, count_filter: models.Filter | None = None, exact: bool = True, **options: object
    ) -> models.CountResult:
        """How many points match."""
        check_options("count", options)
        reply, _ = self._call("count", collection_name, filter=plain(count_filter), exact=exact)
        return models.CountResult(count=reply["count"])

    def facet(
        self,
        collection_name: str,
        key: str,
        facet_filter: models.Filter | None = None,
        limit: int = 10,
        exact: bool = False,
        **options: object,
    ) -> models.FacetResponse:
        """How often each value of an indexed payload field occurs, the most frequent first."""
        check_options("facet", options)
        if limit < 1:
            raise ValueError(f"limit value {limit} is invalid. Must be 1 or larger.")
        reply, _ = self._call("facet", collection_name, key=key, filter=plain(facet_filter), limit=limit, exact=exact)
        return models.FacetResponse(hits=[models.FacetValueHit(**hit) for hit in reply["hits"]])

    def _query(self, request: models.QueryRequest, packer: Packer) -> Json:
        if request.limit is not None and request.limit < 1:
            raise ValueError(f"limit value {request.limit} is invalid. Must be 1 or larger.")
        value = query_json(request, packer, self._shard)
        value["with_payload"] = plain(request.with_payload)
        value["with_vector"] = request.with_vector
        return value
