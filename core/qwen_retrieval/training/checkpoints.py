"""Trained models as folders that this package, plain transformers and sentence-transformers load."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import nn

from qwen_retrieval.engine.weights import tensor_files
from qwen_retrieval.loading import read_config

from .loop import History

Kind = Literal["embedding", "reranking"]

LIBRARIES = ("qwen-retrieval", "torch", "transformers")

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPIED = (".json", ".txt", ".jinja")
_NOT_COPIED = ("model.safetensors.index.json", "trainer_state.json", "all_results.json", "train_results.json")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Base:
    """The checkpoint that training starts from.

    Attributes:
        name: What the user called it.
        folder: Its files.
    """

    name: str
    folder: Path

    @property
    def public_name(self) -> str:
        """A repository as it is, and the last part of a folder's path: where it lies is nobody's business."""
        return self.name if self.is_repository else self.folder.resolve().name if self.name != "demo" else "demo"

    @property
    def is_repository(self) -> bool:
        """Whether the name is one of the hub's."""
        return not Path(self.name).exists() and _REPOSITORY.fullmatch(self.name) is not None

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are stored in, whatever its configuration says; those of the new checkpoint are too."""
        name, path = min(tensor_files(self.folder).items())
        with safe_open(path, framework="pt") as handle:
            return _DTYPES.get(handle.get_slice(name).get_dtype(), torch.float32)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end, and is removed if there is an exception."""
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=parent) as scratch:
        part, before = Path(scratch) / "new", Path(scratch) / "before"
        part.mkdir()
        yield part
        if target.exists():
            os.replace(target, before)
        try:
            os.replace(part, target)
        except OSError:
            if before.exists():
                os.replace(before, target)
            raise


def copy_files(source: Path, part: Path) -> None:
    """Copy configuration and tokenizer, and the modules of sentence-transformers.

    Weights, pickles and code are not copied, nor records of the training that made the source.

    Args:
        source: The folder of a checkpoint.
        part: The folder of the new one.
    """
    modules = [folder for folder in source.glob("[0-9]_*") if folder.is_dir()]
    for folder in (source, *modules):
        (part / folder.relative_to(source)).mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.is_file() and file.suffix in _COPIED and file.name not in _NOT_COPIED:
                shutil.copyfile(file, part / file.relative_to(source))


def write_checkpoint(part: Path, model: nn.Module, base: Base, card: str) -> None:
    """Write weights, card, and what `copy_files` takes from the base.

    `config.json` is the base's own: what transformers 5 writes has the rotary base under a name that 4 does not read.

    Args:
        part: An empty folder.
        model: A Qwen3 of transformers, with a head or without; its weights are written in the base's dtype.
        base: Where configuration and tokenizer come from.
        card: The content of README.md.
    """
    copy_files(base.folder, part)
    config, dtype = read_config(base.folder), base.dtype
    stored = {name: str(dtype).removeprefix("torch.") for name in ("dtype", "torch_dtype") if name in config}
    write_json(part / "config.json", config | stored)
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)  # the token table itself
    save_torch_state_dict({name: t.contiguous() for name, t in tensors.items()}, part)
    (part / "README.md").write_text(card, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write a file for people and programs; its folder is made if it is not there."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def model_card(
    kind: Kind,
    name: str,
    base: Base,
    data: str,
    options: Mapping[str, str],
    settings: Mapping[str, Any],
    history: History,
) -> str:
    """The README.md of a trained checkpoint; no path of this machine stands in it.

    Args:
        kind: What the model is for.
        name: Name of the model.
        base: Where it started.
        data: What it was trained on, in words.
        options: What `from_pretrained` has to be given, so that inputs are written as in the training.
        settings: Everything that decided the result.
        history: What came of each step.
    """
    task, ours, theirs = {
        "embedding": ("feature-extraction", "Embedder", "`SentenceTransformer`, with the instruction as a prompt"),
        "reranking": ("text-ranking", "Reranker", "`CrossEncoder`, from 5.4 on, with the instruction in its template"),
    }[kind]
    given = "".join(f", {key}={json.dumps(value, ensure_ascii=False)}" for key, value in options.items())
    lines = ["---", "library_name: sentence-transformers", f"pipeline_tag: {task}", "tags: [qwen-retrieval]"]
    lines += [f"base_model: {base.name}"] if base.is_repository else []
    lines += ["---", "", f"# {name}", "", f"`{base.public_name}`, fine-tuned on {data} with qwen-retrieval.", ""]
    lines += ["```python", f"from qwen_retrieval import {ours}", ""]
    lines += [f"model = {ours}.from_pretrained({json.dumps(name, ensure_ascii=False)}{given})", "```", ""]
    lines += [f"transformers loads it too, and sentence-transformers as {theirs}.", ""]
    lines += ["The licence of the base model holds.", ""]
    lines += ["## Training", "", *_losses(history), "", "| setting | value |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in settings.items()]
    lines += ["", "Versions: " + ", ".join(f"{library} {version(library)}" for library in LIBRARIES) + "."]
    return "\n".join(lines) + "\n"


def _losses(history: History) -> list[str]:
    steps = f"{history.steps:,} {'step' if history.steps == 1 else 'steps'}"
    lines = [f"It took {steps}."]
    if not history.is_finished:
        lines = [f"**Interrupted after {history.step:,} of {steps}: the learning rate had not come to its end.**"]
    tenth = history.step // 10
    if tenth > 1:
        first, last = (sum(part) / tenth for part in (history.losses[:tenth], history.losses[-tenth:]))
        lines.append(f"Mean loss of the first {tenth:,} steps: {first:.4f}; of the last {tenth:,}: {last:.4f}.")
    elif history.step > 1:
        lines.append(f"Loss of the first step: {history.losses[0]:.4f}; of the last: {history.losses[-1]:.4f}.")
    elif history.losses:
        lines.append(f"Its loss was {history.losses[0]:.4f}.")
    if history.held_out:
        lines += ["", "| steps | loss on held-out queries |", "|---|---|"]
        lines += [f"| {step:,} | {loss:.4f} |" for step, loss in _thinned(sorted(history.held_out.items()))]
    return lines


def _thinned(rows: list[tuple[int, float]], most: int = 12) -> list[tuple[int, float]]:
    """Some of many rows, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def _cell(value: Any) -> str:  # noqa: ANN401 - any setting
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    return "–" if value in (None, "") else str(value).replace("|", "\\|").replace("\n", " ")
