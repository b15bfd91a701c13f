"""Several checkpoints into one by spherical linear interpolation: arXiv 2506.05176, section 3, "Multi-stage Training".

The report merges checkpoints of the second stage by slerp, but does not say over what the angle is taken. Here it is
taken tensor by tensor, each as one long vector, as mergekit's `slerp` does (mergekit/merge_methods/slerp.py).
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen_retrieval.engine.weights import tensor_files
from qwen_retrieval.errors import CorruptCheckpointError, ModelNotFoundError

from .checkpoints import copy_files, replaced_folder

BLOCK = 1 << 22
"""Numbers of a tensor whose double precision copies are in memory at a time."""

_NO_DIFFERENCE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")

Update = Callable[[int], None]
"""Told how many bytes have been written in all."""


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point on the arc from `a` to `b`: Shoemake 1985, "Animating rotation with quaternion curves".

    slerp(a, b; w) = sin((1 - w) x) / sin(x) a + sin(w x) / sin(x) b, x the angle between a and b.

    As in mergekit, the lengths of a and b stay as they are, and where the angle says nothing - one of them is zero, or
    they point in the same direction or in opposite ones - it is (1 - w) a + w b. For a small angle both are the same
    to rounding: x is found in double precision, so no wider threshold is needed.

    Args:
        a: Any shape, floating point.
        b: The same shape.
        weight: w; 0 gives a, and 1 gives b.

    Returns:
        The shape of `a` in float32, or float64 if `a` is.
    """
    share_a, share_b = _shares(a.flatten(), b.flatten(), weight)
    dtype = torch.promote_types(a.dtype, torch.float32)
    result = torch.empty(a.shape, dtype=dtype)
    flat = result.view(-1)
    for part in _blocks(a.numel()):
        flat[part] = (share_a * a.flatten()[part].double() + share_b * b.flatten()[part].double()).to(dtype)
    return result


def _shares(a: Tensor, b: Tensor, weight: float) -> tuple[float, float]:
    aa = bb = ab = 0.0
    for part in _blocks(len(a)):
        left, right = a[part].double(), b[part].double()
        aa += float(left @ left)
        bb += float(right @ right)
        ab += float(left @ right)
    norms = math.sqrt(aa) * math.sqrt(bb)
    angle = math.acos(max(-1.0, min(1.0, ab / norms))) if norms else 0.0
    if math.sin(angle) < 1e-6:
        return 1 - weight, weight
    return math.sin((1 - weight) * angle) / math.sin(angle), math.sin(weight * angle) / math.sin(angle)


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def merge_tensors(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Several tensors into one, a pair at a time: the first with the second, the result with the third, and so on.

    Each step gives the next tensor its share of the weight so far, so that slerp of equal lengths and small angles is
    the weighted mean. For three or more tensors far apart the order matters a little.

    Args:
        tensors: One or more of the same shape, floating point.
        weights: As many, none negative, in any unit.

    Returns:
        The shape and dtype of the first; intermediate results are in float32 at least.
    """
    result, total = tensors[0], weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += weight
        if weight:  # so the total is no zero
            result = slerp(result, tensor, weight / total)
    return result.to(tensors[0].dtype)


def merge_checkpoints(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    update: Update | None = None,
) -> Path:
    """Merge checkpoints of the same architecture, tensor by tensor, into a new folder.

    Configuration and tokenizer are those of the first, as are the dtypes and the division into files. A few tensors
    are in memory at a time. The folder appears under its name when it is complete.

    Args:
        folders: Two or more checkpoint folders with safetensors.
        output: A folder that does not exist yet, or is empty.
        weights: What each checkpoint counts, none negative, in any unit; equal by default.
        update: Told how many bytes of weights have been written.

    Returns:
        `output`.

    Raises:
        ValueError: Fewer than two checkpoints, weights that do not fit, or checkpoints that differ in configuration,
            tokens, or the names, shapes or kinds of their tensors; the message says in which.
        ModelNotFoundError: A folder is no checkpoint.
        CorruptCheckpointError: A file cannot be read.
        FileExistsError: `output` is there already.
    """
    sources, target = [Path(folder) for folder in folders], Path(output)
    shares = _check_weights(len(sources), weights)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(errno.EEXIST, "already exists and is not an empty folder", str(target))
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(_opened(folder)) for folder in sources]
        _check_same(checkpoints)
        with replaced_folder(target) as part:
            copy_files(sources[0], part)
            _write_card(part, sources, shares)
            _write_weights(checkpoints, shares, part, update or (lambda _: None))
    return target


def _check_weights(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise ValueError(f"merging needs two checkpoints at least, but got {count}")
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count:
        raise ValueError(f"weights must be as many as checkpoints, {count}, but got {len(given)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise ValueError(f"weights must not be negative, and not all zero, but got {given}")
    return [weight / sum(given) for weight in given]


class _Tensors:
    """The tensors of a checkpoint by name, memory-mapped."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        named = tensor_files(folder)
        self.paths = sorted(set(named.values()))
        opened = [stack.enter_context(safe_open(path, framework="pt")) for path in self.paths]
        self._handles: dict[str, Any] = {name: handle for handle in opened for name in handle.keys()}  # noqa: SIM118
        if wrong := sorted(named.keys() ^ self._handles.keys()):
            raise CorruptCheckpointError(f"the index of {folder} and its files do not agree about {wrong[0]}")

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._handles)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor

    def kind(self, name: str) -> tuple[list[int], bool]:
        """Shape, and whether the numbers are floating point, without reading them."""
        part = self._handles[name].get_slice(name)
        return part.get_shape(), part.get_dtype() in ("F64", "F32", "F16", "BF16")


@contextmanager
def _opened(folder: Path) -> Iterator[_Tensors]:
    if not folder.is_dir():
        raise ModelNotFoundError(f"there is no folder {folder}")
    with ExitStack() as stack:
        try:
            tensors = _Tensors(folder, stack)
        except (OSError, SafetensorError) as error:
            raise CorruptCheckpointError(f"{folder} cannot be read as safetensors ({error})") from error
        yield tensors


def _check_same(checkpoints: Sequence[_Tensors]) -> None:
    """Refuse what cannot be merged, and say by name what differs."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        _check_config(first.folder, other.folder)
        _check_tokens(first.folder, other.folder)
        if alone := sorted({*first.names} ^ {*other.names}):
            owner = first if alone[0] in first.names else other
            raise ValueError(
                f"{first.folder} and {other.folder} have different tensors: only {owner.folder} has {alone[0]}"
                + (f" (and {len(alone) - 1} other names differ)" if len(alone) > 1 else "")
            )
        for name in first.names:
            if first.kind(name) != other.kind(name):
                raise ValueError(
                    f"{name} has shape {first.kind(name)[0]} in {first.folder}, but {other.kind(name)[0]} in "
                    f"{other.folder}" + ("" if first.kind(name)[0] != other.kind(name)[0] else ", as integers in one")
                )
    for name in first.names:
        if not first.kind(name)[1]:
            raise ValueError(f"{name} in {first.folder} is not floating point: quantized weights cannot be merged")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path.parent} has no {path.name}") from error
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path} must hold an object, but holds {type(content).__name__}")
    return content


def _check_config(first: Path, other: Path) -> None:
    left, right = _json(first / "config.json"), _json(other / "config.json")
    for name in sorted((left.keys() | right.keys()) - set(_NO_DIFFERENCE)):
        if left.get(name) != right.get(name):
            raise ValueError(
                f"config.json of {first} says {name}={left.get(name)!r}, but that of {other} {right.get(name)!r}; "
                "only checkpoints of the same architecture can be merged"
            )


def _check_tokens(first: Path, other: Path) -> None:
    if not (first / "tokenizer.json").is_file() or not (other / "tokenizer.json").is_file():
        return
    left, right = _json(first / "tokenizer.json"), _json(other / "tokenizer.json")
    if any(left.get("model", {}).get(part) != right.get("model", {}).get(part) for part in ("vocab", "merges")):
        raise ValueError(f"{first} and {other} have different tokens, so the rows of their tables do not correspond")


def _write_card(part: Path, sources: Sequence[Path], shares: Sequence[float]) -> None:
    rows = "".join(f"| {folder.name} | {share:.4g} |\n" for folder, share in zip(sources, shares, strict=True))
    text = (
        "---\ntags: [merge]\n---\n\nSeveral checkpoints, merged by spherical linear interpolation of each tensor, as "
        f"in arXiv 2506.05176.\n\n| checkpoint | weight |\n|---|---|\n{rows}"
    )
    (part / "README.md").write_text(text, encoding="utf-8")


def _write_weights(checkpoints: Sequence[_Tensors], shares: Sequence[float], part: Path, update: Update) -> None:
    """Files with the headers of the first checkpoint, so that names, dtypes and places are the same."""
    first, done = checkpoints[0], 0
    for path in first.paths:
        with open(path, "rb") as source, open(part / path.name, "xb") as handle:
            for name in _copy_header(source, handle):
                merged = merge_tensors([checkpoint[name] for checkpoint in checkpoints], shares)
                done += handle.write(merged.flatten().view(torch.uint8).numpy().data)
                update(done)
    index = first.folder / "model.safetensors.index.json"
    if index.is_file():
        shutil.copyfile(index, part / index.name)


def _copy_header(source: BinaryIO, handle: BinaryIO) -> list[str]:
    """Copy the header of a safetensors file: 8 bytes of length, then JSON; returns the names in the order of bytes."""
    length = source.read(8)
    header = source.read(int.from_bytes(length, "little"))
    handle.write(length + header)
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    return sorted(entries, key=lambda name: entries[name]["data_offsets"])
