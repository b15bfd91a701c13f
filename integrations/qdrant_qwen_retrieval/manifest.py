"""What a collection was made with, kept in its own metadata: the guard against two models in one collection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from qdrant_qwen_retrieval.settings import FIELDS, Settings
from qwen_retrieval import Embedder
from qwen_retrieval.errors import CollectionMismatchError
from qwen_retrieval.specs import check_dimensions
from qwen_retrieval.templates import DEFAULT_MAX_LENGTH

KEY = "qwen_retrieval"
VERSION = 1

_MODEL_FIELDS = ("model", "revision", "dimensions", "max_length", "control_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a collection was made with.

    Attributes:
        model: The embedding model, as it was named.
        revision: Branch, tag or commit that was asked for; None for the default, or for a folder.
        dimensions: Length of the full vectors.
        max_length: Longest text in tokens.
        control_tokens: What was done with control tokens in texts.
        fingerprint: A name for all that decides the vectors of documents, see `qwen_retrieval.fingerprint`.
        instruction: The instruction for queries of the embedder that made the collection. Others may be used: vectors
            of documents do not depend on it.
        settings: How it is set up.
        version: Of this form.
    """

    model: str
    revision: str | None
    dimensions: int
    max_length: int
    control_tokens: str
    fingerprint: str
    instruction: str
    settings: Settings
    version: int = VERSION

    @classmethod
    def of(cls, embedder: Embedder, settings: Settings) -> Self:
        """The manifest of a new collection.

        Raises:
            ValueError: A stage is not shorter than the vectors, or the model cannot give vectors of that length.
        """
        for length in settings.stages:
            check_dimensions(embedder.spec, length)
            if length >= embedder.dimensions:
                raise ValueError(f"stages must be shorter than the vectors ({embedder.dimensions}), but got {length}")
        return cls(**_identity(embedder), instruction=embedder.instruction, settings=settings)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        return values | {"settings": values["settings"] | {"stages": list(self.settings.stages)}}

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any] | None) -> Self:
        """The manifest that a collection carries.

        Args:
            name: Of the collection.
            metadata: The collection's.

        Raises:
            CollectionMismatchError: It carries none, or one of a newer version.
        """
        values = (metadata or {}).get(KEY)
        if not isinstance(values, Mapping):
            raise CollectionMismatchError(
                f"collection {name!r} was not made by qdrant_qwen_retrieval, so nothing says which model its vectors "
                "are of; ingest into a collection of another name"
            )
        if values.get("version") != VERSION:
            raise CollectionMismatchError(
                f"collection {name!r} was made by another version of qdrant_qwen_retrieval: its manifest has version "
                f"{values.get('version')!r}, this one reads {VERSION}; update qwen-retrieval"
            )
        try:
            settings = dict(values["settings"])
            settings["stages"] = tuple(int(length) for length in settings["stages"])
            return cls(**{**values, "settings": Settings(**settings)})
        except (KeyError, TypeError, ValueError) as error:
            raise CollectionMismatchError(
                f"the manifest of collection {name!r} is damaged ({error}); ingest into a collection of another name"
            ) from error

    def check(self, name: str, options: Mapping[str, Any], embedder: Embedder | None) -> None:
        """Refuse to open the collection otherwise than it was made.

        Args:
            name: Of the collection.
            options: Settings that the caller gave; the others are the collection's.
            embedder: The caller's; None if nothing is to be embedded.

        Raises:
            CollectionMismatchError: Something differs; it names both sides of everything that does.
        """
        made = {key: getattr(self.settings, key) for key in FIELDS if key in options}
        opened = dict(options)
        if embedder is not None and (identity := _identity(embedder))["fingerprint"] != self.fingerprint:
            differing = [key for key in _MODEL_FIELDS if getattr(self, key) != identity[key]] or ["fingerprint"]
            made |= {key: getattr(self, key) for key in differing}
            opened |= {key: identity[key] for key in differing}
        differences = [f"{key} is {made[key]!r}, not {opened[key]!r}" for key in made if made[key] != opened[key]]
        if differences:
            raise CollectionMismatchError(
                f"collection {name!r} was made otherwise than it is opened now: {'; '.join(differences)}. "
                "Open it as it was made, or ingest into a collection of another name"
            )


def _identity(embedder: Embedder) -> dict[str, Any]:
    """What decides the vectors of documents."""
    return {
        "model": embedder.spec.model,
        "revision": embedder.revision,
        "dimensions": embedder.dimensions,
        "max_length": embedder.max_length or DEFAULT_MAX_LENGTH,
        "control_tokens": embedder.control_tokens,
        "fingerprint": embedder.fingerprint_for(instruction=""),
    }
