"""Folders and files: divided by their own structure, found again by their ids after edits elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.files import folder
from qdrant_qwen_retrieval.parsing import sections
from qdrant_qwen_retrieval.python_docs import MIN_DOCSTRING_WORDS, project_documentation, standard_library
from qdrant_qwen_retrieval.records import Rejected, open_records
from qdrant_qwen_retrieval.splitting import split

GUIDE = "intro\n# Setup\n## Linux\nuse apt\n```\n# no heading\n```\n# Use ##\nrun it\n"
SHELF = (
    '"""A module."""\n\nclass Shelf:\n    """Holds books."""\n\n'
    "    @staticmethod\n    def put(self, book, *, front=False):\n        pass\n\nprint(Shelf())\n"
)


def records(path: Path) -> list[Record]:
    return [record for record in folder(path) if isinstance(record, Record)]


def read(path: Path) -> list[tuple[str, str, str]]:
    return [(record.metadata["source"], record.title, record.text.strip()) for record in records(path)]


def ids(path: Path) -> list[str]:
    return [record.id for record in folder(path)]


# ---------------------------------------------------------------------------------------------- the division


def test_markdown_is_split_at_its_headings(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text(GUIDE)
    assert read(tmp_path) == [
        ("guide.md:1", "", "intro"),
        ("guide.md:4", "Setup > Linux", "use apt\n```\n# no heading\n```"),
        ("guide.md:9", "Use", "run it"),
    ]
    assert ids(tmp_path) == ["guide.md", "guide.md#Setup > Linux", "guide.md#Use"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# C#\nx", {"C#": "x"}),
        ("# Use ##  \nx", {"Use": "x"}),
        ("# ##\nx", {"": "# ##\nx"}),  # no title at all
        ("# A\n```js x```\n# B\ny", {"A": "```js x```", "B": "y"}),  # code within a line
        ("# A\n````\n```\n# no heading\n````\n# B\ny", {"A": "````\n```\n# no heading\n````", "B": "y"}),
        ("# A\n~~~\n```\n~~~\n# B\ny", {"A": "~~~\n```\n~~~", "B": "y"}),
        ("# A\n```\n``` x\n# no heading", {"A": "```\n``` x\n# no heading"}),
    ],
)
def test_markdown_is_read_as_commonmark_has_it(text: str, expected: dict[str, str]) -> None:
    assert {section.name: section.text for section in sections("a.md", ".md", text)} == expected


def test_rst_is_split_at_its_headings(tmp_path: Path) -> None:
    (tmp_path / "guide.rst").write_text("=====\nGuide\n=====\n\nintro\n\nSetup\n-----\nuse pip\n\nUse\n---\nrun it\n")
    assert read(tmp_path) == [
        ("guide.rst:4", "Guide", "intro"),
        ("guide.rst:9", "Guide > Setup", "use pip"),
        ("guide.rst:13", "Guide > Use", "run it"),
    ]
    assert ids(tmp_path) == ["guide.rst#Guide", "guide.rst#Guide > Setup", "guide.rst#Guide > Use"]


def test_python_is_split_into_its_functions_and_classes(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "shelf.py").write_text(SHELF)
    assert read(tmp_path) == [
        ("pkg/shelf.py:1", "pkg.shelf", '"""A module."""\n\n\nprint(Shelf())'),
        ("pkg/shelf.py:3", "class pkg.shelf.Shelf", 'class Shelf:\n    """Holds books."""'),
        (
            "pkg/shelf.py:6",
            "pkg.shelf.Shelf.put(book, *, front)",
            "@staticmethod\n    def put(self, book, *, front=False):\n        pass",
        ),
    ]
    assert ids(tmp_path) == [
        "pkg/shelf.py#pkg.shelf",
        "pkg/shelf.py#pkg.shelf.Shelf",
        "pkg/shelf.py#pkg.shelf.Shelf.put",
    ]


def test_python_that_does_not_parse_is_still_text(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("print 'hello'\n")
    assert read(tmp_path) == [("old.py", "", "print 'hello'")]


def test_a_thousand_branches_are_no_end(tmp_path: Path) -> None:
    branches = "".join(f"elif x == {number}:\n    pass\n" for number in range(3000))
    (tmp_path / "a.py").write_text(f"if x:\n    def first(): ...\n{branches}\nclass Last:\n    pass\n")
    assert ids(tmp_path)[-1] in ("a.py", "a.py#a.Last")  # how deep Python's own parser goes is its affair


def test_lines_are_counted_as_python_counts_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(
        b"\x0c\r\n'\xe2\x80\xa8'\r\ndef one():\r\n    return 1\r\ndef two():\r\n    return 2\r\n"
    )
    assert read(tmp_path)[1:] == [
        ("a.py:3", "a.one()", "def one():\n    return 1"),
        ("a.py:5", "a.two()", "def two():\n    return 2"),
    ]


def test_empty_files_are_no_records(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "__init__.py"):
        (tmp_path / name).write_text("\n")
    assert read(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(("name", "text"), [("a.md", GUIDE), ("a.py", SHELF)])
def test_lines_inserted_above_change_no_id_and_no_text(tmp_path: Path, name: str, text: str) -> None:
    first = "# A new section\n\n" if name == "a.md" else "import os\n\n"
    (tmp_path / name).write_text(text)
    before = {record.id: (record.text, record.metadata["source"]) for record in records(tmp_path)}
    (tmp_path / name).write_text(first + text)
    after = {record.id: (record.text, record.metadata["source"]) for record in records(tmp_path)}
    unchanged = [one for one in before if before[one][0] == after.get(one, ("",))[0]]
    assert len(unchanged) == 2
    assert all(before[one][1] != after[one][1] for one in unchanged)


def test_ids_of_the_same_name_are_numbered_and_never_look_like_a_chunk(tmp_path: Path) -> None:
    headings = ["A", "A", "A (2)", "chunk-1", "x" * 3000]
    (tmp_path / "a.md").write_text("".join(f"# {heading}\ntext\n" for heading in headings))
    assert ids(tmp_path) == ["a.md#A", "a.md#A (2)", "a.md#A (2) (2)", "a.md#chunk-1 (2)", f"a.md#{'x' * 500}"]
    assert all(split(record, None) for record in records(tmp_path))


def test_ids_do_not_depend_on_how_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / "docs" / name).write_text(name)
    monkeypatch.chdir(tmp_path / "docs")
    ways: list[Any] = [
        tmp_path / "docs",
        ".",
        "../docs/",
        ["."],
        ["a.txt", "sub"],
        [Path("a.txt"), tmp_path / "docs/sub/b.txt"],
    ]
    for source in ways:
        assert [record.id for record in open_records(source).records] == ["a.txt", "sub/b.txt"]
    assert [record.id for record in open_records("sub/b.txt").records] == ["b.txt"]


def test_files_of_the_same_name_in_two_folders_have_ids_of_their_own(tmp_path: Path) -> None:
    for name in ("one/a.txt", "two/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    found = list(open_records([tmp_path / "one", tmp_path / "two"]).records)
    assert [record.id for record in found] == ["one/a.txt", "two/a.txt"]


def test_a_table_beside_a_folder_changes_no_id(tmp_path: Path) -> None:
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "a.txt").write_text("text")
    (tmp_path / "faq.jsonl").write_text('{"id": "q", "text": "?"}')
    alone = [record.id for record in open_records(tmp_path / "docs").records]
    both = [record.id for record in open_records([tmp_path / "docs", tmp_path / "faq.jsonl"]).records]
    assert (alone, both) == (["deep/a.txt"], ["deep/a.txt", "q"])


def test_what_is_named_beside_its_folder_is_read_once(tmp_path: Path) -> None:
    for name in ("docs/a.txt", "docs/sub/b.txt", "docs/sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "docs" / "huge.txt").write_bytes(b"word " * 250_000)
    docs = tmp_path / "docs"
    paths = [docs, docs / "sub", docs / "sub" / "b.txt", docs / ".." / "docs", docs / "huge.txt"]
    found = list(open_records(paths).records)
    assert [record.id for record in found] == ["a.txt", "sub/c.txt", "sub/b.txt", "huge.txt"]
    assert all(isinstance(record, Record) for record in found)
    all_named = [docs / "sub", docs / "sub" / "b.txt", docs / "sub" / "c.txt"]
    assert [record.id for record in open_records(all_named).records] == ["b.txt", "c.txt"]


def test_a_name_that_is_not_unicode_is_refused_and_not_the_end(tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/\xff.txt", "w") as file:
            file.write("text")
    except OSError:
        pytest.skip("this file system has no such names")
    (record,) = records(tmp_path)
    with pytest.raises(ValueError, match="the id is not valid Unicode"):
        split(record, None)


# ------------------------------------------------------------------------------------------------- the walk


def test_what_is_hidden_generated_or_of_another_kind_is_passed_over(tmp_path: Path) -> None:
    for name in (".git/a.md", ".hidden.md", ".venv/a.py", "env/pyvenv.cfg", "env/a.py", "node_modules/a.md", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "a.txt").write_text("text")
    assert read(tmp_path) == [("a.txt", "", "text")]


def test_links_to_other_folders_are_not_followed(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert read(tmp_path / "in") == [("a.txt", "", "in")]


def test_a_link_to_a_file_outside_of_the_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("password")
    (tmp_path / "in" / "a.txt").write_text("in")
    (tmp_path / "in" / "b.txt").symlink_to("a.txt")
    (tmp_path / "in" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    *inside, outside = folder(tmp_path / "in")
    assert [record.id for record in inside] == ["a.txt", "b.txt"]
    assert isinstance(outside, Rejected)
    assert (outside.id, outside.id_is) == ("notes.txt", "prefix")
    assert "a link to a file outside of the folder; name that file itself to have it read" in outside.reason
    (named,) = open_records(tmp_path / "in" / "notes.txt").records
    assert isinstance(named, Record)


def test_a_folder_that_cannot_be_listed_is_rejected_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "closed", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if os.fspath(path) == str(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)  # the tests may run as root, who may list everything
    *records, closed = folder(tmp_path)
    assert [record.id for record in records] == ["a/x.txt", "z/x.txt"]
    assert isinstance(closed, Rejected)
    assert (closed.id, closed.id_is, closed.record) == ("closed/", "prefix", None)
    assert closed.reason == f"{tmp_path / 'closed'}: it is not readable: Permission denied"


def test_files_that_cannot_be_read_as_text_are_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "huge.txt").write_bytes(b"a" * 1_000_001)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    (tmp_path / "zebra.txt").write_text("stripes")
    *rejected, last = folder(tmp_path)
    assert isinstance(last, Record)
    reasons = {
        one.id: one.reason.removeprefix(f"{tmp_path / one.id}: ") for one in rejected if isinstance(one, Rejected)
    }
    assert reasons == {
        "binary.txt": "it is binary",
        "broken.txt": "it is not a regular file",
        "huge.txt": "it is larger than 1 MB; name the file itself to have it read",
        "latin.txt": "it is not UTF-8",
    }


def test_a_file_that_is_named_may_be_large(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + b"word " * 250_000)
    (record,) = open_records(tmp_path / "book.txt").records
    assert isinstance(record, Record)
    assert (record.id, len(record.text)) == ("book.txt", 1_250_000)


def test_a_folder_that_is_none_is_an_error_at_the_door(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        folder(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        folder(tmp_path / "gone")


def test_a_folder_without_text_says_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "part.parquet").touch()
    with pytest.raises(ValueError, match=r"no file ends in \.md, .*Tables are named one by one"):
        open_records(tmp_path)


# -------------------------------------------------------------------------------------------- documentation


def test_the_standard_library_gives_thousands_of_records_without_being_imported() -> None:
    before = set(sys.modules)
    found = list(standard_library())
    by_id = {record.id: record for record in found}
    assert len(by_id) == len(found) > 2000
    assert "recursively" in by_id["shutil.rmtree"].text.lower()
    assert by_id["shutil.rmtree"].title.startswith("shutil.rmtree(path")
    assert by_id["shutil.rmtree"].metadata == {
        "source": "shutil.rmtree",
        "path": "shutil.py",
        "title": by_id["shutil.rmtree"].title,
    }
    assert any(one.startswith("help('with')") for one in by_id)
    assert not any("._" in one for one in by_id)
    docstrings = [record for record in found if not record.id.startswith("help(")]
    assert all(len(record.text.split()) >= MIN_DOCSTRING_WORDS for record in docstrings)
    assert all(split(record, None) for record in found)
    assert set(sys.modules) - before == set()


def test_the_documentation_of_this_project_is_found() -> None:
    assert any(record.metadata["path"] == "README.md" for record in project_documentation())
