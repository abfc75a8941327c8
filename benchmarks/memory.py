"""How much memory a training step takes: activations, weights and optimizer, the peak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .contenders import block_call
from .results import TRAIN

Step = Callable[[], object]


def activation_bytes(step: Step, module: nn.Module, inputs: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for backward.

    Storages count once. The module's own numbers and the inputs do not: they are there anyway.

    Args:
        step: A forward pass with gradients.
        module: What runs.
        inputs: What it runs on.
    """
    known = {_key(part) for tensor in (*_tensors(module), *inputs) for part in _strided(tensor)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in _strided(tensor):
            if _key(part) not in known:
                kept[_key(part)] = part.untyped_storage().nbytes()
        alive.append(tensor)  # else a later storage may take the same address
        return tensor

    alive: list[Tensor] = []
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = step()  # held until the count is done
    del outputs
    return sum(kept.values())


def state_bytes(module: nn.Module, step: Step) -> int:
    """Bytes of a module's weights, buffers and gradients and of AdamW's state after one step.

    Args:
        module: What is trained; its weights change.
        step: Forward and backward.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)
    step()
    optimizer.step()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    states = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    everything = {
        _key(part): part.untyped_storage().nbytes()
        for tensor in (*_tensors(module), *grads, *states)
        for part in _strided(tensor)
    }
    module.zero_grad(set_to_none=True)
    return sum(everything.values())


def gpu_peak_bytes(step: Step, device: torch.device) -> int:
    """Bytes by which a step's peak is above what is allocated before it."""
    step()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def memory_of(module: nn.Module, x: Tensor) -> dict[str, int]:
    """Bytes of a training step: `activations`, `state` and, on a GPU, `peak`.

    Args:
        module: A block; its weights change.
        x: Its inputs.
    """
    x = x.detach().requires_grad_()
    step = block_call(module, x, TRAIN)
    found = {"activations": activation_bytes(lambda: module(x), module, [x])}
    found["state"] = state_bytes(module, step)
    if x.is_cuda:
        found["peak"] = gpu_peak_bytes(step, x.device)
    module.zero_grad(set_to_none=True)
    return found


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module holds: parameters, buffers, and plain attributes."""
    for part in module.modules():
        for value in vars(part).values():
            yield from _inside(value)


def _inside(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _inside(item)


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors with storage that make up a tensor."""
    if tensor.layout == torch.strided:
        return (tensor,)
    tensor = tensor.detach()
    return (tensor.crow_indices(), tensor.col_indices(), tensor.values())


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
