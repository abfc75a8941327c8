"""Two processes compute what one computes: DDP through a recipe and alone, FSDP2, broadcasts.

Wider than 256, so that indices need more than a byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fpe_hf
from fpe_hf.recipes.launching import accelerate_config
from tiny_models import tiny_model
from two_processes import free_port, in_two_processes

RECIPE = """
model:
  task: image-classification
  config:
    model_type: vit
    hidden_size: 272
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 2
    image_size: 8
    patch_size: 4
    num_channels: 1
data: {source: digits, max_train_samples: 64, max_eval_samples: 16}
widen: {alpha: 2, layout: block, at: {step: 2}}
train:
  max_steps: 4
  per_device_train_batch_size: 8
  learning_rate: 1e-3
  use_cpu: true
  disable_tqdm: true
output: {folder: run}
"""


LEARNED = RECIPE.replace("layout: block", "split: learned, schedule: {begin: 0.1, end: 0.6}")
"""Open from step 2 on; closed from step 3 on."""


def launch(folder: Path, recipe: str, *words: str) -> dict[str, Any]:
    """Runs a recipe by a command; returns the weights of both arms."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert result.stdout.count("seed 0, fpe") == 1, "only the main process speaks"
    place = folder / "run" / "seed-0"
    return {a: load_file(place / a / "model" / "model.safetensors") for a in ("dense", "fpe")}


@pytest.mark.parametrize("recipe", [RECIPE, LEARNED], ids=["block", "learned"])
def test_two_processes_train_as_one(recipe: str, tmp_path: Path) -> None:
    config = str(accelerate_config("ddp-cpu"))
    two = launch(
        tmp_path / "two",
        recipe,
        "accelerate.commands.launch",
        f"--config_file={config}",
        f"--main_process_port={free_port()}",
        "-m",
        "fpe_hf.recipes",
        "recipe.yaml",
        "train.per_device_train_batch_size=4",
    )
    one = launch(tmp_path / "one", recipe, "fpe_hf.recipes", "recipe.yaml")
    for arm, weights in one.items():
        assert weights.keys() == two[arm].keys()
        for name, tensor in weights.items():
            if not name.endswith("checksum"):
                torch.testing.assert_close(two[arm][name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["element", "block"])
def test_fsdp2_computes_and_saves_what_one_process_does(layout: str, tmp_path: Path) -> None:
    ids = torch.randint(5, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])

    def widened() -> Any:
        model = tiny_model("bert_classifier").eval()
        return fpe_hf.widen(model, layout=layout, learn_coupling=True, coupling=0.5)

    def step(model: Any, rows: slice) -> None:
        model(input_ids=ids[rows], labels=labels[rows]).loss.backward()

    def work(rank: int) -> None:
        model = widened()
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.bert.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        step(model, slice(2 * rank, 2 * rank + 2))
        gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            torch.save(gradients, tmp_path / "gradients.pt")
            model.save_pretrained(tmp_path / "saved", state_dict=whole)

    in_two_processes(work, tmp_path / "rendezvous")
    alone = widened()
    step(alone, slice(None))
    gradients = torch.load(tmp_path / "gradients.pt")
    assert gradients.keys() == {name for name, _ in alone.named_parameters()}
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    loaded = type(alone).from_pretrained(tmp_path / "saved").eval()
    fpe_hf.audit(loaded, strict=True)
    torch.testing.assert_close(
        loaded(input_ids=ids).logits, alone(input_ids=ids).logits, rtol=1e-4, atol=1e-5
    )


def wide_mlp(seed: int = 0, **options: Any) -> nn.Module:
    """A widened MLP that reads and writes more channels than a byte can number."""
    torch.manual_seed(seed)
    parent = nn.Sequential(nn.Linear(272, 24), nn.GELU(), nn.Linear(24, 272))
    return fpe_hf.widen(parent, example_inputs=(torch.randn(1, 272),), **options)


@pytest.mark.parametrize(
    "options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str
)
@pytest.mark.parametrize("layout", ["element", "block"])
def test_ddp_computes_what_one_process_does(
    layout: str, options: dict[str, bool], tmp_path: Path
) -> None:
    x = torch.randn(8, 272, generator=torch.Generator().manual_seed(0))

    def train(model: nn.Module, rows: slice) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(x[rows]).square().mean().backward()
            optimizer.step()

    def work(rank: int) -> None:
        model = wide_mlp(layout=layout, fan_out="partition")
        train(DistributedDataParallel(model, **options), slice(4 * rank, 4 * rank + 4))
        if rank == 0:
            torch.save(model.state_dict(), tmp_path / "two.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    alone = wide_mlp(layout=layout, fan_out="partition")
    train(alone, slice(None))
    for name, tensor in torch.load(tmp_path / "two.pt").items():
        if not name.endswith("checksum"):
            torch.testing.assert_close(alone.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["element", "block"])
def test_a_state_dict_is_broadcast_from_the_first_process(layout: str, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model, own = wide_mlp(seed=rank, layout=layout, fan_out="partition"), {}
        if rank == 0:
            own = model.state_dict()
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, own, options=options)
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
