"""`QwenRanker`: orders documents by relevance. YAML names this module; it must keep its name."""

# Without postponed annotations: see QwenComponent.
from dataclasses import dataclass, replace
from typing import Any, Self

from haystack_integrations.common.qwen_retrieval.component import QwenComponent, options_of
from haystack_integrations.common.qwen_retrieval.documents import check_documents, check_meta_fields, text_of
from qwen_retrieval import Reranker, RerankResult
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel
from qwen_retrieval.ranking import check_count, check_threshold, distinct
from qwen_retrieval.usage import Usage, track_usage

with needs_extra("haystack", "haystack"):
    from haystack import Document, component


_AROUND = ("query_prefix", "query_suffix", "document_prefix", "document_suffix")
_TEMPLATE = ("<|im_start|>", "<Instruct>:", "<Query>:", "<Document>:")


@component
@dataclass(kw_only=True, eq=False, repr=False)
class QwenRanker(QwenComponent[Reranker]):
    """Ranks documents with a Qwen3-Reranker model on your own hardware.

    The original checkpoints, with the model card's template built in. Several retrievers may be connected straight to
    ``ranker.documents``: what they have found twice is ranked once.

    ```python
    from haystack import Document
    from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker

    ranker = QwenRanker(model="Qwen/Qwen3-Reranker-0.6B", top_k=3)
    documents = [Document(content="math.sin returns the sine."), Document(content="shutil.copy copies a file.")]
    print(ranker.run("How do I copy a file?", documents)["documents"][0].content)
    # shutil.copy copies a file.
    ```

    Raises:
        TypeError: A parameter is of another type, such as a plain string as `device`, `token` or
            `meta_fields_to_embed`.
        ValueError: `top_k` is below 1, `score_threshold` is NaN, `device` is a device map, or a prefix or suffix holds
            the model card's template.
    """

    model: str = "Qwen/Qwen3-Reranker-0.6B"
    """Repository, checkpoint folder, short name ("0.6B", "4B", "8B") or "demo"."""

    top_k: int | None = 10
    """Return at most this many documents; None for all."""

    score_threshold: float | None = None
    """Return only documents of at least this score, in the unit that `scale_score` says; applied before `top_k`."""

    scale_score: bool = True
    """Scores are probabilities in [0, 1]; if false, log-odds (any real number), which do not saturate."""

    instruction: str | None = None
    """The task that documents are judged for: one English sentence, or the name of a preset ("code_search") or of an
    evaluation task ("SciFact"). None for the model card's, "" for none at all."""

    meta_fields_to_embed: list[str] | None = None
    """Metadata that is put before the content. Missing values and None are left out; 0 and False are not."""

    embedding_separator: str = "\n"
    """What stands between those values, and before the content."""

    query_prefix: str = ""
    """Added to the beginning of the query."""

    query_suffix: str = ""
    """Added to the end of the query."""

    document_prefix: str = ""
    """Added to the beginning of each document's text."""

    document_suffix: str = ""
    """Added to the end of each document's text."""

    def __post_init__(self) -> None:
        QwenComponent.__post_init__(self)  # super() without arguments fails in a class that @component makes anew
        self._models = LazyModel(Reranker)

    def _check(self) -> None:
        QwenComponent._check(self)
        check_count(self.top_k, name="top_k")
        check_threshold(self.score_threshold)
        check_meta_fields(self.meta_fields_to_embed)
        self._check_strings("embedding_separator", *_AROUND)
        for name in _AROUND:
            if any(part in getattr(self, name) for part in _TEMPLATE):  # as other rankers want it
                raise ValueError(
                    f"{name} holds the model card's template, which is built in; pass the sentence as instruction="
                )

    def to_dict(self) -> dict[str, Any]:
        """The component as plain values, for YAML.

        Raises:
            ValueError: `token` is no environment variable, and would have to be written down; or what would be
                written is not true of the reranker that this component was given.
        """
        given = self._given_model()
        if given is not None and given.template != "canonical":
            raise ValueError(
                f"the reranker that this component was given has the template {given.template!r}, and what is written "
                'down would be read with "canonical"; give it one with that template to write it down'
            )
        return QwenComponent.to_dict(self)

    @classmethod
    def from_reranker(
        cls,
        reranker: Reranker,
        *,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        scale_score: bool = True,
        instruction: str | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
    ) -> Self:
        """A component on top of a reranker that you have made.

        Args:
            reranker: It keeps its own options, and `close` leaves it open: the fields that belong to it cannot be
                assigned. YAML keeps the name of its model and the options, but not its device, dtype, token and
                `max_batch_tokens`; the component read from it loads that model. A template other than "canonical"
                cannot be kept, and is refused by `to_dict`.
            top_k: See the class.
            score_threshold: See the class.
            scale_score: See the class.
            instruction: See the class; None for the reranker's own.
            meta_fields_to_embed: See the class.
            embedding_separator: See the class.
            query_prefix: See the class.
            query_suffix: See the class.
            document_prefix: See the class.
            document_suffix: See the class.
        """
        return cls._holding(
            LazyModel(Reranker, reranker),
            **options_of(reranker),
            top_k=top_k,
            score_threshold=score_threshold,
            scale_score=scale_score,
            instruction=reranker.instruction if instruction is None else instruction,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            query_prefix=query_prefix,
            query_suffix=query_suffix,
            document_prefix=document_prefix,
            document_suffix=document_suffix,
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
    ) -> dict[str, Any]:
        """Rank documents.

        Args:
            query: The query.
            documents: n documents, in which an id may occur more than once; the copy of the highest score counts, and
                of equal ones the first. They are left as they are.
            top_k: Instead of the component's own; None for that.
            scale_score: Instead of the component's own; None for that.
            score_threshold: Instead of the component's own, 0.0 included; None for that.
            instruction: The task of this query, instead of the component's own; "" for none.

        Returns:
            `documents`, copies with their relevance as `score`, a float, the best first, equal ones in the given
            order; and `meta` with `model`, `tokens` (what the model was given, templates included) and `truncated`
            (how many different pairs were cut to `max_length`). No documents, without loading the model, for none.

        Raises:
            TypeError: `query` is not a string, `documents` not a list of documents, `top_k` no integer or
                `score_threshold` no number, or a value that was assigned is of another type.
            ValueError: `top_k` is below 1, `score_threshold` is NaN, or a value that was assigned is refused or not
                true of the model that this component was given.
            InputError: A text is not valid, or refused by `on_overflow` or `control_tokens`.
            ModelError: The model cannot be loaded.
        """
        found = self._distinct(query, documents)
        how = self._how(top_k, scale_score, score_threshold, instruction)
        with track_usage() as usage:
            if not found:
                return self._output([], [], how, usage)
            results = self._models.get(self._options()).rerank(*self._texts(query, found), **how)
        return self._output(found, results, how, usage)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
        instruction: str | None = None,
    ) -> dict[str, Any]:
        """The same as `run`, without blocking the event loop."""
        found = self._distinct(query, documents)
        how = self._how(top_k, scale_score, score_threshold, instruction)
        with track_usage() as usage:
            if not found:
                return self._output([], [], how, usage)
            model = await self._models.aget(self._options())
            results = await model.arerank(*self._texts(query, found), **how)
        return self._output(found, results, how, usage)

    def _distinct(self, query: object, documents: list[Document]) -> list[Document]:
        if not isinstance(query, str):
            raise TypeError(f"query must be a string, but got {type(query).__name__}")
        check_documents(documents)
        self._check()
        kept = distinct([document.id for document in documents], [document.score for document in documents])
        return [documents[position] for position in kept]

    def _how(
        self, top_k: int | None, scale_score: bool | None, score_threshold: float | None, instruction: str | None
    ) -> dict[str, Any]:
        how: dict[str, Any] = {
            "top_n": self.top_k if top_k is None else top_k,
            "scale": "probability" if (self.scale_score if scale_score is None else scale_score) else "log_odds",
            "score_threshold": self.score_threshold if score_threshold is None else score_threshold,
            "instruction": self.instruction if instruction is None else instruction,
        }
        check_count(how["top_n"], name="top_k")
        check_threshold(how["score_threshold"])
        return how

    def _texts(self, query: str, documents: list[Document]) -> tuple[str, list[str]]:
        names, separator = self.meta_fields_to_embed, self.embedding_separator
        texts = (text_of(document, names, separator) for document in documents)
        return (
            self.query_prefix + query + self.query_suffix,
            [self.document_prefix + text + self.document_suffix for text in texts],
        )

    def _output(
        self, documents: list[Document], results: list[RerankResult], how: dict[str, Any], usage: Usage
    ) -> dict[str, Any]:
        ranked = [replace(documents[result.index], score=result.score(how["scale"])) for result in results]
        return {"documents": ranked, "meta": self._meta(usage)}
