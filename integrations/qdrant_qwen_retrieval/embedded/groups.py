"""Search in groups, which qdrant-edge does not have: by reading down the ranking until the groups are full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import models
from qdrant_client.local.payload_value_extractor import value_by_key

from qdrant_qwen_retrieval.embedded.messages import check_options
from qdrant_qwen_retrieval.embedded.reads import ReadsMixin

GROWTH = 4  # how many times further down the ranking the next attempt reads


class GroupsMixin(ReadsMixin):
    """Groups of points that share a value of a payload field."""

    def query_points_groups(
        self,
        collection_name: str,
        group_by: str,
        query: Any = None,  # noqa: ANN401 - as for `query_points`
        using: str | None = None,
        prefetch: models.Prefetch | list[models.Prefetch] | None = None,
        query_filter: models.Filter | None = None,
        search_params: models.SearchParams | None = None,
        limit: int = 10,
        group_size: int = 3,
        with_payload: Any = True,  # noqa: ANN401
        with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None,
        with_lookup: str | models.WithLookup | None = None,
        lookup_from: models.LookupLocation | None = None,
        **options: object,
    ) -> models.GroupsResult:
        """The best groups, each with its best points: the same as on a server, whatever it takes.

        If groups are of very different sizes, it may have to read the ids of the whole collection. Behind a prefetch
        only what that has found is grouped.

        Args:
            collection_name: The collection.
            group_by: A payload field of texts or integers; points without it are in no group, those with several values
                in several groups.
            query: As for `query_points`, and so are the arguments that are not named here.
            using: The vector's name.
            prefetch: What to search first.
            query_filter: Which points to search.
            search_params: How.
            limit: The most groups.
            group_size: The most points in each.
            with_payload: Which fields of the points to return.
            with_vectors: Which vectors of the points to return.
            score_threshold: The least score.
            with_lookup: A collection with a point per group, by the value as id.
            lookup_from: Where the points are that the query names.
            options: `consistency` and `timeout` change nothing.
        """
        check_options("query_points_groups", options)
        if limit < 1 or group_size < 1:
            raise ValueError(f"limit {limit} and group_size {group_size} are invalid. Must be 1 or larger.")
        total, depth = self.count(collection_name).count, limit * group_size
        while True:
            ranking = self.query_points(
                collection_name,
                query,
                using,
                prefetch,
                query_filter,
                search_params,
                limit=max(1, min(depth, total)),
                with_payload=[group_by],
                score_threshold=score_threshold,
                lookup_from=lookup_from,
            ).points
            groups = _group(ranking, group_by, limit, group_size)
            full = len(groups) == limit and all(len(hits) == group_size for hits in groups.values())
            if full or len(ranking) < depth or depth >= total:
                break
            depth *= GROWTH
        self._fill(collection_name, groups, with_payload, with_vectors)
        found = [models.PointGroup(id=value, hits=hits) for value, hits in groups.items()]
        if with_lookup is not None:
            self._look_up_groups(found, with_lookup)
        return models.GroupsResult(groups=found)

    def _fill(
        self,
        collection_name: str,
        groups: dict[Any, list[models.ScoredPoint]],
        with_payload: Any,  # noqa: ANN401
        with_vectors: bool | Sequence[str],
    ) -> None:
        """Puts into the hits what the caller wants of them."""
        hits = [hit for group in groups.values() for hit in group]
        ids = list({hit.id for hit in hits})
        records = {found.id: found for found in self.retrieve(collection_name, ids, with_payload, with_vectors)}
        for hit in hits:
            if hit.id in records:  # else deleted meanwhile
                hit.payload, hit.vector = records[hit.id].payload, records[hit.id].vector

    def _look_up_groups(self, groups: list[models.PointGroup], with_lookup: str | models.WithLookup) -> None:
        where = models.WithLookup(collection=with_lookup) if isinstance(with_lookup, str) else with_lookup
        payload = True if where.with_payload is None else where.with_payload
        for group in groups:
            found = self.retrieve(where.collection, [group.id], payload, where.with_vectors or False)
            group.lookup = next(iter(found), None)


def _group(
    ranking: Sequence[models.ScoredPoint], group_by: str, limit: int, group_size: int
) -> dict[Any, list[models.ScoredPoint]]:
    """The first `limit` groups that occur in a ranking, each with its first points."""
    groups: dict[Any, list[models.ScoredPoint]] = {}
    for point in ranking:
        values = value_by_key(point.payload or {}, group_by) or []
        if any(type(value) not in (str, int) for value in values):  # as the server, which ignores such a point
            continue
        for value in dict.fromkeys(values):
            if value in groups or len(groups) < limit:
                groups.setdefault(value, []).append(point)
    return {value: hits[:group_size] for value, hits in groups.items()}
