"""QwenRanker, run on its own."""

from __future__ import annotations

from typing import Any

import pytest
from haystack import Document

from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker
from qwen_retrieval import TruncationWarning
from qwen_retrieval.testing import FakeRerankingEngine
from tests.integrations.haystack_parts import QUERY, TEXTS, Loads, documents, make_reranker, ranker


def scores(output: dict[str, Any]) -> list[float]:
    return [document.score for document in output["documents"]]


def ids(output: dict[str, Any]) -> list[str]:
    return [document.id for document in output["documents"]]


def test_the_best_stands_first_with_the_probability_of_the_core() -> None:
    output = ranker().run(QUERY, documents())
    expected = make_reranker().rerank(QUERY, TEXTS)
    assert ids(output) == [f"d{result.index}" for result in expected]
    assert scores(output) == [result.relevance_score for result in expected]


def test_scores_are_python_floats_in_both_scales() -> None:
    """numpy numbers broke stores and YAML: https://github.com/deepset-ai/haystack/pull/9665"""
    for scale_score in (True, False):
        assert {type(score) for score in scores(ranker(scale_score=scale_score).run(QUERY, documents()))} == {float}


def test_log_odds_on_request_at_init_and_for_one_run() -> None:
    expected = [result.log_odds for result in make_reranker().rerank(QUERY, TEXTS)]
    assert scores(ranker(scale_score=False).run(QUERY, documents())) == expected
    assert scores(ranker().run(QUERY, documents(), scale_score=False)) == expected
    assert scores(ranker(scale_score=False).run(QUERY, documents(), scale_score=True)) != expected


def test_ten_documents_by_default_and_all_with_none() -> None:
    many = [Document(content=f"text {number}") for number in range(12)]
    assert len(ranker().run(QUERY, many)["documents"]) == 10
    assert len(ranker(top_k=None).run(QUERY, many)["documents"]) == 12
    assert len(ranker(top_k=None).run(QUERY, many, top_k=3)["documents"]) == 3


def test_a_top_k_below_one_is_refused_at_init_and_in_a_run_of_no_documents_too() -> None:
    """Bedrock's and Voyage's rankers do not check it; see also haystack-core-integrations/pull/3745 to 3749."""
    for top_k in (0, -1):
        with pytest.raises(ValueError, match="top_k must be at least 1, or None for all, but got"):
            QwenRanker(top_k=top_k)
        for given in (documents(), []):
            with pytest.raises(ValueError, match="top_k must be at least 1, or None for all, but got"):
                ranker().run(QUERY, given, top_k=top_k)


WRONG: list[Any] = [
    pytest.param({"top_k": "3"}, TypeError, "top_k must be an integer", id="top_k"),
    pytest.param(
        {"score_threshold": "0.5"}, TypeError, "score_threshold must be a number or None, but got '0.5'", id="quoted"
    ),
    pytest.param({"score_threshold": float("nan")}, ValueError, "score_threshold must be a number", id="nan"),
]
WRONG_FIELDS: list[Any] = [
    pytest.param(
        {"meta_fields_to_embed": "title"}, TypeError, "meta_fields_to_embed must be a list of strings", id="meta"
    ),
    *(
        pytest.param({name: None}, TypeError, f"{name} must be a string, but got None", id=name)
        for name in ("embedding_separator", "query_prefix", "query_suffix", "document_prefix", "document_suffix")
    ),
    *(
        pytest.param({name: text}, ValueError, f"{name} holds the model card's template, which is built in", id=text)
        for name, text in {
            "query_prefix": "<|im_start|>system\nJudge…<Instruct>: Find it\n<Query>: ",
            "document_prefix": "<Document>: ",
            "document_suffix": "<|im_end|>\n<|im_start|>assistant\n",
            "query_suffix": "\n<Instruct>: Find it",
        }.items()
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG + WRONG_FIELDS)
async def test_a_parameter_that_cannot_be_used_is_refused_when_given_and_when_assigned(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        QwenRanker(**wrong)
    engine = FakeRerankingEngine()
    component = ranker(engine)
    for name, value in wrong.items():
        setattr(component, name, value)
    for given in (documents(), []):
        with pytest.raises(error, match=message):
            component.run(QUERY, given)
        with pytest.raises(error, match=message):
            await component.run_async(QUERY, given)
    assert engine.calls == 0


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_an_input_that_cannot_be_used_is_refused_before_anything_is_computed(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    engine = FakeRerankingEngine()
    for given in (documents(), []):
        with pytest.raises(error, match=message):
            ranker(engine).run(QUERY, given, **wrong)
    assert engine.calls == 0


def test_the_threshold_is_inclusive_and_in_the_unit_of_the_scores() -> None:
    ranked = make_reranker().rerank(QUERY, TEXTS)
    second = ranked[1]
    assert len(ranker(score_threshold=second.relevance_score).run(QUERY, documents())["documents"]) == 2
    component = ranker(score_threshold=second.log_odds, scale_score=False)
    assert len(component.run(QUERY, documents())["documents"]) == 2
    assert len(component.run(QUERY, documents(), top_k=1)["documents"]) == 1


def test_zero_and_false_given_to_a_run_count_as_given() -> None:
    """`or` took the default instead: https://github.com/deepset-ai/haystack/pull/9771 and 9698, issues/12262"""
    component = ranker(score_threshold=0.99, scale_score=True)
    assert component.run(QUERY, documents())["documents"] == []
    assert len(component.run(QUERY, documents(), score_threshold=0.0)["documents"]) == 4
    log_odds = [result.log_odds for result in make_reranker().rerank(QUERY, TEXTS)]
    assert scores(component.run(QUERY, documents(), score_threshold=-99, scale_score=False)) == log_odds
    above_zero = ranker(score_threshold=3.0, scale_score=False).run(QUERY, documents(), score_threshold=0.0)
    assert scores(above_zero) == [score for score in log_odds if score >= 0]


def test_a_document_that_was_found_twice_is_ranked_once_as_the_copy_with_the_highest_score() -> None:
    """Most rankers return it twice: https://github.com/deepset-ai/haystack/pull/10508"""
    engine = FakeRerankingEngine()
    given = [
        Document(id="a", content="copy", score=0.1, meta={"by": "bm25"}),
        Document(id="b", content="other", score=None),
        Document(id="a", content="copy a file", score=0.9, meta={"by": "vectors"}),
        Document(id="a", content="copy", score=None, meta={"by": "nobody"}),
        Document(id="b", content="another", score=None),
    ]
    output = ranker(engine).run(QUERY, given)
    assert {document.id: (document.content, document.meta.get("by")) for document in output["documents"]} == {
        "a": ("copy a file", "vectors"),
        "b": ("other", None),
    }
    assert engine.inputs == 2


def test_equal_scores_keep_the_order_in_which_they_were_given() -> None:
    given = [Document(id=str(number), content="the same") for number in (3, 1, 2)]
    assert ids(ranker().run(QUERY, given)) == ["3", "1", "2"]


def test_the_documents_given_are_left_alone_and_everything_but_the_score_is_kept() -> None:
    """Input was changed in place: https://github.com/deepset-ai/haystack/pull/10702"""
    given = [Document(id="a", content="x", meta={"n": [1]}, score=7.0, embedding=[1.0]), Document(id="b", content="y")]
    before = [document.to_dict() for document in given]
    ranked = {document.id: document.to_dict() for document in ranker().run(QUERY, given)["documents"]}
    assert [document.to_dict() for document in given] == before
    assert [{**ranked[one["id"]], "score": one["score"]} for one in before] == before


def test_the_instruction_of_the_run_counts_before_that_of_the_component() -> None:
    """Templates had to be pasted by hand: https://github.com/deepset-ai/haystack/pull/10251"""
    core = make_reranker()
    for asked, expected in [(None, "code_search"), ("Find a poem", "Find a poem"), ("", "")]:
        output = ranker(instruction="code_search", scale_score=False).run(QUERY, documents(), instruction=asked)
        assert scores(output) == [one.log_odds for one in core.rerank(QUERY, TEXTS, instruction=expected)]


def test_prefixes_suffixes_and_metadata_are_shown_to_the_model() -> None:
    component = ranker(
        query_prefix="<q>",
        query_suffix="</q>",
        document_prefix="<d>",
        document_suffix="</d>",
        meta_fields_to_embed=["number", "missing"],
        embedding_separator="|",
        scale_score=False,
    )
    shown = [f"<d>{number}|{text}</d>" for number, text in enumerate(TEXTS)]
    expected = make_reranker().rerank(f"<q>{QUERY}</q>", shown)
    assert scores(component.run(QUERY, documents())) == [result.log_odds for result in expected]


def test_a_document_without_content_is_ranked_by_its_metadata_or_by_nothing() -> None:
    given = [Document(id="empty"), Document(id="title", meta={"title": QUERY})]
    assert ids(ranker(meta_fields_to_embed=["title"]).run(QUERY, given)) == ["title", "empty"]


def test_meta_counts_tokens_and_what_was_cut() -> None:
    component = QwenRanker.from_reranker(make_reranker(max_length=600))
    whole = component.run(QUERY, documents())["meta"]
    assert whole["model"] == "fake-reranker"
    assert whole["truncated"] == 0
    with pytest.warns(TruncationWarning, match="1 of 5 inputs"):
        cut = component.run(QUERY, [*documents(), Document(content="x" * 600)])["meta"]
    assert cut == {"model": "fake-reranker", "tokens": whole["tokens"] + 600, "truncated": 1}


def test_no_documents_give_no_documents_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    output = QwenRanker(model="any/model").run(QUERY, [])
    assert output == {"documents": [], "meta": {"model": "any/model", "tokens": 0, "truncated": 0}}
    assert len(loads) == 0


async def test_run_async_gives_the_same() -> None:
    component = ranker(top_k=2)
    assert await component.run_async(QUERY, documents()) == component.run(QUERY, documents())
    assert await component.run_async(QUERY, []) == component.run(QUERY, [])
    asked: dict[str, Any] = {"top_k": 3, "scale_score": False, "score_threshold": 0.5, "instruction": "x"}
    assert await component.run_async(QUERY, documents(), **asked) == component.run(QUERY, documents(), **asked)


@pytest.mark.parametrize(
    ("query", "given", "message"),
    [
        pytest.param(None, [], "query must be a string, but got NoneType", id="query"),
        pytest.param(QUERY, "text", "documents must be a list of Document, but got str", id="string"),
        pytest.param(QUERY, [Document(content="a"), "b"], r"Document, but documents\[1\] is str", id="strings"),
    ],
)
async def test_something_else_than_a_query_and_documents_is_refused(query: Any, given: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ranker().run(query, given)
    with pytest.raises(TypeError, match=message):
        await ranker().run_async(query, given)


def test_an_error_of_the_model_is_an_error_not_an_empty_list() -> None:
    component = ranker(FakeRerankingEngine(fail_on=lambda _batch: RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        component.run(QUERY, documents())
