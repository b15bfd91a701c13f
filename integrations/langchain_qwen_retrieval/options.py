"""What the embeddings and the reranker have in common: which model, how it is loaded, views, copies and pickles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel, ModelOptions, device_option
from qwen_retrieval.types import ControlTokens, OnOverflow

with needs_extra("pydantic", "langchain"):
    from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_serializer, field_validator

_LOADING = (
    *("model", "max_length", "max_batch_tokens", "batch_size", "on_overflow", "control_tokens", "show_progress"),
    *("device", "dtype", "batch_invariant", "revision", "token", "cache_folder", "local_files_only"),
)
"""The fields that say how a model is loaded: one that the caller has made has its own."""


class QwenModelOptions(BaseModel, ABC):
    """The options of a Qwen model that is loaded by name when it is first used.

    Fields may be changed at any time; the next call obeys. Copies and views (`model_copy`) share the loaded model. When
    another `model`, `device` or `dtype` is set, the old weights stay in memory until `close`.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,  # the input may be a token, under a misspelt name too
    )
    _given_field: ClassVar[str]
    _lazy: LazyModel[Any]

    model: str
    """Repository, checkpoint folder, short name ("0.6B", "4B", "8B") or "demo"."""

    max_length: int | None = None
    """Longest input in tokens; None for 8192, or the model's own limit if that is less."""

    max_batch_tokens: int | None = None
    """Tokens computed in one forward pass; None for what suits the device."""

    batch_size: int | None = None
    """Most inputs of one call in a forward pass; None for as many as `max_batch_tokens` allows, which is faster."""

    on_overflow: OnOverflow = "truncate"
    """What to do with a longer input: "truncate" (cut its end and warn) or "error"."""

    control_tokens: ControlTokens = "escape"
    """What to do with strings such as `<|im_end|>` in texts: "escape" (spell them out), "keep" or "error"."""

    show_progress: bool = False
    """Show a progress bar for calls of more than 64 inputs."""

    device: str | list[str] | None = None
    """"cpu", "cuda", "cuda:N" or "mps", or a list of several; None for the best that there is."""

    dtype: str = "auto"
    """"auto" (bfloat16 where the device computes it natively), "float32", "bfloat16", "float16", "int8"
    (CPU) or "float8" (GPU)."""

    batch_invariant: bool = False
    """The same bits for a text whatever shares its batch, on the CPU; see `Embedder.from_pretrained`."""

    revision: str | None = None
    """Branch, tag or commit of the repository."""

    token: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Access token of a gated or private repository; by default the hub's own (`HF_TOKEN`, `hf auth login`). It is in
    no dump, repr, trace or pickle."""

    cache_folder: str | None = None
    """Where downloads are kept; by default the hub's own cache."""

    local_files_only: bool = False
    """Never ask the hub."""

    @field_validator("*")
    @classmethod
    def _refuse_options_of_a_given_model(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
        values = {**info.data, str(info.field_name): value}
        if values.get(cls._given_field) is not None:
            fields = cls.model_fields
            own = [name for name in _LOADING if values.get(name, fields[name].default) != fields[name].default]
            if own:
                raise ValueError(f"{cls._given_field} has its own {own[0]}, which must not be given beside it")
        return value

    @field_serializer("model", check_fields=False)
    def _dump_model(self, _: str) -> str:
        return self._model_name  # of a model that the caller has made its own name, and not the default

    def warm_up(self) -> None:
        """Load the model now instead of at the first call.

        Raises:
            ModelError: The model cannot be found, reached, opened or used.
        """
        self._engine()

    def close(self) -> None:
        """Give back the model that was loaded here, for views and copies too; the next call loads it again.

        Calls under way fail with `ModelClosedError`. A model that the caller has made stays open.
        """
        self._lazy.close()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A view with other settings that shares the loaded model.

        Args:
            update: The fields to change, validated (which pydantic's own method does not do).
            deep: Copy mutable settings too; the model is shared all the same.

        Raises:
            ValidationError: A field is unknown or its value out of range.
        """
        copied = super().model_copy(deep=deep)
        if update:
            values = {name: getattr(self, name) for name in type(self).model_fields}
            checked = type(self).model_validate({**values, **update})
            copied.__dict__.update({name: getattr(checked, name) for name in update})
            copied.__pydantic_fields_set__.update(update)
        return copied

    @abstractmethod
    def _engine(self) -> object:
        """The model itself; waits while it is loaded."""

    def _model_options(self) -> ModelOptions:
        return ModelOptions(
            model=self.model,
            max_length=self.max_length,
            max_batch_tokens=self.max_batch_tokens,
            batch_size=self.batch_size,
            on_overflow=self.on_overflow,
            control_tokens=self.control_tokens,
            show_progress=self.show_progress,
            device=device_option(self.device),
            dtype=self.dtype,
            batch_invariant=self.batch_invariant,
            revision=self.revision,
            token=self.token.get_secret_value() if self.token else None,
            cache_dir=self.cache_folder,
            local_files_only=self.local_files_only,
        )

    @property
    def _model_name(self) -> str:
        given = getattr(self, self._given_field)
        return self.model if given is None else str(given.spec.model)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "model", self._model_name
        for name, value in super().__repr_args__():
            field = type(self).model_fields.get(name or "")
            if field is not None and name != "model" and value != field.get_default(call_default_factory=True):
                yield name, value

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None}}
