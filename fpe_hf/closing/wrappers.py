"""Models wrapped in `DistributedDataParallel`, which keeps lists of their parameters."""

from __future__ import annotations

import gc

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..belongings import HOOKS

_MEGABYTE = 2**20


def wrappers_of(model: nn.Module) -> list[DistributedDataParallel]:
    """The wrappers of a model, itself perhaps; of its parts none.

    Whoever trains it, such as transformers' Trainer, may hold the wrapper and hand out the model.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    inner = getattr(model, "_orig_mod", model)
    known = (model, inner, getattr(inner, "module", None))
    return [
        held
        for held in gc.get_objects()
        if type(held) is DistributedDataParallel and any(held.module is own for own in known)
    ]


def wrap_again(wrapper: DistributedDataParallel) -> None:
    """Has a wrapper list the parameters that its model has now."""
    kept = {name: vars(wrapper)[name] for name in HOOKS}
    training, hooks = wrapper.training, list(wrapper._comm_hooks)
    wrapper.__init__(  # type: ignore[misc]
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        dim=wrapper.dim,
        broadcast_buffers=wrapper.broadcast_buffers,
        init_sync=False,  # its parameters are equal
        process_group=wrapper.process_group,
        bucket_cap_mb=wrapper.bucket_bytes_cap / _MEGABYTE,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
        static_graph=wrapper.static_graph,
    )
    vars(wrapper).update(kept, training=training)
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
