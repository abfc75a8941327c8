"""Small parent blocks of every kind, and configurations for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fpe_hf.config import FPEConfig
from fpe_hf.discovery import MLPBlock
from fpe_hf.layers import FPELayer, build_layers
from fpe_hf.planning import BlockPlan, BlockSpec, ParentWeights, plan_block

KINDS = ("plain", "gated", "halves", "interleaved")


@dataclass(frozen=True)
class Case:
    """A parent block and how to widen it."""

    block: MLPBlock
    parent: ParentWeights
    config: FPEConfig

    @cached_property
    def plan(self) -> BlockPlan:
        return plan_block(self.block, self.parent, self.config)

    @property
    def spec(self) -> BlockSpec:
        return self.plan.spec

    def layers(self) -> list[FPELayer]:
        """Freshly built widened modules: the ups, then the down."""
        stocks = dict.fromkeys((*self.block.ups, self.block.down), "linear")
        return list(build_layers(self.plan, self.parent, stocks).values())


def make_block(kind: str, d: int, h: int, o: int) -> MLPBlock:
    return MLPBlock(
        name="mlp",
        up="mlp.up",
        down="mlp.down",
        activation="gelu",
        in_features=d,
        parents=h,
        out_features=o,
        gate="mlp.gate" if kind == "gated" else None,
        fused=kind if kind in ("halves", "interleaved") else None,
    )


def make_case(
    kind: str = "plain",
    d: int = 7,
    h: int = 5,
    o: int = 6,
    *,
    biased: bool = True,
    zeros: float = 0.0,
    weights: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Case:
    """A case with normally distributed weights.

    Args:
        kind: One of `KINDS`.
        d: Inputs.
        h: Parents.
        o: Outputs.
        biased: Whether all projections have biases.
        zeros: Share of weights that are exactly zero.
        weights: Seed of the weights.
        dtype: Of the weights.
        **config: Fields of `FPEConfig`; the layout is `element` unless they say otherwise.
    """
    block = make_block(kind, d, h, o)
    generator = torch.Generator().manual_seed(weights)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        kept = torch.rand(shape, generator=generator) >= zeros
        return (values * kept).to(dtype)

    per_up = block.sources // len(block.ups)
    parent = ParentWeights(
        ups=tuple(draw(per_up, h, d) for _ in block.ups),
        up_biases=tuple(draw(per_up, h) if biased else None for _ in block.ups),
        down=draw(o, h),
        down_bias=draw(o) if biased else None,
    )
    return Case(block, parent, FPEConfig(**{"layout": "element", **config}))


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    """Cases of all kinds that can be planned; `fixed` takes precedence over what is drawn."""
    alpha = draw(st.integers(2, 5))
    layout = fixed.get("layout") or draw(st.sampled_from(["element", "block"]))
    drawn = {
        "kind": draw(st.sampled_from(KINDS)),
        "d": draw(st.integers(2 * alpha, 2 * alpha + 8)),  # so that every extra can be paid for
        "h": draw(st.integers(1, 9)),
        "o": draw(st.integers(alpha, 13)),
        "biased": draw(st.booleans()),
        "weights": draw(st.integers(0, 2**32)),
        "alpha": alpha,
        "layout": layout,
        "fan_out": draw(st.sampled_from(["replicate", "partition"])),
        "tile_size": draw(st.none() | st.integers(1, 10)) if layout == "block" else None,
        "coupling": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "learn_coupling": draw(st.booleans()),
        "bias": draw(st.sampled_from(["shared", "child"])),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }
    return make_case(**{**drawn, **fixed})
