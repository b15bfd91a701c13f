"""Errors that travel, and errors about what is not installed."""

from __future__ import annotations

import pickle
import re

import pytest

from qwen_retrieval.errors import MissingDependencyError, NonFiniteError, needs_extra


def test_errors_survive_the_way_from_another_process() -> None:
    for error in (NonFiniteError((1, 2)), MissingDependencyError("langchain_core", "langchain")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert pickle.loads(pickle.dumps(NonFiniteError((1, 2)))).rows == (1, 2)


@pytest.mark.parametrize(
    ("module", "missing", "named"),
    [
        pytest.param("langchain_core", "langchain_core", "langchain_core", id="the-framework"),
        pytest.param("llama_index.core", "llama_index", "llama_index.core", id="its-namespace"),
        pytest.param("langchain_core", "langchain_core.cross_encoders", "langchain_core.cross_encoders", id="too-old"),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_installs_it(module: str, missing: str, named: str) -> None:
    line = f'{named} is not installed; run: pip install "qwen-retrieval[extra]"'
    with pytest.raises(MissingDependencyError, match=re.escape(line)), needs_extra(module, "extra"):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)


@pytest.mark.parametrize("name", [None, "numpy", "llama_index.embeddings.qwen_retrieval.gone"])
def test_other_missing_modules_are_not_blamed_on_the_framework(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError) as caught, needs_extra("llama_index.core", "llama-index"):
        raise ModuleNotFoundError("no such module", name=name)
    assert not isinstance(caught.value, MissingDependencyError)
