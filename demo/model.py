"""The tiny Qwen3 and the circuits that are written into it before training.

A decoder of this size does not find out in minutes how to pool words or compare two texts, so the first layers are
constructed from ordinary Qwen3 weights, and training refines them. The last dimensions of the hidden state are set
aside for that: every token vector gets the same length through a filler, so that RMS normalisation keeps the relative
weights of words, and the markers of the templates carry one dimension each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

HIDDEN, HEAD, HEADS, KV_HEADS, INTERMEDIATE, LAYERS = 192, 64, 6, 3, 384, 4
CONTENT = 184
FILLER, MARK = 184, 185  # MARK + 0..2: the markers themselves, in the order of their templates
FIELD = 188  # FIELD + 0..2: in which field a token stands, written by the first layer
SIGN = 191  # the position that is read
CHANNEL, REST = 31, 30  # of a head; RoPE turns these by less than 1e-5 radians a token, so they do not see positions
LAST_PRIORITY = (0.45, 0.72, 0.995)
IDS = {"<|endoftext|>": 8192, "<|im_start|>": 8193, "<|im_end|>": 8194, "<think>": 8195, "</think>": 8196}
ROPE_THETA = 1e6


def config(vocabulary: int = 8197) -> Qwen3Config:
    """The shape of both models."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        attention_bias=False,
        use_sliding_window=False,
    )


def blank(seed: int) -> Qwen3Model:
    """A model whose layers pass their input on: small random weights, and nothing written back."""
    torch.manual_seed(seed)
    model = Qwen3Model(config())
    with torch.no_grad():
        layers: Any = model.layers
        for layer in layers:
            layer.self_attn.o_proj.weight.normal_(std=1e-3)
            layer.mlp.down_proj.weight.normal_(std=1e-3)
    return model


@torch.no_grad()
def set_tokens(model: Qwen3Model, table: Tensor, markers: list[int], readers: list[int], longest: float = 0.95) -> None:
    """Write the token table: content, filler, markers and the tokens at which the answer is read.

    Args:
        model: Changed in place.
        table: (vocabulary, CONTENT) word vectors, their length the weight of the word.
        markers: Token ids of the template's markers, weakest first: where two stand before a token the later one
            of the template must win.
        readers: Tokens without content at whose position the model is read.
        longest: Length of the longest word vector.
    """
    norms = table.norm(dim=1)
    scale = norms[norms > 0].quantile(0.99)
    content = table * (longest / torch.clamp(norms, min=scale))[:, None]
    weight = model.embed_tokens.weight
    weight.zero_()
    weight[: len(content), : table.shape[1]] = content
    weight[markers + readers] = 0
    for place, token in enumerate(markers):
        weight[token, MARK + place] = LAST_PRIORITY[place + 3 - len(markers)]
    weight[readers, SIGN] = 0.5
    weight[:, FILLER] = (1 - weight.square().sum(1)).clamp(min=0).sqrt()


@torch.no_grad()
def write_fields(model: Qwen3Model, markers: int) -> None:
    """Layer 1: every token attends to the last marker before it and notes which one that is."""
    attention: Any = model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection.weight[:HEAD] = 0
    attention.q_proj.weight[CHANNEL, FILLER] = 1
    attention.k_proj.weight[REST, FILLER] = 1
    attention.k_proj.weight[CHANNEL, MARK : MARK + markers] = 1
    attention.o_proj.weight[:, :HEAD] = 0
    for place in range(markers):
        attention.v_proj.weight[place, MARK + place] = 1
        attention.o_proj.weight[FIELD + place, place] = 0.03 / LAST_PRIORITY[place + 3 - markers]
    attention.q_norm.weight[CHANNEL] = 2.2


@torch.no_grad()
def save(model: Qwen3Model, folder: Path, *, prefix: str, end: int) -> None:
    """Write `config.json` and `model.safetensors` in bf16.

    Args:
        model: The decoder; its head is tied to the token table.
        folder: Where to.
        prefix: Of the tensor names: empty as in Qwen3-Embedding, `model.` as in Qwen3-Reranker.
        end: Token id for `eos_token_id`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    saved = model.config.to_diff_dict()
    saved |= {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True, "bos_token_id": IDS["<|endoftext|>"], "eos_token_id": end,
        "pad_token_id": IDS["<|endoftext|>"], "dtype": "bfloat16", "torch_dtype": "bfloat16",
    }  # fmt: skip
    saved |= {key: getattr(model.config, key) for key in _ALWAYS}
    saved.pop("_name_or_path", None)
    text = json.dumps(dict(sorted(saved.items())), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


_ALWAYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias", "hidden_act",
)  # fmt: skip
