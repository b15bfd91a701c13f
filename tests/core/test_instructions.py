"""Instructions by name."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_retrieval.instructions import (
    PRESETS,
    TaskInstruction,
    looks_like_a_name,
    resolve_instruction,
    task_instruction,
    tasks,
)
from qwen_retrieval.specs import QWEN3_EMBEDDING, QWEN3_RERANKER


def test_the_default_preset_is_the_default_of_both_families() -> None:
    assert PRESETS["web_search"] == QWEN3_EMBEDDING.default_instruction == QWEN3_RERANKER.default_instruction


def test_every_preset_comes_from_the_evaluation() -> None:
    sentences = {task_instruction(task).query for task in tasks()}
    others = {"none", "rerank_evaluation"}

    assert {name for name, sentence in PRESETS.items() if sentence not in sentences} == others


def test_a_preset_resolves_to_its_sentence() -> None:
    assert resolve_instruction("fact_check") == "Given a claim, retrieve documents that support or refute the claim"


def test_a_task_resolves_to_its_query_instruction() -> None:
    expected = "Given a scientific claim, retrieve documents that support or refute the claim"

    assert resolve_instruction("SciFact") == expected


@pytest.mark.parametrize(
    "text", ["Find the recipe", "web_search.", " web_search", "", "  ", "Translate", "x", "找到相关的文档"]
)
def test_any_other_text_is_returned_unchanged(text: str) -> None:
    assert resolve_instruction(text) == text


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("code_serch", "did you mean 'code_search'?"),
        ("CodeSearch", "did you mean 'code_search'?"),
        ("SciFct", "did you mean 'SciFact'"),
        ("Medical", "did you mean 'medical'?"),
        ("None", "did you mean 'none'?"),
        ("legal_search", "nor a task. The presets are web_search, "),
    ],
)
def test_a_word_that_can_only_be_a_misspelt_name_is_refused(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match="is neither a preset nor a task") as error:
        resolve_instruction(word)
    assert meant in str(error.value)


def test_every_known_name_looks_like_one() -> None:
    assert [name for name in (*PRESETS, *tasks()) if not looks_like_a_name(name)] == []
    assert not any(map(looks_like_a_name, ["Find it", "Classify.", "", "検索", "-x"]))


def test_none_as_a_name_means_no_instruction() -> None:
    assert resolve_instruction("none") == ""


@pytest.mark.parametrize("value", [None, 3, ["web_search"]])
def test_an_instruction_that_is_no_string_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="instruction must be a string"):
        resolve_instruction(value)


def test_the_table_is_complete() -> None:
    assert len(tasks()) == 251
    assert len({task_instruction(task).query for task in tasks()}) > 130


def test_documents_of_a_retrieval_task_have_no_instruction() -> None:
    for task in ("NQ", "MSMARCO", "T2Retrieval", "CosQA", "MIRACLRetrievalHardNegatives", "Touche2020Retrieval.v3"):
        assert task_instruction(task).document == "", task


def test_both_sides_of_a_symmetric_retrieval_task_have_the_instruction() -> None:
    for task in ("ArguAna", "CQADupstackGamingRetrieval", "CQADupstackUnixRetrieval"):
        instruction = task_instruction(task)
        assert instruction.query == instruction.document != "", task


def test_both_sides_of_classification_clustering_and_mining_have_the_instruction() -> None:
    for task in ("Banking77Classification", "ArxivClusteringP2P", "Tatoeba", "STS12", "AskUbuntuDupQuestions"):
        instruction = task_instruction(task)
        assert instruction.query == instruction.document != "", task


@pytest.mark.parametrize("task", ["TwitterURLCorpus", "SprintDuplicateQuestions", "Ocnli", "TERRa", "STS17", "PawsX"])
def test_similarity_tasks_have_the_sentence_that_the_evaluation_puts_over_the_table(task: str) -> None:
    similar = "Retrieve semantically similar text"

    assert task_instruction(task) == TaskInstruction(query=similar, document=similar)


def test_mistakes_in_the_table_are_kept() -> None:
    assert task_instruction("TweetTopicSingleClassification").query == "Gvien a twitter, classify its topic"
    assert task_instruction("MasakhaNEWSClassification").query.endswith("technology,religion ")


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="task must be one of the 251 names"):
        task_instruction("scifact")
