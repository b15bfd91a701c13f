"""What sentence-transformers needs beside a trained checkpoint to embed or score as the engine does."""

from __future__ import annotations

import json
from pathlib import Path

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


def _complete(path: Path, *, missing: dict[str, object], corrected: dict[str, object]) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, missing | before | corrected)
