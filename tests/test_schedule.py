from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import fpe_hf
from fpe_hf.errors import ConfigError
from fpe_hf.layers import ElementUp, OpenLayer
from tiny_models import FAMILIES, tiny_inputs, tiny_model
from tiny_moe import MIXTURES, forward, tiny_mixture
from trainers import train

STEPS = 20


def mlp(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10))
    settings = {"split": "learned", "alpha": 4, **config}
    return fpe_hf.widen(model, example_inputs=(torch.randn(1, 16),), **settings)


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_any_model_ends_with_exactly_its_parents_nonzeros(family: str) -> None:
    if family in FAMILIES:
        model = tiny_model(family)
        inputs = tiny_inputs(model)
    else:
        model, inputs = tiny_mixture(family), None
    run = (lambda: model(**inputs)) if inputs is not None else (lambda: forward(model))

    def result() -> list[torch.Tensor]:
        return [value for value in run().values() if isinstance(value, torch.Tensor)]

    with torch.no_grad():
        stock = result()
        fpe_hf.widen(model, alpha=4, split="learned")
        for found, expected in zip(result(), stock, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    schedule = fpe_hf.BudgetSchedule(model, STEPS, optimizer=optimizer)
    for _ in range(STEPS - 5):
        sum(value.square().mean() for value in result() if value.requires_grad).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert not schedule.open
    report = fpe_hf.audit(model, strict=True)
    assert report.total.nonzeros == report.total.parent_nonzeros == schedule.nonzeros
    assert not any(isinstance(module, OpenLayer) for module in model.modules())
    dense = fpe_hf.to_dense(model)
    with torch.no_grad():
        model.eval()
        dense.eval()
        expected = result()
        own, model = model, dense
        for found, value in zip(result(), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)
        model = own
    before = [p.clone() for p in model.parameters()]
    sum(value.square().mean() for value in result() if value.requires_grad).backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2


def test_it_begins_and_ends_when_it_is_told() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = fpe_hf.BudgetSchedule(model, 100, optimizer=optimizer, begin=0.2, end=0.6)
    full = schedule.nonzeros
    counts = []
    for _ in range(100):
        train(model, schedule, optimizer, 1)
        counts.append(schedule.nonzeros)
    assert counts[:20] == [full] * 20
    assert counts[20] < full
    assert counts == sorted(counts, reverse=True)
    assert counts[59:] == [334] * 41
    assert isinstance(model[0], ElementUp)  # type: ignore[index]


def test_batches_that_accelerate_accumulates_are_no_steps() -> None:
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = fpe_hf.BudgetSchedule(model, 10, optimizer=optimizer)
    opened = []
    for _ in range(40):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.randn(4, 16)).square().mean())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        opened.append(schedule.open)
    assert opened == [True] * 27 + [False] * 13


def test_masks_change_as_often_as_they_are_told() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = fpe_hf.BudgetSchedule(model, 100, optimizer=optimizer, begin=0, end=1, every=10)
    counts = []
    for _ in range(100):
        train(model, schedule, optimizer, 1)
        counts.append(schedule.nonzeros)
    changes = [step for step in range(1, 100) if counts[step] != counts[step - 1]]
    assert changes == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99][: len(changes)]


def test_pruned_weights_stay_zero_and_get_no_gradient() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    schedule = fpe_hf.BudgetSchedule(model, 100, optimizer=optimizer)
    train(model, schedule, optimizer, 40)
    layer = model[0]  # type: ignore[index]
    assert 0 < int(layer.mask.sum()) < layer.mask.numel()
    assert not layer.weight[~layer.mask].any()
    model(torch.randn(4, 16)).square().sum().backward()
    assert not layer.weight.grad[~layer.mask].any()
    assert layer.weight.grad[layer.mask].any()


def test_moments_and_groups_follow() -> None:
    model = mlp()
    decayed = [model[0].weight, model[2].weight]  # type: ignore[index]
    biases = [model[0].bias, model[2].bias]  # type: ignore[index]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    schedule = fpe_hf.BudgetSchedule(model, 100, optimizer=optimizer)
    train(model, schedule, optimizer, 69)
    layer = model[0]  # type: ignore[index]
    old = layer.weight
    state = {key: value.clone() for key, value in optimizer.state[old].items()}
    schedule.close()
    closed = model[0]  # type: ignore[index]
    assert optimizer.param_groups[0]["params"] == [closed.weight, model[2].weight]  # type: ignore[index]
    assert optimizer.param_groups[1]["params"] == biases
    assert old not in optimizer.state
    new = optimizer.state[closed.weight]
    assert new["step"] == state["step"]
    dense = closed.dense_weight().detach()
    for key in ("exp_avg", "exp_avg_sq"):
        value = new[key].clone()
        with torch.no_grad():
            closed.weight.copy_(value)
        kept = dense != 0
        assert torch.equal(closed.dense_weight()[kept], state[key].where(layer.mask, 0)[kept])


@pytest.mark.parametrize("moves", ["gradient", "random"])
def test_masks_move_under_a_fixed_budget(moves: str) -> None:
    model = mlp(split="random", open=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = fpe_hf.BudgetSchedule(model, 50, optimizer=optimizer, moves=moves, begin=0, every=5)
    assert schedule.nonzeros == 334
    mask = model[0].mask.clone()  # type: ignore[index]
    for _ in range(35):
        assert schedule.nonzeros == 334
        train(model, schedule, optimizer, 1)
        if schedule.open:
            moved = (model[0].mask != mask).any()  # type: ignore[index]
    assert moved
    assert not schedule.open
    assert fpe_hf.audit(model, strict=True).total.nonzeros == 334


@pytest.mark.parametrize("split", ["random", "learned"])
def test_masks_that_move_keep_the_budget_wherever_training_begins(split: str) -> None:
    model = mlp(split=split, open=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    settings: dict[str, Any] = {"optimizer": optimizer, "moves": "random", "begin": 0.5}
    schedule = fpe_hf.BudgetSchedule(model, 50, start=10, **settings)
    mask = model[0].mask.clone()  # type: ignore[index]
    train(model, schedule, optimizer, 1)
    again = fpe_hf.BudgetSchedule(model, 50, start=11, **settings)
    train(model, again, optimizer, 1)
    assert again.nonzeros == 334
    assert torch.equal(model[0].mask, mask)  # type: ignore[index]
    assert not model[0].weight[~mask].any()  # type: ignore[index]


def test_moves_by_gradient_need_gradients() -> None:
    model = mlp(split="random", open=True)
    schedule = fpe_hf.BudgetSchedule(model, 10, moves="gradient", begin=0, every=1)
    with pytest.raises(ConfigError, match="before they are zeroed"):
        schedule.step()


def test_a_smaller_budget_and_one_child() -> None:
    model = mlp(alpha=1, budget=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = fpe_hf.BudgetSchedule(model, 10, optimizer=optimizer)
    train(model, schedule, optimizer, 10)
    assert fpe_hf.audit(model, strict=True).total.nonzeros == math.floor(334 / 4)


def test_siblings_that_may_share_inputs_stay_open_within_the_budget() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = fpe_hf.BudgetSchedule(model, 40, optimizer=optimizer, disjoint=False)
    train(model, schedule, optimizer, 40)
    assert not schedule.open
    report = fpe_hf.audit(model)
    assert report.total.nonzeros == 334
    assert not report.open
    assert any("share inputs" in breach for breach in report.breaches)


def test_an_optimizer_of_other_weights_is_refused() -> None:
    optimizer = torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"'0\.weight', and 2 of 2 .* after fpe_hf\.widen"):
        fpe_hf.BudgetSchedule(mlp(), 10, optimizer=optimizer)
    frozen = mlp().requires_grad_(False)
    assert fpe_hf.BudgetSchedule(frozen, 10, optimizer=optimizer).open


def test_a_closed_model_has_nothing_to_close(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(split="random")
    schedule = fpe_hf.BudgetSchedule(model, 10)
    assert "widened closed: BudgetSchedule has nothing to do" in caplog.text
    assert not schedule.open
    schedule.step()
    schedule.close()
    with pytest.raises(ConfigError, match="no widened block"):
        fpe_hf.BudgetSchedule(nn.Linear(3, 3), 10)


def test_counts_of_numpy_are_counts_and_it_says_what_it_is() -> None:
    schedule = fpe_hf.BudgetSchedule(
        mlp(), np.int64(10), end=np.float32(0.5), start=np.int64(2), every=np.int64(2)
    )
    assert repr(schedule) == (
        "BudgetSchedule(step=2, begin=1, end=5, power=3, every=2, moves=None, disjoint=True, "
        "open=True)"
    )
    assert [type(own) for own in schedule.state_dict().values()] == [int, list]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps=0 must be an integer from 1"),
        ({"total_steps": 10.0}, "total_steps=10.0"),
        ({"begin": 0.7}, "0 <= begin < end"),
        ({"end": 1.1}, "0 <= begin < end"),
        ({"begin": "0"}, "begin='0' must be a number"),
        ({"power": 0}, "power=0 must be above 0"),
        ({"every": 0}, "every=0"),
        ({"start": -1}, "start=-1 must be an integer from 0"),
        ({"start": "a"}, "start='a'"),
        ({"disjoint": "no"}, "disjoint='no' must be True or False"),
        ({"moves": "gradients"}, "Did you mean 'gradient'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fpe_hf.BudgetSchedule(mlp(), **{"total_steps": 10, **settings})


def test_a_block_that_was_taken_apart_is_refused() -> None:
    model = mlp()
    model[0] = nn.ModuleDict({"original": model[0]})  # type: ignore[index,operator]
    with pytest.raises(ConfigError, match=r"taken apart: 0\.original is away"):
        fpe_hf.BudgetSchedule(model, 10)


def test_two_schedules_of_one_model() -> None:
    """One closes the blocks; the other has nothing left to do, and its optimizer follows."""
    for model in (tiny_model("llama"), tiny_mixture("mixtral")):
        fpe_hf.widen(model, alpha=3, split="learned")
        first, optimizer = fpe_hf.BudgetSchedule(model, 10), torch.optim.SGD(model.parameters())
        second = fpe_hf.BudgetSchedule(model, 10, optimizer=optimizer)
        first.close()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        second.step()
        assert not second.open
        second.close()
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert first.state_dict()["closed"] == second.state_dict()["closed"]
        (group,) = optimizer.param_groups
        assert {id(own) for own in group["params"]} == {id(own) for own in model.parameters()}
        assert fpe_hf.audit(model).ok


def test_a_state_that_closes_the_model_closes_its_schedule() -> None:
    model, closed = mlp(), mlp()
    fpe_hf.BudgetSchedule(closed, 10).close()
    schedule = fpe_hf.BudgetSchedule(model, 10)
    model.load_state_dict(closed.state_dict())
    assert not schedule.open
    schedule.step()
    schedule.close()
    assert [own["layout"] for own in schedule.state_dict()["closed"]] == ["element"]
    for found, wanted in zip(model.parameters(), closed.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_a_schedule_beside_those_of_its_parts() -> None:
    model = fpe_hf.widen(tiny_model("llama"), alpha=2, split="learned")
    whole = fpe_hf.BudgetSchedule(model, 10)
    fpe_hf.BudgetSchedule(model.model.layers[0], 10).close()
    with pytest.raises(ConfigError, match="closed by another BudgetSchedule"):
        whole.step()


@pytest.mark.parametrize("place", ["model", "model.layers", "model.layers.0", "model.layers.0.mlp"])
def test_a_part_is_closed_and_the_whole_is_saved(place: str, tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("llama"), alpha=2, split="learned", seed=7)
    fpe_hf.BudgetSchedule(model.get_submodule(place), 10).close()
    model.save_pretrained(tmp_path)
    loaded = fpe_hf.from_pretrained(tmp_path)
    one, two = model.state_dict(), loaded.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    for own in (model, loaded):
        assert own.config.quantization_config.config["seed"] == 7


@pytest.mark.parametrize(
    "state",
    [
        *(5, {}, {"step": "x", "closed": []}, {"step": -1, "closed": []}),
        *({"step": None, "closed": []}, {"step": 1, "closed": 5}, {"step": 1, "closed": [5]}),
    ],
)
def test_other_states_are_refused(state: Any) -> None:
    with pytest.raises(fpe_hf.FPEError, match=r"no state|must be an object"):
        fpe_hf.BudgetSchedule(mlp(), 10).load_state_dict(state)


def test_states_of_other_schedules_leave_the_model_as_it_is() -> None:
    """Layers that a state asks for are empty until their weights are loaded."""
    for other, settings, message in (
        (mlp(), {"disjoint": False}, "disjoint=False"),
        (mlp(alpha=2), {}, "alpha=2"),
        (mlp(bias="child"), {}, "bias='child'"),
    ):
        schedule = fpe_hf.BudgetSchedule(other, 10, **settings)
        schedule.close()
        model = mlp()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ConfigError, match=message):
            fpe_hf.BudgetSchedule(model, 10).load_state_dict(schedule.state_dict())
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_who_passes_no_optimizer_is_told_that_parameters_are_new(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for optimizer, told in ((None, True), (torch.optim.SGD, False)):
        caplog.clear()
        model = mlp()
        own = optimizer and optimizer(model.parameters(), lr=0.1)
        schedule = fpe_hf.BudgetSchedule(model, 10, optimizer=own)
        schedule.step()
        schedule.close()
        assert ("make a new one" in caplog.text) == told
