"""What a Haystack pipeline spends on copying vectors between components, with our vectors and with plain lists.

    python -m benchmarks.haystack_copies

Haystack deep-copies the inputs of every component (https://github.com/deepset-ai/haystack/issues/9349). The clock
covers one run of a pipeline that is given 1,000 embedded documents, passes them on, and writes them to a store in
memory.
"""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"

import statistics
import time
from dataclasses import replace

from haystack import Document, Pipeline, component
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy

from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder
from qwen_retrieval import Embedder
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec

DOCUMENTS, ROUNDS = 1000, 7


@component
class Pass:
    """Gives on what it gets."""

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Documents in, the same documents out."""
        return {"documents": documents}


def seconds(documents: list[Document]) -> float:
    """How long one run takes."""
    pipeline = Pipeline()
    pipeline.add_component("give", Pass())
    pipeline.add_component("pass", Pass())
    pipeline.add_component("write", DocumentWriter(InMemoryDocumentStore(), policy=DuplicatePolicy.OVERWRITE))
    pipeline.connect("give.documents", "pass.documents")
    pipeline.connect("pass.documents", "write.documents")
    start = time.perf_counter()
    pipeline.run({"give": {"documents": documents}})
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio for vectors of two lengths."""
    for size in (1024, 4096):
        embedder = Embedder(FakeEmbeddingEngine(size), ByteTokenizer(), fake_embedding_spec(hidden_size=size))
        texts = [Document(content=f"document {number}") for number in range(DOCUMENTS)]
        ours = QwenDocumentEmbedder.from_embedder(embedder).run(texts)["documents"]
        plain = [replace(document, embedding=list(document.embedding)) for document in ours]
        seconds(ours), seconds(plain)  # warm-up
        rounds = [(seconds(plain), seconds(ours)) for _ in range(ROUNDS)]
        ratios = [theirs / mine for theirs, mine in rounds]
        print(
            f"{DOCUMENTS} documents of {size} numbers, {ROUNDS} interleaved rounds: plain lists take "
            f"{statistics.median(ratios):.1f}x ({min(ratios):.1f} - {max(ratios):.1f}) the time, "
            f"{statistics.median(mine for _, mine in rounds):.2f} s with our vectors"
        )
        embedder.close()


if __name__ == "__main__":
    main()
