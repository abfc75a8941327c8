"""A budget closes in two processes as in one; where parameters are in parts it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fpe_hf
from fpe_hf.errors import ConfigError
from fpe_hf.modules import fpe_layers
from tiny_moe import labels, tiny_mixture
from two_processes import free_port, in_two_processes

STEPS, CLOSING = 10, 7  # end=0.7
ROWS = 16


def opened() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    return fpe_hf.widen(model, alpha=3, split="learned")


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 12, generator=draw)
    return x, torch.randint(0, 3, (ROWS,), generator=draw)


def train(
    model: Any, watched: Any, rows: slice, accumulation: int = 1, **options: Any
) -> fpe_hf.BudgetSchedule:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    schedule = fpe_hf.BudgetSchedule(watched, STEPS, optimizer=optimizer, **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulation):
            x, y = batch(accumulation * step + part)
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    assert not schedule.open
    return schedule


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}


@pytest.mark.parametrize("given", ["wrapper", "model"])
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_close_a_budget_as_one_does(way: str, given: str, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model = opened()
        wrapped = DistributedDataParallel(model, **WAYS[way])
        wrapped.register_comm_hook(None, allreduce_hook)
        half = ROWS // 2
        watched = wrapped if given == "wrapper" else model
        train(wrapped, watched, slice(half * rank, half * (rank + 1)))
        assert len(wrapped._comm_hooks) == 1
        fpe_hf.audit(model, strict=True)
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    alone = opened()
    train(alone, alone, slice(None))
    for name, tensor in alone.state_dict().items():
        if not name.endswith("checksum"):
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", ["before", "between", "after"])
def test_two_processes_resume_after_closing(made: str, tmp_path: Path) -> None:
    """The schedule may be made before the states are loaded, or after."""
    half = ROWS // 2
    alone = opened()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.2, momentum=0.9)
    schedule = fpe_hf.BudgetSchedule(alone, STEPS, optimizer=optimizer)

    def step(model: Any, optimizer: Any, schedule: Any, number: int, rows: slice) -> None:
        x, y = batch(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()

    for number in range(CLOSING):
        step(alone, optimizer, schedule, number, slice(None))
    parts = {"model": alone, "optimizer": optimizer, "schedule": schedule}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "state.pt")

    def work(rank: int) -> None:
        state = torch.load(tmp_path / "state.pt")
        model = opened()
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.2, momentum=0.9)
        budget = {"optimizer": optimizer, "start": CLOSING}
        if made == "before":
            schedule = fpe_hf.BudgetSchedule(wrapped, STEPS, **budget)
        model.load_state_dict(state["model"])
        if made == "between":
            schedule = fpe_hf.BudgetSchedule(wrapped, STEPS, **budget)
        optimizer.load_state_dict(state["optimizer"])
        if made == "after":
            schedule = fpe_hf.BudgetSchedule(wrapped, STEPS, **budget)
        else:
            schedule.load_state_dict(state["schedule"])
        for number in range(CLOSING, STEPS):
            step(wrapped, optimizer, schedule, number, slice(half * rank, half * (rank + 1)))
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    for number in range(CLOSING, STEPS):
        step(alone, optimizer, schedule, number, slice(None))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, tensor in alone.state_dict().items():
        if not name.endswith("checksum"):
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


def test_accumulated_gradients_in_two_processes(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model = opened()
        half = ROWS // 2
        wrapped = DistributedDataParallel(model)
        train(wrapped, wrapped, slice(half * rank, half * (rank + 1)), accumulation=2)
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    alone = opened()
    train(alone, alone, slice(None), accumulation=2)
    for name, tensor in alone.state_dict().items():
        if not name.endswith("checksum"):
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("moves", ["gradient", "random"])
def test_masks_move_alike_in_two_processes(moves: str, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model = opened()
        half = ROWS // 2
        wrapped = DistributedDataParallel(model)
        train(wrapped, wrapped, slice(half * rank, half * (rank + 1)), moves=moves)
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_processes_take_the_decision_of_the_first(tmp_path: Path) -> None:
    """Though their weights differ by what floats make of sums."""

    def work(rank: int) -> None:
        model = opened()
        wrapped = DistributedDataParallel(model)
        schedule = fpe_hf.BudgetSchedule(wrapped, STEPS)
        with torch.no_grad():
            for _, layer in fpe_layers(model):
                layer.weight.add_(0.1 * rank * torch.randn_like(layer.weight))
        schedule.close()
        state = {n: t for n, t in model.state_dict().items() if "weight" not in n}
        torch.save({n: t for n, t in state.items() if "checksum" not in n}, tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_experts_close_in_two_processes(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model = fpe_hf.widen(tiny_mixture("mixtral"), alpha=2, split="learned")
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        schedule = fpe_hf.BudgetSchedule(wrapped, 4, optimizer=optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            ids = labels()[rank : rank + 1]
            wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            schedule.step()
        fpe_hf.audit(model, strict=True)
        torch.save(model.state_dict(), tmp_path / f"{rank}.pt")

    in_two_processes(work, tmp_path / "rendezvous")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("way", ["fully_shard", "FSDP", "FSDP, original parameters", "one process"])
def test_parameters_in_parts_are_refused_before_training(way: str, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model: Any = opened()
        if way == "fully_shard":
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        else:
            options: dict[str, Any] = {"use_orig_params": way != "FSDP"}
            if way == "one process":
                options["sharding_strategy"] = torch.distributed.fsdp.ShardingStrategy.NO_SHARD
            model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)
        with pytest.raises(ConfigError, match="in parts"):
            fpe_hf.BudgetSchedule(model, STEPS)

    in_two_processes(work, tmp_path / "rendezvous")


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_open_processes import *
from transformers import Trainer, TrainingArguments, set_seed
from tiny_models import VOCAB, tiny_model

set_seed(0)
model = fpe_hf.widen(tiny_model("bert_classifier"), alpha=3, split="learned")
ids = torch.randint(5, VOCAB, (64, 6), generator=torch.Generator().manual_seed(0))
rows = [dict(input_ids=row.tolist(), labels=int(row[0]) % 5) for row in ids]
arguments = TrainingArguments(
    output_dir={folder!r}, max_steps=10, learning_rate=1e-3, use_cpu=True, report_to=[],
    per_device_train_batch_size=4, save_strategy="no", logging_strategy="no",
    optim="adamw_torch", disable_tqdm=True, ddp_backend="gloo",
)
budget = fpe_hf.BudgetCallback()
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[budget])
trainer.train()
assert not budget.schedule.open
fpe_hf.audit(model, strict=True)
trained = {{own for group in trainer.optimizer.param_groups for own in group["params"]}}
assert trained == set(model.parameters())
torch.save(model.state_dict(), {folder!r} + f"/{{arguments.process_index}}.pt")
"""


@pytest.mark.slow
def test_the_trainer_closes_a_budget_in_two_processes(tmp_path: Path) -> None:
    place = tmp_path / "script.py"
    place.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    result = subprocess.run(
        [sys.executable, *launcher, str(place)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
