"""What a table consists of: groups of cases that share their weights, and presets of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from .blocks import PLAIN, SHAPES, Shape
from .contenders import RIVALS, WAYS, Contender, contenders
from .models import batch
from .results import BLOCK, CHECK, COMPILED, EAGER, FORWARD, GRAPH, MEMORY, MODEL, TRAIN, Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

EXAMPLE = 40
"""Tokens with which blocks are checked: enough to be computed as one operation."""


@dataclass(frozen=True)
class Group:
    """Cases that share their weights.

    Attributes:
        shape: Widths of the dense block; `None` for a whole model.
        model: Name of the model, or empty.
        alpha: Children per parent.
        dtype: A key of `DTYPES`.
    """

    shape: Shape | None
    model: str
    alpha: int
    dtype: str

    @property
    def name(self) -> str:
        """Of the shape or the model."""
        return self.shape.name if self.shape else self.model


@dataclass(frozen=True)
class Preset:
    """What to measure.

    Attributes:
        shapes: Blocks.
        models: Names of whole models; they take the first of the dtypes.
        alphas: Children per parent.
        dtypes: Keys of `DTYPES`.
        forward: Tokens in the batches of forward passes.
        train: Tokens in the batches that are trained on.
        memory: Tokens of the training steps whose memory is counted.
        model_modes: `FORWARD`, `TRAIN`.
        layouts: Of fpe_hf.
        tiles: Tiles of the layout `block`.
        ways: Keys of `WAYS`.
        rivals: Among `RIVALS`.
        how: How PyTorch runs them.
        budget: Seconds for everything, about.
    """

    shapes: tuple[Shape, ...] = ()
    models: tuple[str, ...] = ()
    alphas: tuple[int, ...] = (2, 4)
    dtypes: tuple[str, ...] = ("fp32",)
    forward: tuple[int, ...] = (1, 128, 1600)
    train: tuple[int, ...] = (128, 1600)
    memory: tuple[int, ...] = ()
    model_modes: tuple[str, ...] = (FORWARD,)
    layouts: tuple[str, ...] = ("block",)
    tiles: tuple[int, ...] = (1,)
    ways: tuple[str, ...] = ("partition", "replicate")
    rivals: tuple[str, ...] = ("masked",)
    how: tuple[str, ...] = (EAGER,)
    budget: float = 300.0

    def only(self, choice: str) -> Preset:
        """A part of the preset.

        Args:
            choice: A field and some of its values, such as `forward=1,128`; `models=` for none.

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
        found: dict[str, Any] = {name: tuple(held[word] for word in wanted)}
        return replace(self, **found)

    def groups(self) -> Iterator[Group]:
        """Groups of cases, the small ones first."""
        for shape in self.shapes:
            for dtype in self.dtypes:
                for alpha in self.alphas:
                    yield Group(shape, "", alpha, dtype)
        for model in self.models:
            for alpha in self.alphas:
                yield Group(None, model, alpha, self.dtypes[0])

    def cases(self, group: Group, device: str, threads: tuple[int, ...]) -> Iterator[Case]:
        """The cases of a group.

        Args:
            group: Which.
            device: Kind of device.
            threads: Numbers of threads; of a GPU, 0.
        """

        def case(mode: str, tokens: int, threads: int = threads[-1], how: str = EAGER) -> Case:
            kind = BLOCK if group.shape else MODEL
            known: Any = {"name": group.name, "alpha": group.alpha, "dtype": group.dtype}
            return Case(kind=kind, mode=mode, tokens=tokens, threads=threads, how=how, **known)

        items = EXAMPLE if group.shape else batch(group.model, device)
        yield case(CHECK, items)
        pairs = [(FORWARD, n) for n in self.forward] + [(TRAIN, n) for n in self.train]
        if not group.shape:
            pairs = [(mode, items) for mode in self.model_modes]
        for how in self.how:
            for mode, tokens in pairs:
                for count in threads:
                    yield case(mode, tokens, count, how)
        if group.shape and EAGER in self.how:
            yield from (case(MEMORY, tokens) for tokens in self.memory)

    def contenders(self, group: Group) -> list[Contender]:
        """What is measured beside the dense parent."""
        rivals = [Contender(kind) for kind in self.rivals if group.shape or kind != "csr"]
        return [*rivals, *contenders(self.layouts, self.tiles, self.ways)]


def presets() -> dict[str, Preset]:
    """What `run` measures, by name."""
    table = Preset(shapes=(SHAPES[1],), models=("minilm", "clip-b32"), memory=(1600,))
    return {
        "table": table,
        "quick": replace(
            table, shapes=SHAPES[:1], models=("minilm",), forward=(1, 128), train=(128,), budget=40
        ),
        "element": Preset(
            shapes=(SHAPES[1], SHAPES[3]),
            dtypes=tuple(DTYPES),
            forward=(1, 16, 128),
            train=(128,),
            memory=(128,),
            layouts=("element",),
            budget=900,
        ),
        "full": Preset(
            shapes=SHAPES,
            models=("minilm", "clip-b32", "gpt2"),
            alphas=(2, 4, 8),
            dtypes=tuple(DTYPES),
            forward=(1, 16, 128, 1600),
            memory=(128, 1600),
            model_modes=(FORWARD, TRAIN),
            layouts=("element", "block", "auto"),
            tiles=(1, 4, 8),
            ways=tuple(WAYS),
            rivals=RIVALS,
            budget=6 * 3600,
        ),
    }


def gpu_presets(device: str) -> list[Preset]:
    """What `gpu` measures, the most important first; on a CPU a little of it, at small widths.

    Args:
        device: `cuda` or `cpu`.
    """
    small = (Shape(64, 256), Shape(64, 256, gated=True))
    plain, gated = (SHAPES[1], SHAPES[3]) if device == "cuda" else small
    checks = Preset(
        shapes=small,
        dtypes=tuple(DTYPES),
        forward=(),
        train=(),
        layouts=("element", "block"),
        tiles=(1, 4),
        ways=tuple(WAYS),
    )
    eager = Preset(
        shapes=(plain,),
        dtypes=("bf16",),
        forward=(1, 16, 128, 1024, 8192),
        train=(128, 1024, 8192),
        memory=(8192,),
        layouts=("block", "element"),
    )
    one = replace(eager, ways=("partition",))
    compiled = replace(
        one, how=(COMPILED,), alphas=(4,), forward=(1, 1024, 8192), train=(1024, 8192)
    )
    found = [
        checks,
        eager,
        replace(one, shapes=(gated,), forward=(1, 16, 1024, 8192), train=(1024,)),
        compiled,
        replace(one, how=(GRAPH,), forward=(1, 16, 128, 1024), train=(128, 1024)),
        replace(one, dtypes=("fp32",)),
        replace(eager, layouts=("block",), tiles=(4, 16), rivals=(), memory=()),
        replace(one, shapes=(), models=("clip-b32",), model_modes=(FORWARD, TRAIN)),
        replace(compiled, shapes=(gated,), forward=(1, 1024), train=()),
    ]
    if device == "cuda":
        return found
    return [
        replace(
            own,
            alphas=(4,),
            forward=own.forward[:1],
            train=own.train[:1],
            memory=(16,) if own.memory else (),
        )
        for own in found
    ]


def costs_preset(dtypes: tuple[str, ...], modes: tuple[str, ...]) -> Preset:
    """What the table of costs needs: both layouts with a replicated fan-out, at the plain widths.

    Args:
        dtypes: Keys of `DTYPES`.
        modes: `forward`, `train`.
    """
    tokens = (1, 16, 128, 2048)
    return Preset(
        shapes=PLAIN,
        alphas=(2, 4, 8),
        dtypes=dtypes,
        forward=tokens if FORWARD in modes else (),
        train=tokens if TRAIN in modes else (),
        layouts=("element", "block"),
        tiles=(1, 4, 8),
        ways=("replicate",),
        rivals=(),
    )
