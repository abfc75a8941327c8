"""A run that someone has tampered with is not gone on with, wherever it came from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback
from typer.testing import CliRunner

from fpe_hf.cli.app import app
from fpe_hf.errors import CheckpointError
from fpe_hf.recipes import running
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.training import CheckOptimizer

RECIPE = """
model:
  task: feature-classification
  config: {{model_type: mlp_classifier, hidden_sizes: [8]}}
data: {{source: digits, max_train_samples: 96, max_eval_samples: 32}}
widen: {{targets: [layers], layout: {layout}}}
train:
  max_steps: 4
  per_device_train_batch_size: 16
  save_strategy: steps
  save_steps: 2
  disable_tqdm: true
  use_cpu: true
compare: {{arms: [dense, fpe]}}
output: {{folder: {folder}}}
"""
CHECKPOINT = Path("seed-0/fpe/checkpoint-2")
UP = "layers.0"


class _Fails(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and Path(args.output_dir).name == "fpe":
            raise RuntimeError("as asked")


@pytest.fixture(scope="module", params=["element", "block"])
def interrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    recipe = parse_recipe(RECIPE.format(layout=request.param, folder=folder))
    with pytest.raises(RuntimeError, match="as asked"):
        running.run_recipe(recipe, callbacks=[_Fails()])
    return folder, request.param


def change_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def tamper(checkpoint: Path) -> None:
        file = checkpoint / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return tamper


def one_weight(tensors: dict[str, Any]) -> None:
    tensors[f"{UP}.weight"][0] += 1000


def indices(tensors: dict[str, Any]) -> None:
    """And their checksum is as if nobody had summed them up."""
    for name in tensors:
        if name.endswith((".inputs", ".keep", ".outputs")):
            tensors[name].fill_(127)
            tensors[name.rpartition(".")[0] + ".checksum"].zero_()


def no_checksum(tensors: dict[str, Any]) -> None:
    one_weight(tensors)
    del tensors[f"{UP}.checksum"]


def state_of(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def tamper(checkpoint: Path) -> None:
        saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        for own in saved["state"].values():
            own["exp_avg"] = change(own["exp_avg"])
        torch.save(saved, checkpoint / "optimizer.pt")

    return tamper


def two_ways(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").write_text("{}")


TAMPERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight": (change_weights(one_weight), "do not match their checksum"),
    "indices": (change_weights(indices), r"out of range|keeps|bits set"),
    "no checksum": (change_weights(no_checksum), "checksum' is missing"),
    "two ways": (two_ways, "holds both|no weight_map"),
    "short moments": (state_of(lambda t: t.flatten()[:1]), r"'exp_avg' of shape \(1,\)"),
    "one moment": (state_of(lambda t: t.flatten()[0].clone()), r"'exp_avg' of shape \(\)"),
    "spread moments": (state_of(lambda t: t.flatten()[:1].expand(t.shape)), "'exp_avg' of shape"),
}


@pytest.mark.parametrize("tamper", TAMPERS)
def test_a_tampered_checkpoint_is_refused(
    tamper: str, interrupted: tuple[Path, str], tmp_path: Path
) -> None:
    original, layout = interrupted
    folder = Path(shutil.copytree(original, tmp_path / "run"))
    change, message = TAMPERS[tamper]
    change(folder / CHECKPOINT)
    recipe = parse_recipe(RECIPE.format(layout=layout, folder=folder))
    with pytest.raises(CheckpointError, match=message):
        running.run_recipe(recipe, resume=True)
    assert not (folder / "results.json").exists()


def test_the_command_says_so(interrupted: tuple[Path, str], tmp_path: Path) -> None:
    original, layout = interrupted
    folder = Path(shutil.copytree(original, tmp_path / "run"))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(layout=layout, folder=folder))
    TAMPERS["a weight"][0](folder / CHECKPOINT)
    result = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--resume"])
    assert result.exit_code != 0
    assert isinstance(result.exception, (CheckpointError, SystemExit))
    assert not (folder / "results.json").exists()


def test_what_is_whole_is_gone_on_with(interrupted: tuple[Path, str], tmp_path: Path) -> None:
    original, layout = interrupted
    folder = Path(shutil.copytree(original, tmp_path / "run"))
    running.run_recipe(parse_recipe(RECIPE.format(layout=layout, folder=folder)), resume=True)
    assert (folder / "results.json").exists()


@pytest.mark.parametrize(
    "make",
    [
        *(
            "Adam",
            "AdamW",
            "NAdam",
            "RAdam",
            "Adamax",
            "SGD",
            "RMSprop",
            "Adagrad",
            "Adadelta",
            "ASGD",
        ),
        *("Rprop", "Adafactor"),
    ],
)
def test_every_optimizer_of_torch_is_accepted(make: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = getattr(torch.optim, make)(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    CheckOptimizer().on_train_begin(None, None, None, optimizer=optimizer)
