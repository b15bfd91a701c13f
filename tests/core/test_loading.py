from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_retrieval import Embedder, Reranker, loading
from qwen_retrieval.engine import engine
from qwen_retrieval.engine.engine import PackedEngine, resolve_device, resolve_dtype
from qwen_retrieval.errors import (
    CorruptCheckpointError,
    ModelClosedError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from qwen_retrieval.loading import LoadConfig, load_embedding
from qwen_retrieval.specs import QWEN3_EMBEDDING
from qwen_retrieval.types import FloatArray, TokenIds
from tests.checkpoints import write_checkpoint
from tests.threads import none_left, threads

PATIENCE = 60.0
"""Seconds after which a test that hangs fails instead. No test depends on it otherwise."""

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
FIRST_CONTROL_ID = 8192  # as in the demo family
ROWS = FIRST_CONTROL_ID + len(CONTROL_TOKENS)
WHERE: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


def write_tokenizer(folder: Path, *, appends_end: bool) -> None:
    """A tokenizer of bytes, "yes" and "no" with the ids of the demo family: it loads in milliseconds."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    words = [*map(chr, printable), *(chr(256 + i) for i in range(len(others))), "ye", "yes", "no"]
    words += [f"unused{i}" for i in range(len(words), FIRST_CONTROL_ID)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    end = {"id": "<|endoftext|>", "ids": [FIRST_CONTROL_ID], "tokens": ["<|endoftext|>"]}
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": FIRST_CONTROL_ID + i, "content": token, **flags} for i, token in enumerate(CONTROL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single if appends_end else single[:1],
            "pair": single[:1],
            "special_tokens": {"<|endoftext|>": end} if appends_end else {},
        },
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [["y", "e"], ["ye", "s"], ["n", "o"]],
        },
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the good checkpoints `embedder` and `reranker`."""
    folder = tmp_path_factory.mktemp("sources")
    for kind in ("embedder", "reranker"):
        write_tokenizer(folder / f"{kind} tokenizer", appends_end=kind == "embedder")
        tokenizer = folder / f"{kind} tokenizer"
        write_checkpoint(folder / kind, tokenizer, SHAPE, prefix=kind == "reranker", vocab_size=ROWS)
    return folder


@pytest.fixture
def embedder(sources: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(sources / "embedder", tmp_path / "embedder"))


@pytest.fixture
def reranker(sources: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(sources / "reranker", tmp_path / "reranker"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    with none_left():
        yield


def config_of(folder: Path, **options: Any) -> LoadConfig:
    return LoadConfig(str(folder), "embedding", **{**WHERE, **options})


def embedding_table(folder: Path) -> weakref.ref[torch.Tensor]:
    """A weak reference to the largest tensor of a model that is in memory already."""
    loaded = load_embedding(config_of(folder))
    table = weakref.ref(loaded.engine.decoder.weights.embedding)
    loaded.release()
    return table


# The cache


def test_sixteen_threads_that_ask_for_the_same_model_get_one(embedder: Path) -> None:
    start = threading.Barrier(16)

    def load(_: int) -> Embedder:
        start.wait(PATIENCE)
        return Embedder.from_pretrained(str(embedder), **WHERE)

    with ThreadPoolExecutor(16) as pool:
        embedders = list(pool.map(load, range(16)))
    assert len({id(each._worker) for each in embedders}) == 1
    vectors = [each.embed_documents(["Water"]) for each in embedders]
    assert all(np.array_equal(vectors[0], each) for each in vectors)
    for each in embedders[1:]:
        each.close()
    assert np.array_equal(embedders[0].embed_documents(["Water"]), vectors[0])
    embedders[0].close()
    assert threads() == []


def test_auto_and_what_it_means_here_are_the_same_model(embedder: Path) -> None:
    device = resolve_device("auto")
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    automatic = load_embedding(config_of(embedder, device="auto", dtype="auto"))
    explicit = load_embedding(config_of(embedder, device=str(device), dtype=dtype))
    assert automatic.worker is explicit.worker
    assert (automatic.device, automatic.dtype) == (explicit.device, explicit.dtype)
    automatic.release()
    explicit.release()


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])
def test_a_device_with_its_number_and_without_is_the_same_model(embedder: Path, device: str) -> None:
    loaded = [load_embedding(config_of(embedder, device=name)) for name in (device, f"{device}:0")]
    assert len({id(each.worker) for each in loaded}) == 1
    for each in loaded:
        each.release()


def test_a_model_in_memory_needs_no_hub_and_is_shared_with_those_who_forbid_it(embedder: Path) -> None:
    one, other = (load_embedding(config_of(embedder, local_files_only=forbidden)) for forbidden in (False, True))
    assert one.worker is other.worker
    one.release()
    other.release()


FORKED = """
    import faulthandler, os, sys
    from qwen_retrieval import Embedder
    from qwen_retrieval.errors import ModelError

    def load():
        return Embedder.from_pretrained(sys.argv[1], device="cpu", dtype="float32")

    inherited = load()
    vectors = inherited.embed_documents(["Water"]).tolist()
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) or inherited.embed_documents(["Water"]).tolist() != vectors)
    faulthandler.dump_traceback_later(PATIENCE, exit=True)  # where it hangs, if it does
    try:
        inherited.embed_documents(["Water"])
    except ModelError as error:
        assert "load it in the child process" in str(error)
        with load() as own:
            sys.exit(own.embed_documents(["Water"]).tolist() != vectors)
    sys.exit("the model of the parent must not be used")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_load_the_model_again(embedder: Path) -> None:
    # Newer Pythons warn of forking with threads, rightly.
    command = [sys.executable, "-W", "ignore", "-c", dedent(FORKED.replace("PATIENCE", str(PATIENCE))), str(embedder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_all_spellings_of_a_folder_are_the_same_model(embedder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(embedder.parent))
    spellings = [str(embedder), f"{embedder}/", f"{embedder}/../{embedder.name}", f"~/{embedder.name}"]
    loaded = [load_embedding(LoadConfig(spelling, "embedding", **WHERE)) for spelling in spellings]
    assert len({id(each.worker) for each in loaded}) == 1
    for each in loaded:
        each.release()


def test_another_dtype_is_another_model(embedder: Path) -> None:
    full, half = load_embedding(config_of(embedder)), load_embedding(config_of(embedder, dtype="bfloat16"))
    assert full.worker is not half.worker
    full.release()
    half.release()


def test_a_batch_invariant_model_is_another_model(embedder: Path) -> None:
    plain, invariant = load_embedding(config_of(embedder)), load_embedding(config_of(embedder, batch_invariant=True))
    assert plain.worker is not invariant.worker
    assert (plain.batch_invariant, invariant.batch_invariant) == (False, True)
    plain.release()
    invariant.release()


@pytest.mark.parametrize(("device", "dtype"), [("cuda:0", "bfloat16"), ("mps", "float32"), ("cpu", "int8")])
def test_batch_invariance_is_refused_where_it_was_not_measured(device: str, dtype: str) -> None:
    config = LoadConfig("demo", "embedding", device=(device,), dtype=dtype, batch_invariant=True)
    message = rf"batch_invariant=True is offered on the CPU .* but got {dtype} on {device}; pass device=\"cpu\""
    with pytest.raises(ValueError, match=message):
        loading._refuse_unproven_invariance(config)


def test_models_on_the_cpu_compute_in_turn(embedder: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computing, most, lock = 0, 0, threading.Lock()
    compute = PackedEngine._compute

    def counted(engine: PackedEngine, batch: list[TokenIds]) -> FloatArray:
        nonlocal computing, most
        with lock:
            computing += 1
            most = max(most, computing)
        time.sleep(0.001)  # so that another thread comes in, if it may
        try:
            return compute(engine, batch)
        finally:
            with lock:
                computing -= 1

    texts = [f"Water {number}" for number in range(40)]
    with (
        Embedder.from_pretrained(str(embedder), max_batch_tokens=20, **WHERE) as one,
        Reranker.from_pretrained(str(reranker), max_batch_tokens=20, **WHERE) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        monkeypatch.setattr(PackedEngine, "_compute", counted)
        futures = [pool.submit(one.embed_documents, texts), pool.submit(two.score, "Water", texts)]
        assert [len(future.result(PATIENCE)) for future in futures] == [40, 40]
    assert most == 1


def test_several_devices_have_a_copy_each_and_give_what_one_gives(embedder: Path) -> None:
    texts = [f"Water {number}" for number in range(200)]
    options: dict[str, Any] = {"dtype": "float32", "max_batch_tokens": 100}
    with Embedder.from_pretrained(str(embedder), device="cpu", **options) as one:
        expected = one.embed_documents(texts)
        with Embedder.from_pretrained(str(embedder), device=["cpu", "cpu"], **options) as both:
            assert both._worker is not one._worker
            assert (one.device, both.device) == ("cpu", "cpu, cpu")
            assert np.abs(both.embed_documents(texts) - expected).max() <= 1e-6
            loaded = load_embedding(config_of(embedder, device=("cpu:0", "cpu:0")))
            assert loaded.worker is both._worker
            tables = [weakref.ref(engine.decoder.weights.embedding) for engine in loaded.engines]
            assert tables[0]() is not tables[1]()
            loaded.release()
            del loaded
    gc.collect()
    assert [table() for table in tables] == [None, None]


def test_one_device_in_a_list_is_that_device(embedder: Path) -> None:
    loaded = [load_embedding(config_of(embedder, device=device)) for device in ("cpu", ["cpu"], ("cpu",))]
    assert len({id(each.worker) for each in loaded}) == 1
    for each in loaded:
        each.release()


def test_a_device_that_fails_to_load_releases_the_others(embedder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[weakref.ref[torch.Tensor]] = []
    load = engine.load_embedding_engine

    def fail_the_second(*arguments: Any, **options: Any) -> engine.TorchEmbeddingEngine:
        if tables:
            raise MemoryError("the second device is full")
        loaded = load(*arguments, **options)
        tables.append(weakref.ref(loaded.decoder.weights.embedding))
        return loaded

    monkeypatch.setattr(engine, "load_embedding_engine", fail_the_second)
    with pytest.raises(MemoryError, match="full") as caught:
        Embedder.from_pretrained(str(embedder), device=["cpu", "cpu"], dtype="float32")
    gc.collect()
    assert tables[0]() is None, "the error must not hold it"
    assert caught.value is not None


@pytest.mark.parametrize(
    ("device", "error", "rule"),
    [
        pytest.param([], ValueError, "device must name at least one device, but got an empty list", id="none"),
        pytest.param(["cpu", "tpu"], ValueError, "device must be .* but got 'tpu'", id="unknown"),
        pytest.param(["cpu", "cpu:0"], ValueError, "names cpu twice, as 'cpu' and as 'cpu:0'", id="two names"),
        pytest.param(
            ["cpu", None], TypeError, r"must be a string or a list of strings, but got \['cpu', None\]", id="no name"
        ),
        pytest.param(None, TypeError, "must be a string or a list of strings, but got None", id="nothing"),
        pytest.param(["cpu", "meta"], ValueError, "device must be .* but got 'meta'", id="no device to compute on"),
    ],
)
def test_devices_that_make_no_sense_are_refused(embedder: Path, device: Any, error: type[Exception], rule: str) -> None:
    with pytest.raises(error, match=rule):
        Embedder.from_pretrained(str(embedder), device=device)


def test_a_load_for_the_cpu_limits_torchs_threads_to_what_the_process_may_use(
    embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    compute = PackedEngine._compute

    def observed(engine: PackedEngine, batch: list[TokenIds]) -> FloatArray:
        seen.append(torch.get_num_threads())
        return compute(engine, batch)

    monkeypatch.setattr(PackedEngine, "_compute", observed)
    monkeypatch.setattr(loading, "threads_to_use", lambda current, **_: current - 1)
    try:
        torch.set_num_threads(4)
        with Embedder.from_pretrained(str(embedder), **WHERE) as model:
            model.embed_documents(["Water"])
            assert set(seen) == {3}  # in the self-check and in the model's own thread
    finally:
        torch.set_num_threads(before)


def test_a_path_object_works_as_well_as_a_string(embedder: Path) -> None:
    path: Any = embedder
    with Embedder.from_pretrained(path, **WHERE) as one, Embedder.from_pretrained(str(embedder), **WHERE) as other:
        assert one._worker is other._worker


@pytest.mark.parametrize("model", [None, 6, b"demo"])
def test_a_model_that_is_no_string_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=f"model must be a string, but got {type(model).__name__}"):
        Embedder.from_pretrained(model)


def test_closing_one_of_two_leaves_the_other_at_work(embedder: Path) -> None:
    one, other = (Embedder.from_pretrained(str(embedder), dimensions=d, **WHERE) for d in (32, None))
    before = other.embed_queries(["Water"])
    one.close()
    one.close()  # closing twice gives back one claim only
    with pytest.raises(ModelClosedError, match="closed"):
        one.embed_queries(["Water"])
    assert np.array_equal(other.embed_queries(["Water"]), before)
    other.close()


def test_closing_the_last_ends_the_thread_and_frees_the_memory(embedder: Path) -> None:
    one, other = (Embedder.from_pretrained(str(embedder), **WHERE) for _ in range(2))
    one.embed_documents(["Water"])
    table = embedding_table(embedder)
    assert len(threads()) == 1
    one.close()
    gc.collect()
    assert table() is not None
    other.close()
    gc.collect()
    assert threads() == []
    assert table() is None


def test_an_embedder_that_is_dropped_frees_the_memory_too(embedder: Path) -> None:
    dropped: Embedder | None = Embedder.from_pretrained(str(embedder), **WHERE)
    assert dropped is not None
    dropped.embed_documents(["Water"])
    table = embedding_table(embedder)
    del dropped
    gc.collect()
    for thread in threads():
        thread.join(PATIENCE)
    gc.collect()
    assert table() is None


def test_a_reranker_that_is_closed_frees_the_memory(reranker: Path) -> None:
    with Reranker.from_pretrained(str(reranker), **WHERE) as model:
        assert model.score("Water", ["H2O", "Fire"]).shape == (2,)
        assert len(threads()) == 1
    with pytest.raises(ModelClosedError, match=r"this Reranker of .*reranker was closed; load the model again"):
        model.score("Water", ["H2O"])
    assert threads() == []


async def test_use_after_close_says_so_in_async_code_too(embedder: Path) -> None:
    model = Embedder.from_pretrained(str(embedder), **WHERE)
    model.close()
    with pytest.raises(ModelClosedError, match="closed"):
        await model.aembed_documents(["Water"])


def test_a_closed_model_can_be_loaded_again(embedder: Path) -> None:
    results = []
    for _ in range(2):
        with Embedder.from_pretrained(str(embedder), **WHERE) as model:
            results.append(model.embed_documents(["Water"]))
    assert np.array_equal(results[0], results[1])


def test_a_load_that_failed_is_not_remembered(embedder: Path) -> None:
    weights = embedder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError):
            Embedder.from_pretrained(str(embedder), **WHERE)
    weights.write_bytes(content)
    with Embedder.from_pretrained(str(embedder), **WHERE) as model:
        assert model.embed_documents(["Water"]).shape == (1, 32)


def test_threads_that_wait_for_a_load_that_fails_all_get_the_error(embedder: Path) -> None:
    (embedder / "config.json").write_text("[]")
    start = threading.Barrier(8)

    def load(_: int) -> str:
        start.wait(PATIENCE)
        with pytest.raises(CorruptCheckpointError) as caught:
            Embedder.from_pretrained(str(embedder), **WHERE)
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load, range(8)))) == 1


# Options


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"dimensions": 7}, "dimensions must be between 32 and 32 .* but got 7"),
        ({"dimensions": 33}, "dimensions must be between 32 and 32 .* but got 33"),
        ({"max_length": 3}, "max_length must be between 8 and 32768 .* but got 3"),
        ({"max_length": 99_999}, "max_length must be between 8 and 32768 .* but got 99999"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be at least 1, but got 0"),
        ({"dtype": "int3"}, 'dtype must be "auto", "float32", .* but got \'int3\''),
        ({"device": "cuda:99"}, "device is 'cuda:99', but torch sees [0-9]+ CUDA"),
        ({"device": "tpu"}, 'device must be "auto", "cpu", .* but got \'tpu\''),
        ({"on_overflow": "cut"}, "on_overflow must be one of 'truncate', 'error', but got 'cut'"),
        ({"control_tokens": "drop"}, "control_tokens must be one of 'escape', 'keep', 'error', but got 'drop'"),
        ({"model": " "}, "model must be .* but got an empty name"),
    ],
)
def test_a_bad_option_names_the_rule_and_the_value_and_keeps_no_model(
    embedder: Path, options: dict[str, Any], rule: str
) -> None:
    with Embedder.from_pretrained(str(embedder), **WHERE):
        table = embedding_table(embedder)
        with pytest.raises(ValueError, match=rule):
            Embedder.from_pretrained(**{"model": str(embedder), **WHERE, **options})
    gc.collect()
    assert table() is None


def test_an_unknown_template_names_those_that_are_known(reranker: Path) -> None:
    with pytest.raises(ValueError, match="template must be one of 'canonical', 'vllm', 'jinja', but got 'chatml'"):
        Reranker.from_pretrained(str(reranker), template="chatml", **WHERE)


def test_an_unknown_keyword_is_a_type_error() -> None:
    unknown: dict[str, Any] = {"batch_sise": 32}
    with pytest.raises(TypeError, match="batch_sise"):
        Embedder.from_pretrained("demo", **unknown)
    with pytest.raises(TypeError, match="batch_sise"):
        Reranker.from_pretrained("demo", **unknown)


def test_the_token_is_in_no_repr_and_in_no_key() -> None:
    with_token = LoadConfig("someone/private", "embedding", token="hf_secret")
    assert "hf_secret" not in f"{with_token!r} {with_token} {[with_token]}"
    assert with_token == LoadConfig("someone/private", "embedding")
    assert hash(with_token) == hash(LoadConfig("someone/private", "embedding"))


def test_a_model_cannot_be_pickled_and_says_what_to_do(embedder: Path, reranker: Path) -> None:
    with (
        Embedder.from_pretrained(str(embedder), **WHERE) as one,
        Reranker.from_pretrained(str(reranker), **WHERE) as two,
    ):
        for model in (one, two):
            with pytest.raises(TypeError, match=f"{type(model).__name__} cannot be pickled: load it by name"):
                pickle.dumps(model)
            assert copy.deepcopy(model) is copy.copy(model) is model


def test_a_folder_called_demo_does_not_hide_the_demo_pair(
    embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder_of(model: str) -> str:
        try:
            with Embedder.from_pretrained(model, **WHERE) as loaded:
                return loaded.spec.model
        except ModelError as error:  # in a checkout where the demo pair is not built yet
            return str(error)

    embedder.rename(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in folder_of("demo")
    assert folder_of("./demo") == str(tmp_path / "demo")


# Wrong checkpoints


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def write_pooling(folder: Path, **content: Any) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content), encoding="utf-8")


def write_odd_pooling(folder: Path) -> None:
    write_pooling(folder)
    (folder / "1_Pooling" / "config.json").write_text('"mean"', encoding="utf-8")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:5000])


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def truncate_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00\x01")


def lose_a_shard(folder: Path) -> None:
    names = sorted(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    shards[names[0]] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def point_outside(folder: Path) -> None:
    (folder.parent / "elsewhere.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = {"weight_map": {"norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def fill(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors[name].fill_(value))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(name))


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))


def configure(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def equal_answers(folder: Path) -> None:
    yes, no = 257, 258

    def change(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors["model.embed_tokens.weight"]
        table[no] = table[yes]

    edit_tensors(folder, change)


WRONG: dict[str, tuple[str, Callable[[Path], object], type[ModelError], str]] = {
    "no config": (
        "embedder",
        lambda folder: (folder / "config.json").unlink(),
        ModelNotFoundError,
        r"has no config\.json: it is not the folder of a checkpoint",
    ),
    "config is no JSON": (
        "embedder",
        lambda folder: (folder / "config.json").write_text("{"),
        CorruptCheckpointError,
        r"config\.json is not JSON .*; download it again",
    ),
    "config is no text": (
        "embedder",
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
        CorruptCheckpointError,
        r"config\.json is not JSON .*; download it again",
    ),
    "config is a list": (
        "embedder",
        lambda folder: (folder / "config.json").write_text("[1, 2]"),
        CorruptCheckpointError,
        r"config\.json must hold a JSON object, but holds a list",
    ),
    "no hidden_size": (
        "embedder",
        configure(hidden_size=None),
        CorruptCheckpointError,
        r"hidden_size in config\.json must be a positive integer, but is None",
    ),
    "a size that is no number": (
        "embedder",
        configure(num_hidden_layers="many"),
        CorruptCheckpointError,
        r"config\.json must give num_hidden_layers as a positive integer, but says 'many'",
    ),
    "a size that is null": (
        "embedder",
        configure(num_attention_heads=None),
        CorruptCheckpointError,
        r"config\.json must give num_attention_heads as a positive integer, but says None",
    ),
    "a number that is none": (
        "embedder",
        configure(rms_norm_eps="small"),
        CorruptCheckpointError,
        r"config\.json holds a value of a wrong kind \(.*'small'\); download it again",
    ),
    "no tokenizer": (
        "embedder",
        lambda folder: (folder / "tokenizer.json").unlink(),
        ModelNotFoundError,
        r"no tokenizer\.json in ",
    ),
    "broken tokenizer": (
        "embedder",
        break_tokenizer,
        CorruptCheckpointError,
        r"tokenizer\.json is damaged: .*; download the checkpoint again",
    ),
    "truncated weights": (
        "embedder",
        truncate_weights,
        CorruptCheckpointError,
        r"model\.safetensors cannot be read as safetensors .*; download it again",
    ),
    "truncated header": (
        "embedder",
        truncate_header,
        CorruptCheckpointError,
        r"model\.safetensors cannot be read as safetensors .*; download it again",
    ),
    "a shard is missing": (
        "embedder",
        lose_a_shard,
        CorruptCheckpointError,
        r"index\.json names the shard 'model-00002-of-00002\.safetensors', which is not in ",
    ),
    "an index that leads out of the folder": (
        "embedder",
        point_outside,
        CorruptCheckpointError,
        r"index\.json names the shard '\.\./elsewhere\.safetensors', which is not in ",
    ),
    "pickled weights": (
        "embedder",
        pickle_the_weights,
        ModelNotFoundError,
        r"neither model\.safetensors nor .*; pytorch_model\.bin is a pickle, .* convert it to safetensors",
    ),
    "a tensor of a wrong shape": (
        "embedder",
        cut("layers.1.mlp.up_proj.weight"),
        CorruptCheckpointError,
        r"layers\.1\.mlp\.up_proj\.weight in model\.safetensors has shape \(63, 32\), .* asks for \(64, 32\)",
    ),
    "a missing tensor": (
        "embedder",
        drop("layers.0.self_attn.k_norm.weight"),
        CorruptCheckpointError,
        r"has no tensor layers\.0\.self_attn\.k_norm\.weight; the checkpoint is incomplete",
    ),
    "a tokenizer larger than the table": (
        "embedder",
        configure(vocab_size=8000),
        CorruptCheckpointError,
        r"8197 ids, but .* only 8000 rows \(vocab_size in config\.json\); use the tokenizer that was published",
    ),
    "llama": (
        "embedder",
        configure(model_type="llama"),
        UnsupportedModelError,
        "is not a model known here: it has model_type 'llama'",
    ),
    "a sequence classifier": (
        "reranker",
        configure(architectures=["Qwen3ForSequenceClassification"]),
        UnsupportedModelError,
        "is a sequence classifier .* Use the original checkpoint",
    ),
    "rope scaling": (
        "embedder",
        configure(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}),
        UnsupportedModelError,
        r"config\.json says rope_type='yarn', but this engine computes rope_type='default' only",
    ),
    "NaN in the weights": (
        "embedder",
        fill("layers.0.mlp.down_proj.weight", float("nan")),
        CorruptCheckpointError,
        "NaN or infinity .* its weights are damaged, download them again",
    ),
    "constant vectors": (
        "embedder",
        fill("norm.weight", 0.0),
        CorruptCheckpointError,
        "the same result for two different texts: its weights are damaged, download them again",
    ),
    "NaN in the weights of a reranker": (
        "reranker",
        fill("model.layers.0.mlp.down_proj.weight", float("nan")),
        CorruptCheckpointError,
        "NaN or infinity .* its weights are damaged, download them again",
    ),
    "constant scores": (
        "reranker",
        fill("model.norm.weight", 0.0),
        CorruptCheckpointError,
        "the same result for two different texts: its weights are damaged, download them again",
    ),
    "mean pooling": (
        "embedder",
        lambda folder: write_pooling(folder, pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False),
        UnsupportedModelError,
        r"1_Pooling.config\.json says that .* pools by \['mean_tokens'\], but demo embedding pools by last token; use",
    ),
    "mean pooling, as sentence-transformers 6 says it": (
        "embedder",
        lambda folder: write_pooling(folder, pooling_mode="mean", include_prompt=True),
        UnsupportedModelError,
        r"1_Pooling.config\.json says that .* pools by 'mean', but demo embedding pools by last token; use",
    ),
    "pooling is no JSON object": (
        "embedder",
        write_odd_pooling,
        CorruptCheckpointError,
        r"1_Pooling.config\.json must hold a JSON object, but holds a str",
    ),
    "an untied reranker without a head": (
        "reranker",
        configure(tie_word_embeddings=False),
        CorruptCheckpointError,
        r"config\.json says that the head is not tied, but .* has no lm_head\.weight",
    ),
    "equal rows for yes and no": (
        "reranker",
        equal_answers,
        CorruptCheckpointError,
        'rows of "yes" and "no" are equal, so every score would be 0.5',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_checkpoint_is_refused_with_the_reason(case: str, request: pytest.FixtureRequest) -> None:
    kind, damage, expected, reason = WRONG[case]
    folder: Path = request.getfixturevalue(kind)
    damage(folder)
    load: Callable[..., Any] = Embedder.from_pretrained if kind == "embedder" else Reranker.from_pretrained
    with pytest.raises(ModelError, match=reason) as caught:
        load(str(folder), **WHERE)
    assert type(caught.value) is expected
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        Embedder.from_pretrained(str(tmp_path), **WHERE)


def test_a_reranker_is_not_loaded_as_an_embedder(reranker: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"looks like a reranker .*; use Reranker"):
        Embedder.from_pretrained(str(reranker), **WHERE)


def test_an_embedder_is_not_loaded_as_a_reranker(embedder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"looks like an embedding model, .*; use Embedder"):
        Reranker.from_pretrained(str(embedder), **WHERE)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode": ["lasttoken"]},
        {},
    ],
)
def test_every_way_to_say_last_token_is_understood(embedder: Path, pooling: dict[str, Any]) -> None:
    write_pooling(embedder, **pooling)
    with Embedder.from_pretrained(str(embedder), **WHERE) as model:
        assert model.embed_queries(["Water"]).shape == (1, 32)


@pytest.mark.parametrize("change", [{"pooling": "mean"}, {"attention": "bidirectional"}], ids=["pooling", "attention"])
def test_a_family_that_the_engine_cannot_compute_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="this engine computes last_token with causal attention only"):
        loading._refuse_uncomputable(replace(QWEN3_EMBEDDING, **change))
