"""Records to chunks, and what is refused before anything is embedded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from qdrant_qwen_retrieval.chunks import SEPARATOR, Chunk, Record
from qdrant_qwen_retrieval.metadata import check_unicode, json_metadata
from qwen_retrieval.errors import needs_extra

MAX_ID_CHARACTERS = 2_000
MAX_CHUNK_CHARACTERS = 1_000_000  # some copies of it, in UTF-8, must fit into the 32 MB of one request to a server
WINDOW_CHUNKS = 20  # divided at once
MIN_WINDOW = 4_000
CHUNK_ID = re.compile(rf"{re.escape(SEPARATOR)}\d+\Z")
BOUNDARIES = ("\n\n", "\n", " ")

Splitter = Callable[[str], Iterable[str]]
"""Text -> its parts in order; blank ones are passed over."""


def text_splitter(chunk_size: int) -> Splitter:
    """A splitter that fills chunks up to a size, cutting at the largest boundary that it can.

    Boundaries are, from the largest: blank lines, lines, sentences, words, characters. Only white space around cuts is
    lost, and nothing overlaps. One splitter for every kind of text: Markdown and Python files have been divided at
    their headings and definitions already, and the library's Markdown splitter would read marks in other texts.

    Args:
        chunk_size: Characters per chunk at most, at least 1.

    Raises:
        MissingDependencyError: semantic-text-splitter is not installed.
    """
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool):
        raise TypeError(f"chunk_size must be an integer, but is {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, but is {chunk_size}")
    with needs_extra("semantic_text_splitter", "qdrant"):
        from semantic_text_splitter import TextSplitter
    splitter = TextSplitter(chunk_size)
    window = max(MIN_WINDOW, WINDOW_CHUNKS * chunk_size)
    return lambda text: (chunk for part in _windows(text, window) for chunk in splitter.chunks(part))


def split(record: Record, splitter: Splitter | None) -> list[Chunk]:
    """The chunks of a record, each with the record's title before it.

    Args:
        record: What to split; one that has chunks keeps them.
        splitter: Divides the text; None makes the whole text one chunk.

    Raises:
        TypeError: `splitter` gives something else than strings.
        ValueError: The record cannot be ingested: its id is blank, too long or looks like a chunk's; there is no text
            or a chunk is blank or too long; id, title or text is not valid Unicode; the metadata is not JSON.
    """
    _check_id(record.id)
    _check_string(record.title, "the title")
    title = f"{record.title.strip()}\n" if record.title.strip() else ""
    metadata = json_metadata(record.metadata)
    texts = [f"{title}{piece}" for piece in _pieces(record, splitter)]
    for index, text in enumerate(texts):
        if len(text) > MAX_CHUNK_CHARACTERS:
            raise ValueError(f"chunk {index} has {len(text):,} characters, but {MAX_CHUNK_CHARACTERS:,} is the limit")
    return [Chunk(record.id, index, len(texts), text, metadata) for index, text in enumerate(texts)]


def is_chunk_id(identifier: str) -> bool:
    """Whether a record must not be called this, because a chunk of another one could be."""
    return CHUNK_ID.search(identifier) is not None


def _check_id(identifier: str) -> None:
    _check_string(identifier, "the id")
    if not identifier.strip():
        raise ValueError("the id is empty")
    if len(identifier) > MAX_ID_CHARACTERS:
        raise ValueError(f"the id has {len(identifier):,} characters, but {MAX_ID_CHARACTERS:,} is the limit")
    if is_chunk_id(identifier):
        raise ValueError(f"the id ends in '{SEPARATOR}<number>', which is how the chunks of a record are called")


def _check_string(value: object, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, but is {type(value).__name__}")
    check_unicode(value, name)


def _pieces(record: Record, splitter: Splitter | None) -> list[str]:
    if record.chunks is not None:
        return _own_chunks(record.chunks)
    _check_string(record.text, "the text")
    if not record.text.strip():
        raise ValueError("the text is empty")
    if splitter is None:
        return [record.text]
    pieces = list(splitter(record.text))
    for index, piece in enumerate(pieces):
        if not isinstance(piece, str):
            raise TypeError(f"the splitter must give strings, but piece {index} is {type(piece).__name__}")
        check_unicode(piece, f"piece {index} of the splitter")
    if not any(piece.strip() for piece in pieces):
        raise ValueError("the splitter made no chunk of the text")
    return [piece for piece in pieces if piece.strip()]


def _own_chunks(chunks: Iterable[str]) -> list[str]:
    pieces = list(chunks)
    if not pieces:
        raise ValueError("the list of chunks is empty")
    for index, piece in enumerate(pieces):
        _check_string(piece, f"chunk {index}")
        if not piece.strip():
            raise ValueError(f"chunk {index} is empty")
    return pieces


def _windows(text: str, size: int) -> Iterator[str]:
    """Parts that the splitter gets one by one, because its time grows with the square of a text without boundaries."""
    start = 0
    while len(text) - start > size:
        end = _boundary(text, start + size // 2, start + size)
        yield text[start:end]
        start = end
    yield text[start:]


def _boundary(text: str, first: int, last: int) -> int:
    found = (text.rfind(mark, first, last) for mark in BOUNDARIES)
    return next((place + 1 for place in found if place >= 0), last)
