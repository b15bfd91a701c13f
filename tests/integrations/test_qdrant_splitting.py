"""Records to chunks: nothing of a text is lost, and what cannot be ingested says why."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdrant_qwen_retrieval.chunks import Chunk, Record
from qdrant_qwen_retrieval.splitting import MAX_CHUNK_CHARACTERS, MIN_WINDOW, Splitter, split, text_splitter
from qwen_retrieval.errors import MissingDependencyError

PIECES = st.sampled_from(
    ["word", "Ende.", "第一章。", "\n", "\n\n", "x" * 900, "  ", "👨‍👩‍👧", "\x1c", "\u00a0", "\r\n", "\t"]
)
TEXTS = st.lists(PIECES | st.text(max_size=20), max_size=60).map("".join).filter(str.strip)
SIZES = st.integers(min_value=1, max_value=200)


def texts(text: str, splitter: Splitter | None, **fields: Any) -> list[str]:
    return [chunk.text for chunk in split(Record("a", text, **fields), splitter)]


def without_space(text: str) -> str:
    return "".join(text.split())


# --------------------------------------------------------------------------------------------------- texts


@given(TEXTS, SIZES)
def test_splitting_loses_nothing_but_white_space(text: str, size: int) -> None:
    assert without_space("".join(texts(text, text_splitter(size)))) == without_space(text)


@given(TEXTS, SIZES, st.sampled_from(["", "Guide > Setup"]))
def test_no_chunk_is_blank_or_larger_than_asked_with_its_title(text: str, size: int, title: str) -> None:
    start = f"{title}\n" if title else ""
    for chunk in texts(text, text_splitter(size), title=title):
        assert chunk.startswith(start)
        assert 0 < len(chunk.removeprefix(start)) <= size
        assert chunk.removeprefix(start).strip()


@given(TEXTS, SIZES)
def test_the_same_record_gives_the_same_chunks_with_ids_of_their_own(text: str, size: int) -> None:
    record = Record("a", text, {"year": 2020})
    chunks = split(record, text_splitter(size))
    assert chunks == split(record, text_splitter(size))
    assert len({chunk.point_id for chunk in chunks}) == len(chunks)
    assert [(chunk.record_id, chunk.index, chunk.count) for chunk in chunks] == [
        ("a", index, len(chunks)) for index in range(len(chunks))
    ]


@settings(max_examples=20)
@given(st.lists(PIECES, min_size=1, max_size=8).map("".join).filter(str.strip), st.integers(1, 60))
def test_a_long_text_is_divided_in_windows_without_loss(part: str, size: int) -> None:
    text = part * (3 * MIN_WINDOW // len(part) + 1)
    chunks = texts(text, text_splitter(size))
    assert without_space("".join(chunks)) == without_space(text)
    assert max(map(len, chunks)) <= size


def test_a_window_ends_where_a_paragraph_does() -> None:
    paragraph = "One two three four five.\nSix seven eight nine ten."
    chunks = texts("\n\n".join([paragraph] * 1000), text_splitter(60))
    assert chunks == [paragraph] * 1000


def test_paragraphs_and_sentences_stay_whole_when_they_fit() -> None:
    text = "one two three\n\nfour five\n\nOne sentence. Another one, longer. And a third."
    assert texts(text, text_splitter(33)) == [
        "one two three\n\nfour five",
        "One sentence.",
        "Another one, longer. And a third.",
    ]


def test_without_a_splitter_a_record_is_one_chunk() -> None:
    assert split(Record("a", " b \n", {"n": 1}), None) == [Chunk("a", 0, 1, " b \n", {"n": 1})]


def test_own_chunks_are_kept() -> None:
    record = Record("a", "ignored", title=" Head ", chunks=("one two", " three"))
    assert [chunk.text for chunk in split(record, text_splitter(2))] == ["Head\none two", "Head\n three"]


def test_metadata_are_stored_as_json() -> None:
    (chunk,) = split(Record("a", "b", {"day": date(2024, 1, 2)}), None)
    assert chunk.metadata == {"day": "2024-01-02"}
    assert chunk.metadata_hash == split(Record("a", "b", {"day": "2024-01-02"}), None)[0].metadata_hash


# ---------------------------------------------------------------------------------------------- the refused


GOOD = Record("a", "text", {"n": 1}, "Head")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": ""}, "the id is empty"),
        ({"id": " \n"}, "the id is empty"),
        ({"id": 5}, "the id must be a string, but is int"),
        ({"id": "x" * 2001}, "the id has 2,001 characters, but 2,000 is the limit"),
        ({"id": "a#chunk-0"}, "the id ends in '#chunk-<number>', which is how the chunks of a record are called"),
        ({"id": "a#chunk-12"}, "the id ends in '#chunk-<number>'"),
        ({"id": "a\ud800"}, "the id is not valid Unicode: it has a lone surrogate U.D800 at 1"),
        ({"title": "\udfff"}, "the title is not valid Unicode"),
        ({"title": None}, "the title must be a string, but is NoneType"),
        ({"text": ""}, "the text is empty"),
        ({"text": " \n\u00a0\x1c"}, "the text is empty"),
        ({"text": "a\udc00"}, "the text is not valid Unicode"),
        ({"text": b"a"}, "the text must be a string, but is bytes"),
        ({"text": "x" * 1_000_001}, "chunk 0 has 1,000,006 characters, but 1,000,000 is the limit"),
        ({"chunks": ()}, "the list of chunks is empty"),
        ({"chunks": ("a", " ")}, "chunk 1 is empty"),
        ({"chunks": ("a", "\ud800")}, "chunk 1 is not valid Unicode"),
        ({"metadata": {"n": {1}}}, r"metadata\['n'\] is set"),
        ({"metadata": {"_qwen": 1}}, "the metadata key '_qwen' is reserved"),
    ],
)
def test_what_cannot_be_ingested_says_why(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as raised:
        split(replace(GOOD, **changes), None)
    str(raised.value).encode()


@pytest.mark.parametrize("identifier", ["a#chunk-", "a#chunk-x", "#chunk-1 ", "chunk-1", "a#chunk-1\n", "a#Chunk-1"])
def test_ids_that_no_chunk_can_have_are_taken(identifier: str) -> None:
    assert split(replace(GOOD, id=identifier), None)[0].id == identifier


def test_a_long_text_can_be_ingested_in_chunks() -> None:
    long = "word " * (MAX_CHUNK_CHARACTERS // 4)
    assert len(split(replace(GOOD, text=long), text_splitter(1000))) > 1000


def test_blank_pieces_of_a_splitter_are_passed_over() -> None:
    assert texts("one\n\n\ntwo", str.splitlines) == ["one", "two"]
    with pytest.raises(ValueError, match="the splitter made no chunk of the text"):
        texts("one", lambda text: [text[3:], ""])


def test_a_splitter_of_something_else_than_strings_is_an_error_of_the_caller() -> None:
    with pytest.raises(TypeError, match="the splitter must give strings, but piece 0 is tuple"):
        texts("one", lambda text: [(0, text)])  # type: ignore[list-item]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_chunk_size_below_one_or_not_an_integer_is_refused(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="chunk_size must be"):
        text_splitter(size)


def test_without_the_splitter_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "qwen-retrieval\[qdrant\]"'):
        text_splitter(10)
