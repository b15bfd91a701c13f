"""Qwen3-Embedding as Haystack components; part of qwen-retrieval.

pip install "qwen-retrieval[haystack]"
"""

from haystack_integrations.components.embedders.qwen_retrieval.document_embedder import QwenDocumentEmbedder
from haystack_integrations.components.embedders.qwen_retrieval.text_embedder import QwenTextEmbedder

__all__ = ["QwenDocumentEmbedder", "QwenTextEmbedder"]
