"""A Haystack pipeline that answers from your documents: index, retrieve, rerank, build the prompt.

Needs qwen-retrieval[haystack]. `python examples/haystack_rag.py FILE` also writes the query pipeline to FILE.
haystack_rag.yaml was written so, and then two lines were taken out by hand, so that every Haystack from 3.0 loads it:
`strict_datetime_comparison` of the store, which older ones do not know, and `bm25_tokenization_regex`, whose default
differs. Both were at their defaults.
"""

import sys
from pathlib import Path

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy

from haystack_integrations.components.embedders.qwen_retrieval import QwenDocumentEmbedder, QwenTextEmbedder
from haystack_integrations.components.rankers.qwen_retrieval import QwenRanker

MODEL = "demo"  # a tiny pair that knows a little about Python; "0.6B" for the real one

DOCUMENTS = [
    Document(id="copy2", content="shutil.copy2 copies a file and its metadata.", meta={"module": "shutil"}),
    Document(id="rmtree", content="shutil.rmtree deletes an entire directory tree.", meta={"module": "shutil"}),
    Document(id="getsize", content="os.path.getsize returns the size of a file in bytes.", meta={"module": "os"}),
    Document(id="remove", content="os.remove deletes a single file.", meta={"module": "os"}),
    Document(id="sin", content="math.sin returns the sine of x radians.", meta={"module": "math"}),
    Document(id="mkdtemp", content="tempfile.mkdtemp creates a temporary directory.", meta={"module": "tempfile"}),
    Document(id="loads", content="json.loads turns a JSON text into a Python object.", meta={"module": "json"}),
    Document(id="sub", content="re.sub replaces what a pattern matches in a string.", meta={"module": "re"}),
]

TEMPLATE = """Answer the question with the documents.
{% for document in documents %}
{{ loop.index }}. {{ document.content }}
{%- endfor %}

Question: {{ question }}"""

# With Qdrant: QdrantDocumentStore(index="library", embedding_dim=QwenDocumentEmbedder(model=MODEL).embedding_dim)
document_store = InMemoryDocumentStore(index="library", embedding_similarity_function="cosine")

indexing = Pipeline()
indexing.add_component("document_embedder", QwenDocumentEmbedder(model=MODEL, meta_fields_to_embed=["module"]))
indexing.add_component("writer", DocumentWriter(document_store, policy=DuplicatePolicy.OVERWRITE))
indexing.connect("document_embedder.documents", "writer.documents")
indexing.run({"document_embedder": {"documents": DOCUMENTS}})

rag = Pipeline()
rag.add_component("text_embedder", QwenTextEmbedder(model=MODEL))
rag.add_component("retriever", InMemoryEmbeddingRetriever(document_store, top_k=5))
rag.add_component("ranker", QwenRanker(model=MODEL, top_k=3, meta_fields_to_embed=["module"]))
rag.add_component("prompt_builder", ChatPromptBuilder(template=[ChatMessage.from_user(TEMPLATE)]))
rag.connect("text_embedder.embedding", "retriever.query_embedding")
rag.connect("retriever.documents", "ranker.documents")
rag.connect("ranker.documents", "prompt_builder.documents")

question = "How do I delete an entire directory?"
result = rag.run(
    {"text_embedder": {"text": question}, "ranker": {"query": question}, "prompt_builder": {"question": question}},
    include_outputs_from={"ranker"},
)
for document in result["ranker"]["documents"]:
    print(f"{document.score:.3f}  {document.id:8}  {document.content}")
print()
for line in result["prompt_builder"]["prompt"][0].text.splitlines()[:5]:
    print(line)

if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(rag.dumps(), encoding="utf-8")

indexing.close()
rag.close()
