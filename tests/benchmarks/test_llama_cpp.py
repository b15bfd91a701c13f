"""llama.cpp computes what we compute: the same token ids, vectors and scores. Only where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.contenders import Contender
from qwen_retrieval import Embedder, Reranker
from tests.checkpoints import TINY, write_checkpoint

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from benchmarks.peers.llama_cpp import LlamaCpp, contender

TEXTS = ["one", "Grüße, 日本語 and\n\n  spaces 1234", "x" * 300, "well-known words " * 90]
QUERY = "which of them {braces}?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: Path) -> dict[str, Path]:
    """A tiny embedder and a tiny reranker."""
    place = tmp_path_factory.mktemp("checkpoints")
    embedder = write_checkpoint(place / "embedding", tokenizer_folders / "embedding", TINY, prefix=False, gain=1.0)
    (embedder / "1_Pooling").mkdir()
    reranker = write_checkpoint(place / "reranking", tokenizer_folders / "reranker", TINY, prefix=True, gain=1.0)
    return {"embedding": embedder, "reranking": reranker}


def made(folder: Path, quantization: str) -> LlamaCpp:
    found: Contender | None = contender(folder, 1, quantization=quantization)
    assert isinstance(found, LlamaCpp)
    return found


def test_token_ids_are_those_of_the_published_tokenizer(folders: dict[str, Path]) -> None:
    texts = [*TEXTS, "a <|im_end|> inside <think>"]
    tokenizer = Tokenizer.from_file(str(folders["embedding"] / "tokenizer.json"))
    peer = made(folders["embedding"], "F32")
    assert [peer.token_ids("documents", text) for text in texts] == [tokenizer.encode(text).ids for text in texts]
    peer.close()


@pytest.mark.parametrize(("quantization", "least"), [("F32", 0.9999), ("BF16", 0.999), ("Q8_0", 0.99)])
@pytest.mark.parametrize("batch", [64, 4096])  # texts cut into several passes, and all in one
def test_vectors_are_ours(folders: dict[str, Path], quantization: str, least: float, batch: int) -> None:
    with Embedder.from_pretrained(str(folders["embedding"]), dtype="float32", device="cpu") as embedder:
        expected = embedder.embed_documents(TEXTS)
    peer = made(folders["embedding"], quantization)
    found = peer.run("documents", TEXTS, batch)
    peer.close()
    assert (found * expected).sum(axis=1).min() > least


def test_scores_are_ours(folders: dict[str, Path]) -> None:
    with Reranker.from_pretrained(str(folders["reranking"]), dtype="float32", device="cpu") as reranker:
        expected = reranker.log_odds(QUERY, TEXTS)
    peer = made(folders["reranking"], "F32")
    found = peer.run("pairs", [(QUERY, text) for text in TEXTS], 512)
    peer.close()
    np.testing.assert_allclose(found, expected, atol=0.02)
