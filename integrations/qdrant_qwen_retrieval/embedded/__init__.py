"""The embedded store: the engine of the Qdrant server in a process of its own, under the interface of qdrant-client."""

from __future__ import annotations

from qdrant_qwen_retrieval.embedded.clients import AsyncEmbeddedQdrantClient, EmbeddedQdrantClient

__all__ = ["AsyncEmbeddedQdrantClient", "EmbeddedQdrantClient"]
