"""Trading time for memory in training."""

from __future__ import annotations

from torch import nn

from .errors import ConfigError
from .layers import BlockUp
from .modules import fpe_layers


def recompute_hidden(model: nn.Module, enabled: bool = True) -> int:
    """Has widened blocks make their hidden activations anew in the backward pass, not keep them.

    A training step then keeps of a block only what goes into it, less than of its dense parent. It
    costs one more product with the up projections. This works in the `block` layout on the CPU,
    where an MLP runs as one operation. Everywhere else use `gradient_checkpointing_enable()` of
    transformers, which makes whole layers anew.

    Args:
        model: A widened model.
        enabled: Whether to do so from now on.

    Returns:
        How many up projections that concerns.

    Raises:
        ConfigError: The model has no block in the `block` layout.
    """
    ups = [layer for _, layer in fpe_layers(model) if isinstance(layer, BlockUp)]
    if not ups:
        raise ConfigError(
            f"{type(model).__name__} has no widened block in the layout 'block'; widen it with "
            "layout='block' or 'auto', or use gradient_checkpointing_enable()."
        )
    for up in ups:
        up.recompute = enabled
    return len(ups)
