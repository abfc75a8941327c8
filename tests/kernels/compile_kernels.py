"""Compiles all kernels for an NVIDIA GPU through their launchers, on a machine without one.

Run as a program, in its own process: `python compile_kernels.py 90 bfloat16` for compute capability
9.0. It takes a minute or two.
Prints a line for each compiled kernel: name, operand type, bytes of shared memory.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fpe_hf.kernels import triton_block, triton_element
from fpe_hf.kernels.gpu_shapes import BlockShape, ElementShape

BLOCKS = {
    "odd up": BlockShape(770, 3001, 1000, (257, 257, 256), sources=2, interleaved=True),
    "down": BlockShape(768, 3072, 3072, (384, 384), up=False),
}


class Target:
    """Stands in for the driver of a GPU."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_only() -> None:
    """Makes launches compile and print instead."""
    launch = JITFunction.run

    def run(self: Any, *args: Any, **options: Any) -> Any:
        kernel = launch(self, *args, **{**options, "warmup": True})
        assert "cubin" in kernel.asm
        print(self.fn.__name__, args[0].dtype, kernel.metadata.shared)
        return kernel

    JITFunction.run = run


def compile_blocks(shape: BlockShape, tokens: int, dtype: torch.dtype) -> None:
    index = torch.zeros(len(shape.tiles), shape.indexed, dtype=torch.int16)
    for tile in index:
        tile.copy_(torch.arange(shape.indexed))
    narrow = torch.empty(tokens, shape.features, dtype=dtype)
    wide = torch.empty(tokens, shape.wide, dtype=dtype)
    weight = torch.empty(shape.weights, dtype=dtype)
    bias = torch.empty(shape.sources * shape.parents, dtype=dtype)
    triton_block.gather_blocks(
        narrow, index, weight, bias, shape, coupled=shape.up, activation="gelu", keep_pre=True
    )
    triton_block.scatter_blocks(wide, index, weight, narrow.new_empty(shape.features), shape)
    triton_block.weight_blocks(wide, narrow, index, shape)


def compile_elements(shape: ElementShape, masked: bool, dtype: torch.dtype) -> None:
    entries = shape.rows * shape.columns
    x = torch.empty(4, shape.columns * (1 if shape.up else shape.alpha), dtype=dtype)
    triton_element.element_product(
        x,
        torch.empty(entries * (1 if shape.bits else shape.alpha), dtype=dtype),
        torch.empty(-(-entries // 8), dtype=torch.uint8) if masked else None,
        torch.empty(entries, dtype=torch.uint8) if shape.bits else None,
        torch.empty(shape.rows + 1, dtype=torch.int64) if masked else None,
        torch.empty(shape.rows, dtype=dtype),
        torch.empty(shape.rows) if shape.up else None,
        shape,
    )


def main() -> None:
    driver.set_active(Target(int(sys.argv[1])))
    compile_only()
    dtype = getattr(torch, sys.argv[2])
    for shape in BLOCKS.values():
        for tokens in (4, 2048):
            compile_blocks(shape, tokens, dtype)
    compile_elements(ElementShape(3072, 768, 2, 1, 3072), True, dtype)
    compile_elements(ElementShape(768, 3072, 8, 4, 768, up=False), False, dtype)
    compile_elements(ElementShape(768, 3072, 2, 0, 768, up=False), True, dtype)


if __name__ == "__main__":
    main()
