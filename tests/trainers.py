"""Training in a few steps: transformers' Trainer on sentences, a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from tiny_models import VOCAB


def sentences(count: int = 64) -> list[dict[str, Any]]:
    """Token ids; the label is the residue of the first one."""
    ids = torch.randint(5, VOCAB, (count, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row.tolist(), "labels": int(row[0]) % 5} for row in ids]


def trainer(
    model: PreTrainedModel,
    folder: Path,
    *callbacks: TrainerCallback,
    optimizers: tuple[Any, Any] = (None, None),
    **options: Any,
) -> Trainer:
    """A Trainer that saves and logs nothing, unless it is told to."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "optim": "adamw_torch",
    }
    return Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **settings | options),
        train_dataset=sentences(),
        eval_dataset=sentences(8),
        callbacks=list(callbacks),
        optimizers=optimizers,
    )


def train(model: nn.Module, schedule: Any, optimizer: Any, steps: int) -> None:
    """Trains a classifier of 16 inputs, the first 10 of which say the class."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(32, 16, generator=generator)
        nn.functional.cross_entropy(model(x), x[:, :10].argmax(1)).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
