"""How a model is loaded and run: what `QwenEmbedding` and `QwenRerank` have in common."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel, ModelOptions, device_option
from qwen_retrieval.types import ControlTokens, OnOverflow

with needs_extra("llama_index.core", "llama-index"):
    from llama_index.core.bridge.pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        PrivateAttr,
        SecretStr,
        field_validator,
        model_validator,
    )
    from llama_index.core.schema import BaseComponent

_OF_THIS_PROCESS = {"callback_manager", "embeddings_cache", "rate_limiter"}
"""Fields that often hold connections and locks: they stay behind when they cannot be pickled."""


class ModelFields(BaseComponent):
    """The options of a model as fields, and copies and pickles that share the model or leave it behind.

    What decides the numbers is part of `to_dict`; where and how fast they are computed is not.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    revision: str | None = None
    dtype: str = "auto"
    batch_invariant: bool = False
    max_length: int | None = Field(default=None, ge=1)
    on_overflow: OnOverflow = "truncate"
    control_tokens: ControlTokens = "escape"
    device: str | list[str] | None = Field(default=None, exclude=True)
    max_batch_tokens: int | None = Field(default=None, ge=1, exclude=True)
    batch_size: int | None = Field(default=None, ge=1, exclude=True)
    # A plain string becomes a secret wherever it comes in; the type lets callers give one.
    token: SecretStr | str | None = Field(default=None, exclude=True, repr=False)
    cache_folder: str | None = Field(default=None, exclude=True)
    local_files_only: bool = Field(default=False, exclude=True)
    show_progress_bar: bool = Field(default=False, exclude=True)
    _lazy: LazyModel[Any] = PrivateAttr()

    _given_field: ClassVar[str]
    """The field for a model that the caller has made."""
    _name_field: ClassVar[str]
    """The field that names a model instead."""
    _hints: ClassVar[dict[str, str]] = {
        "trust_remote_code": "trust_remote_code is not needed here: code from a repository is never run"
    }
    """Arguments of other adapters, and what to do instead."""

    @model_validator(mode="before")
    @classmethod
    def _show_hints(cls, values: Any) -> Any:  # noqa: ANN401
        for theirs, hint in cls._hints.items():
            if isinstance(values, dict) and theirs in values and theirs not in cls.model_fields:
                raise ValueError(hint)
        return values

    @field_validator("token", mode="before")
    @classmethod
    def _check_token(cls, token: Any) -> Any:  # noqa: ANN401
        return _secret(token)

    if not TYPE_CHECKING:  # type checkers would allow assignments to fields that do not exist

        def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
            super().__setattr__(name, _secret(value) if name == "token" else value)

    def close(self) -> None:
        """Give back the model that was loaded here, for copies and views too; the next call loads it again."""
        self._lazy.close()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """A view with other settings that shares the loaded model.

        Args:
            update: Fields to change, checked like those of a new object, which pydantic's own method does not do. A
                model that is given needs no name.
            deep: Changes nothing: models, caches and handlers are shared, never copied.

        Raises:
            ValueError: A field is unknown or its value out of range.
        """
        copied = super().model_copy()
        if update:
            changed = dict(update)
            if changed.get(self._given_field) is not None:
                changed.setdefault(self._name_field, type(self).model_fields[self._name_field].default)
            fields = {name: getattr(self, name) for name in type(self).model_fields}
            # The copy itself is validated, because the `__init__` of a subclass may want other arguments. This makes
            # new private attributes, in the place of those that the copy shares.
            private = copied.__pydantic_private__
            self.__pydantic_validator__.validate_python({**fields, **changed}, self_instance=copied)
            object.__setattr__(copied, "__pydantic_private__", private)
            object.__setattr__(copied, "__pydantic_fields_set__", self.model_fields_set | changed.keys())
        return copied

    def _options(self, model: str) -> ModelOptions:
        return ModelOptions(
            model=model,
            max_length=self.max_length,
            max_batch_tokens=self.max_batch_tokens,
            batch_size=self.batch_size,
            on_overflow=self.on_overflow,
            control_tokens=self.control_tokens,
            show_progress=self.show_progress_bar,
            device=device_option(self.device),
            dtype=self.dtype,
            batch_invariant=self.batch_invariant,
            revision=self.revision,
            token=self.token.get_secret_value() if isinstance(self.token, SecretStr) else self.token,
            cache_dir=self.cache_folder,
            local_files_only=self.local_files_only,
        )

    def _refuse_options(self, model: str) -> None:
        """A model that was given has options of its own.

        Args:
            model: What it is called.
        """
        defaults = {name: field.default for name, field in ModelFields.model_fields.items()}
        named = getattr(self, self._name_field)
        wrong = [name for name, default in defaults.items() if getattr(self, name) != default]
        if named not in (model, type(self).model_fields[self._name_field].default):
            wrong.append(self._name_field)
        if wrong:
            names = ", ".join(wrong)
            raise ValueError(f"{self._given_field} has options of its own, and must be given without {names}")

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy(deep=True)

    def __getstate__(self) -> dict[Any, Any]:
        # BaseComponent's own method would strip the live object of what cannot be pickled.
        state = BaseModel.__getstate__(self)
        fields = {
            name: value
            for name, value in state["__dict__"].items()
            if name != "token" and (name not in _OF_THIS_PROCESS or _can_be_pickled(value))
        }
        return {**state, "__dict__": fields}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, state)
        for name, field in type(self).model_fields.items():
            if name not in self.__dict__:
                self.__dict__[name] = field.get_default(call_default_factory=True)


def _secret(token: Any) -> Any:  # noqa: ANN401
    return SecretStr(token) if isinstance(token, str) else token


def _can_be_pickled(value: Any) -> bool:  # noqa: ANN401
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
