"""``qwen-retrieval train``: what trains models, or makes one of several that were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import display, guard

train = typer.Typer(help="Merge fine-tuned checkpoints.", no_args_is_help=True)


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


train.command()(guard.command(merge))
