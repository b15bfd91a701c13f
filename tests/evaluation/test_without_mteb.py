"""What the adapters of mteb say where mteb is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.errors import MissingDependencyError
from qwen_retrieval.evaluation.mteb import MtebEmbedder, MtebReranker, register, run_mteb
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)
from tests.command import Loads, run


def _embedder() -> Embedder:
    return Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())


def _reranker() -> Reranker:
    return Reranker(FakeRerankingEngine(), ByteTokenizer(), fake_reranking_spec())


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda: MtebEmbedder(_embedder()), id="embedder"),
        pytest.param(lambda: MtebReranker(_reranker()), id="reranker"),
        pytest.param(lambda: run_mteb(["SciFact"], _embedder()), id="run"),
        pytest.param(register, id="register"),
    ],
)
def test_the_first_use_says_what_to_install(use: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mteb", None)

    with pytest.raises(MissingDependencyError, match=r'pip install "qwen-retrieval\[mteb\]"'):
        use()


def test_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Loads()
    monkeypatch.setattr(Embedder, "from_pretrained", fakes.embedder)
    monkeypatch.setitem(sys.modules, "mteb", None)
    found = run("evaluate", "--mteb", "MTEB-R", "--model", "demo", code=1)
    assert 'pip install "qwen-retrieval[mteb]"' in " ".join(found.split())
    assert fakes.asked == []


def test_the_command_takes_the_data_of_mteb_or_your_own() -> None:
    assert "leave out DATA" in run("evaluate", "folder", "--mteb", "MTEB-R", "--model", "demo", code=2)
