"""Memory that is not fetched anew each time: bringing in fresh pages takes as long as the
arithmetic on what they hold."""

from __future__ import annotations

import mmap
import threading
import weakref
from functools import cache

import torch
from torch import Tensor


@cache
def settle_allocator() -> None:
    """Has the C library keep the memory of freed tensors, rather than fetch it anew each time.

    glibc does so once a piece as large has been freed, up to 32 MiB. Most programs come to that by
    themselves, sooner or later.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


LARGE = 32 << 20
"""Bytes from which the C library keeps nothing."""

_idle: list[mmap.mmap] = []
_lock = threading.Lock()


def borrow(count: int) -> Tensor:
    """Float32 numbers `[count]`, not initialised; many of them in memory that was used before.

    Args:
        count: How many.
    """
    size = 4 * count
    if size < LARGE:
        return torch.empty(count, dtype=torch.float32, device="cpu")
    with _lock:
        fitting = [piece for piece in _idle if size <= len(piece) <= 2 * size]
        piece = min(fitting, key=len, default=None)
        if piece is not None:
            _idle.remove(piece)
    if piece is None:
        piece = mmap.mmap(-1, size)
    view = memoryview(piece)  # the tensor holds it as long as there is anything to hold
    weakref.finalize(view, _idle.append, piece).atexit = False
    return torch.frombuffer(view, dtype=torch.float32, count=count)


def release() -> None:
    """Gives memory back that no tensor uses."""
    with _lock:
        _idle.clear()
