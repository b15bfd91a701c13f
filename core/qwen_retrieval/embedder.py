"""Texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from qwen_retrieval.fingerprint import embedding_fingerprint
from qwen_retrieval.instructions import resolve_instruction
from qwen_retrieval.loading import LoadConfig, LoadedModel, load_embedding
from qwen_retrieval.model import Flow, Model, arun_flow, run_flow
from qwen_retrieval.specs import EmbeddingSpec, check_dimensions
from qwen_retrieval.templates import EmbeddingTemplate, Explanation, check_texts
from qwen_retrieval.types import ControlTokens, EmbeddingEngine, FloatArray, OnOverflow, Tokenizer
from qwen_retrieval.vectors import truncate_dimensions


class Embedder(Model):
    """Embeds queries and documents with a Qwen3-Embedding model.

    Queries get the model's instruction template, documents do not. Any number of threads and asyncio tasks may share
    one embedder: their texts meet in the same batches.

    Build it with `from_pretrained`; the constructor takes the parts, for tests and for engines of your own.

    Args:
        engine: What computes hidden states.
        tokenizer: The tokenizer of the checkpoint.
        spec: The model family and the checkpoint's sizes.
        dimensions: Length of the vectors, from the family's minimum (32) to the model's own, which is the default.
            A shorter vector is the beginning of the long one, renormalised (Matryoshka).
        instruction: The task that queries are embedded for, in one English sentence, or the name of a preset or of a
            task of the paper's evaluation (see `qwen_retrieval.instructions`). By default the model's web search
            instruction; "" for none at all.
        max_length: Longest input in tokens; None for 8192, or the model's own limit if that is less.
        max_batch_tokens: Tokens computed in one forward pass.
        batch_size: Most inputs of one call in a forward pass; None for as many as `max_batch_tokens` allows, which is
            faster.
        on_overflow: What to do with a longer input: "truncate" (cut its end and warn once per call) or "error".
        control_tokens: What to do with strings such as ``<|endoftext|>`` in texts: "escape" (spell them out as plain
            text), "keep" (let them act) or "error".
        show_progress: Show a progress bar for more than 64 inputs.
        loaded: The model of this process's cache that `engine` belongs to, as `from_pretrained` passes it.

    Raises:
        ValueError: An option is out of range.
        CorruptCheckpointError: The tokenizer gives other ids for the template than the model was trained with.
    """

    def __init__(
        self,
        engine: EmbeddingEngine,
        tokenizer: Tokenizer,
        spec: EmbeddingSpec,
        *,
        dimensions: int | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        on_overflow: OnOverflow = "truncate",
        control_tokens: ControlTokens = "escape",
        show_progress: bool = False,
        loaded: LoadedModel[EmbeddingSpec] | None = None,
    ) -> None:
        self.spec = spec
        self.dimensions = check_dimensions(spec, dimensions)
        default = spec.family.default_instruction
        self.instruction = resolve_instruction(default if instruction is None else instruction)
        self._template = EmbeddingTemplate(
            tokenizer, spec, max_length=max_length, on_overflow=on_overflow, control_tokens=control_tokens
        )
        super().__init__(
            engine.embed,
            tokenizer,
            name=spec.model,
            loaded=loaded,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            max_length=max_length,
            on_overflow=on_overflow,
            control_tokens=control_tokens,
            show_progress=show_progress,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        dimensions: int | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        on_overflow: OnOverflow = "truncate",
        control_tokens: ControlTokens = "escape",
        show_progress: bool = False,
        device: str | Sequence[str] = "auto",
        dtype: str = "auto",
        batch_invariant: bool = False,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a model, or share it if this process has loaded it already.

        Args:
            model: "Qwen/Qwen3-Embedding-0.6B" (or "0.6B", "4B", "8B"), the path of a checkpoint folder, or "demo" for
                the tiny model that comes with this package.
            dimensions: See the class, as for all options up to `show_progress`.
            instruction: See the class.
            max_length: See the class.
            max_batch_tokens: See the class; None for what suits the device.
            batch_size: See the class.
            on_overflow: See the class.
            control_tokens: See the class.
            show_progress: See the class.
            device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:N" or "mps". A list, such as
                ``["cuda:0", "cuda:1"]``, loads a copy of the weights on each, and calls keep all of them busy; which
                device computes which row varies, so results vary as much as with what shares a batch.
            dtype: "auto" (bfloat16 where the device computes it natively, else float32), "float32", "bfloat16",
                "float16", or matrices in 8 bits: "int8" (CPUs with AVX-512 VNNI) or "float8" (NVIDIA GPUs from Ada and
                Hopper on), half the memory of bfloat16 and faster; vectors differ by more than rounding, so keep them
                apart (`fingerprint` does).
            batch_invariant: The same text gets the same vector to the last bit whatever shares its batch, which is
                otherwise true up to rounding; slower where texts begin alike, because shared beginnings are computed
                in each. On the CPU, in "float32" and "bfloat16", and between processes that have the same kind of
                processor, versions of torch and this package, dtype and number of threads, which stays what it was
                when the model was loaded (`torch.get_num_threads`). Loading computes a few inputs both ways on the
                machine, and fails where they differ. `fingerprint` is that of an ordinary model, as it is for all
                that agree up to rounding: give bits that matter a cache of their own.
            revision: Branch, tag or commit of the repository.
            token: Access token for a gated or private repository.
            cache_dir: Where downloads are kept; by default the hub's own cache.
            local_files_only: Never ask the hub.

        Raises:
            ModelError: The model cannot be found, reached, opened or used; its subclasses in
                `qwen_retrieval.errors` say which.
            ValueError: An option is out of range.
        """
        config = LoadConfig(
            model=model,
            kind="embedding",
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            device=device,
            dtype=dtype,
            batch_invariant=batch_invariant,
            token=token,
        )
        loaded = load_embedding(config)
        try:
            return cls(
                loaded.engine,
                loaded.tokenizer,
                loaded.spec,
                dimensions=dimensions,
                instruction=instruction,
                max_length=max_length,
                max_batch_tokens=max_batch_tokens,
                batch_size=batch_size,
                on_overflow=on_overflow,
                control_tokens=control_tokens,
                show_progress=show_progress,
                loaded=loaded,
            )
        except BaseException:
            loaded.release()
            raise

    @property
    def fingerprint(self) -> str:
        """A name for what decides the vectors, to keep them under; see `embedding_fingerprint`."""
        return self.fingerprint_for()

    def fingerprint_for(
        self,
        *,
        dimensions: int | None = None,
        instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> str:
        """The fingerprint of calls with other settings than the embedder's own; None for its own."""
        return embedding_fingerprint(
            self.spec.model,
            revision=self.revision,
            dimensions=self.dimensions if dimensions is None else dimensions,
            instruction=self.instruction if instruction is None else instruction,
            document_instruction=document_instruction,
            max_length=self.max_length,
            control_tokens=self.control_tokens,
            dtype=self.dtype,
        )

    def embed_queries(
        self, queries: Sequence[str], *, instruction: str | None = None, dimensions: int | None = None
    ) -> FloatArray:
        """Embed queries, each with the instruction.

        Args:
            queries: n texts.
            instruction: The task of these queries, instead of the embedder's own; "" for none.
            dimensions: Length of these vectors, instead of the embedder's own.

        Returns:
            (n, dimensions) float32, rows of unit length, in input order; (0, dimensions) for no queries.

        Raises:
            TypeError: `queries` is not a list of strings.
            ValueError: The model cannot give vectors of that length.
            InputError: A query is not valid text, too long for ``on_overflow="error"``, or contains a control token
                that ``control_tokens="error"`` refuses.
            NonFiniteError: The model gives NaN for a query.
            ModelClosedError: After `close`.
        """
        texts = check_texts("queries", queries)
        size = self._length(dimensions)
        return run_flow(self._query_flow(texts, instruction, size)) if texts else _empty(size)

    async def aembed_queries(
        self, queries: Sequence[str], *, instruction: str | None = None, dimensions: int | None = None
    ) -> FloatArray:
        """The same as `embed_queries`, without blocking the event loop."""
        texts = check_texts("queries", queries)
        size = self._length(dimensions)
        return await arun_flow(self._query_flow(texts, instruction, size)) if texts else _empty(size)

    def embed_documents(
        self, documents: Sequence[str], *, instruction: str | None = None, dimensions: int | None = None
    ) -> FloatArray:
        """Embed documents, raw.

        Args:
            documents: n texts.
            instruction: Only for symmetric tasks (duplicates, similarity, clustering), in which both sides get the
                instruction of the query. None for none.
            dimensions: Length of these vectors, instead of the embedder's own.

        Returns:
            (n, dimensions) float32, rows of unit length, in input order; (0, dimensions) for no documents.

        Raises:
            TypeError: `documents` is not a list of strings.
            ValueError: The model cannot give vectors of that length.
            InputError: See `embed_queries`.
            NonFiniteError: The model gives NaN for a document.
            ModelClosedError: After `close`.
        """
        texts = check_texts("documents", documents)
        size = self._length(dimensions)
        return run_flow(self._document_flow(texts, instruction, size)) if texts else _empty(size)

    async def aembed_documents(
        self, documents: Sequence[str], *, instruction: str | None = None, dimensions: int | None = None
    ) -> FloatArray:
        """The same as `embed_documents`, without blocking the event loop."""
        texts = check_texts("documents", documents)
        size = self._length(dimensions)
        return await arun_flow(self._document_flow(texts, instruction, size)) if texts else _empty(size)

    def explain_query(self, query: str, *, instruction: str | None = None) -> Explanation:
        """Exactly what the model sees of a query; needs no forward pass."""
        return self._template.explain_query(query, self._resolve(instruction))

    def explain_document(self, document: str, *, instruction: str | None = None) -> Explanation:
        """Exactly what the model sees of a document; needs no forward pass."""
        return self._template.explain_document(document, resolve_instruction(instruction or ""))

    def _resolve(self, instruction: str | None) -> str:
        return self.instruction if instruction is None else resolve_instruction(instruction)

    def _length(self, dimensions: int | None) -> int:
        return self.dimensions if dimensions is None else check_dimensions(self.spec, dimensions)

    def _query_flow(self, texts: list[str], instruction: str | None, size: int) -> Flow:
        task = self._resolve(instruction)
        return self._flow(texts, lambda part: self._template.encode_queries(part, task), _shorten(size), len)

    def _document_flow(self, texts: list[str], instruction: str | None, size: int) -> Flow:
        task = resolve_instruction(instruction or "")
        return self._flow(texts, lambda part: self._template.encode_documents(part, task), _shorten(size), len)


def _shorten(size: int) -> Callable[[FloatArray], FloatArray]:
    return lambda hidden: truncate_dimensions(hidden, size)  # (n, hidden) -> (n, size)


def _empty(size: int) -> FloatArray:
    return np.empty((0, size), dtype=np.float32)
