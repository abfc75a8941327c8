"""What the user asks for: `FPEConfig`, validated, and JSON in and out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

from .errors import ConfigError, did_you_mean

FAN_OUTS = ("replicate", "partition")
LAYOUTS = ("element", "block")
AUTO = "auto"
PURPOSES = ("training", "serving")
BIASES = ("shared", "child")
MAX_ALPHA = 256
MIN_BUDGET = 0.05

# Fields that may differ from block to block.
OVERRIDABLE = (
    "alpha",
    "split",
    "fan_out",
    "layout",
    "tile_size",
    "purpose",
    "coupling",
    "learn_coupling",
    "bias",
    "budget",
    "open",
    "seed",
)


class FPEFields(TypedDict, total=False):
    """The fields of `FPEConfig`, as `widen` takes them by name."""

    alpha: int
    split: str
    fan_out: str
    layout: str
    tile_size: int | None
    purpose: str
    coupling: float
    learn_coupling: bool
    bias: str
    budget: float
    open: bool
    targets: Sequence[str] | None
    exclude: Sequence[str]
    overrides: Mapping[str, Mapping[str, Any]]
    seed: int


@dataclass(frozen=True)
class FPEConfig:
    """How to widen a model. The defaults are the paper's (arXiv 2510.04500, section 3), in the
    layout that trains fastest.

    Args:
        alpha: Expansion factor: children per parent neuron, 2 to 256; 1 with a `budget` below 1.
        split: How a parent's inputs are divided among its children: `"random"` (balanced, drawn
            for every parent), `"feature"` (balanced clusters of the Gram matrix `W1^T W1`),
            `"learned"` (by training, while a `BudgetSchedule` closes the budget), or a name given
            to `register_split`.
        fan_out: How outgoing weights are divided. `"replicate"` copies them to every child, then
            prunes the smallest magnitudes back to the budget (the paper); `"partition"` leaves
            each outgoing weight with exactly one child.
        layout: `"element"` stores any mask, weight by weight; `"block"` lets the parents of a tile
            share one split, so that every child of a tile is a small dense matrix; `"auto"` takes
            for each block the layout and tiles that are the fastest for its `purpose`, as measured
            (`fpe_hf.planning.costs`); with a `budget` below 1, or for a parent that has been
            pruned, `"element"`.
        tile_size: Parents per tile in the `block` layout; `None` makes the whole block one tile.
        purpose: What `layout="auto"` is to be fast in: `"training"` (forward and backward) or
            `"serving"` (forward).
        coupling: 0.0 to 1.0. Child c's pre-activation is `z_c + coupling * sum_{k != c} z_k + b`.
            With 1.0 and `fan_out="partition"` the widened model computes what its parent did, and
            trains as it would, unless a `CouplingSchedule` lets siblings part.
        learn_coupling: Train one coupling per parent, started at `coupling`. Pruning pays for it,
            so the widened model starts near its parent at best.
        bias: `"shared"`: the children of a parent share its bias, for free; `"child"`: one bias
            per child, paid for by pruning.
        budget: Share of the parent's non-zeros that the block ends with, 0.05 to 1.0.
        open: Start with more non-zeros than the budget allows, to be closed in training by a
            `BudgetSchedule`: every child keeps its copies of the outgoing weights and, with a
            learned split, all of its parent's inputs. A learned split is always open.
        targets: Names or patterns of the blocks to widen; `None` takes every block that
            `find_mlps` lists. A word matches a block whose name, or whose up, gate or down
            projection, equals it, ends with `.word`, lies below it, or matches it as a shell
            pattern (`*.layers.[0-3].*`).
        exclude: Names or patterns of blocks to leave alone.
        overrides: Per-block settings: pattern -> fields among `OVERRIDABLE`. Later entries win.
        seed: Seed of everything drawn at random. Each block derives its own from it and its name.

    Raises:
        ConfigError: A value is unknown, mistyped or out of range.
    """

    alpha: int = 2
    split: str = "random"
    fan_out: str = "replicate"
    layout: str = AUTO
    tile_size: int | None = None
    purpose: str = "training"
    coupling: float = 0.0
    learn_coupling: bool = False
    bias: str = "shared"
    budget: float = 1.0
    open: bool = False
    targets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_int("alpha", self.alpha, 1, MAX_ALPHA)
        _check_int("seed", self.seed, 0, 2**63 - 1)
        if self.tile_size is not None:
            _check_int("tile_size", self.tile_size, 1, None)
        _check_choice("fan_out", self.fan_out, FAN_OUTS)
        _check_choice("layout", self.layout, (*LAYOUTS, AUTO))
        _check_choice("purpose", self.purpose, PURPOSES)
        _check_choice("bias", self.bias, BIASES)
        for name in ("learn_coupling", "open"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False.")
        for name, least, accepted in (
            ("coupling", 0.0, "0.0 (plain FPE) to 1.0 (exact start)"),
            ("budget", MIN_BUDGET, f"{MIN_BUDGET} to 1.0 (the parent's non-zeros)"),
        ):
            share = _read_share(name, getattr(self, name), least, accepted)
            object.__setattr__(self, name, share)
        if self.alpha == 1 and self.budget == 1.0:
            raise ConfigError(
                f"alpha=1 is out of range: it must be an integer from 2 to {MAX_ALPHA}. With a "
                "budget below 1.0 it may be 1, too."
            )
        from .splits import check_split

        check_split(self.split)
        if self.tile_size is not None and self.layout != "block":
            raise ConfigError(
                f"tile_size={self.tile_size!r} needs layout='block', not {self.layout!r}: "
                "drop tile_size or set layout='block'."
            )
        if self.starts_open:
            self._check_open()
        if self.targets is not None:
            object.__setattr__(self, "targets", _check_words("targets", self.targets))
        object.__setattr__(self, "exclude", _check_words("exclude", self.exclude))
        self._check_overrides()

    @property
    def starts_open(self) -> bool:
        """Whether blocks start with more non-zeros than the budget allows."""
        from .splits import LEARNED

        return self.open or self.split == LEARNED

    def _check_open(self) -> None:
        from .splits import LEARNED

        what = "split='learned'" if self.split == LEARNED else "open=True"
        if self.layout == "block":
            raise ConfigError(
                f"{what} needs layout='element' (or 'auto'): what training leaves fits no tiles."
            )
        if self.coupling or self.learn_coupling:
            raise ConfigError(
                f"{what} goes without coupling: set coupling=0.0, learn_coupling=False. Only "
                "split='learned' starts exactly at its parent then."
            )
        if self.split == LEARNED and self.fan_out != "replicate":
            raise ConfigError(
                f"{what} needs fan_out='replicate', not {self.fan_out!r}: training divides the "
                "outgoing weights, too."
            )

    def _check_overrides(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(
                f"overrides={self.overrides!r} must map patterns to fields, "
                "as in {'*.layers.0.*': {'alpha': 4}}."
            )
        for pattern, fields in self.overrides.items():
            if not isinstance(pattern, str) or not isinstance(fields, Mapping):
                raise ConfigError(
                    f"overrides[{pattern!r}]={fields!r} must map a pattern to fields."
                )
            for name in fields:
                if name not in OVERRIDABLE:
                    raise ConfigError(
                        f"overrides[{pattern!r}] sets {name!r}, which cannot differ by block; "
                        f"accepted: {', '.join(OVERRIDABLE)}.{did_you_mean(str(name), OVERRIDABLE)}"
                    )
        if self.overrides:
            plain = {key: dict(value) for key, value in self.overrides.items()}
            object.__setattr__(self, "overrides", plain)
            for pattern in plain:
                self.for_block([pattern])

    def for_block(self, patterns: list[str]) -> FPEConfig:
        """The configuration of one block: this one with the given overrides applied in order.

        Args:
            patterns: Keys of `overrides` that match the block.

        Raises:
            ConfigError: An override's value is not accepted.
        """
        merged: dict[str, Any] = {}
        for pattern in patterns:
            fields = self.overrides[pattern]
            if fields.get("layout", "block") != "block":
                merged.pop("tile_size", None)
            merged.update(fields)
        if merged.get("layout", "block") != "block":
            merged.setdefault("tile_size", None)
        return dataclasses.replace(self, overrides={}, **merged)

    def with_overrides(self, **fields: Unpack[FPEFields]) -> FPEConfig:
        """A copy with some fields changed.

        Raises:
            ConfigError: A name is not a field, or its value is not accepted.
        """
        return FPEConfig.from_dict({**self.to_dict(), **fields})

    @classmethod
    def of(cls, config: FPEConfig | Mapping[str, Any] | None) -> FPEConfig:
        """What `widen` was asked for: a configuration, its fields, or nothing.

        Raises:
            ConfigError: It is something else, or a field is unknown or not accepted.
        """
        if isinstance(config, FPEConfig):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(
                f"config={config!r} must be an FPEConfig or a mapping of its fields, as in "
                "widen(model, {'alpha': 4}); fields may also be named: widen(model, alpha=4)."
            )
        return cls.from_dict(config or {})

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        plain = dataclasses.asdict(self)
        plain["targets"] = None if self.targets is None else list(self.targets)
        plain["exclude"] = list(self.exclude)
        return plain

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FPEConfig:
        """Builds a configuration from JSON values.

        Raises:
            ConfigError: A key is unknown or its value is not accepted.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is not a field of FPEConfig; accepted: {', '.join(known)}."
                    f"{did_you_mean(str(name), known)}"
                )
        return cls(**fields)

    def to_json(self) -> str:
        """All fields as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> FPEConfig:
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: The text is not a JSON object of known, accepted fields.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"The configuration is not JSON: {error}.") from error
        if not isinstance(fields, dict):
            raise ConfigError(
                f"The configuration must be a JSON object, not {type(fields).__name__}."
            )
        return cls.from_dict(fields)


def _check_int(name: str, value: object, low: int, high: int | None) -> None:
    accepted = f"an integer from {low}" + ("" if high is None else f" to {high}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be {accepted}.")
    if value < low or (high is not None and value > high):
        raise ConfigError(f"{name}={value!r} is out of range: it must be {accepted}.")


def _read_share(name: str, value: object, least: float, accepted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} must be a number from {least} to 1.0.")
    if not least <= value <= 1.0:
        raise ConfigError(f"{name}={value!r} is out of range: {accepted}.")
    return float(value)


def _check_choice(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        words = ", ".join(repr(word) for word in accepted)
        raise ConfigError(
            f"{name}={value!r} is not accepted; accepted: {words}."
            f"{did_you_mean(str(value), accepted)}"
        )


def _check_words(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(w, str) for w in value):
        raise ConfigError(f"{name}={value!r} must be a list of names or patterns.")
    return tuple(value)
