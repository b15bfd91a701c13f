"""Retrieval-augmented generation with LlamaIndex. Needs qwen-retrieval[llama-index] and its Qdrant integration."""

import asyncio

from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from llama_index.embeddings.qwen_retrieval import QwenEmbedding
from llama_index.postprocessor.qwen_retrieval import QwenRerank

TEXTS = {
    "shutil.copy2": "Copies a file to another place and tries to preserve its metadata.",
    "shutil.rmtree": "Deletes an entire directory tree, with everything in it.",
    "shutil.disk_usage": "Returns how much space of a disk is used and how much is free.",
    "os.rename": "Gives a file or directory another name.",
    "os.path.getsize": "Returns the size of a file in bytes.",
    "tempfile.mkdtemp": "Creates a temporary directory that only you can read.",
    "json.dumps": "Turns a Python object into a JSON formatted string.",
    "math.sin": "Returns the sine of x, measured in radians.",
    "random.shuffle": "Shuffles a list in place.",
    "time.sleep": "Suspends the calling thread for a number of seconds.",
}
documents = [Document(text=text, metadata={"function": name}) for name, text in TEXTS.items()]

# Index: LlamaIndex splits the documents, the model embeds them, Qdrant keeps them.
embed_model = QwenEmbedding(model_name="demo")  # or "0.6B"
vector_store = QdrantVectorStore("docs", client=QdrantClient(":memory:"), index_doc_id=False)  # or url="http://…"
storage_context = StorageContext.from_defaults(vector_store=vector_store)
index = VectorStoreIndex.from_documents(documents, storage_context=storage_context, embed_model=embed_model)

# Retrieve many, rerank, keep the best.
reranker = QwenRerank(model="demo", top_n=3, keep_retrieval_score=True)  # or "0.6B"
question = "How do I delete a folder and everything in it?"


def show(found: list[NodeWithScore]) -> None:
    """A line for each node: both scores, and what it says."""
    for one in found:
        print(f"{one.score:.3f} ({one.metadata['retrieval_score']:.3f})  {one.metadata['function']}: {one.text}")


retriever = index.as_retriever(similarity_top_k=8)
print("relevance (similarity)")
show(reranker.postprocess_nodes(retriever.retrieve(question), query_str=question))

# Answer: the question and what was found go to a language model.
llm = MockLLM()  # repeats its prompt; any LLM of LlamaIndex goes here
relevant = reranker.model_copy(update={"score_threshold": 0.5})  # a view: other settings, the same model
query_engine = index.as_query_engine(llm=llm, similarity_top_k=8, node_postprocessors=[relevant])
print(f"\n{query_engine.query(question)}\n")


async def search(query: str) -> list[NodeWithScore]:
    """The same in an event loop: nothing blocks it, and concurrent searches share the model's batches."""
    store = QdrantVectorStore("docs", aclient=AsyncQdrantClient(":memory:"), index_doc_id=False)
    await IngestionPipeline(transformations=[embed_model], vector_store=store).arun(documents=documents)
    retriever = VectorStoreIndex.from_vector_store(store, embed_model=embed_model).as_retriever(similarity_top_k=8)
    return await reranker.apostprocess_nodes(await retriever.aretrieve(query), query_str=query)


show(asyncio.run(search("size of a file")))
