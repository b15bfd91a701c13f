"""Search a folder of text: python examples/search_folder.py [FOLDER] [QUERY]. Needs qwen-retrieval[qdrant]."""

import sys
from pathlib import Path

import qdrant_qwen_retrieval
from qdrant_qwen_retrieval import QdrantIndex
from qwen_retrieval import Embedder, Reranker

root = sys.argv[1] if len(sys.argv) > 1 else Path(qdrant_qwen_retrieval.__file__).parent
query = sys.argv[2] if len(sys.argv) > 2 else "split a text into chunks"

with (
    Embedder.from_pretrained("demo") as embedder,  # or "0.6B"
    Reranker.from_pretrained("demo") as reranker,
    QdrantIndex("folder", embedder=embedder, path=":memory:") as index,
):
    index.ingest(root)
    for hit in index.search(query, reranker=reranker, limit=3):
        print(f"{hit.relevance_score:.3f}  {hit.retrieval_score:.3f}  {hit.record_id}  {hit.text[:60]!r}")
