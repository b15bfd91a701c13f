"""What the Qwen components share: the options of a model, its life, and how a component is written down."""

# Annotations are evaluated here: the constructors that dataclasses of other modules inherit from these fields would
# otherwise name types that those modules do not know.
import asyncio
import hashlib
import inspect
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.errors import needs_extra
from qwen_retrieval.fingerprint import check_dimensions, embedding_fingerprint
from qwen_retrieval.lazy import LazyModel, ModelOptions
from qwen_retrieval.specs import CHECKPOINTS
from qwen_retrieval.specs import check_dimensions as check_against
from qwen_retrieval.types import ControlTokens, OnOverflow
from qwen_retrieval.usage import Usage

with needs_extra("haystack", "haystack"):
    from haystack import default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice, Secret

M = TypeVar("M", bound=Embedder | Reranker)

_HUB_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)


@dataclass(kw_only=True, eq=False, repr=False)
class QwenComponent(Generic[M]):
    """The base of the components: init parameters as fields, so that each is written once.

    A component is a dataclass on top of this one. Its fields are its init parameters, with plain values, and what is
    saved in YAML. They may be assigned later; the next run goes by the new values. Where that means another model
    (after `model`, `dtype` or `device`, say), the old one keeps its memory until `close`.

    A component on top of a model that the caller has made (`from_embedder`, `from_reranker`) refuses to run once a
    field of this class has another value, because such fields belong to the model. `dataclasses.replace` takes the
    fields only: the new component drops the given model, and loads one by its name.

    A subclass may have its own `__init__`. YAML, pickles and copies keep what that takes; each parameter must be an
    attribute of the same name.

    The model is loaded by the first run or by `warm_up`, by one thread, whoever waits for it. Components of equal
    options share the weights, and any number of threads and tasks may run one component: their inputs meet in the
    same batches.
    """

    model: str
    """Repository, checkpoint folder, short name ("0.6B", "4B", "8B") or "demo"."""

    device: ComponentDevice | list[ComponentDevice] | None = None
    """Where the model runs: a device, such as ``ComponentDevice.from_str("cuda:0")``, or a list of devices, each of
    which gets a copy. None, which is also what YAML keeps, takes CUDA, then MPS, then the CPU of the machine that loads
    the model."""

    token: Secret | None = _HUB_TOKEN
    """Access token for a gated or private repository; by default the environment's HF_API_TOKEN or HF_TOKEN."""

    max_length: int | None = None
    """Longest input in tokens; None for 8192, or the model's own limit if that is less."""

    on_overflow: OnOverflow = "truncate"
    """What to do with a longer input: "truncate" (cut its end, warn, and count it in ``meta["truncated"]``) or
    "error"."""

    control_tokens: ControlTokens = "escape"
    """What to do with strings such as ``<|im_end|>`` in texts: "escape" (spell them out as plain text), "keep" (let
    them act) or "error"."""

    batch_size: int | None = None
    """Most inputs of one run in a forward pass; None for as many as `max_batch_tokens` allows, which is faster."""

    max_batch_tokens: int | None = None
    """Tokens computed in one forward pass; None for what suits the device."""

    progress_bar: bool = False
    """Show a progress bar for more than 64 inputs."""

    dtype: str = "auto"
    """What to compute in: "auto" (bfloat16 where the device computes it natively, else float32), "float32",
    "bfloat16", "float16", "int8" (CPU) or "float8" (GPU)."""

    batch_invariant: bool = False
    """The same bits for a text whatever shares its batch, on the CPU; see `Embedder.from_pretrained`."""

    revision: str | None = None
    """Branch, tag or commit of the repository."""

    cache_dir: str | None = None
    """Where downloads are kept; None for the hub's own cache."""

    local_files_only: bool = False
    """Never ask the hub."""

    _models: LazyModel[M] = field(init=False)

    _given: dict[str, Any] | None = field(init=False, default=None)
    """The fields that belong to the model, if the caller has made that, with its values."""

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Refuse values that no run could use. Runs call it as well, because fields may be assigned."""
        self._check_strings("model")
        if self.token is not None and not isinstance(self.token, Secret):
            raise TypeError(
                f"token must be a Secret or None, but got {type(self.token).__name__}; use Secret.from_env_var"
            )
        _device_names(self.device)
        for name, value in (self._given or {}).items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} belongs to the model that this component was given; make a new component")

    def _check_strings(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, but got {getattr(self, name)!r}")

    def warm_up(self) -> None:
        """Load the model, unless it is there already. Runs do it themselves.

        Raises:
            ModelError: The model cannot be found, reached, opened or used; the subclasses in `qwen_retrieval.errors`
                say which. The next call tries again.
            ValueError: An option is out of range.
        """
        self._models.get(self._options())

    async def warm_up_async(self) -> None:
        """The same as `warm_up`, without blocking the event loop."""
        await self._models.aget(self._options())

    def close(self) -> None:
        """Give the model back; the last of its users frees the memory. A later run loads it again.

        Runs that are under way fail with `ModelClosedError`. A model that the caller has made is left to the caller.
        """
        self._models.close()

    async def close_async(self) -> None:
        """The same as `close`, without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def to_dict(self) -> dict[str, Any]:
        """The component as plain values, for YAML.

        Raises:
            ValueError: `token` is no environment variable, and would have to be written down; or what was assigned
                is not true of the model that this component was given.
        """
        self._check()
        parameters = self._parameters()
        if isinstance(self.device, list):
            parameters["device"] = [one.to_dict() for one in self.device]
        return default_to_dict(self, **parameters)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A component as `to_dict` has described it.

        Args:
            data: What `to_dict` returned; it is left unchanged.
        """
        parameters = data.get("init_parameters", {})
        if isinstance(parameters.get("device"), list):
            devices = [ComponentDevice.from_dict(one) for one in parameters["device"]]
            data = {**data, "init_parameters": {**parameters, "device": devices}}
        return default_from_dict(cls, data)

    @classmethod
    def _holding(cls, models: LazyModel[M], **parameters: Any) -> Self:  # noqa: ANN401
        component = cls(**parameters)
        component._models = models
        component._given = {one.name: getattr(component, one.name) for one in fields(QwenComponent) if one.init}
        return component

    def _given_model(self) -> M | None:
        # Whatever the options are: a given model needs none, not even a token.
        return None if self._given is None else self._models.get(ModelOptions(model=self.model))

    def _effective(self, name: str) -> Any:  # noqa: ANN401
        """The value of a field, where None may stand for what the given model was made with."""
        value, given = getattr(self, name), self._given_model()
        if value is None and given is not None and name in ("instruction", "dimensions"):
            return getattr(given, name)
        return value

    # A component knows the pipeline that it is in: copies and pickles must not take it along.
    def __copy__(self) -> Self:
        copied = type(self)(**self._parameters())
        copied._models, copied._given = self._models, self._given
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.to_dict(), self._models)

    def _get_telemetry_data(self) -> dict[str, Any]:
        # Haystack sends this to its makers: the name of a folder or of a private repository is none of their business.
        published = {checkpoint.repository for checkpoint in CHECKPOINTS}
        return {"model": self.model} if self.model in published else {}

    def _parameters(self) -> dict[str, Any]:
        # By the signature, because a subclass may have an __init__ of its own; what that takes by ** goes on to ours.
        accepted = list(inspect.signature(type(self).__init__).parameters.values())[1:]
        names = {one.name: None for one in accepted if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
        if len(names) < len(accepted):
            names |= {one.name: None for one in fields(self) if one.init}
        values = {name: self._effective(name) for name in names}
        # Lists are copied, so that nobody changes this component by changing its description; YAML knows no tuples.
        return {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}

    def _options(self) -> ModelOptions:
        self._check()
        return ModelOptions(
            model=self.model,
            max_length=self.max_length,
            max_batch_tokens=self.max_batch_tokens,
            batch_size=self.batch_size,
            on_overflow=self.on_overflow,
            control_tokens=self.control_tokens,
            show_progress=self.progress_bar,
            device=_device_names(self.device),
            dtype=self.dtype,
            batch_invariant=self.batch_invariant,
            revision=self.revision,
            token=self.token.resolve_value() if self.token is not None else None,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )

    def _meta(self, usage: Usage) -> dict[str, Any]:
        return {"model": self.model, "tokens": usage.tokens, "truncated": usage.truncated}


@dataclass(kw_only=True, eq=False, repr=False)
class QwenEmbedder(QwenComponent[Embedder]):
    """The base of both embedders."""

    model: str = "Qwen/Qwen3-Embedding-0.6B"
    """Repository, checkpoint folder, short name ("0.6B", "4B", "8B") or "demo"."""

    prefix: str = ""
    """Added to the beginning of each text."""

    suffix: str = ""
    """Added to the end of each text."""

    dimensions: int | None = None
    """Length of the vectors, from 32 to the model's own, which is the default. A shorter vector is the beginning of
    the long one, made unit length again (Matryoshka)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dimensions(self.model, self.dimensions)
        self._models = LazyModel(Embedder)

    def _check(self) -> None:
        super()._check()
        self._check_strings("prefix", "suffix")

    @property
    def fingerprint(self) -> str:
        """A name for everything that decides the vectors; it loads nothing.

        Use the document embedder's in the name of an index or as the key of a cache, so that a changed model, revision,
        length or instruction never meets vectors that were made otherwise.
        """
        self._check()
        own = embedding_fingerprint(
            self.model,
            revision=self.revision,
            dimensions=self._effective("dimensions"),
            max_length=self.max_length,
            control_tokens=self.control_tokens,
            dtype=self.dtype,
            **self._instructions(),
        )
        around = self._around()
        return f"{own}-{hashlib.sha256(repr(around).encode()).hexdigest()[:8]}" if any(around) else own

    def _instructions(self) -> dict[str, str | None]:
        """What queries and documents are told."""
        raise NotImplementedError

    def _around(self) -> tuple[Any, ...]:
        """What is put around texts, each falsy where it is nothing."""
        return self.prefix, self.suffix

    @property
    def embedding_dim(self) -> int:
        """The length of the vectors, as stores such as `QdrantDocumentStore` want to know it.

        The model is loaded only if it is none of the published checkpoints and not on this machine.

        Raises:
            ValueError: The model cannot give vectors of `dimensions`.
        """
        self._check()
        given = self._given_model()
        if given is not None:
            return check_against(given.spec, self._effective("dimensions"))
        return check_dimensions(self.model, self.dimensions) or self._models.get(self._options()).dimensions


def options_of(model: Embedder | Reranker) -> dict[str, Any]:
    """The init parameters that describe a model which the caller has made, as far as they make sense elsewhere."""
    return {
        "model": model.spec.model,
        "revision": model.revision,
        "max_length": model.max_length,
        "on_overflow": model.on_overflow,
        "control_tokens": model.control_tokens,
        "batch_size": model.batch_size,
        "batch_invariant": model.batch_invariant,
        "progress_bar": model.show_progress,
    }


def _device_names(device: ComponentDevice | list[ComponentDevice] | None) -> str | tuple[str, ...]:
    """What the core calls these devices."""
    if isinstance(device, list):
        return tuple(map(_device_name, device))
    return "auto" if device is None else _device_name(device)


def _device_name(device: ComponentDevice) -> str:
    if not isinstance(device, ComponentDevice):
        raise TypeError(
            f"device must be a ComponentDevice, a list of them, or None, but got {device!r}; use "
            f"ComponentDevice.from_str({str(device)!r})"
        )
    if device.has_multiple_devices:
        raise ValueError(
            f"device must be a single device or a list of them, but got a device map: {device.to_dict()['device_map']}"
        )
    return device.to_torch_str()


def _unpickle(kind: type[Any], data: dict[str, Any], models: LazyModel[Any]) -> Any:  # noqa: ANN401
    component = kind.from_dict(data)
    component._models = models
    return component
