"""Filters in short form: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qdrant_qwen_retrieval import QdrantIndex
from qdrant_qwen_retrieval.filters import to_filter
from qdrant_qwen_retrieval.layouts import get_layout
from tests.integrations.qdrant_parts import make_embedder

NAN = float("nan")


@pytest.mark.parametrize("bounds", [{"gte": "x"}, {"gte": "2020", "lt": "x"}, {"not": {"lt": "2020-13-01"}}], ids=str)
def test_a_bound_that_is_no_date_is_refused_in_one_line(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^filter\['year'\] must have numbers, or dates .* but got \[.*\]$"):
        to_filter({"year": bounds}, get_layout("compact"))


@pytest.mark.parametrize("value", [NAN, {"gte": NAN}, {"lt": float("inf")}, [1.0, NAN], {"not": NAN}], ids=str)
def test_a_number_that_is_none_is_refused_with_the_name_of_the_field(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^filter\['year'\] must have finite numbers, but got \[(nan|inf)"):
        to_filter({"year": value}, get_layout("compact"))


@pytest.mark.parametrize("filter", ["", [1], [{"year": 1}, "x"], {1, 2}], ids=str)
def test_what_is_no_filter_and_no_list_of_filters_is_refused(filter: Any) -> None:
    with pytest.raises(TypeError, match="filter must be"):
        to_filter(filter, get_layout("compact"))


@pytest.mark.parametrize("store", [":memory:", "folder"])
def test_of_a_list_of_filters_all_hold(store: str, tmp_path: Path) -> None:
    path = store if store == ":memory:" else tmp_path / store
    with QdrantIndex("c", embedder=make_embedder(), path=path) as index:
        index.ingest([{"id": str(year), "text": "text", "year": year} for year in range(2020, 2026)])
        filters = [{"year": {"gte": 2022}}, {"year": {"not": 2023}}, {"year": {"lt": 2025}}]
        assert {hit.record_id for hit in index.search("text", filter=filters)} == {"2022", "2024"}


@pytest.mark.parametrize("store", [":memory:", "folder"])
def test_a_float_or_bounds_find_a_whole_number_that_is_stored_as_a_float(store: str, tmp_path: Path) -> None:
    path = store if store == ":memory:" else tmp_path / store
    with QdrantIndex("c", embedder=make_embedder(), path=path) as index:
        index.ingest([{"id": "a", "text": "text", "year": 2024.0}])
        for value in (2024.0, {"gte": 2024, "lte": 2024}):
            assert [hit.record_id for hit in index.search("text", filter={"year": value})] == ["a"]
