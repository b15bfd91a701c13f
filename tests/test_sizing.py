"""docs/sizing.md: its arithmetic is true, and what it says to be measured is measured again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qdrant_client")

from qdrant_qwen_retrieval.chunks import Chunk
from qdrant_qwen_retrieval.layouts import get_layout

PAGE = (Path(__file__).parents[1] / "docs" / "sizing.md").read_text("utf-8")
METADATA = {
    "source": "library/shutil.rst",
    "title": "shutil - High-level file operations",
    "section": "Directory and files operations",
    "language": "en",
    "year": 2026,
}
PER_VECTOR: dict[str, Callable[[int], int]] = {
    "4d": lambda d: 4 * d,
    "2d": lambda d: 2 * d,
    "d + 4": lambda d: d + 4,
    "d / 2 + 8": lambda d: d // 2 + 8,
    "d / 4 + 8": lambda d: d // 4 + 8,
    "d / 8": lambda d: d // 8,
}


def table(first_header: str) -> list[dict[str, str]]:
    """The rows of the table whose first column is called so."""
    start = PAGE.index(f"| {first_header} |")
    lines = PAGE[start:].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|--")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def number(text: str) -> float:
    """The first number in a text: "2.2 hours", "43.6 GB on disk"."""
    found = re.search(r"\d[\d,]*\.?\d*", text)
    assert found, text
    return float(found[0].replace(",", ""))


def agree(stated: str, value: float) -> bool:
    """Whether a number is the value, rounded as it is written."""
    digits = re.search(r"\d[\d,]*(?:\.(\d+))?", stated)
    assert digits, stated
    return math.isclose(number(stated), value, rel_tol=1e-9, abs_tol=0.51 * 10 ** -len(digits[1] or ""))


def calculate(text: str) -> float:
    """The value of a formula as it is written in the page."""
    return float(eval(text.replace(",", "").replace("×", "*"), {"__builtins__": {}}))


def column(rows: list[dict[str, str]], beginning: str) -> Iterator[tuple[dict[str, str], str]]:
    for row in rows:
        yield row, next(value for name, value in row.items() if name.startswith(beginning))


def test_work_and_time_per_chunk_follow_from_the_shapes() -> None:
    tokens = int(re.search(r"\*\*(\d+) tokens\*\*", PAGE)[1])  # type: ignore[index]
    for row in table("model"):
        heads, layers = map(int, row["heads × layers"].split(" × "))
        flop = 2 * number(row["parameters of the matrices"]) + 4 * heads * 128 * layers * (tokens + 1) / 2
        ceiling = 989e12 / (flop * tokens)
        values = [flop / 1e9, flop * tokens / 1e9, ceiling, ceiling / 3, 1e6 / (ceiling / 3) / 3600]
        stated = list(row.values())[3:]
        assert [agree(text, value) for text, value in zip(stated, values, strict=True)] == [True] * 5, row


def test_the_shapes_are_those_of_the_published_checkpoints() -> None:
    from qwen_retrieval.specs import CHECKPOINTS

    for row in table("model"):
        shape = next(one for one in CHECKPOINTS if one.repository.endswith(f"Embedding-{row['model']}"))
        attention = shape.hidden_size * 128 * (2 * shape.heads + 2 * shape.kv_heads)
        matrices = shape.layers * (attention + 3 * shape.hidden_size * shape.ffn_size)
        assert number(row["parameters of the matrices"]) == matrices
        assert row["heads × layers"] == f"{shape.heads} × {shape.layers}"


def test_vectors_take_what_the_formula_says() -> None:
    for row in table("kept as"):
        size = PER_VECTOR[row["bytes per vector of d numbers (M)"]]
        for length in (256, 512, 1024, 2560, 4096):
            assert agree(row[str(length)], size(length) / 1000), row


def test_a_layout_of_a_million_takes_a_thousand_times_its_bytes_in_megabytes() -> None:
    for row in table("layout"):
        assert agree(row["GB per million on disk"], number(row["bytes on disk"]) / 1000), row


def test_the_network_carries_vectors_and_payload() -> None:
    payload = {row["layout"].split()[0]: number(row["bytes as JSON"]) for row in table("layout")}
    for row in table("vectors, layout"):
        vectors, layout = row["vectors, layout"].split(", ")
        size = 4 * sum(map(int, re.findall(r"\d+", vectors))) + payload[layout]
        assert number(row["bytes per chunk"]) == size
        stated = [row["hours per 100 million at 1 Gbit/s"], row["at 10 Gbit/s"]]
        assert [agree(text, size * 1e8 * 8 / rate / 3600) for text, rate in zip(stated, (1e9, 1e10), strict=True)] == [
            True,
            True,
        ]


@pytest.mark.parametrize(
    ("chunks", "vectors", "codes"),
    [
        pytest.param("100 thousand", 4096, 0, id="100 thousand"),
        pytest.param("1 million", 4096, 0, id="1 million"),
        pytest.param("10 million", 2048, 1028, id="10 million"),
        pytest.param("100 million", 2048 + 512, 260, id="100 million"),
    ],
)
def test_each_size_is_the_sum_of_its_parts(chunks: str, vectors: int, codes: int) -> None:
    (row,) = (one for one in table("chunks") if one["chunks"] == chunks)
    count = number(chunks) * (1e3 if "thousand" in chunks else 1e6)
    stated = row["disk and memory (D, 0.6B, `compact`)"].split(", ")
    payload = number(table("layout")[0]["bytes on disk"])
    disk = count * (vectors + codes + 100 + 45 + 2 * 90 + payload) / 1e9
    memory = count * ((codes + 145) if "on_disk=True" in row["options"] else vectors) * 1.5 / 1e9
    assert agree(stated[0], disk)
    assert len(stated) == 1 or agree(stated[1], memory)


def test_every_line_of_the_example_is_its_arithmetic() -> None:
    rows = {row["what"]: row for row in table("what | arithmetic")}
    units = {"billion": 1e9, "GB": 1e9, "hours": 1.0}
    parts: list[float] = []
    for what, row in rows.items():
        if what == "disk":
            value = sum(parts) * 1e9
        elif what == "disk while optimizing":
            value = sum(parts) * 1.5 * 1e9
        else:
            value = calculate(row["arithmetic"])
        assert agree(row["result"], value / units[row["result"].split()[1]]), row
        if row["result"].endswith("GB") and what not in ("disk", "disk while optimizing", "memory", "network"):
            parts.append(number(row["result"]))
    assert len(parts) == 6


def test_payloads_have_the_bytes_that_the_page_says() -> None:
    text = ("Copy the file 'src' to 'dst', and follow symbolic links. " * 20)[:1000]
    chunk = Chunk("library/shutil.rst-000001", 0, 1, text, METADATA)
    for row in table("layout"):
        layout = get_layout(row["layout"].split()[0].strip("`"))
        payload = json.dumps(layout.payload(chunk), ensure_ascii=False, separators=(",", ":"))
        assert len(payload.encode()) == pytest.approx(number(row["bytes as JSON"]), rel=0.02)


@pytest.mark.parametrize("kept", list(PER_VECTOR)[1:])
def test_the_engine_needs_the_bytes_per_vector_that_the_page_says(kept: str, tmp_path: Path) -> None:
    edge = pytest.importorskip("qdrant_edge")
    turbo, bits = edge.TurboQuantQuantizationConfig, edge.TurboQuantBitSize
    quantization: dict[str, Any] = {
        "d + 4": edge.ScalarQuantizationConfig(edge.ScalarType.Int8),
        "d / 2 + 8": turbo(bits=bits.Bits4),
        "d / 4 + 8": turbo(bits=bits.Bits2),
        "d / 8": edge.BinaryQuantizationConfig(),
    }
    length, count = 256, 300
    datatype = edge.VectorStorageDatatype.Float16 if kept == "2d" else None
    vectors = edge.EdgeVectorParams(
        size=length, distance=edge.Distance.Cosine, datatype=datatype, quantization_config=quantization.get(kept)
    )
    at_once = edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1)
    shard = edge.EdgeShard.create(
        str(tmp_path), edge.EdgeConfig(vectors=vectors, optimizers=at_once, wal_enabled=False)
    )
    rows = np.random.default_rng(0).standard_normal((count, length))
    points = [edge.Point(n, row.tolist(), {}) for n, row in enumerate(rows)]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    shard.close()
    (file,) = tmp_path.rglob("matrix.dat" if kept == "2d" else "quantized.data")
    assert file.stat().st_size / count == pytest.approx(PER_VECTOR[kept](length), abs=0.5)
