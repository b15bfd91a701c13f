"""The token table, trained as a bag of tokens: what both decoders are constructed around."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from data import Batches, Encoded, distillable, text_ids
from model import CONTENT
from tokenizer import VOCABULARY
from torch import Tensor
from torch.nn.functional import embedding_bag, kl_div, log_softmax, normalize, softmax

from qwen_retrieval.training.losses import InfoNCESettings, info_nce, matryoshka

DIMENSIONS = (32, 64, 128, CONTENT)
LOSS = InfoNCESettings(document_mask="document")


def initial_table(teacher: npt.NDArray[np.float16], counts: npt.NDArray[np.int64]) -> Tensor:
    """Word vectors from the teacher: principal directions of its vectors, rare words weighing more.

    Args:
        teacher: Its vectors for each vocabulary string.
        counts: How often each token occurs in the training text.
    """
    vectors = torch.from_numpy(teacher.astype(np.float32))
    vectors = vectors - vectors.mean(0)
    _, _, basis = torch.linalg.svd(vectors, full_matrices=False)
    frequency = torch.from_numpy(counts / counts.sum()).float()
    return normalize(vectors @ basis[:CONTENT].T, dim=1) * (1e-3 / (1e-3 + frequency))[:, None]


def train_bag(table: Tensor, data: Encoded, *, seed: int, steps: int, size: int = 384, rate: float = 2e-3) -> Tensor:
    """Train the token table by the report's loss, over prefixes of the vectors, and by distillation beside it."""
    table = table.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.05, 1 - s / steps))
    batches, started = Batches(data, size, seed), time.time()
    for step in range(steps):
        loss = _loss(table, data, batches.next())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"bag {step} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)
    return table.detach()


def _loss(table: Tensor, data: Encoded, chosen: list[int]) -> Tensor:
    queries, documents = (bag(table, [side[i] for i in chosen]) for side in (data.queries, data.documents))
    ids = text_ids([data.documents[i] for i in chosen])

    def contrast(queries: Tensor, documents: Tensor) -> Tensor:
        return info_nce(queries, documents, text_ids=ids, settings=LOSS)

    total = matryoshka(contrast, (queries, documents), DIMENSIONS, [1 / len(DIMENSIONS)] * len(DIMENSIONS))
    if known := distillable(data, chosen):
        rows, teacher = known
        total = total + 0.7 * relational_distillation(torch.cat([queries[rows], documents[rows]]), teacher)
    return total


def bag(table: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """Mean of the word vectors of each text."""
    starts = torch.tensor([0, *(len(t) for t in texts)]).cumsum(0)[:-1]
    return embedding_bag(torch.tensor([i for t in texts for i in t], dtype=torch.long), table, starts, mode="mean")


def relational_distillation(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.05, teacher_temperature: float = 0.05
) -> Tensor:
    """KL between how teacher and student spread each text's similarity over the other texts of the batch."""
    self_pairs = torch.eye(len(student), dtype=torch.bool, device=student.device)
    student, teacher = normalize(student, dim=-1), normalize(teacher, dim=-1)
    # A large negative number, not -inf: its probability is 0 and 0 * -inf is not a number.
    logits = (student @ student.T / temperature).masked_fill(self_pairs, -1e4)
    wanted = (teacher @ teacher.T / teacher_temperature).masked_fill(self_pairs, -1e4)
    return kl_div(log_softmax(logits, dim=-1), softmax(wanted, dim=-1), reduction="batchmean")


def token_counts(data: Encoded) -> npt.NDArray[np.int64]:
    """Occurrences of each token, at least one."""
    flat = np.concatenate([np.asarray(t) for side in (data.queries, data.documents) for t in side if t])
    return np.maximum(1, np.bincount(flat, minlength=VOCABULARY))


def rarities(documents: Sequence[Sequence[int]]) -> Tensor:
    """(vocabulary,) inverse document frequencies: log((n + 1) / (documents with the token + 1)), at least 0.1."""
    found = torch.ones(VOCABULARY)
    for tokens in documents:
        found[list(set(tokens))] += 1
    return ((len(documents) + 1) / found).log().clamp(min=0.1)
