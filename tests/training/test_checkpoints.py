"""What training writes, loaded by everything that shall load it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jinja2
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM, Qwen3Model

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.hub import model_folder
from qwen_retrieval.loading import read_config
from qwen_retrieval.specs import QWEN3_RERANKER, RerankTemplate, match_reranking
from qwen_retrieval.templates import RerankingTemplate
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.training.checkpoints import Base, copy_files, model_card, replaced_folder
from qwen_retrieval.training.embedder import EmbedderSettings, train_embedder
from qwen_retrieval.training.loop import History, LoopSettings
from qwen_retrieval.training.modules import chat_template, write_reranking_modules
from qwen_retrieval.training.reranker import RerankerSettings, train_reranker
from tests.reference import last_hidden_states, yes_no_log_odds

DOCUMENTS = ["How to parse something, in words.", "sort a\n\nlist ", "x"]
TEXTS = ["sort a list", "How to parse something, in words."]
TASK = "Given a word, find its page"
LOOP = LoopSettings(batch_size=10, learning_rate=1e-3, held_out=0.2)


@pytest.fixture(scope="module")
def trained_embedder(tiny_embedder: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "my-embedder"
    train_embedder(str(tiny_embedder), examples, folder, settings=EmbedderSettings(instruction=TASK), loop=LOOP)
    return folder


@pytest.fixture(scope="module")
def trained_reranker(tiny_reranker: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "my-reranker"
    train_reranker(str(tiny_reranker), examples, folder, settings=RerankerSettings(instruction=TASK), loop=LOOP)
    return folder


@pytest.fixture(scope="module")
def embedder(trained_embedder: Path) -> Iterator[Embedder]:
    with Embedder.from_pretrained(str(trained_embedder), device="cpu", dtype="float32", instruction=TASK) as loaded:
        yield loaded


def test_the_engine_computes_what_transformers_does(trained_embedder: Path, embedder: Embedder) -> None:
    model = Qwen3Model.from_pretrained(trained_embedder, dtype=torch.float32)
    model.train(False)
    states = last_hidden_states(model, [embedder.explain_query(text).token_ids for text in TEXTS])
    want = states / np.linalg.norm(states, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.embed_queries(TEXTS), want, atol=2e-6)


def test_sentence_transformers_gives_the_same_vectors(trained_embedder: Path, embedder: Embedder) -> None:
    library = pytest.importorskip("sentence_transformers", reason="it comes with the extra train")
    model = library.SentenceTransformer(str(trained_embedder), device="cpu", model_kwargs={"dtype": torch.float32})
    queries = model.encode_query(TEXTS, show_progress_bar=False)
    documents = model.encode_document(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(queries, embedder.embed_queries(TEXTS), atol=2e-6)
    np.testing.assert_allclose(documents, embedder.embed_documents(TEXTS), atol=2e-6)


def test_a_reranker_scores_as_transformers_does(trained_reranker: Path) -> None:
    model = Qwen3ForCausalLM.from_pretrained(trained_reranker, dtype=torch.float32)
    model.train(False)
    with Reranker.from_pretrained(str(trained_reranker), device="cpu", dtype="float32") as reranker:
        inputs = [reranker.explain("sort it", text).token_ids for text in TEXTS]
        answers = [reranker.tokenizer.encode([word], control_tokens=False)[0][0] for word in ("yes", "no")]
        want = yes_no_log_odds(model, inputs, yes_id=answers[0], no_id=answers[1])
        got = reranker.log_odds("sort it", TEXTS)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.fixture(scope="module")
def reranker(trained_reranker: Path) -> Iterator[Reranker]:
    with Reranker.from_pretrained(str(trained_reranker), device="cpu", dtype="float32", instruction=TASK) as loaded:
        yield loaded


def cross_encoder(folder: Path) -> Any:
    library = pytest.importorskip("sentence_transformers", reason="it comes with the extra train")
    return library.CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


def predicted(model: Any, **options: Any) -> Any:
    return model.predict([("sort it", text) for text in DOCUMENTS], show_progress_bar=False, **options)


def test_sentence_transformers_gives_the_same_scores(trained_reranker: Path, reranker: Reranker) -> None:
    model = cross_encoder(trained_reranker)
    np.testing.assert_allclose(predicted(model), reranker.score("sort it", DOCUMENTS), atol=1e-6)
    log_odds = predicted(model, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(log_odds, reranker.log_odds("sort it", DOCUMENTS), atol=5e-5)
    told = predicted(model, activation_fn=torch.nn.Identity(), prompt="Find it")
    np.testing.assert_allclose(told, reranker.log_odds("sort it", DOCUMENTS, instruction="Find it"), atol=5e-5)
    assert np.abs(told - log_odds).max() > 1e-2  # the instruction counts


def test_modules_of_the_base_are_kept_and_its_template_and_prompt_are_not(
    trained_reranker: Path, reranker: Reranker, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained_reranker, tmp_path / "based")
    changed: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"chat_template": "{{ messages[0].content }}"},  # of a chat model
        "config_sentence_transformers.json": {"prompts": {"mine": "Other"}, "default_prompt_name": "mine"},
        "1_LogitScore/config.json": {"true_token_id": 1},
    }
    for name, fields in changed.items():
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(content | fields), "utf-8")
    write_reranking_modules(folder, QWEN3_RERANKER.template("canonical"), TASK, yes_id=8, no_id=9)
    assert json.loads((folder / "1_LogitScore" / "config.json").read_text("utf-8"))["true_token_id"] == 1
    shutil.copy(trained_reranker / "1_LogitScore" / "config.json", folder / "1_LogitScore" / "config.json")
    model = cross_encoder(folder)
    assert model.prompts == {"mine": "Other"}
    np.testing.assert_allclose(predicted(model), reranker.score("sort it", DOCUMENTS), atol=1e-6)


@pytest.fixture(scope="module")
def templates() -> list[tuple[RerankTemplate, RerankingTemplate]]:
    folder = model_folder("demo", "reranking")
    tokenizer = HubTokenizer.from_folder(folder)
    spec = match_reranking("demo", read_config(folder), tokenizer)
    return [
        (spec.family.template(name), RerankingTemplate(tokenizer, spec, template=name))
        for name in ("canonical", "vllm", "jinja")
    ]


@hypothesis.settings(max_examples=20)
@given(st.text(st.characters(codec="utf-8")))
@example("say \"yes\" {{ x }} {% y %} #} \\n 'q' é 中 😀\r\n")
def test_the_chat_template_writes_what_the_engine_reads(
    templates: list[tuple[RerankTemplate, RerankingTemplate]], instruction: str
) -> None:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
    query, document = "a {{ b }}\n", " c\n\n"
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    for parts, template in templates:
        want = template.render_pair(query, document, instruction)
        assert environment.from_string(chat_template(parts, instruction)).render(messages=messages) == want
        system = [{"role": "system", "content": instruction}, *messages]
        assert environment.from_string(chat_template(parts, "Other")).render(messages=system) == want


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_names_shapes_and_dtypes_are_those_of_the_base(kind: str, request: pytest.FixtureRequest) -> None:
    base, written = (request.getfixturevalue(f"{state}_{kind}") for state in ("tiny", "trained"))
    before, after = load_file(base / "model.safetensors"), load_file(written / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert (written / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    config = json.loads((written / "config.json").read_text("utf-8"))
    assert config["dtype"] == "float32"
    assert config["rope_theta"] == 1_000_000  # which transformers 4 reads, and transformers 5 would not write


def test_the_card_says_what_was_done_and_not_where(trained_embedder: Path, tiny_embedder: Path) -> None:
    card = (trained_embedder / "README.md").read_text("utf-8")
    assert "# my-embedder" in card
    assert "`tiny-embedder`, fine-tuned on 16 of the 20 examples of data.jsonl" in card
    assert f'model = Embedder.from_pretrained("my-embedder", instruction="{TASK}")' in card
    assert "| loss.temperature | 0.05 |" in card
    assert f"| instruction | {TASK} |" in card
    assert re.search(r"\| 2 \| \d+\.\d{4} \|", card)
    assert f"torch {torch.__version__.split('+')[0]}" in card
    for file in trained_embedder.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert str(tiny_embedder.parent) not in file.read_text("utf-8"), file.name


def test_the_card_of_a_published_base_names_its_repository() -> None:
    base = Base("Qwen/Qwen3-Embedding-0.6B", Path("models--Qwen--Qwen3-Embedding-0.6B") / "snapshots" / "abc")
    options, settings = {"instruction": 'say "a|b"'}, {"instruction": "a|b", "lora": None, "dimensions": (64, 32)}
    card = model_card("embedding", "mine", base, "3 examples", options, settings, History(1, [1.0]))
    assert "\nbase_model: Qwen/Qwen3-Embedding-0.6B\n" in card
    assert r'model = Embedder.from_pretrained("mine", instruction="say \"a|b\"")' in card
    assert "| instruction | a\\|b |\n| lora | – |\n| dimensions | 64, 32 |\n" in card


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (History(1, [2.0]), "It took 1 step.\nIts loss was 2.0000.\n"),
        (History(3, [3.0, 2.0, 1.0]), "It took 3 steps.\nLoss of the first step: 3.0000; of the last: 1.0000.\n"),
        (
            History(300, [3.0] * 150 + [1.0] * 150),
            "It took 300 steps.\nMean loss of the first 30 steps: 3.0000; of the last 30: 1.0000.\n",
        ),
        (
            History(5, [1.0, 2.0]),
            "**Interrupted after 2 of 5 steps: the learning rate had not come to its end.**\nLoss",
        ),
        (History(5, []), "**Interrupted after 0 of 5 steps: the learning rate had not come to its end.**\n\n| setting"),
    ],
    ids=["one", "few", "many", "interrupted", "none"],
)
def test_the_card_tells_the_losses_in_words(history: History, said: str) -> None:
    card = model_card("reranking", "mine", Base("demo", Path("demo")), "3 examples", {}, {"seed": 0}, history)
    assert f"\n## Training\n\n{said}" in card


def test_configuration_tokenizer_and_modules_are_copied_and_no_weights_code_or_records(tmp_path: Path) -> None:
    copied = {"config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "1_Pooling/config.json"}
    left = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "modeling.py", "README.md",
            "trainer_state.json", "1_Pooling/model.safetensors", "adapter/adapter_config.json"}  # fmt: skip
    for name in copied | left:
        (tmp_path / "base" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "base" / name).write_text(name)
    (tmp_path / "base" / "2_Normalize").mkdir()
    (tmp_path / "new").mkdir()
    copy_files(tmp_path / "base", tmp_path / "new")
    files = {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert files == copied
    assert (tmp_path / "new" / "2_Normalize").is_dir()


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    rename = os.replace
    renamed: list[Path] = []

    def fail_once(source: Path, destination: Path) -> None:
        if destination == target and not renamed:
            renamed.append(source)
            raise OSError(28, "No space left on device")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="No space left"), replaced_folder(target) as part:
        (part / "new").touch()
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()

    def fail() -> None:
        with replaced_folder(target) as part:
            (part / "new").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [file.name for file in target.iterdir()] == ["old"]
    with replaced_folder(target) as part:
        (part / "new").touch()
    assert [file.name for file in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
