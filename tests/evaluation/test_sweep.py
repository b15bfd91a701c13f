"""A whole evaluation: each figure against a direct computation, each text embedded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_retrieval import Embedder, Reranker, quantize
from qwen_retrieval.evaluation import Evaluation, RetrievalDataset, Sweep, evaluate
from qwen_retrieval.evaluation.metrics import Measures
from qwen_retrieval.testing import FakeEmbeddingEngine
from qwen_retrieval.types import FloatArray
from qwen_retrieval.vectors import truncate_dimensions
from tests.evaluation import small

SWEEP = Sweep(
    dimensions=(64, 16),
    quantizations=("none", "int8", "binary", "binary+rescore"),
    instructions={"default": None, "none": "", "named": "code_search"},
    rerank_depths=(3, 12),
)


@pytest.fixture(scope="module")
def engine() -> FakeEmbeddingEngine:
    return FakeEmbeddingEngine()


@pytest.fixture(scope="module")
def embedder(engine: FakeEmbeddingEngine) -> Iterator[Embedder]:
    with small.embedder(engine) as model:
        yield model


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    with small.reranker() as model:
        yield model


@pytest.fixture(scope="module")
def result(embedder: Embedder, reranker: Reranker) -> Evaluation:
    return evaluate(small.dataset(), embedder=embedder, reranker=reranker, sweep=SWEEP, resamples=200)


def value(scores: FloatArray) -> dict[str, float]:
    """The measures of a full ranking by scores."""
    data = small.dataset()
    ids = list(data.corpus)
    order = np.argsort(-scores, axis=1, kind="stable").tolist()
    run = {query: [ids[i] for i in row] for query, row in zip(data.queries, order, strict=True)}
    return {name: float(column.mean()) for name, column in Measures(data.qrels)(run).items()}


def test_the_table_has_every_setting_once_and_in_order(result: Evaluation) -> None:
    grid = [f"embedder {size}{form}" for size in (64, 16) for form in ("", " int8", " binary", " binary+rescore")]
    told = ["embedder 64, instruction none", "embedder 64, instruction named"]
    reranked = ["embedder 64, first 3 reranked", "embedder 64, first 12 reranked"]
    assert [system.name for system in result.systems] == ["BM25", *grid, *told, *reranked]
    assert result.setup.base == result.setup.baseline == "embedder 64"


@pytest.mark.parametrize("size", [64, 16])
def test_figures_are_those_of_a_direct_computation(result: Evaluation, embedder: Embedder, size: int) -> None:
    data = small.dataset()
    long = embedder.embed_queries(list(data.queries.values())), embedder.embed_documents(list(data.corpus.values()))
    queries, documents = (truncate_dimensions(vectors, size) for vectors in long)
    assert documents == pytest.approx(embedder.embed_documents(list(data.corpus.values()), dimensions=size), abs=1e-6)
    full = value(queries @ documents.T)
    assert result.system(f"embedder {size}").means == pytest.approx(full)
    assert result.system(f"embedder {size} int8").means == pytest.approx(
        value(quantize(documents, "int8").scores(queries))
    )
    codes = quantize(documents, "binary")
    assert result.system(f"embedder {size} binary").means == pytest.approx(value(codes.scores(queries)))
    # Of a dozen documents all are candidates.
    assert result.system(f"embedder {size} binary+rescore").means == pytest.approx(full)


def test_instructions_and_reranking_are_as_asked_for(
    result: Evaluation, embedder: Embedder, reranker: Reranker
) -> None:
    data = small.dataset()
    texts, documents = list(data.queries.values()), list(data.corpus.values())
    vectors = embedder.embed_documents(documents)
    for name, instruction in (("none", ""), ("named", "code_search")):
        expected = value(embedder.embed_queries(texts, instruction=instruction) @ vectors.T)
        assert result.system(f"embedder 64, instruction {name}").means == pytest.approx(expected)
    log_odds = np.stack([reranker.log_odds(text, documents) for text in texts])
    assert result.system("embedder 64, first 12 reranked").means == pytest.approx(value(log_odds))
    assert result.setup.instructions == {
        "default": embedder.instruction,
        "none": "",
        "named": "Given a question about coding, retrieval code or passage that can solve user's question",
    }


def test_means_are_those_of_the_values_of_each_query(result: Evaluation) -> None:
    for system in result.systems:
        assert len(system.values) == len(result.queries) == 8
        assert system.means["ndcg@10"] == pytest.approx(np.mean(system.values))


@pytest.mark.parametrize(
    ("name", "searched", "stored"),
    [
        pytest.param("embedder 64", 256, 256, id="none"),
        pytest.param("embedder 64 int8", 68, 68, id="int8"),
        pytest.param("embedder 64 binary", 8, 8, id="binary"),
        pytest.param("embedder 16 binary+rescore", 2, 66, id="rescored"),
        pytest.param("BM25", None, None, id="BM25"),
    ],
)
def test_bytes_of_a_document(result: Evaluation, name: str, searched: int | None, stored: int | None) -> None:
    assert (result.system(name).searched_bytes, result.system(name).stored_bytes) == (searched, stored)


def test_everything_but_the_baseline_is_compared_with_it(result: Evaluation) -> None:
    table = [one.system for one in result.comparisons if one.family == "baseline"]
    assert table == [system.name for system in result.systems if system.name != "embedder 64"]


def test_each_text_is_embedded_once_per_instruction(engine: FakeEmbeddingEngine, embedder: Embedder) -> None:
    before = engine.inputs
    told: dict[str, tuple[int, int]] = {}

    def progress(what: str, done: int, total: int) -> None:
        told[what] = done, total

    result = evaluate(small.dataset(), embedder=embedder, sweep=SWEEP, resamples=10, progress=progress)
    assert engine.inputs - before == 12 + 3 * 8
    assert told["embedding documents"] == (12, 12)
    assert all(done == total for done, total in told.values())
    assert [(step.name, step.items, step.computed) for step in result.steps][2:4] == [
        ("embedding documents", 12, 12),
        ("embedding queries (default)", 8, 8),
    ]
    assert all(step.seconds > 0 for step in result.steps)


def test_a_second_run_takes_vectors_from_the_cache_and_computes_what_is_damaged(
    engine: FakeEmbeddingEngine, embedder: Embedder, tmp_path: Path
) -> None:
    first = evaluate(small.dataset(), embedder=embedder, cache=tmp_path / "kept", resamples=10)
    before = engine.inputs
    second = evaluate(small.dataset(), embedder=embedder, cache=tmp_path / "kept", resamples=10)
    assert engine.inputs == before
    assert second.systems[1].values == first.systems[1].values
    assert second.systems[1].query_seconds is None
    files = sorted((tmp_path / "kept").rglob("*.npy"))
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:-9])
    third = evaluate(small.dataset(), embedder=embedder, cache=tmp_path / "kept", resamples=10)
    assert third.systems[1].values == first.systems[1].values
    assert engine.inputs - before in (8, 12)


def test_documents_with_the_querys_own_id_are_left_out_where_asked(embedder: Embedder) -> None:
    data = RetrievalDataset({"a": "same text"}, {"a": "same text", "b": "other text"}, {"a": {"b": 1}})
    found = {
        ignore: evaluate(data, embedder=embedder, ignore_identical_ids=ignore, resamples=10) for ignore in (False, True)
    }
    for name in ("BM25", "embedder 64"):
        assert [found[ignore].system(name).means["mrr@10"] for ignore in (False, True)] == [0.5, 1.0]


def test_one_query_and_one_document_are_enough(embedder: Embedder, reranker: Reranker) -> None:
    data = RetrievalDataset({"q": "a"}, {"d": "a"}, {"q": {"d": 1}})
    result = evaluate(data, embedder=embedder, reranker=reranker, sweep=SWEEP, resamples=10)
    assert {system.means["ndcg@10"] for system in result.systems} == {1.0}
    assert result.advice[0].text.startswith("With 1 query no difference can be significant")
    assert result.worst == ()


def test_results_come_back_from_json_as_they_were(result: Evaluation) -> None:
    assert Evaluation.from_json(result.to_json()) == result
    with pytest.raises(ValueError, match="with schema 1, but got schema 2"):
        Evaluation.from_json(replace(result, schema=2).to_json())
    with pytest.raises(ValueError, match="no complete results of an evaluation: KeyError"):
        Evaluation.from_json('{"schema": 1}')
    with pytest.raises(ValueError, match="but got schema None"):
        Evaluation.from_json("[]")


def test_the_worst_queries_show_what_should_be_found_and_what_was(result: Evaluation) -> None:
    best = max(result.systems, key=lambda system: system.means["ndcg@10"])
    values = dict(zip((query.id for query in result.queries), best.values, strict=True))
    assert [one.query for one in result.worst] == sorted((q for q in values if values[q] < 1), key=values.__getitem__)
    for example in result.worst:
        assert set(example.found) == {"BM25", "embedder 64", best.name}
        assert all(passage.grade == 1 for passage in example.relevant)
        for passages in example.found.values():
            assert all(small.DOCUMENTS[passage.id] == passage.text for passage in passages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"dimensions": (64, 64)}, "dimensions must all differ, but got 64, 64", id="twice"),
        pytest.param({"quantizations": ("int4",)}, "must be among none, int8, .*, but got 'int4'", id="quantization"),
        pytest.param({"rerank_depths": (0,)}, "rerank_depths must be at least 1", id="depth"),
        pytest.param({"instructions": {}}, "instructions must have at least one value", id="instructions"),
    ],
)
def test_a_sweep_over_what_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"baseline": "BM52"}, "baseline must be one of 'BM25', 'embedder 64', but got 'BM52'", id="baseline"
        ),
        pytest.param({"sweep": Sweep(dimensions=(65,))}, "dimensions.* 64.* 65", id="dimensions"),
        pytest.param({"metrics": ("accuracy",)}, "a metric must be ndcg@k", id="metric"),
        pytest.param({"resamples": 0}, "resamples must be at least 1", id="resamples"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_embedded(
    engine: FakeEmbeddingEngine, embedder: Embedder, options: dict[str, Any], message: str
) -> None:
    before = engine.calls
    with pytest.raises(ValueError, match=message):
        evaluate(small.dataset(), embedder=embedder, **options)
    assert engine.calls == before
