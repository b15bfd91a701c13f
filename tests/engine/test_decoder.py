"""The packed decoder against transformers' own Qwen3 model in float32."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Model

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.decoder import Decoder
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, load_decoder
from qwen_retrieval.loading import read_config
from qwen_retrieval.types import FloatArray, TokenIds
from tests.checkpoints import TINY, write_checkpoint
from tests.reference import base_model, last_hidden_states

VOCABULARY = 2_000
TOLERANCE = 1e-5
"""Absolute, on unit vectors, and of their cosine: float32 against float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    empty = tmp_path_factory.mktemp("no-tokenizer")
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), empty, TINY, prefix=False, vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Qwen3Model:
    return base_model(folder)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    config, cpu = DecoderConfig.from_json(read_config(folder)), torch.device("cpu")
    with Checkpoint(folder) as checkpoint:
        return Decoder(load_decoder(checkpoint, config, cpu, dtype), config, cpu)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return load(folder)


def units(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def compute(decoder: Decoder, batch: list[TokenIds], dtype: torch.dtype = torch.float32) -> FloatArray:
    return decoder.last_hidden_states(pack(batch), dtype).float().numpy()


def assert_equal_vectors(found: FloatArray, expected: FloatArray, tolerance: float = TOLERANCE) -> None:
    found, expected = units(found), units(expected)
    assert np.abs(found - expected).max() <= tolerance
    assert (found * expected).sum(axis=1).min() >= 1 - tolerance


def ids(seed: int, length: int) -> TokenIds:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


BATCHES = {
    "one token": [[7]],
    "one input": [ids(1, 33)],
    "mixed lengths": [ids(i, n) for i, n in enumerate((1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233))],
    "equal lengths": [ids(i, 24) for i in range(9)],
    "equal inputs": [ids(1, 12)] * 5,
    "one shared prefix": [ids(0, 40) + ids(i, i) for i in range(1, 20)],
    "prefixes of prefixes": [ids(0, 39) + ids(i % 3 + 100, 25) + ids(i, 5 + 7 * i % 40) for i in range(30)],
    "one is the start of another": [ids(0, n) for n in (20, 40, 41, 80)],
    "shared and unshared": [ids(0, 32) + ids(i, 9) for i in range(4)] + [ids(i, 50) for i in range(50, 54)],
    "long and short": [ids(1, 700), *([i] for i in range(40))],
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_vectors_equal_those_of_transformers(decoder: Decoder, reference: Qwen3Model, batch: list[TokenIds]) -> None:
    assert_equal_vectors(compute(decoder, batch), last_hidden_states(reference, batch))


@pytest.mark.parametrize("length", [1, 23])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_inputs_behind_a_beginning_that_was_computed_before_equal_those_of_transformers(
    decoder: Decoder, reference: Qwen3Model, batch: list[TokenIds], length: int
) -> None:
    start = ids(99, length)
    inputs = [start + own for own in batch]
    beginning = decoder.beginning(start, torch.float32)
    found = decoder.last_hidden_states(pack(inputs, behind=length), torch.float32, beginning).numpy()
    assert_equal_vectors(found, last_hidden_states(reference, inputs))


def test_the_reference_tells_inputs_apart(reference: Qwen3Model) -> None:
    vectors = units(last_hidden_states(reference, BATCHES["mixed lengths"]))
    cosines = (vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)]
    assert cosines.max() < 0.9  # else the comparisons above would prove nothing


def test_the_order_of_tokens_matters(decoder: Decoder) -> None:
    forwards, backwards = units(compute(decoder, [[*ids(3, 20), 9], [*ids(3, 20)[::-1], 9]]))
    assert float(forwards @ backwards) < 0.9


inputs = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=60), min_size=1, max_size=12)


@settings(max_examples=20)
@given(inputs)
def test_a_batch_gives_what_each_input_gives_alone(decoder: Decoder, batch: list[TokenIds]) -> None:
    # Ids from 0 to 3 make shared prefixes, duplicates and inputs that start others likely.
    together = compute(decoder, batch)
    alone = np.concatenate([compute(decoder, [one]) for one in batch])
    assert_equal_vectors(together, alone)


@settings(max_examples=8)
@given(st.permutations(range(12)))
def test_the_order_of_inputs_changes_nothing_but_the_order(decoder: Decoder, order: list[int]) -> None:
    batch = [ids(0, 20) + ids(i, 3 * i + 1) for i in range(12)]
    shuffled = compute(decoder, [batch[i] for i in order])
    assert_equal_vectors(shuffled, compute(decoder, batch)[order])


@pytest.mark.parametrize("name", ["mixed lengths", "prefixes of prefixes"])
def test_bfloat16_errs_at_most_twice_as_much_as_transformers_in_bfloat16(
    folder: Path, decoder: Decoder, name: str
) -> None:
    batch = BATCHES[name]
    exact = units(compute(decoder, batch))
    ours = units(compute(load(folder, torch.bfloat16), batch, torch.bfloat16))
    half = base_model(folder)
    half.bfloat16()
    theirs = units(last_hidden_states(half, batch))
    assert np.abs(ours - exact).max() <= 2 * np.abs(theirs - exact).max()
    assert np.abs(ours - exact).max() > 0


def test_weights_kept_in_bfloat16_can_be_computed_in_float32(folder: Path) -> None:
    batch = BATCHES["mixed lengths"]
    rounded = base_model(folder)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert_equal_vectors(
        compute(load(folder, torch.bfloat16), batch, torch.float32), last_hidden_states(rounded, batch)
    )


def test_a_prefix_that_inputs_share_is_computed_once() -> None:
    packed = pack([ids(0, 69) + ids(i, 80) for i in range(1, 51)])
    assert packed.tokens == 50 * 149
    assert packed.computed_tokens == 69 + 50 * 80
