"""mteb's adapters: what the models see in each task, and the scores that come out, against literal formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.specs import CHECKPOINTS
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    FakeRerankingEngine,
    fake_embedding_spec,
    fake_reranking_spec,
)
from qwen_retrieval.types import FloatArray, TokenIds

# Its own dependencies warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")
mteb = pytest.importorskip("mteb", reason='needs mteb: pip install "qwen-retrieval[mteb]"', exc_type=ImportError)

from mteb.mocks.mock_run import is_dependency_error  # noqa: E402
from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchCrossEncoderWrapper  # noqa: E402
from mteb.models.cache_wrappers import CachedEmbeddingWrapper  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from qwen_retrieval.evaluation.mteb import (  # noqa: E402
    MtebEmbedder,
    MtebReranker,
    paper_embedder,
    paper_instruction,
    paper_reranker,
    register,
    run_mteb,
)
from qwen_retrieval.evaluation.mteb.run import benchmark_tasks  # noqa: E402
from qwen_retrieval.evaluation.published import BENCHMARKS  # noqa: E402
from tests.command import Loads, fails  # noqa: E402
from tests.evaluation import mteb_tasks as local  # noqa: E402

TABLE: dict[str, Any] = json.loads(
    resources.files("qwen_retrieval").joinpath("task_prompts.json").read_text(encoding="utf-8")
)
CLAIM = TABLE["SciFact"]
SIMILAR = "Retrieve semantically similar text"


class SeenEmbedding(FakeEmbeddingEngine):
    """Keeps what it is given, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def embed(self, batch: list[TokenIds]) -> FloatArray:
        self.seen += [ByteTokenizer().decode(ids).removesuffix("<|endoftext|>") for ids in batch]
        return super().embed(batch)


class SeenReranking(FakeRerankingEngine):
    """Keeps what it is given, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def score(self, batch: list[TokenIds]) -> FloatArray:
        self.seen += [ByteTokenizer().decode(ids) for ids in batch]
        return super().score(batch)


@pytest.fixture
def engine() -> SeenEmbedding:
    return SeenEmbedding()


@pytest.fixture
def judge() -> SeenReranking:
    return SeenReranking()


@pytest.fixture
def embedder(engine: SeenEmbedding) -> Iterator[Embedder]:
    with Embedder(engine, ByteTokenizer(), fake_embedding_spec()) as embedder:
        yield embedder


@pytest.fixture
def reranker(judge: SeenReranking) -> Iterator[Reranker]:
    with Reranker(judge, ByteTokenizer(), fake_reranking_spec(), template="vllm") as reranker:
        yield reranker


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and no results of earlier runs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))


def scores(model: Any, task: Any) -> dict[str, Any]:
    """What mteb computes for the only split of a task."""
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    found: dict[str, Any] = result.task_results[0].scores["test"][0]
    return found


def instructed(instruction: str, text: str) -> str:
    return f"Instruct: {instruction}\nQuery:{text}"


def documents() -> dict[str, str]:
    return {id_: f"{title} {text}".strip() for id_, (title, text) in local.CORPUS.items()}


def ndcg(ranking: Sequence[str], relevant: Mapping[str, int], k: int = 10) -> float:
    """Sum of gain / log2(rank + 1), over that of the best order (Järvelin and Kekäläinen 2002, as in trec_eval)."""
    gains = [relevant.get(id_, 0) for id_ in ranking[:k]]
    best = sorted(relevant.values(), reverse=True)[:k]
    return _dcg(gains) / _dcg(best)


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def p_mrr(ranks: Callable[[str], Sequence[str]]) -> float:
    """FollowIR (Weller et al. 2024, section 4.1): how far a changed document moves, -1 to 1; mean over queries."""
    means = []
    for query, changed in local.CHANGED.items():
        values = []
        for document in changed:
            before = ranks(f"{query}-og").index(document) + 1
            after = ranks(f"{query}-changed").index(document) + 1
            values.append(after / before - 1 if before >= after else 1 - before / after)
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


def by_score(values: Mapping[str, float]) -> list[str]:
    """Ids by falling score; equal ones by falling id, as trec_eval has them."""
    return sorted(values, key=lambda id_: (values[id_], id_), reverse=True)


def cosines(embedder: Embedder, query: str, instruction: str, texts: Mapping[str, str]) -> dict[str, float]:
    found = embedder.embed_documents(list(texts.values())) @ embedder.embed_queries([query], instruction=instruction)[0]
    return dict(zip(texts, found.tolist(), strict=True))


def test_the_adapters_satisfy_the_protocols_of_mteb(embedder: Embedder, reranker: Reranker) -> None:
    assert isinstance(MtebEmbedder(embedder), EncoderProtocol)
    assert not isinstance(MtebEmbedder(embedder), CrossEncoderProtocol)
    assert isinstance(MtebReranker(reranker), CrossEncoderProtocol)
    assert not isinstance(MtebReranker(reranker), EncoderProtocol)


@pytest.mark.slow
def test_the_embedder_passes_every_mock_task_of_mteb(embedder: Embedder) -> None:
    results = dict(mteb.mock_run(MtebEmbedder(embedder)).items())

    ran = {name: result for name, result in results.items() if result is not None}  # the others are no text
    failed = {name: result for name, result in ran.items() if hasattr(result, "exception")}
    assert {name: str(result) for name, result in failed.items() if not is_dependency_error(result)} == {}
    assert len(ran) - len(failed) >= 28


def test_the_reranker_passes_every_mock_task_that_has_candidates(reranker: Reranker) -> None:
    results = mteb.mock_run(MtebReranker(reranker))

    failed = {name: result.exception for name, result in results.items() if hasattr(result, "exception")}
    assert {name for name, result in results.items() if result is not None} - set(failed) == {
        "MockRerankingTask", "MockMultilingualRerankingTask", "MockInstructionReranking",
        "MockMultilingualInstructionReranking",
    }  # fmt: skip
    # mteb gives plain retrieval to cross-encoders too, and refuses it then.
    assert all("requires top_ranked documents" in message for message in failed.values())


def test_a_query_without_candidates_is_left_out_as_mteb_does_it(reranker: Reranker) -> None:
    from datasets import Dataset

    search = SearchCrossEncoderWrapper(MtebReranker(reranker))
    place: dict[str, Any] = {"task_metadata": local.LocalRetrieval.metadata, "hf_split": "test", "hf_subset": "default"}
    corpus = Dataset.from_list([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    search.index(corpus, **place, encode_kwargs={})
    queries = Dataset.from_list([{"id": "q1", "text": "which"}])
    top_ranked = {"q1": ["a", "b"], "q2": ["b"]}

    found = search.search(queries, **place, top_k=2, encode_kwargs={}, top_ranked=top_ranked)

    assert {query: set(scores) for query, scores in found.items()} == {"q1": {"a", "b"}}


def test_vectors_from_mtebs_cache_are_those_of_the_model(
    embedder: Embedder, engine: SeenEmbedding, tmp_path: Path
) -> None:
    model = CachedEmbeddingWrapper(MtebEmbedder(embedder), cache_path=tmp_path / "vectors")
    first = scores(model, local.LocalSimilarity())
    computed = engine.inputs

    second = scores(model, local.LocalSimilarity())

    assert engine.inputs == computed
    assert (
        second["main_score"]
        == first["main_score"]
        == scores(MtebEmbedder(embedder), local.LocalSimilarity())["main_score"]
    )


def test_only_the_queries_of_a_retrieval_task_are_instructed(embedder: Embedder, engine: SeenEmbedding) -> None:
    scores(MtebEmbedder(embedder), local.LocalRetrieval())

    queries = {instructed(CLAIM, text) for text in local.QUERIES.values()}
    assert set(engine.seen) == queries | set(documents().values())


def test_both_sides_of_a_reranking_task_are_instructed(embedder: Embedder, engine: SeenEmbedding) -> None:
    scores(MtebEmbedder(embedder), local.LocalReranking())

    texts = {*local.QUERIES.values(), *documents().values()}
    assert set(engine.seen) == {instructed(TABLE["AskUbuntuDupQuestions"], text) for text in texts}


@pytest.mark.parametrize("task", [local.LocalSimilarity, local.LocalPairs])
def test_pairs_are_instructed_alike_whatever_the_table_says(
    embedder: Embedder, engine: SeenEmbedding, task: Callable[[], Any]
) -> None:
    scores(MtebEmbedder(embedder), task())

    assert set(engine.seen) == {instructed(SIMILAR, text) for pair in local.PAIRS for text in pair[:2]}


def test_queries_with_instructions_of_their_own_have_both(embedder: Embedder, engine: SeenEmbedding) -> None:
    scores(MtebEmbedder(embedder), local.LocalInstructions())

    task = TABLE["Core17InstructionRetrieval"]
    queries = {instructed(task, f"{text} {own}") for text, own in local.ASKED.values()}
    assert set(engine.seen) == queries | set(documents().values())


def paper_code(name: str, type_: str, prompt: Any, side: str | None, class_prompt: str | None) -> str:
    """`get_instruction` and `format_instruction` of evaluation/qwen3_embedding_model.py, line by line.

    `prompt` and `class_prompt` are what mteb 1.38.9 has for the task, `side` its `prompt_type`.
    """
    type_ = type_.replace("InstructionReranking", "InstructionRetrieval")  # its name then
    symmetric = False
    instruction: str | None
    if name in TABLE:
        entry = TABLE[name]
        instruction = entry
        if isinstance(entry, dict):
            instruction = entry.get(side, "")
            symmetric = True
    elif isinstance(prompt, dict) and side:
        instruction = prompt.get("document" if side == "passage" else side, "")
    else:
        instruction = prompt or class_prompt
    if "Retrieval" in type_ and not symmetric and side != "query":
        return ""
    if type_ in ["STS", "PairClassification"]:
        return "Retrieve semantically similar text"
    if type_ in "Bitext Mining":
        return "Retrieve parallel sentences"
    if "Retrieval" in type_ and side == "query" and instruction is None:
        instruction = "Retrieval relevant passage for the given query."
    return instruction if instruction and instruction.strip() else ""


@pytest.mark.parametrize("side", ["query", "document", None])
@pytest.mark.parametrize("name", [*dict.fromkeys(b.mteb_name for b in BENCHMARKS.values() if b.mteb_name), "JMTEB(v2)"])
def test_every_task_of_the_published_tables_has_the_instruction_of_the_published_code(
    name: str, side: str | None
) -> None:
    _, tasks = benchmark_tasks(name)
    assert tasks
    for task in tasks:
        meta = task.metadata
        if side is None and (isinstance(meta.prompt, dict) or isinstance(TABLE.get(meta.name), dict)):
            continue  # mteb always gives a side for them
        old = {"document": "passage"}.get(side or "", side)
        expected = paper_code(meta.name, meta.type, meta.prompt, old, getattr(type(task), "abstask_prompt", None))
        got = paper_instruction(meta, None if side is None else PromptType(side))
        assert (meta.name, got) == (meta.name, expected)


def test_a_task_of_ones_own_has_the_prompt_that_mteb_has_for_it() -> None:
    meta = local.LocalRetrieval.metadata.model_copy(update={"name": "MyTask"})
    with_prompt = meta.model_copy(update={"prompt": {"query": "Find my thing"}})
    similar = meta.model_copy(update={"type": "STS"})

    assert paper_instruction(with_prompt, PromptType.query) == "Find my thing"
    assert paper_instruction(with_prompt, PromptType.document) == ""
    assert paper_instruction(meta, PromptType.query) == "Retrieval relevant passage for the given query."
    assert paper_instruction(similar, None) == SIMILAR


def test_retrieval_has_the_literal_ndcg(embedder: Embedder) -> None:
    expected = np.mean(
        [
            ndcg(by_score(cosines(embedder, text, CLAIM, documents())), local.QRELS[id_])
            for id_, text in local.QUERIES.items()
        ]
    )

    found = scores(MtebEmbedder(embedder), local.LocalRetrieval())["ndcg_at_10"]

    assert found == pytest.approx(expected, abs=1e-5)
    assert 0.3 < found < 1.0  # neither trivial nor hopeless


def test_shorter_vectors_are_the_beginning_of_the_long_ones(engine: SeenEmbedding) -> None:
    with Embedder(engine, ByteTokenizer(), fake_embedding_spec(), dimensions=16) as short:
        expected = np.mean(
            [
                ndcg(by_score(cosines(short, text, CLAIM, documents())), local.QRELS[id_])
                for id_, text in local.QUERIES.items()
            ]
        )
        model = MtebEmbedder(short)

        assert scores(model, local.LocalRetrieval())["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
        assert model.mteb_model_meta.embed_dim == 16


def test_similarity_has_the_literal_rank_correlation(embedder: Embedder) -> None:
    first, second, gold = zip(*local.PAIRS, strict=True)
    one = embedder.embed_queries(first, instruction=SIMILAR)
    two = embedder.embed_queries(second, instruction=SIMILAR)
    ranks = np.argsort(np.argsort((one * two).sum(1)))
    expected = np.corrcoef(ranks, np.argsort(np.argsort(gold)))[0, 1]  # Spearman, without ties

    assert scores(MtebEmbedder(embedder), local.LocalSimilarity())["main_score"] == pytest.approx(expected, abs=1e-6)


def test_pair_classification_has_the_literal_average_precision(embedder: Embedder) -> None:
    first, second, gold = zip(*local.PAIRS, strict=True)
    similar = embedder.embed_queries(first, instruction=SIMILAR) * embedder.embed_queries(second, instruction=SIMILAR)
    labels = [gold[row] > 2.5 for row in np.argsort(-similar.sum(1))]
    precisions = [sum(labels[:place]) / place for place, label in enumerate(labels, start=1) if label]

    found = scores(MtebEmbedder(embedder), local.LocalPairs())["main_score"]

    assert found == pytest.approx(np.mean(precisions), abs=1e-6)


def test_classification_has_the_accuracy_of_a_regression_on_instructed_vectors(embedder: Embedder) -> None:
    from sklearn.linear_model import LogisticRegression

    instruction = TABLE["Banking77Classification"]
    train = [(text, label) for label, texts in local.INTENTS.items() for text in texts]
    vectors = embedder.embed_queries([text for text, _ in train], instruction=instruction)
    model = LogisticRegression(max_iter=100).fit(vectors, [label for _, label in train])
    texts, labels = zip(*local.ASKED_INTENTS, strict=True)
    expected = model.score(embedder.embed_queries(texts, instruction=instruction), labels)

    assert scores(MtebEmbedder(embedder), local.LocalClassification())["accuracy"] == pytest.approx(expected)


def test_clusters_that_are_the_topics_measure_one_and_those_across_them_nothing(embedder: Embedder) -> None:
    assert scores(MtebEmbedder(embedder), local.LocalClustering())["v_measures"] == pytest.approx([1.0, 0.0], abs=1e-9)


def test_instructions_have_the_literal_p_mrr(embedder: Embedder) -> None:
    task = TABLE["Core17InstructionRetrieval"]

    def ranks(query: str) -> list[str]:
        return by_score(cosines(embedder, " ".join(local.ASKED[query]), task, documents()))

    found = scores(MtebEmbedder(embedder), local.LocalInstructions())["p-MRR"]

    assert found == pytest.approx(p_mrr(ranks), abs=1e-6)
    assert found != 0.0


def test_the_reranker_has_the_literal_p_mrr_with_each_instruction_in_its_place(
    reranker: Reranker, judge: SeenReranking
) -> None:
    found = scores(MtebReranker(reranker), local.LocalInstructions())["p-MRR"]
    seen = list(judge.seen)

    def ranks(query: str) -> list[str]:
        text, own = local.ASKED[query]
        values = reranker.log_odds(text, list(documents().values()), instruction=own)
        return by_score(dict(zip(documents(), values.tolist(), strict=True)))

    assert found == pytest.approx(p_mrr(ranks), abs=1e-6)
    for text, own in local.ASKED.values():
        fields = f"<Instruct>: {own}\n\n<Query>: {text}\n\n<Document>: "
        assert sum(fields in prompt for prompt in seen) == len(local.CORPUS)


def test_the_reranker_judges_the_candidates_by_the_instruction_of_the_task(
    reranker: Reranker, judge: SeenReranking
) -> None:
    instruction = TABLE["AskUbuntuDupQuestions"]

    found = scores(MtebReranker(reranker), local.LocalReranking())["ndcg_at_10"]

    assert sum(f"<Instruct>: {instruction}\n\n<Query>: " in prompt for prompt in judge.seen) == 12
    values = []
    for query, ids in local.CANDIDATES.items():
        odds = reranker.log_odds(local.QUERIES[query], [documents()[id_] for id_ in ids], instruction=instruction)
        values.append(ndcg(by_score(dict(zip(ids, odds.tolist(), strict=True))), local.QRELS[query]))
    assert found == pytest.approx(np.mean(values), abs=1e-5)


def test_a_task_that_the_table_does_not_have_is_judged_by_the_rerankers_own_instruction(
    reranker: Reranker, judge: SeenReranking
) -> None:
    class Own(local.LocalReranking):
        metadata = local.LocalReranking.metadata.model_copy(update={"name": "MyReranking"})

    scores(MtebReranker(reranker), Own())

    assert all(f"<Instruct>: {reranker.instruction}\n\n" in prompt for prompt in judge.seen)


def test_quantized_vectors_are_refused(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="precision must be"):
        mteb.evaluate(MtebEmbedder(embedder), local.LocalSimilarity(), cache=None, encode_kwargs={"precision": "int8"})


def test_a_run_reranks_the_first_of_the_embedder(embedder: Embedder, reranker: Reranker) -> None:
    run = run_mteb([local.LocalRetrieval()], embedder, reranker, top_k=4)

    expected = []
    for id_, text in local.QUERIES.items():
        first = by_score(cosines(embedder, text, CLAIM, documents()))[:4]
        odds = reranker.log_odds(text, [documents()[found] for found in first], instruction=CLAIM)
        expected.append(ndcg(by_score(dict(zip(first, odds.tolist(), strict=True))), local.QRELS[id_]))
    first_stage, second_stage = run.scores
    assert (first_stage.stage, second_stage.stage) == ("embedder", "reranker")
    assert first_stage.value == pytest.approx(
        100 * scores(MtebEmbedder(embedder), local.LocalRetrieval())["main_score"]
    )
    assert second_stage.value == pytest.approx(100 * np.mean(expected), abs=1e-3)
    assert (second_stage.task, second_stage.metric) == ("SciFact", "ndcg_at_10")


def test_a_task_can_be_run_again_after_it_was_reranked(embedder: Embedder, reranker: Reranker) -> None:
    loaded = local.LocalRetrieval()
    loaded.load_data()
    for task in (local.LocalRetrieval(), loaded):
        first = run_mteb([task], embedder, reranker, top_k=1)

        assert run_mteb([task], embedder, reranker, top_k=1) == first
        assert (
            scores(MtebEmbedder(embedder), task)["recall_at_10"] > scores(MtebEmbedder(embedder), task)["recall_at_1"]
        )


def test_a_pair_of_one_name_is_told_apart() -> None:
    with paper_embedder("demo", device="cpu") as embedder, paper_reranker("demo", device="cpu") as reranker:
        run = run_mteb([local.LocalReranking()], embedder, reranker)

    assert [score.model for score in run.scores] == ["qwen-retrieval/demo-embedder", "qwen-retrieval/demo-reranker"]
    assert len(run.comparisons()) == 6


def test_a_run_gives_the_means_of_the_published_tables(embedder: Embedder, reranker: Reranker) -> None:
    tasks = [local.LocalRetrieval(), local.LocalSimilarity(), local.LocalInstructions()]

    run = run_mteb(tasks, embedder, reranker)

    assert [(score.task, score.stage) for score in run.scores] == [
        ("SciFact", "embedder"), ("SciFact", "reranker"), ("STS12", "embedder"),
        ("Core17InstructionRetrieval", "embedder"), ("Core17InstructionRetrieval", "reranker"),
    ]  # fmt: skip
    assert {mean.metric for mean in run.means() if mean.benchmark == "STS12"} == {"Mean (Task)", "Mean (Type)", "STS"}
    assert {row.verdict for row in run.comparisons()} == {"not published"}
    assert json.loads(json.dumps(run.as_json()))["mteb_version"] == mteb.__version__


def test_a_run_that_was_broken_off_goes_on_where_it_was(
    embedder: Embedder, reranker: Reranker, engine: SeenEmbedding, judge: SeenReranking, tmp_path: Path
) -> None:
    first = run_mteb([local.LocalRetrieval()], embedder, reranker, folder=tmp_path / "run")
    computed = engine.inputs, judge.inputs

    again = run_mteb([local.LocalRetrieval()], embedder, reranker, folder=tmp_path / "run")

    assert again == first
    assert (engine.inputs, judge.inputs) == computed
    deeper = run_mteb([local.LocalRetrieval()], embedder, reranker, folder=tmp_path / "run", top_k=2)
    assert judge.inputs == computed[1] + 6
    assert deeper.scores[0] == first.scores[0]
    for file in (tmp_path / "run").rglob("*_predictions.json"):
        file.unlink()
    run_mteb([local.LocalRetrieval()], embedder, reranker, folder=tmp_path / "run", top_k=3)
    assert engine.inputs > computed[0]


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("MTEB English v2", 41), ("C-MTEB", 31), ("MMTEB", 131), ("MTEB-Code", 12), ("MTEB-R", 10), ("CMTEB-R", 8),
     ("MMTEB-R", 18), ("MLDR", 1), ("FollowIR", 3), ("JMTEB(v2)", 28), ("SciFact", 1)],
)  # fmt: skip
def test_a_name_stands_for_the_tasks_of_its_table(name: str, tasks: int) -> None:
    assert len(benchmark_tasks(name)[1]) == tasks


@pytest.mark.parametrize(
    ("name", "table"),
    [("MTEB(eng, v2)", "MTEB English v2"), ("MultiLongDocRetrieval", "MLDR"), ("MTEB-R", "MTEB-R"),
     ("JMTEB(v2)", "JMTEB(v2)"), ("SciFact", "SciFact")],
)  # fmt: skip
def test_what_mteb_calls_otherwise_is_compared_with_its_published_table(name: str, table: str) -> None:
    assert benchmark_tasks(name)[0] == table


def test_an_unknown_name_is_refused(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match=r"published tables \(MTEB English v2, .*but got 'MTEB-X'"):
        run_mteb(["MTEB-X"], embedder)
    with pytest.raises(ValueError, match="at least one benchmark"):
        run_mteb([], embedder)
    with pytest.raises(ValueError, match="names must differ, but got SciFact, SciFact"):
        run_mteb(["SciFact", local.LocalRetrieval()], embedder)
    with pytest.raises(ValueError, match="top_k must be"):
        run_mteb(["SciFact"], embedder, top_k=0)


def test_the_command_refuses_an_unknown_name_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Loads()
    monkeypatch.setattr(Embedder, "from_pretrained", fakes.embedder)
    assert "but got 'MTEB-X'" in fails("evaluate", "--mteb", "MTEB-X", "--model", "demo")
    assert fakes.asked == []


def test_the_registry_describes_the_checkpoints_as_mteb_wants_it() -> None:
    names = register()

    assert len(names) == 8
    for checkpoint in CHECKPOINTS:
        name = f"qwen-retrieval/{checkpoint.repository.removeprefix('Qwen/')}"
        ours, theirs = mteb.get_model_meta(name), mteb.get_model_meta(checkpoint.repository)
        assert ours.name != ours.adapted_from == theirs.name
        assert ours.revision == theirs.revision is not None
        assert ours.n_embedding_parameters is not None
        assert theirs.get_training_datasets() <= ours.get_training_datasets()
        assert ours.n_parameters == theirs.n_parameters == checkpoint.parameters
        assert ours.memory_usage_mb == pytest.approx(theirs.memory_usage_mb, abs=0.5)
        assert ours.embed_dim == theirs.embed_dim == checkpoint.hidden_size
        assert ours.max_tokens == checkpoint.max_length
        assert ours.is_cross_encoder == theirs.is_cross_encoder == (checkpoint.kind == "reranking")


def test_mteb_loads_the_demo_pair_by_name_with_the_settings_of_the_paper() -> None:
    register()

    embedder = mteb.get_model("qwen-retrieval/demo-embedder", device="cpu")
    reranker = mteb.get_model("qwen-retrieval/demo-reranker", device="cpu")

    with paper_embedder("demo", device="cpu") as same, embedder.embedder:
        assert (embedder.embedder.max_length, embedder.embedder.control_tokens) == (8192, "keep")
        expected = same.embed_queries(["a stroke"], instruction=CLAIM)
        batch = [{"text": ["a stroke"]}]
        place: dict[str, Any] = {
            "task_metadata": local.LocalRetrieval.metadata,
            "hf_split": "test",
            "hf_subset": "default",
        }
        assert np.array_equal(embedder.encode(batch, **place, prompt_type=PromptType.query), expected)
    with paper_reranker("demo", device="cpu") as again, reranker.reranker:
        assert (again.template, again.instruction) == ("vllm", "Given the user query, retrieval the relevant passages")
        assert reranker.predict(batch, [{"text": ["Aspirin helps."]}], **place).shape == (1,)


def test_results_of_other_settings_are_kept_apart(embedder: Embedder, engine: SeenEmbedding) -> None:
    with Embedder(engine, ByteTokenizer(), fake_embedding_spec(), dimensions=16) as short:
        names = {MtebEmbedder(one).mteb_model_meta.model_name_with_experiment for one in (embedder, short)}

    assert len(names) == 2
