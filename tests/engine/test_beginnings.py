"""What inputs begin with in one call after the other is computed once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.engine.beginnings import LONGEST, MOST, SHORTEST, Beginnings
from qwen_retrieval.engine.engine import PackedEngine, TorchEmbeddingEngine, load_embedding_engine
from qwen_retrieval.engine.weights import DecoderConfig
from qwen_retrieval.loading import LoadConfig, load_embedding, load_reranking, read_config
from qwen_retrieval.types import FloatArray, TokenIds
from tests.checkpoints import TINY, write_checkpoint

VOCABULARY = 2_000
QUERIES = ["When does water boil?", "do cats sleep all day, or only most of it", "x", "two stones"]
DOCUMENTS = ["Water boils at 100 degrees.", "Cats sleep most of the day.", "Two stones lie there."]


def ids(seed: int, length: int) -> TokenIds:
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


BEGINNING, OTHER = ids(0, 20), ids(1, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    empty = tmp_path_factory.mktemp("no-tokenizer")
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), empty, TINY, prefix=False, vocab_size=VOCABULARY)


def load(folder: Path, dtype: str = "float32", *, batch_invariant: bool = False) -> TorchEmbeddingEngine:
    config = DecoderConfig.from_json(read_config(folder))
    return load_embedding_engine(folder, config, "cpu", dtype, batch_invariant=batch_invariant)


def computed_by(engine: PackedEngine, batch: list[TokenIds]) -> int:
    """How many tokens the engine computes for a batch."""
    before = engine.counters.computed_tokens
    engine._compute(batch)
    return engine.counters.computed_tokens - before


def units(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# ------------------------------------------------------------------------------------------------- which ones


def test_an_input_that_is_the_beginning_and_no_more_does_not_go_on_from_it() -> None:
    beginnings = Beginnings()
    beginnings.expect(BEGINNING)
    assert beginnings.of([BEGINNING]) is None
    found = beginnings.of([[*BEGINNING, 1]])
    assert found is not None
    assert found.tokens == BEGINNING


def test_all_inputs_must_have_the_beginning() -> None:
    beginnings = Beginnings()
    beginnings.expect(BEGINNING)
    assert beginnings.of([[*BEGINNING, 1], [*BEGINNING[:-1], 1, 2]]) is None


def test_the_longest_beginning_is_taken() -> None:
    beginnings = Beginnings()
    for tokens in (BEGINNING, BEGINNING + OTHER, BEGINNING[:10]):
        beginnings.expect(tokens)
    found = beginnings.of([BEGINNING + OTHER + [1], BEGINNING + OTHER + [2, 3]])
    assert found is not None
    assert found.tokens == BEGINNING + OTHER


@pytest.mark.parametrize("length", [0, SHORTEST - 1, LONGEST + 1])
def test_a_beginning_of_too_few_or_too_many_tokens_is_not_kept(length: int) -> None:
    beginnings = Beginnings()
    beginnings.expect(ids(0, length))
    assert beginnings.of([[*ids(0, length), 1]]) is None


def test_those_that_were_expected_last_are_kept() -> None:
    beginnings = Beginnings()
    first, second = ids(0, 9), ids(1, 9)
    for tokens in (first, second, *(ids(seed, 9) for seed in range(2, MOST)), first, ids(99, 9)):
        beginnings.expect(tokens)
    assert beginnings.of([[*first, 1]]) is not None
    assert beginnings.of([[*second, 1]]) is None


# ------------------------------------------------------------------------------------------------- the engine


def test_an_expected_beginning_is_computed_with_the_first_batch_and_never_again(folder: Path) -> None:
    engine, batch = load(folder), [BEGINNING + ids(2, 7), BEGINNING + ids(3, 5)]
    engine.expect(BEGINNING)
    assert computed_by(engine, batch) == 20 + 7 + 5
    assert computed_by(engine, batch) == 7 + 5
    engine.expect(BEGINNING)
    assert computed_by(engine, batch[1:]) == 5
    assert computed_by(engine, [ids(4, 9)]) == 9


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_vectors_are_those_of_an_engine_that_expects_nothing(folder: Path, dtype: str, tolerance: float) -> None:
    plain, expecting = load(folder, dtype), load(folder, dtype)
    expecting.expect(BEGINNING)
    batch = [BEGINNING + ids(seed, 3 + seed) for seed in range(5)] + [BEGINNING + OTHER + [7], BEGINNING + OTHER + [8]]
    expected = units(plain.embed(batch))
    for _ in range(2):
        assert np.abs(units(expecting.embed(batch)) - expected).max() <= tolerance
    assert expecting.counters.tokens == 2 * plain.counters.tokens


def test_the_same_call_has_the_same_bits_whatever_was_asked_for_before(folder: Path) -> None:
    batch = [BEGINNING + ids(2, 7)]
    fresh, used = load(folder), load(folder)
    fresh.expect(BEGINNING)
    first = fresh.embed(batch)
    for beginning in [BEGINNING, *(ids(seed, 30) for seed in range(10, 12 + MOST))]:
        used.expect(beginning)
        used.embed([beginning + ids(5, 3)])
    used.expect(BEGINNING)
    for engine in (fresh, used):
        np.testing.assert_array_equal(engine.embed(batch), first)


def test_a_batch_invariant_engine_computes_every_input_whole(folder: Path) -> None:
    engine = load(folder, batch_invariant=True)
    engine.expect(BEGINNING)
    assert [computed_by(engine, [BEGINNING + ids(2, 7)]) for _ in range(2)] == [27, 27]


def test_rows_that_a_beginning_spoils_are_computed_whole_in_float32(folder: Path) -> None:
    engine, batch = load(folder, "bfloat16"), [BEGINNING + ids(2, 7)]
    expected = engine.embed(batch)
    engine.expect(BEGINNING)
    engine.embed(batch)
    kept = engine._beginnings.of(batch) if engine._beginnings else None
    assert kept is not None
    assert kept.computed is not None
    kept.computed.layers[0] = torch.full_like(kept.computed.layers[0], float("inf"))
    assert np.abs(units(engine.embed(batch)) - units(expected)).max() < 2e-2


def test_what_is_kept_holds_no_more_than_keys_and_values(folder: Path) -> None:
    decoder = load(folder).decoder
    beginning = decoder.beginning(BEGINNING, torch.float32)
    shape = (len(BEGINNING), 2, decoder.config.num_kv_heads, decoder.config.head_dim)
    assert len(beginning) == len(BEGINNING)
    for layer in beginning.layers:
        assert layer.shape == shape
        assert layer.untyped_storage().nbytes() == layer.nbytes


# ------------------------------------------------------------------------------------------------- the models


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    with Embedder.from_pretrained("demo", device="cpu", dtype="float32") as model:
        yield model


@pytest.fixture
def reranker() -> Iterator[Reranker]:
    with Reranker.from_pretrained("demo", device="cpu", dtype="float32") as model:
        yield model


def test_the_second_query_is_computed_without_template_and_instruction(embedder: Embedder) -> None:
    loaded = load_embedding(LoadConfig("demo", "embedding", device="cpu", dtype="float32"))
    counters = loaded.engine.counters
    embedder.embed_queries(QUERIES[:1])
    for query in QUERIES:
        before = counters.tokens, counters.computed_tokens
        embedder.embed_queries([query])
        whole = len(embedder.explain_query(query).token_ids)
        alone = len(embedder.explain_document(f"Query:{query}").token_ids)
        assert (counters.tokens - before[0], counters.computed_tokens - before[1]) == (whole, alone)
    loaded.release()


def test_the_second_rerank_is_computed_without_template_and_instruction(reranker: Reranker) -> None:
    loaded = load_reranking(LoadConfig("demo", "reranking", device="cpu", dtype="float32"))
    counters = loaded.engine.counters
    computed = []
    for query in (QUERIES[0], "Do cats sleep all day?"):
        before = counters.computed_tokens
        reranker.score(query, DOCUMENTS)
        computed.append(counters.computed_tokens - before)
    first, other = (reranker.explain(QUERIES[0], text).token_ids for text in ("a", "b"))
    assert first[:40] == other[:40]
    assert computed[0] - computed[1] > 40
    loaded.release()


def test_the_first_and_any_later_call_have_the_same_bits(embedder: Embedder, reranker: Reranker) -> None:
    first, scores = embedder.embed_queries(QUERIES[:1]), reranker.score(QUERIES[0], DOCUMENTS)
    embedder.embed_queries(QUERIES, instruction="Find the answer to this question about water and about cats")
    embedder.embed_queries(QUERIES[1:])
    np.testing.assert_array_equal(embedder.embed_queries(QUERIES[:1]), first)
    np.testing.assert_array_equal(reranker.score(QUERIES[0], DOCUMENTS), scores)


@pytest.mark.parametrize("instruction", [None, "", "x", "Find code for this", " ".join(["very"] * 600) + " long"])
def test_queries_one_by_one_are_what_they_are_as_documents_that_bring_their_template(
    embedder: Embedder, instruction: str | None
) -> None:
    """Documents have no beginning that is expected."""
    found = np.concatenate([embedder.embed_queries([query], instruction=instruction) for query in QUERIES])
    texts = [embedder.explain_query(query, instruction=instruction).text for query in QUERIES]
    whole = embedder.embed_documents([text.removesuffix("<|endoftext|>") for text in texts])
    assert np.abs(found - whole).max() <= 1e-5
