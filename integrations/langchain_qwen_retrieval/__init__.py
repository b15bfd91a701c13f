"""Qwen3-Embedding and Qwen3-Reranker for LangChain: embeddings, a reranker, and a retriever that uses both.

Importing this package loads no model and no torch; a model is loaded when it is first used.
"""

from __future__ import annotations

from langchain_qwen_retrieval.embeddings import QwenEmbeddings
from langchain_qwen_retrieval.reranker import QwenReranker
from langchain_qwen_retrieval.retriever import QwenRetriever

__all__ = ["QwenEmbeddings", "QwenReranker", "QwenRetriever"]
