"""Runs many inputs and keeps count of crashes, time and memory."""

from __future__ import annotations

import resource
import signal
import time
import traceback
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from .targets import TARGETS, Target

TIME_LIMIT = 5.0
MEMORY_LIMIT = 2**31
WARM_UP = 20


class Hang(BaseException):
    """An input took longer than `TIME_LIMIT` of processor time. No reader may catch it."""


@dataclass
class Tally:
    """What came of the inputs of one target.

    Attributes:
        inputs: Inputs tried.
        accepted: Inputs that were read without complaint: they were not broken enough.
        crashes: Seed of an input -> last lines of what was raised.
        slowest: Seconds of processor time of the slowest input, and its seed.
        seconds: Seconds altogether.
    """

    inputs: int = 0
    accepted: int = 0
    crashes: dict[str, str] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0


@dataclass
class Outcome:
    """What came of a campaign.

    Attributes:
        tallies: Target -> its tally.
        peak_bytes: Memory that the process took at most beyond what it had at the start.
    """

    tallies: dict[str, Tally]
    peak_bytes: int

    @property
    def inputs(self) -> int:
        """Inputs tried."""
        return sum(tally.inputs for tally in self.tallies.values())

    @property
    def crashes(self) -> dict[str, str]:
        """Seed of an input -> last lines of what was raised."""
        merged: dict[str, str] = {}
        for tally in self.tallies.values():
            merged |= tally.crashes
        return merged


def run(inputs: int, seed: str, names: Iterable[str] = TARGETS) -> Outcome:
    """Tries inputs, each with a seed of its own.

    Args:
        inputs: Number of inputs, divided among the targets by their shares.
        seed: Seed of the campaign.
        names: Targets.
    """
    kinds = [TARGETS[name] for name in names]
    shares = sum(kind.share for kind in kinds)
    tallies = {}
    with TemporaryDirectory(prefix="fuzz-") as place:
        targets = []
        for kind in kinds:
            folder = Path(place) / kind.name
            folder.mkdir()
            targets.append(kind(folder))
            warm_up(targets[-1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with limited_memory():
            for target in targets:
                count = -(-inputs * target.share // shares)
                tallies[target.name] = Tally()
                for number in range(count):
                    try_input(target, f"{seed}/{target.name}/{number}", tallies[target.name])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Outcome(tallies, 1024 * (after - before))


def warm_up(target: Target) -> None:
    """Has everything imported that a reader imports when it is used first."""
    for number in range(WARM_UP):
        with suppress(Exception):
            target.survives(Random(f"warm-up/{number}"))


def try_input(target: Target, seed: str, tally: Tally) -> None:
    """Tries the input of a seed and counts what comes of it."""
    start = time.process_time()
    try:
        with limited_time():
            tally.accepted += target.survives(Random(seed))
    except (Exception, Hang) as error:
        tally.crashes[seed] = "".join(traceback.format_exception(error)[-3:])
    seconds = time.process_time() - start
    tally.inputs += 1
    tally.seconds += seconds
    tally.slowest = max(tally.slowest, (seconds, seed))


@contextmanager
def limited_time() -> Any:
    """Raises `Hang` in what computes longer than `TIME_LIMIT`, however busy the machine is."""

    def stop(*args: object) -> None:
        raise Hang

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


@contextmanager
def limited_memory(more: int = MEMORY_LIMIT) -> Any:
    """Has whatever asks for more memory than there is now, and `more` bytes, fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
