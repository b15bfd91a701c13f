"""QwenEmbedding and the caches of LlamaIndex: a vector that was made otherwise is never served."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.bridge.pydantic import SecretStr
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SemanticSplitterNodeParser, SentenceSplitter
from llama_index.core.schema import BaseNode, Document, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index.embeddings.qwen_retrieval import QwenEmbedding
from llama_index.embeddings.qwen_retrieval.cache import NamespacedStore
from qwen_retrieval.testing import FakeEmbeddingEngine
from tests.integrations.llama_index_parts import QUERY, TEXTS, embedding, listening, make_embedder


def documents() -> list[Document]:
    """New ones each time: a pipeline without a splitter puts vectors into the documents themselves."""
    return [Document(text=text, id_=str(i)) for i, text in enumerate(TEXTS)]


def vectors(nodes: list[BaseNode] | Any) -> list[list[float] | None]:
    return [node.embedding for node in nodes]


class TestEmbeddingsCache:
    """`embeddings_cache` of the base class, whose keys are texts and nothing else.

    https://github.com/run-llama/llama_index/pull/23181
    """

    async def test_a_query_never_finds_the_vector_of_a_document(self) -> None:
        plain, cached = embedding(), embedding(embeddings_cache=SimpleKVStore())
        assert cached.get_text_embedding(QUERY) == plain.get_text_embedding(QUERY)
        assert cached.get_query_embedding(QUERY) == plain.get_query_embedding(QUERY)
        assert await cached.aget_text_embedding(QUERY) == plain.get_text_embedding(QUERY)
        assert await cached.aget_query_embedding(QUERY) == plain.get_query_embedding(QUERY)
        assert cached.get_text_embedding_batch([QUERY, "x"]) == plain.get_text_embedding_batch([QUERY, "x"])
        assert await cached.aget_text_embedding_batch([QUERY]) == plain.get_text_embedding_batch([QUERY])

    async def test_what_is_there_is_not_computed_again(self) -> None:
        engine = FakeEmbeddingEngine()
        embed = embedding(engine, embeddings_cache=SimpleKVStore())
        embed.get_text_embedding_batch(TEXTS)
        embed.get_query_embedding(QUERY)
        calls = engine.calls
        embed.get_text_embedding_batch(TEXTS[::-1])
        embed.get_text_embedding(TEXTS[0])
        embed.get_query_embedding(QUERY)
        await embed.aget_text_embedding_batch(TEXTS)
        await embed.aget_text_embedding(TEXTS[0])
        await embed.aget_query_embedding(QUERY)
        assert engine.calls == calls
        embed.get_text_embedding_batch([*TEXTS, "new"])
        assert engine.inputs == len(TEXTS) + 2

    async def test_vectors_stay_with_their_texts_when_some_are_there_already(self) -> None:
        # llama-index-core 0.13.0 puts those that it finds at the end.
        embed = embedding(embeddings_cache=SimpleKVStore())
        embed.get_text_embedding_batch(TEXTS[1:3])
        expected = embedding().get_text_embedding_batch(TEXTS)
        assert await embed.aget_text_embedding_batch(TEXTS) == expected
        assert embed.get_text_embedding_batch([*TEXTS[::-1], "new"])[:4] == expected[::-1]

    def test_collections_have_short_names_without_capitals(self) -> None:
        # Names of tables and files: some stores take neither long ones nor capitals.
        store = SimpleKVStore()
        embed = QwenEmbedding(model_name="demo", embeddings_cache=store)
        embed.get_query_embedding(QUERY)
        embed.get_text_embedding(QUERY)
        assert [re.sub("[0-9a-f]{16}$", "…", name) for name in store.to_dict()] == [
            "embeddings-query-…",
            "embeddings-document-…",
        ]
        embed.close()

    def test_the_store_can_do_what_it_could_before(self, tmp_path: Path) -> None:
        engine, path = FakeEmbeddingEngine(), str(tmp_path / "vectors.json")
        embed = embedding(embeddings_cache=SimpleKVStore())
        vector = embed.get_query_embedding(QUERY)
        assert embed.embeddings_cache is not None
        embed.embeddings_cache.persist(path)
        again = embedding(engine, embeddings_cache=SimpleKVStore.from_persist_path(path))
        assert again.get_query_embedding(QUERY) == vector
        assert engine.calls == 0
        for copied in (copy.copy(embed.embeddings_cache), pickle.loads(pickle.dumps(embed.embeddings_cache))):
            assert isinstance(copied, NamespacedStore)
            assert embedding(embeddings_cache=copied).get_query_embedding(QUERY) == vector
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = embed.embeddings_cache.no_such_thing

    @pytest.mark.parametrize("look", [1, 2, 3])
    def test_threads_wrap_the_store_once(self, look: int) -> None:
        # Wrapped twice, it would put the vectors of the first calls into collections that no other call looks into.
        looks = 0

        class Raced(QwenEmbedding):
            def __getattribute__(self, name: str) -> Any:
                nonlocal looks
                value = super().__getattribute__(name)
                if name == "embeddings_cache":
                    looks += 1
                    if looks == look:  # another thread comes in between
                        self.embeddings_cache = NamespacedStore(store)
                return value

        store = SimpleKVStore()
        embed = Raced(embedder=make_embedder())
        embed.embeddings_cache, looks = store, 0
        embed.get_query_embedding(QUERY)
        assert looks >= look
        wrapped: Any = embed.embeddings_cache
        assert wrapped.store is store
        embedding(embeddings_cache=store).get_query_embedding(QUERY)
        assert len(store.to_dict()) == 1

    @pytest.mark.parametrize(
        "change",
        [{"dimensions": 32}, {"instruction": "Find"}, {"instruction": ""}, {"document_instruction": "Find"}],
        ids=lambda change: next(iter(change)),
    )
    def test_other_settings_find_nothing_of_these(self, change: dict[str, Any]) -> None:
        store = SimpleKVStore()
        embed = embedding(embeddings_cache=store)
        embed.get_query_embedding(QUERY)
        embed.get_text_embedding(QUERY)
        expected = embedding(**change)
        for other in (embedding(embeddings_cache=store, **change), embed.model_copy(update=change)):
            assert other.get_query_embedding(QUERY) == expected.get_query_embedding(QUERY)
            assert other.get_text_embedding(QUERY) == expected.get_text_embedding(QUERY)

    def test_another_model_finds_nothing_of_these(self) -> None:
        store = SimpleKVStore()
        embedding(embeddings_cache=store).get_text_embedding(QUERY)
        other = QwenEmbedding(model_name="demo", embeddings_cache=store)
        assert len(other.get_text_embedding(QUERY)) == 192
        other.close()

    def test_views_with_other_query_instructions_share_the_documents(self) -> None:
        engine = FakeEmbeddingEngine()
        embed = embedding(engine, embeddings_cache=SimpleKVStore())
        embed.get_text_embedding_batch(TEXTS)
        embed.model_copy(update={"instruction": "Find"}).get_text_embedding_batch(TEXTS)
        assert engine.inputs == len(TEXTS)

    def test_however_the_store_came_in(self) -> None:
        assigned = embedding()
        assigned.embeddings_cache = SimpleKVStore()
        for embed in (assigned, embedding().model_copy(update={"embeddings_cache": SimpleKVStore()})):
            assert embed.get_text_embedding(QUERY) != embed.get_query_embedding(QUERY)

    async def test_concurrent_roles_do_not_mix(self) -> None:
        plain = embedding()
        embed = embedding(FakeEmbeddingEngine(delay=0.01), embeddings_cache=SimpleKVStore(), embed_batch_size=1)
        texts = [f"text {i}" for i in range(12)]
        found = await asyncio.gather(
            embed.aget_text_embedding_batch(texts),
            *(embed.aget_query_embedding(text) for text in texts),
            *(asyncio.to_thread(embed.get_text_embedding, text) for text in texts),
        )
        assert found[0] == plain.get_text_embedding_batch(texts)
        assert found[1:13] == [plain.get_query_embedding(text) for text in texts]
        assert found[13:] == found[0]

    def test_what_is_not_a_store_is_refused(self) -> None:
        with pytest.raises(TypeError, match="embeddings_cache must be of type BaseKVStore"):
            QwenEmbedding(embeddings_cache={})

    def test_a_description_works_with_a_store(self) -> None:
        # to_json of other adapters raises TypeError once they have a store
        embed = embedding(embeddings_cache=SimpleKVStore())
        assert embed.to_json() == embedding().to_json()

    def test_a_call_is_one_span_with_a_store_too(self) -> None:
        embed = embedding(embeddings_cache=SimpleKVStore())
        with listening() as (_, spans):
            embed.get_text_embedding(QUERY)
        assert [name for name, _ in spans.entered] == [
            "QwenEmbedding.get_text_embedding",
            "QwenEmbedding._get_text_embedding",
        ]


class TestPipelineKey:
    """The key of IngestionPipeline's cache is made of the texts and `to_dict()`."""

    NODES = [TextNode(text=text) for text in TEXTS]  # noqa: RUF012

    def key(self, **options: Any) -> str:
        return get_transformation_hash(self.NODES, QwenEmbedding(**options))

    @pytest.mark.parametrize(
        "change",
        [
            {"model_name": "Qwen/Qwen3-Embedding-4B"},
            {"dimensions": 64},
            {"instruction": "Find"},
            {"document_instruction": "Find"},
            {"max_length": 100},
            {"control_tokens": "keep"},
            {"revision": "v2"},
            {"dtype": "float32"},
            {"batch_invariant": True},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_changes_with_what_decides_the_vectors(self, change: dict[str, Any]) -> None:
        # HuggingFaceEmbedding's `truncate_dim` is in no key: vectors of the old length come back.
        assert self.key(**change) != self.key()

    def test_does_not_change_with_what_does_not(self) -> None:
        other = self.key(
            device="cpu",
            batch_size=8,
            max_batch_tokens=4096,
            token="secret",
            cache_folder="/somewhere",
            local_files_only=True,
            show_progress_bar=True,
            embed_batch_size=7,
            num_workers=2,
            embeddings_cache=SimpleKVStore(),
        )
        assert other == self.key()

    def test_changes_with_the_content_of_a_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(Path(str(files("qwen_retrieval"))) / "demo" / "embedder", folder)
        before = self.key(model_name=str(folder))
        assert self.key(model_name=str(folder)) == before
        (folder / "model.safetensors").write_bytes(b"fine-tuned")
        assert self.key(model_name=str(folder)) != before

    def test_of_a_pickle_is_computed_anew(self, tmp_path: Path) -> None:
        # In another process a path may lead to another folder.
        folder = tmp_path / "model"
        shutil.copytree(Path(str(files("qwen_retrieval"))) / "demo" / "embedder", folder)
        embed = QwenEmbedding(model_name=str(folder))
        before = embed.fingerprint
        (folder / "model.safetensors").write_bytes(b"fine-tuned")
        assert embed.fingerprint == before  # of the weights that it may have loaded
        assert pickle.loads(pickle.dumps(embed)).fingerprint != before
        embed.close()
        assert embed.fingerprint != before

    def test_of_a_parser_that_holds_one_says_what_it_does(self) -> None:
        # It dumps its fields itself, without `to_dict` of the embedding.
        parsers = [
            SemanticSplitterNodeParser(embed_model=embed, include_prev_next_rel=False)
            for embed in (embedding(), QwenEmbedding(embedder=make_embedder(max_length=50)), embedding())
        ]
        first, second, again = (get_transformation_hash(self.NODES, parser) for parser in parsers)
        assert first != second
        assert first == again

    def test_of_a_given_embedder_says_in_what_it_computes(self) -> None:
        embedder = make_embedder()
        embedder.dtype = "bfloat16"
        embed = QwenEmbedding(embedder=embedder)
        assert get_transformation_hash(self.NODES, embed) != get_transformation_hash(self.NODES, embedding())
        assert QwenEmbedding.from_dict(embed.to_dict(), embedder=embedder).to_dict() == embed.to_dict()

    def test_of_a_given_embedder_says_what_it_does(self) -> None:
        keys = {
            get_transformation_hash(self.NODES, embed)
            for embed in (
                embedding(),
                embedding(dimensions=16),
                embedding(instruction="Find"),
                QwenEmbedding(embedder=make_embedder(instruction="Seek")),
                QwenEmbedding(embedder=make_embedder(max_length=50)),
            )
        }
        assert len(keys) == 5
        spelled = embedding(dimensions=64, document_instruction="none")
        assert spelled.fingerprint == embedding().fingerprint == make_embedder().fingerprint


class TestPipeline:
    def test_the_second_run_computes_nothing(self) -> None:
        engine = FakeEmbeddingEngine()
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding(engine)])
        first = vectors(pipeline.run(documents=documents()))
        inputs = engine.inputs
        assert vectors(pipeline.run(documents=documents())) == first
        assert engine.inputs == inputs
        assert first == embedding().get_text_embedding_batch(TEXTS)

    async def test_the_second_asynchronous_run_computes_nothing(self) -> None:
        engine = FakeEmbeddingEngine()
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding(engine)])
        first = vectors(await pipeline.arun(documents=documents()))
        inputs = engine.inputs
        assert vectors(await pipeline.arun(documents=documents())) == first
        assert engine.inputs == inputs

    def test_a_second_pipeline_with_other_dimensions_gets_none_of_the_vectors(self) -> None:
        cache = IngestionCache()
        for dimensions in (32, 16):
            pipeline = IngestionPipeline(transformations=[embedding(dimensions=dimensions)], cache=cache)
            found = vectors(pipeline.run(documents=documents()))
            assert [len(vector or ()) for vector in found] == [dimensions] * 4

    def test_the_cache_survives_a_restart(self, tmp_path: Path) -> None:
        pipeline = IngestionPipeline(transformations=[embedding()])
        first = vectors(pipeline.run(documents=documents()))
        pipeline.persist(str(tmp_path))
        engine = FakeEmbeddingEngine()
        again = IngestionPipeline(transformations=[embedding(engine)])
        again.load(str(tmp_path))
        assert vectors(again.run(documents=documents())) == first
        assert engine.calls == 0

    def test_metadata_is_embedded_unless_excluded(self) -> None:
        nodes = [TextNode(text="t", metadata={"title": "T", "page": 3}, excluded_embed_metadata_keys=["page"])]
        (node,) = embedding()(nodes)
        assert node.embedding == embedding().get_text_embedding("title: T\n\nt")

    @pytest.mark.slow
    def test_worker_processes_load_the_model_by_name(self) -> None:
        # https://github.com/run-llama/llama_index/issues/13497: no attribute "_model" in the workers
        embed = QwenEmbedding(model_name="demo", dimensions=32, dtype="float32", token=SecretStr("secret"))
        expected = embed.get_text_embedding_batch(TEXTS)
        pipeline = IngestionPipeline(transformations=[embed])
        found = vectors(pipeline.run(documents=documents(), num_workers=2))
        assert [vector for vector in found if vector] == [pytest.approx(vector, abs=1e-5) for vector in expected]
        embed.close()
