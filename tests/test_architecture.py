"""The rules of ARCHITECTURE.md, as far as a machine can check them."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "qwen_retrieval"
PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
MODULES = sorted(path for path in CORE.rglob("*.py") if path.name != "__main__.py")
ADAPTERS = ROOT / "integrations"
# The framework that each folder of integrations/ is for: its import name, and the extra that brings it.
FRAMEWORKS = {
    "langchain_qwen_retrieval": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "haystack_integrations": ("haystack", "haystack"),
    "qdrant_qwen_retrieval": ("qdrant_client", "qdrant"),
}
PUBLIC = {
    "langchain_qwen_retrieval": ("langchain_core", "langchain"),
    "llama_index.embeddings.qwen_retrieval": ("llama_index.core", "llama-index"),
    "llama_index.postprocessor.qwen_retrieval": ("llama_index.core", "llama-index"),
    "haystack_integrations.components.embedders.qwen_retrieval": ("haystack", "haystack"),
    "haystack_integrations.components.rankers.qwen_retrieval": ("haystack", "haystack"),
    "qdrant_qwen_retrieval": ("qdrant_client", "qdrant"),
}
ADAPTER_MODULES = sorted(ADAPTERS.rglob("*.py"))
# What opens the frameworks' own Qdrant stores: one module of each, which only `frameworks` imports.
BRIDGES = {
    "langchain_store.py": {"langchain_qdrant", "langchain_core"},
    "llama_index_store.py": {"llama_index"},
    "haystack_store.py": {"haystack", "haystack_integrations"},
    "frameworks.py": {"langchain_qdrant", "llama_index", "haystack_integrations"},
}
OUTSIDE_ENGINE = [path for path in MODULES if not {"engine", "training"} & {*path.relative_to(CORE).parts}]
HEAVY = (
    "torch", "transformers", "qdrant_client", "qdrant_qwen_retrieval", "pyarrow", "langchain_core", "llama_index",
    "haystack",
)  # fmt: skip


def dotted(path: Path) -> str:
    """The import name of a module of the core."""
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, *, module_level: bool) -> Iterator[str]:
    """The first part of every name that is imported; what only a type checker executes does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        elif not (module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(node, module_level=module_level)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def rooms() -> list[str]:
    """Every path in the tree that ARCHITECTURE.md draws, by its indentation."""
    drawing = re.search(r"```\n(core/.*?)```", PAGE, re.DOTALL)
    assert drawing is not None
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in drawing[1].splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split()
        parents = [(depth, name) for depth, name in parents if depth < indent]
        prefix = "".join(name for _, name in parents)
        paths += [prefix + name for name in names]
        parents += [(indent, name) for name in names[:1] if name.endswith("/")]
    return paths


def test_importing_the_core_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(map(dotted, OUTSIDE_ENGINE))}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", OUTSIDE_ENGINE, ids=dotted)
def test_only_the_engine_and_training_import_torch(path: Path) -> None:
    assert "torch" not in set(imports(parse(path), module_level=True))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_the_core_imports_no_framework_and_not_transformers(path: Path) -> None:
    foreign = {"transformers", "sentence_transformers", *FRAMEWORKS, *(name for name, _ in FRAMEWORKS.values())}
    if path.is_relative_to(CORE / "training"):
        foreign -= {"sentence_transformers", "transformers"}
    if path.is_relative_to(CORE / "cli"):
        foreign -= {"qdrant_qwen_retrieval"}  # inside of functions, as the first test shows
    assert set(imports(parse(path), module_level=False)).isdisjoint(foreign)


def folder_of(path: Path) -> str:
    """Which folder of integrations/ a module is in."""
    return path.relative_to(ADAPTERS).parts[0]


@pytest.mark.parametrize("path", ADAPTER_MODULES, ids=lambda path: path.relative_to(ADAPTERS).as_posix())
def test_an_adapter_imports_its_own_framework_and_the_core_and_no_other(path: Path) -> None:
    own = FRAMEWORKS[folder_of(path)][0]
    foreign = {"torch", "transformers", "langchain", "langchain_classic", "langchain_community", "qdrant_client"}
    foreign |= {name for name, _ in FRAMEWORKS.values()} | set(FRAMEWORKS)
    allowed = {own, folder_of(path)} | (BRIDGES.get(path.name, set()) if own == "qdrant_client" else set())
    found = set(imports(parse(path), module_level=False))
    assert found & (foreign - allowed) == set()


@pytest.mark.parametrize("framework", dict.fromkeys(framework for framework, _ in PUBLIC.values()))
def test_importing_an_adapter_loads_neither_torch_nor_another_framework(framework: str) -> None:
    modules = ", ".join(module for module, (own, _) in PUBLIC.items() if own == framework)
    others = {"langchain_core", "llama_index.core", "haystack", "torch", "transformers", "ray", "pyarrow", "datasets"}
    others -= {framework}
    # What the framework itself brings does not count: haystack imports torch where it is installed.
    code = f"import sys, {framework}; before = set(sys.modules); import {modules}"
    code += f"; print(*sorted((set(sys.modules) - before) & {others!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("module", PUBLIC)
def test_an_adapter_without_its_framework_says_what_to_install(module: str) -> None:
    framework, extra = PUBLIC[module]
    code = f"""
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {framework!r} or name.startswith({framework + "."!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name={framework!r})

sys.meta_path.insert(0, Missing())
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f'{framework} is not installed; run: pip install "qwen-retrieval[{extra}]"' in done.stderr.splitlines()[-1]


def test_no_adapter_hides_its_framework() -> None:
    for framework in ("llama_index.core", "haystack_integrations"):
        assert importlib.util.find_spec(framework) is not None


@pytest.mark.parametrize(
    "name", ["types", "errors", "specs", "instructions", "templates", "batching", "vectors", "usage"]
)
def test_what_comes_before_the_engine_knows_only_what_comes_before_it(name: str) -> None:
    allowed = {"types", "errors", "specs", "instructions"}
    tree = parse(CORE / f"{name}.py")
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {module.removeprefix("qwen_retrieval.") for module in found if module.startswith("qwen_retrieval")}
    relative = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert (ours | relative) <= allowed


@pytest.mark.parametrize("namespace", ["llama_index", "haystack_integrations"])
def test_no_init_file_hides_a_framework(namespace: str) -> None:
    root = ROOT / "integrations" / namespace
    leaves = [folder for folder in root.rglob("*_retrieval") if folder.is_dir()]
    above = {parent for leaf in leaves for parent in leaf.parents if parent.is_relative_to(root)} | {root}
    assert [folder for folder in sorted(above) if (folder / "__init__.py").exists()] == []


def test_every_room_that_is_drawn_exists() -> None:
    paths = rooms()
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_module_of_the_core_is_drawn() -> None:
    drawn = [ROOT / path for path in rooms()]
    folders = [path for path in drawn if path.is_dir() and path != CORE and path.is_relative_to(CORE)]
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if path not in drawn and not any(path.is_relative_to(folder) for folder in folders)
    ]
    assert missing == []
