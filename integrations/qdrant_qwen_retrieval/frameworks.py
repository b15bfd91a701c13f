"""The Qdrant stores of LangChain, LlamaIndex and Haystack, opened on a collection that was ingested here.

Each function gives the framework's own store, set up for the names of the vectors and for the layout. All of them use
the one client of the index, in memory, in a folder or on a server: nothing is opened twice, and closing the index
closes them. Filters, deletions and writes by the framework work as they do on its own collections. What a framework
writes has its own fields alone, and no bookkeeping: a later ingestion of the same record replaces it. What it changes
in the metadata of a chunk (Haystack's ``update_by_filter``) is changed in all copies of the layout, and holds until the
record is ingested again. Emptying the collection keeps it, with what it was made with; nothing makes it anew.

The vectors must be of the model that the collection was ingested with, ``index.embedder``. LangChain's store gets an
embedding: our own `QwenEmbeddings` is compared with the collection, of others only the length is. The stores of
LlamaIndex and Haystack get vectors only, and cannot tell which model they are of.

| layout      | open_langchain | open_llama_index | open_haystack               |
|-------------|----------------|------------------|-----------------------------|
| compact     | yes            | yes              | yes, from haystack-ai 3.1 on |
| langchain   | yes            | no               | no                          |
| llama_index | no             | yes              | no                          |
| haystack    | no             | no               | yes                         |
| universal   | yes            | yes              | yes, from haystack-ai 3.1 on |
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from qdrant_client import QdrantClient

from qdrant_qwen_retrieval.layouts import LayoutName, get_layout
from qdrant_qwen_retrieval.manifest import Manifest
from qdrant_qwen_retrieval.settings import SPARSE
from qwen_retrieval.errors import CollectionNotFoundError, needs_extra

if TYPE_CHECKING:
    from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
    from langchain_core.embeddings import Embeddings  # noqa: TID251
    from langchain_qdrant import QdrantVectorStore as LangChainStore
    from langchain_qdrant import SparseEmbeddings
    from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore  # noqa: TID251


class Index(Protocol):
    """What is needed of a `QdrantIndex`."""

    @property
    def client(self) -> QdrantClient:
        """The client, which any number of threads may use."""

    @property
    def name(self) -> str:
        """The collection."""


def open_langchain(
    index: Index,
    embedding: Embeddings,
    *,
    hybrid: bool | None = None,
    sparse_embedding: SparseEmbeddings | None = None,
) -> LangChainStore:
    """LangChain's own store over the collection.

    ```python
    from langchain_qwen_retrieval import QwenEmbeddings
    from qdrant_qwen_retrieval import QdrantIndex, open_langchain
    from qwen_retrieval import Embedder

    with (
        Embedder.from_pretrained("demo") as embedder,
        QdrantIndex("handbook", embedder=embedder, path=":memory:") as index,
    ):
        index.ingest([{"id": "rmtree", "text": "Delete a directory tree."}])
        store = open_langchain(index, QwenEmbeddings(embedder=index.embedder))
        print(store.similarity_search("remove a folder")[0].page_content)
    ```

    Filters are Qdrant's; `index.collection.layout.field(name)` is the path of a metadata field. Asynchronous methods
    run in threads.

    Args:
        index: A `QdrantIndex` of layout compact, langchain or universal.
        embedding: The model that it was ingested with: ``QwenEmbeddings(embedder=index.embedder)``. A `QwenEmbeddings`
            of another model is refused, without loading it. That any other embedding, one around ours included, is of
            the right model, cannot be told: LangChain compares the length of its vectors, and nothing else.
        hybrid: Search by dense and sparse vectors, and write both; None to do so if the collection has both.
        sparse_embedding: What makes sparse vectors; None for the BM25 that the collection was ingested with.

    Returns:
        A ``langchain_qdrant.QdrantVectorStore``. Its ids are point ids: `chunks.point_id(chunk_id)`.

    Raises:
        CollectionNotFoundError: Nothing was ingested yet.
        CollectionMismatchError: The collection was not made here, or with another model than a `QwenEmbeddings` has.
        ValueError: LangChain cannot read the layout, or `hybrid` is asked of a collection without sparse vectors.
        MissingDependencyError: langchain-qdrant is not installed.
    """
    manifest = _manifest(index, "LangChain", ("compact", "langchain", "universal"))
    settings = manifest.settings
    if hybrid and not settings.hybrid:
        raise ValueError(f"collection {index.name!r} has no sparse vectors; ingest into a new one with hybrid=True")
    with needs_extra("langchain_qdrant", "", package="langchain-qdrant"):
        from langchain_qdrant import QdrantVectorStore, RetrievalMode

        from qdrant_qwen_retrieval.langchain_store import Bm25Embeddings, check_model
    check_model(index.name, manifest, embedding)
    both = settings.hybrid if hybrid is None else hybrid
    if both and sparse_embedding is None and settings.language is not None:
        sparse_embedding = Bm25Embeddings(settings.language)
    compact = settings.layout == "compact"
    return QdrantVectorStore(
        index.client,
        index.name,
        embedding,
        RetrievalMode.HYBRID if both else RetrievalMode.DENSE,
        vector_name=settings.dense_name,
        content_payload_key="content" if compact else "page_content",
        metadata_payload_key="meta" if compact else "metadata",
        sparse_embedding=sparse_embedding,
        sparse_vector_name=SPARSE,
    )


def open_llama_index(index: Index) -> LlamaIndexStore:
    """LlamaIndex's own store over the collection, for ``VectorStoreIndex.from_vector_store(store, embed_model)``.

    ```python
    from llama_index.core import VectorStoreIndex

    from llama_index.embeddings.qwen_retrieval import QwenEmbedding
    from qdrant_qwen_retrieval import QdrantIndex, open_llama_index
    from qwen_retrieval import Embedder

    with (
        Embedder.from_pretrained("demo") as embedder,
        QdrantIndex("handbook", embedder=embedder, path=":memory:") as index,
    ):
        index.ingest([{"id": "rmtree", "text": "Delete a directory tree."}])
        embed_model = QwenEmbedding(embedder=index.embedder)
        nodes = VectorStoreIndex.from_vector_store(open_llama_index(index), embed_model)
        print(nodes.as_retriever().retrieve("remove a folder")[0].text)
    ```

    The `embed_model` must be of the model that the collection was ingested with, as it is there: the store never sees
    it, and cannot refuse another.

    A node's id is the point's, its ``ref_doc_id`` the id of the record. Metadata filters take names of fields, and
    paths within them. Hybrid and sparse queries use the BM25 that the collection was ingested with. ``clear`` deletes
    all nodes, but not the collection. Asynchronous methods run in threads.

    Args:
        index: A `QdrantIndex` of layout compact, llama_index or universal.

    Returns:
        A ``llama_index.vector_stores.qdrant.QdrantVectorStore``, for compact one that reads and writes that layout.

    Raises:
        CollectionNotFoundError: Nothing was ingested yet.
        CollectionMismatchError: The collection was not made here.
        ValueError: LlamaIndex cannot read the layout.
        MissingDependencyError: llama-index-vector-stores-qdrant is not installed.
    """
    manifest = _manifest(index, "LlamaIndex", ("compact", "llama_index", "universal"))
    with needs_extra("llama_index.vector_stores.qdrant", "", package="llama-index-vector-stores-qdrant"):
        from qdrant_qwen_retrieval.llama_index_store import CompactVectorStore, IndexVectorStore
    store = CompactVectorStore if manifest.settings.layout == "compact" else IndexVectorStore
    return store(index.client, index.name, manifest.settings)


def open_haystack(index: Index) -> QdrantDocumentStore:
    """Haystack's own document store over the collection, for its retrievers and writers.

    ```python
    from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever

    from haystack_integrations.components.embedders.qwen_retrieval import QwenTextEmbedder
    from qdrant_qwen_retrieval import QdrantIndex, open_haystack
    from qwen_retrieval import Embedder

    with (
        Embedder.from_pretrained("demo") as embedder,
        QdrantIndex("handbook", embedder=embedder, path=":memory:") as index,
    ):
        index.ingest([{"id": "rmtree", "text": "Delete a directory tree."}])
        query = QwenTextEmbedder.from_embedder(index.embedder).run("remove a folder")
        retriever = QdrantEmbeddingRetriever(open_haystack(index))
        print(retriever.run(query["embedding"])["documents"][0].content)
    ```

    Embedders must be of the model that the collection was ingested with, as they are there: the store gets vectors
    only, and cannot refuse another.

    A document's id is the chunk's, and ``meta["doc_id"]`` the record's (not with layout haystack). Filters take
    ``meta.<field>``. What ``update_by_filter`` changes holds until the record is ingested again. The collection can be
    emptied, but not recreated. Asynchronous methods run in threads. It holds an open store, and cannot be written to
    YAML.

    Args:
        index: A `QdrantIndex` of layout compact, haystack or universal.

    Returns:
        A ``QdrantDocumentStore``.

    Raises:
        CollectionNotFoundError: Nothing was ingested yet.
        CollectionMismatchError: The collection was not made here.
        ValueError: Haystack cannot read the layout, or this version of it cannot.
        MissingDependencyError: qdrant-haystack is not installed.
    """
    manifest = _manifest(index, "Haystack", ("compact", "haystack", "universal"))
    with needs_extra("haystack_integrations.document_stores.qdrant", "", package="qdrant-haystack"):
        from qdrant_qwen_retrieval.haystack_store import IndexDocumentStore, reads
    layout = get_layout(manifest.settings.layout)
    if not reads(layout):
        raise ValueError(
            f"haystack-ai before 3.1 cannot read layout {layout.name!r}; update it, or ingest into a new "
            'collection with layout="haystack"'
        )
    return IndexDocumentStore(index.client, index.name, layout, manifest)


class AsyncClient:
    """The methods of a client as coroutines, each run in a thread: for stores that want an asynchronous client.

    An asynchronous client of its own could not see into memory, would hold a folder open after the index is closed, and
    a server's would be bound to one event loop.

    Args:
        client: What does the work; any number of threads may use it.
    """

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        method = getattr(self._client, name)

        async def call(*args: object, **kwargs: object) -> Any:  # noqa: ANN401
            return await asyncio.to_thread(method, *args, **kwargs)

        return call

    async def close(self) -> None:
        """Nothing: the client belongs to the index."""


def _manifest(index: Index, framework: str, readable: tuple[LayoutName, ...]) -> Manifest:
    """What the collection was made with, if the framework can read its layout."""
    if not index.client.collection_exists(index.name):
        raise CollectionNotFoundError(f"there is no collection {index.name!r} yet; ingest something into it first")
    manifest = Manifest.from_metadata(index.name, index.client.get_collection(index.name).config.metadata)
    if (layout := manifest.settings.layout) not in readable:
        raise ValueError(
            f"{framework} cannot read layout {layout!r} of collection {index.name!r}, only "
            f"{', '.join(readable[:-1])} and {readable[-1]}; ingest into a new collection with one of those"
        )
    return manifest
