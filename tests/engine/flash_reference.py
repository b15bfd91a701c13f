"""The operator that flash attention is made of, by the formula: lets the CUDA path's logic run on any machine."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen_retrieval.engine.flash_attention import Bounds


def literal_varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, *, causal: bool) -> tuple[Tensor, Tensor]:
    """softmax(q k / sqrt(d)) v of each span and its log-sum-exp, in float64; the last query sees the last key."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    lse = query.new_full((query.shape[1], len(query)), -torch.inf, dtype=torch.float32)  # (heads, T_q)
    queries, keys = bounds.query.tolist(), bounds.key.tolist()
    for i in range(len(queries) - 1):
        own, theirs = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
        q = query[own].double().transpose(0, 1)  # (heads, Sq, dim)
        k, v = (x[theirs].double().transpose(0, 1).repeat_interleave(group, dim=0) for x in (key, value))
        scores = q @ k.transpose(1, 2) / query.shape[-1] ** 0.5
        if causal:
            hidden = torch.ones(scores.shape[1:]).triu(k.shape[1] - q.shape[1] + 1).bool()
            scores = scores.masked_fill(hidden, -torch.inf)
        if k.shape[1]:
            out[own] = (scores.softmax(-1) @ v).transpose(0, 1).to(out.dtype)
            lse[:, own] = scores.logsumexp(-1).float()
    return out, lse
