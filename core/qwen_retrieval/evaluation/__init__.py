"""Measuring quality: on data of one's own, and on the benchmarks of the paper.

    >>> from qwen_retrieval.evaluation import Sweep, evaluate, read_questions
    >>> dataset = read_questions("questions.jsonl", "documents.jsonl")  # doctest: +SKIP
    >>> evaluation = evaluate(dataset, embedder=embedder, sweep=Sweep(dimensions=(1024, 256)))  # doctest: +SKIP
    >>> print([one.text for one in evaluation.advice])  # doctest: +SKIP

Measuring needs the extra ``evaluate``, and `qwen_retrieval.evaluation.mteb` the extra ``mteb``; what is missing is said
at the first use.
"""

from __future__ import annotations

from qwen_retrieval.evaluation.datasets import DatasetError, RetrievalDataset, read_beir, read_questions
from qwen_retrieval.evaluation.metrics import METRICS, Measures
from qwen_retrieval.evaluation.results import Evaluation
from qwen_retrieval.evaluation.settings import Sweep
from qwen_retrieval.evaluation.sweep import evaluate

__all__ = [
    "METRICS",
    "DatasetError",
    "Evaluation",
    "Measures",
    "RetrievalDataset",
    "Sweep",
    "evaluate",
    "read_beir",
    "read_questions",
]
