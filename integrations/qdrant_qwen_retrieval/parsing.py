"""Files to sections: what is under a heading in Markdown and reStructuredText, a class or a function in Python."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

MARKDOWN_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>])\1{2,}$")
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LINE_END = re.compile(r"\r\n|\r|\n")  # not str.splitlines, which also divides at form feeds: Python's parser does not
Headings = Callable[[list[str]], Iterator[tuple[int, int, int, str]]]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a file that says where it stands without counting lines, so that the name outlasts edits above it.

    Attributes:
        name: The headings it stands under, or its dotted name in Python; "" before the first heading, and for a file
            that is not divided.
        text: The text itself, without its headings.
        title: What a reader needs to know of its place: the headings, or the signature.
        line: Where it begins, from 1; None for a file that is not divided.
    """

    name: str
    text: str
    title: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A module, class or function in a Python file.

    Attributes:
        name: Dotted name, such as ``argparse.ArgumentParser.add_argument``.
        signature: The name with the parameters, without annotations.
        line: Where it begins, from 1.
        docstring: Its docstring, or "".
        code: Its source; that of a module or a class without its members, which are entries of their own.
    """

    name: str
    signature: str
    line: int
    docstring: str
    code: str

    @property
    def is_public(self) -> bool:
        """Whether no part of the name begins with an underscore."""
        return not any(part.startswith("_") for part in self.name.split("."))


def sections(path: str, suffix: str, text: str) -> Iterator[Section]:
    """Split the text of one file by its own structure; parts without text are left out.

    Args:
        path: Where it is, with slashes: Python's dotted names are made of it.
        suffix: What kind of file it is, such as ".md", in lower case.
        text: What is in it.
    """
    if suffix == ".py":
        found = _python(path, text)
    elif suffix == ".txt":
        found = iter([Section("", text)])
    else:
        found = _headed(text, _rst_headings if suffix == ".rst" else _markdown_headings)
    return (section for section in found if section.text.strip())


def entries(text: str, module: str) -> list[Entry]:
    """Everything in a Python file that can have a docstring, in order; nothing if the file does not parse."""
    try:
        with warnings.catch_warnings():
            for category in (SyntaxWarning, DeprecationWarning):  # invalid escape sequences in other people's files
                warnings.simplefilter("ignore", category)  # these alone: the filter holds for other threads too
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = LINE_END.split(text)
    found = list(_definitions(tree, module))
    members: dict[str, list[Definition]] = {}
    for node, prefix in found:
        members.setdefault(prefix, []).append(node)
    code = _own_code(lines, 1, len(lines), members.get(module, []))
    own = Entry(module, module, 1, ast.get_docstring(tree) or "", code)
    return [own, *(_entry(node, prefix, lines, members) for node, prefix in found)]


def _python(path: str, text: str) -> Iterator[Section]:
    found = entries(text, path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if not found:
        yield Section("", text)
    for entry in found:
        yield Section(entry.name, entry.code, entry.signature, entry.line)


def _definitions(tree: ast.AST, module: str) -> Iterator[tuple[Definition, str]]:
    """Classes and functions, and what is in the classes, but not what is local to functions."""
    stack = [(ast.iter_child_nodes(tree), module)]  # no recursion: an ``elif`` is an ``if`` in an ``if``
    while stack:
        nodes, prefix = stack[-1]
        node = next(nodes, None)
        if node is None:
            stack.pop()
            continue
        if isinstance(node, Definition):
            yield node, prefix
        if isinstance(node, ast.ClassDef):
            stack.append((ast.iter_child_nodes(node), f"{prefix}.{node.name}"))
        elif isinstance(node, ast.If | ast.Try):
            stack.append((ast.iter_child_nodes(node), prefix))


def _entry(node: Definition, prefix: str, lines: list[str], members: dict[str, list[Definition]]) -> Entry:
    name = f"{prefix}.{node.name}"
    is_class = isinstance(node, ast.ClassDef)
    signature = f"class {name}" if isinstance(node, ast.ClassDef) else f"{name}({_parameters(node.args)})"
    code = _own_code(lines, _first_line(node), _last_line(node), members.get(name, []) if is_class else [])
    return Entry(name, signature, _first_line(node), ast.get_docstring(node) or "", code)


def _own_code(lines: list[str], first: int, last: int, members: list[Definition]) -> str:
    """The lines from `first` to `last` without those of the members, which are entries of their own."""
    spans = [range(_first_line(node), _last_line(node) + 1) for node in members]
    others = {number for span in spans for number in span}
    return "\n".join(lines[number - 1] for number in range(first, last + 1) if number not in others)


def _first_line(node: Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _last_line(node: Definition) -> int:
    return node.end_lineno or node.lineno


def _parameters(arguments: ast.arguments) -> str:
    """The names of the parameters, with the stars that say how to pass them."""
    names = [parameter.arg for parameter in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [parameter.arg for parameter in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return ", ".join(name for name in names if name not in {"self", "cls"})


def _markdown_headings(lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Headings as (first line, line after it, level, title); what is in a code fence is not one.

    Source: https://spec.commonmark.org/0.31.2/ sections 4.2 and 4.5, but for indented code, which is rare.
    """
    opened = ""  # the fence of the block of code that a line is in
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if opened:
            if fence and fence[1].startswith(opened) and not fence[2].strip():
                opened = ""
        elif fence and not (fence[1][0] == "`" and "`" in fence[2]):  # that would be code within a line
            opened = fence[1]
        elif (heading := MARKDOWN_HEADING.match(line)) and (title := _without_closing(heading[2])):
            yield number, number + 1, len(heading[1]), title


def _without_closing(title: str) -> str:
    """A title without the number signs that may stand behind it, after white space."""
    title = title.rstrip()
    kept = title.rstrip("#")
    return kept.rstrip() if not kept or kept[-1].isspace() else title


def _rst_headings(lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Headings as (first line, line after it, level, title); levels in the order their underlines appear."""
    styles: list[str] = []
    for number, (title, underline) in enumerate(pairwise(lines)):
        is_heading = UNDERLINE.match(underline.rstrip()) and len(underline.rstrip()) >= len(title.rstrip())
        if is_heading and title[:1].strip() and not UNDERLINE.match(title.rstrip()):
            if underline[0] not in styles:
                styles.append(underline[0])
            overlined = number > 0 and lines[number - 1].rstrip() == underline.rstrip()
            yield number - overlined, number + 2, styles.index(underline[0]) + 1, title.strip()


def _headed(text: str, headings: Headings) -> Iterator[Section]:
    """One section per heading, named after the headings above it."""
    lines = LINE_END.split(text)
    trail: list[tuple[int, str]] = []
    start = 0
    for first, after, level, title in [*headings(lines), (len(lines), len(lines), 0, "")]:
        name = " > ".join(name for _, name in trail)
        yield Section(name, "\n".join(lines[start:first]), name, start + 1)
        trail = [(depth, name) for depth, name in trail if depth < level] + [(level, title)]
        start = after
