"""The losses against the formulas of arXiv 2506.05176, section 3, written out with loops."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qwen_retrieval.templates import RerankingTemplate
from qwen_retrieval.training import InfoNCELoss, InfoNCESettings, info_nce, last_logits, matryoshka, yes_no_loss
from qwen_retrieval.training.columns import text_ids
from qwen_retrieval.training.losses import DocumentMask, Term
from tests.checkpoints import TINY, qwen3_config


def vectors(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random, with a common direction, so that similarities lie on both sides of the limit."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.6).to(dtype)


def cosine(a: Tensor, b: Tensor) -> float:
    left, right = list(map(float, a)), list(map(float, b))
    return sum(x * y for x, y in zip(left, right, strict=True)) / math.hypot(*left) / math.hypot(*right)


def literal(  # noqa: C901 - the formula in one place
    queries: Tensor, documents: Tensor, negatives: Tensor, there: Tensor, ids: Tensor, asked: InfoNCESettings
) -> float:
    """L_embedding, term by term: i, k and j are those of the report."""
    pairs, total = range(len(queries)), 0.0
    margin = math.inf if asked.margin is None else asked.margin
    for i in pairs:
        positive = cosine(queries[i], documents[i])
        z = [positive]

        def masked(score: float, text: int, i: int = i, positive: float = positive) -> bool:
            return score > positive + margin or text == int(ids[i, 0])

        for k in range(negatives.shape[1]):
            score = cosine(queries[i], negatives[i, k])
            if there[i, k] and not masked(score, int(ids[i, 1 + k])):
                z.append(score)
        for j in (j for j in pairs if j != i):
            score = cosine(queries[i], queries[j])
            if "query-query" in asked.terms and not masked(score, int(ids[j, 0])):
                z.append(score)
            others = [(documents[j], int(ids[j, 0]))]
            if asked.shared_negatives:
                others += [
                    (negatives[j, k], int(ids[j, 1 + k])) for k in range(negatives.shape[1]) if bool(there[j, k])
                ]
            for other, text in others:
                score, between = cosine(queries[i], other), cosine(documents[i], other)
                if "query-document" in asked.terms and not masked(score, text):
                    z.append(score)
                judged = {"query": score, "document": between, "none": -1.0}[asked.document_mask]
                if "document-document" in asked.terms and not masked(judged, text):
                    z.append(between)
        total -= math.log(math.exp(positive / asked.temperature) / sum(math.exp(s / asked.temperature) for s in z))
    return total / len(queries)


terms = st.lists(st.sampled_from(get_args(Term)), unique=True).map(tuple)
all_settings = st.builds(
    InfoNCESettings,
    temperature=st.sampled_from([0.02, 0.05, 1.0]),
    margin=st.sampled_from([None, 0.03, 0.1, 0.5]),  # not 0, where rounding decides between equal similarities
    terms=terms,
    document_mask=st.sampled_from(get_args(DocumentMask)),
    shared_negatives=st.booleans(),
)


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 6), st.integers(0, 10_000), all_settings, st.data())
def test_info_nce_is_the_formula_of_the_report(
    pairs: int, count: int, length: int, seed: int, asked: InfoNCESettings, data: st.DataObject
) -> None:
    queries, texts = vectors(pairs, length, seed=seed), vectors(4 * pairs, length, seed=seed + 1)
    drawn = st.lists(st.integers(0, len(texts) - 1), min_size=pairs * (1 + count), max_size=pairs * (1 + count))
    ids = torch.tensor(data.draw(drawn)).view(pairs, 1 + count)
    there = torch.tensor(data.draw(st.lists(st.booleans(), min_size=pairs * count, max_size=pairs * count)))
    there = there.bool().view(pairs, count)
    documents, negatives = texts[ids[:, 0]], texts[ids[:, 1:]]
    got = info_nce(queries, documents, negatives, negative_mask=there, text_ids=ids, settings=asked)
    expected = literal(queries, documents, negatives, there, ids, asked)
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_every_setting_changes_the_loss_of_this_batch() -> None:
    parts = vectors(7, 12, seed=1), vectors(7, 12, seed=2), vectors(7, 3, 12, seed=3)
    variants: list[dict[str, Any]] = [
        {}, {"margin": None}, {"margin": 0.0}, {"document_mask": "document"}, {"document_mask": "none"},
        {"shared_negatives": True}, {"temperature": 0.1}, {"terms": ()}, {"terms": ("query-document",)},
        {"terms": ("query-query",)}, {"terms": ("document-document",)},
    ]  # fmt: skip
    losses = [info_nce(*parts, settings=InfoNCESettings(**variant)).item() for variant in variants]
    assert len({round(loss, 6) for loss in losses}) == len(variants)


@pytest.mark.parametrize("shared_negatives", [False, True])
def test_the_gradient_of_info_nce_is_that_of_its_value(shared_negatives: bool) -> None:
    parts = [vectors(3, 4, seed=1), vectors(3, 4, seed=2), vectors(3, 2, 4, seed=3)]
    asked = InfoNCESettings(temperature=0.5, shared_negatives=shared_negatives)
    leaves = [part.requires_grad_() for part in parts]
    assert torch.autograd.gradcheck(lambda q, d, n: info_nce(q, d, n, settings=asked), leaves)


def test_the_same_document_under_another_index_is_no_negative() -> None:
    queries, documents = vectors(2, 6, seed=1), vectors(1, 6, seed=2).expand(2, -1)
    ids = torch.tensor([[7], [7]])
    assert info_nce(queries, documents, text_ids=ids).item() == 0
    assert info_nce(queries, documents).item() > 0


def test_a_negative_that_is_the_positive_itself_does_not_count() -> None:
    queries, documents = vectors(1, 6, seed=1), vectors(1, 6, seed=2)
    assert info_nce(queries, documents, documents[:, None], text_ids=torch.tensor([[3, 3]])).item() == 0


def test_permuting_the_batch_permutes_the_gradients() -> None:
    parts = [vectors(6, 5, seed=1), vectors(6, 5, seed=2), vectors(6, 2, 5, seed=3)]
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def gradients(given: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [part.clone().requires_grad_() for part in given]
        return torch.autograd.grad(info_nce(*leaves), leaves)

    for before, after in zip(gradients(parts), gradients([part[order] for part in parts]), strict=True):
        torch.testing.assert_close(after, before[order])


def test_the_loss_of_perfectly_separated_pairs_is_almost_zero() -> None:
    queries = torch.eye(6, 12)
    assert 0 <= info_nce(queries, queries, torch.eye(12)[6:, None]).item() < 1e-6


def test_info_nce_of_one_pair_is_zero() -> None:
    assert info_nce(vectors(1, 4, seed=1), vectors(1, 4, seed=2)).item() == 0


def test_the_length_of_the_vectors_does_not_matter() -> None:
    queries, documents = vectors(5, 4, seed=1), vectors(5, 4, seed=2)
    assert info_nce(3 * queries, documents / 7).item() == pytest.approx(info_nce(queries, documents).item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_vectors_cost_no_precision_of_the_loss(dtype: torch.dtype) -> None:
    queries, documents = (vectors(9, 16, seed=seed, dtype=dtype) for seed in (1, 2))
    asked = InfoNCESettings(temperature=0.01)
    expected = info_nce(queries.double(), documents.double(), settings=asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = info_nce(queries, documents, settings=asked)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)


def test_gradients_are_finite_where_texts_are_equal() -> None:
    queries = vectors(3, 5, seed=1, dtype=torch.bfloat16).requires_grad_()
    loss = info_nce(queries, queries.detach().clone(), queries.detach()[:, None])
    loss.backward()  # type: ignore[no-untyped-call]
    assert queries.grad is not None
    assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("documents", {"documents": torch.ones(2, 4)}),
        ("negatives", {"negatives": torch.ones(2, 1, 4)}),
        ("negative_mask", {"negatives": torch.ones(3, 1, 4), "negative_mask": torch.ones(3, 2)}),
        ("text_ids", {"text_ids": torch.zeros(3, 2)}),
    ],
    ids=["documents", "negatives", "mask", "ids"],
)
def test_shapes_that_do_not_fit_are_refused_by_name(name: str, arguments: dict[str, Tensor]) -> None:
    given: dict[str, Any] = {"queries": torch.ones(3, 4), "documents": torch.ones(3, 4), **arguments}
    with pytest.raises(ValueError, match=f"^{name} must have the shape"):
        info_nce(**given)


def test_no_pairs_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="queries must have the shape"):
        info_nce(torch.ones(0, 4), torch.ones(0, 4))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"terms": ("dq",)}, {"document_mask": "both"}], ids=str)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InfoNCESettings(**wrong)


class Table(nn.Module):
    """Embeds a text as the mean of its tokens' vectors; stands in for a SentenceTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8, dtype=torch.float64)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"][..., None]
        return {"sentence_embedding": (self.words(features["input_ids"]) * mask).sum(1) / mask.sum(1)}


def column(*texts: list[int], left: bool = False) -> dict[str, Tensor]:
    length = max(map(len, texts))
    pads = [[0] * (length - len(text)) for text in texts]
    ids = [pad + text if left else text + pad for pad, text in zip(pads, texts, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(t) if left else [1] * len(t) + [0] * len(p) for p, t in zip(pads, texts, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_the_loss_of_a_trainer_sees_columns_of_queries_documents_and_negatives() -> None:
    model = Table()
    columns = [column([1, 2], [3], [4]), column([5], [6, 7], [5]), column([8], [9], [2, 2]), column([5], [1], [3])]
    loss = InfoNCELoss(model)
    queries, documents, *negatives = (model(one)["sentence_embedding"] for one in columns)
    ids = torch.tensor([[0, 2, 0], [1, 3, 4], [0, 5, 6]])
    expected = info_nce(queries, documents, torch.stack(negatives, 1), text_ids=ids)
    torch.testing.assert_close(loss(columns, torch.zeros(3)), expected)
    loss(columns).backward()
    assert model.words.weight.grad is not None


def test_a_loss_without_documents_is_refused() -> None:
    with pytest.raises(ValueError, match="two columns at least"):
        InfoNCELoss(Table())([column([1])])


def test_texts_are_the_same_if_their_tokens_are_whatever_the_padding() -> None:
    flat = {"input_ids": torch.tensor([[1, 2, 3, 1]]), "cu_seq_lens_q": torch.tensor([0, 2, 3, 4])}
    ids = text_ids([column([1, 2], [1, 2, 0], [4]), column([1, 2], [4], [1, 2, 0], left=True), flat])
    assert ids.tolist() == [[0, 0, 0], [1, 2, 3], [2, 1, 4]]


def test_matryoshka_is_the_weighted_sum_over_prefixes() -> None:
    queries, documents = vectors(5, 12, seed=4), vectors(5, 12, seed=5)
    parts = [info_nce(queries[:, :n], documents[:, :n]).item() for n in (4, 8, 12)]
    assert matryoshka(info_nce, (queries, documents), (4, 8, 12)).item() == pytest.approx(sum(parts))
    weighted = matryoshka(info_nce, (queries, documents), (4, 8, 12), (0.5, 0.25, 2)).item()
    assert weighted == pytest.approx(0.5 * parts[0] + 0.25 * parts[1] + 2 * parts[2])


@pytest.mark.parametrize(
    ("dimensions", "weights", "message"),
    [((0, 4), None, "dimensions"), ((5,), None, "dimensions"), ((2, 2), None, "dimensions"), ((), None, "dimensions"),
     ((2, 4), (1.0,), "weights")],
    ids=["zero", "too-long", "twice", "none", "weights"],
)  # fmt: skip
def test_lengths_that_a_vector_does_not_have_are_refused(
    dimensions: tuple[int, ...], weights: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message} must be"):
        matryoshka(info_nce, (vectors(3, 4, seed=1), vectors(3, 4, seed=2)), dimensions, weights)


@pytest.mark.parametrize("over", ["vocabulary", "answers"])
def test_the_yes_no_loss_is_the_negative_log_likelihood_of_the_label(over: Any) -> None:
    logits, labels, total = vectors(5, 9, seed=8), torch.tensor([1, 0, 0, 1, 1]), 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        tokens = row if over == "vocabulary" else [row[7], row[2]]
        total -= math.log(math.exp(row[7 if label else 2]) / sum(map(math.exp, tokens)))
    assert yes_no_loss(logits, labels, yes_id=7, no_id=2, over=over).item() == pytest.approx(total / 5)
    given = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: yes_no_loss(x, labels, yes_id=7, no_id=2, over=over), given)


@pytest.mark.parametrize("over", ["vocabulary", "answers"])
def test_the_yes_no_loss_is_finite_for_certain_answers_in_bfloat16(over: Any) -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0], [-300.0, 300.0, 0.0]], dtype=torch.bfloat16).requires_grad_()
    right = yes_no_loss(logits, torch.tensor([True, False]), yes_id=0, no_id=1, over=over)
    wrong = yes_no_loss(logits, torch.tensor([False, True]), yes_id=0, no_id=1, over=over)
    assert right.dtype == torch.float32
    assert (right.item(), wrong.item()) == (0.0, 600.0)
    wrong.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_labels_and_answer_spaces_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must have the shape"):
        yes_no_loss(torch.ones(3, 4), torch.ones(3, 1), yes_id=0, no_id=1)
    with pytest.raises(ValueError, match="over must be one of"):
        yes_no_loss(torch.ones(3, 4), torch.ones(3), yes_id=0, no_id=1, over="tokens")  # type: ignore[arg-type]


def test_last_logits_are_those_of_each_input_alone() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**qwen3_config(TINY, vocab_size=60) | {"dtype": "float32"}))
    inputs = [[5, 6, 7, 8, 9], [1], [50, 4, 3]]
    with torch.no_grad():
        got = last_logits(model, inputs, pad_id=0)
        alone = torch.cat([model(torch.tensor([one])).logits[:, -1] for one in inputs])
    assert got.shape == (3, 60)
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-4)


def test_the_yes_no_loss_on_the_template_is_minus_the_log_probability_that_the_reranker_gives() -> None:
    from transformers import Qwen3ForCausalLM

    from qwen_retrieval import Reranker
    from qwen_retrieval.hub import model_folder

    folder, query, documents = model_folder("demo", "reranking"), "copy a file", ["how to copy files", "the weather"]
    with Reranker.from_pretrained("demo", device="cpu", dtype="float32") as reranker:
        template = RerankingTemplate(reranker.tokenizer, reranker.spec)
        scores = reranker.score(query, documents)
        encoded = template.encode_pairs([query] * 2, documents, reranker.instruction)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = last_logits(model, [one.ids for one in encoded], pad_id=0)
    for row, score in zip(logits, scores, strict=True):
        loss = yes_no_loss(row[None], torch.tensor([1]), yes_id=template.yes_id, no_id=template.no_id, over="answers")
        assert math.exp(-loss.item()) == pytest.approx(float(score), abs=1e-4)
