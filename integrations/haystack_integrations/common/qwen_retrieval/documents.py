"""Documents in, texts for the model out; vectors in, documents out."""

from collections.abc import Iterable
from typing import Any

from qwen_retrieval.errors import needs_extra

with needs_extra("haystack", "haystack"):
    import yaml  # type: ignore[import-untyped]  # Haystack needs it
    from haystack import Document
    from haystack.marshal.yaml import YamlDumper


class Vector(list[float]):
    """A list of numbers that `copy.deepcopy` copies as a whole, not number by number.

    Pipelines deep-copy what goes from component to component, and vectors are nearly all of it. Numbers cannot change,
    so a new list of the same numbers is a full copy. Whatever else copies, pickles or takes a document apart
    (`dataclasses.asdict`, `Document.to_dict`) gets plain lists, so that no store or file format sees anything else.
    """

    __slots__ = ()

    def __new__(cls, values: Iterable[float] = ()) -> list[float]:  # type: ignore[misc]
        """A plain list: `asdict` makes its lists by calling the type of the ones that it finds."""
        return list(values)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Vector":
        return as_vector(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


# YAML goes by the exact type: it would refuse this one, or write down how to make a list of it. Haystack's own dumper
# has a table of its own.
for _representer in (yaml.representer.SafeRepresenter, yaml.representer.Representer, YamlDumper):
    _representer.add_representer(Vector, yaml.representer.SafeRepresenter.represent_list)


def as_vector(values: Iterable[float]) -> Vector:
    """A list of floats, with cheap deep copies."""
    vector = list.__new__(Vector)
    vector.extend(values)
    return vector


def check_documents(documents: object, advice: str = "") -> None:
    """Refuse what is no list of documents.

    Args:
        documents: What was given.
        advice: What else the caller may have meant.

    Raises:
        TypeError: It is no list, or something else is in it.
    """
    if not isinstance(documents, list):
        raise TypeError(f"documents must be a list of Document, but got {type(documents).__name__}{advice}")
    for position, document in enumerate(documents):
        if not isinstance(document, Document):
            found = type(document).__name__
            raise TypeError(f"documents must be a list of Document, but documents[{position}] is {found}{advice}")


def check_meta_fields(names: object) -> None:
    """Refuse a single string, whose letters would be taken for names.

    Raises:
        TypeError: `names` is neither None nor a list of strings.
    """
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"meta_fields_to_embed must be a list of strings or None, but got {names!r}")


def text_of(document: Document, meta_fields: list[str] | None, separator: str) -> str:
    """What the model sees of a document: values of its metadata, then its content.

    Values that are missing or None are left out; others, such as 0 and False, are not. A document without content has
    its metadata only, or "".
    """
    found = (document.meta.get(name) for name in meta_fields or [])
    parts = [str(value) for value in found if value is not None]
    return separator.join(parts if document.content is None else [*parts, document.content])
