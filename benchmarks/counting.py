"""Counts the memory of a training step of every contender."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import nn

from .blocks import make_parent, make_tokens
from .cases import DTYPES, TRAIN, Group
from .contenders import FLOOR, Contender, block_call, build
from .memory import (
    activation_bytes,
    fresh_process,
    gpu_peak_bytes,
    resident_peak_bytes,
    state_bytes,
)
from .results import Memory
from .timing import UNSUPPORTED, in_short


def empty_memory(group: Group, contender: Contender, tokens: int) -> Memory:
    """A row without figures."""
    return Memory(group.shape.name, contender.name, group.alpha, group.dtype, tokens)


def memory_rows(
    group: Group,
    modules: Mapping[Contender, nn.Module],
    notes: Mapping[Contender, str],
    tokens: int,
    device: torch.device,
    *,
    peak: bool,
) -> Iterator[Memory]:
    """Memory of a training step of every contender.

    Args:
        group: What the contenders are made from.
        modules: Their modules, the dense parent first.
        notes: Contenders that could not be built, and why.
        tokens: Tokens in the batch.
        device: Where they are.
        peak: On a CPU, measure the peak of resident memory, too.
    """
    dense: dict[str, int] = {}
    for contender, module in modules.items():
        if contender.kind == FLOOR:
            continue
        found, note = _count(group, contender, module, tokens, device, peak)
        dense = dense or found
        ratios = {name: found[name] / dense[name] for name in found if dense.get(name)}
        row = vars(empty_memory(group, contender, tokens))
        yield Memory(**{**row, **ratios, "bytes": found, "note": note})
    for contender, note in notes.items():
        yield Memory(**{**vars(empty_memory(group, contender, tokens)), "note": note})


def _count(
    group: Group,
    contender: Contender,
    module: nn.Module,
    tokens: int,
    device: torch.device,
    peak: bool,
) -> tuple[dict[str, int], str]:
    """Bytes by name, and what kept the rest from being counted."""
    found: dict[str, int] = {}
    x = make_tokens(group.shape, tokens, DTYPES[group.dtype], device).requires_grad_()
    step = block_call(module, x, TRAIN)
    try:
        found["activations"] = activation_bytes(lambda: module(x), module, [x])
        found["state"] = state_bytes(module, step)
        if device.type == "cuda":
            found["peak"] = gpu_peak_bytes(step, device)
        elif peak:
            arguments = (group, contender, tokens, torch.get_num_threads())
            found["peak"] = fresh_process(resident_peak, *arguments)
    except UNSUPPORTED as error:
        return found, in_short(error)
    finally:
        module.zero_grad(set_to_none=True)
    return found, ""


def resident_peak(group: Group, contender: Contender, tokens: int, threads: int) -> int:
    """The peak of resident memory of one training step; for a process of its own.

    Args:
        group: Shape, alpha, dtype.
        contender: Which.
        tokens: Tokens in the batch.
        threads: Of the process.
    """
    torch.set_num_threads(threads)
    device, dtype = torch.device("cpu"), DTYPES[group.dtype]
    parent = make_parent(group.shape, dtype, device)
    few = make_tokens(group.shape, 2, dtype, device)
    module = build(contender, parent, group.shape, group.alpha, few)
    block_call(module, few, TRAIN)()  # loads what is loaded once
    module.zero_grad(set_to_none=True)
    step = block_call(module, make_tokens(group.shape, tokens, dtype, device), TRAIN)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else the step may live in what was freed before
    return resident_peak_bytes(step)
