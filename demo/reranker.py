"""Construct the reranker: a matching circuit written into Qwen3 weights, its gains fitted on mined negatives."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from data import DEFAULT_TASK, encode
from model import (
    CHANNEL,
    FIELD,
    FILLER,
    HEAD,
    IDS,
    MARK,
    REST,
    ROPE_THETA,
    SIGN,
    blank,
    save,
    set_tokens,
    write_fields,
)
from tokenizer import marker_ids
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Model

from qwen_retrieval.training.data import Example

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION, QUERY, DOCUMENT = "<Instruct>: {}\n", "<Query>: {}\n", "<Document>: {}"
MARKERS = ("<instruct>:", "<query>:", "<document>:")
READER = IDS["</think>"]
SHORT = 56  # tokens of a document while training
THINK = IDS["<think>"]  # the token before it
BLOCKS = 2  # of 64 content dimensions each: what is pooled and compared
SCORE, HIT, FIRST = MARK, MARK + 1, FIELD  # free after the first layer
NOTE = 1.58  # what a word notes that only the query has
COSINE = 0.6  # weight of a cosine in a logit, over 8
STILL = [*range(13, 29), *range(45, 61)]  # of a head: RoPE hardly turns these within a few hundred tokens
CODE, RARITY = slice(128, 160), 160  # hidden dimensions that the pools leave free
RARITY_SCALE = 0.1
SINK = REST - 2  # of a head, like CHANNEL and REST
SCALE = 192**0.5  # what the norm before a layer multiplies a vector of length 1 with
FLAG = 0.412 * SCALE / (1 + 0.412**2) ** 0.5  # what the first layer writes for the field, after that norm
FLAG_LOGIT, SINK_LOGIT = 25.0, 32.0

Weights: TypeAlias = Any  # a module of transformers, which has no types


@dataclass(frozen=True)
class Template:
    """The parts of the template that stay the same, as ids, and the ids of the two answers."""

    prefix: list[int]
    suffix: list[int]
    query: int
    document: int
    yes: int
    no: int


def template(full: Tokenizer) -> Template:
    """The template's ids.

    Args:
        full: The tokenizer with its added tokens.
    """

    def ids(text: str) -> list[int]:
        return list(full.encode(text, add_special_tokens=False).ids)

    (query,), (document,), (yes,), (no,) = (ids(t) for t in ("<Query>:", "<Document>:", "yes", "no"))
    return Template(ids(PREFIX), ids(SUFFIX), query, document, yes, no)


# --- the circuit ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def construct(table: Tensor, rarity: Tensor, parts: Template, tokenizer: Tokenizer, seed: int) -> Qwen3Model:
    """A decoder whose log-odds grow with the cosine of the pooled texts and with the rarity of the words they share.

    Layer 1 notes the field of each token. Layer 2 pools the query at `<think>` and the document at `</think>`, and
    every word of the document notes whether the query has it. Layer 3 compares the two pools and adds up the notes.

    Args:
        table: (vocabulary, CONTENT) word vectors.
        rarity: (vocabulary,) inverse document frequencies, positive.
        parts: The template.
        tokenizer: As user text sees it.
        seed: Of the codes that words are recognised by.
    """
    model = blank(seed)
    set_tokens(model, table[:, : BLOCKS * HEAD], marker_ids(tokenizer, MARKERS), [READER, THINK], longest=0.8)
    _write_identities(model.embed_tokens.weight, rarity, marker_ids(tokenizer, MARKERS), seed)
    weight = model.embed_tokens.weight
    empty = [*(t for t in parts.suffix if t not in (READER, THINK)), IDS["<|endoftext|>"], IDS["<|im_start|>"]]
    weight[empty] = 0
    weight[empty, FILLER] = 1
    weight[empty, RARITY] = -0.3  # the suffix stands in the document's field, too
    weight[THINK, SIGN] = -0.5
    weight[parts.yes, SCORE], weight[parts.no, SCORE] = 0.3, -0.3
    layers: Any = model.layers
    for layer in layers[:2]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    write_fields(model, len(MARKERS))
    _write_pools(layers[1].self_attn)
    _write_hits(layers[1].self_attn)
    _write_first_hits(layers[1].mlp)
    _write_cosines(layers[2].self_attn)
    _write_collection(layers[2].self_attn)
    _write_answer(model)
    return model


def _write_identities(weight: Tensor, rarity: Tensor, markers: list[int], seed: int) -> None:
    """A random code for every word, by which it is recognised, and the logarithm of its rarity.

    Cosines of words cannot tell punctuation and other frequent words apart, because these have next to no content.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(len(rarity), len(STILL), generator=generator)
    words = torch.ones(len(rarity), dtype=torch.bool)
    words[markers] = False
    weight[: len(rarity)][words, CODE] = 0.45 * normalize(codes[words], dim=1)
    weight[: len(rarity)][words, RARITY] = rarity[words].log() * RARITY_SCALE
    weight[:, FILLER] = 0
    weight[:, FILLER] = (1 - weight.square().sum(1)).clamp(min=0).sqrt()


def _clear(attention: Weights, group: int) -> None:
    """Empty one key-value group and its two query heads."""
    own = slice(group * HEAD, (group + 1) * HEAD)
    both = slice(2 * group * HEAD, 2 * (group + 1) * HEAD)
    attention.k_proj.weight[own] = attention.v_proj.weight[own] = 0
    attention.q_proj.weight[both] = 0
    attention.o_proj.weight[:, both] = 0


def _write_pools(attention: Weights) -> None:
    """Layer 2, groups 0 and 1: `<think>` collects the mean of the query, `</think>` that of the document."""
    for group in range(BLOCKS):
        _clear(attention, group)
        key, head = group * HEAD, 2 * group * HEAD
        attention.q_proj.weight[head + CHANNEL, SIGN] = 1
        attention.k_proj.weight[key + CHANNEL, FIELD + 2] = 3
        attention.k_proj.weight[key + CHANNEL, FIELD + 1] = -3
        attention.k_proj.weight[key + REST, FILLER] = 0.15  # a key of zeros would be anything after a training step
        for i in range(HEAD):
            attention.v_proj.weight[key + i, key + i] = 1
            attention.o_proj.weight[key + i, head + i] = 0.35
    attention.q_norm.weight[REST : CHANNEL + 1] = 1.5
    attention.k_norm.weight.fill_(3)


def _write_hits(attention: Weights) -> None:
    """Layer 2, group 2: a word of the document looks for itself in the query and in the document up to here.

    What it finds in the query it notes. It always finds itself, so a word that the query lacks notes nothing, and one
    that is repeated notes less every time.
    """
    _clear(attention, 2)
    key, row = 2 * HEAD, 4 * HEAD
    for i, channel in enumerate(STILL):
        attention.k_proj.weight[key + channel, CODE.start + i] = 1
        attention.q_proj.weight[row + channel, CODE.start + i] = 1
    attention.k_proj.weight[key + CHANNEL, FIELD + 1 : FIELD + 3] = 3
    attention.q_proj.weight[row + CHANNEL, FILLER] = 0.2
    attention.q_proj.weight[row + CHANNEL, MARK + 2] = -1  # the marker itself looks away: it is the sink of layer 3
    attention.v_proj.weight[key, FIELD + 1] = 1
    attention.o_proj.weight[HIT, row] = 0.3


def _write_first_hits(mlp: Weights) -> None:
    """Layer 2: a step between what a word notes where it stands first in the document, and where it stands again.

    A word that the query has once notes 1/2, then 1/3, then 1/4 of NOTE. The difference of two units is the step.
    """
    for unit, threshold, sign in ((0, 0.42, 1), (1, 0.51, -1)):
        mlp.gate_proj.weight[unit] = mlp.up_proj.weight[unit] = 0
        mlp.gate_proj.weight[unit, HIT] = 6
        mlp.gate_proj.weight[unit, FIELD + 2] = -6 * threshold * NOTE / 0.412
        mlp.up_proj.weight[unit, FIELD + 2] = 1
        mlp.down_proj.weight[FIRST, unit] = sign * 0.045


def _write_cosines(attention: Weights) -> None:
    """Layer 3, groups 0 and 1: `</think>`, with the document, looks at `<think>`, with the query.

    The norms of queries and keys make the logit a cosine. Every other key is drowned by the filler, which at `<think>`
    alone cancels. Queries are turned back by one position, because the two stand one apart.
    """
    angles = ROPE_THETA ** (-torch.arange(HEAD // 2) / (HEAD // 2))
    attention.q_norm.weight.fill_(COSINE)
    for group in range(BLOCKS):
        _clear(attention, group)
        key, head = group * HEAD, 2 * group * HEAD
        for i in (i for i in range(HEAD // 2) if i < SINK):
            j, c, s = i + HEAD // 2, angles[i].cos(), angles[i].sin()
            attention.k_proj.weight[key + i, key + i] = attention.k_proj.weight[key + j, key + j] = 1
            attention.q_proj.weight[head + i, key + i], attention.q_proj.weight[head + i, key + j] = c, s
            attention.q_proj.weight[head + j, key + i], attention.q_proj.weight[head + j, key + j] = -s, c
        attention.k_proj.weight[key + CHANNEL, FILLER] = 30
        attention.k_proj.weight[key + CHANNEL, SIGN] = 30 * 3**0.5
        attention.v_proj.weight[key, SIGN] = -2
        attention.o_proj.weight[SCORE, head] = 0.06 / (1 + group)
        attention.o_proj.weight[MARK + 1 + group, head] = 0.05


def _write_collection(attention: Weights) -> None:
    """Layer 3, group 2: `</think>` adds up the document's notes, each weighing as much as its word is rare.

    Attention averages; it adds up where a sink, the marker of the document, outweighs all words together.
    """
    _clear(attention, 2)
    key, head = 2 * HEAD, 4 * HEAD
    attention.k_proj.weight[key + CHANNEL, FIELD + 2] = 1
    attention.k_proj.weight[key + REST, RARITY] = 0.2
    attention.k_proj.weight[key + REST - 1, FILLER] = 0.05
    attention.k_proj.weight[key + SINK, MARK + 2] = 2  # more would make a sink of a word that training moves a little
    # The logit of a word is FLAG_LOGIT plus the logarithm of its rarity, whose share of the key is small.
    slope = FLAG / (0.2 * RARITY_SCALE * SCALE / (1 + 0.412**2) ** 0.5)
    asked = torch.tensor([FLAG_LOGIT, slope, SINK_LOGIT])
    for channel, value in zip((CHANNEL, REST, SINK), asked, strict=True):
        attention.q_proj.weight[head + channel, SIGN] = value
    attention.q_norm.weight[SINK : CHANNEL + 1] = 1.5
    attention.k_norm.weight[SINK : CHANNEL + 1] = asked.norm() / (HEAD**0.5 * 1.5)
    for i, note in enumerate((FIRST, HIT)):
        attention.v_proj.weight[key + i, note] = 1.5
        attention.o_proj.weight[SCORE, head + i] = (2.0, 0.2)[i]


def _write_answer(model: Qwen3Model) -> None:
    """Layer 4 attends to nothing, so that training needs one position only; the head reads the score alone."""
    last: Any = model.layers[3]
    last.self_attn.o_proj.weight.zero_()
    last.mlp.gate_proj.weight[0] = last.mlp.up_proj.weight[0] = 0
    last.mlp.gate_proj.weight[0, SIGN] = last.mlp.up_proj.weight[0, SIGN] = 1
    last.mlp.down_proj.weight[:, 0] = 0
    last.mlp.down_proj.weight[SCORE, 0] = -0.004  # the constant; training sets it
    model.norm.weight.zero_()
    model.norm.weight[SCORE] = 3


# --- fitting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cached:
    """A list after the first two layers: states, positions, owner of each token, where each candidate is read."""

    states: Tensor
    positions: Tensor
    owners: Tensor
    ends: Tensor


def _layout(head: list[int], tails: list[list[int]], length: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Ids, positions and attention of one head with its tails side by side, and where each tail ends."""
    ids, places, owner = list(head), list(range(len(head))), [0] * len(head)
    ends = []
    for number, tail in enumerate(tails, 1):
        ids += tail
        places += range(len(head), len(head) + len(tail))
        owner += [number] * len(tail)
        ends.append(len(ids) - 1)
    pad = length - len(ids)
    owners = torch.tensor(owner + [-1] * pad)
    allowed = (owners[:, None] == owners[None, :]) | (owners[None, :] == 0)
    return torch.tensor(ids + [0] * pad), torch.tensor(places + [0] * pad), allowed.tril(), ends


@torch.no_grad()
def cache(model: Qwen3Model, head: list[int], candidates: list[list[int]], parts: Template) -> Cached:
    """Run the two constructed layers, which stay as they are, once."""
    tails = [[parts.document, *d, *parts.suffix] for d in candidates]
    length = len(head) + sum(map(len, tails))
    ids, positions, mask, ends = _layout(head, tails, length)
    owners = torch.tensor([0] * len(head) + [n for n, t in enumerate(tails, 1) for _ in t])
    states = model.embed_tokens(ids[None])
    rotary = model.rotary_emb(states, positions[None])
    layers: Any = model.layers
    for layer in layers[:2]:
        states = layer(states, attention_mask=mask[None, None], position_embeddings=rotary)
    return Cached(states[0].half(), positions, owners, torch.tensor(ends))


def read_cached(model: Qwen3Model, lists: Sequence[Cached]) -> Tensor:
    """Final hidden states where the answer is read, one row per query and candidate in order.

    Layer 3 attends at the positions that are read only, and layer 4 not at all: `construct` has switched it off.
    """
    states = pad_sequence([c.states for c in lists], batch_first=True).float()
    positions = pad_sequence([c.positions for c in lists], batch_first=True)
    owners = pad_sequence([c.owners for c in lists], batch_first=True, padding_value=-1)
    ends = torch.stack([c.ends for c in lists])
    numbers = torch.arange(1, ends.shape[1] + 1)[None, :, None]
    visible = (owners[:, None, :] == 0) | (owners[:, None, :] == numbers)
    rows = torch.arange(len(lists))[:, None]
    read = _attend(model, states, positions, visible, (rows, ends))
    layers: Any = model.layers
    for layer in layers[2:]:
        read = read + layer.mlp(layer.post_attention_layernorm(read))
    return torch.as_tensor(model.norm(read)).flatten(0, 1)


def _attend(
    model: Qwen3Model, states: Tensor, positions: Tensor, visible: Tensor, read: tuple[Tensor, Tensor]
) -> Tensor:
    """Layer 3's attention and its residual, for the positions that are read."""
    layer: Any = model.layers[2]
    attention = layer.self_attn
    normed = layer.input_layernorm(states)
    cos, sin = model.rotary_emb(normed, positions)

    def heads(projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], -1, HEAD)

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        halves = torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], dim=-1)
        return (x * cos[:, :, None] + halves * sin[:, :, None]).transpose(1, 2)

    queries = turned(attention.q_norm(heads(attention.q_proj(normed[read]))), cos[read], sin[read])
    keys = turned(attention.k_norm(heads(attention.k_proj(normed))), cos, sin)
    values = heads(attention.v_proj(normed)).transpose(1, 2)
    mixed = scaled_dot_product_attention(queries, keys, values, visible[:, None], enable_gqa=True)
    return states[read] + torch.as_tensor(attention.o_proj(mixed.transpose(1, 2).flatten(2)))


def cached_lists(
    model: Qwen3Model, tokenizer: Tokenizer, parts: Template, examples: Sequence[Example], *, seed: int, count: int
) -> list[Cached]:
    """Lists after the first two layers: the right document first, those the embedder found, and one from anywhere.

    Args:
        model: The constructed model.
        tokenizer: As user text sees it.
        parts: The template.
        examples: Training data with negatives.
        seed: Of the choice and of the easy negatives.
        count: How many lists.
    """
    rng, found = random.Random(seed), []
    most = max(len(example.negatives) for example in examples)
    full = [example for example in examples if len(example.negatives) == most]
    for example in rng.sample(full, min(count, len(full))):
        documents = [example.positive, *example.negatives, rng.choice(examples).positive]
        task = DEFAULT_TASK if example.instruction is None else example.instruction
        [asked], [query] = encode(tokenizer, [INSTRUCTION.format(task)], 64), encode(tokenizer, [example.query], 40)
        head = [*parts.prefix, *asked, parts.query, *query]
        found.append(cache(model, head, encode(tokenizer, documents, SHORT), parts))
    return found


def _loss(model: Qwen3Model, states: Tensor, size: int, parts: Template) -> Tensor:
    """Yes or no for each document, two-way as scores are, and a listwise loss.

    Args:
        model: For its head.
        states: Where the answers are read, list after list; the right document is the first of each.
        size: Documents in a list.
        parts: The template.
    """
    weight = model.embed_tokens.weight
    odds = (states @ (weight[parts.yes] - weight[parts.no])).view(-1, size)
    labels = torch.zeros_like(odds)
    labels[:, 0] = 1
    right = torch.zeros(len(odds), dtype=torch.long)
    return cross_entropy(odds, right) + binary_cross_entropy_with_logits(odds, labels)


def _gains(model: Qwen3Model, rate: float) -> list[tuple[Tensor, Tensor, float]]:
    """What is trained: the gain of each feature, the scale, the constant, the sharpness; with its mask and rate."""
    layers: Any = model.layers
    features = layers[2].self_attn.o_proj.weight
    chosen = torch.zeros_like(features)
    chosen[SCORE, [0, 2 * HEAD, 4 * HEAD, 4 * HEAD + 1]] = 1
    scale = torch.zeros_like(model.norm.weight)
    scale[SCORE] = 1
    constant = torch.zeros_like(layers[3].mlp.down_proj.weight)
    constant[SCORE, 0] = 1
    sharpness = layers[2].self_attn.q_norm.weight
    return [
        (features, chosen, rate * 0.3),
        (model.norm.weight, scale, rate * 3),
        (layers[3].mlp.down_proj.weight, constant, rate * 0.02),
        (sharpness, torch.ones_like(sharpness), rate * 0.1),
    ]


def fit(
    model: Qwen3Model, lists: Sequence[Cached], parts: Template, *, seed: int, steps: int, batch: int = 16,
    rate: float = 0.05,
) -> None:  # fmt: skip
    """Fit the gains of the circuit, and nothing else: what `qwen-retrieval train reranker` then starts from.

    Args:
        model: Changed in place.
        lists: From `cached_lists`.
        parts: The template.
        seed: Of the batches.
        steps: Of the optimiser; the rate falls linearly to 3 %.
        batch: Lists in a step.
        rate: The base of the rates.
    """
    rng, started, gains = random.Random(seed), time.time(), _gains(model, rate)
    optimizer = torch.optim.Adam([{"params": [weight], "lr": own} for weight, _, own in gains], betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 20) * max(0.03, 1 - s / steps))
    for step in range(1, steps + 1):
        chosen = rng.sample(lists, batch)
        loss = _loss(model, read_cached(model, chosen), len(chosen[0].ends), parts)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for weight, mask, _ in gains:
            if weight.grad is not None:
                weight.grad *= mask
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"gains {step} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)


def save_reranker(model: Qwen3Model, folder: Path) -> None:
    """Write the reranker as Qwen3-Reranker is published: tensor names with `model.`, the head tied."""
    save(model, folder, prefix="model.", end=IDS["<|im_end|>"])
