"""`BudgetCallback`: a `BudgetSchedule` in transformers' Trainer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from .checkpoint.plan import FPEQuantizationConfig
from .config import FPEConfig
from .schedule import BudgetSchedule

logger = logging.getLogger("fpe_hf")


class BudgetCallback(TrainerCallback):  # type: ignore[misc]
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
        self.schedule: BudgetSchedule | None = None

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
        self.schedule = BudgetSchedule(
            model, state.max_steps, optimizer=optimizer, start=state.global_step, **self._settings
        )
        if not self.schedule.open and _never_open(model):
            logger.warning(
                "This model was widened closed: BudgetCallback has nothing to do. "
                'fpe_hf.widen(model, split="learned") opens a budget.'
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says so if training was ended early, with the budget open."""
        assert self.schedule is not None
        if self.schedule.open:
            logger.warning(
                "Training ended at step %d, before the budget was closed: train on, or close it "
                "at once with callback.schedule.close().",
                state.global_step,
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on by a step."""
        assert self.schedule is not None
        was_open = self.schedule.open
        self.schedule.step()
        if was_open and not self.schedule.open:
            # Until now the model had more weights than it will be shipped with.
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None


def _never_open(model: nn.Module) -> bool:
    """Whether no block of a model started open, as far as its plan tells."""
    plan = getattr(getattr(model, "config", None), "quantization_config", None)
    if not isinstance(plan, FPEQuantizationConfig):
        return False
    config = FPEConfig.from_dict(plan.config)
    own = (config.for_block([pattern]) for pattern in config.overrides)
    return not any(one.starts_open for one in (config, *own))
