"""Our own models with their matrices in 8 bits, beside those that compute in the dtype of all the others."""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks.contenders import OURS, Ours, Setting


def contender(setting: Setting) -> Ours | None:
    """int8 on a CPU, float8 on a GPU; None, and the reason on stderr, where neither can be computed."""
    dtype = "int8" if setting.device == "cpu" else "float8"
    try:
        ours = Ours(replace(setting, dtype=dtype))
    except ValueError as error:
        print(error, file=sys.stderr)
        return None
    ours.name = f"{OURS}, {dtype}"
    return ours
