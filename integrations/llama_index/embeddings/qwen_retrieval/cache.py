"""An `embeddings_cache` that never serves a vector that was made otherwise.

The base class keeps vectors under nothing but their text, so that a query finds the vector of the document with the
same words, and a model the vectors of another (https://github.com/run-llama/llama_index/pull/23181). Here each kind of
vector has a collection of its own in the user's store.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from qwen_retrieval.errors import needs_extra

with needs_extra("llama_index.core", "llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import Field
    from llama_index.core.instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR  # type: ignore[attr-defined]
    from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

Role = Literal["query", "document"]
Method = TypeVar("Method", bound=Callable[..., Any])

_current: ContextVar[str | None] = ContextVar("qwen_retrieval_namespace", default=None)
"""What the caller embeds, while it does; the base class does not tell its cache."""


def spanned_by_base(method: Method) -> Method:
    """Mark a method as one that gets no span of its own, because it calls the one it overrides, which has it."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class NamespacedStore(BaseKVStore):
    """A store as the base class sees it: within a call its collections are those of the call's kind of vectors.

    Args:
        store: The user's store. Outside of a call everything goes to it as it is.
    """

    def __init__(self, store: BaseKVStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Whatever else the user's store has, such as `persist`."""
        # Not "store", which is missing while this is unpickled, nor how the store copies and pickles itself.
        if name == "store" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.store, name)

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Put a value into the store."""
        self.store.put(key, val, collection=_within(collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Put a value into the store."""
        await self.store.aput(key, val, collection=_within(collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """A value of the store, or None."""
        return self.store.get(key, collection=_within(collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """A value of the store, or None."""
        return await self.store.aget(key, collection=_within(collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All values of a collection."""
        return self.store.get_all(collection=_within(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All values of a collection."""
        return await self.store.aget_all(collection=_within(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete a value; whether there was one."""
        return self.store.delete(key, collection=_within(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete a value; whether there was one."""
        return await self.store.adelete(key, collection=_within(collection))


class SafelyCachedEmbedding(BaseEmbedding):
    """The base class, whose cache keeps apart what `_namespace` tells apart."""

    embeddings_cache: Any | None = Field(default=None, exclude=True)

    def _namespace(self, role: Role) -> str:
        """A name for everything that decides the vectors of one role.

        A subclass that has fields of its own which change vectors overrides this.
        """
        raise NotImplementedError  # an abstract method would become a span in every trace

    @contextmanager
    def _cached_as(self, role: Role) -> Iterator[None]:
        if self.embeddings_cache is None:
            yield
            return
        store = self.embeddings_cache  # read once, because another thread may wrap it meanwhile
        if not isinstance(store, NamespacedStore):  # however it was set: assigned, or by `model_copy`
            self.embeddings_cache = NamespacedStore(store)
        # Stores that make tables or files of collections want short names without capitals.
        token = _current.set(f"{role}-{hashlib.sha256(self._namespace(role).encode()).hexdigest()[:16]}")
        try:
            yield
        finally:
            _current.reset(token)

    @spanned_by_base
    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query, or find it in the cache."""
        with self._cached_as("query"):
            return super().get_query_embedding(query)

    @spanned_by_base
    async def aget_query_embedding(self, query: str) -> Embedding:
        """The same as `get_query_embedding`, without blocking the event loop."""
        with self._cached_as("query"):
            return await super().aget_query_embedding(query)

    @spanned_by_base
    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a document, or find it in the cache."""
        with self._cached_as("document"):
            return super().get_text_embedding(text)

    @spanned_by_base
    async def aget_text_embedding(self, text: str) -> Embedding:
        """The same as `get_text_embedding`, without blocking the event loop."""
        with self._cached_as("document"):
            return await super().aget_text_embedding(text)

    @spanned_by_base
    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Embedding]:
        """Embed documents, `embed_batch_size` at a time, or find them in the cache."""
        with self._cached_as("document"):
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)

    @spanned_by_base
    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[Embedding]:
        """The same as `get_text_embedding_batch`, without blocking the event loop."""
        if self.embeddings_cache is not None and not hasattr(BaseEmbedding, "_aget_text_embeddings_cached"):
            # Older versions return the vectors that they have found after those that they have computed.
            return await asyncio.gather(*(self.aget_text_embedding(text) for text in texts))
        with self._cached_as("document"):
            return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)


def _within(collection: str) -> str:
    namespace = _current.get()
    return collection if namespace is None else f"{collection}-{namespace}"
