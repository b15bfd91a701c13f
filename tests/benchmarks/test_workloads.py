"""The benchmark's workloads: the same lengths each time, and texts that have them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.workloads import WORKLOADS, Workload, Writer, calls, default_items, draw_lengths, select, write_items
from qwen_retrieval.batching import MIN_SHARED_TOKENS
from qwen_retrieval.tokenizer import HubTokenizer

BY_NAME = {workload.name: workload for workload in WORKLOADS}


@pytest.fixture(scope="module")
def writer(embedding_tokenizer_folder: Path) -> Writer:
    return Writer.from_folder(embedding_tokenizer_folder)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_longer_list_of_lengths_begins_with_the_shorter_one(workload: Workload) -> None:
    assert draw_lengths(workload.draw, 50, workload.name)[:20] == draw_lengths(workload.draw, 20, workload.name)


def test_lengths_are_those_of_the_plan() -> None:
    passages = sorted(draw_lengths(BY_NAME["W1"].draw, 20_000, "W1"))
    assert 74 < sum(passages) / len(passages) < 79
    assert 175 < passages[int(0.99 * len(passages))] < 195
    assert passages[-1] <= 512
    wide = sorted(draw_lengths(BY_NAME["W2"].draw, 20_000, "W2"))
    assert 280 < sum(wide) / len(wide) < 320
    assert 1_700 < wide[int(0.99 * len(wide))] < 2_100
    assert set(draw_lengths(BY_NAME["W3"].draw, 5, "W3")) == {512}
    assert set(draw_lengths(BY_NAME["W4"].draw, 5, "W4")) == {8191}
    assert set(draw_lengths(BY_NAME["W5"].draw, 2_000, "W5")) == set(range(4, 25))


@pytest.mark.parametrize("name", ["W1", "W3", "W5"])
def test_texts_have_exactly_the_tokens_that_were_drawn(
    name: str, writer: Writer, embedding_tokenizer: HubTokenizer
) -> None:
    workload = BY_NAME[name]
    texts = [str(item) for item in write_items(workload, 40, writer)]
    found = [len(ids) for ids in embedding_tokenizer.encode(texts, control_tokens=False)]
    assert found == draw_lengths(workload.draw, 40, name)
    assert texts[:10] == write_items(workload, 10, writer)


def test_no_two_texts_begin_so_much_alike_that_an_engine_could_share_it(
    writer: Writer, embedding_tokenizer: HubTokenizer
) -> None:
    texts = [str(item) for item in write_items(BY_NAME["W1"], 2_000, writer)]
    ids = sorted(embedding_tokenizer.encode(texts, control_tokens=False))
    for a, b in pairwise(ids):
        assert a[:MIN_SHARED_TOKENS] != b[:MIN_SHARED_TOKENS]


def test_the_pairs_of_a_call_have_one_query(writer: Writer) -> None:
    found = calls(BY_NAME["W8"], write_items(BY_NAME["W8"], 250, writer))
    assert [len(call) for call in found] == [100, 100, 50]
    queries = [{item[0] for item in call} for call in found]
    assert [len(one) for one in queries] == [1, 1, 1]
    assert len(set.union(*queries)) == 3


def test_w10_names_its_four_parts_and_an_unknown_name_is_refused() -> None:
    assert [one.name for one in select(["W10", "W1"])] == ["W1", "W10a", "W10b", "W10c", "W10d"]
    with pytest.raises(ValueError, match="got W11"):
        select(["W11"])


def test_larger_models_get_fewer_items_but_whole_calls() -> None:
    sizes = [default_items(BY_NAME["W1"], "cuda", model) for model in ("0.6B", "4B", "8B")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]
    assert default_items(BY_NAME["W6"], "cuda", "8B") == 100
    assert default_items(BY_NAME["W1"], "cpu", "0.6B", scale=0.001) == 1
