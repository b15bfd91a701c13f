"""How much memory this process and its children hold, as Linux counts it."""

from __future__ import annotations

import os
from pathlib import Path

_KB_PER_MB = 1024


class MemoryLog:
    """Notes of memory, in MB.

    Attributes:
        rows: What was noted: `records`, `own` (resident in this process), `engine` (resident in its children, without
            files that are mapped and can be dropped at any time) and `engine_mapped` (with them).
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def note(self, records: int) -> None:
        """Look at all processes now."""
        children = [_status(child) for child in _children(os.getpid())]
        self.rows.append(
            {
                "records": records,
                "own": _status(os.getpid()).get("VmRSS", 0) / _KB_PER_MB,
                "engine": sum(one.get("RssAnon", 0) for one in children) / _KB_PER_MB,
                "engine_mapped": sum(one.get("VmRSS", 0) for one in children) / _KB_PER_MB,
            }
        )


def _status(process: int) -> dict[str, int]:
    """The fields of /proc/<process>/status that are kilobytes; {} if it has ended, or there is no /proc."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def _children(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(folder.name))
    return found
