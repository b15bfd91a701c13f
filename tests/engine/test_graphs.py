"""Small batches in fixed memory, as CUDA graphs replay them; here the recorded pass is run again instead."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.decoder import Decoder
from qwen_retrieval.engine.graphs import MAX_INPUTS, SIZES, GraphedPasses
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, load_decoder
from qwen_retrieval.loading import read_config
from qwen_retrieval.types import TokenIds
from tests.checkpoints import TINY, write_checkpoint
from tests.engine.flash_reference import literal_varlen

VOCABULARY = 500


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    empty = tmp_path_factory.mktemp("no-tokenizer")
    shape = TINY | {"num_hidden_layers": 2}
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), empty, shape, prefix=False, vocab_size=VOCABULARY)
    config, cpu = DecoderConfig.from_json(read_config(folder)), torch.device("cpu")
    with Checkpoint(folder) as checkpoint:
        return Decoder(load_decoder(checkpoint, config, cpu, torch.float32), config, cpu)


class Recorder:
    """Records as a CUDA graph does: afterwards only memory changes, never what is computed or where it stands."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        self.recorded += 1
        result = compute()
        return lambda: result.copy_(compute()), result


def passes(decoder: Decoder, recorder: Recorder) -> GraphedPasses:
    return GraphedPasses(decoder, torch.float32, record=recorder, varlen=literal_varlen)


def ids(seed: int, length: int) -> TokenIds:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


small = st.lists(st.integers(1, 60), min_size=1, max_size=MAX_INPUTS)


@settings(max_examples=25, deadline=None)
@given(st.lists(small, min_size=1, max_size=3))
def test_batches_in_fixed_memory_give_what_they_give_elsewhere(decoder: Decoder, batches: list[list[int]]) -> None:
    replayed = passes(decoder, Recorder())
    for lengths in batches:  # one after the other in the same memory: nothing of the one before may be left
        batch = [ids(i, length) for i, length in enumerate(lengths)]
        found = replayed.last_hidden_states(batch)
        expected = decoder.last_hidden_states(pack(batch), torch.float32)
        assert found is not None
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_each_size_is_recorded_once(decoder: Decoder) -> None:
    recorder = Recorder()
    replayed = passes(decoder, recorder)
    for tokens in (3, 32, 33, 64, 20, 65, 50):
        replayed.last_hidden_states([ids(0, tokens)])
    assert recorder.recorded == 3


@pytest.mark.parametrize(
    "batch", [[], [ids(0, SIZES[-1] + 1)], [[1]] * (MAX_INPUTS + 1)], ids=["none", "too long", "too many"]
)
def test_what_is_not_small_is_left_to_others(decoder: Decoder, batch: list[TokenIds]) -> None:
    assert passes(decoder, Recorder()).last_hidden_states(batch) is None


def test_a_recording_that_fails_is_given_up_with_a_word(decoder: Decoder, caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def fail(compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        tried.append(compute)
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed = GraphedPasses(decoder, torch.float32, record=fail, varlen=literal_varlen)
    assert replayed.last_hidden_states([[1, 2]]) is None
    assert replayed.last_hidden_states([[1, 2]]) is None
    assert len(tried) == 1
    assert caplog.messages == [
        "computing small batches without CUDA graphs, more slowly: operation not permitted when stream is capturing"
    ]
