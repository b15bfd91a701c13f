"""Training data: what is refused, what is read, in which order."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_retrieval.instructions import looks_like_a_name
from qwen_retrieval.training.data import (
    Example,
    ExampleFile,
    cut_by_tokens,
    epoch_batches,
    hold_out,
    read_examples,
    write_examples,
)

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
sentences = texts.filter(lambda text: not looks_like_a_name(text))
examples = st.builds(
    Example, texts, texts, st.lists(texts, max_size=3).map(tuple), st.none() | sentences, st.none() | texts
)


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def line(query: str = "q", **fields: object) -> str:
    return json.dumps({"query": query, "positive": f"answer to {query}", **fields})


@given(st.lists(examples, min_size=1, max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, given: list[Example]) -> None:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    with open(path, "wb") as handle:
        assert write_examples(given, handle) == len(given)
    assert list(read_examples(path)) == given
    assert ExampleFile(path).read(reversed(range(len(given)))) == given[::-1]


def test_fields_without_a_value_are_not_written() -> None:
    handle = io.BytesIO()
    write_examples([Example("q", "d")], handle)
    assert json.loads(handle.getvalue()) == {"query": "q", "positive": "d"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object, but is list"),
        ('{"positive": "d"}', "query must be a text that is not empty, but is None"),
        ('{"query": "q", "positive": " "}', "positive must be a text that is not empty"),
        ('{"query": "q", "positive": "d", "negatives": "n"}', "negatives must be a list of texts, but is str"),
        ('{"query": "q", "positive": "d", "negatives": ""}', "negatives must be a list of texts, but is str"),
        ('{"query": "q", "positive": "d", "instruction": "\\ud800"}', "instruction contains half of a surrogate pair"),
        ('{"query": "q", "positive": "d", "negatives": ["n", 1]}', "negatives[1] must be a text"),
        ('{"query": "q", "positive": "d", "negative": ["n"]}', "has the field 'negative', but the fields are query"),
        ('{"query": "q", "positive": "d", "instruction": 1}', "instruction must be a text, but is 1"),
        (
            '{"query": "q", "positive": "d", "instruction": "code_serch"}',
            "instruction 'code_serch' is neither a",
        ),
        ('{"query": "\\ud800", "positive": "d"}', "query contains half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, bad: str, reason: str) -> None:
    path = written(tmp_path / "data.jsonl", line(), "", bad)
    with pytest.raises(ValueError, match=re.escape(f"{path}:3 {reason}")):
        ExampleFile(path)


def test_how_a_line_was_made_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", line("q", meta={"document": "d1", "half": "\ud800"}, task="t"))
    (example,) = read_examples(path)
    assert example == Example("q", "answer to q", task="t", meta={"document": "d1", "half": "\ud800"})
    assert hash(example) == hash(Example("q", "answer to q", task="t"))
    handle = io.BytesIO()
    write_examples([example], handle)
    assert list(json.loads(handle.getvalue())) == ["query", "positive", "task", "meta"]
    assert list(read_examples(written(path, handle.getvalue().decode()))) == [example]


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no examples"):
        ExampleFile(written(tmp_path / "data.jsonl", "", " "))


def test_examples_are_grouped_by_task_and_otherwise_by_instruction(tmp_path: Path) -> None:
    lines = [line(), line(instruction="a"), line(task="t", instruction="a"), line(task="t"), line(instruction="a")]
    assert ExampleFile(written(tmp_path / "data.jsonl", *lines)).groups.tolist() == [0, 1, 2, 2, 1]


def test_the_digest_says_whether_the_examples_are_the_same(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a", line("a")), written(tmp_path / "b", line("b"))
    again = written(tmp_path / "c", "", line("a"))
    assert ExampleFile(one).digest == ExampleFile(again).digest != ExampleFile(other).digest


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_has_every_example_once_in_batches_of_one_group(groups: list[int], size: int, seed: int) -> None:
    numbers, own = np.arange(len(groups)), np.array(groups)
    batches = epoch_batches(numbers, own, size, seed=seed, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == numbers.tolist()
    assert all(len(batch) <= size and len({*own[batch].tolist()}) == 1 for batch in batches)
    again = epoch_batches(numbers, own, size, seed=seed, epoch=0)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


def test_epochs_and_seeds_give_different_orders() -> None:
    numbers, groups = np.arange(50), np.zeros(50, dtype=np.int64)
    orders = {
        tuple(np.concatenate(epoch_batches(numbers, groups, 8, seed=seed, epoch=epoch)).tolist())
        for seed in range(2)
        for epoch in range(2)
    }
    assert len(orders) == 4


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(0, 5))
def test_no_query_is_on_both_sides(queries: list[int], share: float, seed: int) -> None:
    numbers = np.array(queries)
    if len({*queries}) <= max(1, round(share * len({*queries}))):
        return
    kept, out = hold_out(numbers, share, seed=seed)
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(len(queries)))
    assert {*numbers[kept].tolist()}.isdisjoint(numbers[out].tolist())
    assert bool(len(out)) == (share > 0)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        hold_out(np.zeros(5, dtype=np.int64), 0.1, seed=0)
    with pytest.raises(ValueError, match="from 0 to less than 1, but got 1"):
        hold_out(np.arange(5), 1, seed=0)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_parts_hold_every_input_within_the_limit(lengths: list[int], limit: int) -> None:
    parts = cut_by_tokens(lengths, limit)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= limit
