"""What each server is sent, and where its answers have the numbers.

Sources: vLLM 0.33.0 `vllm/entrypoints/pooling/{embed,scoring}/protocol.py`; SGLang 0.5.23
`sglang/srt/entrypoints/openai/protocol.py` (`EmbeddingRequest`, `V1RerankReqInput`); infinity_emb 0.0.78
`infinity_emb/fastapi_schemas/pymodels.py`; text-embeddings-inference `docs/openapi.json`; llama.cpp 0c1e570
`tools/server/README.md`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from qwen_retrieval.types import FloatArray

UNIT_TOLERANCE = 0.01
"""How far a vector's length may be from 1: float16 and bfloat16 servers round after they normalise."""


class AnswerError(RuntimeError):
    """A server answered with an error, or with something else than what it was asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request's worth of work.

    Attributes:
        texts: Texts to embed, templates included, or documents to score.
        query: What the documents are scored against; None for embedding.
    """

    texts: tuple[str, ...]
    query: str | None = None


@dataclass(frozen=True, slots=True)
class Api:
    """How one kind of server is asked.

    Attributes:
        path: Where requests are posted.
        payload: The body of a request, as JSON.
        rows: Index and number, or numbers, of each text, from the body of an answer.
        kind: What it does.
    """

    path: str
    payload: Callable[[Request], dict[str, Any]]
    rows: Callable[[Any], list[tuple[int, Any]]]
    kind: Literal["embedding", "reranking"]


def _openai(request: Request) -> dict[str, Any]:
    # As base64 a vector of 1,024 is a fifth of its size in digits; servers that do not know the word send digits.
    return {"input": list(request.texts), "encoding_format": "base64"}


def _tei(request: Request) -> dict[str, Any]:
    return {"inputs": list(request.texts), "normalize": True, "truncate": False}


def _rerank(request: Request) -> dict[str, Any]:
    return {"query": request.query, "documents": list(request.texts)}


def _short_rerank(request: Request) -> dict[str, Any]:
    return _rerank(request) | {"return_documents": False}


def _vector(value: str | list[float]) -> FloatArray | list[float]:
    return np.frombuffer(base64.b64decode(value, validate=True), "<f4") if isinstance(value, str) else value


def _data(answer: Any) -> list[tuple[int, Any]]:  # noqa: ANN401 - JSON
    return [(one["index"], _vector(one["embedding"])) for one in answer["data"]]


def _results(answer: Any) -> list[tuple[int, Any]]:  # noqa: ANN401 - JSON
    return [(one["index"], one["relevance_score"]) for one in answer["results"]]


def _scores(answer: Any) -> list[tuple[int, Any]]:  # noqa: ANN401 - JSON
    return [(one["index"], one["score"]) for one in answer]


def _in_order(answer: Any) -> list[tuple[int, Any]]:  # noqa: ANN401 - JSON
    return list(enumerate(answer))


APIS: Mapping[str, Api] = MappingProxyType(
    {
        "openai": Api("/v1/embeddings", _openai, _data, "embedding"),  # vLLM, SGLang, llama-server
        "infinity": Api("/embeddings", _openai, _data, "embedding"),
        "tei": Api("/embed", _tei, _in_order, "embedding"),
        "vllm-rerank": Api("/v1/rerank", _rerank, _results, "reranking"),  # llama-server too
        "infinity-rerank": Api("/rerank", _short_rerank, _results, "reranking"),
        "sglang-rerank": Api("/v1/rerank", _short_rerank, _scores, "reranking"),
    }
)
"""By the name on the command line."""


def read(api: Api, answer: Any, count: int) -> FloatArray:  # noqa: ANN401 - JSON
    """The numbers of an answer, in the order of the request.

    Args:
        api: What was asked.
        answer: The answer's body, parsed.
        count: n, how many texts were sent.

    Returns:
        (n, hidden) float32 rows of unit length, or (n,) float32 scores.

    Raises:
        AnswerError: The answer has another form, another number of rows, or rows that are not of unit length.
    """
    try:
        found = dict(rows := api.rows(answer))
        values = np.array([found[i] for i in range(count)], dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise AnswerError(f"{api.path} must answer for {count} texts, but {error!r} in {str(answer)[:500]}") from error
    if len(rows) != count:
        raise AnswerError(f"{api.path} was sent {count} texts, but answered for {len(rows)}")
    if not np.isfinite(values).all():
        raise AnswerError(f"{api.path} answered with numbers that are not finite")
    if api.kind == "embedding":
        _check_length(api, values)
    return values


def _check_length(api: Api, vectors: FloatArray) -> None:
    worst = max((abs(float(length) - 1) for length in np.linalg.norm(vectors, axis=1)), default=math.inf)
    if worst > UNIT_TOLERANCE:
        raise AnswerError(f"{api.path} must give vectors of unit length, but one is off by {worst:.3f}")
