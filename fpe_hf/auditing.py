"""`audit`: counts what a widened model holds and checks the invariants of the method."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from html import escape
from typing import Any

from torch import Tensor, nn

from .errors import BudgetError, ConfigError, OverwrittenError
from .layers import DownLayer, FPELayer, OpenLayer, UpLayer
from .layers.base import are_apart
from .markup import html_table, text_table
from .modules import blocks_of
from .planning import BlockSpec
from .planning.spec import OPEN


@dataclass(frozen=True)
class BlockAudit:
    """The count of one widened block, or of all of them.

    Attributes:
        name: Dotted name of the block, or `"total"`.
        parent_nonzeros: Non-zero numbers of the dense parent, biases included: the budget.
        nonzeros: Trainable numbers of the widened block: weights, biases and scalars.
        weights: Of these, weights.
        biases: Of these, biases.
        scalars: Of these, coupling scalars.
        parents: Parent neurons.
        children: Neurons of the widened block.
        disjoint: Whether no two children of a parent share an input (I2).
        coverage: Share of a parent's inputs that some child reads, 0 to 1, mean over parents.
        parent_bytes: Bytes of the dense parent, in memory as on disk.
        memory_bytes: Bytes of the widened block in memory, index tensors included.
        disk_bytes: Bytes of its tensors in a checkpoint.
        layout: `"element"` or `"block"`.
        alpha: Children per parent.
        open: Whether the budget is open: more weights are alive than the block may end with.
    """

    name: str
    parent_nonzeros: int
    nonzeros: int
    weights: int
    biases: int
    scalars: int
    parents: int
    children: int
    disjoint: bool
    coverage: float
    parent_bytes: int
    memory_bytes: int
    disk_bytes: int
    layout: str = ""
    alpha: int = 0
    open: bool = False


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found. Prints as a table.

    Attributes:
        blocks: One entry per widened block.
        total: The sums over all blocks.
        breaches: Invariants that do not hold, in words; empty if all is well.
    """

    blocks: tuple[BlockAudit, ...]
    total: BlockAudit
    breaches: tuple[str, ...] = field(default=())

    @property
    def open(self) -> bool:
        """Whether the budget of a block is open."""
        return self.total.open

    @property
    def ok(self) -> bool:
        """Whether every invariant holds, and no budget is open."""
        return not self.breaches and not self.open

    def raise_for_breach(self, *, allow_open: bool = False) -> AuditReport:
        """Returns the report itself.

        Args:
            allow_open: Accept open budgets.

        Raises:
            BudgetError: An invariant does not hold, or a budget is open.
        """
        if self.breaches or (self.open and not allow_open):
            raise BudgetError(self.verdict)
        return self

    @property
    def verdict(self) -> str:
        """The breaches and open budgets, in words."""
        if self.breaches:
            return " ".join(["BREACHES:", *self.breaches])
        if self.open:
            ratio = self.total.nonzeros / max(1, self.total.parent_nonzeros)
            return (
                f"THE BUDGET IS OPEN: the blocks hold {ratio:.2f} times their parents' non-zeros. "
                "Train with a BudgetSchedule, which closes it."
            )
        return "All invariants hold."

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table, the totals last."""
        header = ["block", "layout", "alpha", "parent non-zeros", "non-zeros", "disjoint"]
        header += ["coverage", "parent bytes", "in memory", "on disk"]
        cells = []
        for block in (*self.blocks, self.total):
            ratios = [block.memory_bytes, block.disk_bytes]
            cells.append(
                [
                    block.name,
                    block.layout,
                    str(block.alpha or ""),
                    f"{block.parent_nonzeros:,}",
                    f"{block.nonzeros:,}",
                    "yes" if block.disjoint else "NO",
                    f"{block.coverage:.1%}",
                    f"{block.parent_bytes:,}",
                    *(f"{size / max(block.parent_bytes, 1):.2%}" for size in ratios),
                ]
            )
        return header, cells

    def __str__(self) -> str:
        return f"{text_table(*self.rows(), texts=2)}\n{self.verdict}"

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return f"{html_table(*self.rows(), texts=2)}\n<p>{escape(self.verdict)}</p>"


def audit(model: nn.Module, *, strict: bool = False) -> AuditReport:
    """The audit of a widened model; see `fpe_hf.audit`."""
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError("The model has no widened block; fpe_hf.widen makes them.")
    report = join_reports(audit_block(layers, spec) for spec, layers in blocks.items())
    return report.raise_for_breach() if strict else report


def openness(model: nn.Module) -> str | None:
    """How far the budget of a model is open, in words.

    Args:
        model: Any model.

    Returns:
        `None` if no budget is open, or the masks are nowhere (meta device).
    """
    masks = [own.mask for own in model.modules() if isinstance(own, OpenLayer)]
    if not masks or any(mask.is_meta for mask in masks):
        return None
    report = audit(model)
    return report.verdict if report.open else None


def audit_block(layers: Mapping[str, FPELayer], spec: BlockSpec) -> AuditReport:
    """The audit of a single block.

    Args:
        layers: Its layers by dotted name.
        spec: The block.
    """
    breaches: list[str] = []
    blocks = (_audit_block(layers, spec, breaches),)
    return AuditReport(blocks, _total(blocks), tuple(breaches))


def join_reports(reports: Iterable[AuditReport]) -> AuditReport:
    """One report of the blocks in several, in order."""
    reports = list(reports)
    blocks = tuple(block for report in reports for block in report.blocks)
    breaches = tuple(breach for report in reports for breach in report.breaches)
    return AuditReport(blocks, _total(blocks), breaches)


def _audit_block(
    layers: Mapping[str, FPELayer], spec: BlockSpec, breaches: list[str]
) -> BlockAudit:
    ups = [layer for layer in layers.values() if isinstance(layer, UpLayer)]
    downs = [layer for layer in layers.values() if isinstance(layer, DownLayer)]
    if len(ups) != len(spec.ups) or len(downs) != 1:
        breaches.append(f"Block {spec.name!r} is incomplete: it has only {', '.join(layers)}.")
    nonzeros = sum(layer.nonzeros() for layer in layers.values())
    numbers: dict[str, int] = defaultdict(int)
    overwritten: list[str] = []
    memory = disk = 0
    for name, layer in layers.items():
        own = {**dict(layer.named_parameters()), **layer.numbers()}
        for key, parameter in own.items():
            numbers[key] += parameter.numel()
            if key not in ("weight", "bias", "coupling"):
                breaches.append(f"Layer {name!r} has a parameter {key!r} outside the budget.")
        try:
            layer.index_buffers()
        except OverwrittenError as error:
            overwritten.append(str(error))
        memory += _bytes((*own.values(), *layer.buffers()))
        disk += _bytes(layer.stored().values())
    breaches += overwritten
    coverages = [] if overwritten else [up.coverage() for up in ups]
    disjoint = not coverages or are_apart(ups)
    coverage = sum(coverages) / max(1, len(coverages))
    block = BlockAudit(
        name=spec.here(spec.name),
        parent_nonzeros=spec.parent_nonzeros,
        nonzeros=nonzeros,
        weights=nonzeros - numbers["bias"] - numbers["coupling"],
        biases=numbers["bias"],
        scalars=numbers["coupling"],
        parents=spec.all_parents,
        children=spec.alpha * spec.all_parents,
        disjoint=disjoint,
        coverage=coverage,
        parent_bytes=spec.parent_numbers * next(iter(layers.values())).weight.element_size(),
        memory_bytes=memory,
        disk_bytes=disk,
        layout=spec.layout,
        alpha=spec.alpha,
        open=spec.layout == OPEN and nonzeros > spec.limit,
    )
    if block.nonzeros > spec.limit and not block.open:
        breaches.append(
            f"Block {spec.name!r} has {block.nonzeros} non-zeros, {block.nonzeros - spec.limit} "
            f"more than {'its parent' if spec.budget == 1.0 else 'its budget'}."
        )
    if not disjoint and not block.open:
        breaches.append(f"Children of block {spec.name!r} share inputs.")
    return block


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _total(blocks: tuple[BlockAudit, ...]) -> BlockAudit:
    sums: dict[str, Any] = {
        item.name: sum(getattr(block, item.name) for block in blocks)
        for item in fields(BlockAudit)
        if item.type == "int" and item.name != "alpha"
    }
    parents = max(1, sums["parents"])
    return BlockAudit(
        name="total",
        disjoint=all(block.disjoint for block in blocks),
        open=any(block.open for block in blocks),
        coverage=sum(block.coverage * block.parents for block in blocks) / parents,
        **sums,
    )
