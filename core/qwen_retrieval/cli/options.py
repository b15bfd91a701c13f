"""Options that several subcommands share, and how they become models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qwen_retrieval import Embedder, Reranker

SMALLEST = "0.6B"
MODEL_HELP = "Hub id, local folder, a size (0.6B, 4B, 8B), or 'demo'."
LOADING = "Model loading"


def check_instruction(given: str | None) -> str | None:
    """Refuse a word that is no known name: who types one means a name, and would get a plausible result without it."""
    from qwen_retrieval.instructions import is_known, looks_like_a_name, unknown_name

    if given is not None and looks_like_a_name(given) and not is_known(given):
        raise typer.BadParameter(unknown_name(given))
    return given


Instruction = Annotated[
    str | None,
    typer.Option(
        help="What the query is for: a preset (such as code_search), a task name, or a sentence.",
        callback=check_instruction,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
InputFile = Annotated[str, typer.Argument(metavar="FILE", help="JSON lines or text lines; - is standard input.")]
Field = Annotated[str, typer.Option(help="The field of a JSON line that holds the text.")]


class Overflow(StrEnum):
    """What to do with an input longer than the maximum."""

    truncate = "truncate"
    error = "error"


class ControlTokens(StrEnum):
    """What to do with control tokens in user text."""

    escape = "escape"
    keep = "keep"
    error = "error"


class InputFormat(StrEnum):
    """How input files are read."""

    auto = "auto"
    jsonl = "jsonl"
    text = "text"


Format = Annotated[
    InputFormat, typer.Option("--format", help="auto looks at the file's suffix, then at its first line.")
]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded and fed; each field is an option of every command that uses a model."""

    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; several: cuda:0,cuda:1.", rich_help_panel=LOADING)
    ] = "auto"
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16, float32, float16, int8 (CPU), float8 (GPU).", rich_help_panel=LOADING)
    ] = "auto"
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per input, template included; 8192 by default.", rich_help_panel=LOADING),
    ] = None
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens computed at once.", rich_help_panel=LOADING)
    ] = None
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant", help="The same bits whatever shares a batch (CPU); slower.", rich_help_panel=LOADING
        ),
    ] = False
    on_overflow: Annotated[
        Overflow, typer.Option(help="Cut inputs that are too long, or refuse.", rich_help_panel=LOADING)
    ] = Overflow.truncate
    control_tokens: Annotated[
        ControlTokens,
        typer.Option(help="Control tokens in texts: spelled out, obeyed, refused.", rich_help_panel=LOADING),
    ] = ControlTokens.escape
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=LOADING)] = (
        None
    )
    cache_dir: Annotated[Path | None, typer.Option(help="Where downloads are kept.", rich_help_panel=LOADING)] = None
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Never use the network.", rich_help_panel=LOADING)
    ] = False

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``from_pretrained`` that were given, or whose defaults are the same."""
        given = {name: _plain(value) for name, value in asdict(self).items() if value is not None}
        return given | {"device": self.device.split(",") if "," in self.device else self.device}

    def hub_keywords(self) -> dict[str, Any]:
        """Those of them that say where the files are."""
        return self._only("revision", "cache_dir", "local_files_only")

    def template_keywords(self) -> dict[str, Any]:
        """Those of them that say how a text becomes an input."""
        return self._only("max_length", "on_overflow", "control_tokens")

    def _only(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self.keywords().items() if name in names}


def _plain(value: Any) -> Any:  # noqa: ANN401 - an option of any type
    return value.value if isinstance(value, StrEnum) else str(value) if isinstance(value, Path) else value


def load_embedder(model: str, load: LoadOptions, **options: Any) -> Embedder:  # noqa: ANN401 - passed on unchanged
    """Load an embedder; `options` are further keyword arguments of ``Embedder.from_pretrained``."""
    from qwen_retrieval import Embedder

    return Embedder.from_pretrained(model, **load.keywords(), **options)


def load_reranker(model: str, load: LoadOptions, **options: Any) -> Reranker:  # noqa: ANN401 - passed on unchanged
    """Load a reranker; `options` are further keyword arguments of ``Reranker.from_pretrained``."""
    from qwen_retrieval import Reranker

    return Reranker.from_pretrained(model, **load.keywords(), **options)
