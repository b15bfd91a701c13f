"""``qwen-retrieval train``: what trains models, or makes one of several that were trained."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import display, guard
from .options import MODEL_HELP, SMALLEST, InputFormat, Instruction, LoadOptions, load_embedder
from .outputs import STANDARD_OUTPUT, check_lines_target, open_lines
from .records import open_records

if TYPE_CHECKING:
    from qwen_retrieval.training.loop import History, LoopSettings, Report
    from qwen_retrieval.training.tuning import TuningSettings

LOOP, TUNING = "Training", "Device and memory"

train = typer.Typer(help="Fine-tune models, find negatives for that, merge checkpoints.", no_args_is_help=True)

Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="JSON lines of query, positive and, if you have them, negatives, instruction."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="A new folder for the checkpoint.")]


class Dtype(StrEnum):
    """What products are computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Answers(StrEnum):
    """Over which tokens the probability of an answer is normalised."""

    vocabulary = "vocabulary"
    answers = "answers"


@dataclass(frozen=True)
class LoopOptions:
    """The fields of `LoopSettings`, and those of `TuningSettings`."""

    epochs: Annotated[int, typer.Option(min=1, help="How often each example is seen.", rich_help_panel=LOOP)] = 1
    batch_size: Annotated[int, typer.Option(min=1, help="Queries of a step.", rich_help_panel=LOOP)] = 32
    learning_rate: Annotated[float, typer.Option(help="The highest; some 1e-4 suits --lora.", rich_help_panel=LOOP)] = (
        6e-6
    )
    warmup: Annotated[float, typer.Option(help="Share of the steps in which it rises.", rich_help_panel=LOOP)] = 0.05
    held_out: Annotated[
        float, typer.Option(help="Share of the queries kept aside to measure the loss on.", rich_help_panel=LOOP)
    ] = 0.05
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between that.", rich_help_panel=LOOP)] = 100
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two states.", rich_help_panel=LOOP)] = 500
    seed: Annotated[int, typer.Option(min=0, help="Order, held-out part, dropout.", rich_help_panel=LOOP)] = 0
    lora: Annotated[
        int | None, typer.Option(min=1, help="Train adapters of this rank only.", rich_help_panel=TUNING)
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=TUNING)] = "auto"
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 on CUDA.", rich_help_panel=TUNING)] = Dtype.auto
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens computed at a time; same steps, less memory.", rich_help_panel=TUNING)
    ] = 16_384
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Far less memory, more time.", rich_help_panel=TUNING)
    ] = False

    def loop(self) -> LoopSettings:
        """The settings of the loop."""
        from qwen_retrieval.training.loop import LoopSettings

        return LoopSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            held_out=self.held_out,
            evaluate_every=self.evaluate_every,
            save_every=self.save_every,
            seed=self.seed,
        )

    def tuning(self) -> TuningSettings:
        """How the model is held and computed."""
        from qwen_retrieval.training.tuning import LoraSettings, TuningSettings

        lora = None if self.lora is None else LoraSettings(rank=self.lora, alpha=self.lora)
        return TuningSettings(
            device=self.device,
            dtype=self.dtype.value,
            lora=lora,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def embedder(
    data: Data,
    output: Output,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = SMALLEST,
    instruction: Instruction = None,
    dimensions: Annotated[
        list[int] | None, typer.Option(min=1, help="A vector length to train for; give it several times.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=0, help="Most hard negatives of an example.")] = 7,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of an input; longer ones are cut.")] = 512,
    temperature: Annotated[float, typer.Option(help="Divides the cosines.")] = 0.05,
    *,
    options: LoopOptions,
) -> None:
    """Fine-tune an embedder with the contrastive loss of the Qwen3-Embedding report.

    Interrupt it as you like: the same command goes on where it stopped, and ends with the same weights.
    """
    from qwen_retrieval.training.embedder import EmbedderSettings, train_embedder
    from qwen_retrieval.training.losses import InfoNCESettings

    settings = EmbedderSettings(
        instruction=instruction,
        dimensions=tuple(dimensions or ()),
        negatives=negatives,
        max_length=max_length,
        max_batch_tokens=options.max_batch_tokens,
        loss=InfoNCESettings(temperature=temperature),
    )
    with _Reports() as report:
        train_embedder(
            model, data, output, settings=settings, loop=options.loop(), tuning=options.tuning(), report=report
        )
    display.note(f"wrote {output}")


def reranker(
    data: Data,
    output: Output,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = SMALLEST,
    instruction: Instruction = None,
    negatives: Annotated[int, typer.Option(min=1, help="Most negatives of an example.")] = 7,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a pair; longer documents are cut.")] = 1024,
    over: Annotated[
        Answers, typer.Option(help="Probability of yes and no among all tokens, or among these two.")
    ] = Answers.vocabulary,
    *,
    options: LoopOptions,
) -> None:
    """Fine-tune a reranker to answer yes for positives and no for negatives.

    Interrupt it as you like: the same command goes on where it stopped, and ends with the same weights.
    """
    from qwen_retrieval.training.reranker import RerankerSettings, train_reranker

    settings = RerankerSettings(
        instruction=instruction,
        negatives=negatives,
        max_length=max_length,
        max_batch_tokens=options.max_batch_tokens,
        over=over.value,
    )
    with _Reports() as report:
        train_reranker(
            model, data, output, settings=settings, loop=options.loop(), tuning=options.tuning(), report=report
        )
    display.note(f"wrote {output}")


class _Reports:
    """A progress bar with the number of steps, and a line for each measurement on what is held out."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._update: display.Update | None = None
        self._told: set[int] = set()

    def __enter__(self) -> Report:
        return self._report

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _report(self, history: History) -> None:
        if self._update is None:
            self._update = self._stack.enter_context(display.progress("training", history.steps))
        self._update(history.step)
        for step in sorted(history.held_out.keys() - self._told):
            display.note(f"step {step:,} of {history.steps:,}: loss {history.held_out[step]:.4f} on held-out queries")
            self._told.add(step)


def mine(
    data: Data,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .jsonl file for the same data with negatives, or - for stdout.")
    ],
    corpus: Annotated[
        str | None, typer.Option(help="JSON lines or text lines to find negatives in; the positives by default.")
    ] = None,
    field: Annotated[str, typer.Option(help="The field of a JSON line of the corpus that holds the text.")] = "text",
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = SMALLEST,
    count: Annotated[int, typer.Option(min=1, help="Most negatives of an example.")] = 7,
    first: Annotated[int, typer.Option(min=0, help="Best rank that is taken, from 0.")] = 0,
    last: Annotated[int, typer.Option(min=1, help="Ranks from this one on are not taken.")] = 100,
    ratio: Annotated[
        float, typer.Option(help="Highest score, as a part of the positive's; for a reranker, over 1.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Which documents of the window are taken.")] = 0,
    *,
    load: LoadOptions,
) -> None:
    """Find hard negatives: documents ranked high, but scored under 95 % of the positive (NV-Retriever)."""
    from qwen_retrieval.training.data import read_examples, write_examples
    from qwen_retrieval.training.mining import MiningSettings, mine_negatives

    settings = MiningSettings(count=count, first=first, last=last, ratio=ratio, seed=seed)
    check_lines_target(output)
    examples = list(read_examples(data))
    if not examples:
        raise ValueError(f"{data} has no examples")
    documents = [example.positive for example in examples] if corpus is None else _corpus(corpus, field)
    with (
        load_embedder(model, load) as embedder,
        open_lines(output) as handle,  # before the work, which would be lost if it could not be written
        display.progress("mining", len(examples)) as update,
    ):
        mined = list(mine_negatives(embedder, examples, documents, settings, update=update))
        write_examples(mined, handle)
    _tell_mined([len(example.negatives) for example in mined], output)


def _corpus(path: str, field: str) -> list[str]:
    with open_records(path, field, InputFormat.auto) as source:
        texts = [record.text for record in source.records]
    if not texts:
        raise ValueError(f"{path} has no documents")
    return texts


def _tell_mined(found: list[int], output: str) -> None:
    if none := found.count(0):
        display.note(
            f"warning: {none:,} of {len(found):,} examples have no negatives: give more documents with --corpus, or a "
            "higher --ratio"
        )
    where = "standard output" if output == STANDARD_OUTPUT else output
    display.note(f"wrote {len(found):,} examples to {where}, with {sum(found) / len(found):.1f} negatives on average")


def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Two or more checkpoint folders or hub ids.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the merged checkpoint.")],
    weight: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, help="Share of a model after the first, once for each of them; the first has the rest."
        ),
    ] = None,
) -> None:
    """Merge checkpoints of one architecture by spherical linear interpolation, as the Qwen3-Embedding report does.

    Configuration and tokenizer are those of the first model. Without --weight, all models count the same.
    """
    from qwen_retrieval.hub import model_folder
    from qwen_retrieval.training.merging import merge_checkpoints

    weights = None if not weight else _shares(weight, len(models))
    folders = [model_folder(model, "embedding") for model in models]
    size = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
    with display.progress("merging", size) as update:
        merge_checkpoints(folders, output, weights=weights, update=update)
    display.note(f"merged {len(models)} checkpoints into {output}")


def _shares(given: list[float], models: int) -> list[float]:
    """The weights of all models, from those of all but the first."""
    if len(given) != models - 1:
        raise ValueError(f"--weight must be given for each model after the first, {models - 1}, but got {len(given)}")
    if sum(given) > 1:
        raise ValueError(f"the weights of the models after the first must not exceed 1 together, but got {sum(given)}")
    return [1 - sum(given), *given]


for _command in (embedder, reranker, mine, merge):
    train.command()(guard.command(_command))
