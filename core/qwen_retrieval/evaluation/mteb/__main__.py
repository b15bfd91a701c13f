"""mteb's own command, with our models in its registry: ``python -m qwen_retrieval.evaluation.mteb run -m … -t …``."""

from __future__ import annotations

from qwen_retrieval.evaluation.mteb.registry import register

register()

from mteb.cli import main  # noqa: E402 - `register` says what to install, if mteb is not

main()
