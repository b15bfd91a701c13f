"""Qwen3-Reranker for LlamaIndex."""

from __future__ import annotations

from llama_index.postprocessor.qwen_retrieval.base import QwenRerank

__all__ = ["QwenRerank"]
