"""Fine-tuning of embedders with the report's contrastive loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.loading import read_config
from qwen_retrieval.specs import EmbeddingSpec, check_dimensions, match_embedding
from qwen_retrieval.templates import EmbeddingTemplate, Encoded
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.types import TokenIds

from .data import Example, cut_by_tokens
from .loop import History, LoopSettings, Report
from .losses import DEFAULTS, InfoNCESettings, info_nce, matryoshka
from .modules import write_embedding_modules
from .runs import Trained, encode_by_instruction, find_base, run
from .tuning import Qwen3Model, TuningSettings, compute_dtype, computing, load_model


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """What is particular to embedders.

    Attributes:
        instruction: Of queries whose example has none: a sentence, or a name of `qwen_retrieval.instructions`; None
            for the family's default.
        dimensions: Lengths of the vectors' prefixes over which the loss is summed; () for the full length alone.
        negatives: Most hard negatives of an example that are used, its first ones; 7 in ms-swift
            (MAX_NEGATIVE_SAMPLES).
        max_length: Longest input in tokens; longer ones are cut at their end.
        max_batch_tokens: Tokens computed at a time, padding included. A batch with more is computed in parts by
            cached gradients (GradCache, arXiv 2101.06983): the same step, in less memory, for a second forward pass.
        loss: See `InfoNCESettings`.
    """

    instruction: str | None = None
    dimensions: tuple[int, ...] = ()
    negatives: int = 7
    max_length: int = 512
    max_batch_tokens: int = 16_384
    loss: InfoNCESettings = DEFAULTS

    def __post_init__(self) -> None:
        if self.negatives < 0:
            raise ValueError(f"negatives must not be negative, but got {self.negatives}")
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, but got {self.max_batch_tokens}")


@dataclass(frozen=True, slots=True)
class _Batch:
    """The inputs of a batch, each once, and who they belong to."""

    inputs: list[TokenIds]  # n of them
    queries: Tensor  # (B,) places in `inputs`
    documents: Tensor  # (B, 1 + K), the positive and then the negatives
    negative_mask: Tensor  # (B, K) bool, false where there is none


class EmbedderObjective:
    """The contrastive loss of a batch, in parts that fit into memory.

    Args:
        model: A `Qwen3Model`, as it is or with LoRA.
        template: What turns texts into inputs, the same that `Embedder` uses.
        settings: See `EmbedderSettings`.
        instruction: A sentence, for examples without one.
        dimensions: One or more lengths of vectors.
        dtype: What products are computed in.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - of transformers or peft
        template: EmbeddingTemplate,
        settings: EmbedderSettings,
        *,
        instruction: str,
        dimensions: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self._template, self._settings, self._dtype = template, settings, dtype
        self._instruction, self._dimensions = instruction, list(dimensions)

    def loss(self, examples: Sequence[Example], *, seed: int, backward: bool) -> float:
        """See `loop.Objective`; parts of a batch have random states of their own, so dropout is the same twice."""
        batch = self._encode(examples)
        lengths, most = [len(ids) for ids in batch.inputs], self._settings.max_batch_tokens
        parts = cut_by_tokens(lengths, most)
        if backward and sum(len(part) * lengths[part[0]] for part in parts) <= most:  # nothing is computed twice
            loss = self._loss(self._embed(batch.inputs, parts, seed), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        with torch.no_grad():
            vectors = self._embed(batch.inputs, parts, seed)
        vectors.requires_grad_(backward)
        loss = self._loss(vectors, batch)
        if backward:
            loss.backward()  # type: ignore[no-untyped-call]
            assert vectors.grad is not None
            for number, part in enumerate(parts):
                again = self._embed_part([batch.inputs[i] for i in part], seed + number)
                again.backward(vectors.grad[part])  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _encode(self, examples: Sequence[Example]) -> _Batch:
        most = self._settings.negatives
        queries = encode_by_instruction(
            [(e.query, e.instruction) for e in examples], self._instruction, self._template.encode_queries
        )
        answers = [[e.positive, *e.negatives[:most]] for e in examples]
        documents = iter(self._template.encode_documents([text for row in answers for text in row]))
        places: dict[tuple[int, ...], int] = {}

        def place(encoded: Encoded) -> int:
            return places.setdefault(tuple(encoded.ids), len(places))

        asked = torch.tensor([place(one) for one in queries])
        columns = max(map(len, answers))
        rows = [[place(next(documents)) for _ in row] for row in answers]
        filled = torch.tensor([row + [row[0]] * (columns - len(row)) for row in rows])  # (B, 1 + K)
        counts = torch.tensor([[len(row)] for row in rows])  # (B, 1)
        mask = torch.arange(1, columns)[None, :] < counts  # (B, K)
        return _Batch([list(ids) for ids in places], asked, filled, mask)

    def _loss(self, vectors: Tensor, batch: _Batch) -> Tensor:
        documents, device = vectors[batch.documents], vectors.device  # (B, 1 + K, d)
        mask, ids = batch.negative_mask.to(device), batch.documents.to(device)

        def one(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
            return info_nce(
                queries, positives, negatives, negative_mask=mask, text_ids=ids, settings=self._settings.loss
            )

        return matryoshka(one, (vectors[batch.queries], documents[:, 0], documents[:, 1:]), self._dimensions)

    def _embed(self, inputs: list[TokenIds], parts: list[list[int]], seed: int) -> Tensor:
        """(n, d) vectors in the order of `inputs`."""
        found = [self._embed_part([inputs[i] for i in part], seed + number) for number, part in enumerate(parts)]
        order = torch.tensor([i for part in parts for i in part]).argsort()
        return torch.cat(found)[order.to(found[0].device)]

    def _embed_part(self, inputs: list[TokenIds], seed: int) -> Tensor:
        """(n, d) hidden states of the last tokens in float32. Padding stands behind them, where they do not see it."""
        torch.manual_seed(seed)
        device = next(self.model.parameters()).device
        last = torch.tensor([len(ids) - 1 for ids in inputs], device=device)
        length = max(map(len, inputs))
        padded = torch.tensor([ids + [0] * (length - len(ids)) for ids in inputs], device=device)  # (n, length)
        with computing(self.model, self._dtype):
            hidden = self.model(input_ids=padded, use_cache=False).last_hidden_state  # (n, length, d)
        states: Tensor = hidden[torch.arange(len(inputs), device=device), last]
        return states.float()


def train_embedder(
    model: str,
    data: str | Path,
    output: str | Path,
    *,
    settings: EmbedderSettings | None = None,
    loop: LoopSettings | None = None,
    tuning: TuningSettings | None = None,
    report: Report | None = None,
) -> History:
    """Fine-tune an embedder: arXiv 2506.05176, section 3.

    While it runs, its state is in the folder ``OUTPUT.training`` beside the output; called again with the same
    arguments, it goes on from there. Ctrl-C ends the step under way, saves the state and writes a checkpoint that can
    be used.

    Args:
        model: As in `Embedder.from_pretrained`.
        data: JSON lines; see `data`.
        output: The new checkpoint, as `Embedder`, transformers and sentence-transformers load it; with LoRA, the
            adapters are merged into it, and kept in its folder ``adapter``.
        settings: What is particular to embedders.
        loop: How any model is trained.
        tuning: Device, dtype, LoRA.
        report: Called after every step.

    Returns:
        What came of each step.

    Raises:
        ValueError: A setting is out of range, a line of the data is bad, or the loss is not finite.
        FileExistsError: The output is there already, and not of an interrupted run.
        ModelError: The model cannot be used.
        MissingDependencyError: transformers, or peft for LoRA, is not installed.
        KeyboardInterrupt: After Ctrl-C, when everything is written.
    """
    settings, loop, tuning = settings or EmbedderSettings(), loop or LoopSettings(), tuning or TuningSettings()
    base = find_base(model, "embedding")
    tokenizer = HubTokenizer.from_folder(base.folder)
    spec = match_embedding(base.name, read_config(base.folder), tokenizer)
    template = EmbeddingTemplate(tokenizer, spec, max_length=settings.max_length)
    chosen = spec.family.default_instruction if settings.instruction is None else settings.instruction
    instruction = resolve_instruction(chosen)
    lengths = [check_dimensions(spec, n) for n in settings.dimensions] or [spec.hidden_size]

    def objective() -> EmbedderObjective:
        network = load_model(base.folder, Qwen3Model, tuning, seed=loop.seed)
        return EmbedderObjective(
            network,
            template,
            settings,
            instruction=instruction,
            dimensions=lengths,
            dtype=compute_dtype(tuning),
        )

    trained = Trained("embedding", base, Path(data), Path(output), settings, loop, tuning, {"instruction": instruction})
    return run(trained, objective, _modules(spec, instruction), report)


def _modules(spec: EmbeddingSpec, instruction: str) -> Callable[[Path], None]:
    template = spec.family.query_template if instruction.strip() else "{query}"
    prompt = template.format(instruction=instruction, query="")
    return lambda part: write_embedding_modules(part, spec.hidden_size, prompt)
