"""From a base checkpoint and a data file to a new checkpoint: what training embedders and rerankers have in common."""

from __future__ import annotations

import errno
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_retrieval.hub import model_folder
from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.specs import resolve_model
from qwen_retrieval.templates import Encoded

from .checkpoints import Base, Kind, model_card, replaced_folder, write_checkpoint
from .data import PART_TOKENS, ExampleFile, hold_out
from .loop import History, LoopSettings, Objective, Report, train
from .tuning import TuningSettings, merged, save_adapters

_NO_INFLUENCE = ("evaluate_every", "save_every", "device", "gradient_checkpointing")
"""Settings that an interrupted run may be resumed without."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained on what, and how.

    Attributes:
        options: What `from_pretrained` has to be given, so that inputs are written as in the training.
    """

    kind: Kind
    base: Base
    data: Path
    output: Path
    settings: Any  # a dataclass
    loop: LoopSettings
    tuning: TuningSettings
    options: dict[str, str]
    needs_negatives: bool = False

    @property
    def state(self) -> Path:
        """Where the run is saved while it is under way."""
        return self.output.with_name(f"{self.output.name}.training") / "state.safetensors"

    def all_settings(self) -> dict[str, Any]:
        """Every setting by its name; those of a part, such as the loss, with the part's name before theirs."""
        return _flat(asdict(self.settings)) | asdict(self.loop) | _flat(asdict(self.tuning))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def find_base(model: str, kind: Kind) -> Base:
    """The checkpoint that `model` names, downloaded if need be."""
    name = resolve_model(model, kind)
    return Base(name, model_folder(name, kind))


def run(
    trained: Trained, objective: Callable[[], Objective], finish: Callable[[Path], None], report: Report | None
) -> History:
    """Train, and write the checkpoint.

    Args:
        trained: What, on what, and how.
        objective: Loads the model; called when everything else is known to be right.
        finish: Adds to the folder of the checkpoint what is particular to its kind.
        report: Called after every step.
    """
    _check_output(trained)
    file = ExampleFile(trained.data)
    if trained.needs_negatives and not file.most_negatives:
        raise ValueError(
            f"{trained.data} has no negatives, and who never sees an irrelevant document learns to say yes; find some "
            "with: qwen-retrieval train mine"
        )
    kept = {name: value for name, value in trained.all_settings().items() if name not in _NO_INFLUENCE}
    identity = kept | {"kind": trained.kind, "base": trained.base.public_name, "data": file.digest}
    identity["part_tokens"] = PART_TOKENS  # with others, sums have another order
    loaded = objective()
    history = train(loaded, file, trained.loop, trained.state, identity=identity, report=report)
    _write(trained, loaded.model, file, history, finish)
    if not history.is_finished:
        raise KeyboardInterrupt
    shutil.rmtree(trained.state.parent)
    return history


def _check_output(trained: Trained) -> None:
    target = trained.output
    if not target.name:
        raise ValueError(f"output must be the name of a new folder, but got {str(target)!r}")
    if target.exists() and not trained.state.is_file() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(errno.EEXIST, "already exists, and no interrupted run belongs to it", str(target))


def _write(
    trained: Trained,
    model: Any,  # noqa: ANN401 - of transformers or peft
    file: ExampleFile,
    history: History,
    finish: Callable[[Path], None],
) -> None:
    chosen, _ = hold_out(file.queries, trained.loop.held_out, seed=trained.loop.seed)
    data = f"{len(chosen):,} of the {len(file):,} examples of {trained.data.name}"
    settings = trained.all_settings() | trained.options
    card = model_card(trained.kind, trained.output.name, trained.base, data, trained.options, settings, history)
    with replaced_folder(trained.output) as part:
        if trained.tuning.lora:
            save_adapters(model, part / "adapter", trained.base.public_name)
        write_checkpoint(part, merged(model), trained.base, card)
        finish(part)


def encode_by_instruction(
    texts: Sequence[tuple[Any, str | None]], default: str, encode: Callable[[list[Any], str], list[Encoded]]
) -> list[Encoded]:
    """Encode texts that have instructions of their own, those with the same one together.

    Args:
        texts: n texts, or pairs of texts, each with its instruction: a sentence, a name, or None.
        default: The sentence for None.
        encode: Encodes some with one instruction.

    Returns:
        n inputs in the order of `texts`.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for i, (_, instruction) in enumerate(texts):
        places[default if instruction is None else resolve_instruction(instruction)].append(i)
    encoded: dict[int, Encoded] = {}
    for instruction, own in places.items():
        encoded |= zip(own, encode([texts[i][0] for i in own], instruction), strict=True)
    return [encoded[i] for i in range(len(texts))]
