"""The processor shared: forward passes that take turns, and how many threads one of them should use.

Each thread that computes has an OpenMP team of its own (libgomp), as large as all others'. Two models that compute at
the same time would have twice as many threads as there are cores, which wait for each other at the end of every matrix
product; one after the other, each has all cores.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"),  # these narrow the mask of single threads
)
"""Environment variables by which users say how many threads torch shall use, and where."""


class Turns:
    """At most one thread at a time, first come, first served."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget who has the turn and who waits: in a forked process these threads do not exist."""
        # Reentrant, as Condition makes it: the garbage collector may call `look` in a thread that holds it.
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()  # the first one has the turn

    @contextmanager
    def turn(self, given_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Inside it is this thread's turn.

        Args:
            given_up: Whether to stop waiting; asked whenever something changes, and after `look`.

        Yields:
            Whether it is this thread's turn; False if it has given up.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
        try:
            with self._changed:
                self._changed.wait_for(lambda: given_up() or self._queue[0] is ticket)
            yield not given_up()
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def look(self) -> None:
        """Let those who wait ask whether they have given up."""
        with self._changed:
            self._changed.notify_all()


CPU_TURNS = Turns()
"""The turns of all models of this process that compute on the CPU."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CPU_TURNS.begin_anew)


def threads_to_use(current: int, *, environment: Mapping[str, str], cpus: Set[int], root: Path = Path("/")) -> int:
    """How many threads torch should compute with: no more than there are cores that this process may really use.

    torch starts a thread per physical core of the affinity mask where MKL tells it the cores, and per logical core
    elsewhere. It does not know CPU quotas, as containers have them: a team that is larger than its quota is stopped
    for the rest of every period (100 ms), while those who still run wait for those who do not.

    Args:
        current: How many threads torch uses now. A number that is not one of those that torch chooses by itself was
            chosen by the user, and is returned.
        environment: The environment variables; `THREAD_VARIABLES` are the user's choice too.
        cpus: The logical CPUs that this process may run on (`os.sched_getaffinity`).
        root: Where `/proc` and `/sys` are.

    Returns:
        At least 1, and never more than `current`.
    """
    if any(environment.get(name) for name in THREAD_VARIABLES):
        return current
    every = set(range(os.cpu_count() or 1)) | cpus
    by_itself = {len(cpus), len(every), physical_cores(cpus, root), physical_cores(every, root)}
    if current not in by_itself:
        return current
    # Rounded up: what is beyond the quota costs a pause, what is left of it would be lost.
    return max(1, min(current, physical_cores(cpus, root), math.ceil(min(current, cpu_quota(root)))))


def physical_cores(cpus: Set[int], root: Path = Path("/")) -> int:
    """How many cores some logical CPUs belong to; each counts as one where Linux does not say."""
    folder = root / "sys" / "devices" / "system" / "cpu"
    cores = (_read(folder / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus)
    return len(set(cores))


def cpu_quota(root: Path = Path("/")) -> float:
    """How many CPUs' time this process may use: the lowest quota of its control group and of those above it.

    Files and their meaning: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and
    Documentation/scheduler/sched-bwc.rst (`cpu.cfs_quota_us`, version 1). In a container, the path that the process
    sees may be that of the host: groups that are not there are left out, and the container's own is at the top.

    Returns:
        More than 0; infinity if there is no quota.
    """
    quotas = [math.inf]
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / ("cpu" if controllers else "")
        group = Path(path.lstrip("/"))
        quotas += [_quota(top / folder, version=1 if controllers else 2) for folder in (group, *group.parents)]
    return min(quotas)


def _quota(folder: Path, *, version: int) -> float:
    if version == 1:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    else:
        quota, _, period = _read(folder / "cpu.max").partition(" ")
    known = quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0  # not "max", not -1
    return int(quota) / int(period) if known else math.inf


def _read(path: Path) -> str:
    """The text of a file of the kernel; "" if there is none, or it is not for us."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
