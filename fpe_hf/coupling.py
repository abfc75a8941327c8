"""`CouplingSchedule`: anneals the coupling of siblings while a model trains, in anybody's loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .checkpoint.saving import refresh_plan
from .errors import ConfigError, did_you_mean
from .layers import UpLayer
from .modules import fpe_layers
from .planning import BlockSpec
from .progress import check_count, check_real, check_span, span

SHAPES = ("linear", "cosine")


class CouplingSchedule:
    """Anneals the fixed coupling of a model's widened blocks in training.

    With `coupling=1.0` siblings are equal, and get equal gradients, for ever: the model trains as
    its dense parent would. This lets them part: from `begin` to `end` of the steps the coupling of
    every block falls from what it was widened with to `to`. Blocks that are coupled by `to` or
    less, or that learn their coupling, stay as they are.

    Args:
        model: A model with widened blocks; wrapped, compiled, or as it is.
        total_steps: Optimizer steps of the whole training.
        begin: When the coupling begins to fall, as a share of `total_steps`.
        end: When it has fallen.
        shape: Of the fall: `"linear"`, or `"cosine"` (slow at first and at last).
        to: What it falls to.
        start: Steps that the optimizer has made before.

    Attributes:
        done: Whether the coupling is what it was to become.

    Raises:
        ConfigError: A value is not accepted, or no block has a fixed coupling above `to`.

    Example:
        >>> model = fpe_hf.widen(model, fan_out="partition", coupling=1.0)
        >>> schedule = fpe_hf.CouplingSchedule(model, total_steps)
        >>> for batch in batches:
        ...     model(**batch).loss.backward()
        ...     optimizer.step()
        ...     schedule.step()
        ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        begin: float = 0.0,
        end: float = 0.5,
        shape: str = "linear",
        to: float = 0.0,
        start: int = 0,
    ) -> None:
        self.check(total_steps, begin, end, shape, to, start)
        self._model, self._shape, self._to = model, shape, float(to)
        self._begin, self._end = span(total_steps, begin, end)
        own = {name: layer for name, layer in fpe_layers(model) if self._anneals(layer.spec)}
        if not own:
            raise ConfigError(_nothing_to_anneal(model, self._to))
        self._layers = list(own.values())
        self._step = int(start)
        if all(layer.spec.coupling == self._to for layer in self._layers):
            self._step = max(self._step, self._end)  # a training before this one has annealed it
        self._apply()

    @property
    def done(self) -> bool:
        """Whether the coupling is what it was to become."""
        return self._step >= self._end

    def step(self) -> None:
        """Tells that the optimizer has made a step (not a batch, where gradients are
        accumulated)."""
        self._step += 1
        if self._step <= self._end:
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, as JSON values."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; before or after the model loads its own.

        Raises:
            ConfigError: It is no such state.
        """
        step = state.get("step") if isinstance(state, Mapping) and len(state) == 1 else None
        if step is None:
            raise ConfigError(f"{state!r} is no state of a CouplingSchedule: step.")
        check_count("step", step, 0)
        self._step = int(step)
        self._apply()

    def __repr__(self) -> str:
        return (
            f"CouplingSchedule(step={self._step}, begin={self._begin}, end={self._end}, "
            f"shape={self._shape!r}, to={self._to}, done={self.done})"
        )

    @staticmethod
    def check(
        total_steps: object,
        begin: float,
        end: float,
        shape: object,
        to: float,
        start: object = 0,
    ) -> None:
        """Raises `ConfigError` if a value is not accepted."""
        check_span(total_steps, begin, end, start)
        if shape not in SHAPES:
            raise ConfigError(
                f"shape={shape!r} is not accepted; accepted: {', '.join(map(repr, SHAPES))}."
                f"{did_you_mean(str(shape), SHAPES)}"
            )
        check_real("to", to)
        if not 0.0 <= to < 1.0:
            raise ConfigError(f"to={to!r} must be a coupling from 0 to below 1.")

    def _anneals(self, spec: BlockSpec) -> bool:
        return not spec.learn_coupling and spec.as_widened.coupling > self._to

    def _apply(self) -> None:
        """Gives layers the coupling of the step."""
        specs: dict[BlockSpec, BlockSpec] = {}  # one for all layers of a block
        for layer in self._layers:
            if layer.spec not in specs:
                specs[layer.spec] = self._annealed(layer.spec)
            layer.respecify(specs[layer.spec])
        if self.done:
            refresh_plan(self._model)

    def _annealed(self, spec: BlockSpec) -> BlockSpec:
        first = spec.as_widened.coupling
        coupling = self._to + (first - self._to) * self._left()
        return replace(spec, coupling=coupling, annealed_from=first)

    def _left(self) -> float:
        """The share of the fall that is still to come."""
        if self.done:
            return 0.0
        past = max(0.0, (self._step - self._begin) / max(1, self._end - self._begin))
        if self._shape == "linear":
            return 1.0 - past
        return (1.0 + math.cos(math.pi * past)) / 2


def _nothing_to_anneal(model: nn.Module, to: float) -> str:
    """Why there is no coupling to anneal, and what to do."""
    layers = list(fpe_layers(model))
    if not layers:
        return "The model has no widened block: widen it with coupling=1.0, fan_out='partition'."
    learns = next((layer.spec for _, layer in layers if layer.spec.learn_coupling), None)
    if learns is not None:
        return (
            f"block {learns.name!r} learns its coupling: train it (see fpe_hf.parameter_groups), "
            "or widen with learn_coupling=False to anneal it."
        )
    return (
        f"no block of the model has a coupling above to={to}: widen it with coupling=1.0, "
        "fan_out='partition', or leave the schedule out."
    )


def learned_couplings(model: nn.Module) -> list[nn.Parameter]:
    """The learned couplings of a model that are trained."""
    ups = (layer for _, layer in fpe_layers(model) if isinstance(layer, UpLayer))
    return [up.coupling for up in ups if up.coupling is not None and up.coupling.requires_grad]


def parameter_groups(
    model: nn.Module, lr: float, *, coupling_factor: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimizer that trains learned couplings at a rate of their own.

    At the rate of the weights they hardly move: they lie between 0 and 1, weights near 0.01.

    Args:
        model: A model with learned couplings.
        lr: Learning rate of all other parameters.
        coupling_factor: That of couplings, in multiples of `lr`.
        weight_decay: Of all other parameters; couplings do not decay.

    Returns:
        Two groups: everything else, and the couplings.

    Raises:
        ConfigError: A value is not accepted, or the model has no learned coupling to train.

    Example:
        >>> groups = fpe_hf.parameter_groups(model, 1e-4, coupling_factor=100, weight_decay=0.01)
        >>> optimizer = torch.optim.AdamW(groups)
    """
    for name, value in (("lr", lr), ("coupling_factor", coupling_factor)):
        check_real(name, value)
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value!r} must be above 0.")
    check_real("weight_decay", weight_decay)
    couplings = learned_couplings(model)
    if not couplings:
        raise ConfigError(
            "The model has no learned coupling to train: widen it with learn_coupling=True."
        )
    own = {id(coupling) for coupling in couplings}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    return [
        {"params": others, "lr": lr, "weight_decay": weight_decay},
        {"params": couplings, "lr": lr * coupling_factor, "weight_decay": 0.0},
    ]


def split_off_couplings(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Puts learned couplings, of which there may be none, into a last group of their own.

    Args:
        optimizer: It has not made a step.
        model: What it trains.
        factor: Learning rate of couplings, in multiples of the first group's.
    """
    couplings = learned_couplings(model)
    own = {id(coupling) for coupling in couplings}
    groups = optimizer.param_groups
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in own]
    lr = groups[0]["lr"] * factor
    optimizer.add_param_group({"params": couplings, "lr": lr, "weight_decay": 0.0})
