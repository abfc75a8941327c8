"""`BudgetSchedule`: closes the budget of an open model while it trains, in anybody's loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint.saving import refresh_plan
from .closing import OpenBlock, close_as, open_blocks, pack
from .closing.compete import prune
from .closing.moves import GRADIENT, MOVES, move
from .closing.optimizers import (
    adopt,
    check_optimizer,
    check_trains,
    follow,
    forget,
    is_accumulating,
)
from .closing.wrappers import wrap_again, wrappers_of
from .draws import Draws
from .errors import ConfigError, did_you_mean
from .layers import OpenLayer
from .layers.base import at_hand
from .modules import fpe_layers
from .planning import BlockSpec
from .planning.spec import INDEPENDENT, OPEN
from .progress import check_count, check_real, check_span, span
from .splits import derive_seed

logger = logging.getLogger("fpe_hf")

_EVENTS = 100
"""How often masks change, unless it is said."""

_MOVING_SHARE = 0.3
"""Share of the weights that the first move exchanges (Evci et al. 2020)."""


class BudgetSchedule:
    """Closes the budget of a model's open blocks in training.

    From `begin` to `end` of the steps the smallest magnitudes are pruned, up and down projections
    together, until exactly the budget is left: of the weights that must go, `(1 - p)^power` are
    left at progress `p` (Zhu and Gupta 2017, cubic). Each input of a parent ends with at most one
    child. Then the open layers become ordinary `element` layers, in place. Until then, pruned
    weights are zero after every `step()`, and get no gradient.

    Args:
        model: A model that `widen` left open (`split="learned"`, or `open=True`); wrapped in
            `DistributedDataParallel`, compiled, or as it is.
        total_steps: Optimizer steps of the whole training.
        optimizer: Its groups of parameters and its moments follow when layers are exchanged.
            Without it, make a new optimizer when `open` turns false.
        begin: When the budget begins to close, as a share of `total_steps`.
        end: When it is closed.
        power: Exponent of the schedule.
        every: Optimizer steps between changes of the masks; by default a hundred changes in all.
        moves: Keep the budget from the first step on and move the masks instead: every so often a
            share of the smallest weights (0.3, falling to 0 at `end`) is exchanged for others,
            those with the largest gradients (`"gradient"`) or any (`"random"`).
        disjoint: Whether siblings compete for inputs. Without it, as a control, the layers stay
            open: no layout holds children that share inputs.
        start: Steps that the optimizer has made before.

    Attributes:
        open: Whether the budget is open.
        end: The step after which it is closed.

    Raises:
        ConfigError: A value is not accepted, parameters are in parts (FSDP, DeepSpeed), or the
            optimizer lacks weights of the open layers.

    Example:
        >>> schedule = fpe_hf.BudgetSchedule(model, total_steps, optimizer=optimizer)
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
        optimizer: torch.optim.Optimizer | None = None,
        begin: float = 0.1,
        end: float = 0.7,
        power: float = 3,
        every: int | None = None,
        moves: str | None = None,
        disjoint: bool = True,
        start: int = 0,
    ) -> None:
        self.check(total_steps, begin, end, power, every, moves, disjoint, start)
        check_optimizer(optimizer)
        self._model, self._optimizer = model, optimizer
        self._begin, self._end = span(total_steps, begin, end)
        self._power, self._moves, self._disjoint = power, moves, disjoint
        self._every = int(every or 0) or max(1, (self._end - self._begin) // _EVENTS)
        self._wrappers: list[DistributedDataParallel] = []
        self._step = int(start)
        self._closed: list[BlockSpec] = []
        self._blocks = open_blocks(model)
        if not self._blocks:
            self._explain_closed()
        for block in self._blocks:
            if not all(map(_is_whole, block.layers)):
                raise ConfigError(
                    f"the parameters of block {block.spec.name!r} are in parts, as with FSDP and "
                    "DeepSpeed, or computed from others: close the budget in training with "
                    "DistributedDataParallel or on one device, without parametrizations."
                )
        adopt(self._optimizer)
        check_trains(
            optimizer,
            {
                f"{name}.weight": layer.weight
                for name, layer in fpe_layers(model)
                if isinstance(layer, OpenLayer)
            },
        )
        if not self._blocks:  # closed, by a state that was loaded perhaps
            self._settle()
        # Some weights are dead from the start where the split is not learned.
        divided = any(block.start < sum(_sizes(block)) for block in self._blocks)
        self._pruned = divided or start > self._begin or moves is not None
        self._watched: dict[OpenLayer, Tensor] = {}
        self._watch()
        if moves is not None and not all(map(_is_within_budget, self._blocks)):
            self._prune(1.0)

    @property
    def open(self) -> bool:
        """Whether the budget is open: whether there are layers to close."""
        if any(block.down.closed for block in self._blocks):
            self._let_go()
        return bool(self._blocks) and not self._closed

    @property
    def end(self) -> int:
        """The step after which the budget is closed."""
        return self._end

    @property
    def nonzeros(self) -> int:
        """Non-zeros of the widened blocks as they are now, biases and scalars included."""
        return sum(layer.nonzeros() for _, layer in fpe_layers(self._model))

    def step(self) -> None:
        """Tells that the optimizer has made a step. Call it before gradients are zeroed.

        Where gradients are accumulated, call it once per step of the optimizer, not per batch. (An
        optimizer that accelerate has prepared makes none while it accumulates: calls count for
        nothing then.)
        """
        if is_accumulating(self._optimizer):
            return
        self._step += 1
        is_open = self.open
        if not self._blocks:
            return
        self._watch()
        if is_open and self._step >= self._end:
            self.close()
        elif is_open and self._is_event(self._step):
            progress = (self._step - self._begin) / (self._end - self._begin)
            if self._moves is None:
                self._prune(progress)
            else:
                self._move(_MOVING_SHARE * (1 + math.cos(math.pi * progress)) / 2)
        elif self._pruned:
            self._kill()

    def close(self) -> None:
        """Closes the budget at once; afterwards the model holds non-zeros only."""
        if not self.open:
            return
        self._prune(1.0)
        self._closed = [block.down.spec for block in self._blocks]
        if not self._disjoint:
            return
        if self._optimizer is None and self._step:
            logger.warning(
                "The budget is closed, and the widened layers have new parameters, which an "
                "optimizer that was made before does not train: make a new one of "
                "model.parameters(), or pass it to BudgetSchedule(optimizer=...)."
            )
        blocks, self._blocks, self._closed = self._blocks, [], []
        self._watched = {}
        for block in blocks:
            for packed in pack(self._model, block):
                if packed.old.grad is not None:
                    packed.new.grad = packed.take(packed.old.grad)
                follow(self._optimizer, packed.old, packed.new, packed.take)
            self._closed.append(packed.spec)
        self._settle()

    def __repr__(self) -> str:
        return (
            f"BudgetSchedule(step={self._step}, begin={self._begin}, end={self._end}, "
            f"power={self._power}, every={self._every}, moves={self._moves!r}, "
            f"disjoint={self._disjoint}, open={self.open})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, as JSON values. Masks and weights are in the model's state."""
        return {"step": self._step, "closed": [spec.to_dict() for spec in self._closed]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; before or after the model and the optimizer load theirs.

        Args:
            state: What `state_dict` gave. If the budget was closed, the model's open layers are
                exchanged for empty ones of the closed blocks, unless it has loaded those already.

        Raises:
            ConfigError: It is no such state, or one of an open budget for a model that is closed.
        """
        step, closed = self._read(state)
        if self._blocks and not closed and not open_blocks(self._model):
            raise ConfigError(
                f"The state is of step {step}, when the budget was open, but the model is closed: "
                "open one by widen, and load that step's weights into it."
            )
        self._step = step
        self._pruned = self._pruned or step > self._begin
        if not closed or not self._disjoint:
            self._closed = closed
            return
        close_as(self._model, closed)
        adopt(self._optimizer)
        self._blocks, self._closed, self._watched = [], closed, {}
        self._settle()

    def _read(self, state: Mapping[str, Any]) -> tuple[int, list[BlockSpec]]:
        """The step, and the blocks that were closed."""
        given = state if isinstance(state, Mapping) else {}
        step, closed = given.get("step"), given.get("closed")
        if type(step) is not int or step < 0 or not isinstance(closed, (list, tuple)):
            raise ConfigError(f"{state!r} is no state of a BudgetSchedule: step and closed.")
        specs = [BlockSpec.from_dict(own) for own in closed]
        if any((spec.layout == OPEN) == self._disjoint for spec in specs):
            raise ConfigError(
                f"The state is of a BudgetSchedule with disjoint={not self._disjoint}, and this "
                f"one has disjoint={self._disjoint}."
            )
        return step, specs

    def _let_go(self) -> None:
        """Leaves blocks alone that a state which was loaded, or another schedule, has closed."""
        closed = [block.down.closed for block in self._blocks]
        specs = [spec for spec in closed if spec is not None]
        if len(specs) < len(closed):
            raise ConfigError(
                f"block {specs[0].name!r} was closed by another BudgetSchedule, others of this one "
                "were not: give a block to one schedule."
            )
        adopt(self._optimizer)
        self._blocks, self._closed, self._watched = [], specs, {}
        self._settle()

    @staticmethod
    def check(
        total_steps: object,
        begin: float,
        end: float,
        power: float,
        every: object,
        moves: object,
        disjoint: object = True,
        start: object = 0,
    ) -> None:
        """Raises `ConfigError` if a value is not accepted."""
        check_span(total_steps, begin, end, start)
        if every is not None:
            check_count("every", every, 1)
        if not isinstance(disjoint, bool):
            raise ConfigError(f"disjoint={disjoint!r} must be True or False.")
        check_real("power", power)
        if not power > 0:
            raise ConfigError(f"power={power!r} must be above 0.")
        if moves is not None and moves not in MOVES:
            raise ConfigError(
                f"moves={moves!r} is not accepted; accepted: {', '.join(map(repr, MOVES))} or None."
                f"{did_you_mean(str(moves), MOVES)}"
            )

    def _is_event(self, step: int) -> bool:
        """Whether masks change after this step."""
        past = step - self._begin
        return 0 < past < self._end - self._begin and past % self._every == 0

    def _prune(self, progress: float) -> None:
        for block in self._blocks:
            prune(block, progress, self._power, disjoint=self._disjoint)
        self._agree()

    def _move(self, share: float) -> None:
        draws = None
        if self._moves == GRADIENT:
            self._check_gradients()
        else:
            draws = Draws(derive_seed(self._blocks[0].spec.seed, "moves", str(self._step)))
        for block in self._blocks:
            for layer, come in zip(block.layers, move(block, share, draws), strict=True):
                forget(self._optimizer, layer.weight, come)
        self._agree()

    def _agree(self) -> None:
        """Has all processes of a model take the decision of the first."""
        self._pruned = True
        self._wrappers = self._wrappers or wrappers_of(self._model)
        if not self._wrappers:
            return
        for block in self._blocks:
            for layer in block.layers:
                mask = layer.mask.to(torch.uint8)
                distributed.broadcast(mask, 0)
                layer.mask.copy_(mask)
        self._kill()

    def _kill(self) -> None:
        for block in self._blocks:
            for layer in block.layers:
                layer.kill()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Parameters are copied without the hooks on their gradients.
        self.__dict__.update(state, _watched={})
        self._watch()

    def _watch(self) -> None:
        """Has weights that are pruned get no gradient, so that they do not count when gradients are
        clipped, unless a move is about to look at it."""

        def mask(layer: OpenLayer, weight: Tensor) -> None:
            looked_at = self._moves == GRADIENT and self._is_event(self._step + 1)
            if self._pruned and weight.grad is not None and not looked_at:
                weight.grad.masked_fill_(~layer.mask, 0.0)

        for layer in (layer for block in self._blocks for layer in block.layers):
            weight = layer.weight
            # Others may have begun to train, or have been exchanged, since.
            if weight.requires_grad and self._watched.get(layer) is not weight:
                weight.register_post_accumulate_grad_hook(partial(mask, layer))
                self._watched[layer] = weight

    def _check_gradients(self) -> None:
        weights = [layer.weight for block in self._blocks for layer in block.layers]
        if any(weight.grad is None for weight in weights):
            raise ConfigError(
                "moves='gradient' looks at gradients: call step() before they are zeroed, and let "
                "all weights of the open blocks train; or take moves='random'."
            )

    def _explain_closed(self) -> None:
        """Says so if the model has no budget to close, and never had."""
        layers = [layer for _, layer in fpe_layers(self._model)]
        if not layers:
            raise ConfigError(
                'The model has no widened block; fpe_hf.widen(model, split="learned") opens them.'
            )
        if not any(layer.spec.fan_out == INDEPENDENT for layer in layers):
            logger.warning(
                "This model was widened closed: BudgetSchedule has nothing to do. "
                'fpe_hf.widen(model, split="learned") opens a budget.'
            )

    def _settle(self) -> None:
        """Makes the rest of the model fit its closed layers."""
        refresh_plan(self._model)
        for wrapper in self._wrappers or wrappers_of(self._model):
            wrap_again(wrapper)


def _is_within_budget(block: OpenBlock) -> bool:
    """Whether no more weights are alive than the block may end with."""
    alive = sum(int(layer.mask.count_nonzero()) for layer in block.layers)
    return alive <= sum(block.spec.final_weights)


def _sizes(block: OpenBlock) -> Iterator[int]:
    """The weights of one expert in every matrix, dead or alive."""
    return (layer.weight.numel() // block.spec.experts for layer in block.layers)


def _is_whole(layer: OpenLayer) -> bool:
    """Whether a layer's weights are a parameter of their own, with all values at hand."""
    weight = layer.numbers().get("weight")
    if weight is None or not at_hand(weight) or weight.shape != layer.mask.shape:
        return False
    return not any(hasattr(weight, mark) for mark in ("_fsdp_flattened", "ds_id"))
