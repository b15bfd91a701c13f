"""Which instruction a text of a benchmark gets: that of the published evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.instructions import PRESETS, task_instruction, tasks

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

_SYMMETRIC = frozenset({"STS", "PairClassification"})
# mteb 1.38.9, with which the figures were measured, counts FollowIR among the InstructionRetrieval tasks.
_RETRIEVAL = frozenset({"Retrieval", "InstructionRetrieval", "InstructionReranking"})


def paper_instruction(task: TaskMetadata, prompt_type: PromptType | None) -> str:
    """The instruction that the published evaluation gives to a text.

    Follows `get_instruction` of evaluation/qwen3_embedding_model.py (https://github.com/QwenLM/Qwen3-Embedding, commit
    f4ad0c43) under mteb 1.38.9: the table of the evaluation by the name of the task, else the prompt that mteb has for
    the task or for its type; STS and pair classification always have "Retrieve semantically similar text"; documents
    of a retrieval task have none, unless the table has one for them. Documents of reranking tasks do have one.

    One thing is not followed: a prompt of mteb's with two sides, for texts that are on neither, is written there as a
    Python dict; here it is its query side.

    Args:
        task: mteb's description of the task.
        prompt_type: The side of the text; None for tasks whose texts have no sides (STS, classification, …).

    Returns:
        One sentence, or "" for none.

    Raises:
        MissingDependencyError: mteb is not installed.
    """
    if task.type in _SYMMETRIC:
        return PRESETS["sts_symmetric"]
    without_side = "document" if task.type in _RETRIEVAL else "query"
    side = without_side if prompt_type is None else prompt_type.value
    if task.name in tasks():
        known = task_instruction(task.name)
        return known.document if side == "document" else known.query
    return "" if task.type in _RETRIEVAL and side == "document" else _mteb_prompt(task, side)


def _mteb_prompt(task: TaskMetadata, side: str) -> str:
    """What mteb has for the task, else for the class of the task."""
    with needs_extra("mteb", "mteb"):
        from mteb.abstasks.abstask import get_abstask_prompt
    if isinstance(task.prompt, dict):
        sides: dict[str, str] = {str(key): text for key, text in task.prompt.items()}
        return sides.get(side, "")
    prompt: str = task.prompt or get_abstask_prompt(task.name)
    # mteb's own retrieval classes have a prompt, so that the evaluation's last resort is hardly ever reached.
    return prompt or ("Retrieval relevant passage for the given query." if task.type in _RETRIEVAL else "")
