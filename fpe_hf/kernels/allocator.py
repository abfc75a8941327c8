"""What the C library does with memory that is freed."""

from __future__ import annotations

from functools import cache

import torch


@cache
def settle_allocator() -> None:
    """Has the C library keep the memory of freed tensors, rather than fetch it anew each time.

    glibc does so once a piece as large has been freed, up to 32 MiB. Most programs come to that by
    themselves, sooner or later.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
