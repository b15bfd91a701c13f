"""The report as a document: it is well-formed XML too, so its structure is read with a strict parser."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_retrieval import Embedder, Reranker
from qwen_retrieval.evaluation import Evaluation, Sweep
from qwen_retrieval.evaluation.report import caveat, headline, mean_intervals, render_report
from tests.command import Loads, fails, run
from tests.evaluation import made, small

GRID = Sweep(dimensions=(64, 32), quantizations=("none", "int8"))
ALL = replace(GRID, instructions={"default": None, "none": "", "task": "Find a way"}, rerank_depths=(10, 50))
HOSTILE = (
    """</title></script><script>window.hacked = 1</script><img src="x" onerror='window.hacked = 2'> {{ 7 * 7 }} &"""
)


def parse(result: Evaluation) -> ElementTree.Element:
    return ElementTree.fromstring(render_report(result).encode())


def words(element: ElementTree.Element) -> str:
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def headings(page: ElementTree.Element) -> list[str]:
    return [words(one) for one in page.iter("h2")]


def everything() -> Evaluation:
    gains = {"embedder 64, first 50 reranked": 0.1, "BM25": -0.1, "embedder 32": -0.1, "embedder 32 int8": -0.1}
    return made.evaluation(ALL, reranker=True, gains=gains)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        pytest.param({}, "Use embedder 32 int8, without reranking.", id="nothing matters"),
        pytest.param(
            {"embedder 64, instruction none": -0.1, "embedder 64, first 10 reranked": 0.1},
            "Use embedder 32 int8 with the instruction 'default', and rerank the first 10.",
            id="all matter",
        ),
        pytest.param(
            {"embedder 64": 0.1, "embedder 64, instruction none": 0.2},
            "Use embedder 64 without an instruction, without reranking.",
            id="none is best",
        ),
        pytest.param(
            {"BM25": 0.2}, "Use BM25: on this data no setting of the embedder that was measured is better.", id="words"
        ),
        pytest.param(
            {"BM25": 0.1, "embedder 64, first 50 reranked": 0.3},
            "Use embedder 32 int8, and rerank the first 50.",
            id="words lose to a reranker",
        ),
    ],
)
def test_the_headline_names_what_the_advice_recommends(gains: dict[str, float], expected: str) -> None:
    result = made.evaluation(ALL, reranker=True, gains=gains)
    assert headline(result) == expected
    assert words(parse(result).find(".//h1")) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("gains", "second"), [({}, "Storage"), ({"BM25": 0.2}, "Beside BM25")], ids=str)
def test_what_the_data_can_show_stands_before_the_advice(gains: dict[str, float], second: str) -> None:
    result = made.evaluation(ALL, reranker=True, gains=gains)
    page = parse(replace(result, data=replace(result.data, notes=("2 queries were left out: 'a', 'b'",))))
    terms = [words(term) for term in page.findall(".//dl[@class='advice']/dt")]
    assert terms[:2] == ["What these queries can show", second]
    header = page.find(".//header")
    assert header is not None
    assert "Note on the data: 2 queries were left out: 'a', 'b'." in words(header)


def test_what_was_not_measured_together_is_said() -> None:
    together = "Each of these was measured by itself, as a change of embedder 64; all together they were not measured."
    assert caveat(made.evaluation(ALL, reranker=True, gains={"embedder 64, first 10 reranked": 0.1})) == together
    assert caveat(made.evaluation(GRID)) == caveat(made.evaluation(ALL, reranker=True, gains={"BM25": 0.3})) == ""


def test_the_table_has_every_system_with_its_interval_and_marks_what_is_significant() -> None:
    result = everything()
    table = parse(result).find(".//table[@class='sortable']")
    assert table is not None
    intervals = mean_intervals(result)
    compared = {one.system: one for one in result.comparisons if one.family == "baseline"}
    rows = {words(row[0]): [words(cell) for cell in row[1:]] for row in table.findall("tbody/tr")}
    assert list(rows) == [system.name for system in result.systems]
    for system in result.systems:
        low, high = intervals[system.name]
        mean = system.means["ndcg@10"]
        assert low < mean < high
        assert rows[system.name][0] == f"{mean:.3f} {low:.3f} to {high:.3f}"
        if (found := compared.get(system.name)) is not None:
            assert rows[system.name][2].startswith(f"{found.difference:+.3f} {found.low:+.3f} to")
            marked = re.sub("[^a-z]", "", rows[system.name][3])
            assert marked == ("" if found.p_holm >= 0.05 else "better" if found.difference > 0 else "worse")
    assert "better" in rows["embedder 64, first 50 reranked"][3]
    assert "worse" in rows["BM25"][3]
    assert rows["BM25"][4:] == ["–"] * 3
    assert rows["embedder 64, first 50 reranked"][4:] == ["256", "256", "1,010.0"]


def test_missing_parts_leave_their_sections_out() -> None:
    always = ["All systems", "Worst queries", "What was evaluated"]
    assert headings(parse(made.evaluation())) == always
    assert headings(parse(replace(made.evaluation(), worst=()))) == [always[0], always[2]]
    assert headings(parse(made.evaluation(queries=3))) == ["Why", *always]
    both = ["What the settings change", "Gain of the instruction"]
    assert headings(parse(everything())) == ["Why", always[0], *both, *always[1:]]


@pytest.mark.parametrize(
    ("sweep", "reranker", "plots"),
    [
        pytest.param(Sweep(dimensions=(64, 32)), False, ["dimension", "storage"], id="dimensions"),
        pytest.param(Sweep(quantizations=("none", "int8")), False, ["storage"], id="quantizations"),
        pytest.param(Sweep(rerank_depths=(5,)), True, ["gain", "cost"], id="one depth"),
        pytest.param(ALL, True, ["dimension", "storage", "gain", "cost"], id="all"),
    ],
)
def test_a_plot_is_there_where_there_is_something_to_compare(sweep: Sweep, reranker: bool, plots: list[str]) -> None:
    page = parse(made.evaluation(sweep, reranker=reranker))
    assert [one.get("id") for one in page.iter("figure")] == plots


def test_plots_say_their_values_in_words_and_draw_each_of_them() -> None:
    result = everything()
    figures = {one.get("id"): one for one in parse(result).iter("figure")}
    low, high = mean_intervals(result)["embedder 32 int8"]
    mean = result.system("embedder 32 int8").means["ndcg@10"]
    said = words(figures["dimension"].find(".//desc"))  # type: ignore[arg-type]
    assert f"embedder 32 int8, 32 dimensions: ndcg@10 {mean:.3f} ({low:.3f} to {high:.3f})." in said
    assert "embedder 32 int8, 36 bytes" in words(figures["storage"])
    assert "first 10 reranked: 0.2 seconds" in words(figures["cost"])
    drawn = {key: len(figure.findall(".//g[title]")) for key, figure in figures.items()}
    assert drawn == {"dimension": 4, "storage": 4, "gain": 3, "cost": 3}
    assert [words(one) for one in figures["dimension"].findall("ul/li")] == ["full precision", "int8"]


def test_a_worst_query_shows_what_should_have_been_found_and_what_was() -> None:
    result = everything()
    first = parse(result).findall(".//details")[0]
    best = max(result.systems, key=lambda system: system.means["ndcg@10"])
    assert words(first.find("summary")) == f"question 0 ndcg@10 {best.values[0]:.3f}"  # type: ignore[arg-type]
    columns = [words(column) for column in first.findall(".//section")]
    assert columns[0] == "Should have been found right relevant the right document"
    base = result.system("embedder 64").values[0]
    assert columns[2] == f"embedder 64 ndcg@10 {base:.3f} wrong another document right relevant the right document"


def test_headings_tables_and_plots_can_be_followed_without_seeing_them() -> None:
    page = parse(everything())
    levels = [int(one.tag[1]) for one in page.iter() if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(table.find("caption") is not None for table in page.iter("table"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.iter("th"))
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in page.iter("svg"))
    ids = [one.get("id") for one in page.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    named = [name for one in page.iter() for name in one.get("aria-labelledby", "").split()]
    assert named
    assert set(named) <= set(ids)


def attributes(page: ElementTree.Element) -> Iterator[tuple[str, str]]:
    return ((name, value) for one in page.iter() for name, value in one.items())


def test_the_page_needs_nothing_else_and_allows_only_its_own_script() -> None:
    page = parse(everything())
    assert all(value.startswith(("#", "data:")) for name, value in attributes(page) if name in ("href", "src"))
    assert not [name for name, _ in attributes(page) if name == "style" or name.startswith("on")]
    (policy,) = (one.get("content", "") for one in page.iter("meta") if one.get("http-equiv"))
    for tag in ("script", "style"):
        (text,) = (one.text or "" for one in page.iter(tag))
        assert f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}';" in policy
    assert policy.startswith("default-src 'none';")


def full_of(text: str, result: Evaluation) -> Evaluation:
    """The results with that text wherever a text comes from outside, but for names of systems."""
    setup = replace(result.setup, embedder=text, reranker=text, rerank_instruction=text, resamples=20)
    worst = tuple(
        replace(one, relevant=tuple(replace(p, id=text, text=text) for p in one.relevant)) for one in result.worst
    )
    queries = tuple(replace(query, text=text) for query in result.queries)
    data = replace(result.data, name=text, notes=(text,))
    return replace(result, setup=setup, worst=worst, queries=queries, data=data)


def hostile() -> Evaluation:
    sweep = replace(ALL, instructions={"default": None, HOSTILE: HOSTILE})
    return full_of(HOSTILE, made.evaluation(sweep, reranker=True))


def test_texts_are_shown_as_they_are_and_never_become_markup() -> None:
    page = parse(hostile())
    assert words(page).count(HOSTILE) > 10
    assert words(page.find(".//blockquote")) == HOSTILE  # type: ignore[arg-type]
    assert len(list(page.iter("script"))) == 1
    assert not list(page.iter("img"))


PLAIN = made.evaluation()


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1))
def test_any_text_gives_a_well_formed_page(text: str) -> None:
    shown = parse(full_of(text, PLAIN)).find(".//h3[@dir='auto']")
    assert shown is not None
    printable = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
    assert shown.text == re.sub("\r\n?", "\n", printable)


def test_forty_systems_are_far_below_a_megabyte() -> None:
    sweep = Sweep(
        dimensions=(1024, 512, 256, 128, 64, 48, 32, 16),
        quantizations=("none", "int8", "binary", "binary+rescore"),
        instructions={"default": None, "none": ""},
        rerank_depths=(5, 10, 20, 50, 100, 200),
    )
    result = made.evaluation(sweep, reranker=True)
    assert len(result.systems) == 40
    assert len(render_report(result).encode()) < 200_000


def test_the_command_writes_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fakes = Loads()
    monkeypatch.setattr(Embedder, "from_pretrained", fakes.embedder)
    monkeypatch.setattr(Reranker, "from_pretrained", fakes.reranker)
    monkeypatch.chdir(tmp_path)
    small.write_beir(tmp_path / "commands")
    run("evaluate", "commands", "--dimensions", "64,16", "--json", "all.json", "--html", "report.html")
    report = Path("report.html").read_text("utf-8")
    assert report == render_report(Evaluation.from_json(Path("all.json").read_text("utf-8")))
    assert fails("evaluate", "commands", "--html", "no/where.html") == "error: no: no such directory"
    assert "--html must be a file" in run("evaluate", "commands", "--html", "-", code=2)
    assert fakes.names == [fakes.names[0]]
