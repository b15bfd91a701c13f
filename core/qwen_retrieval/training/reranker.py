"""Fine-tuning of rerankers: the probability of "yes" and "no" after the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.loading import read_config
from qwen_retrieval.specs import match_reranking
from qwen_retrieval.templates import Encoded, RerankingTemplate
from qwen_retrieval.tokenizer import HubTokenizer

from .data import Example, cut_by_tokens
from .loop import History, LoopSettings, Report
from .losses import AnswerSpace, last_logits, yes_no_loss
from .modules import write_reranking_modules
from .runs import Trained, encode_by_instruction, find_base, run
from .tuning import Qwen3ForCausalLM, TuningSettings, compute_dtype, computing, load_model


@dataclass(frozen=True, slots=True)
class RerankerSettings:
    """What is particular to rerankers.

    Attributes:
        instruction: Of examples that have none: a sentence, or a name of `qwen_retrieval.instructions`; None for the
            family's default.
        template: Which of the templates in circulation; see `Reranker`.
        negatives: Most negatives of an example that are used, its first ones. The report does not say how many it has;
            with 1, as many pairs are irrelevant as are relevant.
        max_length: Longest pair in tokens, template included; longer documents are cut at their end.
        max_batch_tokens: Tokens computed at a time, padding included; the step is the same whatever it is.
        over: See `yes_no_loss`.
    """

    instruction: str | None = None
    template: str = "canonical"
    negatives: int = 7
    max_length: int = 1024
    max_batch_tokens: int = 16_384
    over: AnswerSpace = "vocabulary"

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, but got {self.negatives}")
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be at least 1, but got {self.max_batch_tokens}")


class RerankerObjective:
    """The loss of a batch of pairs: "yes" for each query and its positive, "no" for each of its negatives.

    Args:
        model: A `Qwen3ForCausalLM`, as it is or with LoRA.
        template: What turns pairs into inputs, the same that `Reranker` uses.
        settings: See `RerankerSettings`.
        instruction: A sentence, for examples without one.
        dtype: What products are computed in.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - of transformers or peft
        template: RerankingTemplate,
        settings: RerankerSettings,
        *,
        instruction: str,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self._template, self._settings = template, settings
        self._instruction, self._dtype = instruction, dtype

    def loss(self, examples: Sequence[Example], *, seed: int, backward: bool) -> float:
        """See `loop.Objective`: the mean over all pairs, each part of them on its own."""
        inputs, labels = self._encode(examples)
        parts = cut_by_tokens([len(ids) for ids in inputs], self._settings.max_batch_tokens)
        total = 0.0
        for number, part in enumerate(parts):
            torch.manual_seed(seed + number)
            with torch.set_grad_enabled(backward), computing(self.model, self._dtype):
                logits = last_logits(self.model, [inputs[i] for i in part], pad_id=0)  # (n, vocabulary)
            answers = torch.tensor([labels[i] for i in part], device=logits.device)
            loss = yes_no_loss(
                logits, answers, yes_id=self._template.yes_id, no_id=self._template.no_id, over=self._settings.over
            ) * (len(part) / len(inputs))
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _encode(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[bool]]:
        pairs: list[tuple[tuple[str, str], str | None]] = []
        labels: list[bool] = []
        for example in examples:
            negatives = example.negatives[: self._settings.negatives]
            pairs += [((example.query, text), example.instruction) for text in (example.positive, *negatives)]
            labels += [True, *[False] * len(negatives)]
        return [one.ids for one in encode_by_instruction(pairs, self._instruction, self._pairs)], labels

    def _pairs(self, pairs: list[tuple[str, str]], instruction: str) -> list[Encoded]:
        return self._template.encode_pairs([q for q, _ in pairs], [d for _, d in pairs], instruction)


def train_reranker(
    model: str,
    data: str | Path,
    output: str | Path,
    *,
    settings: RerankerSettings | None = None,
    loop: LoopSettings | None = None,
    tuning: TuningSettings | None = None,
    report: Report | None = None,
) -> History:
    """Fine-tune a reranker by supervised fine-tuning: arXiv 2506.05176, section 3, L_reranking.

    Resumed, interrupted and written as by `train_embedder`.

    Args:
        model: As in `Reranker.from_pretrained`.
        data: JSON lines, with negatives; see `data`.
        output: The new checkpoint, as `Reranker`, transformers and sentence-transformers (see
            `modules.write_reranking_modules`) load it; with LoRA, the adapters are merged into it, and kept in its
            folder ``adapter``.
        settings: What is particular to rerankers.
        loop: How any model is trained.
        tuning: Device, dtype, LoRA.
        report: Called after every step.

    Returns:
        What came of each step.

    Raises:
        ValueError: See `train_embedder`; or no example has negatives.
        FileExistsError: See `train_embedder`, as for the others.
        ModelError: The model cannot be used.
        MissingDependencyError: transformers, or peft for LoRA, is not installed.
        KeyboardInterrupt: After Ctrl-C, when everything is written.
    """
    settings, loop, tuning = settings or RerankerSettings(), loop or LoopSettings(), tuning or TuningSettings()
    base = find_base(model, "reranking")
    tokenizer = HubTokenizer.from_folder(base.folder)
    spec = match_reranking(base.name, read_config(base.folder), tokenizer)
    template = RerankingTemplate(tokenizer, spec, template=settings.template, max_length=settings.max_length)
    chosen = spec.family.default_instruction if settings.instruction is None else settings.instruction
    instruction = resolve_instruction(chosen)

    def objective() -> RerankerObjective:
        network = load_model(base.folder, Qwen3ForCausalLM, tuning, seed=loop.seed)
        return RerankerObjective(network, template, settings, instruction=instruction, dtype=compute_dtype(tuning))

    options = {"instruction": instruction, "template": settings.template}
    trained = Trained(
        "reranking", base, Path(data), Path(output), settings, loop, tuning, options, needs_negatives=True
    )

    def finish(part: Path) -> None:
        written = spec.family.template(settings.template)
        write_reranking_modules(part, written, instruction, yes_id=template.yes_id, no_id=template.no_id)

    return run(trained, objective, finish, report)
