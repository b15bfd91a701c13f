"""Qwen3-Embedding for LlamaIndex: queries with their instruction, documents as they are, every cache safe."""

from __future__ import annotations

from llama_index.embeddings.qwen_retrieval.base import QwenEmbedding

__all__ = ["QwenEmbedding"]
