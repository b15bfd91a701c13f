"""The trainers, on tiny random checkpoints: they learn, resume exactly, and compute in parts what they do at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.loading import read_config
from qwen_retrieval.specs import match_embedding, match_reranking
from qwen_retrieval.templates import EmbeddingTemplate, RerankingTemplate
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.training.data import Example, ExampleFile
from qwen_retrieval.training.embedder import EmbedderObjective, EmbedderSettings, train_embedder
from qwen_retrieval.training.loop import History, LoopSettings, Schedule, learning_rate, train
from qwen_retrieval.training.losses import InfoNCESettings, info_nce
from qwen_retrieval.training.reranker import RerankerObjective, RerankerSettings, train_reranker
from qwen_retrieval.training.tuning import (
    LoraSettings,
    Qwen3ForCausalLM,
    Qwen3Model,
    TuningSettings,
    load_model,
)
from tests.command import fails, run

TASK = "Given a word, find its page"
FAST = LoopSettings(epochs=3, batch_size=6, learning_rate=2e-3, held_out=0.15, save_every=2, evaluate_every=4)


def embedder_objective(
    folder: Path, *, max_batch_tokens: int = 10_000, tuning: TuningSettings | None = None
) -> EmbedderObjective:
    tokenizer = HubTokenizer.from_folder(folder)
    template = EmbeddingTemplate(tokenizer, match_embedding(str(folder), read_config(folder), tokenizer))
    model = load_model(folder, Qwen3Model, tuning or TuningSettings(device="cpu"), seed=0)
    settings = EmbedderSettings(max_batch_tokens=max_batch_tokens)
    return EmbedderObjective(model, template, settings, instruction=TASK, dimensions=[32, 64], dtype=torch.float32)


def reranker_objective(folder: Path, *, max_batch_tokens: int = 10_000) -> RerankerObjective:
    tokenizer = HubTokenizer.from_folder(folder)
    template = RerankingTemplate(tokenizer, match_reranking(str(folder), read_config(folder), tokenizer))
    model = load_model(folder, Qwen3ForCausalLM, TuningSettings(device="cpu"), seed=0)
    settings = RerankerSettings(max_batch_tokens=max_batch_tokens)
    return RerankerObjective(model, template, settings, instruction=TASK, dtype=torch.float32)


def gradients(objective: EmbedderObjective | RerankerObjective, data: Path) -> tuple[float, dict[str, Tensor]]:
    examples = ExampleFile(data).read(range(8))
    loss = objective.loss(examples, seed=1, backward=True)
    found = {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    return loss, found


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_loss_is_that_of_the_vectors_the_engine_computes(tiny_embedder: Path, data: Path) -> None:
    examples = ExampleFile(data).read(range(6))
    got = embedder_objective(tiny_embedder).loss(examples, seed=0, backward=False)
    with Embedder.from_pretrained(str(tiny_embedder), device="cpu", dtype="float32") as embedder:
        asked = [embedder.embed_queries([e.query], instruction=e.instruction or TASK)[0] for e in examples]
        documents = embedder.embed_documents([e.positive for e in examples])
        blank = [[*e.negatives, *[e.positive] * 2][:2] for e in examples]
        negatives = embedder.embed_documents([text for row in blank for text in row])
    queries, positives = torch.tensor(np.stack(asked)), torch.tensor(documents)
    hard = torch.tensor(negatives).view(6, 2, -1)
    texts = [[e.positive, *row] for e, row in zip(examples, blank, strict=True)]
    numbers = {text: i for i, text in enumerate(sorted({text for row in texts for text in row}))}
    ids = torch.tensor([[numbers[text] for text in row] for row in texts])
    want = sum(float(info_nce(queries[:, :n], positives[:, :n], hard[..., :n], text_ids=ids)) for n in (32, 64))
    assert got == pytest.approx(want, rel=1e-4)


def test_cached_gradients_give_the_step_of_the_whole_batch(tiny_embedder: Path, data: Path) -> None:
    whole, wanted = gradients(embedder_objective(tiny_embedder), data)
    parts, got = gradients(embedder_objective(tiny_embedder, max_batch_tokens=60), data)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert_same_gradients(wanted, got)


@pytest.mark.parametrize("room", [10_000, 60], ids=["all in memory", "in parts"])
def test_inputs_of_alike_lengths_are_padded_together(
    tiny_embedder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    def computed(part_tokens: int) -> tuple[int, int, dict[str, Tensor]]:
        monkeypatch.setattr("qwen_retrieval.training.data.PART_TOKENS", part_tokens)
        objective, sizes = embedder_objective(tiny_embedder, max_batch_tokens=room), []
        objective.model.register_forward_pre_hook(
            lambda _model, _args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
        )
        _, found = gradients(objective, data)
        return len(sizes), sum(sizes), found

    _, padded, wanted = computed(10_000)
    passes, tokens, got = computed(60)
    assert_same_gradients(wanted, got)
    assert passes > 1
    assert tokens <= padded if room == 60 else tokens < padded


def test_checkpointed_activations_give_the_same_step(tiny_embedder: Path, data: Path) -> None:
    whole, wanted = gradients(embedder_objective(tiny_embedder), data)
    tuning = TuningSettings(device="cpu", gradient_checkpointing=True)
    objective = embedder_objective(tiny_embedder, tuning=tuning)
    objective.model.train()
    again, got = gradients(objective, data)
    assert again == pytest.approx(whole, rel=1e-6)
    assert_same_gradients(wanted, got)


def test_cached_gradients_have_the_same_dropout_in_both_passes(tiny_embedder: Path, data: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is peft's")
    tuning = TuningSettings(device="cpu", lora=LoraSettings(rank=2, dropout=0.5))
    objective = embedder_objective(tiny_embedder, max_batch_tokens=60, tuning=tuning)
    objective.model.train()
    for parameter in objective.model.parameters():  # adapters begin as zero, where dropout does nothing
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    examples = ExampleFile(data).read(range(8))
    loss = objective.loss(examples, seed=3, backward=True)
    name, weight = next((n, p) for n, p in objective.model.named_parameters() if p.grad is not None)
    assert weight.grad is not None, name
    direction = weight.grad / weight.grad.norm()
    slope = float((weight.grad * direction).sum())
    step = 0.01 / slope
    with torch.no_grad():
        weight += step * direction
    changed = objective.loss(examples, seed=3, backward=False)
    assert changed - loss == pytest.approx(0.01, rel=0.05)


def test_a_rerankers_step_does_not_depend_on_its_parts(tiny_reranker: Path, data: Path) -> None:
    whole, wanted = gradients(reranker_objective(tiny_reranker), data)
    parts, got = gradients(reranker_objective(tiny_reranker, max_batch_tokens=300), data)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert_same_gradients(wanted, got)


def test_an_embedder_learns_and_its_checkpoint_ranks_what_it_learned(
    tiny_embedder: Path, data: Path, tmp_path: Path
) -> None:
    loop = LoopSettings(epochs=12, batch_size=10, learning_rate=3e-3, held_out=0)
    settings = EmbedderSettings(instruction=TASK, loss=InfoNCESettings(margin=None))
    history = train_embedder(str(tiny_embedder), data, tmp_path / "out", settings=settings, loop=loop)
    assert history.is_finished
    assert sum(history.losses[-4:]) < 0.5 * sum(history.losses[:4])
    examples = [e for e in ExampleFile(data).read(range(20)) if e.instruction is None]
    texts = list(dict.fromkeys(e.positive for e in examples))

    def found(folder: Path) -> int:
        with Embedder.from_pretrained(str(folder), device="cpu", dtype="float32", instruction=TASK) as embedder:
            scores = embedder.embed_queries([e.query for e in examples]) @ embedder.embed_documents(texts).T
        return sum(texts[int(row.argmax())] == e.positive for row, e in zip(scores, examples, strict=True))

    assert found(tmp_path / "out") > found(tiny_embedder)
    assert not (tmp_path / "out.training").exists()


def test_a_reranker_learns_to_tell_positives_from_negatives(tiny_reranker: Path, data: Path, tmp_path: Path) -> None:
    loop = LoopSettings(epochs=10, batch_size=10, learning_rate=3e-3, held_out=0)
    history = train_reranker(str(tiny_reranker), data, tmp_path / "out", loop=loop)
    assert sum(history.losses[-4:]) < 0.5 * sum(history.losses[:4])
    examples = [e for e in ExampleFile(data).read(range(20)) if e.negatives and e.instruction is None]
    with Reranker.from_pretrained(str(tmp_path / "out"), device="cpu", dtype="float32") as reranker:
        scores = [reranker.score(e.query, [e.positive, e.negatives[0]]) for e in examples]
    relevant, irrelevant = np.array(scores).mean(axis=0)
    assert relevant > irrelevant + 0.2


class Interrupt:
    """Presses Ctrl-C after a step."""

    def __init__(self, *steps: int) -> None:
        self.steps = [*steps]

    def __call__(self, history: History) -> None:
        if history.step in self.steps:
            self.steps.remove(history.step)
            signal.raise_signal(signal.SIGINT)


Train = Callable[..., History]


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_an_interrupted_run_ends_where_an_unbroken_one_does(
    kind: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trainers: dict[str, Train] = {"embedder": train_embedder, "reranker": train_reranker}
    train = trainers[kind]
    base = request.getfixturevalue(f"tiny_{kind}")
    unbroken = train(str(base), data, tmp_path / "unbroken", loop=FAST)
    interrupt = Interrupt(3, 7)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(str(base), data, tmp_path / "broken", loop=FAST, report=interrupt)
    assert "**Interrupted after 7 of" in (tmp_path / "broken" / "README.md").read_text("utf-8")
    resumed = train(str(base), data, tmp_path / "broken", loop=FAST, report=interrupt)
    assert resumed == unbroken
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "broken"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    start = load_file(base / "model.safetensors")
    assert not all(torch.equal(left[name], start[name]) for name in left)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of peft, called below
def test_a_run_with_adapters_resumes_exactly_and_merges(tiny_embedder: Path, data: Path, tmp_path: Path) -> None:
    module = pytest.importorskip("peft", reason="LoRA is peft's")
    tuning = TuningSettings(device="cpu", lora=LoraSettings(rank=2, dropout=0.1))
    train_embedder(str(tiny_embedder), data, tmp_path / "unbroken", loop=FAST, tuning=tuning)
    with pytest.raises(KeyboardInterrupt):
        train_embedder(str(tiny_embedder), data, tmp_path / "out", loop=FAST, tuning=tuning, report=Interrupt(4))
    train_embedder(str(tiny_embedder), data, tmp_path / "out", loop=FAST, tuning=tuning)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "unbroken" / "model.safetensors").items():
        assert torch.equal(tensor, merged[name])
    assert not torch.equal(
        merged["layers.0.mlp.up_proj.weight"],
        load_file(tiny_embedder / "model.safetensors")["layers.0.mlp.up_proj.weight"],
    )
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "tiny-embedder"
    base = Qwen3Model.from_pretrained(tiny_embedder, dtype=torch.float32)
    adapted = module.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").merge_and_unload()
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(tensor, merged[name])


def test_another_setting_or_other_data_do_not_resume_a_run(tiny_embedder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_embedder(str(tiny_embedder), data, tmp_path / "out", loop=FAST, report=Interrupt(1))
    settings = EmbedderSettings(loss=InfoNCESettings(temperature=0.1))
    with pytest.raises(ValueError, match=r"started with loss.temperature=0.05, but now it is 0.1"):
        train_embedder(str(tiny_embedder), data, tmp_path / "out", loop=FAST, settings=settings)
    data.write_text(data.read_text("utf-8").replace("sort it", "sort them"), "utf-8")
    with pytest.raises(ValueError, match="started with data="):
        train_embedder(str(tiny_embedder), data, tmp_path / "out", loop=FAST)


def test_a_checkpoint_is_not_overwritten(tiny_embedder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(FileExistsError, match="no interrupted run belongs to it"):
        train_embedder(str(tiny_embedder), data, tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


def test_a_reranker_needs_negatives(tiny_reranker: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "q", "positive": "d"}', encoding="utf-8")
    with pytest.raises(ValueError, match="qwen-retrieval train mine"):
        train_reranker(str(tiny_reranker), path, tmp_path / "out")


class RootAtZero:
    """An objective whose loss is a number where its gradient is none."""

    def __init__(self) -> None:
        self._linear = torch.nn.Linear(1, 1)
        self.model: torch.nn.Module = self._linear

    def loss(self, examples: Sequence[Example], *, seed: int, backward: bool) -> float:
        assert examples
        value = self._linear.weight.square().sum() + (self._linear.bias * 0 + seed * 0).sqrt().sum()
        if backward:
            value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())


def test_gradients_that_are_not_finite_end_the_run_before_a_step_is_taken(data: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    with pytest.raises(ValueError, match="the norm of the gradients of step 1 is nan: lower the learning rate"):
        train(RootAtZero(), ExampleFile(data), LoopSettings(batch_size=2, held_out=0), state, identity={})
    assert not state.exists()


def test_a_loss_that_is_not_finite_ends_the_run(tiny_embedder: Path, data: Path, tmp_path: Path) -> None:
    settings = EmbedderSettings(loss=InfoNCESettings(temperature=1e-45))
    with pytest.raises(ValueError, match="the loss of step 1 is nan: lower the learning rate"):
        train_embedder(str(tiny_embedder), data, tmp_path / "out", loop=FAST, settings=settings)
    assert not (tmp_path / "out").exists()


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    settings = LoopSettings(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0)
    assert learning_rate(LoopSettings(warmup=0, learning_rate=1.0), 0, 1) == 1


def test_no_step_trains_on_what_is_held_out(data: Path) -> None:
    schedule = Schedule(ExampleFile(data), FAST)
    seen = {int(i) for step in range(schedule.steps) for i in schedule.batch(step)}
    out = {int(i) for batch in schedule.held_out_batches() for i in batch}
    assert out
    assert seen.isdisjoint(out)
    assert len(seen) + len(out) == 20


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("warmup", 1.0), ("weight_decay", -1.0), ("seed", -1)],
)
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must .* but got {value}"):
        LoopSettings(**{option: value})  # type: ignore[arg-type]


def test_the_commands_train_and_say_what_came_of_it(tiny_embedder: Path, tiny_reranker: Path, data: Path) -> None:
    out = data.parent
    common = ["--batch-size", "10", "--held-out", "0.2", "--device", "cpu"]
    run("train", "embedder", str(data), "-o", str(out / "e"), "--model", str(tiny_embedder), "--dimensions", "32",
        "--dimensions", "64", *common)  # fmt: skip
    card = (out / "e" / "README.md").read_text("utf-8")
    assert "| dimensions | 32, 64 |" in card
    run("train", "reranker", str(data), "-o", str(out / "r"), "--model", str(tiny_reranker), "--over", "answers",
        *common)  # fmt: skip
    assert "| over | answers |" in (out / "r" / "README.md").read_text("utf-8")
    error = fails("train", "embedder", str(data), "-o", str(out / "e"), "--model", str(tiny_embedder))
    assert "already exists, and no interrupted run belongs to it" in error
