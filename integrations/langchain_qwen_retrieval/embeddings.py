"""`QwenEmbeddings`: Qwen3-Embedding as LangChain embeddings."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from langchain_qwen_retrieval.options import QwenModelOptions
from qwen_retrieval import Embedder, fingerprint, specs
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel
from qwen_retrieval.templates import check_texts

with needs_extra("langchain_core", "langchain"):
    from langchain_core.embeddings import Embeddings
    from pydantic import AliasChoices, Field, PrivateAttr, ValidationInfo, field_validator
    from pydantic.json_schema import SkipJsonSchema


class QwenEmbeddings(QwenModelOptions, Embeddings):
    """Qwen3-Embedding on your own hardware.

    Queries get the model's instruction, documents do not; vectors have unit length; texts go in as they are, newlines
    included. Concurrent calls, sync and async, from threads and event loops, share batches, so that stores that embed
    in threads (such as `QdrantVectorStore`) lose nothing.

    Setup:
        ```bash
        pip install "qwen-retrieval[langchain]"
        ```

    Instantiate:
        ```python
        from langchain_qwen_retrieval import QwenEmbeddings

        embeddings = QwenEmbeddings(model="Qwen/Qwen3-Embedding-0.6B", dimensions=512)
        ```

        It takes keyword arguments only, and refuses those that it does not know. The model is loaded by the first call
        (or by `warm_up`), once per process, whoever asks for it.

    Embed a query, and documents:
        ```python
        vector = embeddings.embed_query("How do I copy a file?")
        vectors = embeddings.embed_documents(["shutil.copy copies a file.", "math.sin returns the sine."])
        ```

    Async:
        ```python
        vector = await embeddings.aembed_query("How do I copy a file?")
        ```

    Another task, with the same model in memory:
        ```python
        for_code = embeddings.model_copy(update={"instruction": "code_search"})
        ```
    """

    _given_field: ClassVar[str] = "embedder"
    _lazy: LazyModel[Embedder] = PrivateAttr(default_factory=lambda: LazyModel(Embedder))

    model: str = Field(
        default="Qwen/Qwen3-Embedding-0.6B", validation_alias=AliasChoices("model", "model_name"), min_length=1
    )
    """Repository, checkpoint folder, short name ("0.6B", "4B", "8B") or "demo". `model_name` is accepted as well."""

    embedder: SkipJsonSchema[Embedder | None] = Field(default=None, exclude=True, repr=False)
    """An embedder that you have made, instead of a name. It has its own model options; `dimensions`, `instruction` and
    `document_instruction` still apply where they are set. Such an object cannot be pickled."""

    dimensions: int | None = None
    """Length of the vectors, from 32 to the model's own, which is the default. A shorter vector is the beginning of
    the long one, made unit length again (Matryoshka)."""

    instruction: str | None = None
    """The task that queries are embedded for: a sentence, or the name of a preset ("code_search") or of an evaluation
    task ("SciFact"). None for the model's web search instruction, "" for none at all."""

    document_instruction: str | None = None
    """Only for symmetric tasks (duplicates, similarity, clustering), in which documents get one too; None for none."""

    @field_validator("model", "embedder", "dimensions")
    @classmethod
    def _check_dimensions(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        values = {**info.data, str(info.field_name): value}
        embedder, dimensions = values.get("embedder"), values.get("dimensions")
        if embedder is not None:
            specs.check_dimensions(embedder.spec, dimensions)
        elif dimensions is not None and "model" in values:
            fingerprint.check_dimensions(values["model"], dimensions)
        return value

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: n texts.

        Returns:
            n vectors of `dimensions` Python floats, of unit length, in input order; [] for no texts, without loading
            the model.

        Raises:
            TypeError: `texts` is not a list of strings.
            InputError: A text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        texts = check_texts("texts", texts)
        if not texts:
            return []
        vectors: list[list[float]] = self._engine().embed_documents(texts, **self._for_documents).tolist()
        return vectors

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """The same as `embed_documents`, without blocking the event loop."""
        texts = check_texts("texts", texts)
        if not texts:
            return []
        vectors = await (await self._aengine()).aembed_documents(texts, **self._for_documents)
        # row by row, so that the thread lets the event loop run in between: one tolist() keeps the GIL to its end
        return await asyncio.to_thread(lambda: [row.tolist() for row in vectors])

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, with the instruction.

        Args:
            text: The query.

        Returns:
            A vector of `dimensions` Python floats, of unit length.

        Raises:
            TypeError: `text` is not a string.
            InputError: The text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        vector: list[float] = self._engine().embed_queries([text], **self._for_queries)[0].tolist()
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """The same as `embed_query`, without blocking the event loop."""
        vectors = await (await self._aengine()).aembed_queries([text], **self._for_queries)
        vector: list[float] = vectors[0].tolist()
        return vector

    @property
    def fingerprint(self) -> str:
        """A name for everything that decides the vectors; it loads nothing.

        Use it as the namespace of caches and of the indexing API's record manager, so that a changed model, revision,
        length or instruction never finds an old vector. Queries have vectors of their own: cache them in a second
        store, never with `query_embedding_cache=True`.

        ```python
        cached = CacheBackedEmbeddings.from_bytes_store(
            embeddings,
            LocalFileStore("cache/documents"),
            namespace=embeddings.fingerprint,
            query_embedding_cache=LocalFileStore("cache/queries"),
            key_encoder="sha256",
        )
        collection = f"handbook-{embeddings.fingerprint}"  # vectors of other settings stay behind in theirs
        record_manager = SQLRecordManager(f"qdrant/{collection}", db_url="sqlite:///records.db")
        ```
        """
        asked = {**self._for_queries, "document_instruction": self.document_instruction}
        if self.embedder is not None:
            return self.embedder.fingerprint_for(**asked)
        return fingerprint.embedding_fingerprint(
            self.model,
            revision=self.revision,
            max_length=self.max_length,
            control_tokens=self.control_tokens,
            dtype=self.dtype,
            **asked,
        )

    def _engine(self) -> Embedder:
        return self.embedder or self._lazy.get(self._model_options())

    async def _aengine(self) -> Embedder:
        return self.embedder or await self._lazy.aget(self._model_options())

    @property
    def _for_queries(self) -> dict[str, Any]:
        return {"instruction": self.instruction, "dimensions": self.dimensions}

    @property
    def _for_documents(self) -> dict[str, Any]:
        return {"instruction": self.document_instruction, "dimensions": self.dimensions}
