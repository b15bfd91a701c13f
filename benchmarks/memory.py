"""Peak memory of one contender on a CPU: resident memory of a process that does nothing else.

python -m benchmarks.memory '{"key": "qwen-retrieval", "folder": "...", ...}'
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.contenders import OURS, Ours, Setting, load_peer
from benchmarks.workloads import Workload, Writer, select, write_items


def peak_of(setting: Setting, key: str, workload: Workload, count: int, batch_size: int) -> int | None:
    """Bytes: the most resident memory of a process that loads `key` and does `count` items; None if it fails.

    Interpreter and libraries count, for some 0.5 GB; of weights mapped from a file, as much as was read.
    """
    job = {
        "key": key,
        "folder": str(setting.folder),
        "kind": setting.kind,
        "dtype": setting.dtype,
        "workload": workload.name,
        "count": count,
        "batch_size": batch_size,
    }
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"memory of {key} was not measured: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    return int(done.stdout.split()[-1])


def main() -> None:
    """Load, work once, print the peak in bytes."""
    job = json.loads(sys.argv[1])
    setting = Setting(Path(job["folder"]), job["kind"], "cpu", job["dtype"])
    workload = select([job["workload"]])[0]
    items = write_items(workload, job["count"], Writer.from_folder(setting.folder))
    contender = Ours(setting) if job["key"] == OURS else load_peer(job["key"], setting)
    if contender is None:
        raise SystemExit(f"{job['key']} cannot be loaded")
    contender.run(workload.task, items, job["batch_size"])
    print(peak())


def peak() -> int:
    """The most resident memory that this process had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with what the parent had
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
