"""Whole runs at tiny widths: rows, tables, time, resuming, the rehearsal for GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

import benchmarks.__main__ as command
from benchmarks import cases, costs, measuring, models, timing
from benchmarks.blocks import Shape
from benchmarks.cases import Preset
from benchmarks.contenders import Contender, WrongResult
from benchmarks.environment import environment, processor_name
from benchmarks.measuring import Setting, measure
from benchmarks.report import page, summary
from benchmarks.results import CHECK, COMPILED, EAGER, GRAPH, MEMORY, Results
from tiny_models import tiny_config

CPU = torch.device("cpu")
SETTING = Setting(CPU, (1,))
SHAPE = Shape(32, 64)
TINY = Preset(
    shapes=(SHAPE,),
    forward=(1, 4),
    train=(4,),
    memory=(4,),
    ways=("replicate",),
    rivals=("masked", "csr"),
)


def new(path: Path) -> Results:
    return Results(path, "python -m benchmarks run", environment(CPU))


@pytest.fixture(scope="module", autouse=True)
def _short_samples() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SHORTEST", 1e-5)
        patch.setattr(timing, "FEWEST", 2)
        patch.setattr(timing, "MOST", 3)
        patch.setattr(timing.gc, "collect", lambda *_: 0)  # slow beside many objects of the tests
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = new(tmp_path_factory.mktemp("results") / "tiny.json")
    measure([TINY], SETTING, results, budget=1000)
    return results


def test_every_contender_has_a_row_in_every_case(run: Results) -> None:
    names = {"dense", "masked", "csr", "block 1 tile replicate"}
    for group in TINY.groups():
        for case in TINY.cases(group, "cpu", SETTING.threads):
            rows = [row for row in run.rows if row.case == case.case]
            assert {row.contender for row in rows} == names
            if case.mode not in (CHECK, MEMORY):
                assert all(r.ratio and r.ratio > 0 and r.seconds for r in rows if not r.note)
    assert {(r.ratio, r.low) for r in run.rows if r.contender == "dense" and r.seconds} == {(1, 1)}
    assert {r.mode for r in run.rows if r.note} <= {MEMORY}  # CSR has no optimizer
    assert run.left == []


def test_threads_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    real = measuring.timed

    def timed(case: cases.Case, *rest: object) -> object:
        seen.append((case.threads, torch.get_num_threads()))
        return real(case, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "timed", timed)
    part = TINY.only("alphas=2").only("train=")
    measure([part], Setting(CPU, (1, 2)), new(tmp_path / "threads.json"), 1000)
    assert sorted(seen) == [(1, 1), (1, 1), (2, 2), (2, 2)]


def test_memory_is_counted(run: Results) -> None:
    rows = {r.contender: r.memory for r in run.rows if r.mode == MEMORY and r.alpha == 4}
    assert rows["block 1 tile replicate"]["state"] < 1.1
    assert rows["masked"]["state"] > 3.9
    assert rows["masked"]["activations"] > rows["block 1 tile replicate"]["activations"] > 1


def test_results_come_back_from_their_file(run: Results) -> None:
    again = Results.read(run.path)
    assert [r.key for r in again.rows] == [r.key for r in run.rows]
    assert again.environment == run.environment
    assert json.loads(run.path.read_text())["environment"]["processor"] == processor_name()
    assert list(run.path.parent.glob(".*")) == []


def test_an_interrupted_run_goes_on(
    run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Results.read(run.path)
    half.path = tmp_path / "half.json"
    half.rows = kept = [r for r in half.rows if r.alpha == 2]
    measure([TINY], SETTING, half, 1000)
    assert half.rows[: len(kept)] == kept
    assert half.known == run.known
    monkeypatch.setattr(measuring, "_built", None)  # it would fail
    measure([TINY], SETTING, half, 1000)


def test_what_there_is_no_time_for_is_left_out_and_said(run: Results, tmp_path: Path) -> None:
    none = new(tmp_path / "none.json")
    measure([TINY], SETTING, none, budget=0)
    assert none.rows == []
    assert len(none.left) == len({tuple(r.case.items()) for r in run.rows})
    assert "as the time was over: 32x64, fp32, 1 thread, alpha 2 (5)" in page(none)
    measure([TINY], SETTING, none, budget=1000)
    assert none.known == run.known


def test_the_table_for_the_documentation(run: Results) -> None:
    more = [replace(row, threads=2) for row in run.rows]
    both = replace(run, rows=[*more, *run.rows])
    lines = summary(both).splitlines()
    assert lines[0].startswith(f"processor {processor_name()}, ")
    assert lines[2] == (
        "| fp32 |  | 1 thread, alpha 2 | 1 thread, alpha 4 | 2 threads, alpha 2 "
        "| 2 threads, alpha 4 |"
    )
    assert lines[4].startswith("| 32x64: forward, 1 token | dense | ")
    assert lines[4].count(" ms ") == 4
    assert lines[5].startswith("|  | masked | ")
    assert len(lines) == 4 + 3 * 4  # three kinds of cases, four contenders
    whole = page(run)
    assert "32x64: memory, 4 tokens" in whole
    assert "6 of 6 contenders" in whole


def test_a_wrong_contender_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measuring.check_block

    def check_block(contender: Contender, *rest: object) -> None:
        if contender.kind == "masked":
            raise WrongResult("masked: outputs differ")
        real(contender, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "check_block", check_block)
    results = new(tmp_path / "wrong.json")
    measure([TINY.only("alphas=2")], SETTING, results, 1000)
    masked = [r for r in results.rows if r.contender == "masked"]
    assert {r.note for r in masked} == {"WrongResult: masked: outputs differ"}
    assert {r.ratio for r in masked} == {None}
    assert "1 of 3 contenders" not in page(results)
    assert "2 of 3 contenders" in page(results)


def test_what_does_not_fit_into_memory_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = 4 * SHAPE.weights
    monkeypatch.setattr(measuring, "available_bytes", lambda device: 12 * parent)
    results = new(tmp_path / "small.json")
    measure([TINY.only("alphas=2").only("train=")], SETTING, results, 1000)
    notes = {r.contender: r.note for r in results.rows if r.mode == "forward"}
    assert notes["masked"].startswith("MemoryError: needs about")
    assert notes["block 1 tile replicate"] == notes["dense"] == ""


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_whole_models(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tower() -> torch.nn.Module:
        return hf.CLIPVisionModel(tiny_config("clip").vision_config)

    monkeypatch.setitem(models._MAKERS, "clip-b32", tower)
    preset = Preset(models=("clip-b32",), alphas=(2,), model_modes=(mode,), ways=("exact",))
    results = new(tmp_path / "models.json")
    measure([preset], SETTING, results, 1000)
    rows = {r.contender: r for r in results.rows if r.mode == mode}
    assert rows.keys() == {"dense", "masked", "block 1 tile exact"}
    assert all(row.ratio and row.tokens == 8 for row in rows.values())


def test_models_that_are_not_at_hand_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> torch.nn.Module:
        raise models.NotAtHand("needs a package")

    monkeypatch.setitem(models._MAKERS, "minilm", absent)
    results = new(tmp_path / "models.json")
    measure([Preset(models=("minilm",))], SETTING, results, 1000)
    assert {r.note for r in results.rows} == {"NotAtHand: needs a package"}


def test_the_cost_table_has_one_row_per_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "PLAIN", (SHAPE,))
    monkeypatch.setattr(costs, "WIDTHS", {SHAPE.name: SHAPE.inputs})
    path = tmp_path / "costs.json"
    invoke = CliRunner().invoke(command.app, ["costs", "--out", str(path), "--budget", "1000"])
    assert invoke.exit_code == 0, invoke.output
    table = json.loads(path.read_text())
    assert (table["device"], "1 thread" in table["measured_on"]) == ("cpu", True)
    kinds = {(r["layout"], r["tiles"]) for r in table["rows"]}
    assert kinds == {("element", 0), ("block", 1), ("block", 4), ("block", 8)}
    assert len(table["rows"]) == 4 * 3 * 4  # alphas, tokens
    assert set(table["rows"][0]) == {
        "layout", "tiles", "alpha", "width", "tokens", "dtype", "mode", "ratio",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["costs.json"]


def test_a_tiny_rehearsal_for_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(device: str) -> list[Preset]:
        one = TINY.only("alphas=4").only("forward=4").only("train=").only("rivals=")
        return [replace(one, how=(EAGER, COMPILED, GRAPH))]

    monkeypatch.setattr(command, "gpu_presets", tiny)
    words = ["gpu", "--device", "cpu", "--budget", "1000", "--out", str(tmp_path)]
    invoke = CliRunner().invoke(command.app, words)
    assert invoke.exit_code == 0, invoke.output
    results = Results.read(tmp_path / "gpu-rehearsal.json")
    timed = {(r.contender, r.how) for r in results.rows if r.ratio}
    expected = set(product(("dense", "block 1 tile replicate"), (EAGER, COMPILED)))
    assert timed == expected, {r.note for r in results.rows}
    assert {r.note for r in results.rows if r.how == GRAPH} == {
        "NotImplementedError: CUDA graphs need a GPU"
    }
    written = (tmp_path / "gpu-rehearsal.md").read_text()
    assert "1 of 1 contenders could be built" in written
    assert "CUDA graphs need a GPU" in written


def test_options_that_cannot_be_are_refused(run: Results, tmp_path: Path) -> None:
    for words in (["--preset", "all"], ["--threads", "many"], ["--only", "forward=7"]):
        invoke = CliRunner().invoke(command.app, ["run", "--out", str(tmp_path), *words])
        assert invoke.exit_code == 2
    other = Results.read(run.path)
    other.path, other.environment["processor"] = tmp_path / "other.json", "abacus"
    other.save()
    with pytest.raises(Exception, match="another processor"):
        command.start(other.path, SETTING, resume=True)
    assert command.start(other.path, SETTING, resume=False).rows == []
