"""The demo pair's tokenizer: any text, the same ids in parts as in whole, and never slow."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

MODELS = Path(__file__).resolve().parents[2] / "core" / "qwen_retrieval" / "demo"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


def full(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(MODELS / name / "tokenizer.json"))


def plain(name: str) -> Tokenizer:
    saved = json.loads((MODELS / name / "tokenizer.json").read_text(encoding="utf-8"))
    return Tokenizer.from_str(json.dumps({**saved, "added_tokens": [], "post_processor": None}))


FULL, PLAIN = full("reranker"), plain("reranker")
PIECES = st.sampled_from(
    [
        "\n",
        " ",
        "_",
        "<",
        ">",
        ":",
        "<Query>:",
        "<Document>: ",
        "Query:",
        "fooBar",
        "HTTPServer",
        "\0",
        "é",
        "你好",
        "🎉",
        "a",
    ]
)
TEXT = st.one_of(st.text(max_size=30), st.lists(PIECES, max_size=12).map("".join))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_user_text_has_the_same_ids_without_added_tokens(text: str) -> None:
    if not any(special in text for special in ADDED):
        assert ids(FULL, text) == ids(PLAIN, text)


@settings(max_examples=400, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_reranker_template_can_be_cut_before_its_markers(task: str, query: str, document: str) -> None:
    parts = [f"<Instruct>: {task}\n", f"<Query>: {query}\n", f"<Document>: {document}"]
    assert sum((ids(PLAIN, p) for p in parts), []) == ids(PLAIN, "".join(parts))  # noqa: RUF017


@settings(max_examples=400, deadline=None)
@given(TEXT)
def test_prefix_body_and_suffix_do_not_touch(body: str) -> None:
    if not any(special in body for special in ADDED):
        assert ids(FULL, PREFIX) + ids(PLAIN, body) + ids(FULL, SUFFIX) == ids(FULL, PREFIX + body + SUFFIX)


def test_special_tokens_markers_and_answers_are_single_ids() -> None:
    assert [ids(FULL, text) for text in ADDED] == [[8192], [8193], [8194], [8195], [8196]]
    for marker in ("<Instruct>:", "<Query>:", "<Document>:", "yes", "no"):
        (token,) = ids(PLAIN, marker)
        assert token < 8192


def test_only_the_embedder_appends_the_end_token() -> None:
    assert full("embedder").encode("word").ids[-1] == 8192
    assert full("reranker").encode("word").ids == ids(PLAIN, "word")
    assert ids(plain("embedder"), "some Text") == ids(PLAIN, "some Text")


@pytest.mark.parametrize("unit", ["a", "a b ", "-", "你", "\0", "aB", "=-", "_", "e\u0301", "\n"])
def test_a_long_text_takes_seconds_at_most(unit: str) -> None:
    started = time.thread_time()
    PLAIN.encode(unit * (300_000 // len(unit)), add_special_tokens=False)
    assert time.thread_time() - started < 20
