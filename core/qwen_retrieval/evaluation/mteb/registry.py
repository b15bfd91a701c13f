"""Our models in mteb's registry: what mteb knows of them, and how it loads them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_retrieval.embedder import Embedder
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.reranker import Reranker
from qwen_retrieval.specs import CHECKPOINTS, DEMO, Checkpoint, resolve_model

if TYPE_CHECKING:
    from mteb.models import ModelMeta

    from qwen_retrieval.evaluation.mteb.models import MtebEmbedder, MtebReranker

OWNER = "qwen-retrieval"
"""What our names begin with: results of mteb's own wrappers of the same checkpoints must not be taken for ours."""

_MAX_LENGTH = 8192
_NO_REVISION = "no_revision_available"  # mteb's own word for it
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def paper_embedder(
    model: str, *, revision: str | None = None, device: str | Sequence[str] = "auto", dtype: str = "auto"
) -> Embedder:
    """Open an embedder with the settings of the published evaluation.

    These are inputs of up to 8192 tokens, in which control tokens act (evaluation/run_mteb.sh,
    https://github.com/QwenLM/Qwen3-Embedding, commit f4ad0c43). It computed in float16; ours is bfloat16 where the
    device can, because the 8B model overflows in float16.

    Args:
        model: See `Embedder.from_pretrained`, as for the rest.
        revision: Branch, tag or commit of the repository.
        device: Where to compute.
        dtype: What to compute in.
    """
    return Embedder.from_pretrained(
        model, revision=revision, device=device, dtype=dtype, max_length=_MAX_LENGTH, control_tokens="keep"
    )


def paper_reranker(
    model: str, *, revision: str | None = None, device: str | Sequence[str] = "auto", dtype: str = "auto"
) -> Reranker:
    """Open a reranker with the settings of the published evaluation.

    These are its template with empty lines between the fields, its default instruction, and inputs of up to 8192
    tokens, in which control tokens act (evaluation/qwen3_reranker_model.py, same commit as `paper_embedder`).

    Args:
        model: See `Reranker.from_pretrained`, as for the rest.
        revision: Branch, tag or commit of the repository.
        device: Where to compute.
        dtype: What to compute in.
    """
    return Reranker.from_pretrained(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        template="vllm",
        instruction="rerank_evaluation",
        max_length=_MAX_LENGTH,
        control_tokens="keep",
    )


def embedding_meta(embedder: Embedder) -> ModelMeta:
    """What mteb writes into the results of an embedder.

    Args:
        embedder: The model; of a published checkpoint, mteb's own description is completed with ours.
    """
    spec = embedder.spec
    settings = {
        "dimensions": embedder.dimensions,
        "dtype": embedder.dtype,
        "max_length": embedder.max_length or _MAX_LENGTH,
        "control_tokens": embedder.control_tokens,
    }
    checkpoint = _checkpoint(spec.model, "embedding")
    meta = _describe(spec.model, "embedding", checkpoint, spec.max_length)
    return meta.model_copy(
        update={
            "revision": embedder.revision or _NO_REVISION,
            "embed_dim": embedder.dimensions,
            "memory_usage_mb": _megabytes(checkpoint, embedder.dtype),
            "experiment_kwargs": settings,
        }
    )


def reranking_meta(reranker: Reranker, settings: Mapping[str, str | int] | None = None) -> ModelMeta:
    """What mteb writes into the results of a reranker.

    Args:
        reranker: The model; of a published checkpoint, mteb's own description is completed with ours.
        settings: What else decides the results.
    """
    spec = reranker.spec
    own = {
        "template": reranker.template,
        "instruction": reranker.instruction,
        "dtype": reranker.dtype,
        "max_length": reranker.max_length or _MAX_LENGTH,
        "control_tokens": reranker.control_tokens,
    }
    checkpoint = _checkpoint(spec.model, "reranking")
    meta = _describe(spec.model, "reranking", checkpoint, spec.max_length)
    return meta.model_copy(
        update={
            "revision": reranker.revision or _NO_REVISION,
            "memory_usage_mb": _megabytes(checkpoint, reranker.dtype),
            "experiment_kwargs": {**own, **(settings or {})},
        }
    )


def register() -> tuple[str, ...]:
    """Add the six checkpoints and the demo pair to mteb's registry, under names that begin with ``qwen-retrieval/``.

    `mteb.get_model` and mteb's commands find them then, and load them with the settings of the published evaluation,
    at the commit that mteb's own description of the checkpoint names.

    Returns:
        The names.

    Raises:
        MissingDependencyError: mteb is not installed.
    """
    with needs_extra("mteb", "mteb"):
        from mteb.models.model_implementations import MODEL_REGISTRY
    known: list[tuple[str, str, Checkpoint | None]] = [(c.repository, c.kind, c) for c in CHECKPOINTS]
    names = []
    for model, kind, checkpoint in [*known, (DEMO, "embedding", None), (DEMO, "reranking", None)]:
        loader: Callable[..., MtebEmbedder | MtebReranker] = _load_embedder if kind == "embedding" else _load_reranker
        meta = _describe(model, kind, checkpoint, None)
        update = {"loader": loader, "loader_kwargs": {"model": model}}
        MODEL_REGISTRY[str(meta.name)] = meta.model_copy(update=update)
        names.append(str(meta.name))
    return tuple(names)


def _load_embedder(name: str, revision: str | None = None, *, model: str, device: str | None = None) -> MtebEmbedder:  # noqa: ARG001
    """What mteb calls to load a model: `name` is that of the registry."""
    from qwen_retrieval.evaluation.mteb.models import MtebEmbedder

    return MtebEmbedder(paper_embedder(model, revision=_asked(revision), device=device or "auto"))


def _load_reranker(name: str, revision: str | None = None, *, model: str, device: str | None = None) -> MtebReranker:  # noqa: ARG001
    """What mteb calls to load a model: `name` is that of the registry."""
    from qwen_retrieval.evaluation.mteb.models import MtebReranker

    return MtebReranker(paper_reranker(model, revision=_asked(revision), device=device or "auto"))


def _asked(revision: str | None) -> str | None:
    return None if revision == _NO_REVISION else revision


def _describe(model: str, kind: str, checkpoint: Checkpoint | None, max_length: int | None) -> ModelMeta:
    """What is known of a checkpoint without loading it."""
    with needs_extra("mteb", "mteb"):
        import mteb
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction
    short = model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or "model"
    if checkpoint is not None:
        meta: ModelMeta = mteb.get_model_meta(checkpoint.repository, fetch_from_hf=False)
        ours: dict[str, Any] = {
            "name": f"{OWNER}/{short}",
            "adapted_from": checkpoint.repository,
            "loader": None,
            "loader_kwargs": {},
        }
        sizes = {"n_parameters": checkpoint.parameters, "max_tokens": checkpoint.max_length}
        return meta.model_copy(update={**ours, **sizes, "framework": ["PyTorch", "safetensors"]})
    return ModelMeta(
        loader=None,
        name=f"{OWNER}/{short}-{'embedder' if kind == 'embedding' else 'reranker'}",
        revision=_NO_REVISION,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        max_tokens=max_length,
        embed_dim=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE if kind == "embedding" else None,
        use_instructions=True,
        training_datasets=None,
        model_type=["dense" if kind == "embedding" else "cross-encoder"],
    )


def _checkpoint(model: str, kind: str) -> Checkpoint | None:
    for checkpoint in CHECKPOINTS:
        if checkpoint.kind == kind and resolve_model(model, checkpoint.kind) == checkpoint.repository:
            return checkpoint
    return None


def _megabytes(checkpoint: Checkpoint | None, dtype: str) -> int | None:
    """MiB of the weights, rounded; embedding models have no head of the vocabulary."""
    if checkpoint is None or dtype not in _BYTES:
        return None
    return round(checkpoint.parameters * _BYTES[dtype] / 2**20)
