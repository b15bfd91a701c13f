"""Our models in the protocols of mteb 2 (`mteb.models.models_protocols`): an encoder, and a cross-encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.evaluation.mteb.instructions import paper_instruction
from qwen_retrieval.evaluation.mteb.registry import embedding_meta, reranking_meta
from qwen_retrieval.instructions import task_instruction, tasks
from qwen_retrieval.reranker import Pair, Reranker
from qwen_retrieval.types import FloatArray

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import Array, BatchedInput, PromptType


class MtebEmbedder:
    """An embedder as mteb's `EncoderProtocol`, for `mteb.evaluate`.

    Each task's texts get the instruction that the published evaluation gave them (see `paper_instruction`); the
    embedder's own instruction is not used, its `dimensions` and limits are.

    Args:
        embedder: The model; `paper_embedder` opens one with the settings of the published evaluation.

    Attributes:
        embedder: The model.
        mteb_model_meta: What mteb writes into its results: name, revision, sizes.

    Raises:
        MissingDependencyError: mteb is not installed.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.mteb_model_meta: ModelMeta = embedding_meta(embedder)

    def encode(
        self,
        inputs: Iterable[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,  # noqa: ARG002 - of the protocol, as is what has no use below
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,  # noqa: ARG002 - the engine makes batches by their tokens
        show_progress_bar: bool | None = None,  # noqa: ARG002 - `Embedder(show_progress=)`
        precision: str = "float32",
    ) -> FloatArray:
        """Embed all texts of a loader.

        Args:
            inputs: Batches with a list of texts as ``text``; of documents, mteb has put the title before it.
            task_metadata: The task, which decides the instruction.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: The side of the texts, which decides the instruction; None if the task has no sides.
            batch_size: Not used.
            show_progress_bar: Not used.
            precision: "float32", as vectors are not quantized here.

        Returns:
            (n, dimensions) float32, rows of unit length, in input order; (0, dimensions) for no texts.

        Raises:
            ValueError: Another precision is asked for.
        """
        _check_precision(precision)
        texts = list(_column(inputs, "text"))
        instruction = paper_instruction(task_metadata, prompt_type)
        # With an instruction, both methods write the same template.
        return self.embedder.embed_documents(texts, instruction=instruction)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines of all pairs: (n, dimensions) and (m, dimensions) give (n, m)."""
        from mteb.similarity_functions import cos_sim

        cosines: Array = cos_sim(embeddings1, embeddings2)
        return cosines

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosines of rows in the same place: (n, dimensions) twice gives (n,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        cosines: Array = pairwise_cos_sim(embeddings1, embeddings2)
        return cosines


class MtebReranker:
    """A reranker as mteb's `CrossEncoderProtocol`, for `mteb.evaluate` on reranking tasks.

    The instruction is that of the evaluation's table by the name of the task, else the reranker's own
    (evaluation/run_mteb_reranking.py, https://github.com/QwenLM/Qwen3-Embedding, commit f4ad0c43). Where every query
    has an instruction of its own (FollowIR), that one takes its place in the template and is not written again into
    the query, as mteb does it; the paper does not say how it was done there.

    Args:
        reranker: The model; `paper_reranker` opens one with the settings of the published evaluation.

    Attributes:
        reranker: The model.
        mteb_model_meta: What mteb writes into its results: name, revision, sizes.

    Raises:
        MissingDependencyError: mteb is not installed.
    """

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        self.mteb_model_meta: ModelMeta = reranking_meta(reranker)

    def predict(
        self,
        inputs1: Iterable[BatchedInput],
        inputs2: Iterable[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,  # noqa: ARG002 - of the protocol, as is what has no use below
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,  # noqa: ARG002
        batch_size: int | None = None,  # noqa: ARG002 - the engine makes batches by their tokens
        show_progress_bar: bool | None = None,  # noqa: ARG002 - `Reranker(show_progress=)`
        precision: str = "float32",
    ) -> FloatArray:
        """Score the pairs of two loaders.

        Args:
            inputs1: Batches of n queries: ``text``, and ``query`` and ``instruction`` where queries have their own.
            inputs2: Batches of the n documents to judge, as ``text``.
            task_metadata: The task, which decides the instruction.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Not used.
            batch_size: Not used.
            show_progress_bar: Not used.
            precision: "float32".

        Returns:
            (n,) float32 log-odds, in input order: the order of the published probabilities, which saturate.

        Raises:
            ValueError: The loaders differ in length, or another precision is asked for.
        """
        _check_precision(precision)
        task = task_metadata.name if task_metadata.name in tasks() else None
        default = self.reranker.instruction if task is None else task_instruction(task).query
        queries = list(_queries(inputs1, default))
        documents = list(_column(inputs2, "text"))
        by_instruction: dict[str, list[int]] = {}
        for row, (_, instruction) in enumerate(queries):
            by_instruction.setdefault(instruction, []).append(row)
        pairs: list[Pair] = [(query, document) for (query, _), document in zip(queries, documents, strict=True)]
        log_odds = np.empty(len(pairs), dtype=np.float32)
        for instruction, rows in by_instruction.items():
            log_odds[rows] = self.reranker.log_odds_of_pairs([pairs[row] for row in rows], instruction=instruction)
        return log_odds


def _check_precision(precision: str) -> None:
    if precision != "float32":
        raise ValueError(
            f'precision must be "float32", but got {precision!r}; quantize with mteb\'s CompressionWrapper'
        )


def _column(inputs: Iterable[Mapping[str, object]], name: str) -> Iterator[str]:
    for batch in inputs:
        values = batch[name]
        if not isinstance(values, list | tuple):
            raise TypeError(f"a batch of texts must have a list as {name!r}, but has a {type(values).__name__}")
        yield from values


def _queries(inputs: Iterable[Mapping[str, object]], default: str) -> Iterator[tuple[str, str]]:
    """Each query with its instruction."""
    for batch in inputs:
        if "instruction" in batch:
            own = (text or default for text in _column([batch], "instruction"))
            yield from zip(_column([batch], "query"), own, strict=True)
        else:
            yield from ((text, default) for text in _column([batch], "text"))
