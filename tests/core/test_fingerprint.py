"""The key under which vectors may be kept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen_retrieval import Embedder
from qwen_retrieval.engine.int8 import _obstacle
from qwen_retrieval.errors import CorruptCheckpointError
from qwen_retrieval.fingerprint import check_dimensions, embedding_fingerprint, full_dimensions
from qwen_retrieval.hub import model_folder
from qwen_retrieval.specs import CHECKPOINTS, WEB_SEARCH
from qwen_retrieval.templates import VERSION
from qwen_retrieval.testing import (
    ByteTokenizer,
    FakeEmbeddingEngine,
    fake_embedding_spec,
)

MODEL = "Qwen/Qwen3-Embedding-0.6B"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(model_folder("demo", "embedding"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "Qwen/Qwen3-Embedding-4B"},
        {"revision": "refs/pr/1"},
        {"dimensions": 512},
        {"instruction": "code_search"},
        {"instruction": ""},
        {"document_instruction": "code_search"},
        {"max_length": 512},
        {"control_tokens": "keep"},
        {"dtype": "int8"},
    ],
    ids=str,
)
def test_whatever_changes_vectors_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert embedding_fingerprint(**{"model": MODEL, **change}) != embedding_fingerprint(MODEL)


@pytest.mark.parametrize(
    "same",
    [
        {"model": "0.6B"},
        {"revision": "main"},
        {"dimensions": 1024},
        {"instruction": "web_search"},
        {"instruction": WEB_SEARCH},
        {"document_instruction": ""},
        {"max_length": 8192},
        {"dtype": "bfloat16"},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_other_spellings_of_the_same_have_the_same_fingerprint(same: dict[str, Any]) -> None:
    assert embedding_fingerprint(**{"model": MODEL, **same}) == embedding_fingerprint(MODEL)


@pytest.mark.parametrize("model", [MODEL, "demo", "somebody/fine tuned: model"])
def test_it_is_fit_for_keys_and_file_names_and_can_be_read(model: str) -> None:
    found = embedding_fingerprint(model)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", found)
    assert found.startswith(
        {MODEL: "Qwen3-Embedding-0.6B-1024-", "demo": "demo-192-"}.get(model, "fine-tuned-model-full-")
    )


def test_it_does_not_depend_on_the_process() -> None:
    assert embedding_fingerprint(MODEL) == "Qwen3-Embedding-0.6B-1024-42cde2f7e2690301"


def test_a_folder_is_told_by_what_is_in_it(folder: Path) -> None:
    before = embedding_fingerprint(str(folder))
    copied = shutil.copytree(folder, folder.parent / "elsewhere" / "another name")
    assert embedding_fingerprint(str(copied)) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-3000:] = bytes(3000)
    (folder / "model.safetensors").write_bytes(weights)
    assert embedding_fingerprint(str(folder)) != before


def test_in_large_weights_no_tensor_escapes_the_samples(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {f"layer.{number}": np.zeros((1 << 20) if number % 2 else 64, np.float32) for number in range(12)}
    save_file(tensors, path)
    before = embedding_fingerprint(str(folder))
    for name in tensors:
        save_file({**tensors, name: tensors[name] + 1}, path)
        assert embedding_fingerprint(str(folder)) != before, name
    save_file(tensors, path)
    assert embedding_fingerprint(str(folder)) == before


def test_large_weights_that_are_none_get_a_fingerprint_too(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(3 << 20))
    assert embedding_fingerprint(str(folder)).startswith("folder-192-")


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "model-2.safetensors").symlink_to(folder / "nowhere")
    with pytest.raises(CorruptCheckpointError, match=r"nowhere|model-2"):
        embedding_fingerprint(str(folder))


@pytest.mark.parametrize(
    "wrong", [{"dimensions": -5}, {"dimensions": 0}, {"dimensions": 9999}, {"control_tokens": "kep"}], ids=str
)
def test_settings_that_no_embedder_takes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        embedding_fingerprint(MODEL, **wrong)


def test_a_link_a_copy_and_a_path_object_are_the_same(folder: Path) -> None:
    link = folder.parent / "current"
    link.symlink_to(folder)
    with Embedder.from_pretrained(str(link)) as embedder:
        assert embedder.fingerprint == embedding_fingerprint(str(link)) == embedding_fingerprint(str(folder))
    path: Any = folder
    assert embedding_fingerprint(path) == embedding_fingerprint(str(folder))


def test_a_loaded_embedder_has_the_fingerprint_of_its_settings() -> None:
    settings: dict[str, Any] = {"dimensions": 64, "instruction": "code_search", "max_length": 100}
    with Embedder.from_pretrained("demo", **settings) as embedder:
        assert embedder.fingerprint == embedding_fingerprint("demo", **settings)


@pytest.mark.skipif(_obstacle() is not None, reason="needs a CPU with AVX-512 VNNI")
def test_vectors_of_int8_are_kept_apart_from_those_of_other_dtypes() -> None:
    where: dict[str, Any] = {"device": "cpu"}
    with (
        Embedder.from_pretrained("demo", dtype="int8", **where) as quantized,
        Embedder.from_pretrained("demo", dtype="float32", **where) as exact,
    ):
        assert (quantized.dtype, exact.dtype) == ("int8", "float32")
        assert quantized._worker is not exact._worker
        assert quantized.fingerprint == embedding_fingerprint("demo", dtype="int8")
        assert exact.fingerprint == embedding_fingerprint("demo")


def test_an_embedder_has_the_fingerprint_of_other_settings_too() -> None:
    settings: dict[str, Any] = {"dimensions": 64, "instruction": "", "document_instruction": "code_search"}
    with Embedder.from_pretrained("demo", max_length=100) as embedder:
        assert embedder.fingerprint_for(**settings) == embedding_fingerprint("demo", max_length=100, **settings)


def test_an_embedder_made_of_parts_has_one_too() -> None:
    embedder = Embedder(FakeEmbeddingEngine(), ByteTokenizer(), fake_embedding_spec())
    assert embedder.fingerprint.startswith("fake-embedding-64-")


def test_the_full_length_is_known_without_loading(folder: Path) -> None:
    assert {full_dimensions(one.size) for one in CHECKPOINTS if one.kind == "embedding"} == {1024, 2560, 4096}
    assert full_dimensions("demo") == full_dimensions(str(folder)) == 192
    assert full_dimensions("somebody/model") is None
    (folder / "config.json").write_text("no json")
    assert full_dimensions(str(folder)) is None


def test_impossible_dimensions_are_refused_without_loading() -> None:
    with pytest.raises(
        ValueError, match=r"dimensions must be between 32 and 1024 for Qwen3-Embedding-0.6B, but got 2048"
    ):
        check_dimensions(MODEL, 2048)
    assert check_dimensions(MODEL, None) == 1024
    assert check_dimensions("somebody/model", 7) == 7


def test_templates_that_change_need_a_new_version(golden_tokens: dict[str, Any]) -> None:
    """When this fails because token ids have changed on purpose, raise `VERSION` with it."""
    digest = hashlib.sha256(json.dumps(golden_tokens, sort_keys=True).encode()).hexdigest()[:12]
    assert (VERSION, digest) == (1, "9b4b1a8bac40")
