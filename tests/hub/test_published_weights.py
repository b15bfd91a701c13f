"""Golden values of the published checkpoints, from public sources. They run where the weights are at hand.

Nothing is downloaded here; `Embedder.from_pretrained("0.6B")` and `Reranker.from_pretrained("0.6B")` do that once.
"""

from __future__ import annotations

import numpy as np
import pytest

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.engine.int8 import _obstacle
from qwen_retrieval.errors import HubUnreachableError, ModelAccessError

pytestmark = [pytest.mark.hub, pytest.mark.slow]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    try:
        return Embedder.from_pretrained("0.6B", dtype="float32", local_files_only=True)
    except (HubUnreachableError, ModelAccessError) as error:
        pytest.skip(f"needs the published weights: {error}")


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    try:
        return Reranker.from_pretrained("0.6B", dtype="float32", local_files_only=True)
    except (HubUnreachableError, ModelAccessError) as error:
        pytest.skip(f"needs the published weights: {error}")


def test_similarities_of_the_model_cards_example(embedder: Embedder) -> None:
    # README of QwenLM/Qwen3-Embedding at f4ad0c43, transformers snippet, printed values.
    queries = embedder.embed_queries(["What is the capital of China?", "Explain gravity"])
    documents = embedder.embed_documents(
        [
            "The capital of China is Beijing.",
            "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and "
            "is responsible for the movement of planets around the sun.",
        ]
    )
    expected = [[0.7645568251609802, 0.14142508804798126], [0.13549736142158508, 0.5999549627304077]]
    assert np.abs(queries @ documents.T - expected).max() < 1e-3


def test_the_vector_of_hello_world(embedder: Embedder) -> None:
    # Canonical vectors of fastembed (qdrant/fastembed PR 678), ONNX float32.
    document = embedder.embed_documents(["hello world"])[0, :5]
    query = embedder.embed_queries(["hello world"])[0, :5]
    assert np.abs(document - [-0.01476084, 0.01723184, -0.01195498, -0.07275258, 0.00281229]).max() < 1e-3
    assert np.abs(query - [-0.01908712, 0.01635596, -0.00356586, -0.03947155, -0.01387356]).max() < 1e-3


QUESTION = "Which planet is known as the Red Planet?"
PLANETS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]


def test_log_odds_of_the_red_planet(reranker: Reranker) -> None:
    # tests/cross_encoder/test_model.py of sentence-transformers at cad2119, Qwen3-Reranker-0.6B in float32.
    expected = [-3.109297752380371, 7.120389938354492, -0.3787546157836914, 3.541637420654297]
    found = reranker.log_odds(QUESTION, PLANETS)
    assert np.abs(found - expected).max() < 1e-3


needs_int8 = pytest.mark.skipif(_obstacle() is not None, reason="needs a CPU with AVX-512 VNNI")


@needs_int8
def test_int8_vectors_are_near_to_the_float32_ones(embedder: Embedder) -> None:
    # The bound is what is asked of int8, not what was measured: without the weights nobody could.
    texts = ["hello world", "Gravity is a force that attracts two bodies towards each other.", *PLANETS]
    with Embedder.from_pretrained("0.6B", dtype="int8", device="cpu", local_files_only=True) as quantized:
        cosines = (quantized.embed_documents(texts) * embedder.embed_documents(texts)).sum(axis=1)
    assert cosines.min() >= 0.99


@needs_int8
def test_an_int8_reranker_ranks_the_planets_alike(reranker: Reranker) -> None:
    with Reranker.from_pretrained("0.6B", dtype="int8", device="cpu", local_files_only=True) as quantized:
        found = quantized.log_odds(QUESTION, PLANETS)
    expected = reranker.log_odds(QUESTION, PLANETS)
    assert np.argsort(found).tolist() == np.argsort(expected).tolist()
    assert np.abs(found - expected).max() < 1
