"""Search a folder of text: python examples/search_folder.py [FOLDER] [QUERY]. Needs qwen-retrieval[qdrant]."""

import sys
from pathlib import Path

from qwen_retrieval import Embedder, Reranker, search
from qwen_retrieval.search import SearchIndex, folder, split

root = sys.argv[1] if len(sys.argv) > 1 else Path(search.__file__).parent
query = sys.argv[2] if len(sys.argv) > 2 else "split a text into chunks of a few words"

with Embedder.from_pretrained("demo") as embedder, Reranker.from_pretrained("demo") as reranker:  # or "0.6B"
    index = SearchIndex(embedder, reranker)
    index.add(chunk for document in folder(root) for chunk in split(document))
    for hit in index.search(query, top_n=3):
        print(f"{hit.relevance_score:.3f}  {hit.retrieval_score:.3f}  {hit.chunk.source}  {hit.chunk.text[:60]!r}")
