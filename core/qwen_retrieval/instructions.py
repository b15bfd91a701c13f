"""Instructions by name: short presets, and the table that the published evaluation used.

An instruction is one English sentence that says what the query is for; README and paper report 1 % to 5 % better
retrieval with a fitting one than with none (https://github.com/QwenLM/Qwen3-Embedding, commit f4ad0c43, README).
The sentences are data, not prose: their mistakes ("retrieval the relevant", "Gvien") were there in training and
evaluation, and stay.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Literal

from qwen_retrieval.specs import WEB_SEARCH

_SIMILAR = "Retrieve semantically similar text"

PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "web_search": WEB_SEARCH,
        # The rest are sentences of the evaluation table, named by the task that each stands for.
        "question_answering": "Given a question, retrieve passages that answer the question",  # AlloprofRetrieval
        "fact_check": "Given a claim, retrieve documents that support or refute the claim",  # FEVER
        "duplicate_question": (  # QuoraRetrieval
            "Given a question, retrieve questions that are semantically equivalent to the given question"
        ),
        "code_search": (  # CosQA
            "Given a question about coding, retrieval code or passage that can solve user's question"
        ),
        "argument_counter": "Given a claim, find documents that refute the claim",  # ArguAna
        "scientific_doc": (  # SCIDOCS
            "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper"
        ),
        "entity": "Given a query, retrieve relevant entity descriptions from DBPedia",  # DBPedia
        "news": "Given a headline, retrieval relevant articles",  # RiaNewsRetrieval
        "medical": "Given a question, retrieve relevant documents that best answer the question",  # NFCorpus
        "financial": "Given a financial question, retrieve user replies that best answer the question",  # FiQA2018
        "bitext": "Retrieve parallel sentences",  # Tatoeba; on queries and documents
        "sts_symmetric": _SIMILAR,  # STS; on queries and documents
        # The default of examples/qwen3_reranker_transformers.py and evaluation/qwen3_reranker_model.py (same commit),
        # where the README has `web_search`.
        "rerank_evaluation": "Given the user query, retrieval the relevant passages",
        "none": "",
    }
)
"""Short names for common instructions. Classification and clustering need a sentence of the user's own."""

# Tasks of type PairClassification whose entry the evaluation overrides (evaluation/qwen3_embedding_model.py,
# `get_instruction`); the other tasks of that type, and those of type STS, have the same sentence in the table.
_OVERRIDDEN = frozenset(
    {"Cmnli", "Ocnli", "SprintDuplicateQuestions", "TERRa", "TwitterSemEval2015", "TwitterURLCorpus"}
)

# Tasks of the types Retrieval and InstructionRetrieval, where the documents get no instruction (same function). The
# table does not name the type; whatever is called "…Retrieval" is one of them too.
# fmt: off
_RETRIEVAL = frozenset(
    {
        "AILAStatutes", "AppsRetrieval", "ArguAna-PL", "ClimateFEVER", "ClimateFEVERHardNegatives", "CodeFeedbackMT",
        "CodeFeedbackST", "CodeTransOceanContest", "CodeTransOceanDL", "CosQA", "DBPedia", "DBPedia-PL", "FEVER",
        "FEVERHardNegatives", "FiQA-PL", "FiQA2018", "HotpotQA", "HotpotQA-PL", "HotpotQAHardNegatives",
        "LegalBenchCorporateLobbying", "MIRACLRetrievalHardNegatives", "MSMARCO", "MSMARCO-PL", "NFCorpus",
        "NFCorpus-PL", "NQ", "NQ-PL", "Quora-PL", "SCIDOCS", "SCIDOCS-PL", "SciFact", "SciFact-PL", "StackOverflowQA",
        "SyntheticText2SQL", "TRECCOVID", "TRECCOVID-PL", "Touche2020", "Touche2020Retrieval.v3",
        "WikipediaRetrievalMultilingual",
    }
)
# fmt: on


@dataclass(frozen=True, slots=True)
class TaskInstruction:
    """The instructions of one evaluation task.

    Attributes:
        query: The instruction of the queries.
        document: The instruction of the documents; empty unless the task is symmetric.
    """

    query: str
    document: str


@cache
def _table() -> dict[str, str | dict[Literal["query", "passage"], str]]:
    # evaluation/task_prompts.json of the same commit is a Git-LFS pointer; this copy is rebuilt from MTEB's port of it
    # (https://github.com/embeddings-benchmark/mteb, commit f54ec7fa5d5e).
    source = resources.files(__package__).joinpath("task_prompts.json")
    table: dict[str, str | dict[Literal["query", "passage"], str]] = json.loads(source.read_text(encoding="utf-8"))
    return table


def tasks() -> tuple[str, ...]:
    """The names of all tasks in the evaluation table, in its order."""
    return tuple(_table())


def task_instruction(task: str) -> TaskInstruction:
    """The instructions that the published evaluation gave to a task's queries and documents.

    Follows `get_instruction` in evaluation/qwen3_embedding_model.py (same commit): an entry with two sides counts for
    both; in retrieval only the queries have an instruction; sentence similarity and pair classification always have
    "Retrieve semantically similar text", whatever the table says; every other type has the entry on all its texts.

    Args:
        task: A name of the MTEB benchmark, such as ``SciFact``.

    Returns:
        Its instructions.

    Raises:
        ValueError: The table has no such task.
    """
    entry = _table().get(task)
    if entry is None:
        raise ValueError(f"task must be one of the {len(_table())} names in instructions.tasks(), but got {task!r}")
    if task in _OVERRIDDEN:
        return TaskInstruction(_SIMILAR, _SIMILAR)
    if isinstance(entry, dict):
        return TaskInstruction(entry["query"], entry["passage"])
    is_retrieval = task in _RETRIEVAL or task.endswith("Retrieval")
    return TaskInstruction(entry, "" if is_retrieval else entry)


def is_known(name: str) -> bool:
    """Whether `name` is that of a preset or a task."""
    return name in PRESETS or name in _table()


_WORD = re.compile("[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


def looks_like_a_name(text: str) -> bool:
    """Whether `text` is written as names are: one word of ASCII letters, digits, ``_``, ``-`` and inner dots."""
    return _WORD.fullmatch(text) is not None


@lru_cache(maxsize=256)
def similar_names(word: str) -> tuple[str, ...]:
    """Known names that `word` may be meant for, at most three, the most similar first; letter case does not matter.

    Similar from a ratio of 0.8 on (`difflib.SequenceMatcher.ratio`): one wrong letter of five, or one missing of three.
    """
    names = {name.casefold(): name for name in (*PRESETS, *_table())}
    return tuple(names[name] for name in difflib.get_close_matches(word.casefold(), names, cutoff=0.8))


def unknown_name(word: str) -> str:
    """Why `word` is refused, and what there is instead, for error messages."""
    meant = " or ".join(map(repr, similar_names(word)))
    return (
        f"{word!r} is neither a preset nor a task{f'; did you mean {meant}?' if meant else '.'} "
        f"The presets are {', '.join(PRESETS)}, and the tasks are in instructions.tasks(). "
        "An instruction of your own is a sentence; one of a single word ends with a full stop"
    )


def resolve_instruction(instruction: str) -> str:
    """The sentence behind a name.

    A word that can only be meant as a name is refused: one with ``_`` in it, or much like a known name. Other words
    are taken as they are, because a fine-tuned model may have been trained with one.

    Args:
        instruction: A name in `PRESETS`, a task of the evaluation table (its query side), or any other text.

    Returns:
        The sentence of that name; any other text unchanged. The empty text means no instruction at all.

    Raises:
        TypeError: `instruction` is not a string.
        ValueError: It is a misspelt name, or a whole template, such as other libraries want to have.
    """
    if not isinstance(instruction, str):
        raise TypeError(f"instruction must be a string, but got {type(instruction).__name__}")
    if instruction in PRESETS:
        return PRESETS[instruction]
    if instruction in _table():
        return task_instruction(instruction).query
    if instruction.startswith("Instruct:"):
        raise ValueError(
            'instruction must be the sentence alone, but got one that begins with "Instruct:"; the template around it '
            "is added here"
        )
    if looks_like_a_name(instruction) and ("_" in instruction or similar_names(instruction)):
        raise ValueError(f"instruction {unknown_name(instruction)}")
    return instruction
