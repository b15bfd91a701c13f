"""`QwenTextEmbedder`: the vector of a query. YAML names this module; it must keep its name."""

# Without postponed annotations: see QwenComponent.
from dataclasses import dataclass
from typing import Any, Self

from haystack_integrations.common.qwen_retrieval.component import QwenEmbedder, options_of
from qwen_retrieval import Embedder
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel
from qwen_retrieval.specs import check_dimensions
from qwen_retrieval.types import FloatArray
from qwen_retrieval.usage import Usage, track_usage

with needs_extra("haystack", "haystack"):
    from haystack import component


@component
@dataclass(kw_only=True, eq=False, repr=False)
class QwenTextEmbedder(QwenEmbedder):
    """Embeds queries with a Qwen3-Embedding model on your own hardware.

    Queries get the model's instruction; the documents belong to `QwenDocumentEmbedder`, which adds none. The text goes
    in as it is, newlines included, and the vector has unit length.

    ```python
    from haystack_integrations.components.embedders.qwen_retrieval import QwenTextEmbedder

    text_embedder = QwenTextEmbedder(model="Qwen/Qwen3-Embedding-0.6B")
    print(text_embedder.run("How do I copy a file?"))
    # {'embedding': [-0.03, 0.01, ...], 'meta': {'model': 'Qwen/Qwen3-Embedding-0.6B', 'tokens': 31, 'truncated': 0}}
    ```

    In a pipeline, connect ``text_embedder.embedding`` to ``retriever.query_embedding``.

    Raises:
        TypeError: A parameter is of another type, such as a plain string as `device` or `token`.
        ValueError: The model cannot give vectors of `dimensions`, `device` is a device map, or `prefix` holds the
            instruction template.
    """

    instruction: str | None = None
    """The task that queries are embedded for: one English sentence, or the name of a preset ("code_search") or of an
    evaluation task ("SciFact"). None for the model's web search instruction, "" for none at all."""

    def _check(self) -> None:
        QwenEmbedder._check(self)  # super() without arguments fails in a class that @component makes anew
        if self.prefix.lstrip().startswith("Instruct:"):  # as other embedders want it
            raise ValueError(
                "prefix holds the instruction template, which is added here; pass the sentence as instruction="
            )

    @classmethod
    def from_embedder(
        cls,
        embedder: Embedder,
        *,
        instruction: str | None = None,
        prefix: str = "",
        suffix: str = "",
        dimensions: int | None = None,
    ) -> Self:
        """A component on top of an embedder that you have made.

        Args:
            embedder: It keeps its own options, and `close` leaves it open: the fields that belong to it cannot be
                assigned. YAML keeps the name of its model and the options, but not its device, dtype, token and
                `max_batch_tokens`; the component read from it loads that model.
            instruction: See the class; None for the embedder's own.
            prefix: See the class.
            suffix: See the class.
            dimensions: See the class; None for the embedder's own.
        """
        return cls._holding(
            LazyModel(Embedder, embedder),
            **options_of(embedder),
            dimensions=embedder.dimensions if dimensions is None else check_dimensions(embedder.spec, dimensions),
            instruction=embedder.instruction if instruction is None else instruction,
            prefix=prefix,
            suffix=suffix,
        )

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: The query.
            instruction: The task of this query, instead of the component's own; "" for none.

        Returns:
            `embedding`, a list of `dimensions` floats, of unit length; and `meta` with `model`, `tokens` (what the
            model was given, template included) and `truncated` (1 if the text was cut to `max_length`, else 0).

        Raises:
            TypeError: `text` is not a string, or a value that was assigned is of another type.
            ValueError: A value that was assigned is refused, or not true of the model that this component was given.
            InputError: The text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        queries = self._queries(text)
        with track_usage() as usage:
            vectors = self._models.get(self._options()).embed_queries(queries, **self._how(instruction))
        return self._output(vectors, usage)

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """The same as `run`, without blocking the event loop."""
        queries = self._queries(text)
        with track_usage() as usage:
            model = await self._models.aget(self._options())
            vectors = await model.aembed_queries(queries, **self._how(instruction))
        return self._output(vectors, usage)

    def _instructions(self) -> dict[str, str | None]:
        return {"instruction": self._effective("instruction")}

    def _queries(self, text: object) -> list[str]:
        if not isinstance(text, str):
            raise TypeError(
                f"text must be a string, but got {type(text).__name__}; to embed documents, use QwenDocumentEmbedder"
            )
        self._check()
        return [self.prefix + text + self.suffix]

    def _how(self, instruction: str | None) -> dict[str, Any]:
        chosen = self.instruction if instruction is None else instruction
        return {"instruction": chosen, "dimensions": self.dimensions}

    def _output(self, vectors: FloatArray, usage: Usage) -> dict[str, Any]:
        return {"embedding": vectors[0].tolist(), "meta": self._meta(usage)}
