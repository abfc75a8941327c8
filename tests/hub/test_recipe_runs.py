"""Recipes that push their model, and runs that go on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file

import fpe_hf
from fpe_hf.errors import RecipeError
from fpe_hf.recipes import running
from fpe_hf.recipes.launching import launch
from fpe_hf.recipes.parsing import parse_recipe
from hub.server import Hub

RECIPE = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [6]}
data: {source: digits, max_train_samples: 64, max_eval_samples: 16}
widen: {targets: [layers], at: {step: 2}}
train: {max_steps: 6, per_device_train_batch_size: 16, save_strategy: steps, save_steps: 2}
output: {folder: run, push: {repo_id: user/digits, private: true, checkpoints: true}}
"""


def recipe(folder: Path) -> Any:
    return parse_recipe(RECIPE, [f"output.folder={folder}"])


def test_the_model_its_card_and_the_report_are_pushed(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    launch(recipe(tmp_path / "run"), say=said.append)
    assert "Pushed" in said[-1]
    names = HfApi().list_repo_files("user/digits")
    assert {"README.md", "model.safetensors", "recipe.yaml", "results.json"} <= set(names)
    assert any(name.endswith(".png") for name in names)
    assert not any(name.endswith((".pt", ".bin", ".pth")) for name in names)
    card = Path(hf_hub_download("user/digits", "README.md")).read_text(encoding="utf-8")
    assert "import fpe_hf" in card
    assert "accuracy" in card
    best = tmp_path / "run" / "seed-0" / "fpe" / "model"
    loaded = fpe_hf.from_pretrained("user/digits")
    x = torch.randn(3, 64)
    assert torch.equal(loaded(features=x).logits, fpe_hf.from_pretrained(best)(features=x).logits)


def test_a_run_goes_on_elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(recipe(tmp_path / "whole"))
    measure = running._Repetition._measure

    def stop(self: Any, arm: str, *rest: Any) -> Any:
        if arm == "fpe":
            raise KeyboardInterrupt
        return measure(self, arm, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(running._Repetition, "_measure", stop)
        with pytest.raises(KeyboardInterrupt):
            launch(recipe(tmp_path / "here"))
    files = HfApi().list_repo_files("user/digits", revision="run")
    assert "seed-0/fpe/checkpoint-6/optimizer.pt" in files
    assert "seed-0/fpe/checkpoint-4/optimizer.pt" not in files
    launch(recipe(tmp_path / "there"), resume_from="user/digits")
    one, other = (
        load_file(tmp_path / name / "seed-0" / "fpe" / "model" / "model.safetensors")
        for name in ("whole", "there")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with pytest.raises(RecipeError, match="is not empty"):
        launch(recipe(tmp_path / "there"), resume_from="user/digits")


def test_a_repository_without_a_run(hub: Hub, tmp_path: Path) -> None:
    HfApi().create_repo("user/empty")
    HfApi().create_branch("user/empty", branch="run")
    with pytest.raises(RecipeError, match="holds no run"):
        launch(recipe(tmp_path / "run"), resume_from="user/empty")
