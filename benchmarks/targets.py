"""What is to be reached, and whether it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .cases import FORWARD, TRAIN
from .contenders import RIVALS
from .results import BLOCK, MODEL, Row

ALPHAS = (2, 4, 8)
NOT_MEASURED = "not measured"

_WIDTH = "768x3072"


@dataclass(frozen=True)
class Target:
    """A limit that every row of some kind must keep.

    Attributes:
        text: Which rows, in words.
        device: On which kind of device.
        limits: By alpha.
        wants: Picks the rows.
        at_least: Whether the limit is a lower one.
        value: What of a row is limited, given all rows; `None` if it is not known.
    """

    text: str
    device: str
    limits: Mapping[int, float]
    wants: Callable[[Row], bool]
    at_least: bool = False
    value: Callable[[Row, Sequence[Row]], float | None] = lambda row, rows: row.ratio


@dataclass(frozen=True)
class Verdict:
    """How a target stands at one alpha.

    Attributes:
        limit: The limit.
        at_least: Whether it is a lower one.
        worst: The value farthest from it on the wrong side; `None` if nothing was measured.
        row: Where.
    """

    limit: float
    at_least: bool
    worst: float | None = None
    row: Row | None = None

    @property
    def passed(self) -> bool:
        """Whether the limit is kept, by what was measured."""
        if self.worst is None:
            return False
        return self.worst >= self.limit if self.at_least else self.worst <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        if self.worst is None:
            return f"{NOT_MEASURED} ({sign} {self.limit:.2f})"
        return f"{self.worst:.2f} ({sign} {self.limit:.2f}) {'pass' if self.passed else 'FAIL'}"


def judge(target: Target, rows: Sequence[Row], alpha: int, device: str) -> Verdict:
    """How a target stands.

    Args:
        target: Which.
        rows: All that were measured.
        alpha: Children per parent.
        device: What they were measured on.
    """
    empty = Verdict(target.limits[alpha], target.at_least)
    if device != target.device:
        return empty
    values = [
        (value, row)
        for row in rows
        if row.alpha == alpha and row.ratio is not None and target.wants(row)
        if (value := target.value(row, rows)) is not None
    ]
    if not values:
        return empty
    pick = min if target.at_least else max
    worst, row = pick(values, key=lambda pair: pair[0])
    return Verdict(target.limits[alpha], target.at_least, worst, row)


def targets(device: str) -> list[Target]:
    """Every target; those that hold for any device are asked of this one.

    Args:
        device: `cpu` or `cuda`.
    """
    return [*_TIMES, _floor(device), _auto(device)]


def to_rivals(row: Row, rows: Iterable[Row]) -> float | None:
    """The ratio of a row to the fastest naive way in the same case; `None` if none was measured.

    Args:
        row: One of ours.
        rows: All that were measured.
    """
    rivals = [
        other.ratio
        for other in rows
        if other.key[:-1] == row.key[:-1] and other.layout in RIVALS and other.ratio is not None
    ]
    return row.ratio / min(rivals) if rivals and row.ratio is not None else None


def _block(row: Row, modes: tuple[str, ...], tokens: range, layouts: tuple[str, ...]) -> bool:
    return (
        row.kind == BLOCK and row.layout in layouts and row.mode in modes and row.tokens in tokens
    )


def _limits(two: float, four: float, eight: float) -> Mapping[int, float]:
    return dict(zip(ALPHAS, (two, four, eight), strict=True))


def _on_cpu(row: Row, mode: str, tokens: range) -> bool:
    fits = row.name == _WIDTH and row.dtype == "fp32"
    return fits and _block(row, (mode,), tokens, ("block",))


_MANY = range(128, 2049)
_TIMES = [
    Target(
        f"CPU block, forward, 128 to 2048 tokens, {_WIDTH}",
        "cpu",
        _limits(1.05, 1.15, 1.30),
        lambda row: _on_cpu(row, FORWARD, _MANY),
    ),
    Target(
        f"CPU block, forward+backward, 128 to 2048 tokens, {_WIDTH}",
        "cpu",
        _limits(1.10, 1.20, 1.40),
        lambda row: _on_cpu(row, TRAIN, _MANY),
    ),
    Target(
        f"CPU block, forward, 1 token, {_WIDTH}",
        "cpu",
        _limits(1.20, 1.30, 1.60),
        lambda row: _on_cpu(row, FORWARD, range(1, 2)),
    ),
    *(
        Target(
            f"CPU whole {title}, forward, layout block",
            "cpu",
            _limits(1.05, 1.10, 1.20),
            lambda row, name=name: (  # type: ignore[misc]
                row.kind == MODEL
                and row.name == name
                and row.mode == FORWARD
                and row.layout == "block"
            ),
        )
        for name, title in (("minilm", "MiniLM"), ("clip-b32", "CLIP B/32 vision tower"))
    ),
    Target(
        "GPU block bf16, forward and forward+backward, >= 2048 tokens",
        "cuda",
        _limits(1.10, 1.20, 1.40),
        lambda row: (
            row.dtype == "bf16" and _block(row, (FORWARD, TRAIN), range(2048, 2**31), ("block",))
        ),
    ),
    Target(
        "GPU, 1 to 16 tokens, block and element",
        "cuda",
        _limits(1.10, 1.20, 1.30),
        lambda row: _block(row, (FORWARD,), range(1, 17), ("block", "element")),
    ),
]


def _floor(device: str) -> Target:
    """The share of the floor, in every row that a target above it speaks of."""
    return Target(
        "fraction of the floor reached, all rows above that are blocks",
        device,
        _limits(0.90, 0.90, 0.85),
        lambda row: any(t.device == device and t.wants(row) for t in _TIMES),
        at_least=True,
        value=lambda row, rows: row.floor,
    )


def _auto(device: str) -> Target:
    return Target(
        'layout="auto" beside the fastest of masked dense, CSR and BSR, all cases',
        device,
        _limits(1.0, 1.0, 1.0),
        lambda row: row.layout == "auto",
        value=to_rivals,
    )
