"""The MTEB benchmarks (extra ``mteb``): our models in mteb's protocols, with the instructions of the paper.

    >>> import mteb
    >>> from qwen_retrieval.evaluation.mteb import MtebEmbedder, paper_embedder
    >>> mteb.evaluate(MtebEmbedder(paper_embedder("0.6B")), mteb.get_tasks(tasks=["SciFact"]))  # doctest: +SKIP

`run_mteb` runs whole tables, with reranking; ``python -m qwen_retrieval.evaluation.mteb run -m
qwen-retrieval/Qwen3-Embedding-0.6B -t SciFact`` is mteb's own command with our models in its registry. mteb's built-in
Qwen3 wrappers give other figures: their instructions are not those of the paper (embeddings-benchmark/mteb, issues
2907 and 3234).

Nothing here imports mteb before it is used.
"""

from __future__ import annotations

from qwen_retrieval.evaluation.mteb.instructions import paper_instruction
from qwen_retrieval.evaluation.mteb.models import MtebEmbedder, MtebReranker
from qwen_retrieval.evaluation.mteb.registry import paper_embedder, paper_reranker, register
from qwen_retrieval.evaluation.mteb.run import MtebRun, MtebScore, run_mteb

__all__ = [
    "MtebEmbedder",
    "MtebReranker",
    "MtebRun",
    "MtebScore",
    "paper_embedder",
    "paper_instruction",
    "paper_reranker",
    "register",
    "run_mteb",
]
