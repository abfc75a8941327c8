"""Timing several calls side by side: in turns, in one process, with medians of ratios."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

SHORTEST = 0.005
"""Seconds that one sample takes at least; shorter calls are repeated within it."""

FEWEST, MOST = 3, 101
"""Rounds. A call that takes twice the whole budget runs in one."""

UNSUPPORTED = (RuntimeError, NotImplementedError, TypeError, ValueError, MemoryError)
"""What a call raises that the library or the memory at hand does not allow."""

Call = Callable[[], Any]


class Purse:
    """Seconds, shared out among what is still to be done. What takes longer than its share leaves
    less for what comes after.

    Args:
        seconds: For everything.
        parts: Into how many shares.
        now: A clock.
    """

    def __init__(
        self, seconds: float, parts: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now, self._end, self._parts = now, now() + seconds, parts

    @property
    def left(self) -> float:
        """Seconds that are left; none if negative."""
        return self._end - self._now()

    def share(self) -> float:
        """Takes the next share out: its seconds; none are left if not positive."""
        share = self.left / max(1, self._parts)
        self._parts -= 1
        return share


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it.

    Attributes:
        median: Median.
        low: First quartile.
        high: Third quartile.
        count: Of how many numbers.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        """The spread of at least one number."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0], 1)
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high, len(numbers))


@dataclass
class Timings:
    """Samples of several calls.

    Attributes:
        samples: Call -> round -> seconds per call.
        failures: Calls that raised instead, and what.
    """

    samples: dict[str, dict[int, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def seconds(self, name: str) -> Spread:
        """Seconds per call."""
        return Spread.of(list(self.samples[name].values()))

    def ratio(self, name: str, other: str) -> Spread:
        """How much longer one call takes than another in the same round."""
        own, others = self.samples[name], self.samples[other]
        return Spread.of([own[turn] / others[turn] for turn in own if turn in others])


def interleave(
    calls: Mapping[str, Call],
    *,
    every_round: tuple[str, ...],
    budget: float,
    now: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Timings:
    """Times calls in rounds, each call at most once a round, in an order drawn for every round.

    Each call has the same share of the budget. One that takes long runs in fewer rounds, spread
    evenly.

    Args:
        calls: What to time. One that raises during the warm-up is left out.
        every_round: Names of calls that run in every round: those that ratios refer to.
        budget: Seconds to spend, about.
        now: A clock.
        seed: Of the order.
    """
    timings = Timings()
    repeats, rounds = {}, {}
    for name, call in calls.items():
        try:
            seconds = _warm_up(call, now, budget / len(calls))
        except UNSUPPORTED as error:
            timings.failures[name] = in_short(error)
            continue
        repeats[name] = max(1, math.ceil(SHORTEST / max(seconds, 1e-9)))
        sample = repeats[name] * max(seconds, 1e-9)
        fewest = FEWEST if seconds < 2 * budget else 1
        rounds[name] = min(MOST, max(fewest, int(budget / len(calls) / sample)))
        timings.samples[name] = {}
    total = max(rounds.values(), default=0)
    rounds.update({name: total for name in every_round if name in rounds})
    order, draw = list(rounds), random.Random(seed)
    with _no_collection():
        for turn in range(total):
            draw.shuffle(order)
            for name in order:
                if takes_part(turn, rounds[name], total):
                    seconds = _sample(calls[name], repeats[name], now)
                    timings.samples[name][turn] = seconds
    return timings


def takes_part(turn: int, rounds: int, total: int) -> bool:
    """Whether a call that runs in `rounds` of `total` rounds, evenly spread, runs in this one."""
    return (turn + 1) * rounds // total > turn * rounds // total


def clock(device: torch.device) -> Callable[[], float]:
    """A clock that waits for the device.

    Args:
        device: What is measured.
    """
    if device.type == "cpu":
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def _warm_up(call: Call, now: Callable[[], float], share: float) -> float:
    """Seconds per call, once it is warm; a call that takes long is warmed up once only."""
    seconds = _sample(call, 1, now)
    if seconds * FEWEST > share:
        return seconds
    return min(_sample(call, 2, now), seconds)


def _sample(call: Call, repeats: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def in_short(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
