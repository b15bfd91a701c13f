"""`QwenDocumentEmbedder`: the vectors of documents. YAML names this module; it must keep its name."""

# Without postponed annotations: see QwenComponent.
import asyncio
from dataclasses import dataclass, replace
from typing import Any, Self

from haystack_integrations.common.qwen_retrieval.component import QwenEmbedder, options_of
from haystack_integrations.common.qwen_retrieval.documents import (
    as_vector,
    check_documents,
    check_meta_fields,
    text_of,
)
from qwen_retrieval import Embedder
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel
from qwen_retrieval.specs import check_dimensions
from qwen_retrieval.types import FloatArray
from qwen_retrieval.usage import Usage, track_usage

with needs_extra("haystack", "haystack"):
    from haystack import Document, component


@component
@dataclass(kw_only=True, eq=False, repr=False)
class QwenDocumentEmbedder(QwenEmbedder):
    """Embeds documents with a Qwen3-Embedding model on your own hardware.

    Documents get no instruction; the queries belong to `QwenTextEmbedder`, which adds it. Texts go in as they are,
    newlines included, and vectors have unit length.

    ```python
    from haystack import Document
    from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder

    document_embedder = QwenDocumentEmbedder(model="Qwen/Qwen3-Embedding-0.6B", meta_fields_to_embed=["title"])
    documents = [Document(content="shutil.copy copies a file.", meta={"title": "Files"})]
    print(document_embedder.run(documents)["documents"][0].embedding)
    # [0.02, -0.05, ...]
    ```

    A document store has to know the length of the vectors:
    ``QdrantDocumentStore(index="docs", embedding_dim=document_embedder.embedding_dim)``.

    Raises:
        TypeError: A parameter is of another type, such as a plain string as `device`, `token` or
            `meta_fields_to_embed`.
        ValueError: The model cannot give vectors of `dimensions`, or `device` is a device map.
    """

    document_instruction: str | None = None
    """Only for symmetric tasks (duplicates, similarity, clustering), in which documents get the instruction of the
    queries; None for none. It has a name of its own, because documents to be searched must have none."""

    meta_fields_to_embed: list[str] | None = None
    """Metadata that is put before the content. Missing values and None are left out; 0 and False are not."""

    embedding_separator: str = "\n"
    """What stands between those values, and before the content."""

    progress_bar: bool = True
    """Show a progress bar for more than 64 documents."""

    def _check(self) -> None:
        QwenEmbedder._check(self)  # super() without arguments fails in a class that @component makes anew
        self._check_strings("embedding_separator")
        check_meta_fields(self.meta_fields_to_embed)

    @classmethod
    def from_embedder(
        cls,
        embedder: Embedder,
        *,
        document_instruction: str | None = None,
        prefix: str = "",
        suffix: str = "",
        dimensions: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> Self:
        """A component on top of an embedder that you have made.

        Args:
            embedder: It keeps its own options, and `close` leaves it open: the fields that belong to it cannot be
                assigned. YAML keeps the name of its model and the options, but not its device, dtype, token and
                `max_batch_tokens`; the component read from it loads that model.
            document_instruction: See the class, as for all other options.
            prefix: See the class.
            suffix: See the class.
            dimensions: See the class; None for the embedder's own.
            meta_fields_to_embed: See the class.
            embedding_separator: See the class.
        """
        return cls._holding(
            LazyModel(Embedder, embedder),
            **options_of(embedder),
            dimensions=embedder.dimensions if dimensions is None else check_dimensions(embedder.spec, dimensions),
            document_instruction=document_instruction,
            prefix=prefix,
            suffix=suffix,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: n documents. They are left as they are.

        Returns:
            `documents`, n copies in the same order, each with its `embedding`, a list of `dimensions` floats of unit
            length; and `meta` with `model`, `tokens` (what the model was given) and `truncated` (how many different
            texts were cut to `max_length`). No documents, without loading the model, for no documents.

        Raises:
            TypeError: `documents` is not a list of documents, or a value that was assigned is of another type.
            ValueError: A value that was assigned is refused, or not true of the model that this component was given.
            InputError: A text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        texts = self._texts(documents)
        with track_usage() as usage:
            if not texts:
                return self._output([], [], usage)
            vectors = self._models.get(self._options()).embed_documents(texts, **self._how())
        return self._output(documents, vectors, usage)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """The same as `run`, without blocking the event loop."""
        texts = self._texts(documents)
        with track_usage() as usage:
            if not texts:
                return self._output([], [], usage)
            model = await self._models.aget(self._options())
            vectors = await model.aembed_documents(texts, **self._how())
        return await asyncio.to_thread(self._output, documents, vectors, usage)  # millions of floats take seconds

    def _instructions(self) -> dict[str, str | None]:
        return {"document_instruction": self.document_instruction}

    def _around(self) -> tuple[Any, ...]:
        fields = tuple(self.meta_fields_to_embed or ())
        return self.prefix, self.suffix, fields, fields and self.embedding_separator

    def _texts(self, documents: list[Document]) -> list[str]:
        self._check()  # also where there are no documents, and nothing is asked of a model
        check_documents(documents, "; to embed a query, use QwenTextEmbedder")
        names, separator = self.meta_fields_to_embed, self.embedding_separator
        return [self.prefix + text_of(document, names, separator) + self.suffix for document in documents]

    def _how(self) -> dict[str, Any]:
        return {"instruction": self.document_instruction, "dimensions": self.dimensions}

    def _output(self, documents: list[Document], vectors: FloatArray | list[Any], usage: Usage) -> dict[str, Any]:
        # By position, not by id: two documents of the same id have a vector each.
        pairs = zip(documents, vectors, strict=True)
        embedded = [replace(document, embedding=as_vector(vector.tolist())) for document, vector in pairs]
        return {"documents": embedded, "meta": self._meta(usage)}
