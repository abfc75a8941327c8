"""A small convolutional network whose head is expanded, all of it trained jointly."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...auditing import audit
from ...config import FPEConfig
from ...conversion import widen
from ...draws import Draws
from ..data import Labelled, digits
from ..gains import gain_figure, gain_rows, select, told
from ..report import Report, Row
from ..trials import DENSE, RANDOM, Arm

WIDTHS, ALPHAS = (4, 8, 16), (2, 4)
EPOCHS, BATCH_SIZE, LR = 25, 64, 3e-3  # epochs before the split, and again after it


def run(full: bool) -> Report:
    """Trains a network per width, arm and seed."""
    seeds = 20 if full else 5
    data = digits()
    rows: list[Row] = []
    for width in WIDTHS:
        found: dict[Arm, list[float]] = {}
        for seed in range(seeds):
            for arm, accuracy in _compare(data, width, seed).items():
                found.setdefault(arm, []).append(accuracy)
        accuracies = {
            arm: torch.tensor(own, dtype=torch.float32, device="cpu") for arm, own in found.items()
        }
        rows += gain_rows(accuracies, neurons=width)
    dense = ", ".join(f"{row['accuracy']:.1f}" for row in select(rows, arm=DENSE))
    lines = [
        f"- random, alpha {alpha}: {told(select(rows, arm=RANDOM, alpha=alpha), 'neurons')}"
        for alpha in ALPHAS
    ]
    text = (
        "Two convolutions, then a head of one hidden layer, on digits of 8 x 8 pixels; "
        f"convolutions and head are trained jointly, and the head is expanded after {EPOCHS} of "
        f"{2 * EPOCHS} epochs by `fpe_hf.widen`; {seeds} seeds. Dense heads with "
        f"{', '.join(map(str, WIDTHS))} neurons reach {dense} %.\n\nGains over dense in points, by "
        "neurons:\n\n" + "\n".join(lines) + "\n\nThe paper reports gains on CIFAR-100, largest "
        "for the narrowest heads."
    )
    return Report("CNN", text, rows, {"cnn": gain_figure(rows, "neurons")})


def _compare(data: Labelled, width: int, seed: int) -> dict[Arm, float]:
    torch.manual_seed(seed)
    warm = _network(width, len(data.names))
    _train(warm, data, seed)
    arms: dict[Arm, nn.Module] = {(DENSE, 1): deepcopy(warm)}
    for alpha in ALPHAS:
        config = FPEConfig(alpha=alpha, layout="element", seed=seed)
        model = widen(deepcopy(warm), config, example_inputs=(data.x[:2],))
        audit(model, strict=True)
        arms[RANDOM, alpha] = model
    for model in arms.values():
        _train(model, data, seed + 1)
    return {arm: _accuracy(model, data) for arm, model in arms.items()}


def _network(width: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def _train(model: nn.Module, data: Labelled, seed: int) -> None:
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    draws = Draws(seed)
    for _ in range(EPOCHS):
        for batch in draws.order(len(data.y)).split(BATCH_SIZE):
            loss = functional.cross_entropy(model(data.x[batch]), data.y[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()


@torch.no_grad()
def _accuracy(model: nn.Module, data: Labelled) -> float:
    outputs: Tensor = model(data.test_x)
    return 100 * float((outputs.argmax(1) == data.test_y).float().mean())
