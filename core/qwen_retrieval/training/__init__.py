"""Training with the recipe of the Qwen3-Embedding report (arXiv 2506.05176); the extra is called ``train``.

Losses, filtering and merging need torch only. What stands on sentence-transformers is imported from its own module, as
`cached` is, and without the extra says what to install.
"""

from __future__ import annotations

from .filtering import FilteredPairs, filter_positives
from .losses import InfoNCELoss, InfoNCESettings, info_nce, last_logits, matryoshka, yes_no_loss
from .merging import merge_checkpoints, merge_tensors, slerp

__all__ = [
    "FilteredPairs",
    "InfoNCELoss",
    "InfoNCESettings",
    "filter_positives",
    "info_nce",
    "last_logits",
    "matryoshka",
    "merge_checkpoints",
    "merge_tensors",
    "slerp",
    "yes_no_loss",
]
