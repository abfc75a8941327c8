"""Interleaved timing, on a clock that only the calls move."""

from __future__ import annotations

import gc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import FEWEST, MOST, SHORTEST, Purse, Spread, interleave, takes_part


class FakeClock:
    """Time passes only in calls that take it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.log: list[str] = []

    def call(self, name: str, seconds: float, *more: float) -> object:
        """A call that takes these seconds in turn, the last ones for ever."""
        left = [seconds, *more]

        def run() -> None:
            self.log.append(name)
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return run

    def __call__(self) -> float:
        return self.time


def time_all(clock: FakeClock, budget: float = 10.0, **calls: object):  # type: ignore[no-untyped-def]
    return interleave(calls, every_round=("dense",), budget=budget, now=clock)  # type: ignore[arg-type]


def test_ratios_are_those_of_the_seconds_per_call() -> None:
    clock = FakeClock()
    timings = time_all(clock, dense=clock.call("dense", 0.5), slow=clock.call("slow", 1.25))
    assert timings.ratio("slow", "dense").median == pytest.approx(2.5)
    assert timings.seconds("slow").median == pytest.approx(1.25)
    assert timings.ratio("dense", "dense") == Spread(1.0, 1.0, 1.0, len(timings.samples["dense"]))


def test_short_calls_are_repeated_within_a_sample() -> None:
    clock = FakeClock()
    timings = time_all(clock, dense=clock.call("dense", SHORTEST / 7.5), budget=1.0)
    assert timings.seconds("dense").median == pytest.approx(SHORTEST / 7.5)
    assert clock.log.count("dense") == 3 + 8 * len(timings.samples["dense"])
    assert len(timings.samples["dense"]) == MOST


def test_what_takes_long_runs_in_few_rounds_beside_the_dense_parent() -> None:
    clock = FakeClock()
    calls = {"dense": clock.call("dense", 0.1), "slow": clock.call("slow", 8.0)}
    timings = time_all(clock, **calls)
    slow, dense = timings.samples["slow"], timings.samples["dense"]
    assert len(slow) == FEWEST < len(dense)
    assert set(slow) < set(dense)
    assert timings.ratio("slow", "dense").count == FEWEST
    assert max(slow) - min(slow) > len(dense) / 3  # spread over the rounds


def test_what_takes_twice_the_budget_is_warmed_up_once_and_sampled_once() -> None:
    clock = FakeClock()
    time_all(clock, dense=clock.call("dense", 0.1), slow=clock.call("slow", 30.0))
    assert clock.log.count("slow") == 2


def test_rounds_interleave_all_calls() -> None:
    clock = FakeClock()
    time_all(clock, dense=clock.call("dense", 1.0), other=clock.call("other", 1.0), budget=20.0)
    rounds = clock.log[6:]
    pairs = [set(rounds[i : i + 2]) for i in range(0, len(rounds), 2)]
    assert len(pairs) >= FEWEST
    assert all(pair == {"dense", "other"} for pair in pairs)


def test_a_slow_spell_of_the_machine_does_not_move_the_median_ratio() -> None:
    clock = FakeClock()
    warm, spell = [1.0] * 3, [1.0, 9.0, 9.0]  # the same rounds are slow for both
    calls = {
        "dense": clock.call("dense", *warm, *spell, 1.0),
        "other": clock.call("other", *(2 * s for s in (*warm, *spell)), 2.0),
    }
    assert time_all(clock, budget=40.0, **calls).ratio("other", "dense").median == 2.0


def test_a_call_that_fails_is_left_out_with_its_reason() -> None:
    clock = FakeClock()

    def broken() -> None:
        raise NotImplementedError("no kernel\nfor this")

    timings = time_all(clock, dense=clock.call("dense", 0.1), broken=broken)
    assert timings.failures == {"broken": "NotImplementedError: no kernel"}
    assert "broken" not in timings.samples


def test_garbage_is_collected_again_afterwards() -> None:
    clock = FakeClock()
    seen: list[bool] = []
    time_all(clock, dense=lambda: seen.append(gc.isenabled()) or clock.call("dense", 1.0)())  # type: ignore[func-returns-value, operator]
    assert not seen[-1]
    assert gc.isenabled()


@given(st.integers(1, 50), st.data())
def test_rounds_are_taken_part_in_as_often_as_asked(total: int, data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, total))
    turns = [turn for turn in range(total) if takes_part(turn, rounds, total)]
    assert len(turns) == rounds
    gaps = [after - before for before, after in pairwise(turns)]
    assert all(total // rounds <= gap <= -(-total // rounds) for gap in gaps)


def test_quartiles() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_what_is_left_is_shared_among_what_is_left() -> None:
    clock = FakeClock()
    purse = Purse(10.0, 4, now=clock)
    assert purse.share() == 2.5
    clock.time += 7.0  # more than its share
    assert purse.share() == pytest.approx(1.0)
    assert purse.share() == pytest.approx(1.5)
    clock.time += 4.0
    assert purse.share() == purse.left == -1.0
