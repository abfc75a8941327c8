"""Gated models whose gate and up projection divide the inputs of their parents differently."""

from __future__ import annotations

from typing import Any

import torch

import fpe_hf
from fpe_hf.layers import BlockUp, ElementUp
from fpe_hf.packing import pack, pack_states
from tiny_models import tiny_model

WAYS: list[dict[str, Any]] = [{"split": "feature"}, {"layout": "block"}, {"split": "learned"}]


def disagreeing(**way: Any) -> Any:
    """A Llama in whose first block two children of each parent have changed gates."""
    model: Any = fpe_hf.widen(tiny_model("llama"), alpha=2, **way)
    if way.get("split") == "learned":
        schedule = fpe_hf.BudgetSchedule(model, 10)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        schedule.close()
    _exchange(model.model.layers[0].mlp.gate_proj)
    return model


def _exchange(gate: Any) -> None:
    if isinstance(gate, BlockUp):
        gate.inputs = gate.inputs.flip(1)
    elif isinstance(gate, ElementUp) and gate.codes is not None:
        states = gate._states()
        gate.codes = pack_states(torch.where(states < 2, 1 - states, 2), 3)
    else:
        gate.owner = pack(1 - gate._codes(), gate.bits)
    gate.settle()
