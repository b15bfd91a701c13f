"""One packed forward pass through a Qwen3 decoder: [tokens, hidden] everywhere, no padding in any matrix product.

The architecture is that of transformers' `Qwen3Model` (its float32 results are the reference in the tests):
pre-norm, grouped-query attention with RMS-normalised queries and keys, rotary positions, gated SiLU MLP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_retrieval.batching import IndexArray, PackedBatch
from qwen_retrieval.engine.attention import Attention, Spans, plan_attention
from qwen_retrieval.engine.kernels import norm_rotate, rms_norm, rope_table, silu_mul
from qwen_retrieval.engine.matrices import cast, linear
from qwen_retrieval.engine.weights import DecoderConfig, DecoderWeights, LayerWeights

MLP_CHUNK = 1024
"""Rows of the MLP computed at a time on the CPU, so that its wide intermediate stays in the cache."""


class Decoder:
    """A Qwen3 decoder that maps packed token ids to the hidden states of the inputs' last tokens."""

    def __init__(self, weights: DecoderWeights, config: DecoderConfig, device: torch.device) -> None:
        self.weights = weights
        self.config = config
        self.device = device

    @torch.inference_mode()
    def last_hidden_states(self, packed: PackedBatch, dtype: torch.dtype) -> Tensor:
        """The hidden state of each input's last token, after the final norm.

        Args:
            packed: n inputs as `batching.pack` lays them out.
            dtype: What to compute in. Weights stored in another dtype are cast layer by layer, for the time they
                are used.

        Returns:
            (n, hidden) in `dtype`, in input order.
        """
        positions = self._index(packed.positions)
        last = self._index(packed.last)
        rope_dtype = torch.float32 if self.device.type == "cpu" else dtype
        table = rope_table(positions, self.config.head_dim, self.config.rope_theta, rope_dtype)
        last_table = (table[0][last], table[1][last])
        hidden = self.weights.embedding[self._index(packed.token_ids)].to(dtype)  # (T, hidden)
        attention = plan_attention(Spans.of_segments(packed), self.device, dtype)
        for layer in self.weights.layers[:-1]:
            hidden = self._layer(layer, hidden, table, attention)
        attention = plan_attention(Spans.of_last_tokens(packed), self.device, dtype)
        hidden = self._last_layer(self.weights.layers[-1], hidden, last, table, last_table, attention)
        return rms_norm(hidden, self.weights.norm, self.config.rms_norm_eps)  # (n, hidden)

    def _index(self, array: IndexArray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _layer(self, layer: LayerWeights, hidden: Tensor, table: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        config = self.config
        x = rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
        qkv = linear(x, layer.qkv)  # (T, query_size + 2 key_size)
        query, key, value = torch.split(qkv, [config.query_size, config.key_size, config.key_size], dim=-1)
        attended = attention(
            self._heads(query, layer.query_norm, table), self._heads(key, layer.key_norm, table), self._split(value)
        )
        hidden = hidden + linear(attended.flatten(1), layer.output)
        return self._mlp(layer, hidden)

    def _last_layer(
        self,
        layer: LayerWeights,
        hidden: Tensor,
        last: Tensor,
        table: tuple[Tensor, Tensor],
        last_table: tuple[Tensor, Tensor],
        attention: Attention,
    ) -> Tensor:
        """The last layer for the last tokens only; keys and values are needed of all tokens."""
        config = self.config
        x = rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
        key, value = linear(x, layer.qkv[config.query_size :]).chunk(2, dim=-1)  # (T, key_size) each
        query = linear(x[last], layer.qkv[: config.query_size])  # (n, query_size)
        attended = attention(
            self._heads(query, layer.query_norm, last_table),
            self._heads(key, layer.key_norm, table),
            self._split(value),
        )
        return self._mlp(layer, hidden[last] + linear(attended.flatten(1), layer.output))

    def _split(self, x: Tensor) -> Tensor:
        """(T, heads * head_dim) -> (T, heads, head_dim)."""
        return x.view(len(x), -1, self.config.head_dim)

    def _heads(self, x: Tensor, norm: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys split into heads, normalised per head, rotated: (T, heads, head_dim). May overwrite `x`."""
        return norm_rotate(self._split(x), norm, table, self.config.rms_norm_eps)

    def _mlp(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        rows = MLP_CHUNK if self.device.type == "cpu" else max(1, len(hidden))
        gate_up, down = cast(layer.gate_up, hidden.dtype), cast(layer.down, hidden.dtype)  # once for all chunks
        for chunk in torch.split(hidden, rows):
            x = rms_norm(chunk, layer.mlp_norm, self.config.rms_norm_eps)
            chunk += linear(silu_mul(linear(x, gate_up)), down)  # in place: `hidden` is ours
        return hidden
