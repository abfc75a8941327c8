"""Annealed coupling: siblings that begin equal part, and every model file says how far."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModel, PreTrainedModel

import fpe_hf
from fpe_hf.coupling import learned_couplings, split_off_couplings
from fpe_hf.errors import ConfigError
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_inputs, tiny_model
from tiny_moe import tiny_mixture
from trainers import train

EXACT: dict[str, Any] = {"coupling": 1.0, "fan_out": "partition"}
KINDS = ["bert", "gpt2", "llama", "phi3", "mixtral"]
"""Plain, Conv1D, gated, fused halves, experts."""


def mlp(**config: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10))
    return fpe_hf.widen(model, example_inputs=(torch.randn(1, 16),), **{**EXACT, **config})


def parent(kind: str) -> PreTrainedModel:
    return tiny_mixture(kind) if kind == "mixtral" else tiny_model(kind)


@torch.no_grad()
def result(model: PreTrainedModel) -> Tensor:
    if model.config.model_type == "mixtral":
        found: Tensor = model(torch.arange(5, 37).view(1, -1)).logits
        return found
    # Tokens enough for the block layout to compute the MLP as one operation.
    return model(**tiny_inputs(model, batch=16, length=32))[0]


def couplings(model: nn.Module) -> set[float]:
    return {layer.spec.coupling for _, layer in fpe_layers(model)}


def steps(schedule: fpe_hf.CouplingSchedule, count: int) -> None:
    for _ in range(count):
        schedule.step()


@pytest.mark.parametrize("fan_out", ["partition", "replicate"])
@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_its_way_computes_what_one_of_that_coupling_does(
    kind: str, layout: str, fan_out: str
) -> None:
    dense = parent(kind)
    options = {"layout": layout, "fan_out": fan_out}
    model = fpe_hf.widen(copy.deepcopy(dense), coupling=1.0, **options)
    result(model)  # whatever is derived has been
    schedule = fpe_hf.CouplingSchedule(model, 8)
    for count, coupling in ((2, 0.5), (2, 0.0)):
        steps(schedule, count)
        fresh = fpe_hf.widen(copy.deepcopy(dense), coupling=coupling, **options)
        assert torch.equal(result(model), result(fresh))
    assert schedule.done


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("kind", ["bert", "mixtral"])
def test_a_model_on_its_way_is_saved_as_it_is(kind: str, layout: str, tmp_path: Path) -> None:
    model = fpe_hf.widen(parent(kind), layout=layout, **EXACT)
    schedule = fpe_hf.CouplingSchedule(model, 8)
    for count in (1, 3):
        steps(schedule, count)
        folder = tmp_path / str(count)
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder)
        assert couplings(loaded) == couplings(model)
        assert torch.equal(result(loaded), result(model))
    assert {block["coupling"] for block in model.config.quantization_config.blocks} == {0.0}


@given(
    total=st.integers(1, 12),
    begin=st.floats(0, 0.99),
    share=st.floats(0.01, 1),
    shape=st.sampled_from(["linear", "cosine"]),
    to=st.sampled_from([0.0, 0.25]),
)
def test_coupling_never_rises_and_ends_exactly(
    total: int, begin: float, share: float, shape: str, to: float
) -> None:
    widened, end = mlp(), begin + share * (1 - begin)
    model = copy.deepcopy(widened)
    if not begin < end:
        return
    settings: dict[str, Any] = {"begin": begin, "end": end, "shape": shape, "to": to}
    schedule = fpe_hf.CouplingSchedule(model, total, **settings)
    before = 1.0
    for step in range(1, total + 1):
        assert schedule.done == (step - 1 >= max(1, round(end * total)))
        schedule.step()
        (now,) = couplings(model)
        assert to <= now <= before
        assert now == 1.0 or step > round(begin * total) or schedule.done
        again = copy.deepcopy(widened)
        fpe_hf.CouplingSchedule(again, total, start=step, **settings)
        assert couplings(again) == {now}
        before = now
    assert now == to or end < 1
    assert schedule.done == (total >= max(1, round(end * total)))
    assert not schedule.done or now == to


@pytest.mark.parametrize(("shape", "quarter"), [("linear", 0.75), ("cosine", (1 + 0.5**0.5) / 2)])
def test_shapes(shape: str, quarter: float) -> None:
    model = mlp()
    steps(fpe_hf.CouplingSchedule(model, 8, begin=0.5, end=1.0, shape=shape), 5)
    assert math.isclose(*couplings(model), quarter)


def test_siblings_part_when_the_coupling_falls_and_not_without() -> None:
    fixed, falling = mlp(), mlp()
    idle = fpe_hf.CouplingSchedule(mlp(), 20)
    distances = []
    for model, schedule in ((fixed, idle), (falling, fpe_hf.CouplingSchedule(falling, 20))):
        train(model, schedule, torch.optim.Adam(model.parameters(), lr=0.01), 20)
        layer = next(layer for _, layer in fpe_layers(model))
        rows = layer.dense_weight().detach()[layer.children_places()]
        distances.append(float((rows[0] - rows[1]).abs().max()))
    assert distances[0] == 0.0
    assert distances[1] > 0.1


def test_training_goes_on_from_its_states() -> None:
    whole, resumed = mlp(), mlp()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    schedule = fpe_hf.CouplingSchedule(whole, 20)
    train(whole, schedule, optimizer, 6)
    states = copy.deepcopy([own.state_dict() for own in (schedule, whole, optimizer)])
    train(whole, schedule, optimizer, 8)
    optimizer = torch.optim.Adam(resumed.parameters(), lr=0.01)
    schedule = fpe_hf.CouplingSchedule(resumed, 20)
    for own, state in zip((schedule, resumed, optimizer), states, strict=True):
        own.load_state_dict(state)
    train(resumed, schedule, optimizer, 8)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert couplings(whole) == couplings(resumed)
    with pytest.raises(ConfigError, match="no state of a CouplingSchedule"):
        schedule.load_state_dict({"step": 1, "closed": []})


def test_a_model_that_was_annealed_before_stays_as_it_is(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert"), **EXACT)
    steps(fpe_hf.CouplingSchedule(model, 4, end=1.0), 4)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert fpe_hf.CouplingSchedule(loaded, 10).done
    assert couplings(loaded) == {0.0}
    # On its way, it goes on from the coupling that it was widened with.
    model = fpe_hf.widen(tiny_model("bert"), **EXACT)
    steps(fpe_hf.CouplingSchedule(model, 4, end=1.0), 1)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    steps(fpe_hf.CouplingSchedule(loaded, 4, end=1.0, start=1), 1)
    assert couplings(loaded) == {0.5}


def test_blocks_that_are_coupled_by_less_stay_as_they_are() -> None:
    model = fpe_hf.widen(tiny_model("bert"), **EXACT, overrides={"*.layer.0.*": {"coupling": 0.25}})
    schedule = fpe_hf.CouplingSchedule(model, 4, to=0.5)
    steps(schedule, 1)
    assert couplings(model) == {0.25, 0.75}
    steps(schedule, 1)
    assert couplings(model) == {0.25, 0.5}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"coupling": 0.0}, r"no block of the model has a coupling above to=0\.0: .*coupling=1\.0"),
        ({"learn_coupling": True}, r"learns its coupling: .*learn_coupling=False"),
        ({"split": "learned", "coupling": 0.0, "fan_out": "replicate"}, "coupling above"),
    ],
)
def test_models_with_nothing_to_anneal_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fpe_hf.CouplingSchedule(mlp(**config), 10)
    with pytest.raises(ConfigError, match="no widened block"):
        fpe_hf.CouplingSchedule(nn.Linear(3, 3), 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps=0 must be an integer from 1"),
        ({"begin": 0.7}, "0 <= begin < end"),
        ({"shape": "cosin"}, "Did you mean 'cosine'"),
        ({"to": 1.0}, r"to=1\.0 must be a coupling from 0 to below 1"),
        ({"to": "0"}, "to='0' must be a number"),
        ({"start": -1}, "start=-1 must be an integer from 0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    model = mlp()
    with pytest.raises(ConfigError, match=message):
        fpe_hf.CouplingSchedule(model, **{"total_steps": 10, **settings})
    assert couplings(model) == {1.0}


def test_counts_of_numpy_are_counts_and_it_says_what_it_is() -> None:
    schedule = fpe_hf.CouplingSchedule(mlp(), np.int64(10), start=np.int64(3))
    assert repr(schedule) == (
        "CouplingSchedule(step=3, begin=0, end=5, shape='linear', to=0.0, done=False)"
    )
    assert schedule.state_dict() == {"step": 3}
    assert type(schedule.state_dict()["step"]) is int


@pytest.mark.parametrize("layout", ["element", "block"])
def test_a_compiled_model_is_annealed_as_a_plain_one(layout: str) -> None:
    """Without being compiled anew at every step."""
    plain, model = mlp(layout=layout), mlp(layout=layout)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    schedules = [fpe_hf.CouplingSchedule(own, 20, end=1.0) for own in (plain, compiled)]
    x = torch.randn(4, 16)
    for _ in range(12):
        torch.testing.assert_close(compiled(x), plain(x))
        for schedule in schedules:
            schedule.step()
    assert counter.frame_count <= 3


def test_couplings_are_trained_at_a_rate_of_their_own() -> None:
    model = mlp(learn_coupling=True)
    groups = fpe_hf.parameter_groups(model, 1e-3, coupling_factor=50, weight_decay=0.1)
    others, own = groups
    assert own["params"] == learned_couplings(model)
    assert (own["lr"], own["weight_decay"]) == (0.05, 0.0)
    assert (others["lr"], others["weight_decay"]) == (1e-3, 0.1)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
    idle = fpe_hf.CouplingSchedule(mlp(), 5)
    train(model, idle, torch.optim.Adam(groups), 5)
    assert float((own["params"][0].detach() - 1.0).abs().max()) > 0.1
    with pytest.raises(ConfigError, match=r"no learned coupling to train: .*learn_coupling=True"):
        fpe_hf.parameter_groups(mlp(), 1e-3, coupling_factor=50)
    with pytest.raises(ConfigError, match="coupling_factor=0 must be above 0"):
        fpe_hf.parameter_groups(model, 1e-3, coupling_factor=0)


@pytest.mark.parametrize("learned", [True, False])
def test_an_optimizers_couplings_are_split_off(learned: bool) -> None:
    model = mlp(learn_coupling=learned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    split_off_couplings(optimizer, model, 10)
    first, last = optimizer.param_groups
    assert last["params"] == learned_couplings(model)
    assert (last["lr"], last["weight_decay"]) == (1e-2, 0.0)
    assert len(first["params"]) == 4
    train(model, fpe_hf.CouplingSchedule(mlp(), 1), optimizer, 1)
