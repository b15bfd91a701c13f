"""Qwen3-Reranker as a Haystack component; part of qwen-retrieval.

pip install "qwen-retrieval[haystack]"
"""

from haystack_integrations.components.rankers.qwen_retrieval.ranker import QwenRanker

__all__ = ["QwenRanker"]
