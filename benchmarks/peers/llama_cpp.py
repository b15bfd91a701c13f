"""llama.cpp on the CPU, through llama-cpp-python's bindings of its C API.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python gguf

Built from source, since only then does it use all instructions that the processor has. Many texts are decoded at once,
each as a sequence of its own: `Llama.embed` does the same for embedders, but reads a vector of the hidden size for
rerankers too, which have two numbers, and takes control tokens in a text for plain text.

llama.cpp 0c1e570 computes the logits of every token although embeddings need none (see NOTES.md); that is a part of
what its users get, and of what is measured here.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.contenders import Contender
from benchmarks.workloads import Item, Task
from qwen_retrieval.specs import QWEN3_EMBEDDING
from qwen_retrieval.types import FloatArray

UBATCHES = (256, 512, 1024, 2048)
"""Tokens that one pass through the layers computes. All of them look at the whole cache, so that more are slower."""

SEQUENCES = 256
"""Texts of a pass at most: llama.cpp's own limit (`LLAMA_MAX_SEQ`)."""

LEAST = float(np.finfo(np.float32).tiny)
"""What a probability of zero counts as: llama.cpp gives probabilities, and log-odds beyond 87 leave float32."""


class LlamaCpp(Contender):
    """One GGUF file, on some threads.

    Args:
        folder: A checkpoint; the GGUF file is written into it the first time. With a folder `1_Pooling` in it it is an
            embedder, else a reranker.
        threads: How many to compute on.
        quantization: Of the matrices: "Q8_0", "BF16" or "F32".
    """

    unit = "tokens"

    def __init__(self, folder: Path, threads: int, quantization: str) -> None:
        self.name = f"llama.cpp {quantization}"
        self._rerank = not (folder / "1_Pooling").exists()
        self._threads = threads
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self._api: Any = importlib.import_module("llama_cpp")
        self._api.llama_backend_init()
        gguf = importlib.import_module("benchmarks.peers.gguf_checkpoint")
        path = gguf.gguf_file(folder, quantization, rerank=self._rerank)
        self._prompt = cast("str", gguf.RERANK_PROMPT)
        self._model = self._api.llama_model_load_from_file(str(path).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._context: Any = None
        self._sizes = (0, 0)

    def run(self, task: Task, items: Sequence[Item], batch_size: int) -> FloatArray:
        """See `Contender.run`; `batch_size` is llama.cpp's n_ubatch."""
        inputs = [self._tokenize(self._text(task, item)) for item in items]
        self._prepare(batch_size, max([batch_size, *map(len, inputs)]))
        rows = [row for part in self._parts(inputs) for row in self._decode(part)]
        values = np.stack(rows)  # (n, hidden), or (n, 2): the probabilities of "yes" and "no"
        if self._rerank:
            logs = np.log(np.maximum(values, LEAST))
            return cast("FloatArray", logs[:, 0] - logs[:, 1])
        return cast("FloatArray", values / np.linalg.norm(values, axis=1, keepdims=True))

    def sweep(self, mean_tokens: float, count: int) -> list[int]:
        """See `Contender.sweep`."""
        del mean_tokens, count
        return list(UBATCHES)

    def close(self) -> None:
        """See `Contender.close`."""
        self._free()
        self._api.llama_model_free(self._model)

    def token_ids(self, task: Task, item: Item) -> list[int]:
        """What the model sees of an item, template and end token included."""
        return self._tokenize(self._text(task, item))

    def _text(self, task: Task, item: Item) -> str:
        if task == "pairs":
            query, document = cast("tuple[str, str]", item)
            return self._prompt.format(query=query, document=document)
        if task == "queries":
            instruction = QWEN3_EMBEDDING.default_instruction
            return QWEN3_EMBEDDING.query_template.format(instruction=instruction, query=item)
        return cast("str", item)

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 2  # no token is shorter than a byte; llama.cpp adds at most two of its own
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, True, True)
        return list(ids[:count])

    def _prepare(self, ubatch: int, batch: int) -> None:
        """A context for batches of `batch` tokens, `ubatch` of them at a time; the last one is kept."""
        if (ubatch, batch) == self._sizes:
            return
        self._free()
        api, options = self._api, self._api.llama_context_default_params()
        options.n_ctx = options.n_batch = batch
        options.n_ubatch = ubatch
        options.n_threads = options.n_threads_batch = self._threads
        options.n_seq_max = min(SEQUENCES, batch)
        options.kv_unified = True  # else each sequence gets an equal share of the cache, as long as the longest
        options.embeddings = True
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context of {batch} tokens, {ubatch} at a time")
        self._batch = api.llama_batch_init(batch, 0, 1)
        self._sizes = (ubatch, batch)

    def _parts(self, inputs: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """Runs of inputs that fit into one batch."""
        part: list[list[int]] = []
        room = self._sizes[1]
        for ids in inputs:
            if part and (len(ids) > room or len(part) == SEQUENCES):
                yield part
                part, room = [], self._sizes[1]
            part.append(ids)
            room -= len(ids)
        if part:
            yield part

    def _decode(self, part: list[list[int]]) -> list[FloatArray]:
        """The pooled output of each input."""
        api, batch, i = self._api, self._batch, 0
        for sequence, ids in enumerate(part):
            for position, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = 1  # with embeddings llama.cpp wants all, and says so if it is not given
                i += 1
        batch.n_tokens = i
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        if status := api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp could not decode {i} tokens in {len(part)} sequences: status {status}")
        size = 2 if self._rerank else api.llama_model_n_embd(self._model)
        pointers = [api.llama_get_embeddings_seq(self._context, sequence) for sequence in range(len(part))]
        return [np.ctypeslib.as_array(pointer, (size,)).copy() for pointer in pointers]

    def _free(self) -> None:
        if self._context:
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
            self._context = None


def contender(folder: Path, threads: int, *, quantization: str = "Q8_0") -> Contender | None:
    """llama.cpp with the weights in `folder`; None, and the reason on stderr, where it is not installed."""
    missing = [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]
    if missing:
        print(f"llama.cpp is left out: {' and '.join(missing)} not installed", file=sys.stderr)
        return None
    return LlamaCpp(folder, threads, quantization)
