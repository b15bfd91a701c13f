"""Construct the embedder: a decoder that averages the words of a text, the instruction left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from model import CHANNEL, CONTENT, FIELD, FILLER, HEAD, IDS, KV_HEADS, REST, blank, save, set_tokens, write_fields
from tokenizer import marker_ids
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3Model

END = IDS["<|endoftext|>"]


@torch.no_grad()
def construct(table: Tensor, tokenizer: Tokenizer, seed: int) -> Qwen3Model:
    """A decoder that computes the bag of tokens, the instruction left out, at the end token."""
    model = blank(seed)
    markers = marker_ids(tokenizer, ("instruct:", "query:"))
    set_tokens(model, table, markers, [END])
    write_fields(model, len(markers))
    attention: Any = model.layers[1].self_attn
    attention.q_norm.weight[CHANNEL] = -0.8  # away from tokens of the instruction
    for head in range(KV_HEADS):
        own, width = head * HEAD, min(HEAD, CONTENT - head * HEAD)
        for projection in (attention.k_proj, attention.v_proj):
            projection.weight[own : own + HEAD] = 0
        attention.q_proj.weight[2 * own : 2 * own + HEAD] = 0
        attention.q_proj.weight[2 * own + CHANNEL, FILLER] = 1
        attention.k_proj.weight[own + REST, FILLER] = 1
        attention.k_proj.weight[own + CHANNEL, FIELD] = 3
        attention.o_proj.weight[:, 2 * own : 2 * own + HEAD] = 0
        for i in range(width):
            attention.v_proj.weight[own + i, own + i] = 1
            attention.o_proj.weight[own + i, 2 * own + i] = 0.35
    model.norm.weight[CONTENT:] = 0
    return model


def save_embedder(model: Qwen3Model, folder: Path) -> None:
    """Write the embedder as Qwen3-Embedding is published: tensor names without `model.`."""
    save(model, folder, prefix="", end=END)
