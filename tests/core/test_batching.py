from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_retrieval.batching import MIN_SHARED_TOKENS, PackedBatch, chunks, dedupe, pack, plan, sharing_order
from qwen_retrieval.types import TokenIds

LARGEST_ID = 151_668


@st.composite
def families(draw: st.DrawFn) -> list[TokenIds]:
    """Inputs that begin alike in many ways: each goes on from some beginning of an earlier one."""
    inputs: list[TokenIds] = []
    for goes_on in draw(st.lists(st.booleans(), max_size=12)):
        start: TokenIds = []
        if inputs and goes_on:
            earlier = draw(st.sampled_from(inputs))
            start = earlier[: draw(st.integers(0, len(earlier)))]
        ids = st.sampled_from([0, 1, 255, 256, LARGEST_ID])
        inputs.append(start + draw(st.lists(ids, min_size=0 if start else 1, max_size=40)))
    return inputs


def random_ids(count: int, seed: int) -> TokenIds:
    generator = random.Random(seed)
    return [generator.randrange(LARGEST_ID) for _ in range(count)]


def rows_of_input(packed: PackedBatch, index: int) -> list[int]:
    """The rows that the last token of an input attends to: its own segment up to there, and all segments above."""
    segments = packed.segments
    last = int(packed.last[index])
    segment = int(np.searchsorted(segments.starts, last, side="right")) - 1
    rows = list(range(segments.starts[segment], last + 1))
    while (segment := int(segments.parents[segment])) >= 0:
        start = int(segments.starts[segment])
        rows = [*range(start, start + int(segments.lengths[segment])), *rows]
    return rows


@given(families())
def test_walking_up_from_the_last_token_gives_back_every_input_and_its_positions(batch: list[TokenIds]) -> None:
    packed = pack(batch)
    for index, ids in enumerate(batch):
        rows = rows_of_input(packed, index)
        assert packed.token_ids[rows].tolist() == ids
        assert packed.positions[rows].tolist() == list(range(len(ids)))


@given(families(), st.integers(0, 40))
def test_what_inputs_are_behind_is_left_out_and_positions_go_on_from_there(batch: list[TokenIds], behind: int) -> None:
    beginning = list(range(behind))
    packed, rest = pack([beginning + ids for ids in batch], behind=behind), pack(batch)
    assert packed.behind == behind
    assert packed.tokens == behind * len(batch) + rest.tokens
    np.testing.assert_array_equal(packed.token_ids, rest.token_ids)
    np.testing.assert_array_equal(packed.positions, rest.positions + behind)
    np.testing.assert_array_equal(packed.segments.depths, rest.segments.depths + behind)
    np.testing.assert_array_equal(packed.last, rest.last)


def test_an_input_that_is_nothing_but_what_it_is_behind_is_refused() -> None:
    with pytest.raises(ValueError, match="input 1 has none"):
        pack([[1, 2, 3], [1, 2]], behind=2)


@given(families())
def test_segments_cover_the_packed_tokens_once_and_go_on_where_their_parent_ends(batch: list[TokenIds]) -> None:
    packed = pack(batch)
    starts, lengths = packed.segments.starts, packed.segments.lengths
    assert (lengths > 0).all()
    assert starts.tolist() == [0, *np.cumsum(lengths)][: len(starts)]
    assert packed.computed_tokens == lengths.sum() == len(packed.positions)
    for segment, (parent, depth) in enumerate(zip(packed.segments.parents, packed.segments.depths, strict=True)):
        assert -1 <= parent < segment
        assert depth == (packed.segments.depths[parent] + lengths[parent] if parent >= 0 else 0)
        assert packed.positions[starts[segment]] == depth


@given(families())
def test_descendants_directly_follow_their_segment(batch: list[TokenIds]) -> None:
    open_segments = [-1]
    for segment, parent in enumerate(pack(batch).segments.parents):
        while open_segments[-1] != parent:
            open_segments.pop()  # IndexError if the parent was already left
        open_segments.append(segment)


@given(families())
def test_no_two_inputs_share_their_last_row_and_shared_segments_are_long_enough(batch: list[TokenIds]) -> None:
    packed = pack(batch)
    assert len(set(packed.last.tolist())) == len(batch)
    inner = sorted({int(parent) for parent in packed.segments.parents if parent >= 0})
    assert all(packed.segments.lengths[segment] >= MIN_SHARED_TOKENS for segment in inner)


@given(families())
def test_token_counts_are_those_given_and_those_computed(batch: list[TokenIds]) -> None:
    packed = pack(batch)
    assert packed.tokens == sum(map(len, batch))
    assert packed.computed_tokens <= packed.tokens


@given(families())
def test_packed_arrays_are_int64(batch: list[TokenIds]) -> None:
    packed, segments = pack(batch), pack(batch).segments
    arrays = [packed.token_ids, packed.positions, packed.last]
    arrays += [segments.starts, segments.lengths, segments.parents, segments.depths]
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


@given(families(), st.randoms())
def test_packing_does_not_depend_on_the_order_of_the_inputs(batch: list[TokenIds], generator: random.Random) -> None:
    shuffled = generator.sample(batch, len(batch))
    assert pack(shuffled).token_ids.tolist() == pack(batch).token_ids.tolist()


@given(families(), st.integers(1, 200))
def test_a_plan_holds_every_input_once_and_keeps_the_budget(inputs: list[TokenIds], max_batch_tokens: int) -> None:
    batches = plan(inputs, max_batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(inputs)))
    for batch in batches:
        assert len(batch) == 1 or pack([inputs[index] for index in batch]).computed_tokens <= max_batch_tokens


@given(families(), st.data())
def test_planned_costs_bound_the_computed_tokens_of_every_stretch(inputs: list[TokenIds], data: st.DataObject) -> None:
    order = sharing_order(inputs)
    start = data.draw(st.integers(0, len(inputs)))
    stop = data.draw(st.integers(start, len(inputs)))
    batch = [inputs[index] for index in order.indices[start:stop]]
    assert pack(batch).computed_tokens <= order.cost(start, stop) <= sum(map(len, batch))


@given(families(), st.data())
def test_without_sharing_each_input_is_a_segment_and_costs_its_length(
    inputs: list[TokenIds], data: st.DataObject
) -> None:
    order = sharing_order(inputs, share=False)
    start = data.draw(st.integers(0, len(inputs)))
    stop = data.draw(st.integers(start, len(inputs)))
    packed = pack([inputs[index] for index in order.indices[start:stop]], share=False)
    assert packed.computed_tokens == packed.tokens == order.cost(start, stop)
    assert len(packed.segments.parents) == stop - start
    assert (packed.segments.parents == -1).all()
    assert sorted(order.indices) == list(range(len(inputs)))
    whole = pack(inputs, share=False)
    for last, ids in zip(whole.last, inputs, strict=True):
        assert whole.token_ids[last + 1 - len(ids) : last + 1].tolist() == ids


@given(families(), families())
def test_planned_costs_of_two_orders_add_up_to_a_bound_of_the_joint_batch(
    some: list[TokenIds], others: list[TokenIds]
) -> None:
    cost = sharing_order(some).cost(0, len(some)) + sharing_order(others).cost(0, len(others))
    unique, _ = dedupe([*some, *others], key=tuple)
    assert pack([*some, *others]).computed_tokens <= cost
    assert pack(unique).computed_tokens <= cost


@given(families().filter(len), st.integers(1, 200), st.data())
def test_a_stretch_is_the_longest_that_fits(inputs: list[TokenIds], budget: int, data: st.DataObject) -> None:
    order = sharing_order(inputs)
    start = data.draw(st.integers(0, len(inputs) - 1))
    stop = order.stop(start, budget)
    assert order.cost(start, stop) <= budget
    assert stop == len(inputs) or order.cost(start, stop + 1) > budget


@given(families())
def test_the_sharing_order_is_lexicographic(inputs: list[TokenIds]) -> None:
    order = sharing_order(inputs)
    assert [inputs[index] for index in order.indices] == sorted(inputs)
    assert order.lengths == [len(inputs[index]) for index in order.indices]


@given(st.lists(st.integers(0, 5)))
def test_dedupe_keeps_first_appearances_and_finds_every_item_again(items: list[int]) -> None:
    unique, inverse = dedupe(items)
    assert unique == list(dict.fromkeys(items))
    assert [unique[place] for place in inverse] == items
    assert inverse.dtype == np.intp


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 40), st.none() | st.integers(1, 5))
def test_chunks_cover_the_list_in_order_and_are_as_long_as_they_may_be(
    sizes: list[int], most: int, count: int | None
) -> None:
    found = list(chunks(sizes, most, count))
    assert [index for chunk in found for index in range(len(sizes))[chunk]] == list(range(len(sizes)))
    for chunk in found:
        length, together = chunk.stop - chunk.start, sum(sizes[chunk])
        assert length == 1 or (together <= most and (count is None or length <= count))
        longer = together + sum(sizes[chunk.stop : chunk.stop + 1])
        assert chunk.stop == len(sizes) or longer > most or length == count


def test_dedupe_compares_token_ids_by_value() -> None:
    first, again = [1, 2], [1, 2]
    unique, inverse = dedupe([first, [3], again], key=tuple)
    assert unique == [[1, 2], [3]]
    assert unique[0] is first
    assert inverse.tolist() == [0, 1, 0]


def test_documents_of_one_query_share_the_instruction_and_the_query() -> None:
    prefix = random_ids(39 + 30, seed=1)
    documents = [random_ids(80 + index, seed=100 + index) for index in range(50)]
    packed = pack([prefix + document for document in documents])
    assert packed.computed_tokens == len(prefix) + sum(map(len, documents))
    assert packed.segments.parents.tolist() == [-1] + [0] * 50


def test_instruction_then_query_then_documents_are_three_levels() -> None:
    instruction = random_ids(39, seed=1)
    queries = [random_ids(20, seed=10 + index) for index in range(3)]
    documents = [random_ids(50, seed=100 + index) for index in range(12)]
    batch = [instruction + queries[index % 3] + document for index, document in enumerate(documents)]
    packed = pack(batch)
    assert packed.computed_tokens == 39 + 3 * 20 + 12 * 50
    assert sorted(set(packed.segments.depths.tolist())) == [0, 39, 59]
    assert packed.segments.parents.tolist() == [-1, 0, 1, 1, 1, 1, 0, 6, 6, 6, 6, 0, 11, 11, 11, 11]


@pytest.mark.parametrize(("common", "segments"), [(MIN_SHARED_TOKENS - 1, 2), (MIN_SHARED_TOKENS, 3)])
def test_only_beginnings_that_are_long_enough_are_shared(common: int, segments: int) -> None:
    prefix = random_ids(common, seed=1)
    assert len(pack([[*prefix, 1], [*prefix, 2]]).segments.starts) == segments


@pytest.mark.parametrize(("more", "segments"), [(MIN_SHARED_TOKENS - 1, 4), (MIN_SHARED_TOKENS, 5)])
def test_a_second_level_must_be_long_enough_as_well(more: int, segments: int) -> None:
    instruction, query = random_ids(40, seed=1), random_ids(more, seed=2)
    packed = pack([[*instruction, *query, 1], [*instruction, *query, 2], [*instruction, *random_ids(9, seed=3)]])
    assert len(packed.segments.starts) == segments


def test_an_input_that_begins_another_shares_all_but_its_last_token() -> None:
    ids = random_ids(60, seed=1)
    packed = pack([ids, ids[:40]])
    assert packed.computed_tokens == 60 + 1
    assert packed.token_ids[packed.last].tolist() == [ids[-1], ids[39]]


def test_identical_inputs_have_a_last_token_each() -> None:
    packed = pack([random_ids(30, seed=1)] * 3)
    assert packed.computed_tokens == 29 + 3


def test_beginnings_longer_than_one_comparison_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_retrieval.batching._COMPARED_AT_ONCE", 64)
    prefix = random_ids(5_000, seed=1)
    batch = [[*prefix, 1], prefix[:4_000], [*prefix, 2], random_ids(10, seed=2), prefix[:17]]
    assert pack(batch).computed_tokens == 5_000 + 2 + 1 + 10 + 1


def test_very_deep_forests_need_no_recursion() -> None:
    longest = [7] * (MIN_SHARED_TOKENS * 1_200)
    batch = [longest[:length] for length in range(2, len(longest), MIN_SHARED_TOKENS)]
    packed = pack(batch)
    assert len(packed.segments.starts) > 2_000
    assert packed.token_ids[packed.last].tolist() == [7] * len(batch)
    assert packed.tokens == sum(map(len, batch))


def test_ten_thousand_inputs_with_one_beginning_compute_it_once() -> None:
    prefix = random_ids(40, seed=1)
    packed = pack([[*prefix, index] for index in range(10_000)])
    assert packed.computed_tokens == 40 + 10_000


def test_a_plan_keeps_inputs_that_begin_alike_together() -> None:
    prefixes = [random_ids(50, seed=index) for index in range(4)]
    inputs = [prefixes[index % 4] + random_ids(10, seed=10 + index) for index in range(40)]
    batches = plan(inputs, 50 + 10 * (10 + MIN_SHARED_TOKENS))
    assert all(sum(index % 4 == following % 4 for index, following in pairwise(batch)) > 0 for batch in batches)
    assert sum(pack([inputs[index] for index in batch]).computed_tokens for batch in batches) < 1_000 < 40 * 60


def test_an_input_longer_than_the_budget_stands_alone() -> None:
    inputs = [[1], [2] * 100, [3]]
    assert plan(inputs, 10) == [[0], [1], [2]]


def test_nothing_in_nothing_out() -> None:
    packed = pack([])
    assert (packed.tokens, packed.computed_tokens, packed.last.tolist()) == (0, 0, [])
    assert packed.segments.starts.tolist() == []
    assert plan([], 100) == []
    unique, inverse = dedupe(list[str]())
    assert (unique, inverse.tolist()) == ([], [])


@pytest.mark.parametrize("inputs", [[[]], [[1], []]])
def test_an_input_without_tokens_is_refused(inputs: list[TokenIds]) -> None:
    for refuse in (pack, sharing_order):
        with pytest.raises(ValueError, match=f"at least one token, but input {len(inputs) - 1} has none"):
            refuse(inputs)
