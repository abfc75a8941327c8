"""The other way to spend a smaller budget: a parent of fewer neurons, dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FPEConfig
from ..discovery import MLPBlock, find_mlps
from ..linear import bias_of, make_linear, stock_of, weight_of
from ..modules import take_weights
from ..selection import select_blocks
from .controls import check_plain

_RIDGE = 1e-3
"""Of the re-fit, relative to the mean square of a neuron's activations."""


@dataclass(frozen=True)
class NarrowPlan:
    """What is left of a block.

    Attributes:
        block: The block.
        kept: The neurons that stay, int64, in their order.
        down: The re-fitted down projection `[outputs, kept]`.
    """

    block: MLPBlock
    kept: Tensor
    down: Tensor


def plan_narrow(
    model: nn.Module, config: FPEConfig, batches: Sequence[Mapping[str, Any]]
) -> list[NarrowPlan]:
    """Chooses the neurons of every block that `config` would widen, as many as its budget pays for.

    Those stay that matter most to the outputs: by root mean square of the activation on `batches`,
    times the norm of the outgoing weights. The down projection is fitted to the outputs of all
    neurons by least squares; the ridge draws it to the outgoing weights as they were.

    Args:
        model: The dense model; it stays as it is.
        config: What to narrow, and the budget.
        batches: Inputs of a few forward passes.

    Raises:
        RecipeError: A block is of a kind that cannot be narrowed.
    """
    selected = select_blocks(find_mlps(model, batches[0]), config)
    for block, _ in selected:
        check_plain(model, block, "narrow-dense")
    grams = _grams(model, [block.down for block, _ in selected], batches)
    return [_plan(model, block, own, grams[block.down]) for block, own in selected]


def _grams(
    model: nn.Module, downs: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Name of a down projection -> mean products of its inputs, float64 `[hidden, hidden]`."""
    sums: dict[str, Any] = dict.fromkeys(downs, 0)
    tokens = dict.fromkeys(downs, 0)

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2).double()
            sums[name] = sums[name] + rows.T @ rows
            tokens[name] += len(rows)

        return model.get_submodule(name).register_forward_pre_hook(note)

    handles = [watch(name) for name in downs]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: total / tokens[name] for name, total in sums.items()}


def _plan(model: nn.Module, block: MLPBlock, config: FPEConfig, gram: Tensor) -> NarrowPlan:
    weights = take_weights(model, block)
    outputs = 0 if weights.down_bias is None else block.out_features
    biases = sum(bias is not None for bias in weights.up_biases)
    each = block.sources * block.in_features + biases + block.out_features
    budget = config.budget * (block.parents * each + outputs) - outputs
    down = weights.down.double()
    importance = gram.diagonal().clamp(min=0).sqrt() * down.norm(dim=0)
    kept = importance.topk(max(1, int(budget // each))).indices.sort().values
    fitted = refit(down, gram, kept)
    return NarrowPlan(block, kept, fitted.to(weights.down.dtype))


def refit(down: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """The outgoing weights of the kept neurons that come nearest to the outputs of all.

    Args:
        down: `[outputs, hidden]`.
        gram: Mean products of the activations `[hidden, hidden]`.
        kept: int64 `[kept]`.
    """
    own = gram[kept][:, kept]
    ridge = (_RIDGE * own.diagonal().mean()).clamp(min=torch.finfo(own.dtype).tiny)
    system = own + ridge * torch.eye(len(kept), dtype=own.dtype, device=own.device)
    wanted = down @ gram[:, kept] + ridge * down[:, kept]
    fitted: Tensor = torch.linalg.solve(system, wanted.T).T
    return fitted


def apply_narrow(model: nn.Module, plans: Sequence[NarrowPlan], *, fitted: bool) -> None:
    """Puts smaller projections in place, in any model of the structure of the planned one.

    Args:
        model: The model.
        plans: Of its blocks.
        fitted: Whether the down projections are the re-fitted ones, or the model's own columns.
    """
    for plan in plans:
        for name in plan.block.ups:
            module = model.get_submodule(name)
            bias = bias_of(module)
            rows = None if bias is None else bias[plan.kept].clone()
            _put(model, name, module, weight_of(module)[plan.kept].clone(), rows)
        module = model.get_submodule(plan.block.down)
        weight = plan.down if fitted else weight_of(module)[:, plan.kept]
        bias = bias_of(module)
        bias = None if bias is None else bias.clone()
        _put(model, plan.block.down, module, weight.clone(), bias)


def _put(model: nn.Module, name: str, old: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    new = make_linear(weight.contiguous(), bias, stock_of(old) or "linear")
    for key, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(key).requires_grad)
    model.set_submodule(name, new)
