"""Training with transformers' Trainer: the budget holds, and resuming changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import fpe_hf
from fpe_hf.modules import fpe_layers
from tiny_models import tiny_model
from trainers import sentences, trainer

WAYS: dict[str, dict[str, Any]] = {
    "element": {"alpha": 2},
    "block": {"layout": "block", "tile_size": 16},
    "exact": {"coupling": 1.0, "fan_out": "partition"},
    "learned": {"coupling": 0.5, "learn_coupling": True, "bias": "child", "alpha": 3},
}


def indices(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {name: copy.deepcopy(layer.index_buffers()) for name, layer in fpe_layers(model)}


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("way", WAYS)
def test_fifty_steps_keep_the_budget_and_the_masks(way: str, tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"), **WAYS[way])
    before, where = fpe_hf.audit(model), indices(model)
    weights = {name: layer.weight.detach().clone() for name, layer in fpe_layers(model)}
    trainer(model, tmp_path, max_steps=50).train()
    after = fpe_hf.audit(model, strict=True)
    assert after == before
    for name, layer in fpe_layers(model):
        torch.testing.assert_close(layer.index_buffers(), where[name])
        assert layer.weight.shape == weights[name].shape
        assert not torch.allclose(layer.weight, weights[name], atol=1e-3)
        if not layer.spec.coupling:  # else every child sees every input of its parent
            matrix = layer.dense_weight()
            assert int(matrix.count_nonzero()) <= layer.weight.numel()


def test_a_loss_falls_and_every_number_gets_a_gradient(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"), learn_coupling=True, coupling=0.5)
    run = trainer(model, tmp_path, max_steps=60, logging_strategy="steps", logging_steps=20)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    ids = torch.tensor([entry["input_ids"] for entry in sentences()])
    model.zero_grad()
    model(input_ids=ids, labels=ids[:, 0] % 5).loss.backward()
    for _, layer in fpe_layers(model):
        for parameter in layer.parameters():
            assert parameter.grad.count_nonzero() > 0.9 * parameter.numel()


@pytest.mark.parametrize("reloaded", [False, True], ids=["fresh", "reloaded"])
@pytest.mark.parametrize("way", ["element", "block", "learned"])
def test_resuming_equals_an_uninterrupted_run(way: str, reloaded: bool, tmp_path: Path) -> None:
    """Bit for bit, dropout and the shuffled data included."""

    def start() -> PreTrainedModel:
        model = fpe_hf.widen(tiny_model("bert_classifier"), **WAYS[way])
        if not reloaded:
            return model
        model.save_pretrained(tmp_path / "start")
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")

    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole, resumed = start(), start()
    trainer(whole, tmp_path / "whole", **saving).train()
    assert not equal(whole, resumed)
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    trainer(resumed, tmp_path / "resumed", **saving).train(resume_from_checkpoint=checkpoint)
    assert equal(whole, resumed)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole/checkpoint-6")
    assert equal(loaded, whole)
    assert fpe_hf.audit(loaded, strict=True).ok


def test_a_trained_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"))
    run = trainer(model, tmp_path / "run", max_steps=5)
    run.train()
    run.save_model(str(tmp_path / "model"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert equal(loaded, model)
    trainer(loaded, tmp_path / "again", max_steps=5).train()
    assert not equal(loaded, model)
    assert fpe_hf.audit(loaded, strict=True) == fpe_hf.audit(model)


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert_classifier"), layout="block")
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    options |= {"load_best_model_at_end": True, "max_steps": 6}
    run = trainer(model, tmp_path, **options)
    run.train()
    best = AutoModelForSequenceClassification.from_pretrained(run.state.best_model_checkpoint)
    assert equal(best, model)


@pytest.mark.parametrize("reloaded", [False, True], ids=["fresh", "reloaded"])
def test_an_explicit_state_dict_is_what_is_saved(reloaded: bool, tmp_path: Path) -> None:
    """As FSDP and ZeRO save: the model in memory does not hold the numbers."""
    model = fpe_hf.widen(tiny_model("bert_classifier"))
    if reloaded:
        model.save_pretrained(tmp_path / "start")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")
    other = fpe_hf.widen(tiny_model("bert_classifier"))
    trainer(other, tmp_path / "run", max_steps=3).train()
    model.save_pretrained(tmp_path / "saved", state_dict=other.state_dict())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert equal(loaded, other)
    assert not equal(loaded, model)


def test_mixed_precision_autocast(tmp_path: Path) -> None:
    for way in ("element", "block"):
        model = fpe_hf.widen(tiny_model("bert_classifier"), **WAYS[way])
        trainer(model, tmp_path, max_steps=3, bf16=True).train()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert fpe_hf.audit(model, strict=True).ok


def test_plain_pytorch_training_with_every_optimizer() -> None:
    x, y = torch.randn(64, 12), torch.randint(0, 3, (64,))
    for optimizer in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
        fpe_hf.widen(model, alpha=3)
        before = fpe_hf.audit(model)
        steps = optimizer(model.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(10):
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
        assert fpe_hf.audit(model, strict=True) == before
