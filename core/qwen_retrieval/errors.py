"""Every error that this package raises on purpose.

    QwenRetrievalError
    ├── ModelError                  the model cannot be used
    │   ├── ModelNotFoundError          no such folder, repository, revision or file
    │   ├── ModelAccessError            gated or private, and the token does not open it
    │   ├── HubUnreachableError         not in the cache, and the hub does not answer
    │   ├── CorruptCheckpointError      a file is missing, damaged or does not fit the others
    │   ├── UnsupportedModelError       no entry of `specs` matches this checkpoint
    │   └── ModelClosedError            used after close()
    ├── InputError (ValueError)     an input cannot be given to the model
    │   ├── InputTooLongError           longer than max_length, and must not or cannot be cut
    │   └── ControlTokenError           contains a control token, and control_tokens="error"
    ├── NonFiniteError              the model gives NaN or infinity for an input, in float32 too
    ├── OutOfMemoryError            one single input does not fit into the memory of the device
    ├── StoreError                  the vector store cannot be used
    │   ├── StoreLockedError            another process has the folder open
    │   ├── CollectionNotFoundError     there is no such collection
    │   ├── CollectionMismatchError     it was made with another model, layout or setting
    │   └── IngestError                 an ingestion had to stop; says how far it came
    ├── EndpointError               a language model's endpoint refuses, or does not answer
    └── MissingDependencyError (ImportError)    an extra is not installed

Arguments of a wrong type or out of range raise plain `TypeError` and `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class QwenRetrievalError(Exception):
    """Base class of all errors below."""


class ModelError(QwenRetrievalError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """There is no such folder, repository, revision or file."""


class ModelAccessError(ModelError):
    """The repository is gated or private, and the token given does not open it."""


class HubUnreachableError(ModelError):
    """The model is not in the local cache, and the hub does not answer."""


class CorruptCheckpointError(ModelError):
    """A file of the checkpoint is missing, damaged, or does not fit the others."""


class UnsupportedModelError(ModelError):
    """No entry of `qwen_retrieval.specs` matches this checkpoint."""


class ModelClosedError(ModelError):
    """The model was used after `close()`."""


class InputError(QwenRetrievalError, ValueError):
    """An input cannot be given to the model."""


class InputTooLongError(InputError):
    """An input is longer than `max_length`, and must not or cannot be cut."""


class ControlTokenError(InputError):
    """An input contains a control token, and ``control_tokens="error"``."""


class NonFiniteError(QwenRetrievalError):
    """The model gives NaN or infinity for an input, recomputed in float32 too.

    Attributes:
        rows: Positions of the inputs concerned in the list that was given.
    """

    def __init__(self, rows: tuple[int, ...]) -> None:
        self.rows = rows
        named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        super().__init__(
            f"the model gives NaN or infinity for {len(rows)} input(s), at position {named}, even in float32; "
            "its weights are probably damaged: download the checkpoint again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows,)  # not by its message, as other exceptions are pickled


class OutOfMemoryError(QwenRetrievalError):
    """One single input does not fit into the memory of the device."""


class StoreError(QwenRetrievalError):
    """The vector store cannot be used."""


class StoreLockedError(StoreError):
    """Another process has the folder of the store open."""


class CollectionNotFoundError(StoreError):
    """There is no such collection in the store."""


class CollectionMismatchError(StoreError):
    """The collection was made with another model, layout or setting than it is opened with."""


class IngestError(StoreError):
    """An ingestion had to stop. What it had written stays, and the next run goes on from there."""


class EndpointError(QwenRetrievalError):
    """The endpoint of a language model refuses every request, or does not answer. What it answered before is kept."""


class MissingDependencyError(QwenRetrievalError, ImportError):
    """A library of an extra, or one that goes with this distribution, is not installed.

    Args:
        library: What could not be imported.
        extra: The extra of this distribution that brings it; "" if none does.
        package: The distribution that brings it, where no extra does.
    """

    def __init__(self, library: str, extra: str, package: str = "") -> None:
        self._arguments = library, extra, package
        requirement = package or f"qwen-retrieval[{extra}]"
        super().__init__(f'{library} is not installed; run: pip install "{requirement}"')

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


@contextmanager
def needs_extra(module: str, extra: str, *, package: str = "") -> Iterator[None]:
    """Around imports of a framework: without it, the error says what to install.

    Args:
        module: The framework's import name, such as "langchain_core".
        extra: The extra of this distribution that brings it; "" if none does.
        package: The distribution that brings it, where no extra does.

    Raises:
        MissingDependencyError: `module`, or a module of it that newer versions have, is not installed. Other failing
            imports pass unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name == module or module.startswith(f"{name}."):
            raise MissingDependencyError(module, extra, package) from error
        if name.startswith(f"{module}."):  # too old a version
            raise MissingDependencyError(name, extra, package) from error
        raise
