"""How a model is loaded and run: what `QwenEmbedding` and `QwenRerank` have in common."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, Self

from qwen_retrieval.errors import needs_extra
from qwen_retrieval.lazy import LazyModel, ModelOptions
from qwen_retrieval.types import ControlTokens, OnOverflow

with needs_extra("llama_index.core", "llama-index"):
    from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr
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
    max_length: int | None = Field(default=None, ge=1)
    on_overflow: OnOverflow = "truncate"
    control_tokens: ControlTokens = "escape"
    device: str | None = Field(default=None, exclude=True)
    max_batch_tokens: int | None = Field(default=None, ge=1, exclude=True)
    batch_size: int | None = Field(default=None, ge=1, exclude=True)
    token: SecretStr | None = Field(default=None, exclude=True, repr=False)
    cache_folder: str | None = Field(default=None, exclude=True)
    local_files_only: bool = Field(default=False, exclude=True)
    show_progress_bar: bool = Field(default=False, exclude=True)
    _lazy: LazyModel[Any] = PrivateAttr()

    def close(self) -> None:
        """Give back the model that was loaded here, for copies and views too; the next call loads it again."""
        self._lazy.close()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """A view with other settings that shares the loaded model.

        Args:
            update: Fields to change, checked like those of a new object, which pydantic's own method does not do.
            deep: Changes nothing: models, caches and handlers are shared, never copied.

        Raises:
            ValueError: A field is unknown or its value out of range.
        """
        copied = super().model_copy()
        if update:
            fields = {name: getattr(self, name) for name in type(self).model_fields}
            copied.__dict__.update(type(self)(**{**fields, **update}).__dict__)
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
            device=self.device or "auto",
            dtype=self.dtype,
            revision=self.revision,
            token=self.token.get_secret_value() if self.token else None,
            cache_dir=self.cache_folder,
            local_files_only=self.local_files_only,
        )

    def _refuse_options(self, given: str, model_field: str, model: str) -> None:
        """A model that was given has options of its own.

        Args:
            given: The field that holds it.
            model_field: The field that names a model otherwise.
            model: What the given one is called.
        """
        defaults = {name: field.default for name, field in ModelFields.model_fields.items()}
        named = getattr(self, model_field)
        wrong = [name for name, default in defaults.items() if getattr(self, name) != default]
        if named not in (model, type(self).model_fields[model_field].default):
            wrong.append(model_field)
        if wrong:
            raise ValueError(f"{given} has options of its own, and must be given without {', '.join(wrong)}")

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


def _can_be_pickled(value: Any) -> bool:  # noqa: ANN401
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
