"""Checkpoints as they are published, and as they should not be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_retrieval.engine.weights import (
    Checkpoint,
    DecoderConfig,
    DecoderWeights,
    Matrix,
    load_decoder,
    load_head_rows,
)
from qwen_retrieval.errors import CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError
from qwen_retrieval.loading import read_config
from tests.checkpoints import TINY, qwen3_config, random_tensors, write_checkpoint

CPU = torch.device("cpu")
VOCABULARY = 500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(tmp_path: Path, **options: Any) -> Path:
    (tmp_path / "no-tokenizer").mkdir(exist_ok=True)
    options = {"prefix": False, "vocab_size": VOCABULARY} | options
    return write_checkpoint(tmp_path / "model", tmp_path / "no-tokenizer", TINY, **options)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    with Checkpoint(folder) as checkpoint:
        return load_decoder(checkpoint, DecoderConfig.from_json(read_config(folder)), CPU, dtype)


def plain(matrix: Matrix) -> torch.Tensor:
    assert isinstance(matrix, torch.Tensor)
    return matrix


@pytest.mark.parametrize("prefix", [True, False], ids=["with model.", "without model."])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_published_layout_gives_the_same_fused_weights(tmp_path: Path, prefix: bool, shards: int) -> None:
    weights = load(write(tmp_path, prefix=prefix, shards=shards))
    tensors = random_tensors(qwen3_config(TINY, vocab_size=VOCABULARY))
    layer = "layers.2.self_attn"
    qkv = torch.cat([tensors[f"{layer}.{part}_proj.weight"] for part in "qkv"])
    gate_up = torch.cat([tensors[f"layers.2.mlp.{part}_proj.weight"] for part in ("gate", "up")])
    assert torch.equal(plain(weights.layers[2].qkv), qkv)
    assert torch.equal(plain(weights.layers[2].gate_up), gate_up)
    assert torch.equal(weights.embedding, tensors["embed_tokens.weight"])
    assert len(weights.layers) == 4


def test_a_checkpoint_in_bfloat16_is_widened_except_for_its_token_table(tmp_path: Path) -> None:
    weights = load(write(tmp_path, dtype=torch.bfloat16))
    assert plain(weights.layers[0].qkv).dtype == torch.float32
    assert weights.embedding.dtype == torch.bfloat16  # its rows are widened when they are looked up


@pytest.mark.parametrize("tied", [True, False])
def test_head_rows_come_from_the_head_that_the_config_names(tmp_path: Path, tied: bool) -> None:
    folder = write(tmp_path, prefix=True, tied=tied)
    tensors = random_tensors(qwen3_config(TINY, vocab_size=VOCABULARY, tied=tied))
    with Checkpoint(folder) as checkpoint:
        rows = load_head_rows(checkpoint, DecoderConfig.from_json(read_config(folder)), [7, 3], CPU)
    assert torch.equal(rows, tensors["embed_tokens.weight" if tied else "lm_head.weight"][[7, 3]])


def test_an_untied_head_that_is_missing_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, prefix=True, tied=True)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    with Checkpoint(folder) as checkpoint, pytest.raises(CorruptCheckpointError, match=r"no lm_head\.weight"):
        load_head_rows(checkpoint, DecoderConfig.from_json(config), [7, 3], CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"attention_bias": True},
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": None},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": None},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_that_asks_for_another_computation_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config\.json says"):
        DecoderConfig.from_json(qwen3_config(TINY) | change)


def test_a_config_without_a_field_is_refused() -> None:
    config = qwen3_config(TINY)
    del config["num_hidden_layers"]
    with pytest.raises(CorruptCheckpointError, match="num_hidden_layers"):
        DecoderConfig.from_json(config)


@pytest.mark.parametrize("value", [0, -4, "4", None, 1.5])
def test_a_size_that_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(CorruptCheckpointError, match="must give num_hidden_layers as a positive integer"):
        DecoderConfig.from_json(qwen3_config(TINY) | {"num_hidden_layers": value})


def test_quantized_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.mlp.down_proj.weight"] = tensors["layers.0.mlp.down_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="quantized weights are not supported"):
        load(folder)


def test_rope_theta_is_read_from_old_and_new_configs() -> None:
    old, new = qwen3_config(TINY), qwen3_config(TINY)
    del old["rope_parameters"], new["rope_theta"]
    assert DecoderConfig.from_json(old) == DecoderConfig.from_json(new)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight"):
        load(folder)


def test_a_tensor_of_a_wrong_shape_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = torch.ones(63)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match=r"norm\.weight .* shape \(63,\), but .* \(64,\)"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_damaged_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors .* download it again"):
        load(folder)


def test_a_file_cut_short_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        load(folder)


def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFoundError, match="is a pickle, which is never loaded"):
        load(folder)


@pytest.mark.parametrize("shard", ["missing.safetensors", "../model.safetensors", "/etc/hostname"])
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, shard: str) -> None:
    folder = write(tmp_path, shards=2)
    index = {"weight_map": {"norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match="which is not in"):
        load(folder)


@pytest.mark.parametrize("content", ["[]", "not JSON", '{"weight_map": [1]}', '{"weight_map": {"norm.weight": 1}}'])
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptCheckpointError, match="is not a safetensors index"):
        load(folder)


PEAK = """
import sys, threading, time
from pathlib import Path
import torch
from qwen_retrieval.engine.weights import Checkpoint, DecoderConfig, load_decoder
from qwen_retrieval.loading import read_config

def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
before, peak, done = anonymous(), 0, threading.Event()
def watch() -> None:
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
with Checkpoint(folder) as checkpoint:
    weights = load_decoder(checkpoint, DecoderConfig.from_json(read_config(folder)), torch.device("cpu"), dtype)
done.set(); watcher.join()
tensors = [weights.embedding, weights.norm]
for layer in weights.layers:
    tensors += [getattr(layer, name) for name in layer.__slots__]
print((max(peak, anonymous()) - before) / sum(t.nbytes for t in tensors))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from Linux's /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_needs_little_more_memory_than_the_weights(tmp_path: Path, dtype: str) -> None:
    (tmp_path / "no-tokenizer").mkdir()
    shape = TINY | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    folder = write_checkpoint(
        tmp_path / "m", tmp_path / "no-tokenizer", shape, prefix=False, vocab_size=20_000, dtype=torch.bfloat16
    )
    command = [sys.executable, "-c", PEAK, str(folder), dtype]
    ratio = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.9 < ratio < 1.2
