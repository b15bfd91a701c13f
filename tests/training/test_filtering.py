"""Which pairs the filter keeps, and what it says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qwen_retrieval import Embedder
from qwen_retrieval.testing import ByteTokenizer, FakeEmbeddingEngine, fake_embedding_spec
from qwen_retrieval.training import filter_positives, filtering
from qwen_retrieval.types import FloatArray


class Angles:
    """Embeds "60" at 60 degrees, so that cosines are known."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.instructions: list[str | None] = []

    def embed_queries(self, queries: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        self.instructions.append(instruction)
        return self.embed_documents(queries)

    def embed_documents(self, documents: Sequence[str]) -> FloatArray:
        self.calls.append(len(documents))
        angles = np.radians([float(text) for text in documents])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_pairs_with_a_cosine_over_the_threshold_are_kept() -> None:
    result = filter_positives(Angles(), ["0"] * 4, ["45", "60", "10", "180"])
    assert result.kept.tolist() == [True, False, True, False]
    assert result.dropped == [3, 1]
    np.testing.assert_allclose(result.cosines, [0.70711, 0.5, 0.98481, -1], atol=1e-5)


def test_a_cosine_that_is_the_threshold_is_not_greater() -> None:
    assert not filter_positives(Angles(), ["0"], ["0"], threshold=1.0).kept.any()
    assert filter_positives(Angles(), ["0"], ["0"], threshold=0.9999).kept.all()


def test_the_result_says_what_was_dropped() -> None:
    said = str(filter_positives(Angles(), ["0"] * 4, ["45", "60", "10", "180"]))
    assert said.startswith("kept 2 of 4 pairs (50.0%) with a cosine over 0.7; dropped 2; cosines: ")
    assert str(filter_positives(Angles(), [], [])) == "no pairs"


def test_pairs_are_embedded_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtering, "CHUNK", 4)
    embedder, angles = Angles(), [str(angle) for angle in range(0, 100, 10)]
    result = filter_positives(embedder, ["0"] * 10, angles, instruction="Find angles")
    assert embedder.calls == [4, 4, 4, 4, 2, 2]
    assert embedder.instructions == ["Find angles"] * 3
    np.testing.assert_allclose(result.cosines, np.cos(np.radians(range(0, 100, 10))), atol=1e-6)


def test_an_embedder_of_this_package_filters() -> None:
    with Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec(), instruction="") as embedder:
        result = filter_positives(embedder, ["copy a file", "zzz"], ["copy a file", "copy a file"])
    assert result.cosines[0] == pytest.approx(1, abs=1e-6)
    assert result.kept.tolist() == [True, False]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="same length"):
        filter_positives(Angles(), ["0"], [])
    with pytest.raises(ValueError, match="threshold must be a cosine"):
        filter_positives(Angles(), ["0"], ["0"], threshold=70)
    with pytest.raises(TypeError, match="queries must be a list"):
        filter_positives(Angles(), "0", ["0"])
