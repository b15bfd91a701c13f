"""QdrantIndex: ingest a corpus once, and search it from everywhere."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qdrant_client import QdrantClient, models

from qdrant_qwen_retrieval.collection import Collection
from qdrant_qwen_retrieval.description import Description, describe_collection
from qdrant_qwen_retrieval.filters import Filter, to_filter
from qdrant_qwen_retrieval.layouts import LayoutName
from qdrant_qwen_retrieval.progress import shown
from qdrant_qwen_retrieval.report import IngestReport, OnProgress
from qdrant_qwen_retrieval.search import Hit, Search, check_oversampling, how_many_candidates, rerank, retrieve
from qdrant_qwen_retrieval.settings import Datatype, Quantization
from qdrant_qwen_retrieval.stores import ApiKey, open_store
from qwen_retrieval import Embedder, Reranker

if TYPE_CHECKING:
    from qdrant_qwen_retrieval.splitting import Splitter

UNINDEXED = 50_000
"""Vectors without a graph above which an ingestion into a folder builds one at its end. Searching 100,000 vectors of
1024 dimensions takes 28 ms without and 7 ms with it; among 10,000 the graph is slower (see `benchmarks/README.md`)."""

_RECORDS_AT_ONCE = 500


class QdrantIndex:
    """A collection of texts in Qdrant, embedded by a Qwen3-Embedding model.

    The store is named by exactly one of `path`, `url` and `client`. A new collection is made by the first ingestion; an
    existing one must have been made here, with the same model and with the settings that are given. Any number of
    threads may share an index.

    Args:
        collection: Its name.
        embedder: The model. None is enough for `count`, `delete`, `describe` and `optimize`.
        path: A folder, for the embedded engine; one process at a time can have it open. Or ":memory:", for tests.
        url: Of a server, such as "http://localhost:6333"; Qdrant 1.16 or later.
        client: A client of your own, which stays open.
        api_key: Of the server; a string, pydantic's ``SecretStr`` or Haystack's ``Secret``. None for the environment
            variable QDRANT_API_KEY.
        prefer_grpc: Speak gRPC with a server, which is faster; False for REST.
        grpc_port: Where the server listens for gRPC; None for 6334.
        timeout: Seconds to wait for an answer of a server.
        layout: Whose own Qdrant store can read the payloads: "compact" (default: Haystack's, and the others through
            `open_langchain` and `open_llama_index`), "langchain", "llama_index", "haystack" or "universal" (all three,
            at three to four times the size).
        stages: Lengths of shorter vectors to store and to search in first, such as [256]; the model must be able to
            give them. None for none.
        quantization: Let the engine search in codes of 8 ("scalar"), 4 ("turbo4"), 2 ("turbo2") or 1 ("binary") bit per
            dimension, and rescore with the vectors; "none" by default, "scalar" with `on_disk`. "scalar" and "turbo4"
            find the same results; "binary" loses some, many if vectors are short: its recall, and that of all others,
            is measured in ``benchmarks/README.md``. A server needs version 1.18 for "turbo4" and "turbo2".
        hybrid: Store BM25 vectors too, and search by words as well.
        language: Of the texts, for BM25; English by default.
        datatype: "float32" (default), or "float16" for half the size at the same recall.
        on_disk: Keep vectors and payloads on the server's disk, and only graph and quantized vectors in memory.
        shard_number: Shards on a cluster, two to four for each machine; a server only.
        replication_factor: Copies of each shard on a cluster; a server only.
        indexed_fields: Metadata fields to index for filters, such as ``{"year": "integer", "author": "keyword"}``; also
            "float", "bool", "datetime", "text", "uuid" and "geo". They can be added later.

    Of the settings from `layout` on, None means what the collection has, and the default for a new one. They have no
    effect in memory where qdrant-client's own implementation has no such thing (quantization, shards, disk, indexes).

    Raises:
        CollectionMismatchError: The collection was made with another model or other settings, or not here.
        CollectionNotFoundError: It does not exist, and there is no embedder to make it for.
        StoreError: The store cannot be reached or used.
        StoreLockedError: Another process has the folder open.
        TypeError: An argument has the wrong type.
        ValueError: An argument has an unknown value, or does not fit the others.
        MissingDependencyError: The embedded engine or BM25 is not installed.
    """

    def __init__(
        self,
        collection: str,
        *,
        embedder: Embedder | None = None,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        client: QdrantClient | None = None,
        api_key: ApiKey | None = None,
        prefer_grpc: bool = True,
        grpc_port: int | None = None,
        timeout: int = 60,
        layout: LayoutName | None = None,
        stages: Sequence[int] | None = None,
        quantization: Quantization | None = None,
        hybrid: bool | None = None,
        language: str | None = None,
        datatype: Datatype | None = None,
        on_disk: bool | None = None,
        shard_number: int | None = None,
        replication_factor: int | None = None,
        indexed_fields: Mapping[str, str] | None = None,
    ) -> None:
        if embedder is not None and not isinstance(embedder, Embedder):
            raise TypeError(f"embedder must be an Embedder, but got {type(embedder).__name__}")
        options = {
            "layout": layout,
            "stages": stages,
            "quantization": quantization,
            "hybrid": hybrid,
            "language": language,
            "datatype": datatype,
            "on_disk": on_disk,
            "shard_number": shard_number,
            "replication_factor": replication_factor,
        }
        self._embedder = embedder
        self._store = open_store(
            path,
            url=url,
            client=client,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout=timeout,
            create=embedder is not None,
        )
        try:
            with self._store.reached():
                self._collection = Collection(
                    self._store, collection, embedder, options=options, indexed_fields=indexed_fields
                )
        except BaseException:
            self._store.close()  # or the folder would stay locked
            raise

    @property
    def name(self) -> str:
        """The collection's name."""
        return self._collection.name

    @property
    def client(self) -> QdrantClient:
        """The client of the store, for a framework's own store, or for whatever Qdrant can do beyond this class."""
        return self._store.client

    @property
    def embedder(self) -> Embedder | None:
        """The model that was given."""
        return self._embedder

    @property
    def layout(self) -> LayoutName:
        """How the payloads are written."""
        return self._collection.layout.name

    @property
    def collection(self) -> Collection:
        """The collection below: its settings, and the points that are made for it."""
        return self._collection

    def ingest(
        self,
        records: Any,  # noqa: ANN401 - any iterable, or what names one
        *,
        id_field: str | None = "id",
        text_field: str = "text",
        chunk_size: int | None = 1000,
        splitter: Splitter | None = None,
        delete_missing: bool = False,
        dead_letter: str | os.PathLike[str] | None = None,
        progress: bool | OnProgress = False,
        dry_run: bool = False,
        batch_size: int = 256,
        workers: int = 4,
        check_count: bool = True,
        optimize: bool | None = None,
    ) -> IngestReport:
        """Bring records into the collection: new and changed ones are embedded and written, others are passed over.

        It may be stopped at any point, and be run again: it goes on where it was, and leaves neither duplicates nor
        half a record behind. Records that cannot be ingested are reported and do not stop it; of one with many chunks
        some may be stored by then, beside those of its last version, until a run in which it does not fail.

        Args:
            records: An iterable of `Record`, or of mappings with an id, a text, and optionally ``title``, ``metadata``
                and ``chunks`` (other fields join the metadata), which may be a generator of any length; a dataset of
                Hugging Face's; or the path, or a list of paths, of JSONL or Parquet files, of texts, or of folders.
            id_field: Field of a mapping that has the record's id. None makes ids of the texts: a text that has changed
                is then a new record beside the old one.
            text_field: Field of a mapping that has its text.
            chunk_size: Most characters of a chunk, without the title that is put before it; None to leave records
                whole. Records with chunks of their own keep them.
            splitter: Splits a text, instead of `chunk_size`.
            delete_missing: Delete the records of earlier ingestions that are not among `records`.
            dead_letter: JSONL file to which records that failed are added, each with the reason.
            progress: Show a bar on the terminal; or a function that is called again and again.
            dry_run: Embed and write nothing, and report what would be done.
            batch_size: Chunks that are looked up, embedded and written at once.
            workers: Batches that are under way at the same time.
            check_count: Count the points exactly before and after, and if that differs from what was written, because
                others write too or the store has lost some, look up each point of this run. False where many processes
                bring in parts of one large collection, and counting it again and again would take long.
            optimize: Call `optimize` at the end; None to do so for a store in a folder in which more than 50,000
                vectors are not indexed.

        Returns:
            What was done.

        Raises:
            IngestError: The store does not take any more. What is written stays.
            CollectionMismatchError: Somebody has made the collection meanwhile, otherwise.
            StoreError: The store cannot be used.
            ModelError: The model cannot be used.
            TypeError: An argument has the wrong type.
            ValueError: An argument has an unknown value, there is no embedder, or the dead letter file is itself among
                the `records`.
        """
        from qdrant_qwen_retrieval.ingest import run
        from qdrant_qwen_retrieval.records import check_output, open_records
        from qdrant_qwen_retrieval.splitting import text_splitter

        embedder = self._model()
        if splitter is None and chunk_size is not None:
            splitter = text_splitter(chunk_size)
        if dead_letter is not None:
            check_output(records, dead_letter)
        source = open_records(records, id_field=id_field, text_field=text_field)
        with shown(progress, source.total) as on_progress:
            report = run(
                self._collection,
                embedder,
                source,
                splitter=splitter,
                delete_missing=delete_missing,
                dead_letter=None if dead_letter is None else Path(dead_letter),
                on_progress=on_progress,
                dry_run=dry_run,
                batch_size=batch_size,
                workers=workers,
                check_count=check_count,
            )
        if not dry_run and (self._is_worth_optimizing() if optimize is None else optimize):
            self.optimize()
        return report

    def search(
        self,
        query: str,
        *,
        limit: int = 10,
        reranker: Reranker | None = None,
        candidates: int | None = None,
        filter: Filter | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        hybrid: bool | None = None,
        exact: bool = False,
        oversampling: float | None = None,
    ) -> list[Hit]:
        """Find the chunks that answer a query, best first.

        Args:
            query: What to search for.
            limit: How many hits to return at most.
            reranker: Puts the candidates in order; None for the order of retrieval.
            candidates: How many the store proposes to the reranker; None for five for each hit, at least 20 and at most
                200.
            filter: Only chunks that meet it: conditions on metadata fields such as ``{"year": {"gte": 2020}}``, or a
                list of such, which must all hold (see `Filter`); or a ``models.Filter``, whose keys are paths of the
                payload.
            instruction: What the search is for, in one English sentence or by the name of a preset; both models read
                it. None for each model's own.
            score_threshold: The least relevance score, or the least retrieval score if there is no reranker.
            hybrid: Search by words too, and fuse both results by reciprocal ranks; None if the collection can do so.
            exact: Compare the query with every vector at full precision, instead of searching in the index.
            oversampling: How many times as many as it must the search in quantized and in shorter vectors proposes to
                be rescored with the full ones; None for defaults (see `settings.OVERSAMPLING`), 1 for the fastest.

        Returns:
            At most `limit` hits, by falling relevance score, or retrieval score without a reranker; equal ones keep the
            order in which the store returned them. [] if nothing is in the collection.

        Raises:
            CollectionNotFoundError: Nothing was ever ingested.
            StoreError: The store cannot be used.
            InputError: The query is not valid text, or too long for ``on_overflow="error"``.
            TypeError: An argument has the wrong type.
            ValueError: A number is out of range, a filter has a form that is not known, there is no embedder, or
                `hybrid` is asked of a collection without BM25 vectors.
        """
        wanted = how_many_candidates(limit, candidates, reranker, score_threshold)
        check_oversampling(oversampling)
        embedder = self._model()
        self._must_exist()
        vector = embedder.embed_queries([query], instruction=instruction)[0]  # (dimensions,)
        search = Search(
            text=query,
            vector=vector,
            limit=wanted,
            filter=to_filter(filter, self._collection.layout),
            hybrid=self._is_hybrid(hybrid),
            exact=exact,
            oversampling=oversampling,
        )
        with self._collection.reached():
            hits = retrieve(self._collection, search)
        if reranker is not None:
            return rerank(hits, reranker, query, limit=limit, instruction=instruction, score_threshold=score_threshold)
        return [hit for hit in hits if score_threshold is None or hit.retrieval_score >= score_threshold]

    async def asearch(
        self,
        query: str,
        *,
        limit: int = 10,
        reranker: Reranker | None = None,
        candidates: int | None = None,
        filter: Filter | None = None,
        instruction: str | None = None,
        score_threshold: float | None = None,
        hybrid: bool | None = None,
        exact: bool = False,
        oversampling: float | None = None,
    ) -> list[Hit]:
        """The same as `search`, without blocking the event loop."""
        return await asyncio.to_thread(
            self.search,
            query,
            limit=limit,
            reranker=reranker,
            candidates=candidates,
            filter=filter,
            instruction=instruction,
            score_threshold=score_threshold,
            hybrid=hybrid,
            exact=exact,
            oversampling=oversampling,
        )

    def delete(self, record_ids: Iterable[str]) -> int:
        """Delete records, with all their chunks.

        Args:
            record_ids: Ids of records; those that are not in the collection are passed over.

        Returns:
            How many points were deleted.

        Raises:
            TypeError: `record_ids` is a string, or has something that is none.
            StoreError: The store cannot be used.
        """
        ids = [record_ids] if isinstance(record_ids, str) else list(record_ids)
        if isinstance(record_ids, str) or not all(isinstance(id_, str) for id_ in ids):
            raise TypeError(f"record_ids must be a list of strings, but got {record_ids!r}")
        deleted = 0
        with self._collection.reached():
            if not self._collection.is_there():
                return 0
            for start in range(0, len(ids), _RECORDS_AT_ONCE):
                some = self._of_records(ids[start : start + _RECORDS_AT_ONCE])
                deleted += self.client.count(self.name, count_filter=some, exact=True).count
                self.client.delete(self.name, models.FilterSelector(filter=some), wait=True)
        return deleted

    def count(self) -> int:
        """Points in the collection, that is chunks; 0 if it does not exist yet.

        Raises:
            StoreError: The store cannot be used.
        """
        with self._collection.reached():
            return self._collection.count()

    def describe(self) -> Description:
        """What is in the collection, and with what it was made.

        Raises:
            CollectionNotFoundError: Nothing was ever ingested.
            StoreError: The store cannot be used.
        """
        with self._collection.reached():
            return describe_collection(self._collection)

    def optimize(self, *, timeout: float = 3600.0) -> bool:
        """Have the search index built.

        The embedded engine builds it now; a server does so by itself, and is waited for; in memory there is none.

        Args:
            timeout: Seconds to wait for a server.

        Returns:
            Whether all is indexed now; False if a server was not ready in time.

        Raises:
            CollectionNotFoundError: Nothing was ever ingested.
            StoreError: The store cannot be used, or the server reports that indexing has failed.
        """
        self._must_exist()
        with self._collection.reached():
            if self._collection.is_embedded:
                self.client.optimize(self.name)  # type: ignore[attr-defined]
            return not self._collection.is_remote or self._collection.wait_until_indexed(timeout)

    def close(self) -> None:
        """Close the store, unless its client was given. The embedder stays open."""
        self._store.close()

    def __enter__(self) -> Self:
        """The index itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def __repr__(self) -> str:
        model = self._collection.manifest.model
        return f"QdrantIndex({self.name!r}, {self._store.kind} store {self._store.place!r}, model={model!r})"

    def _model(self) -> Embedder:
        if self._embedder is None:
            raise ValueError(
                f"QdrantIndex({self.name!r}) was opened without a model; give embedder=Embedder.from_pretrained("
                f"{self._collection.manifest.model!r}), with which the collection was made"
            )
        return self._embedder

    def _must_exist(self) -> None:
        with self._collection.reached():
            if not self._collection.is_there():
                raise self._collection.missing()

    def _is_hybrid(self, hybrid: bool | None) -> bool:
        can = self._collection.settings.hybrid
        if hybrid and not can:
            raise ValueError(
                f"collection {self.name!r} has no BM25 vectors; ingest into a new one that is made with hybrid=True"
            )
        return can if hybrid is None else hybrid

    def _of_records(self, ids: list[str]) -> models.Filter:
        match = models.FieldCondition(key=self._collection.layout.record_path, match=models.MatchAny(any=ids))
        return models.Filter(must=[match])

    def _is_worth_optimizing(self) -> bool:
        with self._collection.reached():
            if not self._collection.is_embedded or not self._collection.is_there():
                return False
            info = self.client.get_collection(self.name)
        return (info.points_count or 0) - (info.indexed_vectors_count or 0) > UNINDEXED
