"""A whole run at tiny widths: rows, page, plots, resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import benchmarks.__main__ as command
from benchmarks import costs, measuring, models, plots, timing
from benchmarks.blocks import Shape
from benchmarks.cases import Preset, presets
from benchmarks.contenders import Contender, WrongResult
from benchmarks.environment import environment
from benchmarks.measuring import Setting, heats, measure
from benchmarks.report import target_table, write_report
from benchmarks.results import Results
from tiny_models import tiny_config

CPU = torch.device("cpu")
SHAPE = Shape(32, 64)
TINY = Preset(
    shapes=(SHAPE,),
    alphas=(2, 4),
    tokens=(1, 4),
    tiles=(1, 2),
    ways=("replicate",),
    rivals=("masked", "premasked", "bsr"),
    memory=(4,),
    budget=0.02,
)


def new(path: Path) -> Results:
    return Results(path, "python -m benchmarks run", environment(CPU))


@pytest.fixture(scope="module", autouse=True)
def _short_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SHORTEST", 1e-5)
        patch.setattr(timing, "FEWEST", 2)
        patch.setattr(timing.gc, "collect", lambda: 0)  # slow beside many objects of the tests
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = new(tmp_path_factory.mktemp("results") / "tiny.json")
    measure(TINY, Setting(CPU), results)
    return results


def test_every_contender_has_a_row_in_every_case(run: Results) -> None:
    names = {"dense", "floor", "masked", "premasked", "bsr"}
    names |= {c.name for c in TINY.contenders()}
    for alpha in TINY.alphas:
        for tokens, mode in TINY.cases():
            case = (alpha, tokens, mode)
            rows = [r for r in run.rows if (r.alpha, r.tokens, r.mode) == case]
            without = {"premasked"} if mode == "train" else set()  # it is for inference
            assert {r.contender for r in rows} == names - without
            assert all(
                r.ratio and r.ratio > 0 and r.floor and r.seconds for r in rows if not r.note
            )
    noted = {(r.contender, r.mode) for r in run.rows if r.note}
    assert noted == {("bsr", "train")}  # PyTorch has no backward on CPUs


def test_the_dense_parent_is_the_unit(run: Results) -> None:
    assert {(r.ratio, r.low, r.high) for r in run.rows if r.contender == "dense"} == {(1.0,) * 3}


def test_memory_has_a_row_for_every_contender(run: Results) -> None:
    rows = {(r.contender, r.alpha): r for r in run.memory}
    assert rows["block 1 tile replicate", 4].state < 1.1
    assert rows["masked", 4].state > 3.9
    assert ("premasked", 4) not in rows


def test_results_come_back_from_their_file(run: Results) -> None:
    again = Results.read(run.path)
    assert [r.key for r in again.rows] == [r.key for r in run.rows]
    assert again.rows[3].ratio == pytest.approx(run.rows[3].ratio, rel=1e-3)
    assert again.environment == run.environment
    assert again.memory[1].bytes == run.memory[1].bytes
    assert json.loads(run.path.read_text())["environment"]["threads"] == torch.get_num_threads()
    assert list(run.path.parent.glob(".*")) == []


def test_a_second_run_measures_nothing_again(run: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Results.read(run.path)
    monkeypatch.setattr(measuring, "build", None)  # it would fail
    measure(TINY, Setting(CPU), again)
    assert len(again.rows) == len(run.rows)


def test_an_interrupted_run_goes_on(run: Results, tmp_path: Path) -> None:
    half = Results.read(run.path)
    half.path = tmp_path / "half.json"
    kept = [r for r in half.rows if r.alpha == 2 or r.tokens == 1]
    half.rows, half.memory = list(kept), []
    measure(TINY, Setting(CPU), half)
    assert half.rows[: len(kept)] == kept
    assert half.known == run.known


def test_the_page_has_targets_ratios_memory_and_plots(run: Results) -> None:
    printed = write_report(run)
    page = run.path.with_suffix(".md").read_text()
    assert "| CPU block, forward, 1 token, 768x3072 | not measured (<= 1.20) |" in printed
    assert "| GPU, 1 to 16 tokens, block and element | not measured (<= 1.10) |" in page
    assert "### 32x64, fp32: forward+backward, 4 tokens" in page
    assert "- bsr: not measured: " in page
    assert page.count("\n| block 2 tiles replicate | ") == 5
    for name in ("alpha", "tokens", "tiles", "contenders"):
        assert f"(tiny-{name}.svg)" in page
        assert "<svg" in (run.path.parent / f"tiny-{name}.svg").read_text()
    assert not (run.path.parent / "tiny-width.svg").exists()  # there is one width only


def test_the_table_without_rows_is_not_measured(tmp_path: Path) -> None:
    table = target_table(new(tmp_path / "none.json"))
    lines = table.splitlines()[2:]
    assert len(lines) == 9
    assert all(line.count("not measured") == 3 for line in lines)


def test_a_wrong_contender_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measuring.build

    def build(contender: Contender, *rest: object) -> torch.nn.Module:
        if contender.kind == "masked":
            raise WrongResult("masked: outputs differ")
        return real(contender, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "build", build)
    results = new(tmp_path / "wrong.json")
    preset = Preset((SHAPE,), (2,), tokens=(1,), tiles=(1,), ways=("replicate",), budget=0.01)
    measure(preset, Setting(CPU), results)
    (note,) = {r.note for r in results.rows if r.contender == "masked"}
    assert note == "WrongResult: masked: outputs differ"


def test_what_does_not_fit_into_memory_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = 4 * SHAPE.weights
    monkeypatch.setattr(measuring, "available_bytes", lambda device: 12 * parent)
    results = new(tmp_path / "small.json")
    preset = Preset((SHAPE,), (2,), tokens=(1,), tiles=(1,), ways=("replicate",), budget=0.01)
    measure(preset, Setting(CPU), results)
    notes = {r.contender: r.note for r in results.rows if r.mode == "forward"}
    assert notes["masked"].startswith("MemoryError: needs about")
    assert notes["block 1 tile replicate"] == notes["dense"] == ""


@given(st.lists(st.integers(1, 100)), st.integers(1, 200))
def test_heats_hold_everything_once_and_fit(sizes: list[int], limit: int) -> None:
    found = list(heats(sizes, limit))
    assert [position for heat in found for position in heat] == list(range(len(sizes)))
    assert all(len(heat) == 1 or sum(sizes[i] for i in heat) <= limit for heat in found)


def tiny_tower() -> torch.nn.Module:
    return hf.CLIPVisionModel(tiny_config("clip").vision_config)


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_whole_models(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models._MAKERS, "clip-b32", tiny_tower)
    preset = Preset(
        (), (2,), models=("clip-b32",), model_modes=(mode,), model_tiles=(1,), budget=0.02
    )
    results = new(tmp_path / "models.json")
    measure(preset, Setting(CPU), results)
    rows = {r.contender: r for r in results.rows}
    assert {"dense", "element exact", "block 1 tile exact"} <= rows.keys()
    assert ("premasked" in rows) == (mode == "forward")
    dense = rows["dense"]
    assert dense.items_per_second == pytest.approx(8 / dense.seconds)
    assert dense.floor is None
    assert "clip-b32, fp32: " in write_report(results) + results.path.with_suffix(".md").read_text()


def test_models_that_are_not_at_hand_are_not_measured(tmp_path: Path) -> None:
    results = new(tmp_path / "models.json")
    measure(Preset((), (2,), models=("llama-1b",)), Setting(CPU), results)
    assert {r.note for r in results.rows} == {"needs a GPU"}
    assert (
        "not measured: needs a GPU"
        in write_report(results) + results.path.with_suffix(".md").read_text()
    )


def test_the_cost_table_has_one_row_per_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "PLAIN", (SHAPE,))
    monkeypatch.setattr(costs, "WIDTHS", {SHAPE.name: SHAPE.inputs})
    path = tmp_path / "costs.json"
    invoke = CliRunner().invoke(command.app, ["costs", "--out", str(path), "--budget", "0.001"])
    assert invoke.exit_code == 0, invoke.output
    table = json.loads(path.read_text())
    assert table["device"] == "cpu"
    assert "1 thread" in table["measured_on"]
    assert {(r["layout"], r["tiles"]) for r in table["rows"]} == {
        ("element", 0),
        ("block", 1),
        ("block", 4),
        ("block", 8),
    }
    assert len(table["rows"]) == 4 * 3 * 4  # alphas, tokens
    assert {r["width"] for r in table["rows"]} == {32}
    assert set(table["rows"][0]) == {
        "layout", "tiles", "alpha", "width", "tokens", "dtype", "mode", "ratio",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["costs.json"]


def test_unknown_presets_are_refused(tmp_path: Path) -> None:
    invoke = CliRunner().invoke(command.app, ["run", "--preset", "all", "--out", str(tmp_path)])
    assert invoke.exit_code == 2


def test_going_on_with_results_of_another_machine_is_refused(run: Results, tmp_path: Path) -> None:
    other = Results.read(run.path)
    other.path, other.environment["processor"] = tmp_path / "other.json", "abacus"
    other.save()
    with pytest.raises(Exception, match="another processor"):
        command.start(other.path, environment(CPU), resume=True)
    assert command.start(other.path, environment(CPU), resume=False).rows == []


def test_the_table_preset_measures_the_rows_of_the_targets() -> None:
    cpu, gpu = presets("cpu")["table"], presets("cuda")["table"]
    assert [s.name for s in cpu.shapes] == ["768x3072"]
    assert cpu.alphas == gpu.alphas == (2, 4, 8)
    assert {1, 128, 2048} <= set(cpu.tokens)
    assert cpu.models == ("minilm", "clip-b32")
    assert gpu.dtypes == ("bf16",)
    assert {"element", "block"} <= set(gpu.layouts)
    full = presets("cpu")["full"]
    assert (len(full.shapes), full.tokens) == (4, (1, 16, 128, 2048))
    assert full.tiles == (1, 4, 8)


def test_plots_hold_fixed_what_is_usual(run: Results) -> None:
    assert plots.middle_slice(run.rows) == ("32x64", "fp32", 4, 4)
