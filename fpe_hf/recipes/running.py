"""Runs a recipe: every arm of every seed through the Trainer, and what came out into files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..auditing import audit
from ..callback import BudgetCallback, CouplingCallback
from ..checkpoint.verify import verify_checkpoint
from ..discovery import find_mlps
from ..errors import RecipeError
from ..layers import UpLayer
from ..linear import is_linear
from ..metrics import interference, sibling_distances
from ..selection import select_blocks
from .arms import Expansion, fpe_config, is_widened, nonzeros, plan_expansion, wide_dense
from .building import build_parent
from .checkpoints import close_like, last_whole_checkpoint, remove_partial
from .claiming import claimed
from .costs import Cost, cost_of
from .data import load_examples
from .evaluation import FROM_LOSS, Outcomes, from_loss
from .preprocessing import Prepared, prepare
from .results import ArmResult, Results, model_folder
from .schema import CouplingSchedule, Recipe, Schedule
from .splitting import split_checkpoint
from .training import (
    Interrupted,
    NoteStart,
    StopAt,
    StopOnSignal,
    make_arguments,
    make_trainer,
    seconds_in,
    total_steps,
)
from .trust import check_code

Say = Callable[[str], None]
Finish = Callable[[Results, Prepared], None]

RESULT = "result.json"
_WARM_UP = "warm-up"


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = False,
    say: Say = print,
    finish: Finish | None = None,
    callbacks: Sequence[Any] = (),
    allow_code: Sequence[str] = (),
) -> Results:
    """Trains all arms and writes `results.json` and the models.

    Args:
        recipe: What to do.
        resume: Go on where an earlier run in `output.folder` stopped.
        say: Takes a line of progress; called on the main process only.
        finish: Called with the results and the data at the end, on the main process only.
        callbacks: More callbacks for the Trainer, for all arms.
        allow_code: Names of the code in the recipe that may be run.

    Returns:
        What came out.

    Raises:
        RecipeError: The data or the model do not fit, the folder is taken, the recipe names code
            that is not allowed, or the training diverged.
        CheckpointError: A checkpoint to go on from is damaged.
        InUseError: Another process is running a recipe in the folder.
        Interrupted: The process was asked to stop; `resume` goes on.
    """
    check_code(recipe, allow_code)
    folder = recipe.output.folder
    # The arguments know of train.use_cpu, which decides how processes talk to each other.
    state = make_arguments(recipe, folder, recipe.compare.seeds[0]).distributed_state
    with claimed(folder, recipe, resume, state):
        with state.main_process_first():
            prepared = prepare(recipe, load_examples(recipe.data))
        results: list[ArmResult] = []
        for seed in recipe.compare.seeds:
            place = folder / f"seed-{seed}"
            repetition = _Repetition(recipe, prepared, seed, place, state, callbacks)
            for arm in recipe.compare.arms:
                result = repetition.run(arm)
                results.append(result)
                if state.is_main_process:
                    say(f"seed {seed}, {arm}: {result.summary(recipe.metrics[0])}")
        done = Results.of(recipe, results, prepared)
        if state.is_main_process:
            done.write(folder)
            if finish is not None:
                finish(done, prepared)
        return done


@dataclass
class _Repetition:
    """All arms of one seed."""

    recipe: Recipe
    prepared: Prepared
    seed: int
    folder: Path
    state: Any
    callbacks: Sequence[Any] = ()
    ups: list[str] = field(default_factory=list)

    def run(self, arm: str) -> ArmResult:
        """Trains one arm, or reads what an earlier run left of it."""
        folder = self.folder / arm
        if (folder / RESULT).is_file():
            return ArmResult.read(folder / RESULT)
        if self.state.is_main_process:
            remove_partial(folder)
        self.state.wait_for_everyone()
        model, checkpoint, cost = self._start(arm, folder)
        names = vars(model).get("_weight_conversions")
        before = self._interference(model)
        signals = StopOnSignal()
        siblings = self._siblings(model)
        schedules = self._schedules(arm)
        if checkpoint is not None and any(isinstance(own, BudgetCallback) for own in schedules):
            close_like(model, checkpoint)
        steps = self._longer() if arm == "dense-longer" else None
        trainer = self._trainer(model, folder, [signals, *schedules], steps)
        in_parts = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        if checkpoint is not None and is_widened(model) and not in_parts:
            verify_checkpoint(model, checkpoint)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if signals.stopped:
            raise Interrupted(f"stopped at step {trainer.state.global_step}, all saved in {folder}")
        result = self._measure(arm, trainer, before, cost)
        for own in schedules:
            if isinstance(own, BudgetCallback) and own.schedule and not own.schedule.open:
                result = replace(result, closed=own.schedule.end)
        if siblings:
            after = [] if in_parts else self._siblings(model)
            result = replace(result, siblings={"before": siblings, "after": after})
        place = model_folder(self.folder.parent, arm, self.seed)
        if not is_widened(model):
            _save_as_usual(model, names)
        trainer.save_model(str(place))
        self.state.wait_for_everyone()
        result = replace(result, disk_bytes=_disk_bytes(place))
        if self.state.is_main_process:
            if self.prepared.processor is not None:
                self.prepared.processor.save_pretrained(place)
            result.write(folder / RESULT)
        self.state.wait_for_everyone()
        return result

    def _trainer(
        self, model: Any, folder: Path, callbacks: Sequence[Any] = (), steps: int | None = None
    ) -> Any:
        own = [*callbacks, *self.callbacks]
        return make_trainer(self.recipe, self.prepared, model, folder, self.seed, own, steps)

    # -- where an arm starts -------------------------------------------------------------------

    def _start(self, arm: str, folder: Path) -> tuple[Any, Path | None, Cost]:
        """The arm's model, the checkpoint to go on from, and what training the arm takes."""
        own = last_whole_checkpoint(folder)
        inputs = self.prepared.example_inputs()
        if arm == "wide-dense":
            wide = wide_dense(self.recipe, self.prepared, self.seed, inputs)
            return wide, own, cost_of(wide, inputs)
        dense = build_parent(self.recipe, self.prepared, self.seed)
        cost = cost_of(dense, inputs)
        if not self.ups:
            found = find_mlps(dense, inputs)
            selected = select_blocks(found, fpe_config(self.recipe, self.seed))
            self.ups = [up for block, _ in selected for up in block.ups if block.experts == 1]
        if arm == "dense-longer":
            return dense, own, cost
        warm_up = self.warm_up
        if warm_up is not None:
            _load_weights(dense, warm_up)
        if arm == "dense":
            return dense, own or warm_up, cost
        model, expansion = self._expand(arm, dense)
        cost = self._with_split(cost, model)
        if own is None and warm_up is not None:
            own = folder / warm_up.name
            if self.state.is_main_process:
                self._split(warm_up, dense, model, expansion, own)
            self.state.wait_for_everyone()
        return model, own, cost

    def _expand(self, arm: str, dense: Any) -> tuple[Any, Expansion]:
        """An arm made of a copy of the dense model, and what made it."""
        config = fpe_config(self.recipe, self.seed, arm)
        prepared = self.prepared
        batches = prepared.sample() if arm == "narrow-dense" else [prepared.example_inputs()]
        expansion = plan_expansion(arm, dense, config, batches)
        return expansion(copy.deepcopy(dense)), expansion

    def _with_split(self, dense: Cost, model: Any) -> Cost:
        """What training takes that begins with the dense parent and goes on with an arm."""
        own = cost_of(model, self.prepared.example_inputs())
        return dense.then(own, self._before) if self._before else own

    def _schedules(self, arm: str) -> list[TrainerCallback]:
        """What closes the budget of an arm that starts open, and anneals couplings."""
        widen = self.recipe.widen
        found: list[TrainerCallback] = []
        if arm in ("fpe", "overlap") and widen.starts_open:
            settings = self._from_the_split_on(widen.schedule or Schedule())
            found.append(BudgetCallback(**settings, disjoint=arm == "fpe"))
            start = 0 if widen.at is None else self._steps[1]
            found.append(NoteStart(start))  # an open budget cannot be in parts: it can be counted
        if arm == "fpe" and widen.coupling_schedule is not None:
            found.append(CouplingCallback(**self._from_the_split_on(widen.coupling_schedule)))
        return found

    def _from_the_split_on(self, schedule: Schedule | CouplingSchedule) -> dict[str, Any]:
        """Settings of a schedule, `begin` and `end` as shares of the whole training."""
        before = self._before
        own = {name: before + getattr(schedule, name) * (1 - before) for name in ("begin", "end")}
        return {**schedule.model_dump(), **own}

    def _longer(self) -> int:
        """Steps in which dense takes the operations that `fpe` takes in its own."""
        dense = build_parent(self.recipe, self.prepared, self.seed)
        cost = cost_of(dense, self.prepared.example_inputs())
        fpe = self._with_split(cost, self._expand("fpe", dense)[0])
        return math.ceil(self._steps[0] * fpe.flops / cost.flops)

    def _split(
        self, warm_up: Path, dense: Any, model: Any, expansion: Expansion, out: Path
    ) -> None:
        def trainer(model: Any) -> Any:
            return self._trainer(model, out.parent)

        split_checkpoint(warm_up, dense, model, expansion, trainer, out)

    @cached_property
    def _steps(self) -> tuple[int, int]:
        """Optimizer steps of the training, and how many of them come before the split."""
        dense = build_parent(self.recipe, self.prepared, self.seed)
        total, per_epoch = total_steps(self._trainer(dense, self.folder / "dense"))
        at = self.recipe.widen.at
        if at is None:
            return total, 0
        step = at.step if at.step is not None else round((at.epoch or 0) * per_epoch)
        if not 0 < step < total:
            raise RecipeError(f"widen.at: step {step} is not within the training of {total} steps.")
        return total, int(step)

    @cached_property
    def _before(self) -> float:
        """Share of the training that comes before the split, 0 to 1."""
        if self.recipe.widen.at is None:
            return 0.0
        total, step = self._steps
        return step / total

    @cached_property
    def warm_up(self) -> Path | None:
        """The checkpoint of the dense parent at the split; trains it if it is not there yet."""
        if self.recipe.widen.at is None:
            return None
        folder, (_, step) = self.folder / _WARM_UP, self._steps
        goal = folder / f"checkpoint-{step}"
        found = last_whole_checkpoint(folder)
        if found == goal:
            return goal
        if self.state.is_main_process:
            remove_partial(folder)
        self.state.wait_for_everyone()
        signals = StopOnSignal()
        dense = build_parent(self.recipe, self.prepared, self.seed)
        trainer = self._trainer(dense, folder, [StopAt(step), signals])
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
        if signals.stopped:
            raise Interrupted(f"stopped at step {trainer.state.global_step}, all saved in {folder}")
        return goal

    def _interference(self, model: Any) -> list[dict[str, Any]]:
        """The interference metrics of the up projections that FPE widens, where they are whole."""
        comparable = [
            name
            for name in self.ups
            if isinstance(model.get_submodule(name), UpLayer)
            or is_linear(model.get_submodule(name))
        ]
        return [asdict(entry) for entry in interference(model, comparable)]

    def _siblings(self, model: Any) -> list[dict[str, Any]]:
        """How far siblings have parted; nothing for models without."""
        if not is_widened(model):
            return []
        device = next(model.parameters()).device
        batch = {
            name: own.to(device) if isinstance(own, torch.Tensor) else own
            for name, own in self.prepared.example_inputs().items()
        }
        return [asdict(own) for own in sibling_distances(model, batch)]

    # -- what came out -------------------------------------------------------------------------

    def _measure(self, arm: str, trainer: Any, before: Any, cost: Cost) -> ArmResult:
        """Evaluates the trained model and reads the Trainer's log."""
        names = self.recipe.metrics
        seconds = seconds_in(trainer.state.log_history)
        final, outcomes = _evaluate(trainer, names)
        by_step: dict[int, dict[str, float]] = {}
        for entry in trainer.state.log_history:
            values = _metrics(entry, names) if "eval_loss" in entry else {}
            if "nonzeros" in entry:
                values["nonzeros"] = entry["nonzeros"]
            by_step.setdefault(entry["step"], {}).update(values)
        by_step = {step: values for step, values in by_step.items() if values}
        curve = [{"step": step, **values} for step, values in sorted(by_step.items())]
        model = trainer.accelerator.unwrap_model(trainer.model)
        whole = not trainer.is_fsdp_enabled  # in parts, nothing can be counted
        keeps_apart = is_widened(model) and arm != "overlap"
        return ArmResult(
            arm=arm,
            seed=self.seed,
            steps=int(trainer.state.global_step),
            metrics=final,
            curve=curve,
            nonzeros=nonzeros(model) if whole else 0,
            seconds=seconds,
            audit=audit(model, strict=True).to_dict() if whole and keeps_apart else None,
            interference={"before": before, "after": self._interference(model) if whole else []},
            flops=cost.flops * self._examples(trainer),
            peak_parameters=cost.parameters,
            outcomes=outcomes,
        )

    def _examples(self, trainer: Any) -> float:
        """How many examples the training took, repetitions counted."""
        state, train = trainer.state, self.prepared.train
        if hasattr(train, "__len__"):
            return float(state.epoch * len(train))
        return float(state.global_step * trainer.get_total_train_batch_size(trainer.args))


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _evaluate(trainer: Any, names: tuple[str, ...]) -> tuple[dict[str, float], Outcomes | None]:
    """The metrics of a trained model, and what became of every example."""
    seen: list[Outcomes | None] = [None]
    measure = trainer.compute_metrics

    def compute(outcome: Any) -> Any:
        seen[0] = Outcomes.of(outcome.predictions, outcome.label_ids)
        return measure(outcome)

    if measure is not None:
        trainer.compute_metrics = compute
    return _metrics(trainer.evaluate(), names), seen[0]


def _metrics(log: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    values = {}
    for name in dict.fromkeys((*names, "loss")):
        if name in FROM_LOSS:
            values[name] = from_loss(name, float(log["eval_loss"]))
        else:
            values[name] = float(log[f"eval_{name}"])
    return values


def _save_as_usual(model: Any, conversions: Any) -> None:
    """Has a stock model saved under the names of its checkpoints on the Hub again."""
    if conversions is None:
        vars(model).pop("_weight_conversions", None)
    else:
        model._weight_conversions = conversions


def _load_weights(model: Any, checkpoint: Path) -> None:
    """Weights of a checkpoint, for a model of its class."""
    loaded = type(model).from_pretrained(checkpoint, dtype=model.dtype, trust_remote_code=False)
    model.load_state_dict(loaded.state_dict())
