"""Hard negatives: which documents are taken, and which never."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_retrieval.cli import app
from qwen_retrieval.training import mining
from qwen_retrieval.training.data import Example, parse_example, read_examples
from qwen_retrieval.training.mining import MiningSettings, exact_top, mine_negatives
from qwen_retrieval.types import FloatArray
from tests.command import RUNNER, fails, run


class AngleEmbedder:
    """Texts that end in a number of degrees, embedded as that angle: similarities are known."""

    def embed_queries(self, queries: Sequence[str], *, instruction: str | None = None) -> FloatArray:
        turned = 0 if instruction is None else float(instruction.split()[-1])
        return self._embed([float(text.split()[-1]) + turned for text in queries])

    def embed_documents(self, documents: Sequence[str]) -> FloatArray:
        return self._embed([float(text.split()[-1]) for text in documents])

    def _embed(self, degrees: list[float]) -> FloatArray:
        angles = np.radians(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


CORPUS = [f"document {angle}" for angle in range(0, 90, 5)]


def mined(*examples: Example, corpus: Sequence[str] = CORPUS, **settings: float) -> list[list[str]]:
    found = mine_negatives(AngleEmbedder(), examples, corpus, MiningSettings(**settings))  # type: ignore[arg-type]
    return [list(example.negatives) for example in found]


def test_what_scores_too_near_the_positive_is_no_negative() -> None:
    (found,) = mined(Example("q 0", "document 30"), count=9, last=11)  # the window goes to 55 degrees
    # 95 % of the cosine of 30 degrees is that of 34.6 degrees.
    assert found == [f"document {angle}" for angle in (35, 40, 45, 50, 55)]


def test_the_window_of_ranks_leaves_out_the_positives() -> None:
    examples = [Example("q 0", "document 0"), Example("q 0", "DOCUMENT  5")]
    both = mined(*examples, count=2, first=1, last=3, ratio=1.0)
    # Ranks without the positives: 10, 15, 20 degrees; the first is not taken.
    assert both == [["document 15", "document 20"]] * 2


def test_a_negative_is_drawn_from_the_whole_window_and_the_same_with_the_same_seed() -> None:
    drawn = [mined(Example("q 0", "document 0"), count=2, last=10, seed=seed)[0] for seed in range(30)]
    assert drawn == [mined(Example("q 0", "document 0"), count=2, last=10, seed=seed)[0] for seed in range(30)]
    assert len({text for pair in drawn for text in pair}) > 5
    for pair in drawn:
        assert pair == sorted(pair, key=lambda text: float(text.split()[-1]))


def test_what_is_drawn_does_not_depend_on_the_other_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(f"q {angle + 1}", f"document {angle}") for angle in range(0, 90, 5)]
    together = mined(*examples, count=2)
    monkeypatch.setattr(mining, "QUERY_BLOCK", 3)
    monkeypatch.setattr(mining, "DOCUMENT_BLOCK", 4)
    assert mined(*reversed(examples), count=2) == together[::-1]


def test_negatives_that_are_there_stay_and_count() -> None:
    (found,) = mined(Example("q 0", "document 0", ("mine 50", "document 30")), count=3, last=18)
    assert found[:2] == ["mine 50", "document 30"]
    assert len(found) == len(set(found)) == 3
    assert mined(Example("q 0", "document 0", ("mine 50",)), count=1) == [["mine 50"]]


def test_the_instruction_of_an_example_turns_its_query() -> None:
    plain, turned = mined(
        Example("q 0", "document 0"), Example("q 0", "document 45", instruction="turn 45"), count=1, last=5, ratio=1.0
    )
    assert float(plain[0].split()[-1]) < 30 <= float(turned[0].split()[-1])


def test_fewer_documents_than_wanted_are_all_taken() -> None:
    assert mined(Example("q 0", "document 0"), corpus=["document 0", "document 80"]) == [["document 80"]]
    assert mined(Example("q 0", "document 0"), corpus=["document 0", "document 1"]) == [[]]
    with pytest.raises(ValueError, match="the corpus has no documents"):
        mined(Example("q 0", "document 0"), corpus=[])


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99))
def test_the_search_by_blocks_finds_what_sorting_does(size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, documents = (torch.randn(n, 4, generator=generator) for n in (3, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "DOCUMENT_BLOCK", 7)
        scores, numbers = exact_top(queries, documents, count)
    every = queries @ documents.T
    np.testing.assert_allclose(scores, every.sort(dim=1, descending=True).values[:, :count], atol=1e-6)
    np.testing.assert_allclose(every.gather(1, torch.from_numpy(numbers)), scores, atol=1e-6)


@pytest.mark.parametrize(
    ("positive", "limit"),
    [pytest.param(0.8, 0.76, id="positive"), pytest.param(-0.2, -0.21, id="negative"), pytest.param(0.0, 0.0, id="0")],
)
def test_the_limit_is_below_the_positive_whatever_its_sign(positive: float, limit: float) -> None:
    assert MiningSettings().limit(positive) == pytest.approx(limit)
    assert MiningSettings(margin=0.3).limit(positive) == pytest.approx(positive - 0.3)


@pytest.mark.parametrize(("positive", "limit"), [(0.8, 1.2), (-0.2, -0.1)])
def test_a_ratio_over_one_lets_documents_above_the_positive_in(positive: float, limit: float) -> None:
    assert MiningSettings(ratio=1.5).limit(positive) == pytest.approx(limit)
    assert MiningSettings(ratio=1.5, margin=0.3).limit(positive) == pytest.approx(positive - 0.3)


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"first": 5, "last": 5}, {"ratio": 0.0}, {"ratio": math.inf}, {"margin": -0.1}], ids=str
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        MiningSettings(**options)  # type: ignore[arg-type]


SUBJECTS = ["lists", "files", "dates", "threads", "sockets", "strings"]
PAIRS = [
    {"query": f"sort {s}", "positive": f"How to sort {s} in Python.", "meta": {"document": s, "words": 5}}
    for s in SUBJECTS
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    return tmp_path / "pairs.jsonl"


def mine(data: Path, output: str, *options: str) -> tuple[str, ...]:
    return ("train", "mine", str(data), "-o", output, "--model", "demo", "--count", "2", "--ratio", "1", *options)


def test_the_command_writes_training_data_with_all_that_was_there(pairs: Path, tmp_path: Path) -> None:
    run(*mine(pairs, str(tmp_path / "mined.jsonl")))
    examples = list(read_examples(tmp_path / "mined.jsonl"))
    assert [example.query for example in examples] == [line["query"] for line in PAIRS]
    assert [example.meta for example in examples] == [line["meta"] for line in PAIRS]
    assert any(example.negatives for example in examples)
    assert all(example.positive not in example.negatives for example in examples)


def test_the_command_prints_training_data_where_it_is_asked_to(pairs: Path, tmp_path: Path) -> None:
    run(*mine(pairs, str(tmp_path / "mined.jsonl")))
    assert run(*mine(pairs, "-")) == (tmp_path / "mined.jsonl").read_text("utf-8")
    assert not Path("-").exists()


def test_the_command_says_how_many_examples_have_no_negatives(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(f"{PAIRS[0]['positive']}\n", encoding="utf-8")
    found = RUNNER.invoke(app, mine(pairs, "-", "--corpus", str(tmp_path / "corpus.txt")))
    examples = [parse_example(line) for line in found.stdout.splitlines()]
    without = sum(not example.negatives for example in examples)
    assert not examples[0].negatives  # its positive is all there is
    assert f"warning: {without} of 6 examples have no negatives" in found.stderr


@pytest.mark.parametrize("empty", ["pairs.jsonl", "corpus.txt"])
def test_the_command_says_which_file_is_empty(pairs: Path, tmp_path: Path, empty: str) -> None:
    (tmp_path / "corpus.txt").write_text("A document.\n", encoding="utf-8")
    (tmp_path / empty).write_text("", encoding="utf-8")
    what = "examples" if empty == "pairs.jsonl" else "documents"
    said = fails(*mine(pairs, "-", "--corpus", str(tmp_path / "corpus.txt")))
    assert said == f"error: {tmp_path / empty} has no {what}"
