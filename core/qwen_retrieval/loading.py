"""What to load -> a loaded model, once per process.

The cache is keyed by everything that changes the weights in memory, single-flight (two threads that ask for the same
model wait for one load) and reference-counted (the memory is freed when the last user closes).
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import numpy as np

from qwen_retrieval.errors import CorruptCheckpointError, ModelNotFoundError, NonFiniteError, UnsupportedModelError
from qwen_retrieval.hub import local_folder, model_folder
from qwen_retrieval.specs import (
    EmbeddingFamily,
    EmbeddingSpec,
    RerankingSpec,
    match_embedding,
    match_reranking,
    resolve_model,
)
from qwen_retrieval.templates import EmbeddingTemplate, RerankingTemplate
from qwen_retrieval.threads import CPU_TURNS, threads_to_use
from qwen_retrieval.tokenizer import HubTokenizer
from qwen_retrieval.types import QUANTIZED_DTYPES, FloatArray, TokenIds
from qwen_retrieval.worker import Run, Worker

if TYPE_CHECKING:
    import torch

    from qwen_retrieval.engine.engine import PackedEngine as _TorchEngine
    from qwen_retrieval.engine.weights import DecoderConfig

INVARIANT_DTYPES = ("float32", "bfloat16")
"""Dtypes in which batch invariance was measured, on the CPU: see benchmarks/NOTES.md."""

LANES = 2
"""Threads for each CUDA device: while one waits for its rows, the other gives the device its next batch."""

Kind = Literal["embedding", "reranking"]
Spec = TypeVar("Spec", EmbeddingSpec, RerankingSpec)


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """Everything that decides which weights are in memory, and how.

    Attributes:
        model: Short name, repository, folder or "demo".
        kind: What the model is loaded as.
        revision: Branch, tag or commit.
        cache_dir: Where downloads are kept.
        local_files_only: Never ask the hub; no part of the key, because a model in memory needs no hub.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; or several, each of which gets a copy of the weights.
        dtype: "auto", "float32", "bfloat16", "float16", "int8" or "float8".
        batch_invariant: The same bits for an input whatever shares its batch; on the CPU, in `INVARIANT_DTYPES`.
        token: Access token; it opens a repository but does not change what is in it, so it is no part of the key, and
            it stands in no repr.
    """

    model: str
    kind: Kind
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = field(default=False, compare=False)
    device: str | Sequence[str] = "auto"
    dtype: str = "auto"
    batch_invariant: bool = False
    token: str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LoadedModel(Generic[Spec]):
    """A model in memory, shared by all who asked for it.

    Attributes:
        engines: The `EmbeddingEngine` or `RerankingEngine` of each device.
        worker: The threads that run the engines.
        tokenizer: The checkpoint's own tokenizer.
        spec: The family that the checkpoint belongs to, and its sizes.
        revision: Branch, tag or commit that was asked for.
        device: Where the weights are, such as "cuda:0", or "cuda:0, cuda:1".
        dtype: What is computed in, such as "bfloat16"; "int8" or "float8" if matrices are multiplied in it.
        max_batch_tokens: Token budget of a batch that suits a device.
        release: Give the model back; the last one frees the memory. More calls do nothing.
        batch_invariant: Whether an input has the same bits whatever shares its batch.
    """

    engines: tuple[Any, ...]
    worker: Worker
    tokenizer: HubTokenizer
    spec: Spec
    revision: str | None
    device: str
    dtype: str
    max_batch_tokens: int
    release: Callable[[], None]
    batch_invariant: bool = False

    @property
    def engine(self) -> Any:  # noqa: ANN401 - of either kind
        """The engine of the first device."""
        return self.engines[0]


class _Entry:
    """One model of the cache: its lock makes loading single-flight."""

    def __init__(self) -> None:
        # Re-entrant, because the garbage collector may release a model on a thread that is about to acquire it.
        self.lock = threading.RLock()
        self.model: LoadedModel[Any] | None = None
        self.users = 0


_cache: dict[LoadConfig, _Entry] = {}
_cache_lock = threading.RLock()
_forked = False


def _forget() -> None:
    """Begin anew in a forked process: the workers of its parent have no thread there, and a lock may never be freed."""
    global _cache, _cache_lock, _forked
    _cache, _cache_lock, _forked = {}, threading.RLock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def load_embedding(config: LoadConfig) -> LoadedModel[EmbeddingSpec]:
    """The embedding model that `config` names, loaded if no one else has it already; see `model_folder` for errors.

    Raises:
        UnsupportedModelError: The checkpoint is not an embedding model that `specs` knows.
        CorruptCheckpointError: Its files are damaged or do not fit each other, or its self-check fails.
    """
    return cast("LoadedModel[EmbeddingSpec]", _acquire(config, _read_embedding))


def load_reranking(config: LoadConfig) -> LoadedModel[RerankingSpec]:
    """The reranking model that `config` names; the same as `load_embedding`."""
    return cast("LoadedModel[RerankingSpec]", _acquire(config, _read_reranking))


def _acquire(config: LoadConfig, read: Callable[[LoadConfig], LoadedModel[Any]]) -> LoadedModel[Any]:
    config = _normalise(config)
    while True:
        with _cache_lock:
            entry = _cache.setdefault(config, _Entry())
        with entry.lock:
            if _cache.get(config) is not entry:
                continue  # its last user left while we waited
            entry.users += 1
            try:
                if entry.model is None:
                    _limit_threads(config)
                    entry.model = _read_on_new_thread(read, config) if _forked else read(config)
            except BaseException:
                entry.users -= 1
                _cache.pop(config, None)
                raise
            return replace(entry.model, release=_Release(config, entry))


def _read_on_new_thread(read: Callable[[LoadConfig], LoadedModel[Any]], config: LoadConfig) -> LoadedModel[Any]:
    """For forked processes: on a thread that its parent had, OpenMP waits for ever for threads that only that has."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read, config).result()


class _Release:
    """One user's claim on a cached model, given back by the first call or when the user is collected."""

    def __init__(self, config: LoadConfig, entry: _Entry) -> None:
        self._finalizer = weakref.finalize(self, _leave, config, entry)

    def __call__(self) -> None:
        worker = self._finalizer()
        if worker is not None:
            worker.close()


def _leave(config: LoadConfig, entry: _Entry) -> Worker | None:
    """One user less; the worker if that was the last one.

    The garbage collector drops the worker, which then ends without being waited for: it may run on any thread, and in
    the middle of anything.
    """
    with entry.lock:
        entry.users -= 1
        if entry.users > 0 or entry.model is None:
            return None
        model, entry.model = entry.model, None
        if _cache.get(config) is entry:
            del _cache[config]
    return model.worker


def _normalise(config: LoadConfig) -> LoadConfig:
    """The same key for all spellings of the same thing: "0.6B" and its repository, "auto" and what it means here."""
    from qwen_retrieval.engine.engine import dtype_name, resolve_dtype

    devices = _resolve_devices(config.device)
    dtypes = {resolve_dtype(config.dtype, device) for device in devices}
    if len(dtypes) > 1:
        raise ValueError(f'dtype="auto" means different things on {config.device!r}; name one, such as "float32"')
    if not isinstance(config.model, str | os.PathLike):
        raise TypeError(f"model must be a string, but got {type(config.model).__name__}")
    model = resolve_model(os.fspath(config.model), config.kind)
    normalised = replace(
        config,
        model=str(local_folder(model) or model),
        device=tuple(map(str, devices)),
        dtype=dtype_name(dtypes.pop()),
    )
    _refuse_unproven_invariance(normalised)
    return normalised


def _refuse_unproven_invariance(config: LoadConfig) -> None:
    """Batch invariance is offered where it was measured.

    Args:
        config: Normalised.
    """
    if config.batch_invariant and not (set(config.device) == {"cpu"} and config.dtype in INVARIANT_DTYPES):
        raise ValueError(
            f"batch_invariant=True is offered on the CPU in {' and '.join(INVARIANT_DTYPES)}, but got {config.dtype} "
            f'on {", ".join(config.device)}; pass device="cpu" and one of these dtypes, or batch_invariant=False'
        )


def _resolve_devices(device: str | Sequence[str]) -> list[torch.device]:
    """The devices by one name each, with their numbers: "cuda" may be "cuda:0".

    Raises:
        ValueError: A name is unknown or not of this machine, there is none, the devices are of several kinds, or one
            goes by two names, which is hardly meant; by the same name twice, a device gets two copies.
    """
    import torch

    from qwen_retrieval.engine.engine import resolve_device

    names = [device] if isinstance(device, str | torch.device) else device
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | torch.device) for name in names):
        raise TypeError(f"device must be a string or a list of strings, but got {device!r}")
    if not names:
        raise ValueError("device must name at least one device, but got an empty list")
    name_of: dict[torch.device, str] = {}
    devices = []
    for name in map(str, names):
        devices.append(torch.empty(0, device=resolve_device(name)).device)
        known = name_of.setdefault(devices[-1], name)
        if known != name:
            raise ValueError(f"device names {devices[-1]} twice, as {known!r} and as {name!r}; name each device once")
    if len({each.type for each in devices}) > 1:
        raise ValueError(
            f"all devices must be of one kind, because the slower ones would hold up a call, but got {names}"
        )
    return devices


def _limit_threads(config: LoadConfig) -> None:
    """Let torch use the cores that this process may really use, if it is the CPU that computes.

    That is a setting of the process: it holds for this thread and for all that use torch for the first time later, our
    own among them (ATen/ParallelOpenMP.cpp). It is only ever lowered, and never where the user has chosen it.
    """
    import torch

    if torch.device(config.device[0]).type != "cpu" or not hasattr(os, "sched_getaffinity"):
        return
    current = torch.get_num_threads()
    threads = threads_to_use(current, environment=os.environ, cpus=os.sched_getaffinity(0))
    if threads < current:
        torch.set_num_threads(threads)


def _read_embedding(config: LoadConfig) -> LoadedModel[EmbeddingSpec]:
    from qwen_retrieval.engine import engine as torch_engine

    folder, raw, tokenizer = _read_folder(config)
    spec = match_embedding(config.model, raw, tokenizer)
    _refuse_uncomputable(spec.family)
    _refuse_other_pooling(folder, spec)
    _refuse_no_embedder(folder, tokenizer, config.model)
    shape = _decoder_config(raw)
    texts = EmbeddingTemplate(tokenizer, spec).encode_documents(["", "Water boils at 100 degrees."])

    def load(device: str) -> tuple[_TorchEngine, Run]:
        engine = torch_engine.load_embedding_engine(
            folder, shape, device, config.dtype, batch_invariant=config.batch_invariant
        )
        return engine, engine.embed

    return _load_on_each(load, [text.ids for text in texts], tokenizer, spec, config)


def _read_reranking(config: LoadConfig) -> LoadedModel[RerankingSpec]:
    from qwen_retrieval.engine import engine as torch_engine

    folder, raw, tokenizer = _read_folder(config)
    spec = match_reranking(config.model, raw, tokenizer)
    _refuse_no_reranker(folder, tokenizer, config.model)
    template = RerankingTemplate(tokenizer, spec)
    shape = _decoder_config(raw)
    question, answers = "When does water boil?", ["Water boils at 100 degrees.", "Cats sleep most of the day."]
    pairs = template.encode_pairs([question] * 2, answers, spec.family.default_instruction)

    def load(device: str) -> tuple[_TorchEngine, Run]:
        engine = torch_engine.load_reranking_engine(
            folder,
            shape,
            device,
            config.dtype,
            yes_id=template.yes_id,
            no_id=template.no_id,
            batch_invariant=config.batch_invariant,
        )
        return engine, engine.score

    return _load_on_each(load, [pair.ids for pair in pairs], tokenizer, spec, config)


def _load_on_each(
    load: Callable[[str], tuple[_TorchEngine, Run]],
    inputs: list[TokenIds],
    tokenizer: HubTokenizer,
    spec: Spec,
    config: LoadConfig,
) -> LoadedModel[Spec]:
    """A copy of the weights on each device, and one worker for all of them.

    Args:
        load: The engine on a device, and its method.
        inputs: Two inputs for the self-check.
        tokenizer: The checkpoint's own.
        spec: Of the checkpoint.
        config: Normalised.
    """
    from qwen_retrieval.engine.engine import default_batch_tokens, dtype_name

    copies: list[tuple[_TorchEngine, Run]] = []
    try:
        for name in config.device:
            copies.append(load(name))  # and no variable of its own, see below
            _check_outputs(copies[-1][1], inputs)
    except BaseException:
        copies.clear()  # the error's traceback holds this frame, which must not hold the memory of other devices
        raise
    engines = tuple(engine for engine, _ in copies)
    lanes = LANES if engines[0].device.type == "cuda" else 1
    runs = [run for _, run in copies for _ in range(lanes)]
    return LoadedModel(
        engines=engines,
        worker=Worker(
            *runs,
            name=config.model,
            turns=CPU_TURNS if engines[0].device.type == "cpu" else None,
            share=not config.batch_invariant,
        ),
        tokenizer=tokenizer,
        spec=spec,
        revision=config.revision,
        device=", ".join(config.device),
        dtype=config.dtype if config.dtype in QUANTIZED_DTYPES else dtype_name(engines[0].dtype),
        max_batch_tokens=min(default_batch_tokens(engine.device, engine.decoder.config) for engine in engines),
        release=lambda: None,
        batch_invariant=config.batch_invariant,
    )


def _read_folder(config: LoadConfig) -> tuple[Path, dict[str, Any], HubTokenizer]:
    folder = model_folder(
        config.model,
        config.kind,
        revision=config.revision,
        token=config.token,
        cache_dir=config.cache_dir,
        local_files_only=config.local_files_only,
    )
    return folder, read_config(folder), HubTokenizer.from_folder(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a checkpoint folder.

    Raises:
        ModelNotFoundError: The folder has none.
        CorruptCheckpointError: It is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} has no config.json: it is not the folder of a checkpoint")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(f"{path} must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _decoder_config(raw: dict[str, Any]) -> DecoderConfig:
    from qwen_retrieval.engine.weights import DecoderConfig

    try:
        return DecoderConfig.from_json(raw)
    except (AttributeError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"config.json holds a value of a wrong kind ({error}); download it again"
        ) from error


def _refuse_uncomputable(family: EmbeddingFamily) -> None:
    """The table can describe more than the engine computes."""
    if (family.pooling, family.attention) != ("last_token", "causal"):
        raise UnsupportedModelError(
            f"{family.name} pools by {family.pooling} with {family.attention} attention, but this engine computes "
            "last_token with causal attention only"
        )


def _refuse_other_pooling(folder: Path, spec: EmbeddingSpec) -> None:
    """A fine-tune may say in `1_Pooling/config.json` that it pools otherwise than its family."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return
    pooling, prefix = _read_json(path), "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, on in pooling.items() if name.startswith(prefix) and on is True]
    modes = pooling.get("pooling_mode") or flags  # sentence-transformers 6 writes a name, or a list of names
    if modes not in ([], "lasttoken", ["lasttoken"]):
        raise UnsupportedModelError(
            f"{path} says that {spec.model} pools by {modes!r}, but {spec.family.name} pools by last token; use the "
            "library that it was trained with"
        )


def _has_model_prefix(folder: Path) -> bool:
    from qwen_retrieval.engine.weights import Checkpoint

    with Checkpoint(folder) as checkpoint:
        return checkpoint.has_prefix


def _refuse_no_embedder(folder: Path, tokenizer: HubTokenizer, model: str) -> None:
    """Published embedders end each text with the end token, say how they pool, or were saved without a head."""
    pools = (folder / "1_Pooling" / "config.json").is_file()
    if not pools and not tokenizer.appends_end_token and _has_model_prefix(folder):
        raise UnsupportedModelError(
            f"{model} looks like a reranker or a chat model, not an embedding model: its tokenizer appends no end "
            "token and its weights were saved with a language-model head; use Reranker, or the embedding checkpoint"
        )


def _refuse_no_reranker(folder: Path, tokenizer: HubTokenizer, model: str) -> None:
    """A reranker needs its language-model head, which embedding checkpoints were saved without."""
    if tokenizer.appends_end_token or not _has_model_prefix(folder):
        raise UnsupportedModelError(
            f"{model} looks like an embedding model, not a reranker: its tokenizer appends an end token or its weights "
            "were saved without a language-model head; use Embedder, or the reranker checkpoint"
        )


def _check_outputs(run: Callable[[list[TokenIds]], FloatArray], inputs: list[TokenIds]) -> None:
    """Two different inputs must give finite and different numbers, or the checkpoint is broken."""
    try:
        first, second = run(inputs)
    except NonFiniteError as error:
        msg = "the model gives NaN or infinity for a plain sentence: its weights are damaged, download them again"
        raise CorruptCheckpointError(msg) from error
    if np.array_equal(first, second):
        msg = "the model gives the same result for two different texts: its weights are damaged, download them again"
        raise CorruptCheckpointError(msg)
