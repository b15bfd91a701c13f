"""Write the model cards of the demo pair, with the figures that `qwen-retrieval evaluate` measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TITLES = {
    "questions": "test split, questions -> documentation",
    "technical": "test split, all technical pairs (questions, summary -> rest, headings, code)",
    "wordnet": "test split, WordNet word -> gloss and gloss -> example",
    "rarb-piqa": "RAR-b's PIQA, goals -> solutions, never trained on",
    "xquad-en": "XQuAD's 240 English paragraphs and 100 questions, never trained on",
}
OWN = ("questions", "technical", "wordnet")
_FRONT = """---
license: apache-2.0
language: en
pipeline_tag: {task}
---
# Demo {kind} of qwen-retrieval

A 3.3-million-parameter Qwen3 decoder (4 layers, hidden 192) that is used exactly as Qwen3-{family} is: {usage}
It exists so that the quickstart, the examples and the tests run offline. **English, technical, a demonstration; not a
product**, and no measure of what the real models can do.
"""
_SPLIT = """
The test split is made of whole modules and documentation pages, or WordNet entries, of which nothing was trained on;
it chose nothing. Many of its "summary -> rest" pairs cannot be told apart by anyone. Measured with the saved bf16
weights, in float32, by `qwen-retrieval evaluate`. `python demo/train.py` prints the commands; collections that nothing
was trained on are given to it by `--beir`.
"""
_LICENCES = """
## Licences

Weights: Apache-2.0. {made} docstrings and documentation of Python (PSF-2.0), docstrings of permissively licensed
packages (BSD, MIT, Apache-2.0; listed in `demo/README.md`) and WordNet 3.0 (c) 2006 Princeton University, all rights
reserved, used under the WordNet licence. Teacher: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""
_EMBEDDER = """
## Training

Seed 0. Token table from all-MiniLM-L6-v2 (PCA, inverse frequency), trained as a bag of tokens by InfoNCE of arXiv
2506.05176 with its false-negative mask, MRL (32, 64, 128, 184) and relational distillation, and written into a decoder
(`demo/embedder.py`). From there `qwen-retrieval train embedder` on 24,000 pairs, one epoch, MRL (32, 64, 128, 192);
then `qwen-retrieval train merge`, 35 % of the trained and 65 % of the constructed checkpoint by slerp, which keeps most
of the gain on technical text and of what the teacher knew of other text. It is hardly more than a weighted bag of
tokens; word order hardly matters to it. Rebuild: `make demo-pair`.
"""
_RERANKER = """
## How it was made

Seed 0. Its layers are constructed from ordinary Qwen3 weights (`demo/reranker.py` says how): it compares the averaged
word vectors of query and document, and adds up how rare the words are that both have. The gains of these features were
fitted on lists that `qwen-retrieval train mine` found with the demo embedder for development pairs, which the embedder
was not trained on; then `qwen-retrieval train reranker` trained all weights on these lists. One of the 1,500 test
questions has its text among them. Words that are not the same count for little: a query and a document without a word
in common get a low score, whatever they mean. Rebuild: `make demo-pair`.
"""


@dataclass(frozen=True)
class Figures:
    """What `qwen-retrieval evaluate` wrote about one test set."""

    title: str
    measure: str
    content: dict[str, Any]

    def mean(self, kind: str) -> float:
        """The measure of BM25, of the embedder alone, or of the reranked list."""
        [system] = [s for s in self.content["systems"] if s["kind"] == kind]
        return float(system["means"][self.measure])

    def gain(self) -> tuple[float, float, float]:
        """What reranking adds to the first measure, with its 95 % interval by paired bootstrap."""
        names = {s["kind"]: s["name"] for s in self.content["systems"]}
        [found] = [
            c for c in self.content["comparisons"]
            if c["family"] == "reranking" and c["system"] == names["reranker"] and c["baseline"] == names["embedder"]
        ]  # fmt: skip
        return found["difference"], found["low"], found["high"]


def read(folder: Path) -> list[Figures]:
    """The figures of every test set, our own split first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    names = [*(name for name in TITLES if name in found), *(name for name in found if name not in TITLES)]
    return [Figures(TITLES.get(n, f"{n}, never trained on"), "mrr@100", found[n]) for n in names]


def write(folder: Path, models: Path) -> None:
    """Write both cards.

    Args:
        folder: The results, one JSON file for each test set.
        models: Where the folders of the two models are.
    """
    figures = read(folder)
    (models / "embedder" / "README.md").write_text(_embedder(figures), encoding="utf-8")
    (models / "reranker" / "README.md").write_text(_reranker(figures), encoding="utf-8")


def _embedder(figures: list[Figures]) -> str:
    rows = ["| MRR@100 | documents | this model | BM25 (no stemming) |", "|---|---|---|---|"]
    rows += [
        f"| {f.title} | {f.content['data']['documents']:,} | {f.mean('embedder'):.3f} | {f.mean('bm25'):.3f} |"
        for f in figures
    ]
    front = _FRONT.format(
        task="feature-extraction", kind="embedder", family="Embedding",
        usage="queries as\n`Instruct: {task}\\nQuery:{query}`, documents raw, `<|endoftext|>` appended, last token "
        "pooled, MRL from 32 to 192 dimensions.",
    )  # fmt: skip
    table = "\n## Figures\n\n" + "\n".join(rows) + "\n"
    return front + table + _SPLIT + _EMBEDDER + _LICENCES.format(made="Trained on")


def _reranker(figures: list[Figures]) -> str:
    rows = ["| MRR@100 | before | after | difference, 95 % paired bootstrap | BM25 |", "|---|---|---|---|---|"]
    for f in figures:
        difference, low, high = f.gain()
        change = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append(
            f"| {f.title} | {f.mean('embedder'):.3f} | {f.mean('reranker'):.3f} | {change} | {f.mean('bm25'):.3f} |"
        )
    front = _FRONT.format(
        task="text-ranking", kind="reranker", family="Reranker",
        usage="the same prefix,\nbody and suffix, score = sigmoid(logit of `yes` - logit of `no`) at the last token.",
    )  # fmt: skip
    table = "\n## Figures\n\nReordering the demo embedder's first 20:\n\n" + "\n".join(rows) + "\n"
    return front + table + _SPLIT + _RERANKER + _LICENCES.format(made="Made from")
