"""Ingest Python's documentation once, ask it questions. Needs qwen-retrieval[qdrant].

python examples/qdrant_ingest.py [FOLDER] [--all]

FOLDER keeps the collection for the next time; --all takes all modules instead of some.
"""

import argparse
import tempfile

from qdrant_qwen_retrieval import QdrantIndex
from qdrant_qwen_retrieval.python_docs import standard_library
from qwen_retrieval import Embedder, Reranker

MODULES = {"copy", "csv", "glob", "gzip", "heapq", "json", "os", "pathlib", "shutil", "tempfile", "timeit", "zipfile"}
QUESTIONS = (
    "find the n largest items of a list",
    "create a temporary directory",
    "compress data with gzip",
)

parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?")
parser.add_argument("--all", action="store_true")
options = parser.parse_args()


# Docstrings of the standard library, read from its sources.
documentation = [one for one in standard_library() if options.all or one.id.split(".")[0] in MODULES]

with (
    tempfile.TemporaryDirectory() as temporary,
    Embedder.from_pretrained("demo") as embedder,  # or "0.6B"
    Reranker.from_pretrained("demo") as reranker,
    QdrantIndex("python", embedder=embedder, path=options.folder or temporary) as index,
):
    report = index.ingest(documentation, progress=True)
    print(f"{report.records} records, {report.embedded} chunks embedded")

    for question in QUESTIONS:
        print(f"\n{question}")
        for hit in index.search(question, reranker=reranker, limit=3):
            place = f"{hit.retrieval_rank} -> {hit.rank}"  # before and after reranking
            print(f"{hit.relevance_score:.3f}  {place:7}  {hit.record_id:28}  {' '.join(hit.text.split())[:60]}")

    again = index.ingest(documentation)
    print(f"\nThe second time {again.embedded} chunks are embedded, {again.skipped} are there already.")
