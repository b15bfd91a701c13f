"""Ingest Parquet files into a Qdrant server with every GPU, or CPU, of a Ray cluster.

    python examples/ray_ingest.py records.parquet --url http://qdrant:6333 --collection handbook --model 0.6B

Needs qwen-retrieval[qdrant,ray,parquet] on every node; an API key is read from QDRANT_API_KEY there, so that it never
travels through Ray. Ids, payloads, what is skipped and what is refused are those of `QdrantIndex.ingest`: stop it,
start it again, go on with a local ingest, and nothing is embedded twice. A new collection gets the defaults; for others
(layout, quantization, shards, …) make it first, by `QdrantIndex(…).collection.ensure()`. An id must not occur twice in
the files, because two actors would write the same points. To delete what is no longer in the files, ingest them once
more locally with `delete_missing=True`, which embeds nothing by then.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

from qdrant_qwen_retrieval import QdrantIndex
from qwen_retrieval import Embedder
from qwen_retrieval.errors import needs_extra

with needs_extra("pyarrow", "parquet"), needs_extra("ray", "ray"):
    import pyarrow as pa
    import ray
    import ray.data

COUNTS = ("records", "chunks", "embedded", "skipped", "replaced", "deleted", "failed", "tokens", "truncated")


@dataclass(frozen=True)
class Job:
    """What every process is told."""

    url: str
    grpc_port: int | None
    collection: str
    model: str
    dtype: str
    id_field: str
    text_field: str

    def load(self) -> Embedder:
        """The model, on the process's own GPU if it has one."""
        return Embedder.from_pretrained(self.model, dtype=self.dtype)

    def open(self, embedder: Embedder | None = None) -> QdrantIndex:
        """The collection; only one that exists can be opened without a model."""
        return QdrantIndex(self.collection, embedder=embedder, url=self.url, grpc_port=self.grpc_port)


def make_collection(job: Job) -> None:
    """Make the collection, or compare how it was made, once and before any work: on a node that has the model."""
    with job.load() as embedder, job.open(embedder) as index:
        index.collection.ensure()


class IngestActor:
    """One model and one connection, for as long as its process lives."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.index = job.open(job.load())

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        """Records in, what was done with them out."""
        report = self.index.ingest(
            batch,
            id_field=self.job.id_field,
            text_field=self.job.text_field,
            check_count=False,  # others write too; the driver counts at the end
        )
        return {"report": [json.dumps(report.to_dict())]}


def share(actors: int | None) -> tuple[int, dict[str, Any]]:
    """How many actors, and what each asks of the cluster: a GPU, else its part of the CPUs but one, which reads."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if gpus := int(found.get("GPU", 0)):
        return actors or gpus, {"num_gpus": 1}
    cpus = (found["CPU"] - 1) / (actors or 1)
    return actors or 1, {"num_cpus": int(cpus) if cpus >= 1 else cpus}


def main() -> None:
    """Ingest, and print the sum of what all actors report."""
    parser = argparse.ArgumentParser(description="Ingest Parquet files into Qdrant on a Ray cluster.")
    parser.add_argument("path", help="a Parquet file, or a folder of them, that every node can read")
    parser.add_argument("--url", required=True, help="of the Qdrant server, as the nodes reach it")
    parser.add_argument("--grpc-port", type=int, help="6334 unless the server is set up otherwise")
    parser.add_argument("--collection", required=True)
    parser.add_argument("--model", default="demo", help='"0.6B", "4B", "8B", a repository or a folder')
    parser.add_argument("--dtype", default="auto", help='"float32" for the same rounding on all machines')
    parser.add_argument("--actors", type=int, help="one per GPU, or one in all, unless given")
    parser.add_argument("--rows", type=int, default=8192, help="records of a call, which ends with a pause")
    parser.add_argument("--id-field", default="id")
    parser.add_argument("--text-field", default="text")
    options = vars(parser.parse_args())
    path, actors, rows = options.pop("path"), options.pop("actors"), options.pop("rows")
    job = Job(**options)

    if not ray.is_initialized():
        ray.init()  # RAY_ADDRESS names a cluster; without it, this machine is one
    actors, resources = share(actors)
    ray.get(ray.remote(**resources)(make_collection).remote(job))

    reports = (
        ray.data.read_parquet(path)
        .repartition(target_num_rows_per_block=rows)  # a large file is work for all actors
        .map_batches(
            IngestActor,
            fn_constructor_args=(job,),
            batch_size=rows,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            **resources,
        )
    )
    total = dict.fromkeys(COUNTS, 0)
    with job.open() as index, index.collection.bulk_load():  # around all calls: graphs are built once, at the end
        for row in reports.iter_rows():
            report = json.loads(row["report"])
            total = {name: total[name] + report[name] for name in COUNTS}
            for failure in report["failures"]:
                print(f"failed: {failure['id']}: {failure['reason']}")
    with job.open() as index:
        print(json.dumps(total | {"points": index.count()}))


if __name__ == "__main__":
    main()
