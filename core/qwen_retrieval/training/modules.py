"""What sentence-transformers needs beside a trained checkpoint to embed or score as the engine does."""

from __future__ import annotations

import json
from pathlib import Path

from qwen_retrieval.specs import RerankTemplate

from .checkpoints import write_json

_POOLING = {
    "word_embedding_dimension": 0,  # filled in
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": True,
    "include_prompt": True,
}
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
_RERANKING_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {
        "idx": 1,
        "name": "1",
        "path": "1_LogitScore",
        "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
    },
]
_LOGITS = {"method": "forward", "method_output_name": "logits"}
_GENERATION = {  # what sentence-transformers 6.2 saves of a causal language model with a chat template
    "transformer_task": "text-generation",
    "modality_config": {"text": _LOGITS, "message": _LOGITS | {"format": "flat"}},
    "module_output_name": "causal_logits",
}


def write_embedding_modules(part: Path, hidden_size: int, query_prompt: str) -> None:
    """Write what `SentenceTransformer` needs; what the base has of it is kept, but for the prompts.

    Args:
        part: The folder of the checkpoint, with what was copied from the base.
        hidden_size: Length of a vector.
        query_prompt: What stands before a query.
    """
    if not (part / "1_Pooling" / "config.json").is_file():
        write_json(part / "1_Pooling" / "config.json", _POOLING | {"word_embedding_dimension": hidden_size})
    if not (part / "modules.json").is_file():
        write_json(part / "modules.json", _MODULES)
    (part / "2_Normalize").mkdir(exist_ok=True)
    _complete(
        part / "config_sentence_transformers.json",
        missing={"similarity_fn_name": "cosine", "default_prompt_name": None},
        corrected={"prompts": {"query": query_prompt, "document": ""}},
    )


def write_reranking_modules(part: Path, template: RerankTemplate, instruction: str, *, yes_id: int, no_id: int) -> None:
    """Write what `CrossEncoder` of sentence-transformers needs to give our scores.

    They are `Reranker`'s relevance scores, with ``activation_fn=torch.nn.Identity()`` its log-odds, and the argument
    `prompt` is the instruction of a call. Control tokens in texts act there, and long inputs are cut otherwise. The
    tests run release 6.2. `LogitScore` came with 5.4: earlier releases pass over it and score with a random head
    (modelscope/evalscope, pull request 1620).

    Modules that the base has are kept; the chat template and its default instruction are those of the training.

    Args:
        part: The folder of the checkpoint, with what was copied from the base.
        template: The one that was trained with.
        instruction: A sentence; "" for none.
        yes_id: Id of the answer that means relevant.
        no_id: Id of the answer that means irrelevant.
    """
    (part / "chat_template.jinja").write_text(chat_template(template, instruction), encoding="utf-8")
    if not (part / "modules.json").is_file():
        write_json(part / "modules.json", _RERANKING_MODULES)
        write_json(part / "sentence_bert_config.json", _GENERATION)
        scores = {"true_token_id": yes_id, "false_token_id": no_id, "module_input_name": "causal_logits"}
        write_json(part / "1_LogitScore" / "config.json", scores)
    _complete(
        part / "config_sentence_transformers.json",
        missing={"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid", "prompts": {}},
        corrected={"default_prompt_name": None},  # else it would take the place of the template's instruction
    )


def chat_template(template: RerankTemplate, instruction: str) -> str:
    """The template in Jinja, for messages of the roles query and document, and system for another instruction.

    Args:
        template: Any of the family's.
        instruction: What stands there without a message of the role system.
    """
    default = json.dumps(instruction, ensure_ascii=False)  # what JSON escapes, Jinja reads alike
    parts = (
        template.prefix,
        template.instruction.replace("{instruction}", _content("system", f" | default({default})")),
        template.query.replace("{query}", _content("query")),
        template.document.replace("{document}", _content("document")),
        template.suffix,
        "\n",  # Jinja takes one line break from the end
    )
    return "".join(parts)


def _content(role: str, otherwise: str = "") -> str:
    return f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first{otherwise} }}}}'


def _complete(path: Path, *, missing: dict[str, object], corrected: dict[str, object]) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, missing | before | corrected)
