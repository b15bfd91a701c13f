"""The losses of the Qwen3-Embedding report (arXiv 2506.05176, section 3, "Training Objective") in plain torch.

`InfoNCELoss` is the first of them as sentence-transformers' trainer wants it; `cached.CachedInfoNCELoss` computes the
same for large batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from qwen_retrieval.types import TokenIds

from .columns import Features, check_columns, stack_columns, text_ids

Term = Literal["query-document", "query-query", "document-document"]
"""A sum over the other pairs j of the batch: s(q_i, d_j), s(q_i, q_j) or s(d_i, d_j)."""

DocumentMask = Literal["query", "document", "none"]
"""Which similarity decides whether s(d_i, d_j) is masked; see `InfoNCESettings`."""

AnswerSpace = Literal["vocabulary", "answers"]
"""Over which tokens the probability of an answer is normalised; see `yes_no_loss`."""


@dataclass(frozen=True, slots=True)
class InfoNCESettings:
    """What the report leaves open, and what its authors' own code and later report switch off.

    Attributes:
        temperature: Divides the cosines. The report does not give it. Its repository's docs/training/SWIFT.md speaks
            of 0.01, ms-swift's code has 0.1; this is between the two, and sentence-transformers' default.
        margin: A negative more similar than the positive by over this is taken for a false negative and masked: 0.1
            in the report. None to mask only documents that are the positive itself.
        terms: The sums over the batch, all three in the report. ms-swift switches the second and the third
            (INFONCE_INCLUDE_QQ, INFONCE_INCLUDE_DD), and stage 2 of Qwen3-VL-Embedding drops both; its classification
            data use no others than the pair's own negatives: ``()``.
        document_mask: The report defines the mask by "the score of q_i, d_j or q_i, q_j", which says nothing certain
            of s(d_i, d_j). "query": masked where s(q_i, d_j) exceeds the limit, the words taken literally;
            "document": where s(d_i, d_j) does; "none": never by similarity, as ms-swift does.
        shared_negatives: Whether hard negatives of the other pairs are documents d_j too, as in ms-swift and
            sentence-transformers; the report's sums have one d_j for each j.
    """

    temperature: float = 0.05
    margin: float | None = 0.1
    terms: tuple[Term, ...] = get_args(Term)
    document_mask: DocumentMask = "query"
    shared_negatives: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, but got {self.temperature}")
        if unknown := [term for term in self.terms if term not in get_args(Term)]:
            raise ValueError(f"terms may be {', '.join(get_args(Term))}, but got {unknown[0]!r}")
        if self.document_mask not in get_args(DocumentMask):
            known = ", ".join(get_args(DocumentMask))
            raise ValueError(f"document_mask must be one of {known}, but got {self.document_mask!r}")


DEFAULTS = InfoNCESettings()
"""The loss of the report."""


def info_nce(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None = None,
    *,
    negative_mask: Tensor | None = None,
    text_ids: Tensor | None = None,
    settings: InfoNCESettings = DEFAULTS,
) -> Tensor:
    """The improved contrastive loss: arXiv 2506.05176, section 3, "Training Objective", L_embedding.

    With s the cosine and t the temperature, L = -1/B sum_i log(exp(s(q_i, d_i) / t) / Z_i), where

    Z_i = exp(s(q_i, d_i) / t) + sum_k m_ik exp(s(q_i, n_ik) / t) + sum_{j != i} m_ij exp(s(q_i, q_j) / t)
    + sum_{j != i} m_ij exp(s(d_i, d_j) / t) + sum_{j != i} m_ij exp(s(q_i, d_j) / t)

    m_ij = 0 if s_ij > s(q_i, d_i) + margin or d_j == d_i, else 1; s_ij is the score of q_i and d_j, or of q_i and q_j.

    The last sum of Z_i is missing in the first version on arXiv. Computed in float32 at least, under autocast too.

    Args:
        queries: (B, d) of any length; normalised here, as are the others.
        documents: (B, d); row i answers query i.
        negatives: (B, K, d) documents that do not answer query i.
        negative_mask: (B, K) bool, false where there is no negative; None if all are there.
        text_ids: (B, 1 + K) integers, equal for equal texts, of `documents` and then `negatives`: what "d_j == d_i"
            is decided by. None if all texts differ.
        settings: Temperature, margin, and what the report leaves open.

    Returns:
        The mean over the B pairs, a scalar; 0 for one pair without negatives.

    Raises:
        ValueError: The shapes do not fit each other, or B is 0.
    """
    with torch.autocast(queries.device.type, enabled=False):
        batch = prepare_batch(queries, documents, negatives, negative_mask, text_ids)
        return row_losses(batch, slice(0, len(batch.queries)), settings).mean()


@dataclass(frozen=True, slots=True)
class Batch:
    """Vectors of unit length in float32 or float64, and what is known of their texts."""

    queries: Tensor  # (B, d)
    documents: Tensor  # (B, d)
    negatives: Tensor  # (B, K, d)
    negative_mask: Tensor  # (B, K) bool, false where there is none
    text_ids: Tensor  # (B, 1 + K) int64, equal for equal texts


def prepare_batch(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    negative_mask: Tensor | None,
    text_ids: Tensor | None,
) -> Batch:
    """Check the arguments of `info_nce` and fill in what was left out."""
    size, device = len(queries), queries.device
    if negatives is None:
        negatives = documents.new_empty(size, 0, documents.shape[-1])
    count = negatives.shape[1]
    if negative_mask is None:
        negative_mask = torch.ones(size, count, dtype=torch.bool, device=device)
    if text_ids is None:
        text_ids = torch.arange(size * (1 + count), device=device).view(size, 1 + count)
    wanted = {
        "queries": (queries, (max(size, 1), queries.shape[-1])),
        "documents": (documents, tuple(queries.shape)),
        "negatives": (negatives, (size, count, queries.shape[-1])),
        "negative_mask": (negative_mask, (size, count)),
        "text_ids": (text_ids, (size, 1 + count)),
    }
    for name, (given, shape) in wanted.items():
        if tuple(given.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}, but has {tuple(given.shape)}")
    return Batch(_unit(queries), _unit(documents), _unit(negatives), negative_mask.bool(), text_ids)


def _unit(vectors: Tensor) -> Tensor:
    # Three digits of bfloat16, divided by the temperature, would be an error of a tenth.
    return normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)


def row_losses(batch: Batch, rows: slice, settings: InfoNCESettings) -> Tensor:
    """-log(exp(s(q_i, d_i) / t) / Z_i) for some pairs i of a batch; `info_nce` is the mean over all.

    Args:
        batch: The vectors of all pairs.
        rows: Which pairs.
        settings: See `InfoNCESettings`.

    Returns:
        (R,) for R rows.
    """
    queries, documents = batch.queries[rows], batch.documents[rows]
    positive = (queries * documents).sum(-1, keepdim=True)  # (R, 1)
    limit = positive + (float("inf") if settings.margin is None else settings.margin)
    own_ids = batch.text_ids[rows]  # (R, 1 + K)
    hard = torch.einsum("rd,rkd->rk", queries, batch.negatives[rows])  # (R, K)
    is_hard = batch.negative_mask[rows] & (own_ids[:, 1:] != own_ids[:, :1]) & (hard <= limit)
    parts = [positive, _kept(hard, is_hard), *_batch_parts(batch, rows, limit, settings)]
    logits = torch.cat(parts, dim=1) / settings.temperature
    return logits.logsumexp(1) - logits[:, 0]


def _batch_parts(batch: Batch, rows: slice, limit: Tensor, settings: InfoNCESettings) -> list[Tensor]:
    """The sums over the other pairs, a matrix for each term; -inf where it is masked."""
    queries, documents, terms = batch.queries[rows], batch.documents[rows], settings.terms
    others, is_other = _other_documents(batch, rows, settings.shared_negatives)  # (M, d), (R, M)
    similar = queries @ others.T  # (R, M)
    parts = []
    if "query-document" in terms:
        parts.append(_kept(similar, is_other & (similar <= limit)))
    if "query-query" in terms:
        asked = queries @ batch.queries.T  # (R, B)
        parts.append(_kept(asked, is_other[:, : len(batch.queries)] & (asked <= limit)))
    if "document-document" in terms:
        between = documents @ others.T  # (R, M)
        judged = {"query": similar, "document": between, "none": limit}[settings.document_mask]
        parts.append(_kept(between, is_other & (judged <= limit)))
    return parts


def _other_documents(batch: Batch, rows: slice, shared_negatives: bool) -> tuple[Tensor, Tensor]:
    """The documents d_j, and for each row whether they belong to another pair and are not its positive."""
    size, device = len(batch.queries), batch.queries.device
    owners = torch.arange(size, device=device)
    others, ids, present = batch.documents, batch.text_ids[:, 0], torch.ones_like(owners, dtype=torch.bool)
    if shared_negatives:
        others = torch.cat([others, batch.negatives.flatten(0, 1)])  # (B + B K, d)
        ids = torch.cat([ids, batch.text_ids[:, 1:].flatten()])
        present = torch.cat([present, batch.negative_mask.flatten()])
        owners = torch.cat([owners, owners.repeat_interleave(batch.negatives.shape[1])])
    is_other = (owners != torch.arange(size, device=device)[rows, None]) & (ids != batch.text_ids[rows, :1])
    return others, is_other & present


def _kept(scores: Tensor, kept: Tensor) -> Tensor:
    return scores.masked_fill(~kept, float("-inf"))


class InfoNCELoss(nn.Module):
    """`info_nce` as a loss of sentence-transformers' `SentenceTransformerTrainer`.

    The columns of the data are the query, its document, and any number of hard negatives. Documents with the same
    tokens are the same document; so where a query has fewer negatives than others, repeat its document in their
    columns, and the mask leaves it out. For several vector lengths, wrap it in sentence-transformers'
    `MatryoshkaLoss`.

    Args:
        model: What turns a column's features into ``{"sentence_embedding": (B, d)}``, a `SentenceTransformer` for
            example.
        settings: See `InfoNCESettings`.
    """

    def __init__(self, model: nn.Module, settings: InfoNCESettings = DEFAULTS) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The loss of a batch.

        Args:
            sentence_features: One entry per column.
            labels: Not used; the trainer passes them.

        Returns:
            A scalar.

        Raises:
            ValueError: There are fewer than two columns, or they are not of the same length.
        """
        columns = check_columns(sentence_features)
        ids = text_ids(columns[1:])
        vectors = [self.model(column)["sentence_embedding"] for column in columns]
        return info_nce(*stack_columns(vectors), text_ids=ids, settings=self.settings)

    def get_config_dict(self) -> dict[str, Any]:
        """What sentence-transformers writes into the model card."""
        return asdict(self.settings)


def matryoshka(
    loss: Callable[..., Tensor],
    vectors: Sequence[Tensor],
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """A loss summed over the first dimensions of its vectors: Matryoshka, arXiv 2205.13147, section 3, equation 1.

    Args:
        loss: Called with one argument for each of `vectors`; it must normalise them, as `info_nce` does.
        vectors: Tensors whose last dimension is the vectors' length.
        dimensions: Lengths of the prefixes, from 1 to that length.
        weights: What each length counts, in the same order; 1 each by default, as in the paper's experiments.

    Returns:
        The weighted sum, a scalar.

    Raises:
        ValueError: A length is out of range or given twice, or there are more or fewer weights than lengths.
    """
    full = min(tensor.shape[-1] for tensor in vectors)
    counted = [1.0] * len(dimensions) if weights is None else list(weights)
    if not dimensions or len(set(dimensions)) < len(dimensions) or not all(1 <= n <= full for n in dimensions):
        raise ValueError(f"dimensions must be different numbers from 1 to {full}, but got {list(dimensions)}")
    if len(counted) != len(dimensions):
        raise ValueError(f"weights must be as many as dimensions, {len(dimensions)}, but got {len(counted)}")
    parts = [w * loss(*(tensor[..., :n] for tensor in vectors)) for n, w in zip(dimensions, counted, strict=True)]
    return torch.stack(parts).sum()


def yes_no_loss(logits: Tensor, labels: Tensor, *, yes_id: int, no_id: int, over: AnswerSpace = "vocabulary") -> Tensor:
    """The reranker's loss: arXiv 2506.05176, section 3, "Training Objective", L_reranking = -log p(l | P(q, d)).

    l is "yes" for a relevant document and "no" for any other, and p is "the probability assigned by LLM": that of the
    next token among the whole vocabulary, as in any supervised fine-tuning. Two-way cross-entropy of yes against no is
    what scores are computed with, and how ms-swift and the Qwen3-VL-Reranker report train.

    Args:
        logits: (B, vocabulary) after the last token of the template.
        labels: (B,) true or 1 where the document is relevant.
        yes_id: Id of the token `yes`; `RerankingTemplate.yes_id`.
        no_id: Id of the token `no`.
        over: "vocabulary" as in the report, or "answers" for the two-way cross-entropy, which leaves the other tokens
            where they are.

    Returns:
        The mean over the B pairs, a scalar, computed in float32 at least.

    Raises:
        ValueError: `over` is neither, or there are not as many labels as rows.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have the shape {tuple(logits.shape[:1])}, but has {tuple(labels.shape)}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if over == "vocabulary":
        return cross_entropy(logits, torch.where(labels.bool(), yes_id, no_id))
    if over == "answers":
        return binary_cross_entropy_with_logits(logits[:, yes_id] - logits[:, no_id], labels.to(logits.dtype))
    raise ValueError(f"over must be one of {', '.join(get_args(AnswerSpace))}, but got {over!r}")


def last_logits(model: nn.Module, inputs: Sequence[TokenIds], *, pad_id: int) -> Tensor:
    """The logits after the last token of each input.

    Args:
        model: A causal language model of transformers, as it is or with LoRA.
        inputs: B inputs of at least one token each, such as `RerankingTemplate.encode_pairs` gives.
        pad_id: What stands before shorter inputs; any id, as it is masked.

    Returns:
        (B, vocabulary) in the model's dtype; logits of other positions are never computed.
    """
    length = max(map(len, inputs))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad_id] * (length - len(one)) + list(one) for one in inputs], device=device)  # (B, length)
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in inputs], device=device)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False).logits
    return logits[:, -1]
