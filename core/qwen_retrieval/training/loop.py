"""The training loop: a plain one, because a run that is interrupted and resumed must end where an unbroken one does.

Everything that a step needs besides weights and the optimizer's moments is computed from its number: the batch, the
learning rate, the random state. So the state of a run is these tensors and one number, in one safetensors file that is
replaced as a whole; there is no pickle of generators, schedulers and data loaders, as trainers write it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .data import Example, ExampleFile, Indices, epoch_batches, hold_out


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How any model is trained.

    Attributes:
        epochs: How often each example is seen.
        batch_size: Queries of a step; in-batch negatives come from the same step.
        learning_rate: The highest, after warm-up. 6e-6 is that of docs/training/SWIFT.md in the Qwen3-Embedding
            repository; LoRA wants some 1e-4.
        warmup: Share of the steps in which the learning rate rises from 0; then it falls to 0 along a cosine.
        weight_decay: Of AdamW, on matrices only.
        max_grad_norm: Longer gradients are shortened to this.
        held_out: Share of the distinct queries that is not trained on; 0 for none.
        evaluate_every: Steps between two measurements of the loss on what is held out.
        save_every: Steps between two saved states.
        seed: Decides the order of the data, what is held out, and dropout.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 6e-6
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    held_out: float = 0.05
    evaluate_every: int = 100
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, but got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be a share from 0 to less than 1, but got {self.warmup}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, but got {self.weight_decay}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but got {self.seed}")


class Objective(Protocol):
    """What is trained, and for what."""

    model: nn.Module

    def loss(self, examples: Sequence[Example], *, seed: int, backward: bool) -> float:
        """The mean loss of a batch, which adds its gradients to the model's if `backward`."""


@dataclass(slots=True)
class History:
    """What came of each step.

    Attributes:
        steps: How many there are in all.
        losses: The loss of each step so far, before the step.
        held_out: Number of steps done -> loss on what is held out.
    """

    steps: int
    losses: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps


Report = Callable[[History], None]
"""Called after every step."""


def learning_rate(settings: LoopSettings, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then a cosine that reaches 0 after the last."""
    rising = math.ceil(settings.warmup * steps)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


class Schedule:
    """Which examples are trained on in which step, and which are held out.

    Args:
        file: The data.
        settings: See `LoopSettings`.
    """

    def __init__(self, file: ExampleFile, settings: LoopSettings) -> None:
        self._groups, self._settings = file.groups, settings
        self.trained, self.held_out = hold_out(file.queries, settings.held_out, seed=settings.seed)
        self._epoch, self._batches = 0, self._cut(0)
        self.steps = settings.epochs * len(self._batches)

    def batch(self, step: int) -> Indices:
        """The examples of a step, counted from 0."""
        epoch, place = divmod(step, len(self._batches))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._cut(epoch)
        return self._batches[place]

    def held_out_batches(self) -> list[Indices]:
        """What is held out, in the same batches each time."""
        size, seed = self._settings.batch_size, self._settings.seed
        return epoch_batches(self.held_out, self._groups, size, seed=seed, epoch=0)

    def _cut(self, epoch: int) -> list[Indices]:
        size, seed = self._settings.batch_size, self._settings.seed
        return epoch_batches(self.trained, self._groups, size, seed=seed, epoch=epoch)


def train(
    objective: Objective,
    file: ExampleFile,
    settings: LoopSettings,
    state: Path,
    *,
    identity: dict[str, Any],
    report: Report | None = None,
) -> History:
    """Train until all steps are done, or until Ctrl-C or SIGTERM, after which the step under way is finished.

    Resumed in float32 on the CPU with as many threads, it ends with the weights of an unbroken run, bit by bit.

    Args:
        objective: The model is left with the weights of the last step.
        file: The data.
        settings: See `LoopSettings`.
        state: A safetensors file; the run goes on from there if it exists, and is saved there.
        identity: Everything that decides the result, as JSON values: a state with another one is refused.
        report: Called after every step.

    Returns:
        What came of each step; `is_finished` is false if the run was interrupted.

    Raises:
        ValueError: The state belongs to a run with other settings or data, or the loss or its gradients are not finite.
    """
    schedule = Schedule(file, settings)
    trainable = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trainable.values(), settings)
    history = History(schedule.steps)
    if state.is_file():
        history = _load(state, trainable, optimizer, identity, schedule.steps)
    with _deferred_signals() as is_stopped, torch.random.fork_rng(devices=_cuda_devices(trainable)):
        while not history.is_finished and not is_stopped():
            if history.step == 0:
                _evaluate(objective, file, schedule, settings, history)
            _step(objective, file.read(schedule.batch(history.step)), optimizer, settings, history)
            if history.step % settings.evaluate_every == 0 or history.is_finished:
                _evaluate(objective, file, schedule, settings, history)
            if history.step % settings.save_every == 0 and not history.is_finished:
                _save(state, trainable, optimizer, identity, history)
            if report:
                report(history)
        _save(state, trainable, optimizer, identity, history)
    return history


def _optimizer(parameters: Any, settings: LoopSettings) -> torch.optim.AdamW:  # noqa: ANN401 - the values of a dict
    everything = list(parameters)
    if not everything:
        raise ValueError("the model has no parameter that could be trained")
    groups = [
        {"params": [p for p in everything if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in everything if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def _step(
    objective: Objective,
    examples: list[Example],
    optimizer: torch.optim.AdamW,
    settings: LoopSettings,
    history: History,
) -> None:
    objective.model.train()
    loss = objective.loss(examples, seed=_seed(settings.seed, history.step), backward=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
    for name, value in (("loss", loss), ("norm of the gradients", norm)):
        if not math.isfinite(value):  # a loss may be finite where its gradients are not
            raise ValueError(
                f"the {name} of step {history.step + 1} is {value}: lower the learning rate, or train in float32; "
                "the state that was saved last is kept"
            )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, history.step, history.steps)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    history.losses.append(loss)


def _seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) * 1_000_003 % 2**62


@torch.no_grad()
def _evaluate(
    objective: Objective, file: ExampleFile, schedule: Schedule, settings: LoopSettings, history: History
) -> None:
    if not len(schedule.held_out):
        return
    objective.model.train(False)
    batches = schedule.held_out_batches()
    losses = [len(b) * objective.loss(file.read(b), seed=settings.seed, backward=False) for b in batches]
    history.held_out[history.step] = math.fsum(losses) / len(schedule.held_out)


def _save(
    path: Path,
    trainable: dict[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    identity: dict[str, Any],
    history: History,
) -> None:
    """Write the state beside its place, then put it there: it is whole, or it is the one before."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        values = {"parameter": parameter.detach(), **optimizer.state.get(parameter, {})}
        tensors |= {f"{kind}/{name}": value.contiguous() for kind, value in values.items()}
    content = {"identity": identity, "losses": history.losses, "held_out": list(history.held_out.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, part, metadata={"state": json.dumps(content)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _load(
    path: Path,
    trainable: dict[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    identity: dict[str, Any],
    steps: int,
) -> History:
    with safe_open(path, framework="pt") as handle:
        content = json.loads(handle.metadata()["state"])
        _check_identity(path, content["identity"], json.loads(json.dumps(identity)))
        tensors: dict[str, Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    moments: dict[nn.Parameter, dict[str, Tensor]] = {p: {} for p in trainable.values()}
    with torch.no_grad():
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            if kind == "parameter":
                trainable[name].copy_(tensor)
            else:
                moments[trainable[name]][kind] = tensor
    order = [p for group in optimizer.param_groups for p in group["params"]]
    saved = {i: moments[p] for i, p in enumerate(order) if moments[p]}
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    return History(steps, content["losses"], {int(step): loss for step, loss in content["held_out"]})


def _check_identity(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    for name in sorted(saved.keys() | given.keys()):
        if saved.get(name) != given.get(name):
            raise ValueError(
                f"the run in {path.parent} was started with {name}={saved.get(name)!r}, but now it is "
                f"{given.get(name)!r}; name another output, or delete that folder to begin anew"
            )


@contextmanager
def _deferred_signals() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C and SIGTERM instead of acting on them, so that no step ends half-way; a second one acts."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(_number: int, _frame: FrameType | None) -> None:
        stopped.set()
        _restore(before)

    for number in before:
        signal.signal(number, note)
    try:
        yield stopped.is_set
    finally:
        _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _cuda_devices(trainable: dict[str, nn.Parameter]) -> list[int]:
    return sorted({p.device.index or 0 for p in trainable.values() if p.device.type == "cuda"})
