"""Splitting in mid-training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

import fpe_hf
from fpe_hf.closing import open_blocks
from fpe_hf.config import FPEConfig
from fpe_hf.errors import RecipeError
from fpe_hf.recipes.arms import plan_expansion
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.running import run_recipe
from fpe_hf.recipes.splitting import carry_state
from tiny_models import tiny_model

RECIPE = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [8]}
data: {source: digits, max_train_samples: 128, max_eval_samples: 32}
widen: {targets: [layers], at: {step: 5}}
train:
  max_steps: 20
  per_device_train_batch_size: 32
  learning_rate: 1e-2
  weight_decay: 0.1
  lr_scheduler_type: cosine
  use_cpu: true
"""
EXACT = ("widen.coupling=1.0", "widen.fan_out=partition")


def run(folder: Path, *assignments: str) -> Any:
    return run_recipe(parse_recipe(RECIPE, [f"output.folder={folder}", *assignments]))


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_an_exact_start_goes_on_as_its_parent_would_have(
    layout: str, optimizer: str, tmp_path: Path
) -> None:
    """With coupling 1 every gradient is the parent's: so must be every later step, if moments,
    schedule and batches are carried on."""
    own = (f"widen.layout={layout}", f"train.optim={optimizer}")
    results = run(tmp_path / "run", *EXACT, *own)
    dense, fpe = (results.of_arm(arm)[0].curve for arm in ("dense", "fpe"))
    assert [point["step"] for point in fpe] == [point["step"] for point in dense]
    for one, other in zip(dense, fpe, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert dense[-1]["loss"] < dense[0]["loss"]
    models = (tmp_path / "run" / "seed-0" / arm / "model" for arm in ("dense", "fpe"))
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    outputs = [AutoModel.from_pretrained(model)(features=x).logits for model in models]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)


def test_without_the_moments_it_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail: the same with an optimizer that starts afresh."""
    monkeypatch.setattr("fpe_hf.recipes.splitting.carry_state", lambda *_: None)
    results = run(tmp_path / "run", *EXACT)
    dense, fpe = (results.of_arm(arm)[0].curve[-1]["loss"] for arm in ("dense", "fpe"))
    assert abs(fpe - dense) > 1e-3 * dense


def test_arms_share_the_time_before_the_split(tmp_path: Path) -> None:
    results = run(tmp_path / "run", "widen.at={step: 10}", "compare.arms=[dense, fpe, overlap]")
    early = [
        [point for point in results.of_arm(arm)[0].curve if point["step"] <= 10]
        for arm in ("dense", "fpe", "overlap")
    ]
    assert early[0] == early[1] == early[2]
    assert len(early[0]) == 5
    late = {results.of_arm(arm)[0].metrics["loss"] for arm in ("dense", "fpe", "overlap")}
    assert len(late) == 3
    numbers = {results.of_arm(arm)[0].nonzeros for arm in ("dense", "fpe", "overlap")}
    assert numbers == {8 * 64 + 8 + 10 * 8 + 10}


def test_the_dense_arm_is_an_uninterrupted_run(tmp_path: Path) -> None:
    run(tmp_path / "split")
    run(tmp_path / "plain", "widen.at=null")
    one, other = (
        load_file(tmp_path / name / "seed-0" / "dense" / "model" / "model.safetensors")
        for name in ("split", "plain")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("at", ["{step: 20}", "{step: 99}", "{epoch: 9}"])
def test_a_split_outside_the_training_is_refused(at: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not within the training of 20 steps"):
        run(tmp_path / "run", f"widen.at={at}")


WAYS: dict[str, dict[str, Any]] = {
    "element": {},
    "block": {"layout": "block", "tile_size": 8},
    "partition": {"fan_out": "partition", "alpha": 3},
    "learned": {"learn_coupling": True, "coupling": 0.5, "bias": "child"},
}


@pytest.mark.parametrize("way", WAYS)
def test_moments_go_where_their_weights_go(way: str) -> None:
    """If a moment equals its weight, it still does after the split, for every kept number."""
    dense = tiny_model("llama").train()
    before = torch.optim.AdamW(dense.parameters())
    for parameter in dense.parameters():
        before.state[parameter] = {
            "step": torch.tensor(7.0),
            "exp_avg": parameter.detach().clone(),
            "exp_avg_sq": 2 * parameter.detach(),
        }
    ids = {"input_ids": torch.arange(5, 11)[None]}
    expansion = plan_expansion("fpe", dense, FPEConfig(**WAYS[way]), [ids])
    arm = expansion(copy.deepcopy(dense))
    after = torch.optim.AdamW(arm.parameters())
    carry_state(before, dense, after, arm, expansion)
    fpe_hf.audit(arm, strict=True)
    for name, parameter in arm.named_parameters():
        state = after.state[parameter]
        assert state["step"] == 7
        if name.endswith("coupling"):
            assert not state["exp_avg"].any()
            continue
        assert torch.equal(state["exp_avg"], parameter)
        assert torch.equal(state["exp_avg_sq"], 2 * parameter)
    after.step()  # accepts what it was given


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_moments_of_an_open_block_are_its_parents(family: str) -> None:
    """Children hold shares of the outgoing weights, but have the gradients of the whole; nothing
    is drawn, so what was positive stays so."""
    dense = tiny_model(family).train()
    ids = {"input_ids": torch.arange(5, 11)[None]}
    before = torch.optim.AdamW(dense.parameters())
    dense(**ids, labels=ids["input_ids"]).loss.backward()
    before.step()
    expansion = plan_expansion("fpe", dense, FPEConfig(split="learned", alpha=3), [ids])
    arm = expansion(copy.deepcopy(dense))
    after = torch.optim.AdamW(arm.parameters())
    carry_state(before, dense, after, arm, expansion)
    for block in open_blocks(arm):
        for layer, parent in zip(block.layers, (*block.spec.ups, block.spec.down), strict=True):
            own = after.state[layer.weight]["exp_avg_sq"]
            module = dense.get_submodule(parent)
            whole = before.state[module.weight]["exp_avg_sq"]
            children = layer.by_child(own).movedim(2, 0)
            assert torch.equal(children, children[:1].expand_as(children))
            torch.testing.assert_close(children[0].sum(), whole.sum())
            assert own.min() >= 0
    after.step()


def test_state_of_another_shape_starts_afresh() -> None:
    """Adafactor keeps sums over rows and columns, which belong to no weight."""
    dense = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    before = torch.optim.Adafactor(dense.parameters())
    dense(torch.ones(2, 8)).sum().backward()
    before.step()
    inputs: Any = (torch.ones(2, 8),)
    expansion = plan_expansion("fpe", dense, FPEConfig(), [inputs])
    arm = expansion(copy.deepcopy(dense))
    after = torch.optim.Adafactor(arm.parameters())
    carry_state(before, dense, after, arm, expansion)
    parents = {name: before.state[p] for name, p in dense.named_parameters()}
    carried = {name: after.state.get(p) for name, p in arm.named_parameters()}
    assert carried["0.weight"] is None
    assert carried["2.weight"] is None
    for name in ("0.bias", "2.bias"):
        assert carried[name]["step"] == 1
        assert torch.equal(carried[name]["variance"], parents[name]["variance"])
    arm(torch.ones(2, 8)).sum().backward()
    after.step()
