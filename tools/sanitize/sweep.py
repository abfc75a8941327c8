"""Calls the kernels of the `element` layout on random jobs, for a number of seconds.

Memory is torch's, whose pieces the sanitizer tells apart. Results are compared with plain torch.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter

import torch
from torch import Tensor

from fpe_hf.errors import CheckpointError
from fpe_hf.kernels import native, packed
from fpe_hf.kernels.packed import Rows
from fpe_hf.packing import code_bits, pack

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def draw_rows(draw: random.Random) -> tuple[Rows, bool]:
    """Rows of any kind, and whether children have inputs of their own."""
    axes = (draw.randint(1, 6), draw.randint(1, 3), draw.randint(1, 4))
    columns = draw.choice([1, draw.randint(1, 70), draw.randint(60, 140), 64, 128, 1029])
    every = (axes[1] * axes[2], axes[2], 1)
    copies, own = draw.random() < 0.4, draw.random() < 0.5
    keep = (axes[2], 0, 1) if copies and own else every
    shared = draw.randint(0, 3)
    owner = (*((0,) * shared), *every[shared:])
    order = tuple(draw.sample(range(4), 4))
    children = 1 if copies else draw.choice([1, 2, 3, 4, 5, 8, 9, 16, 17, 256])
    inputs = (0, 1, 0) if copies else (0, 0, 0)
    return Rows(axes, columns, children, keep, owner, inputs, order), own and not copies


def strided(tensor: Tensor, draw: random.Random) -> Tensor:
    """The same numbers, perhaps with gaps between them."""
    if draw.random() < 0.7:
        return tensor
    return torch.stack([tensor, tensor], -1)[..., 0]


def run(draw: random.Random) -> str:
    """One job; returns how it ended."""
    rows, own = draw_rows(draw)
    density = draw.choice([None, 0.0, 0.1, 0.5, 0.9, 1.0])
    mask = torch.rand(rows.span(rows.keep) * rows.columns) < (1.0 if density is None else density)
    codes = torch.randint(0, rows.children, (rows.span(rows.owner) * rows.columns,))
    keep = None if density is None else pack(mask, 1)
    owner = None if rows.children == 1 else pack(codes, code_bits(rows.children))
    there = torch.ones(*rows.axes, rows.columns, dtype=torch.bool)
    if keep is not None:
        there = rows.spread(keep, 1, rows.keep).bool()
    weight = torch.randn(int(there.sum())).to(draw.choice(DTYPES))
    damage = draw.choice(["", "", "", "mask", "codes", "fewer", "more"])
    if damage == "mask" and keep is not None:
        keep = torch.randint(0, 256, keep.shape, dtype=torch.uint8)
    elif damage == "codes" and owner is not None:
        owner = torch.randint(0, 256, owner.shape, dtype=torch.uint8)
    elif damage == "fewer":
        weight = weight[: draw.randint(0, len(weight))].clone()
    elif damage == "more":
        weight = torch.cat([weight, weight[: draw.randint(0, 70)]])
    about, weight = (keep, owner, rows), strided(weight, draw)
    try:
        filled = packed.fill(weight, *about)
        taken = packed.take(strided(filled, draw), *about, len(weight))
        if not damage and not torch.equal(taken, weight):
            raise AssertionError(f"another value came back: {rows}")
        if rows.children <= packed.MOST_CHILDREN and weight.dtype in packed._DTYPES:
            count = rows.axes[1] if any(rows.inputs) else rows.children if own else 1
            x = torch.randn(draw.choice([0, 1, 2, 3, 4, 5, 9]), count, rows.columns)
            found = packed.sums(strided(x, draw), weight, *about)
            if not damage:
                compare(found, x, filled, rows)
    except CheckpointError:
        return "refused"
    return "damaged, but fits" if damage else "right"


def compare(found: Tensor, x: Tensor, filled: Tensor, rows: Rows) -> None:
    """With an ordinary product."""
    matrix = filled.double().permute(*(rows.order.index(axis) for axis in range(4)), 4)
    copies = "tbi,abcki->tkabc" if any(rows.inputs) else "tki,abcki->tkabc"
    x = x.double() if any(rows.inputs) else x.double().expand(-1, rows.children, -1)
    sizes = torch.einsum(copies, x.abs(), matrix.abs())
    error = (found.double() - torch.einsum(copies, x, matrix)).abs()
    if bool((error > 4e-6 * sizes).any()):
        raise AssertionError(f"another sum: {rows}")


def main() -> None:
    """Runs jobs until the time is over."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    native.FLAGS = ("-O1", "-g", "-std=gnu11", "-fPIC", "-Wno-psabi", "-fno-omit-frame-pointer")
    flags = ("-march=native", *os.environ["SANITIZE_FLAGS"].split())
    native.OPTIONAL_FLAGS = ((*flags, "-fopenmp", "-fsanitize=address,undefined"),)
    reason = native.unavailable("packed")
    if reason is not None:
        sys.exit(reason)
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    draw, ends, stop = random.Random(seed), Counter[str](), time.monotonic() + seconds
    while time.monotonic() < stop:
        ends[run(draw)] += 1
    counts = ", ".join(f"{count:,} {end}" for end, count in ends.most_common())
    print(f"{sum(ends.values()):,} jobs without a report: {counts}")


if __name__ == "__main__":
    main()
