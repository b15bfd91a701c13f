"""The model that is trained: transformers' Qwen3 from a checkpoint folder, whole or through LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from qwen_retrieval.engine.engine import resolve_device
from qwen_retrieval.errors import needs_extra

with needs_extra("transformers", "train"):
    from transformers import Qwen3ForCausalLM as Qwen3ForCausalLM
    from transformers import Qwen3Model as Qwen3Model
    from transformers.utils import logging

Architecture = type[Qwen3Model] | type[Qwen3ForCausalLM]
"""Without a head, as embedders are saved, or with one, as rerankers are."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) on every matrix of the layers.

    Attributes:
        rank: Of each adapter.
        alpha: The adapter counts alpha / rank. Qwen3-VL-Embedding has 32 for both.
        dropout: Of the adapters' inputs.
    """

    rank: int = 32
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of LoRA must be at least 1, but got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"the dropout of LoRA must be from 0 to less than 1, but got {self.dropout}")


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How the model is held and computed.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        dtype: What products are computed in: "float32" or "bfloat16"; "auto" is bfloat16 on CUDA, else float32.
            Weights that are trained stay in float32, because small steps are lost in bfloat16; those that LoRA leaves
            alone are held in it.
        lora: None to train all weights.
        gradient_checkpointing: Compute activations again instead of keeping them: a third more time, far less memory.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *_DTYPES):
            raise ValueError(f"dtype must be one of auto, {', '.join(_DTYPES)}, but got {self.dtype!r}")


def load_model(folder: Path, architecture: Architecture, settings: TuningSettings, *, seed: int) -> Any:  # noqa: ANN401
    """A model of transformers, or of peft around it, ready to be trained.

    Args:
        folder: The checkpoint; only safetensors are read, and no code.
        architecture: Which class of transformers.
        settings: See `TuningSettings`.
        seed: Of the adapters' first weights.

    Raises:
        MissingDependencyError: LoRA was asked for, and peft is not installed.
        ValueError: There is no such device.
    """
    device = resolve_device(settings.device)
    frozen = compute_dtype(settings) if settings.lora else torch.float32
    with _quiet():
        model: Any = architecture.from_pretrained(
            folder, dtype=frozen, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
        )
    if settings.gradient_checkpointing:
        _checkpoint_activations(model)
    if settings.lora:
        model = _with_adapters(model, settings.lora, seed)
    return model.to(device)


def _checkpoint_activations(model: Any) -> None:  # noqa: ANN401 - of transformers
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # newer releases of transformers 5 warn of the other name
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar while weights are read: it lasts seconds, and the training has its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _with_adapters(model: Any, settings: LoraSettings, seed: int) -> Any:  # noqa: ANN401 - peft has its own classes
    with needs_extra("peft", "train"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules="all-linear"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # peft 0.21 asks transformers for an attribute by its former name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            return get_peft_model(model, config)  # the adapters themselves are in float32


def compute_dtype(settings: TuningSettings) -> torch.dtype:
    """What products are computed in."""
    if settings.dtype == "auto":
        return torch.bfloat16 if resolve_device(settings.device).type == "cuda" else torch.float32
    return _DTYPES[settings.dtype]


@contextmanager
def computing(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Products in `dtype`, weights as they are."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield


def save_adapters(model: Any, folder: Path, base: str) -> None:  # noqa: ANN401 - peft has its own classes
    """Write the adapters as peft loads them.

    Args:
        model: What `load_model` gave with LoRA.
        folder: Where to.
        base: Name of the checkpoint they belong to.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path = base
    model.save_pretrained(
        folder, safe_serialization=True, save_embedding_layers=False
    )  # not "auto", which asks the hub
    (folder / "README.md").unlink(missing_ok=True)  # the card of the merged model says more


def merged(model: Any) -> Any:  # noqa: ANN401 - peft has its own classes
    """The model of transformers with the adapters added to its weights; `model` must not be used any more."""
    return model.merge_and_unload() if hasattr(model, "peft_config") else model
