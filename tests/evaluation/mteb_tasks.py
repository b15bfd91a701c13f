"""Tasks of mteb made from a dozen lines each, under the names of real ones, so that the paper's instructions apply."""

# ruff: noqa: ARG002 - the signatures are mteb's
# Its classes are untyped where it is not installed.
# mypy: disable-error-code="misc, arg-type, dict-item"

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from mteb._evaluators.retrieval_metrics import evaluate_p_mrr_change
from mteb.abstasks import AbsTaskClassification, AbsTaskPairClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.task_metadata import TaskMetadata

CORPUS = {
    "d1": ("Aspirin", "Aspirin lowers the risk of a second stroke."),
    "d2": ("Vitamin C", "Vitamin C does not prevent the common cold."),
    "d3": ("", "Statins lower cholesterol and the risk of a stroke."),
    "d4": ("Sleep", "Too little sleep raises blood pressure."),
    "d5": ("Coffee", "Coffee raises blood pressure for a short time."),
    "d6": ("Bone density", "Calcium slows the loss of bone density."),
    "d7": ("", "Exercise lowers blood pressure as much as some pills."),
    "d8": ("Tea", "Green tea has no effect on weight."),
    "d9": ("Colds", "A common cold lasts for a week, with pills or without."),
    "d10": ("Salt", "Less salt means less blood pressure."),
    "d11": ("Zinc", "Zinc shortens the common cold by a day."),
    "d12": ("Smoking", "Smoking doubles the risk of a stroke."),
}
QUERIES = {
    "q1": "does aspirin lower the risk of stroke",
    "q2": "what raises blood pressure",
    "q3": "what helps against the common cold",
}
QRELS = {"q1": {"d1": 2, "d3": 1}, "q2": {"d4": 1, "d5": 2, "d10": 1}, "q3": {"d11": 2, "d2": 1, "d9": 1}}
CANDIDATES = {"q1": ["d12", "d3", "d1", "d6"], "q2": ["d10", "d7", "d5", "d4"], "q3": ["d8", "d2", "d11", "d9"]}

# Of FollowIR: each query twice, and the documents that are relevant only to the first form.
ASKED = {
    "1-og": ("risk of a stroke", "Documents about medicines and about habits are relevant."),
    "1-changed": ("risk of a stroke", "Only documents about medicines are relevant, not about smoking."),
    "2-og": ("blood pressure", "Whatever raises or lowers blood pressure is relevant."),
    "2-changed": ("blood pressure", "Only what lowers blood pressure is relevant, such as exercise and less salt."),
}
ASKED_QRELS = {
    "1-og": {"d1": 1, "d3": 1, "d12": 1},
    "1-changed": {"d1": 1, "d3": 1, "d12": 0},
    "2-og": {"d4": 1, "d5": 1, "d7": 1, "d10": 1},
    "2-changed": {"d4": 0, "d5": 0, "d7": 1, "d10": 1},
}
CHANGED = {"1": ["d12"], "2": ["d4", "d5"]}

PAIRS = [
    ("the cat sits on the mat", "a cat is sitting on the mat", 5.0),
    ("the cat sits on the mat", "the mat was bought in a shop", 2.0),
    ("a train leaves at noon", "the train departs at midday", 4.5),
    ("a train leaves at noon", "noon is the middle of a day", 1.5),
    ("he reads the newspaper", "the newspaper is read by him", 4.0),
    ("he reads the newspaper", "she paints the kitchen wall", 0.0),
    ("it rains in the north", "in the north it is raining", 4.8),
    ("it rains in the north", "the north has many lakes", 1.0),
]
INTENTS = {
    0: ["my card was lost", "i lost my bank card", "the card is gone", "where is my new card"],
    1: ["what is the exchange rate", "which rate do i get", "the rate is wrong", "is this a good exchange rate"],
}
ASKED_INTENTS = [("somebody took my card", 0), ("how is the exchange rate set", 1), ("card or rate", 1)]
TOPICS = [("graphics card driver for windows", 0), ("the goalkeeper saved the penalty", 1)]


def _metadata(name: str, type_: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        type=type_,
        main_score=main_score,
        description="A few lines for a test.",
        reference=None,
        dataset={"path": "local/none", "revision": "1"},
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


def _corpus() -> Dataset:
    return Dataset.from_list([{"id": id_, "title": title, "text": text} for id_, (title, text) in CORPUS.items()])


def _queries() -> Dataset:
    return Dataset.from_list([{"id": id_, "text": text} for id_, text in QUERIES.items()])


class LocalRetrieval(AbsTaskRetrieval):
    metadata = _metadata("SciFact", "Retrieval", "ndcg_at_10")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        split = {"corpus": _corpus(), "queries": _queries(), "relevant_docs": QRELS, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalReranking(AbsTaskRetrieval):
    metadata = _metadata("AskUbuntuDupQuestions", "Reranking", "ndcg_at_10")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        split = {"corpus": _corpus(), "queries": _queries(), "relevant_docs": QRELS, "top_ranked": CANDIDATES}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalInstructions(AbsTaskRetrieval):
    """As the three tasks of FollowIR in mteb, but for where the changed documents come from."""

    metadata = _metadata("Core17InstructionRetrieval", "InstructionReranking", "p-MRR")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        rows = [{"id": id_, "text": text, "instruction": own} for id_, (text, own) in ASKED.items()]
        split = {
            "corpus": _corpus(),
            "queries": Dataset.from_list(rows),
            "relevant_docs": ASKED_QRELS,
            "top_ranked": {query: list(CORPUS) for query in ASKED},
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    def task_specific_scores(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
    ) -> dict[str, Any]:
        found: dict[str, Any] = evaluate_p_mrr_change(qrels, results, CHANGED, self.k_values)
        return found


class LocalSimilarity(AbsTaskSTS):
    metadata = _metadata("STS12", "STS", "cosine_spearman")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        first, second, score = zip(*PAIRS, strict=True)
        self.dataset = DatasetDict(test=Dataset.from_dict({"sentence1": first, "sentence2": second, "score": score}))
        self.data_loaded = True


class LocalPairs(AbsTaskPairClassification):
    metadata = _metadata("TwitterURLCorpus", "PairClassification", "similarity_ap")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        first, second, score = zip(*PAIRS, strict=True)
        labels = [int(value > 2.5) for value in score]
        self.dataset = DatasetDict(test=Dataset.from_dict({"sentence1": first, "sentence2": second, "labels": labels}))
        self.data_loaded = True


class LocalClassification(AbsTaskClassification):
    """All training data is used, so that mteb's ten experiments are one."""

    metadata = _metadata("Banking77Classification", "Classification", "accuracy")
    samples_per_label = 4
    n_experiments = 2

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        train = [{"text": text, "label": label} for label, texts in INTENTS.items() for text in texts]
        test = [{"text": text, "label": label} for text, label in ASKED_INTENTS]
        self.dataset = DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))
        self.data_loaded = True


class LocalClustering(AbsTaskClusteringLegacy):
    """Two topics of six lines each: labelled by topic, then by whether a line stands at an even place."""

    metadata = _metadata("TwentyNewsgroupsClustering", "Clustering", "v_measure")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        lines = [(f"{text} {place}", topic, place % 2) for text, topic in TOPICS for place in range(6)]
        sentences, topics, places = (list(column) for column in zip(*lines, strict=True))
        rows = {"sentences": [sentences, sentences], "labels": [topics, places]}
        self.dataset = DatasetDict(test=Dataset.from_dict(rows))
        self.data_loaded = True
