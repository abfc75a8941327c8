"""`BudgetCallback` and `CouplingCallback`: schedules in transformers' Trainer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from .coupling import CouplingSchedule
from .schedule import BudgetSchedule

logger = logging.getLogger("fpe_hf")


class _ScheduleCallback(TrainerCallback):  # type: ignore[misc]
    """Makes a schedule when training begins, and goes on with it by every step of the optimizer."""

    schedule: Any = None
    _unfinished: str

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Makes the schedule."""
        self.schedule = self._make(model, state.max_steps, optimizer, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on by a step."""
        assert self.schedule is not None
        was_done = self._is_done()
        self.schedule.step()
        if not was_done and self._is_done():
            # Until now the model was another than will be shipped.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says so if training was ended early, with the schedule unfinished."""
        if not self._is_done():
            logger.warning("Training ended at step %d, %s", state.global_step, self._unfinished)

    def _make(
        self, model: nn.Module, steps: int, optimizer: torch.optim.Optimizer, start: int
    ) -> Any:
        raise NotImplementedError

    def _is_done(self) -> bool:
        raise NotImplementedError


class BudgetCallback(_ScheduleCallback):
    """Closes the budget of an open model while transformers' Trainer trains it.

    Training that was cut off goes on from a checkpoint of the Trainer, before and after the budget
    was closed: give the Trainer the open model again. Of checkpoints, the best model
    (`load_best_model_at_end`) is one that keeps the budget.

    Args:
        begin: See `BudgetSchedule`, as all others; the Trainer says how many steps there are.
        end: See there.
        power: See there.
        every: See there.
        moves: See there.
        disjoint: See there.

    Attributes:
        schedule: The schedule; `None` before training.

    Example:
        >>> trainer = Trainer(model, arguments, callbacks=[fpe_hf.BudgetCallback()], ...)
    """

    schedule: BudgetSchedule | None
    _unfinished = (
        "before the budget was closed: train on, or close it at once with "
        "callback.schedule.close()."
    )

    def __init__(
        self,
        begin: float = 0.1,
        end: float = 0.7,
        power: float = 3,
        every: int | None = None,
        moves: str | None = None,
        disjoint: bool = True,
    ) -> None:
        self._settings: dict[str, Any] = {
            "begin": begin,
            "end": end,
            "power": power,
            "every": every,
            "moves": moves,
            "disjoint": disjoint,
        }
        BudgetSchedule.check(1, **self._settings)

    def _make(
        self, model: nn.Module, steps: int, optimizer: torch.optim.Optimizer, start: int
    ) -> BudgetSchedule:
        return BudgetSchedule(model, steps, optimizer=optimizer, start=start, **self._settings)

    def _is_done(self) -> bool:
        return self.schedule is None or not self.schedule.open


class CouplingCallback(_ScheduleCallback):
    """Anneals the coupling of siblings while transformers' Trainer trains a model.

    Training that was cut off goes on from a checkpoint of the Trainer: give the Trainer the widened
    model again, or the checkpoint itself, loaded. Of checkpoints, the best model
    (`load_best_model_at_end`) is one with the coupling that was wanted.

    Args:
        begin: See `CouplingSchedule`, as all others; the Trainer says how many steps there are.
        end: See there.
        shape: See there.
        to: See there.

    Attributes:
        schedule: The schedule; `None` before training.

    Example:
        >>> trainer = Trainer(model, arguments, callbacks=[fpe_hf.CouplingCallback()], ...)
    """

    schedule: CouplingSchedule | None
    _unfinished = (
        "before the coupling had fallen: train on, or give CouplingCallback an earlier end."
    )

    def __init__(
        self, begin: float = 0.0, end: float = 0.5, shape: str = "linear", to: float = 0.0
    ) -> None:
        self._settings: dict[str, Any] = {"begin": begin, "end": end, "shape": shape, "to": to}
        CouplingSchedule.check(1, **self._settings)

    def _make(
        self, model: nn.Module, steps: int, optimizer: torch.optim.Optimizer, start: int
    ) -> CouplingSchedule:
        return CouplingSchedule(model, steps, start=start, **self._settings)

    def _is_done(self) -> bool:
        return self.schedule is None or self.schedule.done
