"""Broken inputs: typed errors, soon, in little memory. `python -m tools.fuzz` tries more."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.fuzz.campaign import Tally, limited_time, run, try_input, warm_up
from tools.fuzz.targets import TARGETS, Target

EXAMPLES = {"config": 50, "results": 40, "recipe": 30, "checkpoint": 120, "loading": 40}
EXAMPLES["state-dict"] = 200


@pytest.mark.parametrize("name", list(TARGETS))
def test_no_broken_input_crashes_a_reader(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.fuzz.campaign.TIME_LIMIT", 60)  # only what never ends is to fail
    target = TARGETS[name](tmp_path_factory.mktemp(name))
    warm_up(target)

    @settings(max_examples=EXAMPLES[name], suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(random: Random) -> None:
        with limited_time():
            target.survives(random)

    check()


@pytest.mark.nightly
def test_ten_thousand_broken_inputs() -> None:
    outcome = run(10_000, seed="nightly")
    assert outcome.inputs >= 10_000
    assert not outcome.crashes
    assert outcome.peak_bytes < 2**30


# -- the tool itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TARGETS))
def test_inputs_are_broken_and_can_be_repeated(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    cases = [target.make(Random(f"{seed}")) for seed in range(20)]
    assert cases == [target.make(Random(f"{seed}")) for seed in range(20)]
    accepted = sum(target.survives(Random(f"{seed}")) for seed in range(20))
    assert accepted < 15, "most inputs must be refused, or nothing is tested"


class _Crashing(Target):
    name = "crashing"

    def make(self, random: Random) -> float:
        return random.random()

    def read(self, case: float) -> None:
        if case > 0.5:
            raise ZeroDivisionError("a bug")


class _Hanging(_Crashing):
    def read(self, case: float) -> None:
        while True:
            pass


def test_crashes_and_hangs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()
    for number in range(20):
        try_input(_Crashing(tmp_path), f"{number}", tally)
    assert (tally.inputs, tally.accepted + len(tally.crashes)) == (20, 20)
    assert 0 < len(tally.crashes) < 20
    assert all("ZeroDivisionError: a bug" in what for what in tally.crashes.values())
    monkeypatch.setattr("tools.fuzz.campaign.TIME_LIMIT", 0.05)
    tally = Tally()
    try_input(_Hanging(tmp_path), "0", tally)
    assert "Hang" in tally.crashes["0"]
    assert tally.slowest[1] == "0"
