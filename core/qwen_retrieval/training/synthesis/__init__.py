"""Synthetic training pairs, as in appendix A.1 of the Qwen3-Embedding report (arXiv 2506.05176).

The extra is called ``synthesize``.
"""

from __future__ import annotations

from .chat import Chat, RefusedError, environment_key
from .filters import FilterSettings, Pair, filter_pairs, language_check
from .generation import Generator, Outcome
from .journal import Journal
from .pipeline import SynthesisReport, pair_of, synthesize
from .tasks import LENGTHS, Document, SynthesisSettings, Task, distinct, plan_tasks

__all__ = [
    "LENGTHS",
    "Chat",
    "Document",
    "FilterSettings",
    "Generator",
    "Journal",
    "Outcome",
    "Pair",
    "RefusedError",
    "SynthesisReport",
    "SynthesisSettings",
    "Task",
    "distinct",
    "environment_key",
    "filter_pairs",
    "language_check",
    "pair_of",
    "plan_tasks",
    "synthesize",
]
