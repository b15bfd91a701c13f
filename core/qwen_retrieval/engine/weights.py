"""Real Hugging Face checkpoints, from safetensors straight into fused weights.

Peak memory stays near one copy of the weights: each tensor is read from the memory-mapped file into its place in the
fused tensor, on its device and in its dtype, and let go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen_retrieval.errors import CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a Qwen3 decoder, as `config.json` gives it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tied_head: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Read the fields of a parsed `config.json`.

        Raises:
            UnsupportedModelError: The config asks for something that this decoder does not compute.
            CorruptCheckpointError: A field is missing.
        """
        _refuse_unknown(config)
        rope = config.get("rope_parameters") or {}
        try:
            heads = _size(config, "num_attention_heads")
            return cls(
                vocab_size=_size(config, "vocab_size"),
                hidden_size=_size(config, "hidden_size"),
                intermediate_size=_size(config, "intermediate_size"),
                num_layers=_size(config, "num_hidden_layers"),
                num_heads=heads,
                num_kv_heads=_size(config, "num_key_value_heads"),
                head_dim=_size(config, "head_dim") if config.get("head_dim") else config["hidden_size"] // heads,
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                rope_theta=float(rope.get("rope_theta") or config["rope_theta"]),
                tied_head=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            msg = f"config.json has no field {error}; is this folder a complete Qwen3 checkpoint?"
            raise CorruptCheckpointError(msg) from error

    @property
    def query_size(self) -> int:
        """Width of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of the key projection, and of the value projection."""
        return self.num_kv_heads * self.head_dim


def _size(config: Mapping[str, Any], field: str) -> int:
    value = config[field]
    if not isinstance(value, int) or value < 1:
        raise CorruptCheckpointError(f"config.json must give {field} as a positive integer, but says {value!r}")
    return value


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    """Refuse what would silently give other numbers than the model's own code."""
    ropes = [config.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    rope_types = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes} - {"default"}
    layer_types = set(config.get("layer_types") or []) - {"full_attention"}
    asked = {
        "model_type": (config.get("model_type"), "qwen3"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(config.get("attention_bias", False)), False),
        "use_sliding_window": (bool(config.get("use_sliding_window", False)), False),
        "rope_type": (next(iter(rope_types), "default"), "default"),
        "layer_types": (next(iter(layer_types), "full_attention"), "full_attention"),
        "quantization_config": (config.get("quantization_config"), None),
    }
    for field, (found, supported) in asked.items():
        if found != supported:
            msg = f"config.json says {field}={found!r}, but this engine computes {field}={supported!r} only"
            raise UnsupportedModelError(msg)


class QuantizedMatrix(Protocol):
    """A matrix (out, in) in other numbers than torch multiplies by itself."""

    def __getitem__(self, rows: slice) -> QuantizedMatrix:
        """Some rows as a matrix of their own."""

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ matrix.T``: (T, in) -> (T, out) in the dtype of `x`."""


Matrix: TypeAlias = Tensor | QuantizedMatrix
"""What a layer multiplies by."""


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer; matrices are (out, in) as in `torch.nn.Linear`."""

    input_norm: Tensor  # (hidden,)
    qkv: Matrix  # (query_size + 2 key_size, hidden)
    head_norms: Tensor  # (num_heads + num_kv_heads, head_dim), of each query head and then of each key head
    output: Matrix  # (hidden, query_size)
    mlp_norm: Tensor  # (hidden,)
    gate_up: Matrix  # (2 intermediate, hidden)
    down: Matrix  # (hidden, intermediate)


@dataclass(slots=True)
class DecoderWeights:
    """A whole decoder without its head."""

    embedding: Tensor  # (vocab, hidden)
    layers: list[LayerWeights]
    norm: Tensor  # (hidden,)


class Checkpoint:
    """The tensors of a checkpoint folder by name, single or sharded, with or without the ``model.`` prefix.

    Use it as a context manager: the files stay memory-mapped until it is left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = tensor_files(folder)
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self.has_prefix = any(name.startswith("model.") for name in self._files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._open.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor of the decoder, by its name without the ``model.`` prefix, on the CPU, in its stored dtype."""
        full = f"model.{name}" if self.has_prefix and not name.startswith("lm_head") else name
        if full not in self._files:
            msg = f"{self.folder} has no tensor {full}; the checkpoint is incomplete or of another architecture"
            raise CorruptCheckpointError(msg)
        path = self._files[full]
        try:
            found: Tensor = self._handle(path).get_tensor(full)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        if not found.is_floating_point():
            raise UnsupportedModelError(f"{full} in {path.name} is {found.dtype}: quantized weights are not supported")
        if tuple(found.shape) != shape:
            msg = f"{full} in {path.name} has shape {tuple(found.shape)}, but config.json asks for {shape}"
            raise CorruptCheckpointError(msg)
        return found

    def _handle(self, path: Path) -> Any:  # noqa: ANN401 - safetensors exports no type for its handle
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        return self._open[path]


def _damaged(path: Path, error: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{path} cannot be read as safetensors ({error}); download it again")


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or from the header of a single file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return _indexed_files(index)
    if not single.is_file():
        pickled = next(folder.glob("*.bin"), None)
        hint = f"; {pickled.name} is a pickle, which is never loaded: convert it to safetensors" if pickled else ""
        raise ModelNotFoundError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{hint}")
    try:
        with safe_open(single, framework="pt", device="cpu") as handle:
            return dict.fromkeys(handle.keys(), single)
    except (SafetensorError, OSError) as error:
        raise _damaged(single, error) from error


def _indexed_files(index: Path) -> dict[str, Path]:
    try:
        names: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        shards = sorted(set(map(Path, names.values())))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    for shard in shards:
        # A shard is a plain file of this folder: an index must not lead out of it.
        if Path(shard.name) != shard or not (index.parent / shard).is_file():
            raise CorruptCheckpointError(f"{index} names the shard {str(shard)!r}, which is not in {index.parent}")
    return {name: index.parent / file for name, file in names.items()}


def load_decoder(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    device: torch.device,
    dtype: torch.dtype,
    prepare: Callable[[LayerWeights], None] | None = None,
) -> DecoderWeights:
    """Read a whole decoder onto `device`, matrices in `dtype`.

    `prepare` is called with each layer before the next one is read, and may change it: so no more than one layer is in
    memory as it was stored.

    The token table keeps its stored dtype if that is smaller: rows are cast after they are looked up, which is exact
    and saves 0.3 GB on a 0.6B model in float32.
    """
    table = checkpoint.tensor("embed_tokens.weight", (config.vocab_size, config.hidden_size))
    smaller = table.dtype if table.dtype.itemsize < dtype.itemsize else dtype
    layers = []
    for i in range(config.num_layers):
        layers.append(_load_layer(checkpoint, i, config, device, dtype))
        if prepare is not None:
            prepare(layers[-1])
    return DecoderWeights(
        embedding=_fuse([table], device, smaller),
        layers=layers,
        norm=_fuse([checkpoint.tensor("norm.weight", (config.hidden_size,))], device, dtype),
    )


def _load_layer(
    checkpoint: Checkpoint, i: int, config: DecoderConfig, device: torch.device, dtype: torch.dtype
) -> LayerWeights:
    hidden, ffn = config.hidden_size, config.intermediate_size
    query, key = config.query_size, config.key_size

    def read(*parts: tuple[str, tuple[int, ...]]) -> Tensor:
        return _fuse([checkpoint.tensor(f"layers.{i}.{name}.weight", s) for name, s in parts], device, dtype)

    return LayerWeights(
        input_norm=read(("input_layernorm", (hidden,))),
        qkv=read(
            ("self_attn.q_proj", (query, hidden)),
            ("self_attn.k_proj", (key, hidden)),
            ("self_attn.v_proj", (key, hidden)),
        ),
        head_norms=torch.cat(
            [
                read(("self_attn.q_norm", (config.head_dim,))).expand(config.num_heads, -1),
                read(("self_attn.k_norm", (config.head_dim,))).expand(config.num_kv_heads, -1),
            ]
        ),
        output=read(("self_attn.o_proj", (hidden, query))),
        mlp_norm=read(("post_attention_layernorm", (hidden,))),
        gate_up=read(("mlp.gate_proj", (ffn, hidden)), ("mlp.up_proj", (ffn, hidden))),
        down=read(("mlp.down_proj", (hidden, ffn))),
    )


def _fuse(parts: list[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stack `parts` along the rows, each copied once from the mapped file to its place."""
    rows = sum(len(part) for part in parts)
    fused = torch.empty((rows, *parts[0].shape[1:]), dtype=dtype, device=device)
    start = 0
    for part in parts:
        fused[start : start + len(part)].copy_(part)
        start += len(part)
    return fused


def load_head_rows(checkpoint: Checkpoint, config: DecoderConfig, token_ids: list[int], device: torch.device) -> Tensor:
    """The rows of the language-model head for `token_ids`, in float32: two rows instead of 151,669.

    The 8B reranker's head is a tensor of its own (untied); reading the token table instead gives 0.5 for every pair.

    Returns:
        (len(token_ids), hidden) float32.
    """
    untied = "lm_head.weight" in checkpoint
    if not untied and not config.tied_head:
        msg = f"config.json says that the head is not tied, but {checkpoint.folder} has no lm_head.weight"
        raise CorruptCheckpointError(msg)
    name = "lm_head.weight" if untied and not config.tied_head else "embed_tokens.weight"
    table = checkpoint.tensor(name, (config.vocab_size, config.hidden_size))
    return table[token_ids].to(device=device, dtype=torch.float32)
