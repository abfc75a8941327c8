"""What the arms of `fpe_hf.science.arms` are trained on: data, a model of any MLP width, settings.

Learning rates, batch sizes and steps were chosen for the dense models, and are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...draws import Draws
from ...splits import Split
from ..data import Labelled

_TEST_BATCH = 2048  # predictions at a time


@dataclass(frozen=True)
class Task:
    """A data set and models for it.

    Attributes:
        data: Examples. Labels are classes (int64), or bools for models of one output; they may have
            further dimensions, as the next tokens of a text do.
        build: A dense model of a given MLP width, its weights drawn from torch's generator.
        steps: Optimizer steps.
        batch_size: Examples per step.
        lr: Highest learning rate of Adam (see `fpe_hf.science.arms.train_run`).
        metric: What is scored on the test examples: accuracy in percent, or the mean loss.
        argument: What a transformers model calls its input; `None` for modules that take a tensor
            and return outputs.
        first: Name of the module whose weights tell of interference during training.
        clauses: The split that knows the task's clauses, if it has any.
        measure: More figures, read off a trained model.
    """

    data: Labelled
    build: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    lr: float
    metric: Literal["accuracy", "loss"] = "accuracy"
    argument: str | None = None
    first: str | None = None
    clauses: Split | None = None
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None

    @property
    def example_inputs(self) -> Any:
        """What `fpe_hf.widen` runs a model with."""
        x = self.data.x[:2]
        return (x,) if self.argument is None else {self.argument: x}

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss over examples: cross-entropy, binary for one output."""
        outputs = self._outputs(model, x)
        if outputs.shape[-1] == 1:
            return functional.binary_cross_entropy_with_logits(outputs[..., 0], y.float())
        return functional.cross_entropy(outputs.flatten(0, -2), y.flatten())

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, epoch after epoch without end; in full batches only."""
        draws = Draws(seed)
        while True:
            order = draws.order(len(self.data.y))
            for batch in order.split(self.batch_size):
                if len(batch) == min(self.batch_size, len(order)):
                    yield self.data.x[batch], self.data.y[batch]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """The metric on the test examples."""
        model.eval()
        total = 0.0
        pairs = zip(
            self.data.test_x.split(_TEST_BATCH), self.data.test_y.split(_TEST_BATCH), strict=True
        )
        for x, y in pairs:
            if self.metric == "loss":
                total += float(self.loss(model, x, y)) * len(y)
            else:
                outputs = self._outputs(model, x)
                one = outputs.shape[-1] == 1
                found = outputs[..., 0] > 0 if one else outputs.argmax(-1)
                total += 100 * int((found == y).sum())
        model.train()
        return total / len(self.data.test_y)

    def _outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        if self.argument is None:
            x = x.float() if x.dtype == torch.bool else x
            outputs: Tensor = model(x)
        else:
            outputs = model(**{self.argument: x}).logits
        return outputs


def mlp(inputs: int, hidden: list[int], outputs: int) -> nn.Sequential:
    """A ReLU network; its linear layers are the modules 0, 2, 4 and so on."""
    modules: list[nn.Module] = []
    for size in hidden:
        modules += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))
