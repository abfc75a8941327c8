"""Finds the modules that hold widened MLPs, and has them compute as one operation."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from ..layers import BlockDown, BlockUp
from ..layers.subclass import give, is_given, take_back
from ..planning import BlockSpec
from . import apart, whole
from .recognize import recognize
from .whole import Parts


def fuse(model: nn.Module) -> None:
    """Has every module that holds a block of the `block` layout compute it as one operation.

    Does nothing to modules that already do so, and nothing to blocks in which no such module is
    found.

    Args:
        model: A widened model, its weights loaded or not.
    """
    for module, spec, parts in list(_holders(model)):
        program = recognize(module, spec, parts.ups, parts.down)
        if program is not None:
            module.__dict__["_fpe_whole"] = whole.Whole(
                parts, program, type(module).forward, tuple(module._modules)
            )
            give(module, whole.forward)
        elif spec.sources == 1 and len(parts.ups) == 1:
            apart.install(module, parts)


def unfuse(model: nn.Module) -> None:
    """Undoes `fuse`."""
    for module in model.modules():
        take_back(module, whole.forward, *apart.FORWARDS)
        for name in ("_fpe_whole", "_fpe_apart"):
            module.__dict__.pop(name, None)


def _holders(model: nn.Module) -> Iterator[tuple[nn.Module, BlockSpec, Parts]]:
    """The innermost module that holds all projections of a block, each once."""
    library = sys.modules.get("transformers.modeling_utils")
    pretrained = getattr(library, "PreTrainedModel", ())  # whose classes others look up
    # By the spec itself: parts of a composite may have been widened apart, under the same names.
    ups: dict[tuple[int, int], tuple[str, BlockUp]] = {}
    downs: list[tuple[str, BlockDown]] = []
    for name, module in model.named_modules():
        if isinstance(module, BlockUp) and module.index is not None:
            ups[id(module.spec), module.index] = name, module
        elif isinstance(module, BlockDown):
            downs.append((name, module))
    for name, down in downs:
        own = [ups.get((id(down.spec), index)) for index in range(len(down.spec.ups))]
        found = [up[0] for up in own if up is not None]
        if len(found) < len(own) or down.spec.experts > 1:
            continue
        holder = _common([*found, name])
        start = len(holder) + 1 if holder else 0
        module = model.get_submodule(holder)
        if not (is_given(module) or isinstance(module, pretrained)):
            yield module, down.spec, Parts(tuple(up[start:] for up in found), name[start:])


def _common(names: list[str]) -> str:
    """The longest dotted name that all names lie within."""
    shared = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
