"""transformers' Trainer, set up for one arm: nothing of the training itself is our own."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, optim
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..checkpoint.saving import keep_names
from ..coupling import split_off_couplings
from ..errors import CheckpointError, RecipeError
from .arms import nonzeros
from .checkpoints import OPTIMIZER
from .evaluation import best_classes, make_compute_metrics
from .parsing import training_values
from .preprocessing import Prepared
from .schema import Recipe

DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_strategy": "epoch",
    "report_to": "none",
    # Else a diverging loss is logged as the last good one.
    "logging_nan_inf_filter": False,
}
"""Arguments of the Trainer where a recipe gives none."""

_SHAPED = (
    *(optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.SGD, optim.RMSprop),
    *(optim.Adagrad, optim.Adadelta, optim.ASGD, optim.Rprop),
)
_SCALARS = ("step", "mu_product", "eta", "mu")
"""Optimizers whose state has the shapes of the parameters, and what of it is one number."""


class Interrupted(Exception):
    """The process was asked to stop (SIGTERM); everything so far is saved."""


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Saves and stops when so many steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Saves and stops at the end of the step in which SIGTERM arrives."""

    def __init__(self) -> None:
        self.stopped = False
        self._previous: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True


class StopOnDivergence(TrainerCallback):  # type: ignore[misc]
    """Ends a training whose loss is no number any more."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "eval_loss"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                raise RecipeError(
                    f"The training diverged: {name} is {value} at step {state.global_step}. "
                    f"Lower train.learning_rate (it is {args.learning_rate}), or set "
                    "train.max_grad_norm or train.warmup_steps."
                )


class CountNonzeros(TrainerCallback):  # type: ignore[misc]
    """Notes the non-zeros of the model with every evaluation, in the Trainer's log."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        state.log_history[-1]["nonzeros"] = nonzeros(model)


class NoteStart(TrainerCallback):  # type: ignore[misc]
    """Notes the non-zeros of a model that is open, where that is, in the Trainer's log.

    Args:
        step: The step at which the model's own training begins; not where it is resumed.
    """

    def __init__(self, step: int = 0) -> None:
        self._step = step

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step == self._step:
            state.log_history.append({"step": self._step, "nonzeros": nonzeros(model)})


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes the seconds of training in the Trainer's log, those before a checkpoint included."""

    def __init__(self) -> None:
        self._zero = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._zero = time.perf_counter() - seconds_in(state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = time.perf_counter() - self._zero


def seconds_in(log: list[dict[str, Any]]) -> float:
    """The seconds of training that a `Clock` noted in a Trainer's log."""
    return float(next((entry["seconds"] for entry in reversed(log) if "seconds" in entry), 0.0))


class CheckOptimizer(TrainerCallback):  # type: ignore[misc]
    """Refuses an optimizer's state that does not fit its parameters.

    torch loads state of any shape, and fused kernels then write past its end.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # as accelerate wraps it
        if not isinstance(optimizer, _SHAPED):
            return
        for parameter, own in optimizer.state.items():
            for key, value in own.items():
                if not isinstance(value, Tensor):
                    continue
                shape = () if key in _SCALARS else parameter.shape
                if value.shape != shape or value.is_contiguous() < parameter.is_contiguous():
                    raise CheckpointError(
                        f"{OPTIMIZER} of the checkpoint holds {key!r} of shape "
                        f"{tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}: "
                        "it is damaged, or belongs to another model. Remove the checkpoint."
                    )


class _Trainer(Trainer):  # type: ignore[misc]
    """A Trainer of couplings at a learning rate of their own.

    Models without couplings get an empty group, so that the state of a parent fits its arms.
    """

    def __init__(self, *args: Any, coupling_factor: float | None, **kwargs: Any) -> None:
        self._coupling_factor = coupling_factor
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> Any:
        """Makes the optimizer."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self._coupling_factor is not None:
            own = self.model if model is None else model
            split_off_couplings(optimizer, own, self._coupling_factor)
        return optimizer


def make_arguments(recipe: Recipe, folder: Path, seed: int) -> Any:
    """The recipe's `TrainingArguments`.

    Raises:
        RecipeError: transformers refuses a value.
    """
    values = {
        **DEFAULTS,
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        **training_values(recipe.train),
    }
    if "max_steps" in values and "eval_strategy" not in recipe.train:
        every = max(1, int(values["max_steps"]) // 10)
        values |= {"eval_strategy": "steps", "eval_steps": values.get("eval_steps", every)}
    if not needs_predictions(recipe):
        values["prediction_loss_only"] = True
    try:
        return TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            remove_unused_columns=False,
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: {' '.join(str(error).split())[:400]}") from error


def needs_predictions(recipe: Recipe) -> bool:
    """Whether a metric takes more than the loss."""
    return make_compute_metrics(recipe.metrics) is not None


def make_trainer(
    recipe: Recipe,
    prepared: Prepared,
    model: Any,
    folder: Path,
    seed: int,
    callbacks: list[TrainerCallback] | None = None,
    steps: int | None = None,
) -> Any:
    """A Trainer for one arm.

    Args:
        recipe: The recipe.
        prepared: Its data.
        model: The arm's model.
        folder: For checkpoints.
        seed: Of the order of the data and of dropout: the same for all arms.
        callbacks: Beside those that every arm has.
        steps: Optimizer steps, if they are not what the recipe says.
    """
    # The Trainer resumes by the names in memory, and transformers saves some models under others.
    keep_names(model)
    arguments = make_arguments(recipe, folder, seed)
    if steps is not None:
        arguments.max_steps = steps
    trainer = _Trainer(
        model=model,
        coupling_factor=recipe.widen.coupling_lr_factor,
        args=arguments,
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        data_collator=prepared.collate,
        processing_class=prepared.processor,
        compute_metrics=make_compute_metrics(recipe.metrics),
        preprocess_logits_for_metrics=best_classes,
        callbacks=[StopOnDivergence(), CheckOptimizer(), Clock(), *(callbacks or [])],
    )
    trainer.remove_callback(PrinterCallback)  # the log is in the report
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # in parts: not to be counted
        trainer.add_callback(CountNonzeros())
    return trainer


def total_steps(trainer: Any) -> tuple[int, int]:
    """Optimizer steps of the whole training, and of an epoch (0 for a stream)."""
    loader = trainer.get_train_dataloader()
    _, per_epoch, *rest = trainer.set_initial_training_values(trainer.args, loader)
    return int(rest[-1]), int(per_epoch or 0)
