"""Random-weight checkpoints of the published shapes, made in seconds.

Speed does not depend on what the weights are, as long as they are not zeros (a matrix product of zeros needs less
power, and is faster). So one layer is drawn at random, and each layer is that one with the signs of its rows drawn
anew; the token table is one block of rows, with the signs of its columns drawn anew in each copy. Values keep the
size that a trained layer's have, so that 28 or 36 of them stay within bfloat16's accuracy.

    <folder>/tokenizers/{embedding,reranker}   the published tokenizers
    <folder>/0.6B/weights                      shards, bfloat16, one layer in each
    <folder>/0.6B/{embedding,reranking}        what is loaded: links to the shards, configuration, tokenizer, templates
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen_retrieval.specs import CHECKPOINTS, QWEN3_RERANKER, Checkpoint
from tests.checkpoints import qwen3_config
from tests.real_tokenizer import build_tokenizers

Kind = Literal["embedding", "reranking"]
MODELS = ("0.6B", "4B", "8B")
BLOCK = 8192
"""Rows of the token table that are drawn at random; the others repeat them with other signs."""

CHAT_TEMPLATE = (
    "{%- set task = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default(" + json.dumps(QWEN3_RERANKER.default_instruction) + ") -%}\n"
    "{%- set query = messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first -%}\n"
    "{%- set document = messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first -%}\n"
    "{{- PREFIX + '<Instruct>: ' + task + '\\n<Query>: ' + query + '\\n<Document>: ' + document + SUFFIX -}}\n"
)
"""The model card's template, for the roles that sentence-transformers gives to a pair."""


def shape(model: str, kind: Kind = "reranking") -> Checkpoint:
    """The sizes of a published checkpoint."""
    return next(one for one in CHECKPOINTS if one.size == model and one.kind == kind)


def checkpoint(folder: Path, model: str, kind: Kind) -> Path:
    """The folder of a random checkpoint, written below `folder` unless it is there already.

    Args:
        folder: Where checkpoints are kept: 1.2 GB for 0.6B, 8.1 GB for 4B, 16.4 GB for 8B, for both kinds together.
        model: "0.6B", "4B" or "8B".
        kind: What it is loaded as.
    """
    write_tokenizers(folder / "tokenizers")
    target = folder / model / kind
    if not (target / "config.json").exists():
        write_checkpoint(target, folder / model / "weights", folder / "tokenizers", shape(model), kind)
    return target


def checkpoints(folder: Path, model: str = "0.6B") -> tuple[Path, Path]:
    """The embedder and the reranker of one shape; see `checkpoint`."""
    return checkpoint(folder, model, "embedding"), checkpoint(folder, model, "reranking")


def write_tokenizers(folder: Path) -> None:
    """Write the published tokenizers to `folder`, once."""
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        build_tokenizers(temporary)
        temporary.rename(folder)


def write_checkpoint(target: Path, weights: Path, tokenizers: Path, sizes: Checkpoint, kind: Kind) -> None:
    """Write one folder that can be loaded; its configuration comes last, so that a folder with one is complete."""
    write_weights(weights, sizes)
    target.mkdir(parents=True, exist_ok=True)
    for file in weights.iterdir():
        (target / file.name).unlink(missing_ok=True)
        os.link(file, target / file.name)
    for file in (tokenizers / ("embedding" if kind == "embedding" else "reranker")).iterdir():
        shutil.copy(file, target / file.name)
    if kind == "embedding":
        _describe_embedding(target, sizes.hidden_size)
    else:
        _describe_reranking(target)
    names = {
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.ffn_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
    }
    config = qwen3_config(names, tied=sizes.tied_head, vocab_size=sizes.rows)
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_weights(folder: Path, sizes: Checkpoint) -> None:
    """Write the shards and their index, one shard in memory at a time; the index comes last."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards(sizes)):
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def shards(sizes: Checkpoint, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """The tensors of a causal model by their published names, in bfloat16: the tables first, then layer by layer."""
    generator = torch.Generator().manual_seed(seed)
    tables = {
        "model.embed_tokens.weight": _table(sizes, 1.0, generator),  # (rows, hidden)
        "model.norm.weight": _norm(sizes.hidden_size, generator),
    }
    if not sizes.tied_head:
        tables["lm_head.weight"] = _table(sizes, sizes.hidden_size**-0.5, generator)
    yield tables
    del tables
    layer = _layer(sizes, generator)
    for i in range(sizes.layers):
        yield {f"model.layers.{i}.{name}.weight": _varied(part, generator) for name, part in layer.items()}


def _table(sizes: Checkpoint, scale: float, generator: torch.Generator) -> Tensor:
    block = _random(min(BLOCK, sizes.rows), sizes.hidden_size, scale, generator)
    table = torch.empty(sizes.rows, sizes.hidden_size, dtype=torch.bfloat16)
    for start in range(0, sizes.rows, BLOCK):
        part = table[start : start + BLOCK]
        torch.mul(block[: len(part)], _signs(sizes.hidden_size, generator), out=part)
    return table


def _layer(sizes: Checkpoint, generator: torch.Generator) -> dict[str, Tensor]:
    hidden, ffn = sizes.hidden_size, sizes.ffn_size
    query, key = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    matrices = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    norms |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), sizes.head_dim)
    drawn = {name: _random(rows, columns, columns**-0.5, generator) for name, (rows, columns) in matrices.items()}
    return drawn | {name: _norm(size, generator) for name, size in norms.items()}


def _random(rows: int, columns: int, scale: float, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator).mul_(scale).to(torch.bfloat16)


def _norm(size: int, generator: torch.Generator) -> Tensor:
    return (1 + 0.1 * torch.randn(size, generator=generator)).to(torch.bfloat16)


def _varied(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The tensor with random signs of its rows; a norm's weights stay positive and are only put in another order."""
    if tensor.dim() == 1:
        return tensor[torch.randperm(len(tensor), generator=generator)]
    return tensor * _signs(len(tensor), generator)[:, None]


def _signs(size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (size,), generator=generator).mul_(2).sub_(1).to(torch.bfloat16)


def _describe_embedding(folder: Path, hidden: int) -> None:
    """The files by which sentence-transformers knows the published embedders: last token, unit length."""
    _write_modules(folder, "sentence_transformers.models", {"": "Transformer", "1_Pooling": "Pooling"} | _NORMALIZE)
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_lasttoken": True, "include_prompt": True}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Normalize").mkdir(exist_ok=True)


_NORMALIZE = {"2_Normalize": "Normalize"}


def _describe_reranking(folder: Path) -> None:
    """What sentence-transformers needs to see a causal reranker, and no more.

    Without modules.json it makes a `Transformer` for text generation and a `LogitScore` of "yes" and "no" of a
    checkpoint whose architecture ends in ForCausalLM (6.2, `CrossEncoder._load_default_modules`).
    """
    template = QWEN3_RERANKER.template("canonical")
    parts = {"PREFIX": template.prefix, "SUFFIX": template.suffix}
    text = "".join(f"{{%- set {name} = {json.dumps(part)} -%}}\n" for name, part in parts.items()) + CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _write_modules(folder: Path, package: str, kinds: dict[str, str]) -> None:
    modules: list[dict[str, Any]] = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    _write_json(folder / "modules.json", modules)


def _write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
