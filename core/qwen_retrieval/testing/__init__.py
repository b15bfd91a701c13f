"""Stand-ins for tokenizer and models, and suites for adapters: no download, no torch, the same numbers everywhere.

For the tests of this project, and of projects that use it:

    >>> from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
    >>> parts = FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec()

`qwen_retrieval.testing.conformance` (needs pytest) has what an embedding or reranking class of any framework must
satisfy, to be subclassed for your own.
"""

from __future__ import annotations

import sys

from qwen_retrieval.testing.fakes import (
    ByteTokenizer,
    FailOn,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)

if "pytest" in sys.modules:  # so that failed assertions of the suites show their values
    sys.modules["pytest"].register_assert_rewrite("qwen_retrieval.testing.conformance")

__all__ = [
    "ByteTokenizer",
    "FailOn",
    "FakeEmbeddingEngine",
    "FakeRerankingEngine",
    "fake_embedding_spec",
    "fake_reranking_spec",
]
