"""Documentation that is on the machine already: that of the running Python, and this project's own."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from qdrant_qwen_retrieval import parsing
from qdrant_qwen_retrieval.chunks import Record
from qdrant_qwen_retrieval.files import read_text, to_records, unused
from qdrant_qwen_retrieval.parsing import Section

SKIPPED_MODULES = {
    "antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this",
    "tkinter", "turtle", "turtledemo",
}  # fmt: skip
MIN_DOCSTRING_WORDS = 6  # "Return the name." answers no question


def standard_library() -> Iterator[Record]:
    """The documentation that comes with the running Python, read from its sources; nothing is imported.

    These are the docstrings of the public modules, classes and functions, with ids such as ``shutil.rmtree``, and the
    chapters of the language reference that ``help()`` shows, such as ``help('with')``. A Python that was installed
    without sources gives nothing.
    """
    root = Path(sysconfig.get_path("stdlib"))
    yield from _language_reference(root / "pydoc_data" / "topics.py")
    for name in sorted(sys.stdlib_module_names - SKIPPED_MODULES):
        if not name.startswith("_"):
            yield from _module(root, name)


def project_documentation() -> Iterator[Record]:
    """This project's own pages: all of them in a checkout, the README in an installed package."""
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file() and (root / "core" / "qwen_retrieval").is_dir():
        for page in sorted(root.glob("*.md")):
            yield from _page(page.name, page.read_text("utf-8"))
        return
    try:
        readme = metadata.metadata("qwen-retrieval").json.get("description", "")
    except metadata.PackageNotFoundError:
        return
    yield from _page("README.md", str(readme))


def _page(name: str, text: str) -> Iterator[Record]:
    return to_records(parsing.sections(name, ".md", text), name, name)


def _module(root: Path, name: str) -> Iterator[Record]:
    """The docstrings of one top-level module or package with everything public in it."""
    files = [root / f"{name}.py"] if (root / f"{name}.py").is_file() else sorted((root / name).rglob("*.py"))
    for file in files:
        dotted = file.relative_to(root).with_suffix("").parts
        module = dotted[:-1] if dotted[-1] == "__init__" else dotted
        if not any(part.startswith("_") or part in {"test", "tests"} for part in module):
            yield from _docstrings(file, ".".join(module), file.relative_to(root).as_posix())


def _docstrings(file: Path, module: str, path: str) -> Iterator[Record]:
    try:
        text = read_text(file)
    except ValueError:
        return
    taken: dict[str, int] = {}  # a name may be defined twice, such as for two systems
    for entry in parsing.entries(text, module):
        if entry.docstring and entry.is_public and len(entry.docstring.split()) >= MIN_DOCSTRING_WORDS:
            place = {"source": entry.name, "path": path, "title": entry.signature}
            yield Record(unused(entry.name, taken), entry.docstring, place, entry.signature)


def _language_reference(file: Path) -> Iterator[Record]:
    """The chapters in ``pydoc_data/topics.py``: one assignment of a dictionary of reStructuredText."""
    try:
        tree = ast.parse(file.read_bytes())
        topics = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    except (OSError, SyntaxError, ValueError, StopIteration):
        return
    for topic, text in topics.items():
        name = f"help({topic!r})"
        sections = parsing.sections(name, ".rst", text)
        yield from to_records((Section(part.name, part.text, part.title) for part in sections), name, name)
