"""Spherical interpolation against its identities, and merged checkpoints against their parts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_retrieval import Embedder
from qwen_retrieval.errors import CorruptCheckpointError, ModelNotFoundError
from qwen_retrieval.hub import model_folder
from qwen_retrieval.training import merge_checkpoints, merge_tensors, merging, slerp
from tests.command import fails, run

DEMO = model_folder("demo", "embedding")


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def angle(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten() / a.norm(), b.flatten() / b.norm()
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 9), st.floats(0, 1))
def test_slerp_walks_the_arc_at_constant_speed(seed: int, size: int, weight: float) -> None:
    a, b = (random(size, seed=seed + i) for i in (0, 1))
    a, b = a / a.norm(), b / b.norm()
    got = slerp(a, b, weight)
    assert float(got.norm()) == pytest.approx(1)
    assert angle(a, got) == pytest.approx(weight * angle(a, b), abs=1e-7)
    assert angle(got, b) == pytest.approx((1 - weight) * angle(a, b), abs=1e-7)
    torch.testing.assert_close(got, slerp(b, a, 1 - weight))


def test_slerp_ends_where_its_arguments_are() -> None:
    a, b = random(3, 4, seed=1), 5 * random(3, 4, seed=2)
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 0.0])
def test_slerp_of_almost_parallel_tensors_is_their_weighted_mean(step: float) -> None:
    a, b = random(50, seed=1), random(50, seed=1) + step * random(50, seed=2)
    torch.testing.assert_close(slerp(a, b, 0.3), 0.7 * a + 0.3 * b, atol=2 * step**2 + 1e-15, rtol=0)


@pytest.mark.parametrize(("a", "b"), [((1.0, 2.0), (0.0, 0.0)), ((0.0, 0.0), (1.0, 2.0)), ((1.0, 2.0), (-1.0, -2.0))])
def test_slerp_without_an_angle_is_the_weighted_mean(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    left, right = torch.tensor(a), torch.tensor(b)
    torch.testing.assert_close(slerp(left, right, 0.25), 0.75 * left + 0.25 * right)


def test_slerp_of_nothing_is_nothing() -> None:
    assert slerp(torch.zeros(0, 3), torch.zeros(0, 3), 0.5).shape == (0, 3)


def mergekit(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The formula as mergekit computes it, in numpy, away from its threshold for parallel tensors."""
    v0, v1 = a.numpy(), b.numpy()
    theta = np.arccos(np.sum(v0 / np.linalg.norm(v0) * (v1 / np.linalg.norm(v1))))
    return torch.from_numpy(np.sin(theta - theta * t) / np.sin(theta) * v0 + np.sin(theta * t) / np.sin(theta) * v1)


def test_slerp_of_matrices_is_that_of_mergekit(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random(7, 5, seed=3), 2 * random(7, 5, seed=4)
    torch.testing.assert_close(slerp(a, b, 0.4), mergekit(a, b, 0.4))
    monkeypatch.setattr(merging, "BLOCK", 4)
    torch.testing.assert_close(slerp(a, b, 0.4), mergekit(a, b, 0.4))


def test_several_tensors_are_merged_one_after_another() -> None:
    a, b, c = (random(6, seed=seed) for seed in (1, 2, 3))
    torch.testing.assert_close(merge_tensors([a, b, c], [1, 1, 1]), slerp(slerp(a, b, 0.5), c, 1 / 3))
    torch.testing.assert_close(merge_tensors([a, b, c], [2, 0, 6]), slerp(a, c, 0.75))
    torch.testing.assert_close(merge_tensors([a, b, c], [0, 0, 1]), c)


def test_a_merged_tensor_is_rounded_once() -> None:
    parts = [random(300, seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3)]
    merged = merge_tensors(parts, [1, 1, 1])
    exact = merge_tensors([part.double() for part in parts], [1, 1, 1])
    assert merged.dtype == torch.bfloat16
    assert (merged != exact.bfloat16()).float().mean() < 0.01  # rounding to float32 in between may break a tie


def checkpoint(folder: Path, change: Callable[[dict[str, Tensor]], None], **config: Any) -> Path:
    """The demo embedder with other tensors, all that loading needs beside them."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(json.loads((DEMO / "config.json").read_text()) | config))
    tensors = load_file(DEMO / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def moved(seed: int) -> Callable[[dict[str, Tensor]], None]:
    """Every tensor moved a little, as by training."""

    def change(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().nan_to_num(0) * 0.1
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)

    return change


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("merging") / "other", moved(1), torch_dtype="float32")


def test_the_merged_checkpoint_is_loaded_like_its_parts(other: Path, tmp_path: Path) -> None:
    written: list[int] = []
    output = merge_checkpoints([DEMO, other], tmp_path / "new" / "merged", weights=[3, 1], update=written.append)
    left, right, merged = (load_file(folder / "model.safetensors") for folder in (DEMO, other, output))
    assert merged.keys() == left.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == left[name].dtype
        torch.testing.assert_close(tensor, slerp(left[name], right[name], 0.25).to(tensor.dtype))
    assert written[-1] == sum(tensor.nbytes for tensor in merged.values())
    assert (output / "tokenizer.json").read_bytes() == (DEMO / "tokenizer.json").read_bytes()
    assert json.loads((output / "config.json").read_text()) == json.loads((DEMO / "config.json").read_text())
    vectors = []
    for folder in (DEMO, output, other):
        with Embedder.from_pretrained(str(folder), device="cpu", dtype="float32") as embedder:
            vectors.append(embedder.embed_documents(["how to copy a file"])[0])
    assert vectors[0] @ vectors[2] < vectors[0] @ vectors[1] < 1 - 1e-6


def test_a_checkpoint_merged_with_itself_is_the_same_file(tmp_path: Path) -> None:
    merge_checkpoints([DEMO, DEMO, DEMO], tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (DEMO / "model.safetensors").read_bytes()


def sharded(folder: Path, parts: int) -> Path:
    """A tiny checkpoint in several files, with what must not be copied beside it."""
    folder.mkdir()
    (folder / "1_Pooling").mkdir()
    for name in ("config.json", "1_Pooling/config.json", "trainer_state.json", "modules.json"):
        (folder / name).write_text("{}")
    for name in ("training_args.bin", "optimizer.pt", "modeling.py", "README.md"):
        (folder / name).write_text("not to be copied")
    names = {f"layer.{i}": f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i in range(5)}
    seed = parts * 10
    for file in sorted(set(names.values())):
        save_file(
            {n: random(3, 4, seed=seed + int(n[-1]), dtype=torch.float32) for n in names if names[n] == file},
            folder / file,
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_files_are_divided_as_those_of_the_first(tmp_path: Path) -> None:
    two, three = sharded(tmp_path / "two", 2), sharded(tmp_path / "three", 3)
    output = merge_checkpoints([two, three], tmp_path / "merged")
    files = sorted(file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file())
    assert files == [
        "1_Pooling/config.json", "README.md", "config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "modules.json",
    ]  # fmt: skip
    assert "not to be copied" not in (output / "README.md").read_text()
    for i in range(5):
        got = load_file(output / f"model-{i % 2 + 1:05}-of-00002.safetensors")[f"layer.{i}"]
        left, right = (random(3, 4, seed=seed + i, dtype=torch.float32) for seed in (20, 30))
        torch.testing.assert_close(got, slerp(left, right, 0.5))


def without_norm(tensors: dict[str, Tensor]) -> None:
    del tensors["norm.weight"]


def test_tensors_of_other_names_or_shapes_are_refused_by_name(tmp_path: Path) -> None:
    fewer = checkpoint(tmp_path / "fewer", without_norm)
    with pytest.raises(ValueError, match=r"different tensors: only .*embedder has norm\.weight$"):
        merge_checkpoints([DEMO, fewer], tmp_path / "merged")
    wider = checkpoint(tmp_path / "wider", lambda tensors: tensors.update({"norm.weight": torch.ones(7)}))
    with pytest.raises(ValueError, match=r"norm\.weight has shape \[192\] in .* but \[7\] in .*wider"):
        merge_checkpoints([DEMO, wider], tmp_path / "merged")
    whole = checkpoint(tmp_path / "whole", lambda tensors: tensors.update({"norm.weight": torch.ones(192).long()}))
    with pytest.raises(ValueError, match=r"norm\.weight .*as integers in one"):
        merge_checkpoints([DEMO, whole], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"norm\.weight in .* is not floating point"):
        merge_checkpoints([whole, whole], tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fewer", "whole", "wider"]


def test_other_architectures_and_tokens_are_refused_by_name(tmp_path: Path) -> None:
    changed = checkpoint(tmp_path / "changed", lambda _: None, rope_theta=1e4)
    with pytest.raises(ValueError, match=r"says rope_theta=1000000\.0, but that of .*changed 10000"):
        merge_checkpoints([DEMO, changed], tmp_path / "merged")
    tokens = checkpoint(tmp_path / "tokens", lambda _: None)
    tokenizer = json.loads((tokens / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (tokens / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="different tokens"):
        merge_checkpoints([DEMO, tokens], tmp_path / "merged")


def test_damaged_and_missing_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        merge_checkpoints([DEMO, tmp_path / "nowhere"], tmp_path / "merged")
    broken = checkpoint(tmp_path / "broken", lambda _: None)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CorruptCheckpointError, match="cannot be read"):
        merge_checkpoints([DEMO, broken], tmp_path / "merged")
    half = sharded(tmp_path / "half", 2)
    (half / "model-00002-of-00002.safetensors").write_bytes(b"\x10")
    with pytest.raises(CorruptCheckpointError, match="half cannot be read as safetensors"):
        merge_checkpoints([half, half], tmp_path / "merged")
    short = sharded(tmp_path / "short", 2)
    index = json.loads((short / "model.safetensors.index.json").read_text())
    del index["weight_map"]["layer.3"]
    (short / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match=r"do not agree about layer\.3"):
        merge_checkpoints([short, short], tmp_path / "merged")


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -0.5], [0.0, 0.0], [math.nan, 1.0]], ids=["few", "negative", "zero", "nan"]
)
def test_weights_that_do_not_fit_are_refused(weights: list[float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^weights must"):
        merge_checkpoints([DEMO, DEMO], tmp_path / "merged", weights=weights)


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        merge_checkpoints([DEMO, DEMO], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_merge_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints([DEMO, DEMO], tmp_path / "merged", update=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_command_merges(other: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    assert run("train", "merge", str(DEMO), str(other), "-o", str(output), "--weight", "1") == ""
    merged, right = (load_file(folder / "model.safetensors") for folder in (output, other))
    assert all(torch.equal(merged[name], right[name]) for name in merged)
    assert "| other | 1 |" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("weights", "message"),
    [((), "two checkpoints at least"), (("0.5",), "for each model after the first, 0, but got 1")],
    ids=["none", "one"],
)
def test_the_command_refuses_one_model(weights: tuple[str, ...], message: str, tmp_path: Path) -> None:
    options = [part for weight in weights for part in ("--weight", weight)]
    assert message in fails("train", "merge", str(DEMO), "-o", str(tmp_path / "merged"), *options)


def test_the_command_refuses_shares_over_one(tmp_path: Path) -> None:
    arguments = (
        "train",
        "merge",
        *[str(DEMO)] * 3,
        "-o",
        str(tmp_path / "merged"),
        "--weight",
        "0.7",
        "--weight",
        "0.7",
    )
    assert re.search("must not exceed 1 together, but got 1.4", fails(*arguments))


def test_numbers_in_double_precision_are_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    double = Tensor.double

    def watched(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return double(tensor)

    monkeypatch.setattr(merging, "BLOCK", 1000)
    monkeypatch.setattr(Tensor, "double", watched)
    slerp(torch.randn(64, 65), torch.randn(64, 65), 0.5)
    assert max(sizes) == 1000
