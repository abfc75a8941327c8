"""What a table consists of: cases, each measured in one go, and presets of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from .blocks import SHAPES, Shape
from .contenders import RIVALS, WAYS, Contender, contenders

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORWARD, TRAIN = "forward", "train"
"""A pass without gradients; forward and backward (of whole models, an optimizer step, too)."""


@dataclass(frozen=True)
class Group:
    """Cases of blocks that share their weights.

    Attributes:
        shape: Widths of the dense parent.
        alpha: Children per parent.
        dtype: A key of `DTYPES`.
    """

    shape: Shape
    alpha: int
    dtype: str


@dataclass(frozen=True)
class Preset:
    """What to measure.

    Attributes:
        shapes: Blocks.
        alphas: Children per parent.
        dtypes: Keys of `DTYPES`.
        tokens: Tokens in a batch.
        modes: `FORWARD`, `TRAIN`.
        layouts: Of fpe_hf.
        tiles: Tiles of the layout `block`.
        ways: Keys of `WAYS`.
        rivals: Among `RIVALS`.
        models: Names of whole models.
        model_tiles: Tiles of the layout `block` in whole models.
        model_modes: `FORWARD`, `TRAIN`.
        memory: Tokens of the steps whose memory is counted.
        budget: Seconds per case and, for whole models, per alpha.
    """

    shapes: tuple[Shape, ...]
    alphas: tuple[int, ...] = (2, 4, 8)
    dtypes: tuple[str, ...] = ("fp32",)
    tokens: tuple[int, ...] = (1, 16, 128, 2048)
    modes: tuple[str, ...] = (FORWARD, TRAIN)
    layouts: tuple[str, ...] = ("element", "block", "auto")
    tiles: tuple[int, ...] = (1, 4, 8)
    ways: tuple[str, ...] = tuple(WAYS)
    rivals: tuple[str, ...] = RIVALS
    models: tuple[str, ...] = ()
    model_tiles: tuple[int, ...] = (1, 4)
    model_modes: tuple[str, ...] = (FORWARD, TRAIN)
    memory: tuple[int, ...] = ()
    budget: float = 20.0

    def only(self, choice: str) -> Preset:
        """A part of the preset.

        Args:
            choice: A field and some of its values, such as `tokens=1,16`; `models=` for none.

        Raises:
            ValueError: There is no such field, or it does not hold such a value.
        """
        name, _, words = choice.partition("=")
        choices = [f.name for f in fields(self) if isinstance(getattr(self, f.name), tuple)]
        if name not in choices:
            raise ValueError(f"{choice!r}: nothing is called {name!r}; use {', '.join(choices)}.")
        held: dict[str, Any] = {getattr(v, "name", str(v)): v for v in getattr(self, name)}
        wanted = words.split(",") if words else []
        for word in wanted:
            if word not in held:
                raise ValueError(f"{choice!r}: {word!r} is not among {', '.join(held)}.")
        found: tuple[Any, ...] = tuple(held[word] for word in wanted)
        return replace(self, **{name: found})

    def groups(self) -> Iterator[Group]:
        """Groups of cases, the small ones first."""
        for shape in self.shapes:
            for dtype in self.dtypes:
                for alpha in self.alphas:
                    yield Group(shape, alpha, dtype)

    def cases(self) -> Iterator[tuple[int, str]]:
        """Tokens and mode of the cases of a group."""
        for tokens in self.tokens:
            for mode in self.modes:
                yield tokens, mode

    def contenders(self) -> list[Contender]:
        """What is measured beside the dense parent and the floor."""
        rivals = (Contender(kind) for kind in self.rivals)
        return [*rivals, *contenders(self.layouts, self.tiles, self.ways)]

    def model_contenders(self) -> list[Contender]:
        """The same for whole models."""
        rivals = [Contender(kind) for kind in self.rivals if kind == "premasked"]
        return [*rivals, *contenders(self.layouts, self.model_tiles, self.ways)]


def presets(device: str) -> dict[str, Preset]:
    """The presets for a kind of device, `cpu` or `cuda`."""
    gpu = device == "cuda"
    encoders = ("minilm", "clip-b32", "gpt2")
    table = Preset(
        shapes=(SHAPES[1], SHAPES[3]) if gpu else (SHAPES[1],),
        dtypes=("bf16",) if gpu else ("fp32",),
        tokens=(1, 16, 2048) if gpu else (1, 128, 2048),
        layouts=("element", "block", "auto") if gpu else ("block", "auto"),
        models=("llama-1b",) if gpu else encoders[:2],
        model_modes=(FORWARD,),
        memory=(2048,),
    )
    return {
        "quick": Preset(
            shapes=SHAPES[:1],
            alphas=(2, 4),
            tokens=(1, 128),
            tiles=(1, 4),
            ways=("replicate", "exact"),
            models=("minilm",),
            model_tiles=(1,),
            model_modes=(FORWARD,),
            memory=(128,),
            budget=3.0,
        ),
        "table": table,
        "full": Preset(
            shapes=SHAPES,
            dtypes=tuple(DTYPES),
            models=(*encoders, "llama-1b"),
            memory=(128, 2048),
        ),
    }
