"""How the demo pair is made: distillation by its formula, files that the commands read, the constructed circuit."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from qwen_retrieval.evaluation.datasets import read_beir
from qwen_retrieval.training.data import ExampleFile

DEMO = Path(__file__).resolve().parents[2] / "demo"
MODELS = Path(__file__).resolve().parents[2] / "core" / "qwen_retrieval" / "demo"
Import = Callable[[str], ModuleType]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports a module of the folder, which is no package."""
    if not (DEMO / "train.py").exists():
        pytest.skip("the training code is not shipped here")
    monkeypatch.setattr(sys, "path", [str(DEMO), *sys.path])
    return importlib.import_module


@pytest.fixture
def pairs(demo: Import) -> list[Any]:
    pair = demo("pairs").Pair
    sources = ["python/question"] * 100 + ["docs/rest"] * 90 + ["tiny/rest"] * 10
    return [pair(f"query {i}", f"document {i} is about {i}", source, f"m{i}") for i, source in enumerate(sources)]


def vectors(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.6


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_relational_distillation_is_the_divergence_written_out(demo: Import) -> None:
    distillation = demo("bag").relational_distillation
    student, teacher = vectors(6, 8, seed=6), vectors(6, 20, seed=7)
    expected = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        wanted = [math.exp(cosine(teacher[i], teacher[j]) / 0.05) for j in others]
        got = [math.exp(cosine(student[i], student[j]) / 0.05) for j in others]
        for w, g in zip(wanted, got, strict=True):
            expected += w / sum(wanted) * math.log((w / sum(wanted)) / (g / sum(got))) / 6
    assert distillation(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-9)


def test_a_rare_word_weighs_more_than_one_of_every_document(demo: Import) -> None:
    rarity = demo("bag").rarities([[1, 2, 2], [1, 3], [1]])
    assert rarity[1] == pytest.approx(0.1)  # in all of them
    assert rarity[2] == rarity[3] == pytest.approx(math.log(4 / 2))
    assert rarity[0] == pytest.approx(math.log(4))


def test_a_mixture_repeats_no_pair_more_than_once_and_leaves_small_sources_out(demo: Import, pairs: list[Any]) -> None:
    chosen = demo("data").mixture(pairs, 300, seed=0)
    assert {p.source for p in chosen} == {"python/question", "docs/rest"}
    assert max(chosen.count(p) for p in chosen) == 2
    assert chosen == demo("data").mixture(pairs, 300, seed=0)


def test_training_files_have_the_shares_of_instructions_that_were_asked_for(
    demo: Import, pairs: list[Any], tmp_path: Path
) -> None:
    demo("data").write_training(tmp_path / "t.jsonl", pairs * 5, 0, default=0.5, none=0.2)
    file = ExampleFile(tmp_path / "t.jsonl")
    given = [example.instruction for example in file.read(range(len(file)))]
    assert len(file) == 1000
    assert len(set(file.groups.tolist())) == 3  # one group for each source
    assert given.count(None) == pytest.approx(500, abs=60)
    assert given.count("") == pytest.approx(200, abs=50)


def test_held_out_pairs_become_a_test_set_that_evaluate_reads(demo: Import, pairs: list[Any], tmp_path: Path) -> None:
    demo("data").write_beir(tmp_path, pairs)
    loaded = read_beir(tmp_path)
    assert loaded.corpus["d7"] == pairs[7].document
    assert loaded.queries["q7"] == pairs[7].query
    assert loaded.qrels["q7"] == {"d7": 1}


def test_the_constructed_reranker_adds_up_how_rare_the_shared_words_are(demo: Import) -> None:
    reranker, tokenizer = demo("reranker"), demo("tokenizer")
    full = Tokenizer.from_file(str(MODELS / "reranker" / "tokenizer.json"))
    plain, parts = tokenizer.for_user_text(full), reranker.template(full)
    table = 0.1 * torch.randn(8192, 184, generator=torch.Generator().manual_seed(0))
    rarity = torch.full((8192,), 5.0)
    encode = demo("data").encode
    [common] = encode(plain, ["the"], 9)[0]
    rarity[common] = 0.1
    model = reranker.construct(table, rarity, parts, plain, seed=0)
    [asked], [query] = encode(plain, ["<Instruct>: find it\n"], 20), encode(plain, ["the copy of a directory"], 20)
    documents = ["it holds list", "the list holds it", "copy holds list", "copy directory list", "copy copy list"]
    head = [*parts.prefix, *asked, parts.query, *query]
    listed = reranker.cache(model, head, encode(plain, documents, 20), parts)
    seen: list[torch.Tensor] = []
    model.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        reranker.read_cached(model, [listed])
    notes = seen[0][0, :, 4 * 64]  # what words note where they stand first, added up
    the, copy, copy_directory, copy_copy = (notes[1:] - notes[0]).tolist()
    assert copy > 0
    assert the < 0.1 * copy
    assert copy_directory == pytest.approx(2 * copy, rel=0.1)
    assert copy_copy == pytest.approx(copy, rel=0.1)


def test_cards_say_what_evaluate_measured(demo: Import, tmp_path: Path) -> None:
    figures, models = tmp_path / "figures", tmp_path / "models"
    figures.mkdir()
    for name in ("embedder", "reranker"):
        (models / name).mkdir(parents=True)
    systems = [
        {"kind": kind, "name": kind, "means": {"mrr@100": mean}}
        for kind, mean in (("bm25", 0.6), ("embedder", 0.7), ("reranker", 0.75))
    ]
    difference = {"family": "reranking", "system": "reranker", "baseline": "embedder"}
    content = {
        "data": {"documents": 1500}, "systems": systems,
        "comparisons": [difference | {"difference": 0.05, "low": 0.01, "high": 0.09}],
    }  # fmt: skip
    for name in ("questions", "other"):
        (figures / f"{name}.json").write_text(json.dumps(content))
    demo("cards").write(figures, models)
    embedder, reranker = ((models / name / "README.md").read_text() for name in ("embedder", "reranker"))
    assert "| test split, questions -> documentation | 1,500 | 0.700 | 0.600 |" in embedder
    assert "| other, never trained on | 0.700 | 0.750 | +0.050 (+0.010 to +0.090) | 0.600 |" in reranker
