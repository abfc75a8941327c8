"""What the arms of a recipe have in common, and what sets each apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from transformers import AutoModel

import fpe_hf
from fpe_hf.recipes.arms import fpe_config
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.report.siblings import siblings_line
from fpe_hf.recipes.results import ArmResult, Results
from fpe_hf.recipes.running import run_recipe
from fpe_hf.recipes.training import seconds_in

RECIPE = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [8]}
data: {source: digits, max_train_samples: 72, max_eval_samples: 32}
widen: {targets: [layers], alpha: 3, fan_out: partition, budget: 0.5, at: {step: 3}}
train:
  num_train_epochs: 3
  per_device_train_batch_size: 16
  learning_rate: 1e-2
  use_cpu: true
  disable_tqdm: true
output: {folder: FOLDER}
"""
ARMS = "[dense, fpe, fpe-random, overlap, wide-dense, narrow-dense, dense-longer]"
WEIGHTS, BIASES = 64 * 8 + 8 * 10, 8 + 10
DENSE = WEIGHTS + BIASES


def recipe(folder: Path, *assignments: str) -> Any:
    return parse_recipe(RECIPE, [f"output.folder={folder}", *assignments])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("arms") / "run"
    return run_recipe(recipe(folder, f"compare.arms={ARMS}"), say=lambda line: None)


def run(results: Results, arm: str) -> ArmResult:
    return results.of_arm(arm)[0]


def test_arms_with_the_same_budget_end_with_it(results: Results) -> None:
    for arm in ("fpe", "fpe-random", "overlap"):
        assert run(results, arm).nonzeros == DENSE // 2, arm
    each = 64 + 1 + 10
    assert run(results, "narrow-dense").nonzeros == (DENSE // 2 - 10) // each * each + 10
    assert run(results, "dense").nonzeros == run(results, "dense-longer").nonzeros == DENSE
    assert run(results, "wide-dense").nonzeros == 3 * 8 * (64 + 1 + 10) + 10


@pytest.mark.parametrize("arm", ["fpe", "fpe-random", "overlap", "narrow-dense"])
def test_arms_share_what_comes_before_the_split(arm: str, results: Results) -> None:
    counts = {point["step"]: point["nonzeros"] for point in run(results, arm).curve}
    assert counts == {3: DENSE, 5: run(results, arm).nonzeros, 10: counts[5], 15: counts[5]}
    assert run(results, arm).peak_parameters >= DENSE


def test_the_time_before_the_split_counts(results: Results) -> None:
    state = Path(results.recipe["output"]["folder"]) / "seed-0" / "warm-up" / "checkpoint-3"
    log = json.loads((state / "trainer_state.json").read_text())["log_history"]
    assert 0 < seconds_in(log) < min(run(results, arm).seconds for arm in ("dense", "fpe"))


def test_the_same_steps_but_for_dense_longer(results: Results) -> None:
    assert {r.steps for r in results.runs if r.arm != "dense-longer"} == {15}
    dense, fpe, longer = (run(results, arm) for arm in ("dense", "fpe", "dense-longer"))
    assert dense.flops == 6 * WEIGHTS * 72 * 3
    assert fpe.flops == pytest.approx(dense.flops * (3 + 3 * 12) / 15)
    assert longer.steps == 39
    assert fpe.flops <= longer.flops * (1 + 1e-9)


def test_every_arm_says_what_it_takes_on_disk(results: Results) -> None:
    assert all(r.disk_bytes >= 4 * min(r.nonzeros, DENSE // 2) for r in results.runs)


LEARNED = (
    "widen.fan_out=replicate",
    "widen.split=learned",
    "widen.bias=child",
    "widen.schedule={begin: 0.25, end: 0.75, every: 1}",
    "train.eval_strategy=steps",
    "train.eval_steps=1",
    "compare.arms=[dense, fpe, overlap]",
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("learned") / "run"
    return run_recipe(recipe(folder, *LEARNED), say=lambda line: None)


@pytest.mark.parametrize("arm", ["fpe", "overlap"])
def test_an_open_budget_closes_while_the_arm_trains(arm: str, learned: Results) -> None:
    """Split after 3 of 15 steps; begins to close a quarter of the other 12 later."""
    counts = {point["step"]: point["nonzeros"] for point in run(learned, arm).curve}
    whole = 3 * 8 * (64 + 1 + 10) + 10
    assert [counts[step] for step in (3, 4, 5, 6)] == [whole] * 4  # 3: as it was opened
    closing = [counts[step] for step in range(6, 13)]
    assert closing == sorted(set(closing), reverse=True)
    assert [counts[step] for step in (12, 13, 14, 15)] == [DENSE // 2] * 4
    assert run(learned, arm).peak_parameters == whole


def test_only_the_control_ends_with_shared_inputs(learned: Results) -> None:
    fpe, overlap = (run(learned, arm) for arm in ("fpe", "overlap"))
    assert fpe.audit is not None
    assert fpe.audit["ok"]
    assert fpe.audit["total"]["disjoint"]
    assert overlap.audit is None
    assert fpe.metrics["loss"] != overlap.metrics["loss"]
    assert fpe.curve[0] == overlap.curve[0] == run(learned, "dense").curve[0]


def test_a_learned_split_loads_as_any_other(learned: Results) -> None:
    folder = Path(learned.recipe["output"]["folder"]) / "seed-0" / "fpe" / "model"
    model = AutoModel.from_pretrained(folder)
    assert fpe_hf.audit(model).total.nonzeros == DENSE // 2


@pytest.mark.parametrize("moves", ["gradient", "random"])
@pytest.mark.parametrize("at", ["null", "{step: 3}"])
def test_masks_that_move_keep_the_budget_from_the_split_on(
    moves: str, at: str, tmp_path: Path
) -> None:
    own = (f"widen.schedule={{begin: 0.25, end: 0.75, every: 1, moves: {moves}}}", f"widen.at={at}")
    arms = "compare.arms=[dense, fpe]"
    found = run_recipe(recipe(tmp_path / "run", *LEARNED, *own, arms), say=lambda line: None)
    counts = {point["step"]: point["nonzeros"] for point in run(found, "fpe").curve}
    split = 0 if at == "null" else 3
    assert {count for step, count in counts.items() if step > split} == {DENSE // 2}


def test_gradual_pruning_of_a_parent_without_children(tmp_path: Path) -> None:
    own = recipe(
        tmp_path / "run",
        "widen={targets: [layers], alpha: 1, split: learned, budget: 0.5, at: {step: 3}}",
        "compare.arms=[dense, fpe, fpe-random, narrow-dense]",
    )
    found = run_recipe(own, say=lambda line: None)
    assert run(found, "fpe").nonzeros == run(found, "fpe-random").nonzeros == DENSE // 2


def test_the_random_split_is_the_papers(tmp_path: Path) -> None:
    own = recipe(
        tmp_path,
        "widen.bias=child",
        "widen.overrides={layers: {alpha: 2, bias: shared, fan_out: replicate}}",
    )
    config = fpe_config(own, 0, "fpe-random")
    assert (config.alpha, config.budget, config.targets) == (3, 0.5, ("layers",))
    assert (config.split, config.fan_out, config.bias) == ("random", "replicate", "shared")
    assert config.overrides == {"layers": {"alpha": 2}}
    assert config.seed == fpe_config(own, 0).seed != fpe_config(own, 1).seed


COUPLED = "widen={targets: [layers], fan_out: partition, coupling: 1.0, at: {step: 3}%s}"
PAIR = ("compare.arms=[dense, fpe]", "model.config.hidden_sizes=[8, 8]")


def test_a_coupling_falls_from_the_split_on(tmp_path: Path) -> None:
    own = COUPLED % ", coupling_schedule: {begin: 0.25, end: 0.75, shape: cosine}"
    found = run_recipe(recipe(tmp_path / "run", own, *PAIR), say=lambda line: None)
    fpe = run(found, "fpe")
    model = AutoModel.from_pretrained(tmp_path / "run" / "seed-0" / "fpe" / "model")
    blocks = model.config.quantization_config.blocks
    assert {(block["coupling"], block["annealed_from"]) for block in blocks} == {(0.0, 1.0)}
    assert fpe.nonzeros == run(found, "dense").nonzeros
    before, after = (fpe.siblings[time] for time in ("before", "after"))
    assert [entry["weights"] for entry in before] == [0.0]
    assert before[0]["activations"] == pytest.approx(0.0, abs=1e-6)
    assert after[0]["weights"] > 0.5
    assert after[0]["activations"] > 0.1
    assert run(found, "dense").siblings == {}
    (line,) = siblings_line(found)
    assert "0.000 to 0.7" in line
    assert siblings_line(replace(found, runs=[run(found, "dense")])) == []


def test_a_coupling_that_falls_resumes_bit_by_bit(tmp_path: Path) -> None:
    own = COUPLED.replace(", at: {step: 3}", "") % ", coupling_schedule: {end: 0.9}"
    settings = (own, *PAIR, "train.save_total_limit=20", "train.save_strategy=steps")
    whole, again = (
        recipe(tmp_path / n, *settings, "train.save_steps=1") for n in ("whole", "part")
    )
    run_recipe(whole, say=lambda line: None)
    run_recipe(again, say=lambda line: None)
    part = tmp_path / "part" / "seed-0" / "fpe"
    for name in (part / "result.json", tmp_path / "part" / "results.json"):
        name.unlink()
    for folder in (part / "model", *(part / f"checkpoint-{step}" for step in range(8, 16))):
        rmtree(folder)
    run_recipe(again, resume=True, say=lambda line: None)
    files = [
        tmp_path / n / "seed-0" / "fpe" / "model" / "model.safetensors" for n in ("whole", "part")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("at", ["", ", at: {step: 3}"])
def test_couplings_have_a_learning_rate_of_their_own(at: str, tmp_path: Path) -> None:
    own = COUPLED.replace(", at: {step: 3}", at) % ", learn_coupling: true, coupling_lr_factor: 5"
    run_recipe(
        recipe(tmp_path / "run", own, *PAIR, "train.weight_decay=0.1"), say=lambda line: None
    )
    for arm, couplings in (("dense", 0), ("fpe", 1)):
        folder = tmp_path / "run" / "seed-0" / arm / "checkpoint-15"
        state = torch.load(folder / "optimizer.pt")
        groups = state["param_groups"]
        assert [len(group["params"]) for group in groups][2:] == [couplings]
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
        assert [group["initial_lr"] for group in groups] == pytest.approx([1e-2, 1e-2, 5e-2])


@pytest.mark.parametrize(("at", "start"), [("null", 0), ("{step: 3}", 3)])
def test_opening_and_closing_of_the_budget_are_noted(at: str, start: int, tmp_path: Path) -> None:
    settings = ["widen.split=learned", "widen.fan_out=replicate", f"widen.at={at}"]
    found = run(run_recipe(recipe(tmp_path / "run", *settings), say=lambda line: None), "fpe")
    points = {int(point["step"]): point["nonzeros"] for point in found.curve}
    assert points[start] == max(points.values()) > found.nonzeros
    assert start < found.closed < found.steps
    assert found.outcomes is not None
    assert found.outcomes.right().mean() == pytest.approx(found.metrics["accuracy"])
