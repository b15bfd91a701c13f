"""Qdrant for Qwen3-Embedding and Qwen3-Reranker: ingest a corpus once, and search it from everywhere.

Importing this package loads no model, no torch and no other framework.
"""

from __future__ import annotations

from qwen_retrieval.errors import needs_extra

with needs_extra("qdrant_client", "qdrant"):
    import qdrant_client as _  # noqa: F401 - here, so that whatever is used of this package says what to install

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.description import Description, collections, describe
from qdrant_qwen_retrieval.embedded import AsyncEmbeddedQdrantClient, EmbeddedQdrantClient
from qdrant_qwen_retrieval.frameworks import open_haystack, open_langchain, open_llama_index
from qdrant_qwen_retrieval.index import QdrantIndex
from qdrant_qwen_retrieval.report import Failure, IngestReport, IngestWarning, Progress
from qdrant_qwen_retrieval.search import Hit

__all__ = [
    "AsyncEmbeddedQdrantClient",
    "Description",
    "EmbeddedQdrantClient",
    "Failure",
    "Hit",
    "IngestReport",
    "IngestWarning",
    "Progress",
    "QdrantIndex",
    "Record",
    "collections",
    "describe",
    "open_haystack",
    "open_langchain",
    "open_llama_index",
]
