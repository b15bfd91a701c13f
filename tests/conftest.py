"""Fixtures for all tests: the two real Qwen3 tokenizers, built once per session."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from qwen_retrieval.tokenizer import HubTokenizer

# Time limits say more about who else uses the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell that starts pytest in the background makes it, and the programs that tests start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports haystack, which otherwise writes into the home folder and calls home.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "false"

# With --import-mode=importlib pytest leaves sys.path alone; helpers are imported as `tests.<module>`.
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what the test modules import to no garbage collection.

    These are about 600,000 objects that stay until the end. Looking through them takes a third of a second, and the
    tests that count threads or look for leaks collect after each test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folders `embedding` and `reranker`."""
    from tests.real_tokenizer import build_tokenizers

    folder = tmp_path_factory.mktemp("tokenizers")
    build_tokenizers(folder)
    return folder


@pytest.fixture(scope="session")
def embedding_tokenizer_folder(tokenizer_folders: Path) -> Path:
    """tokenizer.json and tokenizer_config.json of Qwen3-Embedding-0.6B."""
    return tokenizer_folders / "embedding"


@pytest.fixture(scope="session")
def reranker_tokenizer_folder(tokenizer_folders: Path) -> Path:
    """tokenizer.json and tokenizer_config.json of the Qwen3-Rerankers."""
    return tokenizer_folders / "reranker"


@pytest.fixture(scope="session")
def embedding_tokenizer(embedding_tokenizer_folder: Path) -> HubTokenizer:
    """The tokenizer of Qwen3-Embedding-0.6B."""
    return HubTokenizer.from_folder(embedding_tokenizer_folder)


@pytest.fixture(scope="session")
def reranker_tokenizer(reranker_tokenizer_folder: Path) -> HubTokenizer:
    """The tokenizer of the Qwen3-Rerankers."""
    return HubTokenizer.from_folder(reranker_tokenizer_folder)


@pytest.fixture(scope="session")
def golden_tokens() -> dict[str, Any]:
    """Token ids of the published examples; see the note in the file."""
    file = Path(__file__).parent / "data" / "golden_tokens.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
