"""Embeddings for LlamaIndex."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from qwen_retrieval import specs
from qwen_retrieval.embedder import Embedder
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.fingerprint import check_dimensions, embedding_fingerprint
from qwen_retrieval.lazy import LazyModel, ModelOptions
from qwen_retrieval.vectors import normalize

with needs_extra("llama_index.core", "llama-index"):
    from llama_index.core.base.embeddings.base import Embedding, mean_agg
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_validator
    from pydantic import computed_field
    from pydantic.json_schema import SkipJsonSchema

from llama_index.embeddings.qwen_retrieval.cache import Role, SafelyCachedEmbedding, spanned_by_base
from llama_index.embeddings.qwen_retrieval.options import ModelFields

_show_bar: ContextVar[bool] = ContextVar("qwen_retrieval_show_bar", default=False)
"""Whether the caller wants to see the progress of what is embedded now."""


class QwenEmbedding(ModelFields, SafelyCachedEmbedding):
    """Embeds with a Qwen3-Embedding model: queries with the instruction template, documents as they are.

    ```python
    from llama_index.core import Settings, VectorStoreIndex
    from llama_index.embeddings.qwen_retrieval import QwenEmbedding

    Settings.embed_model = QwenEmbedding(model_name="Qwen/Qwen3-Embedding-0.6B")
    index = VectorStoreIndex.from_documents(documents)
    code = Settings.embed_model.model_copy(update={"instruction": "code_search"})  # another task, the same weights
    retriever = index.as_retriever(embed_model=code)
    ```

    The model is loaded by the first call, once per process, whoever else uses it. Async methods do not block the event
    loop, and concurrent calls share batches. Fields that are changed take effect with the next call. Pickles hold
    names and settings, no weights and no token: each process of ``IngestionPipeline.run(num_workers=…)`` loads a model
    of its own, so leave `num_workers` alone on a GPU, and set HF_TOKEN for a private repository. A process has a copy
    of its own of an `embeddings_cache` that can be pickled, too: what it puts into one in memory is lost.

    All that LlamaIndex embeds as a query gets the instruction, hypothetical answers (HyDE) too; a view with
    ``instruction=""`` embeds those like documents.

    Vectors are lists of `dimensions` Python floats, of unit length, in input order; ``[]`` for no texts, without
    loading.

    Args:
        model_name: "Qwen/Qwen3-Embedding-0.6B" (or "0.6B", "4B", "8B"), a checkpoint folder, or "demo".
        embedder: An `Embedder` to use instead of loading one; its own options count, and are refused here.
        dimensions: Length of the vectors; None for the model's full length.
        instruction: The task of queries: a sentence, a preset such as "code_search", or a task such as "SciFact".
            None for the model's web search instruction, "" for none.
        document_instruction: The same for documents, for symmetric tasks only; None for none.
        revision: Branch, tag or commit of the repository.
        dtype: "auto", "float32", "bfloat16", "float16", "int8" (CPU) or "float8" (GPU).
        batch_invariant: The same bits for a text whatever shares its batch, on the CPU; see
            `Embedder.from_pretrained`.
        max_length: Longest input in tokens; None for 8192, or the model's own limit if that is less.
        on_overflow: What to do with a longer input: "truncate" (and warn) or "error".
        control_tokens: What to do with strings such as ``<|endoftext|>`` in texts: "escape", "keep" or "error".
        device: "cpu", "cuda", "cuda:N" or "mps", or a list of several; None for the best there is.
        max_batch_tokens: Tokens in one forward pass; None for what suits the device.
        batch_size: Most inputs in a forward pass; None for as many as `max_batch_tokens` allows, which is faster.
        token: Access token for a gated or private repository.
        cache_folder: Where downloads are kept; None for the hub's own cache.
        local_files_only: Never ask the hub.
        show_progress_bar: Show a progress bar for more than 64 inputs.
        embed_batch_size: Texts that LlamaIndex hands over at a time, at most 2048. Smaller numbers only hide from the
            model what could share a batch.
        num_workers: How many of these hand-overs run at once in async methods; None for all.
        embeddings_cache: A `BaseKVStore` to keep vectors in. Queries, documents, models, dimensions and instructions
            have collections of their own in it.
        callback_manager: LlamaIndex's callbacks.
        rate_limiter: LlamaIndex's rate limiter, in versions that have it.

    Raises:
        ValueError: An option is unknown or out of range, as far as that can be told before loading (pydantic's
            `ValidationError`).
        ModelError: From the first call, if the model cannot be loaded.
        ModelClosedError: From calls that are under way when `close` is called.
        InputError: From a call, if a text cannot be given to the model.
    """

    model_name: str = "Qwen/Qwen3-Embedding-0.6B"
    embedder: SkipJsonSchema[Embedder | None] = Field(default=None, exclude=True, repr=False)
    dimensions: int | None = None
    instruction: str | None = None
    document_instruction: str | None = None
    # Neither of these changes a vector, so they are no part of the key of a pipeline's cache.
    embed_batch_size: int = Field(default=2048, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    _lazy: LazyModel[Embedder] = PrivateAttr(default_factory=lambda: LazyModel(Embedder))
    _fingerprints: dict[tuple[Any, ...], str] = PrivateAttr(default_factory=dict)

    _given_field: ClassVar[str] = "embedder"
    _name_field: ClassVar[str] = "model_name"
    _hints: ClassVar[dict[str, str]] = {
        **ModelFields._hints,
        "model": "model is called model_name here",
        "normalize": "normalize is not needed here: vectors always have unit length",
        **{
            theirs: f"{theirs} is called {ours} here, and must be the sentence alone, without Instruct: and Query:"
            for theirs, ours in (("query_instruction", "instruction"), ("text_instruction", "document_instruction"))
        },
    }

    if not TYPE_CHECKING:  # type checkers would no longer see the fields

        def __init__(self, *name: str, **fields: Any) -> None:  # noqa: ANN401
            # The model's name may come first without a keyword, as in other adapters.
            if len(name) > 1:
                raise TypeError("only model_name may be given without a keyword")
            super().__init__(**({"model_name": name[0]} if name else {}), **fields)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embedder is None:
            check_dimensions(self.model_name, self.dimensions)
        else:
            self._refuse_options(self.embedder.spec.model)
            self.model_name = self.embedder.spec.model
            specs.check_dimensions(self.embedder.spec, self.dimensions)
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps and traces."""
        return "QwenEmbedding"

    # Both are in dumps, also in those of node parsers that hold an embedding, so that a pipeline's cache notices other
    # weights in a folder, another dtype and batch invariance.
    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def fingerprint(self) -> str:
        """A name for what decides the vectors of queries and documents; see `embedding_fingerprint`."""
        return self._fingerprint(self.instruction, self.document_instruction)

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def computed_in(self) -> str:
        """The dtype of the embedder that was given, or `dtype`, and whether it is batch-invariant."""
        used = self.embedder or self
        return f"{used.dtype}, batch-invariant" if used.batch_invariant else used.dtype

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:  # noqa: ANN401
        """The adapter that `to_dict` describes, with `kwargs` instead of some of its values."""
        computed = ("fingerprint", "computed_in")
        return super().from_dict({key: value for key, value in data.items() if key not in computed}, **kwargs)

    def to_payload(self) -> dict[str, Any]:
        """What events and callbacks say of this adapter."""
        names = ("model_name", "embed_batch_size", "dimensions", "instruction", "document_instruction")
        return {"class_name": self.class_name(), **{name: getattr(self, name) for name in names}}

    def format_query(self, query: str) -> str:
        """What the model sees of a query, template and end token included; loads the model for its tokenizer."""
        return self._load().explain_query(query, instruction=self.instruction).text

    def warm_up(self) -> None:
        """Load the model now instead of with the first call."""
        self._load()

    def close(self) -> None:
        """Give back the model that was loaded here, for copies and views too; the next call loads it again."""
        super().close()
        self._fingerprints.clear()

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """The mean of several queries, of unit length too, or what `agg_fn` makes of them."""
        return super().get_agg_embedding_from_queries(queries, agg_fn or _unit_mean)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """The same as `get_agg_embedding_from_queries`, at once and without blocking the event loop."""
        vectors = await asyncio.gather(*(self.aget_query_embedding(query) for query in queries))
        return (agg_fn or _unit_mean)(vectors)

    @spanned_by_base
    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Embedding]:
        """Embed documents, `embed_batch_size` at a time, or find them in the cache."""
        with self._bar(show_progress) as theirs:
            return super().get_text_embedding_batch(texts, theirs, **kwargs)

    @spanned_by_base
    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Embedding]:
        """The same as `get_text_embedding_batch`, without blocking the event loop."""
        with self._bar(show_progress) as theirs:
            return await super().aget_text_embedding_batch(texts, theirs, **kwargs)

    @contextmanager
    def _bar(self, show_progress: bool) -> Iterator[bool]:
        """Show the model's own bar, because LlamaIndex's moves only once per `embed_batch_size` texts.

        Yields:
            Whether LlamaIndex shall show its bar: for an embedder that was given, whose options are its own.
        """
        token = _show_bar.set(show_progress)
        try:
            yield show_progress and self.embedder is not None
        finally:
            _show_bar.reset(token)

    def _get_query_embedding(self, query: str) -> Embedding:
        return _one(self._load().embed_queries([query], **self._of_queries()).tolist())

    async def _aget_query_embedding(self, query: str) -> Embedding:
        embedder = await self._aload()
        return _one((await embedder.aembed_queries([query], **self._of_queries())).tolist())

    def _get_text_embedding(self, text: str) -> Embedding:
        return _one(self._get_text_embeddings([text]))

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return _one(await self._aget_text_embeddings([text]))

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        if not texts:
            return []
        return cast("list[Embedding]", self._load().embed_documents(texts, **self._of_documents()).tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        if not texts:
            return []
        embedder = await self._aload()
        vectors = await embedder.aembed_documents(texts, **self._of_documents())
        # Millions of floats take a second. Row by row, so that this thread lets the event loop run in between.
        return await asyncio.to_thread(lambda: [row.tolist() for row in vectors])

    def _load(self) -> Embedder:
        return self.embedder or self._lazy.get(self._options(self.model_name))

    async def _aload(self) -> Embedder:
        return self.embedder or await self._lazy.aget(self._options(self.model_name))

    def _options(self, model: str) -> ModelOptions:
        options = super()._options(model)
        return replace(options, show_progress=True) if _show_bar.get() else options  # the same weights

    def _of_queries(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "dimensions": self.dimensions}

    def _of_documents(self) -> dict[str, Any]:
        return {"instruction": self.document_instruction, "dimensions": self.dimensions}

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()  # in another process, a path may lead to another folder
        return {**state, "__pydantic_private__": {**state["__pydantic_private__"], "_fingerprints": {}}}

    def _namespace(self, role: Role) -> str:
        # The instruction of one role does not change the vectors of the other, which views therefore share.
        asked = {"query": (self.instruction, ""), "document": ("", self.document_instruction)}[role]
        return f"{self.computed_in}-{self._fingerprint(*asked)}"

    def _fingerprint(self, instruction: str | None, document_instruction: str | None) -> str:
        """Computed once for the same settings, because it reads the files of a local folder."""
        asked = (self.dimensions, instruction, document_instruction)
        key = (*asked, self.embedder, self.model_name, self.revision, self.max_length, self.control_tokens)
        if key not in self._fingerprints:
            names = ("dimensions", "instruction", "document_instruction")
            self._fingerprints[key] = self._compute_fingerprint(**dict(zip(names, asked, strict=True)))
        return self._fingerprints[key]

    def _compute_fingerprint(self, **asked: Any) -> str:  # noqa: ANN401
        if self.embedder is not None:
            return self.embedder.fingerprint_for(**asked)
        return embedding_fingerprint(
            self.model_name,
            revision=self.revision,
            max_length=self.max_length,
            control_tokens=self.control_tokens,
            dtype=self.dtype,
            **asked,
        )


def _one(vectors: list[Embedding]) -> Embedding:
    return vectors[0]


def _unit_mean(vectors: list[Embedding]) -> Embedding:
    if len(vectors) == 1:
        return vectors[0]
    return cast("Embedding", normalize(mean_agg(vectors)).tolist())
