"""One packed forward pass through a Qwen3 decoder: [tokens, hidden] everywhere, no padding in any matrix product.

The architecture is that of transformers' `Qwen3Model` (its float32 results are the reference in the tests):
pre-norm, grouped-query attention with RMS-normalised queries and keys, rotary positions, gated SiLU MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qwen_retrieval.batching import PackedBatch, pack
from qwen_retrieval.engine.attention import Attention, Spans, plan_attention
from qwen_retrieval.engine.kernels import Kernels, Rope, choose_kernels, rope_table
from qwen_retrieval.engine.matrices import cast, linear
from qwen_retrieval.engine.staging import upload
from qwen_retrieval.engine.weights import DecoderConfig, DecoderWeights, LayerWeights, Matrix
from qwen_retrieval.types import TokenIds

MLP_CHUNK = 1024
"""Rows of the MLP computed at a time on the CPU, so that its wide intermediate stays in the cache."""

SHORTEST_ROPE_TABLE = 1024
"""Positions that are tabulated at first; longer inputs make the table longer."""

AttentionPlanner = Callable[[Spans, torch.device, torch.dtype], Attention]

Product = Callable[[Tensor, Matrix], Tensor]


@dataclass(frozen=True, slots=True)
class Strategy:
    """How to compute: each part may be exchanged, which changes the last bits of the result.

    Attributes:
        kernels: The elementwise operations.
        plan: What plans attention; by default what is fastest on the device.
        multiply: What multiplies rows by a layer's matrices.
        share: Whether beginnings that inputs have in common are computed once.
        threads: How many threads torch has to use; None for as many as it uses in the thread that computes.
    """

    kernels: Kernels
    plan: AttentionPlanner = plan_attention
    multiply: Product = linear
    share: bool = True
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Beginning:
    """What inputs begin with, as attention sees it, so that it need not be computed again.

    Attributes:
        layers: For each layer (P, 2, num_kv_heads, head_dim), the keys, rotated, and the values of its P tokens.
    """

    layers: list[Tensor]

    def __len__(self) -> int:
        return len(self.layers[0])

    def before(self, layer: int, own: Tensor) -> Tensor:
        """(P + T, 2, num_kv_heads, head_dim) in `layer`, of the beginning and of a batch's own T tokens."""
        return torch.cat([self.layers[layer], own])


KeysAndValues = Callable[[int, Tensor], Tensor]
"""What attention sees in a layer, given its number and (T, 2, num_kv_heads, head_dim) of the batch's own tokens."""


def _own(_layer: int, own: Tensor) -> Tensor:
    return own


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """A packed batch on the device, with everything that all layers share.

    Attributes:
        token_ids: (T,) integers.
        positions: (T,) integers, all below `longest`.
        last: (n,) integers, the row of each input's last token.
        longest: Positions that must be tabulated.
        attention: Of all tokens.
        last_attention: Of the last tokens.
    """

    token_ids: Tensor
    positions: Tensor
    last: Tensor
    longest: int
    attention: Attention
    last_attention: Attention


class Decoder:
    """A Qwen3 decoder that maps packed token ids to the hidden states of the inputs' last tokens.

    Args:
        weights: On `device`.
        config: The shape.
        device: Where to compute.
        strategy: How to compute; by default what is fastest on the device.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        config: DecoderConfig,
        device: torch.device,
        strategy: Strategy | None = None,
    ) -> None:
        self.weights = weights
        self.config = config
        self.device = device
        self.strategy = strategy or Strategy(choose_kernels(device))
        self._kernels, self._plan, self._multiply = self.strategy.kernels, self.strategy.plan, self.strategy.multiply
        # The last one is the longest. Shorter ones are kept, because recorded CUDA graphs read their memory.
        self._rope_tables: list[tuple[Tensor, Tensor]] = []

    def last_hidden_states(self, packed: PackedBatch, dtype: torch.dtype, beginning: Beginning | None = None) -> Tensor:
        """The hidden state of each input's last token, after the final norm.

        Args:
            packed: n inputs as `batching.pack` lays them out.
            dtype: What to compute in. Weights stored in another dtype are cast layer by layer, for the time they
                are used.
            beginning: What the inputs are behind, in `dtype`: ``packed.behind`` tokens. None for none.

        Returns:
            (n, hidden) in `dtype`, in input order.
        """
        return self.forward(self.stage(packed, dtype), dtype, _own if beginning is None else beginning.before)

    def beginning(self, token_ids: TokenIds, dtype: torch.dtype) -> Beginning:
        """Compute what inputs begin with: at least one token."""
        layers: list[Tensor] = []

        def keep(_layer: int, own: Tensor) -> Tensor:
            layers.append(own.clone())  # which lies among the queries
            return own

        self.forward(self.stage(pack([token_ids]), dtype), dtype, keep)
        return Beginning(layers)

    @torch.inference_mode()
    def stage(self, packed: PackedBatch, dtype: torch.dtype) -> StagedBatch:
        """Plan a batch and copy it to the device."""
        attention = self._plan(Spans.of_segments(packed), self.device, dtype)
        last_attention = self._plan(Spans.of_last_tokens(packed), self.device, dtype)
        arrays = [packed.token_ids, packed.positions, packed.last, *attention.arrays, *last_attention.arrays]
        token_ids, positions, last, *rest = upload(arrays, self.device)
        tensors = iter(rest)
        attention.bind(tensors)
        last_attention.bind(tensors)
        longest = int(packed.positions.max(initial=0)) + 1
        return StagedBatch(token_ids, positions, last, longest, attention, last_attention)

    @torch.inference_mode()
    def forward(self, batch: StagedBatch, dtype: torch.dtype, seen: KeysAndValues = _own) -> Tensor:
        """What `last_hidden_states` returns, of a batch on the device. Nothing in here waits for the device."""
        weights, eps = self.weights, self.config.rms_norm_eps
        rope = Rope(self._rope(batch.longest), batch.positions)
        hidden = weights.embedding.index_select(0, batch.token_ids).to(dtype)  # (T, hidden), the residual stream
        delta = None  # what is still to be added to it
        for number, layer in enumerate(weights.layers[:-1]):
            delta = self._layer(layer, hidden, delta, rope, batch.attention, partial(seen, number))
        last = len(weights.layers) - 1
        hidden, delta = self._last_layer(weights.layers[last], hidden, delta, batch, rope, partial(seen, last))
        return self._kernels.add_rms_norm(hidden, delta, weights.norm, eps)  # (n, hidden)

    def _rope(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least `length` positions."""
        if not self._rope_tables or len(self._rope_tables[-1][0]) < length:
            size = max(SHORTEST_ROPE_TABLE, 1 << (length - 1).bit_length())
            table = rope_table(size, self.config.head_dim, self.config.rope_theta, self.device)
            self._rope_tables.append(table)
        return self._rope_tables[-1]

    def _layer(
        self,
        layer: LayerWeights,
        hidden: Tensor,
        delta: Tensor | None,
        rope: Rope,
        attention: Attention,
        seen: Callable[[Tensor], Tensor],
    ) -> Tensor | None:
        """One layer: changes `hidden` in place, returns what is still to be added to it."""
        config = self.config
        x = self._kernels.add_rms_norm(hidden, delta, layer.input_norm, config.rms_norm_eps)
        heads = self._split(self._multiply(x, layer.qkv))  # (T, num_heads + 2 num_kv_heads, head_dim)
        query_key = heads[:, : -config.num_kv_heads]
        self._kernels.norm_rotate(query_key, layer.head_norms, rope, config.rms_norm_eps)
        query, key_value = torch.split(heads, [config.num_heads, 2 * config.num_kv_heads], dim=1)
        attended = attention(query, seen(self._pair(key_value)))  # (T, num_heads, head_dim)
        return self._mlp(layer, hidden, self._multiply(attended.flatten(1), layer.output))

    def _last_layer(
        self,
        layer: LayerWeights,
        hidden: Tensor,
        delta: Tensor | None,
        batch: StagedBatch,
        rope: Rope,
        seen: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """The last layer for the last tokens only; keys and values are needed of all tokens.

        Returns:
            (n, hidden) of the residual stream, and what is still to be added to it.
        """
        config = self.config
        x = self._kernels.add_rms_norm(hidden, delta, layer.input_norm, config.rms_norm_eps)
        query_norms, key_norms = torch.split(layer.head_norms, [config.num_heads, config.num_kv_heads])
        key_value = self._pair(self._split(self._multiply(x, layer.qkv[config.query_size :])))
        self._kernels.norm_rotate(key_value[:, 0], key_norms, rope, config.rms_norm_eps)
        query = self._split(self._multiply(x.index_select(0, batch.last), layer.qkv[: config.query_size]))
        self._kernels.norm_rotate(query, query_norms, rope.at(batch.last), config.rms_norm_eps)
        attended = batch.last_attention(query, seen(key_value))  # (n, num_heads, head_dim)
        residual = hidden.index_select(0, batch.last)
        return residual, self._mlp(layer, residual, self._multiply(attended.flatten(1), layer.output))

    def _split(self, x: Tensor) -> Tensor:
        """(T, heads * head_dim) -> (T, heads, head_dim)."""
        return x.view(len(x), -1, self.config.head_dim)

    def _pair(self, x: Tensor) -> Tensor:
        """(T, 2 num_kv_heads, head_dim) -> (T, 2, num_kv_heads, head_dim), keys and values."""
        return x.view(len(x), 2, self.config.num_kv_heads, self.config.head_dim)

    def _mlp(self, layer: LayerWeights, hidden: Tensor, delta: Tensor) -> Tensor | None:
        """Adds `delta` to `hidden`; the MLP's own part is returned, to be added, or added already (None)."""
        gate_up, down = cast(layer.gate_up, hidden.dtype), cast(layer.down, hidden.dtype)  # once for all chunks

        def compute(rows: Tensor, added: Tensor) -> Tensor:
            x = self._kernels.add_rms_norm(rows, added, layer.mlp_norm, self.config.rms_norm_eps)
            return self._multiply(self._kernels.silu_mul(self._multiply(x, gate_up)), down)

        if self.device.type != "cpu":
            return compute(hidden, delta)
        for rows, added in zip(torch.split(hidden, MLP_CHUNK), torch.split(delta, MLP_CHUNK), strict=True):
            rows += compute(rows, added)
        return None
