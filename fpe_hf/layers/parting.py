"""Says, once, that the siblings of a model that is trained stay equal."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .base import FPELayer

logger = logging.getLogger("fpe_hf")


def note_training(layer: FPELayer) -> None:
    """Warns if a layer is trained whose children are equal, and nothing is going to change that.

    Args:
        layer: A layer in its forward pass.
    """
    if not layer.training or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    stuck = layer.mergeable and layer.spec.alpha > 1 and not layer.spec.annealed_from
    if stuck and layer.weight.requires_grad:
        _warn()


@cache
def _warn() -> None:
    logger.warning(
        "Siblings cannot part: with a fixed coupling of 1.0 they are equal and get equal "
        "gradients, so this model trains as its dense parent would. Anneal the coupling "
        "(fpe_hf.CouplingSchedule or CouplingCallback, widen.coupling_schedule in recipes), or "
        'widen with split="learned".'
    )
