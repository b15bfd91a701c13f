"""`info_nce` of large batches in little memory, by cached gradients: GradCache, arXiv 2101.06983, section 3.

All texts are embedded in small parts without a graph, the loss gives the gradient of each vector, and the parts are
embedded again with a graph to carry these gradients on. Loss and gradients are those of the batch as a whole; the price
is a second forward pass. sentence-transformers does the embedding, random states of dropout included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from qwen_retrieval.errors import needs_extra

from .columns import Features, check_columns, stack_columns, text_ids
from .losses import DEFAULTS, Batch, InfoNCESettings, prepare_batch, row_losses

with needs_extra("sentence_transformers", "train"):
    from sentence_transformers.base.losses.gradcache import CachedLossMixin


class CachedInfoNCELoss(CachedLossMixin, nn.Module):
    """`InfoNCELoss` with cached gradients.

    Memory holds the activations of `mini_batch_size` texts, the vectors of the batch, and `mini_batch_size` rows of the
    similarity matrices. It may be wrapped in sentence-transformers' `MatryoshkaLoss`.

    Args:
        model: See `InfoNCELoss`.
        settings: See `InfoNCESettings`.
        mini_batch_size: Texts embedded at a time, and rows of similarities computed at a time.

    Raises:
        ValueError: `mini_batch_size` is not positive.
    """

    def __init__(self, model: nn.Module, settings: InfoNCESettings = DEFAULTS, *, mini_batch_size: int = 32) -> None:
        super().__init__()
        if mini_batch_size < 1:
            raise ValueError(f"mini_batch_size must be at least 1, but got {mini_batch_size}")
        self.model = model
        self.settings = settings
        self.mini_batch_size = mini_batch_size

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The loss of a batch; its ``backward()`` embeds the texts for the second time.

        Args:
            sentence_features: One entry per column: queries, documents, hard negatives.
            labels: Not used; the trainer passes them.

        Returns:
            A scalar.

        Raises:
            ValueError: There are fewer than two columns.
        """
        columns = check_columns(sentence_features)
        ids = text_ids(columns[1:])  # they take the place of labels, which `calculate_loss` is handed unchanged
        loss: Tensor = self.forward_cached([dict(column) for column in columns], ids)
        return loss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of vectors, a number of rows at a time.

        Args:
            reps: For each column the vectors of each part.
            labels: (B, columns - 1) `text_ids`.
            with_backward: Leave the gradients in the vectors, and keep no graph.

        Returns:
            A scalar.
        """
        vectors = [torch.cat(parts) for parts in reps]
        with torch.autocast(vectors[0].device.type, enabled=False):
            batch = prepare_batch(*stack_columns(vectors), None, labels)
            if not with_backward:
                return torch.stack(list(self._parts(batch))).sum()
            whole = [batch.queries, batch.documents, batch.negatives]
            leaves = [tensor.detach().requires_grad_() for tensor in whole]
            total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
            for part in self._parts(Batch(leaves[0], leaves[1], leaves[2], batch.negative_mask, batch.text_ids)):
                part.backward()  # type: ignore[no-untyped-call] # frees the graph of these rows
                total += part.detach()
            known = [(tensor, leaf.grad) for tensor, leaf in zip(whole, leaves, strict=True) if tensor.requires_grad]
            torch.autograd.backward([tensor for tensor, _ in known], [grad for _, grad in known])
        return total

    def _parts(self, batch: Batch) -> Iterator[Tensor]:
        """What `mini_batch_size` rows at a time add to the mean over all rows."""
        size = len(batch.queries)
        for start in range(0, size, self.mini_batch_size):
            rows = slice(start, min(start + self.mini_batch_size, size))
            yield row_losses(batch, rows, self.settings).sum() / size

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers writes into the model card."""
        return asdict(self.settings) | {"mini_batch_size": self.mini_batch_size}
