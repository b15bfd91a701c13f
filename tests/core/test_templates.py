"""Texts to token ids, checked id by id against the published examples."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen_retrieval
from qwen_retrieval.errors import ControlTokenError, CorruptCheckpointError, InputError, InputTooLongError
from qwen_retrieval.specs import (
    DEMO_EMBEDDING,
    QWEN3_EMBEDDING,
    QWEN3_RERANKER,
    WEB_SEARCH,
    EmbeddingSpec,
    RerankingSpec,
)
from qwen_retrieval.templates import EmbeddingTemplate, Encoded, RerankingTemplate, check_texts
from qwen_retrieval.testing import ByteTokenizer, fake_embedding_spec, fake_reranking_spec
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.types import ControlTokens, TokenIds

END = 151_643
FIRST_CONTROL_ID = END
EMBEDDING = EmbeddingSpec("Qwen/Qwen3-Embedding-0.6B", QWEN3_EMBEDDING, hidden_size=1024, max_length=32_768)
RERANKING = RerankingSpec("Qwen/Qwen3-Reranker-0.6B", QWEN3_RERANKER, max_length=32_768)
PREFIX = 39
SUFFIX = 9
# What might confuse a template: its own labels and control tokens, line breaks, marks that join what stands before.
FRAGMENTS = [
    "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<|im_start|>", "<|image_pad|>", "<|im_", "<Query>: ",
    "<Document>:", "<Instruct>", "{query}", "{", "}", "\n", "\n\n", "\r\n", " ", "\t", "\u0301", "\u0338", "é", "中国",
    "١٢", "42", "’s", ">:", "<", ".", "\x00", "\u200d", "🇫🇷",
]  # fmt: skip
TEXTS = st.lists(st.text(max_size=12) | st.sampled_from(FRAGMENTS), max_size=6).map("".join)


@pytest.fixture(scope="module")
def embedding(embedding_tokenizer: HubTokenizer) -> EmbeddingTemplate:
    return EmbeddingTemplate(embedding_tokenizer, EMBEDDING)


@pytest.fixture(scope="module")
def demo_tokenizer() -> HubTokenizer:
    return HubTokenizer.from_folder(Path(qwen_retrieval.__file__).parent / "demo" / "embedder")


@pytest.fixture(scope="module")
def reranking(reranker_tokenizer: HubTokenizer) -> RerankingTemplate:
    return RerankingTemplate(reranker_tokenizer, RERANKING)


def pair(template: RerankingTemplate, query: str, document: str, instruction: str = WEB_SEARCH) -> Encoded:
    return template.encode_pairs([query], [document], instruction)[0]


def fields(text: str) -> tuple[str, str, str]:
    """Instruction, query and document of a golden input."""
    found = re.search(r"<Instruct>: (.*?)\n+<Query>: (.*?)\n+<Document>: (.*?)<\|im_end\|>", text, re.DOTALL)
    assert found is not None
    return found[1], found[2], found[3]


def uncut(encoded: list[Encoded]) -> list[TokenIds]:
    """The ids of inputs of which nothing was cut."""
    assert [one.dropped for one in encoded] == [0] * len(encoded)
    return [one.ids for one in encoded]


# --- the published examples ------------------------------------------------------------------------------------------


def test_queries_have_the_published_ids(embedding: EmbeddingTemplate, golden_tokens: dict[str, Any]) -> None:
    goldens = [golden for golden in golden_tokens["embed"] if golden["name"] == "query"]
    assert len(goldens) == 2
    for golden in goldens:
        instruction, query = golden["text"].removeprefix("Instruct: ").split("\nQuery:")
        assert uncut(embedding.encode_queries([query], instruction)) == [golden["ids"]]
        assert embedding.render_query(query, instruction) == golden["text"] + "<|endoftext|>"


def test_documents_have_the_published_ids(embedding_tokenizer: HubTokenizer, golden_tokens: dict[str, Any]) -> None:
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, control_tokens="keep")
    goldens = [golden for golden in golden_tokens["embed"] if golden["name"] in ("document", "misc")]
    assert len(goldens) == 9

    encoded = template.encode_documents([golden["text"] for golden in goldens])

    assert [one.ids for one in encoded] == [golden["ids"] for golden in goldens]


def test_a_query_with_a_space_after_the_label_is_another_query(
    embedding: EmbeddingTemplate, golden_tokens: dict[str, Any]
) -> None:
    [wrong] = [golden for golden in golden_tokens["embed"] if golden["name"] == "WRONG_query_with_space"]

    [ours] = embedding.encode_queries(["What is the capital of China?"], WEB_SEARCH)

    assert ours.ids != wrong["ids"]
    assert [place for place, (a, b) in enumerate(zip(ours.ids, wrong["ids"], strict=True)) if a != b] == [19]


def test_a_truncated_input_has_the_published_ids(
    embedding_tokenizer: HubTokenizer, golden_tokens: dict[str, Any]
) -> None:
    [golden] = [golden for golden in golden_tokens["embed"] if golden["name"].startswith("truncated")]
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=8)

    [encoded] = template.encode_documents([golden["text"]])

    assert encoded == Encoded(golden["ids"], dropped=19)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("canonical", "README transformers"),
        ("vllm", "README-vLLM / evaluation (double newline + duplicated <|im_end|>\\n)"),
        ("jinja", "vLLM jinja as rendered by HF jinja (one trailing newline lost)"),
    ],
)
def test_pairs_have_the_published_ids(
    template: str, name: str, reranker_tokenizer: HubTokenizer, golden_tokens: dict[str, Any]
) -> None:
    goldens = [golden for golden in golden_tokens["rerank_text"] if golden["name"] == name]
    assert len(goldens) == 2
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, template=template)
    for golden in goldens:
        instruction, query, document = fields(golden["text"])
        assert uncut([pair(reranking, query, document, instruction)]) == [golden["ids"]]
        assert reranking.render_pair(query, document, instruction) == golden["text"]


def test_the_three_variants_differ_and_canonical_is_the_default(reranker_tokenizer: HubTokenizer) -> None:
    variants = [
        pair(RerankingTemplate(reranker_tokenizer, RERANKING, template=name), "q", "d").ids
        for name in ("canonical", "vllm", "jinja")
    ]

    assert pair(RerankingTemplate(reranker_tokenizer, RERANKING), "q", "d").ids == variants[0]
    assert [ids[-1] for ids in variants] == [271, 271, 198]
    assert len({tuple(ids) for ids in variants}) == 3


def test_the_answers_are_the_lower_case_words(reranking: RerankingTemplate) -> None:
    assert (reranking.yes_id, reranking.no_id) == (9693, 2152)


def test_the_truncation_that_loses_query_and_document_is_refused(
    reranker_tokenizer: HubTokenizer, golden_tokens: dict[str, Any]
) -> None:
    golden = golden_tokens["rerank_text"][-1]
    assert golden["name"].startswith("README transformers, max_length=64")
    assert 75692 not in golden["ids"], "the published code scores an input without a document"
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=64)

    with pytest.raises(
        InputTooLongError,
        match=r"a pair does not fit into max_length=64.*instruction \(18 tokens .* is 21 token.* to 85",
    ):
        pair(reranking, "What is the capital of China?", "The capital of China is Beijing.")


# --- the end token ---------------------------------------------------------------------------------------------------


@given(text=TEXTS, max_length=st.integers(8, 40))
def test_every_input_ends_in_exactly_one_end_token(
    embedding_tokenizer: HubTokenizer, text: str, max_length: int
) -> None:
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=max_length)

    [encoded] = template.encode_documents([text])

    assert encoded.ids[-1] == END
    assert encoded.ids.count(END) == 1
    assert len(encoded.ids) <= max_length


def test_an_empty_document_is_only_the_end_token(embedding: EmbeddingTemplate) -> None:
    assert embedding.encode_documents([""]) == [Encoded([END])]


def test_white_space_is_kept(embedding: EmbeddingTemplate) -> None:
    blank, trailing, plain = embedding.encode_documents(["  ", "hello \n", "hello"])

    assert len(blank.ids) > 1
    assert trailing.ids != plain.ids


# --- instructions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", ["", "  ", "\n"])
def test_a_query_without_an_instruction_is_raw(embedding: EmbeddingTemplate, instruction: str) -> None:
    assert embedding.encode_queries(["hello world"], instruction) == [Encoded([14990, 1879, END])]
    assert embedding.render_query("hello world", instruction) == "hello world<|endoftext|>"


def test_a_document_with_an_instruction_has_the_template_of_a_query(embedding: EmbeddingTemplate) -> None:
    texts = ["The capital of China is Beijing.", ""]

    assert embedding.encode_documents(texts, WEB_SEARCH) == embedding.encode_queries(texts, WEB_SEARCH)
    assert embedding.render_document("a", WEB_SEARCH) == embedding.render_query("a", WEB_SEARCH)
    assert embedding.encode_documents(texts) != embedding.encode_queries(texts, WEB_SEARCH)


def test_braces_in_texts_are_only_braces(embedding: EmbeddingTemplate, reranking: RerankingTemplate) -> None:
    [query] = embedding.encode_queries(["{query} {instruction} {0}"], "{document}")
    assert (
        embedding.render_query("{query} {instruction} {0}", "{document}")
        == "Instruct: {document}\nQuery:{query} {instruction} {0}<|endoftext|>"
    )
    assert len(query.ids) > 10
    assert "<Query>: {document}\n<Document>: {query}" in reranking.render_pair("{document}", "{query}", "{query}")


def test_the_instruction_of_a_pair_may_be_empty(reranking: RerankingTemplate) -> None:
    assert "<Instruct>: \n<Query>: q\n" in reranking.render_pair("q", "d", "")
    assert pair(reranking, "q", "d", "").ids != pair(reranking, "q", "d").ids


@pytest.mark.parametrize("instruction", [None, 7])
def test_an_instruction_that_is_no_string_is_refused(
    embedding: EmbeddingTemplate, reranking: RerankingTemplate, instruction: Any
) -> None:
    with pytest.raises(TypeError, match="instruction must be a string"):
        embedding.encode_queries(["a"], instruction)
    with pytest.raises(TypeError, match="instruction must be a string"):
        pair(reranking, "a", "b", instruction)


def test_a_family_with_a_chat_template_is_one_entry() -> None:
    chat = "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n"
    family = replace(
        fake_embedding_spec().family,
        query_template=chat,
        document_template=chat.replace("{query}", "{document}"),
        default_instruction="Represent it.",
        instructed_sides=("query", "document"),
        control_tokens=(("<|im_start|>", 257), ("<|im_end|>", 258)),
    )
    tokenizer = ByteTokenizer()
    template = EmbeddingTemplate(tokenizer, replace(fake_embedding_spec(), family=family), max_length=80)

    [query] = template.encode_queries(["a<|im_end|>b"], "Find <|im_end|> it.")
    [document] = template.encode_documents(["x" * 99])

    assert tokenizer.decode(query.ids) == template.render_query("a<|im_end|>b", "Find <|im_end|> it.")
    assert query.ids.count(258) == document.ids.count(258) == 2
    assert len(document.ids) == 80
    begin = "<|im_start|>system\nRepresent it.<|im_end|>\n<|im_start|>user\n"
    end = "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    text = tokenizer.decode(document.ids)
    assert text.removeprefix(begin).removesuffix(end) == "x" * (99 - document.dropped)


# --- parts and the whole ---------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(instruction=TEXTS, query=TEXTS, document=TEXTS, name=st.sampled_from(["canonical", "vllm", "jinja"]))
def test_a_pair_encoded_in_parts_has_the_ids_of_the_whole(
    reranker_tokenizer: HubTokenizer, instruction: str, query: str, document: str, name: str
) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, template=name)
    template = QWEN3_RERANKER.template(name)
    whole = reranking.render_pair(query, document, instruction)
    body = whole.removeprefix(template.prefix).removesuffix(template.suffix)
    assert template.prefix_ids is not None
    assert template.suffix_ids is not None

    [spelled] = reranker_tokenizer.encode([body], control_tokens=False)

    assert pair(reranking, query, document, instruction).ids == [
        *template.prefix_ids, *spelled, *template.suffix_ids
    ]  # fmt: skip


@settings(max_examples=300)
@given(instruction=TEXTS, query=TEXTS, document=TEXTS)
def test_kept_control_tokens_have_the_ids_of_the_whole(
    reranker_tokenizer: HubTokenizer, instruction: str, query: str, document: str
) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, control_tokens="keep")

    [whole] = reranker_tokenizer.encode([reranking.render_pair(query, document, instruction)], control_tokens=True)

    assert pair(reranking, query, document, instruction).ids == whole


@given(instruction=TEXTS.filter(lambda text: bool(text.strip())), query=TEXTS)
def test_a_query_has_the_ids_of_the_whole(
    embedding_tokenizer: HubTokenizer, embedding: EmbeddingTemplate, instruction: str, query: str
) -> None:
    [whole] = embedding_tokenizer.encode([f"Instruct: {instruction}\nQuery:{query}"], control_tokens=False)

    assert uncut(embedding.encode_queries([query], instruction)) == [[*whole, END]]


@given(
    instruction=TEXTS.filter(lambda text: bool(text.strip())), queries=st.lists(TEXTS, min_size=1), cut=st.booleans()
)
def test_the_head_of_a_query_is_its_instruction_and_the_same_for_all(
    embedding_tokenizer: HubTokenizer, instruction: str, queries: list[str], cut: bool
) -> None:
    [head] = embedding_tokenizer.encode([f"Instruct: {instruction}\n"], control_tokens=False)
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=len(head) + 8 if cut else None)
    for encoded in template.encode_queries(queries, instruction):
        assert encoded.ids[: encoded.head] == head


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_the_head_of_a_pair_is_what_stands_before_its_query(
    reranking: RerankingTemplate, reranker_tokenizer: HubTokenizer, instruction: str, queries: list[str], document: str
) -> None:
    encoded = reranking.encode_pairs(queries, [document] * len(queries), instruction)
    heads = [one.ids[: one.head] for one in encoded]
    assert heads == heads[:1] * len(queries)
    for one in encoded:
        assert reranker_tokenizer.decode(one.ids[one.head :]).startswith("<Query>:")


def test_a_raw_document_has_no_head(embedding: EmbeddingTemplate) -> None:
    assert [encoded.head for encoded in embedding.encode_documents(["a", ""])] == [0, 0]


@given(instruction=TEXTS.filter(lambda text: bool(text.strip())), query=TEXTS)
def test_kept_control_tokens_of_a_query_have_the_ids_of_the_whole(
    embedding_tokenizer: HubTokenizer, instruction: str, query: str
) -> None:
    embedding = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, control_tokens="keep")

    [whole] = embedding_tokenizer.encode([f"Instruct: {instruction}\nQuery:{query}"], control_tokens=True)

    assert uncut(embedding.encode_queries([query], instruction)) == [[*whole, END]]


@given(instruction=TEXTS.filter(lambda text: bool(text.strip())), query=TEXTS)
def test_a_query_of_the_demo_model_has_the_ids_of_the_whole(
    demo_tokenizer: HubTokenizer, instruction: str, query: str
) -> None:
    embedding = EmbeddingTemplate(demo_tokenizer, EmbeddingSpec("demo", DEMO_EMBEDDING, 256, 8192))

    [whole] = demo_tokenizer.encode([f"Instruct: {instruction}\nQuery:{query}"], control_tokens=False)

    assert embedding.encode_queries([query], instruction)[0].ids[:-1] == whole


def test_instructions_that_alternate_are_not_mixed_up(
    embedding: EmbeddingTemplate, reranking: RerankingTemplate
) -> None:
    instructions = ["Find it.", "Find another.", "Find it.", ""]

    queries = [embedding.encode_queries(["q"], instruction) for instruction in instructions]
    pairs = [reranking.encode_pairs(["q"], ["d"], instruction) for instruction in instructions]

    for encoded in (queries, pairs):
        assert encoded[0] == encoded[2]
        assert len({tuple(one.ids) for [one] in encoded}) == 3
    [fresh] = reranking.encode_pairs(["q"], ["d"], "Find another.")
    assert pairs[1] == [fresh]


def test_cutting_after_a_label_would_change_the_ids(reranker_tokenizer: HubTokenizer) -> None:
    whole, label, text = reranker_tokenizer.encode(
        ["<Document>: The capital", "<Document>: ", "The capital"], control_tokens=False
    )

    assert label + text != whole


def test_pairs_keep_their_order_and_repeated_texts_their_ids(reranking: RerankingTemplate) -> None:
    queries, documents = ["q1", "q2", "q1"], ["a", "b", "b"]

    encoded = reranking.encode_pairs(queries, documents, WEB_SEARCH)

    assert encoded == [pair(reranking, q, d) for q, d in zip(queries, documents, strict=True)]


# --- control tokens --------------------------------------------------------------------------------------------------


@given(instruction=TEXTS, query=TEXTS, document=TEXTS)
def test_escaped_texts_contain_no_control_ids(
    embedding: EmbeddingTemplate, reranking: RerankingTemplate, instruction: str, query: str, document: str
) -> None:
    inner = pair(reranking, query, document, instruction).ids[PREFIX:-SUFFIX]
    [asked] = embedding.encode_queries([query], instruction)

    assert all(id_ < FIRST_CONTROL_ID for id_ in [*inner, *asked.ids[:-1]])


def test_kept_control_tokens_act(embedding_tokenizer: HubTokenizer) -> None:
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, control_tokens="keep")

    assert template.encode_documents(["a<|endoftext|>b", "<|endoftext|>"]) == [
        Encoded([64, END, 65, END]),
        Encoded([END, END]),
    ]


def test_refused_control_tokens_are_named_with_their_place(
    embedding_tokenizer: HubTokenizer, reranker_tokenizer: HubTokenizer
) -> None:
    embedding = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, control_tokens="error")
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, control_tokens="error")
    message = "contains the control token '<think>' at position 2"

    with pytest.raises(ControlTokenError, match=rf"documents\[1\] {message}"):
        embedding.encode_documents(["fine", "a <think>"])
    with pytest.raises(ControlTokenError, match=f"instruction {message}"):
        embedding.encode_queries(["fine"], "a <think>")
    with pytest.raises(ControlTokenError, match=rf"queries\[0\] {message}"):
        pair(reranking, "a <think>", "fine")
    assert len(embedding.encode_documents(["fine", "<|almost|>"])) == 2


# --- truncation ------------------------------------------------------------------------------------------------------


@given(max_length=st.integers(20, 60), words=st.integers(0, 80))
def test_a_query_keeps_its_instruction_and_its_end(max_length: int, words: int, embedding_tokenizer: Any) -> None:
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=max_length)
    query = "word" + " word" * words

    [cut] = template.encode_queries([query], "Find it")

    [whole] = EmbeddingTemplate(embedding_tokenizer, EMBEDDING).encode_queries([query], "Find it")
    assert len(cut.ids) == min(len(whole.ids), max_length)
    assert cut.dropped == len(whole.ids) - len(cut.ids)
    assert cut.ids == [*whole.ids[: len(cut.ids) - 1], END]


def test_only_what_is_too_long_is_cut(embedding_tokenizer: HubTokenizer) -> None:
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=10)

    encoded = template.encode_documents(["word" + " word" * 8, "word" + " word" * 9, "", "word" + " word" * 99])

    assert [one.dropped for one in encoded] == [0, 1, 0, 91]
    assert [len(one.ids) for one in encoded] == [10, 10, 1, 10]


def test_an_instruction_that_leaves_no_room_is_refused(embedding_tokenizer: HubTokenizer) -> None:
    template = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=20)

    with pytest.raises(InputTooLongError, match=r"no room for queries in max_length=20: .* 1 token"):
        template.encode_queries(["", "What is the capital of China?"], WEB_SEARCH)


def test_an_input_that_is_too_long_is_refused_on_demand(
    embedding_tokenizer: HubTokenizer, reranker_tokenizer: HubTokenizer
) -> None:
    embedding = EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=10, on_overflow="error")
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=100, on_overflow="error")

    with pytest.raises(InputTooLongError, match=r"documents\[1\] has 12 tokens.*max_length is 10"):
        embedding.encode_documents(["fine", "word" + " word" * 10])
    with pytest.raises(InputTooLongError, match=r"pair 1 has 182 tokens .*documents\[1\].*max_length is 100"):
        reranking.encode_pairs(["q", "q"], ["d", "word" + " word" * 108], WEB_SEARCH)


def test_the_end_of_a_long_document_is_cut_first(reranker_tokenizer: HubTokenizer) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=150)
    query, document = "word" + " word" * 20, "thing" + " thing" * 500

    cut = pair(reranking, query, document)

    whole = pair(RerankingTemplate(reranker_tokenizer, RERANKING), query, document)
    assert len(cut.ids) == 150
    assert cut.dropped == len(whole.ids) - 150
    assert cut.ids == [*whole.ids[: 150 - SUFFIX], *whole.ids[-SUFFIX:]]


def test_a_long_query_is_cut_when_the_document_is_at_its_least(reranker_tokenizer: HubTokenizer) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=160)
    query, document = "word" + " word" * 500, "thing" + " thing" * 500

    cut = pair(reranking, query, document)

    text = reranker_tokenizer.decode(cut.ids)
    assert len(cut.ids) == 160
    assert text.count("thing") == 32
    assert 32 < text.count("word") < 60
    assert re.search(r"<Query>: word( word)+\n<Document>: thing( thing)+<\|im_end\|>", text)


def test_a_short_document_is_never_cut_for_a_long_query(reranker_tokenizer: HubTokenizer) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=160)

    text = reranker_tokenizer.decode(pair(reranking, "word" + " word" * 500, "Beijing is the capital.").ids)

    assert "\n<Document>: Beijing is the capital.<|im_end|>" in text


def test_a_query_that_ends_in_punctuation_keeps_its_line_break_when_it_is_cut(reranker_tokenizer: HubTokenizer) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=120, template="vllm")

    text = reranker_tokenizer.decode(pair(reranking, "word " * 100 + "really?", "Beijing").ids)

    assert re.search(r" word\n\n<Document>: Beijing<\|im_end\|>\n<\|im_end\|>", text)


@given(query=TEXTS, document=TEXTS, times=st.integers(1, 40), max_length=st.integers(150, 300))
def test_a_truncated_pair_is_complete_and_counts_what_it_lost(
    reranker_tokenizer: HubTokenizer, query: str, document: str, times: int, max_length: int
) -> None:
    query, document = query * times, document * times
    whole = pair(RerankingTemplate(reranker_tokenizer, RERANKING), query, document, "Find it")

    cut = pair(RerankingTemplate(reranker_tokenizer, RERANKING, max_length=max_length), query, document, "Find it")

    assert len(cut.ids) == min(max_length, len(whole.ids))
    assert cut.dropped == len(whole.ids) - len(cut.ids)
    assert cut.ids[:PREFIX] == whole.ids[:PREFIX]
    assert cut.ids[-SUFFIX:] == whole.ids[-SUFFIX:]
    assert "<Document>:" in reranker_tokenizer.decode(cut.ids)


def test_an_instruction_that_leaves_no_room_for_a_pair_is_refused(reranker_tokenizer: HubTokenizer) -> None:
    reranking = RerankingTemplate(reranker_tokenizer, RERANKING, max_length=200)

    with pytest.raises(
        InputTooLongError, match=r"a pair does not fit .* the instruction \(20\d tokens with its label\) is \d+ token"
    ):
        pair(reranking, "q", "d", "word " * 200)


@pytest.mark.parametrize("max_length", [-1, 0, 7, 32_769])
def test_a_length_out_of_range_is_refused(embedding_tokenizer: HubTokenizer, max_length: int) -> None:
    message = f"max_length must be between 8 and 32768 for Qwen3-Embedding-0.6B, but got {max_length}"
    with pytest.raises(ValueError, match=message):
        EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=max_length)


def test_the_shortest_pair_has_room_for_more_than_its_template(reranker_tokenizer: HubTokenizer) -> None:
    with pytest.raises(ValueError, match=r"max_length must be between 64 and 32768 for Qwen3-Reranker-0\.6B"):
        RerankingTemplate(reranker_tokenizer, RERANKING, max_length=63)


def test_the_default_length_is_the_models_own_if_that_is_less(embedding_tokenizer: HubTokenizer) -> None:
    short = EmbeddingSpec("tiny", QWEN3_EMBEDDING, hidden_size=64, max_length=512)

    assert EmbeddingTemplate(embedding_tokenizer, EMBEDDING).max_length == 8192
    assert EmbeddingTemplate(embedding_tokenizer, short).max_length == 512


@pytest.mark.parametrize("max_length", ["8192", 100.0, True])
def test_a_length_that_is_no_integer_is_refused(embedding_tokenizer: HubTokenizer, max_length: Any) -> None:
    with pytest.raises(TypeError, match="max_length must be an integer"):
        EmbeddingTemplate(embedding_tokenizer, EMBEDDING, max_length=max_length)


# --- tokenizers and options that do not fit --------------------------------------------------------------------------


class ShiftedTokenizer(ByteTokenizer):
    """Its control ids are one too high."""

    def encode(self, texts: Any, *, control_tokens: bool) -> list[list[int]]:
        return [[id_ + (id_ > 255) for id_ in ids] for ids in super().encode(texts, control_tokens=control_tokens)]


def test_a_tokenizer_with_another_end_token_is_refused() -> None:
    with pytest.raises(CorruptCheckpointError, match=r"gives \[257\] for '<\|endoftext\|>', but .* has \[256\]"):
        EmbeddingTemplate(ShiftedTokenizer(), fake_embedding_spec())
    with pytest.raises(CorruptCheckpointError, match="gives"):
        RerankingTemplate(ShiftedTokenizer(), fake_reranking_spec())


def test_a_tokenizer_that_gives_another_prefix_is_refused(reranker_tokenizer: HubTokenizer) -> None:
    class Odd(HubTokenizer):
        def __init__(self) -> None:
            pass

        def encode(self, texts: Any, *, control_tokens: bool) -> list[list[int]]:
            changed = [text.replace("Judge", "judge") for text in texts]
            return reranker_tokenizer.encode(changed, control_tokens=control_tokens)

    with pytest.raises(CorruptCheckpointError, match="tokenizer that was published with these weights"):
        RerankingTemplate(Odd(), RERANKING)


def test_answers_of_more_than_one_token_are_refused() -> None:
    spec = fake_reranking_spec()
    words = RerankingSpec("bytes", QWEN3_RERANKER, max_length=512)
    with pytest.raises(CorruptCheckpointError):
        RerankingTemplate(ByteTokenizer(), words)
    assert RerankingTemplate(ByteTokenizer(), spec).yes_id == ord("y")


@pytest.mark.parametrize("option", ["on_overflow", "control_tokens"])
def test_an_unknown_option_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .* but got 'cut'"):
        EmbeddingTemplate(ByteTokenizer(), fake_embedding_spec(), **{option: "cut"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{option} must be one of .* but got 'cut'"):
        RerankingTemplate(ByteTokenizer(), fake_reranking_spec(), **{option: "cut"})  # type: ignore[arg-type]


# --- texts -----------------------------------------------------------------------------------------------------------


def test_no_texts_give_no_inputs(embedding: EmbeddingTemplate, reranking: RerankingTemplate) -> None:
    assert check_texts("documents", []) == []
    assert embedding.encode_documents([]) == []
    assert embedding.encode_queries((), WEB_SEARCH) == []
    assert reranking.encode_pairs([], [], WEB_SEARCH) == []


@pytest.mark.parametrize(
    "texts", [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], dtype=object), iter(["a", "b"])]
)
def test_anything_that_yields_texts_in_order_is_accepted(texts: Any) -> None:
    checked = check_texts("documents", texts)

    assert checked == ["a", "b"]
    assert {type(text) for text in checked} == {str}


def test_one_single_string_is_refused_with_advice() -> None:
    message = r"documents must be a list of strings, but got a single string; write \[text\]"
    with pytest.raises(TypeError, match=message):
        check_texts("documents", "hello")


@pytest.mark.parametrize("texts", [None, 3, b"hello", {"a": 1}, {"a", "b"}, frozenset("a")])
def test_what_is_no_list_is_refused(texts: Any) -> None:
    with pytest.raises(TypeError, match=f"queries must be a list of strings, but got {type(texts).__name__}"):
        check_texts("queries", texts)


@pytest.mark.parametrize("text", [None, 3, b"hello", ["a"], float("nan")])
def test_what_is_no_string_is_refused_with_its_index(text: Any) -> None:
    with pytest.raises(TypeError, match=rf"documents\[2\] is {type(text).__name__}"):
        check_texts("documents", ["a", "b", text])


def test_a_lone_surrogate_is_refused_with_its_place(embedding: EmbeddingTemplate, reranking: RerankingTemplate) -> None:
    message = r"documents\[1\] contains the lone surrogate U\+D83D at position 3"
    with pytest.raises(InputError, match=message):
        check_texts("documents", ["fine 😀", "abc\ud83d"])
    with pytest.raises(InputError, match="instruction contains the lone surrogate"):
        embedding.encode_queries(["a"], "\udc00")
    with pytest.raises(InputError, match=r"queries\[0\]"):
        pair(reranking, "\udc00", "d")


def test_queries_and_documents_of_different_number_are_refused(reranking: RerankingTemplate) -> None:
    with pytest.raises(ValueError, match="must have the same length, but got 1 and 2"):
        reranking.encode_pairs(["q"], ["a", "b"], WEB_SEARCH)


def test_a_zero_byte_is_a_token_like_others(embedding: EmbeddingTemplate) -> None:
    [encoded] = embedding.encode_documents(["a\x00b"])

    assert encoded.ids == [64, 188, 65, END]


def test_a_text_of_a_megabyte_is_cut(embedding: EmbeddingTemplate) -> None:
    [encoded] = embedding.encode_documents(["word " * 200_000])

    assert len(encoded.ids) == 8192
    assert encoded.dropped == 200_000 + 2 - 8192


def test_ten_thousand_empty_documents_are_ten_thousand_inputs(embedding: EmbeddingTemplate) -> None:
    assert embedding.encode_documents([""] * 10_000) == [Encoded([END])] * 10_000


@pytest.mark.parametrize("policy", ["escape", "error"])
def test_a_hundred_thousand_documents_keep_their_order(policy: ControlTokens) -> None:
    template = EmbeddingTemplate(ByteTokenizer(), fake_embedding_spec(), control_tokens=policy)

    encoded = template.encode_documents([str(number) for number in range(100_000)])

    assert [bytes(one.ids[:-1]).decode() for one in encoded] == [str(number) for number in range(100_000)]


def test_inputs_share_no_list(embedding: EmbeddingTemplate, reranking: RerankingTemplate) -> None:
    first, second = embedding.encode_documents(["same", "same"])
    one, other = reranking.encode_pairs(["q", "q"], ["d", "d"], WEB_SEARCH)

    assert first.ids is not second.ids
    assert one.ids is not other.ids
