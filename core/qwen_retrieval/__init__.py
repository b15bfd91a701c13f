"""Qwen3-Embedding and Qwen3-Reranker: correct templates, correct vectors, the speed of the hardware.

Importing this package loads neither torch nor any framework; a model does when it is loaded.
"""

from __future__ import annotations

from importlib.metadata import version

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.errors import QwenRetrievalError
from qwen_retrieval.fingerprint import embedding_fingerprint
from qwen_retrieval.model import TruncationWarning
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.templates import Explanation
from qwen_retrieval.types import RerankResult
from qwen_retrieval.usage import Usage, track_usage
from qwen_retrieval.vectors import QuantizedVectors, quantize

__version__ = version("qwen-retrieval")

__all__ = [
    "Embedder",
    "Explanation",
    "QuantizedVectors",
    "QwenRetrievalError",
    "RerankResult",
    "Reranker",
    "TruncationWarning",
    "Usage",
    "__version__",
    "embedding_fingerprint",
    "quantize",
    "track_usage",
]
