"""What can go wrong between a client and a server, on demand."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.qdrant_server.gate import Request


@dataclass(frozen=True)
class Reply:
    """An error instead of an answer; nothing is done.

    Attributes:
        status: HTTP status; gRPC answers with the code that the server uses for it.
        message: What the body says.
        retry_after: Seconds, as the header ``Retry-After`` (gRPC: trailing metadata).
    """

    status: int
    message: str = "made to fail"
    retry_after: int | None = None


@dataclass(frozen=True)
class Drop:
    """The connection ends before anything is done."""


@dataclass(frozen=True)
class Lose:
    """What was asked is done, but the connection ends before the answer."""


@dataclass(frozen=True)
class Late:
    """What was asked is done, but the answer comes after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Poison:
    """Writes with a point that `spoiled` says yes to are refused whole, as a server does it, and for ever.

    Attributes:
        spoiled: Sees a ``PointStruct``.
        status: 400 or 422.
    """

    spoiled: Callable[[Any], bool]
    status: int = 400
    message: str = "Wrong input: this point is not welcome"


Fault = Reply | Drop | Lose | Late | Poison


@dataclass
class RandomFaults:
    """Each request that one of the patterns `on` names goes wrong with probability `rate`, drawn from `kinds`."""

    seed: int
    rate: float = 0.2
    kinds: Sequence[Fault] = (Reply(500), Reply(503), Reply(429, retry_after=1), Drop(), Lose())
    on: Sequence[str] = ("*",)
    _dice: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def draw(self, operation: str) -> Fault | None:
        if not any(fnmatchcase(operation, pattern) for pattern in self.on) or self._dice.random() >= self.rate:
            return None
        return self._dice.choice(list(self.kinds))


@dataclass
class _Planned:
    fault: Fault
    on: str
    times: float
    skip: int
    where: Callable[[Request], bool] | None

    def strikes(self, request: Request) -> bool:
        if self.times <= 0 or not fnmatchcase(request.operation, self.on):
            return False
        if self.where is not None and not self.where(request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Faults:
    """The faults to come. Safe to use from any thread.

    Args:
        chance: Faults at random, after the planned ones.
    """

    def __init__(self, chance: RandomFaults | None = None) -> None:
        self.chance = chance
        self.struck: list[tuple[str, Fault]] = []  # operation, fault: what has happened
        self._planned: list[_Planned] = []
        self._lock = threading.Lock()

    def add(
        self,
        fault: Fault,
        *,
        on: str = "*",
        times: float = 1,
        skip: int = 0,
        where: Callable[[Request], bool] | None = None,
    ) -> None:
        """Plan one.

        Args:
            fault: What goes wrong.
            on: Which operations, by the name of the client's method, as in a shell: "upsert", "*payload*".
            times: How often; ``math.inf`` for ever.
            skip: How many requests that match pass before.
            where: Which requests among them.
        """
        if isinstance(fault, Poison):
            times, where = float("inf"), _carries(fault)
        with self._lock:
            self._planned.append(_Planned(fault, on, times, skip, where))

    def clear(self) -> None:
        """Nothing goes wrong from now on."""
        with self._lock:
            self._planned.clear()
            self.chance = None

    def next(self, request: Request) -> Fault | None:
        """What befalls this request."""
        with self._lock:
            fault = next((planned.fault for planned in self._planned if planned.strikes(request)), None)
            if fault is None and self.chance is not None:
                fault = self.chance.draw(request.operation)
            if fault is not None:
                self.struck.append((request.operation, fault))
            return fault


def _carries(poison: Poison) -> Callable[[Request], bool]:
    return lambda request: any(poison.spoiled(point) for point in request.point_structs)
