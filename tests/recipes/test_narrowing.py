from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fpe_hf.config import FPEConfig
from fpe_hf.errors import RecipeError
from fpe_hf.recipes.narrowing import apply_narrow, plan_narrow, refit
from tiny_models import tiny_model

HALF = FPEConfig(budget=0.5)


def narrowed(
    model: nn.Module, batches: list[dict[str, Tensor]], config: FPEConfig = HALF
) -> nn.Module:
    plans = plan_narrow(model, config, batches)
    other = copy.deepcopy(model)
    apply_narrow(other, plans, fitted=True)
    return other


def mlp(inputs: int = 6, hidden: int = 8, outputs: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def batches(inputs: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input": torch.randn(16, inputs, generator=generator)} for _ in range(4)]


def test_neurons_that_never_fire_are_the_first_to_go() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].bias[[1, 2, 5]] = -100.0
    narrow = narrowed(model, batches(), FPEConfig(budget=5.5 / 8))
    assert narrow[0].weight.shape == (5, 6)
    torch.testing.assert_close(narrow(**batches()[0]), model(**batches()[0]), rtol=1e-3, atol=1e-3)


def test_what_twins_wrote_is_written_by_those_that_stay() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[4:] = model[0].weight[:4]
        model[0].bias[4:] = model[0].bias[:4]
        model[2].weight[:, 4:] = model[2].weight[:, :4] * 0.2
    narrow = narrowed(model, batches(), FPEConfig(budget=0.6))
    assert torch.equal(narrow[0].weight, model[0].weight[:4])
    torch.testing.assert_close(narrow(**batches()[0]), model(**batches()[0]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", ["bert_classifier", "gpt2", "llama"])
def test_real_models_run_and_keep_their_budget(family: str) -> None:
    model = tiny_model(family).eval()
    ids = {"input_ids": torch.arange(5, 17).reshape(2, 6)}
    narrow = narrowed(model, [ids])
    assert narrow(**ids)[0].isfinite().all()
    whole, less = (sum(p.numel() for p in m.parameters()) for m in (model, narrow))
    assert less < whole


def test_frozen_parameters_stay_frozen() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    narrow = narrowed(model, batches())
    assert [p.requires_grad for p in narrow.parameters()] == [False, True, True, True]


def test_optimizer_state_is_cut_but_not_fitted() -> None:
    model = mlp()
    plans = plan_narrow(model, HALF, batches())
    apply_narrow(holder := copy.deepcopy(model), plans, fitted=False)
    assert torch.equal(holder[2].weight, model[2].weight[:, plans[0].kept])


def test_fused_blocks_are_refused() -> None:
    model = tiny_model("phi3")
    with pytest.raises(RecipeError, match="'narrow-dense' cannot be made for the block"):
        plan_narrow(model, HALF, [{"input_ids": torch.arange(5, 11)[None]}])


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.05, 0.999))
def test_never_above_the_budget(inputs: int, outputs: int, budget: float) -> None:
    model = mlp(inputs + 1, 8, outputs)
    whole = sum(p.numel() for p in model.parameters())
    plan = plan_narrow(model, FPEConfig(budget=budget), batches(inputs + 1))[0]
    each = inputs + 1 + 1 + outputs
    assert len(plan.kept) * each + outputs <= max(budget * whole, each + outputs)
    assert (len(plan.kept) + 1) * each + outputs > budget * whole


def test_a_fit_without_activations_leaves_the_weights() -> None:
    down, kept = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2])
    fitted = refit(down, torch.zeros(4, 4, dtype=torch.float64), kept)
    torch.testing.assert_close(fitted, down[:, kept])
