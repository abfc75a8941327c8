"""`BudgetCallback`: transformers' Trainer closes a budget, however it is told to train."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
)

import fpe_hf
import trainers
from fpe_hf.layers import OpenLayer
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_model
from tiny_moe import tiny_mixture
from trainers import sentences

STEPS, CLOSING = 10, 7  # end=0.7
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def opened(family: str = "bert_classifier", **options: Any) -> PreTrainedModel:
    return fpe_hf.widen(tiny_model(family), alpha=3, split="learned", **options)


def trainer(
    model: PreTrainedModel, folder: Path, *callbacks: TrainerCallback, **options: Any
) -> Trainer:
    return trainers.trainer(model, folder, *callbacks, **{"max_steps": STEPS, **options})


def assert_same(first: nn.Module, second: nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


class Watch(TrainerCallback):
    """Looks at the training before each step of the budget."""

    def __init__(self) -> None:
        self.dense: dict[str, dict[str, Tensor]] = {}
        self.groups: list[set[str]] = []
        self.pruned_gradients = 0.0
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for _, layer in fpe_layers(kwargs["model"]):
            if isinstance(layer, OpenLayer):
                pruned = layer.weight.grad.masked_select(~layer.mask)
                self.pruned_gradients += float(pruned.abs().sum())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        if state.global_step == CLOSING - 1:  # counted after this
            self.groups = names_by_group(kwargs["model"], optimizer)
            for name, layer in fpe_layers(kwargs["model"]):
                self.dense[name] = {
                    key: optimizer.state[layer.weight][key].clone()
                    for key in ("exp_avg", "exp_avg_sq")
                }


class WatchAfter(TrainerCallback):
    """Looks at the training after the step that closes the budget."""

    def __init__(self, before: Watch) -> None:
        self.before = before
        self.closed = False

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        assert fpe_hf.audit(model).open == (state.global_step < CLOSING - 1)
        if state.global_step != CLOSING - 1:
            return
        self.closed = True
        assert names_by_group(model, optimizer) == self.before.groups
        for name, layer in fpe_layers(model):
            alive = dense(layer, torch.ones_like(layer.weight)) != 0
            for key, moment in self.before.dense[name].items():
                kept = dense(layer, optimizer.state[layer.weight][key])
                torch.testing.assert_close(kept, moment * alive, rtol=0, atol=0)
            assert float(optimizer.state[layer.weight]["step"]) == CLOSING


def names_by_group(model: nn.Module, optimizer: Any) -> list[set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [{names[own] for own in group["params"]} for group in optimizer.param_groups]


@torch.no_grad()
def dense(layer: Any, values: Tensor) -> Tensor:
    """The matrix that a closed layer would have with other values."""
    own = layer.weight.clone()
    layer.weight.copy_(values)
    matrix = layer.dense_weight().clone()
    layer.weight.copy_(own)
    return matrix


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_budget_closes_and_the_optimizer_follows(accumulation: int, tmp_path: Path) -> None:
    model, watch = opened(), Watch()
    after = WatchAfter(watch)
    budget = fpe_hf.BudgetCallback(begin=0.2)
    run = trainer(
        model,
        tmp_path,
        watch,
        budget,
        after,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.1,
    )
    run.train()
    assert budget.schedule is not None
    assert not budget.schedule.open
    assert after.closed
    assert watch.pruned_gradients == 0.0
    report = fpe_hf.audit(model, strict=True)
    assert report.total.nonzeros == report.total.parent_nonzeros
    for _, layer in fpe_layers(model):
        assert layer.weight.grad is None or layer.weight.grad.shape == layer.weight.shape


def test_learning_rates_are_those_of_a_run_without_a_budget(tmp_path: Path) -> None:
    rates = []
    for callbacks in ([], [fpe_hf.BudgetCallback()]):
        model = opened()
        options = {"logging_strategy": "steps", "logging_steps": 1, "warmup_steps": 3}
        run = trainer(model, tmp_path, *callbacks, lr_scheduler_type="cosine", **options)
        run.train()
        rates.append([entry["learning_rate"] for entry in run.state.log_history if "loss" in entry])
    assert len(rates[0]) == STEPS
    assert rates[0] == rates[1]


def test_mixed_precision(tmp_path: Path) -> None:
    model = opened()
    trainer(model, tmp_path, fpe_hf.BudgetCallback(), bf16=True).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert fpe_hf.audit(model, strict=True).ok


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_closes_as_a_plain_one(backend: str, tmp_path: Path) -> None:
    plain, compiled = opened(), opened()
    trainer(plain, tmp_path, fpe_hf.BudgetCallback()).train()
    torch._dynamo.reset()
    trainer(compiled, tmp_path, fpe_hf.BudgetCallback(), torch_compile_backend=backend).train()
    assert fpe_hf.audit(compiled, strict=True).ok
    for name, tensor in plain.state_dict().items():
        if not name.endswith("checksum"):
            torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_model_compiled_by_inductor_closes(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = opened()
    trainer(model, tmp_path, fpe_hf.BudgetCallback(), torch_compile=True).train()
    assert fpe_hf.audit(model, strict=True).ok


def best_of(model: PreTrainedModel, folder: Path, callback: TrainerCallback) -> PreTrainedModel:
    """Trains with the earliest checkpoint the best; that is the one from which models are ready."""
    run = trainer(
        model,
        folder,
        callback,
        **SAVING,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="first",
        greater_is_better=False,
    )
    run.evaluate = lambda *a, **k: {"eval_first": float(run.state.global_step)}
    run.train()
    assert run.state.best_global_step == CLOSING
    best = AutoModelForSequenceClassification.from_pretrained(folder / f"checkpoint-{CLOSING}")
    assert_same(model, best)
    return best


def test_the_best_model_is_a_closed_one(tmp_path: Path) -> None:
    best = best_of(opened(), tmp_path, fpe_hf.BudgetCallback())
    assert fpe_hf.audit(best, strict=True).ok


@pytest.mark.parametrize(
    ("step", "given"),
    [(4, False), (CLOSING - 1, False), (CLOSING, False), (CLOSING, True), (CLOSING + 1, False)],
)
def test_resuming_equals_an_uninterrupted_run(step: int, given: bool, tmp_path: Path) -> None:
    """Bit for bit, dropout and the shuffled data included, open, at the closing and after."""

    def run(model: PreTrainedModel, folder: str) -> Trainer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2) if given else None
        optimizers = (optimizer, None)
        return trainer(
            model, tmp_path / folder, fpe_hf.BudgetCallback(), optimizers=optimizers, **SAVING
        )

    whole, resumed = opened(), opened()
    run(whole, "whole").train()
    checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
    again = run(resumed, "resumed")
    again.train(resume_from_checkpoint=checkpoint)
    assert_same(whole, resumed)
    trained = {own for group in again.optimizer.param_groups for own in group["params"]}
    assert trained == set(resumed.parameters())


def test_checkpoints_are_safetensors_that_load_as_they_are(tmp_path: Path) -> None:
    trainer(opened(), tmp_path, fpe_hf.BudgetCallback(), **SAVING).train()
    for step in (CLOSING - 1, CLOSING, STEPS):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / "model.safetensors").exists()
        plan = json.loads((folder / "config.json").read_text())["quantization_config"]
        layouts = {block["layout"] for block in plan["blocks"]}
        assert layouts == {"open" if step < CLOSING else "element"}
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        assert fpe_hf.audit(loaded).open == (step < CLOSING)


class Kill(TrainerCallback):
    """The power goes off: nothing is cleaned up, nothing is written."""

    def __init__(self, step: int, event: str) -> None:
        self.step = step
        setattr(self, f"on_{event}", self.kill)

    def kill(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("step", "event", "last"),
    [
        pytest.param(3, "save", 3, marks=pytest.mark.nightly),
        (CLOSING - 1, "optimizer_step", CLOSING - 1),  # closed in memory, open on disk
        pytest.param(CLOSING, "step_end", CLOSING - 1, marks=pytest.mark.nightly),
        (CLOSING, "save", CLOSING),
    ],
)
def test_a_killed_run_resumes_bit_by_bit(step: int, event: str, last: int, tmp_path: Path) -> None:
    def run(folder: str, *more: TrainerCallback) -> Trainer:
        return trainer(opened(), tmp_path / folder, fpe_hf.BudgetCallback(), *more, **SAVING)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: run("killed", Kill(step, event)).train()
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = run("killed")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == STEPS
    found = sorted(int(folder.name.split("-")[1]) for folder in (tmp_path / "killed").iterdir())
    assert last in found
    whole = run("whole")  # seeds all that is drawn
    whole.train()
    assert_same(whole.model, resumed.model)


def test_a_mixture_of_experts_resumes(tmp_path: Path) -> None:
    def run(folder: str) -> Trainer:
        model = fpe_hf.widen(tiny_mixture("mixtral"), alpha=2, split="learned")
        made = trainer(model, tmp_path / folder, fpe_hf.BudgetCallback(), **SAVING)
        made.train_dataset = [{**row, "labels": row["input_ids"]} for row in sentences()]
        return made

    whole = run("whole")
    whole.train()
    for step in (CLOSING - 1, CLOSING):
        resumed = run("resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same(whole.model, resumed.model)
    assert fpe_hf.audit(whole.model, strict=True).ok


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == CLOSING - 1


def test_training_that_ends_early_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    budget = fpe_hf.BudgetCallback()
    model = opened()
    trainer(model, tmp_path, budget, Stop()).train()
    assert "ended at step 6, before the budget was closed" in caplog.text
    assert budget.schedule is not None
    budget.schedule.close()
    assert fpe_hf.audit(model, strict=True).ok


def test_a_closed_model_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(opened(), tmp_path, fpe_hf.BudgetCallback())
    run.train()
    run.train()
    assert fpe_hf.audit(run.model, strict=True).ok
    assert caplog.text == ""


@pytest.mark.parametrize("options", [{"split": "random"}, {"split": "random", "open": True}])
def test_a_model_that_never_was_open_is_noticed(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"), alpha=3, **options)
    run = trainer(model, tmp_path, fpe_hf.BudgetCallback())
    run.train()
    run.train()
    assert ("widened closed" in caplog.text) == ("open" not in options)


def coupled(**options: Any) -> PreTrainedModel:
    return fpe_hf.widen(
        tiny_model("bert_classifier"), alpha=3, coupling=1.0, fan_out="partition", **options
    )


@pytest.mark.parametrize("layout", ["element", "block"])
@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_coupling_resumes_bit_by_bit(step: int, layout: str, tmp_path: Path) -> None:
    """From the model that was widened and from the checkpoint itself, on its way and after."""
    whole = coupled(layout=layout)
    trainer(whole, tmp_path / "whole", fpe_hf.CouplingCallback(), **SAVING).train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
    saved = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert next(iter(fpe_layers(saved)))[1].spec.coupling == max(0.0, 1 - step / 5)
    for number, model in enumerate((coupled(layout=layout), saved)):
        run = trainer(model, tmp_path / str(number), fpe_hf.CouplingCallback(), **SAVING)
        run.train(resume_from_checkpoint=str(checkpoint))
        assert_same(whole, model)
        assert {layer.spec.coupling for _, layer in fpe_layers(model)} == {0.0}


def test_the_best_model_has_the_coupling_that_was_wanted(tmp_path: Path) -> None:
    model = coupled()
    callback = fpe_hf.CouplingCallback(end=0.7, shape="cosine", to=0.25)
    best = best_of(model, tmp_path, callback)
    assert best.config.quantization_config.blocks == model.config.quantization_config.blocks
    assert best.config.quantization_config.blocks[0]["coupling"] == 0.25


def test_a_coupling_that_has_not_fallen_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(coupled(), tmp_path, fpe_hf.CouplingCallback(end=0.7), Stop()).train()
    assert "ended at step 6, before the coupling had fallen" in caplog.text
