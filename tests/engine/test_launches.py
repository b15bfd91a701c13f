"""How many operators a forward pass asks the device for: counts that depend on no machine, so that tests may assert.

The CUDA path is traced on the meta device, which knows shapes and computes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_retrieval.batching import pack
from qwen_retrieval.engine.attention import Attention, Spans
from qwen_retrieval.engine.decoder import Decoder, Strategy
from qwen_retrieval.engine.flash_attention import plan_flash_attention
from qwen_retrieval.engine.kernels import EagerKernels, Kernels, Rope
from qwen_retrieval.engine.weights import DecoderConfig, DecoderWeights, LayerWeights
from qwen_retrieval.types import TokenIds

META = torch.device("meta")
LAYERS = 5
CONFIG = DecoderConfig(
    vocab_size=1000, hidden_size=1024, intermediate_size=3072, num_layers=LAYERS, num_heads=16, num_kv_heads=8,
    head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, tied_head=True,
)  # fmt: skip
VIEWS = {"view", "split", "split_with_sizes", "slice", "unbind", "transpose", "unsqueeze", "chunk", "flatten", "size"}


class FusedShapes:
    """`Kernels` of one operator each, as the fused ones are; of the shapes alone."""

    def add_rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:  # noqa: ARG002
        return torch.empty_like(hidden)

    def norm_rotate(self, heads: Tensor, weight: Tensor, rope: Rope, eps: float) -> None:  # noqa: ARG002
        heads.zero_()

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that are more than another view of the same memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def decoder(kernels: Kernels) -> Decoder:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=META)

    hidden, ffn, query, key = 1024, 3072, CONFIG.query_size, CONFIG.key_size
    layers = [
        LayerWeights(
            input_norm=empty(hidden),
            qkv=empty(query + 2 * key, hidden),
            head_norms=empty(24, 128),
            output=empty(hidden, query),
            mlp_norm=empty(hidden),
            gate_up=empty(2 * ffn, hidden),
            down=empty(hidden, ffn),
        )
        for _ in range(LAYERS)
    ]
    weights = DecoderWeights(empty(1000, hidden), layers, empty(hidden))
    return Decoder(weights, CONFIG, META, Strategy(kernels, plan))


def plan(spans: Spans, device: torch.device, dtype: torch.dtype) -> Attention:  # noqa: ARG001
    return plan_flash_attention(spans, dense=True)


def ids(seed: int, length: int) -> TokenIds:
    rng = random.Random(seed)
    return [rng.randrange(1000) for _ in range(length)]


DOCUMENTS = [ids(i, 40 + i) for i in range(50)]
PAIRS = [ids(0, 75) + ids(i, 80) for i in range(1, 51)]


def launches(kernels: Kernels, batch: list[TokenIds]) -> Counter[str]:
    model = decoder(kernels)
    staged = model.stage(pack(batch), torch.bfloat16)
    model.forward(staged, torch.bfloat16)  # makes the table of rotary positions
    with Launches() as counted:
        assert model.forward(staged, torch.bfloat16).shape == (len(batch), 1024)
    counts: Counter[str] = counted.counts
    return counts


@pytest.mark.parametrize(("batch", "gathers"), [(DOCUMENTS, 0), (PAIRS, 1)], ids=["documents", "pairs"])
def test_a_layer_takes_nine_launches_and_one_more_for_shared_prefixes(batch: list[TokenIds], gathers: int) -> None:
    counts = launches(FusedShapes(), batch)
    assert counts["linear"] == 4 * LAYERS + 1  # the last layer multiplies queries and keys apart
    assert counts["_flash_attention_forward"] == LAYERS
    assert sum(counts.values()) <= (9 + gathers) * LAYERS + 12  # embedding, last tokens, last norm


def test_without_fused_kernels_a_layer_takes_half_of_what_transformers_takes() -> None:
    assert sum(launches(EagerKernels(), DOCUMENTS).values()) <= 59 / 2 * LAYERS + 12  # 59: traced, transformers 5.23


def test_nothing_is_copied_from_or_to_the_device_during_a_pass() -> None:
    counts = launches(FusedShapes(), PAIRS)
    assert not {"_to_copy", "_local_scalar_dense", "nonzero", "copy_", "clone"} & set(counts)
