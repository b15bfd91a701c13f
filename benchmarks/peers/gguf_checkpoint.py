"""A Qwen3 checkpoint as a GGUF file, for llama.cpp: the tensors and metadata that its own converter writes.

    python -m benchmarks.peers.gguf_checkpoint FOLDER [--quantization Q8_0] [--rerank]

Follows `convert_hf_to_gguf.py` of llama.cpp 0c1e570 (`conversion/base.py`, `conversion/qwen.py`), which needs a
checkout of llama.cpp; this needs only `pip install gguf`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

QUANTIZATIONS = ("Q8_0", "BF16", "F32")
ANSWERS = ("yes", "no")
"""Rows of the classification head, in llama.cpp's order: its score is the softmax of the first."""

RERANK_PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""What llama.cpp's converter stores for its server (`conversion/qwen.py`, Qwen3Model.set_gguf_parameters)."""


def gguf_file(folder: Path, quantization: str = "Q8_0", *, rerank: bool = False) -> Path:
    """Where the GGUF of the checkpoint in `folder` lies; written there if it does not exist yet.

    Args:
        folder: A checkpoint of the published layout, safetensors in one file or in shards.
        quantization: One of `QUANTIZATIONS`: the type of all matrices; norms stay in float32.
        rerank: Add the rows of "yes" and "no" as a classification head, with pooling type RANK instead of LAST.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, but got {quantization!r}")
    path = folder / f"{'rerank' if rerank else 'embed'}-{quantization}.gguf"
    if not path.exists():
        unfinished = path.with_suffix(".part")
        _write(unfinished, folder, quantization, rerank)
        unfinished.rename(path)
    return path


def _write(path: Path, folder: Path, quantization: str, rerank: bool) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "qwen3")
    _add_shape(writer, config, quantization)
    vocabulary = _add_vocabulary(writer, folder, config["vocab_size"])
    writer.add_pooling_type(gguf.PoolingType.RANK if rerank else gguf.PoolingType.LAST)
    if rerank:
        writer.add_classifier_output_labels(ANSWERS)
        writer.add_chat_template([{"name": "rerank", "template": RERANK_PROMPT}])
    answers = [vocabulary[answer] for answer in ANSWERS] if rerank else []
    for name, tensor in _tensors(folder, config["num_hidden_layers"], answers):
        kind = gguf.GGMLQuantizationType[quantization if tensor.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any], quantization: str) -> None:
    writer.add_name("Qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    kinds = gguf.LlamaFileType
    writer.add_file_type(
        {"Q8_0": kinds.MOSTLY_Q8_0, "BF16": kinds.MOSTLY_BF16, "F32": kinds.ALL_F32}[quantization].value
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> dict[str, int]:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    tokens = [f"[PAD{i}]" for i in range(size)]  # ids above the vocabulary, in the larger checkpoints
    kinds = [gguf.TokenType.UNUSED] * size
    for token, id_ in vocabulary.items():
        tokens[id_], kinds[id_] = token, gguf.TokenType.NORMAL
    for token in content["added_tokens"]:
        control = token["special"] or (token["content"].startswith("<|") and token["content"].endswith("|>"))
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    # Merges, ids of special tokens, and whether the end token is appended, from the post-processor of tokenizer.json.
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer, quiet=True)
    return vocabulary


def _tensors(folder: Path, layers: int, answers: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF's name and float32 numbers of each tensor; with `answers`, a classification head of those rows."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, layers)
    tied = json.loads((folder / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name).to(torch.float32).numpy()
                full = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
                found = table.get_name(full, try_suffixes=(".weight",))
                if found is None:
                    raise ValueError(f"tensor {name!r} has no name in GGUF's table of qwen3")
                if answers and full == head:
                    yield "cls.output.weight", tensor[answers]
                if not answers or full != "lm_head.weight":  # a reranker needs no other row of its head
                    yield found, tensor


def main() -> None:
    """Write the file and print where it lies."""
    parser = argparse.ArgumentParser(description="A Qwen3 checkpoint as GGUF")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="Q8_0")
    parser.add_argument("--rerank", action="store_true")
    options = parser.parse_args()
    print(gguf_file(options.folder, options.quantization, rerank=options.rerank))


if __name__ == "__main__":
    main()
