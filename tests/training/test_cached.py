"""Cached gradients against the loss of the whole batch, and both under sentence-transformers' own classes."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sentence_transformers", reason="the extra `train` is not installed")

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from qwen_retrieval.errors import MissingDependencyError
from qwen_retrieval.hub import model_folder
from qwen_retrieval.training import InfoNCELoss, InfoNCESettings, info_nce
from qwen_retrieval.training.cached import CachedInfoNCELoss


class Encoder(nn.Module):
    """Embeds a text as a layer of the mean of its tokens' vectors, with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer, self.dropout = nn.Embedding(40, 16), nn.Linear(16, 12), nn.Dropout(dropout)
        self.largest = 0

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        self.largest = max(self.largest, len(features["input_ids"]))
        mask = features["attention_mask"][..., None]
        mean = (self.words(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        return {"sentence_embedding": self.layer(self.dropout(mean))}

    def get_embedding_dimension(self) -> int:
        return 12


def columns(pairs: int = 11, negatives: int = 2) -> list[dict[str, Tensor]]:
    """Texts of three tokens out of few, so that some documents are the same."""
    generator = torch.Generator().manual_seed(5)
    shapes = [torch.randint(1, 5, (pairs, 3), generator=generator) for _ in range(2 + negatives)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in shapes]


def gradients(loss: nn.Module, model: nn.Module, *, scale: float = 1.0) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    value = loss(columns(), None)
    (value * scale).backward()
    return value.item(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("mini_batch_size", [1, 4, 11, 50])
@pytest.mark.parametrize("shared_negatives", [False, True])
def test_cached_gradients_are_those_of_the_whole_batch(mini_batch_size: int, shared_negatives: bool) -> None:
    model, asked = Encoder(), InfoNCESettings(shared_negatives=shared_negatives)
    cached = CachedInfoNCELoss(model, asked, mini_batch_size=mini_batch_size)
    expected_loss, expected = gradients(InfoNCELoss(model, asked), model, scale=0.5)
    model.largest = 0
    loss, got = gradients(cached, model, scale=0.5)
    assert model.largest <= mini_batch_size
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    assert len(got) == len(expected) == 3
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_second_embedding_of_a_text_drops_the_same_units_as_the_first() -> None:
    class Recorded(Encoder):
        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            result = super().forward(features)
            seen.append(result["sentence_embedding"].detach())
            return result

    seen: list[Tensor] = []
    model = Recorded(dropout=0.5)
    loss = CachedInfoNCELoss(model, mini_batch_size=4)(columns())
    first = list(seen)
    seen.clear()
    torch.manual_seed(99)  # what comes between the passes must not matter
    loss.backward()
    assert len(first) == len(seen) == 12
    for one, other in zip(first, seen, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], model(columns()[0])["sentence_embedding"][:4])


def test_an_evaluation_without_gradients_gives_the_same_loss() -> None:
    model = Encoder()
    with torch.no_grad():
        got = CachedInfoNCELoss(model, mini_batch_size=4)(columns())
        expected = InfoNCELoss(model)(columns())
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["plain", "cached"])
def test_matryoshka_loss_wraps_it_as_a_weighted_sum_over_prefixes(kind: Literal["plain", "cached"]) -> None:
    model, dimensions, weights = Encoder(), (12, 6, 3), (1.0, 0.5, 0.25)
    inner = InfoNCELoss(model) if kind == "plain" else CachedInfoNCELoss(model, mini_batch_size=4)
    got_loss, got = gradients(MatryoshkaLoss(cast(Any, model), inner, dimensions, weights), model)

    class Sum(nn.Module):
        def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
            def shortened(length: int) -> nn.Module:
                return Shortened(model, length)

            parts = [w * InfoNCELoss(shortened(n))(features, labels) for n, w in zip(dimensions, weights, strict=True)]
            return torch.stack(parts).sum()

    expected_loss, expected = gradients(Sum(), model)
    assert got_loss == pytest.approx(expected_loss, abs=1e-5)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


class Shortened(nn.Module):
    def __init__(self, model: nn.Module, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.model(features)["sentence_embedding"][:, : self.length]}


def test_without_masks_it_is_sentence_transformers_ranking_loss_in_three_directions() -> None:
    class Given(nn.Module):
        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"sentence_embedding": features["vectors"]}

    torch.manual_seed(1)
    vectors = [torch.randn(6, 9, dtype=torch.float64) for _ in range(4)]
    directions: Any = ("query_to_doc", "query_to_query", "doc_to_doc")
    theirs = MultipleNegativesRankingLoss(cast(Any, Given()), scale=20.0, directions=directions)
    asked = InfoNCESettings(temperature=0.05, margin=None, shared_negatives=True)
    got = info_nce(vectors[0], vectors[1], torch.stack(vectors[2:], 1), settings=asked)
    assert got.item() == pytest.approx(theirs([{"vectors": one} for one in vectors], torch.zeros(6)).item(), rel=1e-12)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sentence_transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "qwen_retrieval.training.cached")
    with pytest.raises(MissingDependencyError, match=r'pip install "qwen-retrieval\[train\]"'):
        importlib.import_module("qwen_retrieval.training.cached")


@pytest.mark.parametrize("mini_batch_size", [0, -1])
def test_mini_batches_of_nothing_are_refused(mini_batch_size: int) -> None:
    with pytest.raises(ValueError, match="mini_batch_size must be at least 1"):
        CachedInfoNCELoss(Encoder(), mini_batch_size=mini_batch_size)


@pytest.mark.parametrize("kind", ["plain", "cached"])
def test_sentence_transformers_trainer_trains_with_it(kind: Literal["plain", "cached"], tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra `train` is not installed")
    from datasets import Dataset

    words = Transformer(str(model_folder("demo", "embedding")), model_kwargs={"dtype": torch.float32})
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), "lasttoken")], device="cpu")
    texts = [f"{verb} a {noun}" for verb in ("copy", "delete") for noun in ("file", "folder", "list", "row")]
    rows = {"query": texts, "positive": [text[::-1] for text in texts], "a": texts[1:] + texts[:1], "b": texts[::-1]}
    loss = InfoNCELoss(model) if kind == "plain" else CachedInfoNCELoss(model, mini_batch_size=3)
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=1,
        report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(rows), loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert all(map(math.isfinite, losses))
