"""Build the demo pair from nothing: `python demo/train.py`, in an environment made from `demo/requirements.txt`.

This script prepares the text and constructs the two models that training starts from. All training, mining, merging
and measuring is done by the commands that users have; each is printed before it runs. What is slow and does not change
(pairs, teacher vectors) is kept in `--work`; delete that folder to start afresh.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Threads that spin while they wait slow a shared machine down tenfold; read by OpenMP when torch is imported.
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))

import bag
import cards
import embedder
import numpy as np
import numpy.typing as npt
import pairs
import reranker
import torch
from data import encode_pairs, mixture, write_beir, write_training
from pairs import Pair
from teacher import Teacher
from tokenizer import VOCABULARY, for_user_text, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from qwen_retrieval.training.data import read_examples

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "core" / "qwen_retrieval" / "demo"
HELD_OUT = 1500
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def command(*arguments: str | Path | int | float) -> None:
    """Run one of this package's commands, as a user would."""
    words = ["qwen-retrieval", *map(str, arguments)]
    print("$", shlex.join(words), flush=True)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # float32 sums depend on it
    subprocess.run([sys.executable, "-m", "qwen_retrieval.cli", *words[1:]], check=True, env=os.environ | threads)


def collected(work: Path, seed: int) -> dict[str, list[Pair]]:
    """The pairs by split, made once."""
    path = work / f"pairs.{seed}.pickle"
    if not path.exists():
        split = pairs.split(pairs.collect(pairs.unpack_debian(work / "debian"), seed))
        path.write_bytes(pickle.dumps(split))
    loaded: dict[str, list[Pair]] = pickle.loads(path.read_bytes())
    return loaded


def taught(work: Path, train: list[Pair], count: int, tokenizer: Tokenizer) -> tuple[npt.NDArray[np.float16], ...]:
    """The teacher's vectors of the first `count` training pairs and of every vocabulary string, made once."""
    texts = "".join(f"{p.query}\n{p.document}\n" for p in train[:count]) + tokenizer.to_str()
    path = work / f"teacher.{hashlib.sha256(texts.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        teacher = Teacher()
        sides = ([p.query for p in train[:count]], [p.document for p in train[:count]])
        both = np.stack([teacher.encode(side) for side in sides], axis=1)
        words = teacher.encode([tokenizer.decode([i]) for i in range(VOCABULARY)])
        np.savez(path, pairs=both, words=words)
    saved = np.load(path)
    return saved["pairs"], saved["words"]


def kinds(part: list[Pair]) -> dict[str, list[Pair]]:
    """Held-out pairs by kind: technical text, its questions alone, and WordNet."""
    technical = [p for p in part if not p.source.startswith("wordnet")]
    questions = [p for p in technical if p.source.endswith(("/question", "/twice", "/faq"))]
    return {"technical": technical, "questions": questions, "wordnet": [p for p in part if p not in set(technical)]}


def start_embedder(work: Path, train: list[Pair], full: Tokenizer, given: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Write the constructed embedder; returns the token table and the words' rarities."""
    vectors, words = taught(work, train, given.taught, full)
    data = encode_pairs(for_user_text(full), train, vectors)
    table = bag.train_bag(
        bag.initial_table(words, bag.token_counts(data)), data, seed=given.seed, steps=given.bag_steps
    )
    model = embedder.construct(table, for_user_text(full), given.seed)
    embedder.save_embedder(model, work / "start" / "embedder")
    save_tokenizer(full, work / "start" / "embedder", append_end=True)
    return table, bag.rarities(data.documents)


def train_embedder(work: Path, train: list[Pair], given: argparse.Namespace) -> Path:
    """Contrastive training, then a merge with where it started, which keeps what it knew of other text."""
    data, start, trained, merged = (work / name for name in ("embedder.jsonl", "start", "trained", "merged"))
    chosen = mixture(train, given.embedder_pairs, given.seed)
    write_training(data, chosen, given.seed, default=0.45, none=0.15)
    dimensions = [word for n in (32, 64, 128, 192) for word in ("--dimensions", n)]
    command(
        "train", "embedder", data, "--model", start / "embedder", "-o", trained / "embedder", *dimensions,
        "--batch-size", 160, "--max-length", 96, "--learning-rate", 3e-4, "--held-out", 0.02,
        "--evaluate-every", 50, "--max-batch-tokens", 100_000, "--seed", given.seed,
    )  # fmt: skip
    models = (start / "embedder", trained / "embedder")
    command("train", "merge", *models, "-o", merged / "embedder", "--weight", given.merge_weight)
    return merged / "embedder"


def start_reranker(
    work: Path, mined: Path, table: Tensor, rarity: Tensor, full: Tokenizer, given: argparse.Namespace
) -> None:
    """Write the constructed reranker, its gains fitted on some of the mined lists."""
    plain, parts = for_user_text(full), reranker.template(full)
    model = reranker.construct(table, rarity, parts, plain, given.seed)
    examples = list(read_examples(mined))
    lists = reranker.cached_lists(model, plain, parts, examples, seed=given.seed, count=given.lists)
    reranker.fit(model, lists, parts, seed=given.seed, steps=given.gain_steps)
    reranker.save_reranker(model, work / "start" / "reranker")
    save_tokenizer(full, work / "start" / "reranker", append_end=False)


def mined_lists(work: Path, dev: list[Pair], model: Path, given: argparse.Namespace) -> Path:
    """Technical pairs that the embedder has not seen, with what it ranks first for them.

    On pairs that it was trained on it is too good a guide, and a reranker learns to trust it. For the same reason,
    documents that it ranks above the right one belong to the lists.
    """
    data, mined = work / "reranker.jsonl", work / "reranker.mined.jsonl"
    unseen = [p for p in dev if not p.source.startswith("wordnet")][HELD_OUT:]
    write_training(data, unseen, given.seed, default=0.5, none=0.0)
    command(
        "train", "mine", data, "-o", mined, "--model", model, "--count", 5, "--last", 20, "--ratio", 100,
        "--seed", given.seed,
    )  # fmt: skip
    return mined


def train_reranker(work: Path, mined: Path, given: argparse.Namespace) -> Path:
    """Supervised fine-tuning on yes and no, from the constructed circuit."""
    some, trained = work / "reranker.some.jsonl", work / "trained" / "reranker"
    with mined.open("rb") as lines:
        some.write_bytes(b"".join(itertools.islice(lines, given.reranker_lists)))
    command(
        "train", "reranker", some, "--model", work / "start" / "reranker", "-o", trained, "--negatives", 5,
        "--batch-size", 32, "--max-length", 160, "--learning-rate", given.reranker_rate, "--warmup", 0.2,
        "--held-out", 0.1, "--evaluate-every", 20, "--over", "answers", "--seed", given.seed,
    )  # fmt: skip
    return trained


def evaluate(work: Path, made: dict[str, Path], folder: Path) -> None:
    """Measure the pair on a test set, BM25 beside it; the result goes to `figures`."""
    (work / "figures").mkdir(exist_ok=True)
    about = json.loads((folder / "meta.json").read_text(encoding="utf-8")) if (folder / "meta.json").exists() else {}
    task = about.get("instruction")
    command(
        "evaluate", folder, "--model", made["embedder"], "--reranker", made["reranker"], "--rerank-depth", 20,
        *(["--instruction", f"task={task}", "--rerank-instruction", task] if task else []),
        "--metrics", "mrr@100,ndcg@10,recall@20", "--bm25-language", "none", "--dtype", "float32",
        "--json", work / "figures" / f"{folder.name}.json",
    )  # fmt: skip


def measure(work: Path, made: dict[str, Path], test: list[Pair], others: list[Path]) -> None:
    """Measure on the test split and on other collections."""
    for name, own in kinds(test).items():
        write_beir(work / name, own[:HELD_OUT])
        evaluate(work, made, work / name)
    for folder in others:
        evaluate(work, made, folder)


def install(work: Path, made: dict[str, Path]) -> None:
    """Put the models into the package, with cards of their own figures."""
    for name, folder in made.items():
        for file in MODEL_FILES:
            shutil.copyfile(folder / file, MODELS / name / file)
    cards.write(work / "figures", MODELS)


def main() -> None:
    """Collect, construct, train, merge, measure."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    for name in ("start", "trained", "merged", "figures"):
        shutil.rmtree(given.work / name, ignore_errors=True)
    started = time.time()
    split = collected(given.work, given.seed)
    full = train_tokenizer(text for p in split["train"] for text in (p.query, p.document))
    table, rarity = start_embedder(given.work, split["train"], full, given)
    made = {"embedder": train_embedder(given.work, split["train"], given)}
    mined = mined_lists(given.work, split["dev"], made["embedder"], given)
    start_reranker(given.work, mined, table, rarity, full, given)
    made["reranker"] = train_reranker(given.work, mined, given)
    print(f"trained after {(time.time() - started) / 60:.0f} minutes", flush=True)
    measure(given.work, made, split["test"], given.beir)
    install(given.work, made)
    print(f"measured after {(time.time() - started) / 60:.0f} minutes", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo-pair")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--taught", type=int, default=36_000, help="pairs that the teacher encodes")
    parser.add_argument("--bag-steps", type=int, default=1600)
    parser.add_argument("--embedder-pairs", type=int, default=24_000)
    parser.add_argument("--merge-weight", type=float, default=0.35, help="share of the trained embedder")
    parser.add_argument("--lists", type=int, default=1200, help="lists that the reranker's gains are fitted on")
    parser.add_argument("--gain-steps", type=int, default=200)
    parser.add_argument("--reranker-lists", type=int, default=2400, help="lists that the reranker is trained on")
    parser.add_argument("--reranker-rate", type=float, default=2e-6)
    parser.add_argument("--beir", type=Path, action="append", default=[], help="another collection to measure on")
    given = parser.parse_args()
    names = [folder.name for folder in given.beir]
    if len({*names, *cards.OWN}) < len(names) + len(cards.OWN):
        parser.error(f"--beir wants folders with names of their own, other than {', '.join(cards.OWN)}")
    return given


if __name__ == "__main__":
    main()
