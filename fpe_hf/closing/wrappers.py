"""Models wrapped in `DistributedDataParallel`, which keeps lists of their parameters."""

from __future__ import annotations

import gc

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


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
    """Has a wrapper list the parameters that its model has now, as when it is unpickled."""
    named = wrapper.module.named_parameters()
    left_out = wrapper.parameters_to_ignore
    own = [parameter for name, parameter in named if name not in left_out]
    if list(map(id, own)) == list(map(id, wrapper._module_parameters)):
        return
    wrapper._module_parameters = own
    parameters, sparse = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, sparse, names, wrapper.static_graph)
    wrapper._has_rebuilt_buckets = False
    if wrapper.static_graph:
        wrapper._static_graph_delay_allreduce_enqueued = False
        wrapper.reducer._set_static_graph()
        wrapper.logger._set_static_graph()  # type: ignore[union-attr]
    hooks, wrapper._comm_hooks = wrapper._comm_hooks, []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
