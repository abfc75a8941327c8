"""Plans a block: which child gets which of its parent's weights, and which weights stay."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import AUTO, FPEConfig
from ..discovery import MLPBlock
from ..errors import PlanError
from ..splits import LEARNED, RANDOM, derive_seed, divide
from .budget import TileColumns, affordable, balanced, extra_numbers
from .costs import options
from .draw import draw_down_children, draw_tile_inputs, draw_tile_outputs, draw_up_children
from .importance import mean_square, norm, of_inputs, of_outputs
from .prune import keep_columns, keep_largest
from .spec import OPEN, BlockSpec

logger = logging.getLogger("fpe_hf")

_FEW_ZEROS = 0.001
"""Share of a parent's weights that may be zero by chance; with more it has been pruned."""


@dataclass(frozen=True)
class ParentWeights:
    """The numbers of a parent block, fused ups taken apart.

    Experts lie one after the other along the axis of the parents, and in `down_bias`.

    Attributes:
        ups: One tensor `[sources_per_up, parents, inputs]` per up module.
        up_biases: One tensor `[sources_per_up, parents]` or `None` per up module.
        down: `[outputs, parents]`.
        down_bias: `[outputs]` or `None`.
    """

    ups: tuple[Tensor, ...]
    up_biases: tuple[Tensor | None, ...]
    down: Tensor
    down_bias: Tensor | None

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """Every tensor that is not `None`."""
        tensors = (*self.ups, *self.up_biases, self.down, self.down_bias)
        return tuple(tensor for tensor in tensors if tensor is not None)


@dataclass(frozen=True)
class BlockPlan:
    """A block's spec and the structure of its weights.

    Attributes:
        spec: Shapes, counts and options.
        up_children: `element`: child of each input, uint8 `[parents, inputs]` or `[inputs]`;
            `open`: the same, or `None` if every child reads all inputs.
        up_keep: `element`: kept entries per up module, bool like its weight, or `None` for all.
        down_children: `element` and `open`, partition: child of each outgoing weight, uint8
            `[outputs, parents]`.
        down_keep: `element`: kept outgoing weights, bool `[outputs, parents]`, or with an
            independent fan-out `[outputs, alpha, parents]`; `None` for all.
        inputs: `block`: inputs of each child of each tile (int64).
        outputs: `block`: outputs of each child of each tile (int64).
    """

    spec: BlockSpec
    up_children: Tensor | None = None
    up_keep: tuple[Tensor | None, ...] = ()
    down_children: Tensor | None = None
    down_keep: Tensor | None = None
    inputs: list[list[Tensor]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)


def plan_block(block: MLPBlock, parent: ParentWeights, config: FPEConfig) -> BlockPlan:
    """Decides where each weight of a parent block goes.

    Args:
        block: The block as found.
        parent: Its weights.
        config: The configuration of this block.

    Returns:
        The plan. Unless it is open it keeps the budget: `spec.nonzeros <= spec.limit`.

    Raises:
        PlanError: The shapes or the weights forbid it.
    """
    if config.layout == AUTO and not config.starts_open:
        return _plan_fastest(block, parent, config)
    check_block(block, config)
    for tensor in parent.numbers:
        if not _is_finite(tensor):
            raise PlanError(
                f"block {block.name!r} has weights that are not finite; "
                "repair the checkpoint, or name the block in exclude."
            )
    draft = _draft_spec(block, parent, config)
    if config.starts_open:
        return _plan_open(draft, parent, config)
    if config.layout == "element":
        return _plan_element(draft, parent, config)
    return _plan_block_layout(draft, parent, config)


def _plan_fastest(block: MLPBlock, parent: ParentWeights, config: FPEConfig) -> BlockPlan:
    """The plan in the fastest layout that the block, its weights and its split allow."""
    # Tiles would fill a sparse parent's zeros with weights; a budget below 1 would drop whole
    # columns of a tile, which costs accuracy.
    if config.budget < 1.0 or _is_sparse(parent):
        return plan_block(block, parent, config.with_overrides(layout="element"))
    *others, last = (own for _, own in options(block, config, parent.down.device.type))
    for own in others:
        try:
            return plan_block(block, parent, own)
        except PlanError as error:
            logger.info("%s Trying the next fastest layout.", error)
    return plan_block(block, parent, last)


def _is_sparse(parent: ParentWeights) -> bool:
    matrices = (*parent.ups, parent.down)
    zeros = sum(matrix.numel() - int(matrix.count_nonzero()) for matrix in matrices)
    return zeros > _FEW_ZEROS * sum(matrix.numel() for matrix in matrices)


def _is_finite(tensor: Tensor) -> bool:
    # Extremes are NaN if any entry is; unlike isfinite(), they need no memory.
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def check_block(block: MLPBlock, config: FPEConfig) -> None:
    """Checks what can be checked without weights.

    Raises:
        PlanError: A child would have no input, or no output.
    """
    if config.alpha > block.in_features:
        raise PlanError(
            f"block {block.name!r} has {block.in_features} inputs, too few for "
            f"alpha={config.alpha} children: lower alpha, or name the block in exclude."
        )
    if config.fan_out == "partition" and config.alpha > block.out_features:
        raise PlanError(
            f"block {block.name!r} has {block.out_features} outputs, too few to divide among "
            f"alpha={config.alpha} children: lower alpha, or set fan_out='replicate'."
        )


def _draft_spec(block: MLPBlock, parent: ParentWeights, config: FPEConfig) -> BlockSpec:
    matrices = (*parent.ups, parent.down)
    if config.layout == "block":
        weights = sum(matrix.numel() for matrix in matrices)
    else:
        weights = sum(int(matrix.count_nonzero()) for matrix in matrices)
    biases = sum(t.numel() for t in (*parent.up_biases, parent.down_bias) if t is not None)
    return BlockSpec(
        name=block.name,
        ups=block.ups,
        down=block.down,
        in_features=block.in_features,
        parents=block.parents,
        out_features=block.out_features,
        fused=block.fused,
        up_biases=tuple(bias is not None for bias in parent.up_biases),
        down_bias=parent.down_bias is not None,
        experts=block.experts,
        transposed=block.transposed,
        bias_names=block.bias_names,
        alpha=config.alpha,
        split=config.split,
        fan_out=config.fan_out,
        layout=config.layout,
        coupling=config.coupling,
        learn_coupling=config.learn_coupling,
        bias=config.bias,
        seed=derive_seed(config.seed, block.name),
        parent_nonzeros=weights + biases,
        budget=config.budget,
    )


def _extra(spec: BlockSpec, config: FPEConfig) -> int:
    """Numbers (of one expert) that pruning pays for; see `extra_numbers`."""
    biased = sum(spec.up_biases) * spec.sources_per_up
    return extra_numbers(config, spec.sources, biased, spec.parents)


def _plan_element(draft: BlockSpec, parent: ParentWeights, config: FPEConfig) -> BlockPlan:
    children, assignment = _divide_inputs(draft, parent)
    copies = draft.alpha if draft.fan_out == "replicate" else 1
    up_masks, down_mask = _prune(draft, parent, copies, _allowances(draft, parent, config))
    up_keep = tuple(None if bool(mask.all()) else mask for mask in up_masks)
    down_keep = None if bool(down_mask.all()) else down_mask
    spec = replace(
        draft,
        assignment=assignment,
        up_values=tuple(int(mask.count_nonzero()) for mask in up_masks),
        down_values=copies * int(down_mask.count_nonzero()),
        up_pruned=tuple(mask is not None for mask in up_keep),
        down_pruned=down_keep is not None,
    )
    return BlockPlan(
        spec=spec,
        up_children=children,
        up_keep=up_keep,
        down_children=draw_down_children(spec) if spec.fan_out == "partition" else None,
        down_keep=down_keep,
    )


def _plan_open(draft: BlockSpec, parent: ParentWeights, config: FPEConfig) -> BlockPlan:
    spec = replace(draft, layout=OPEN, final_weights=tuple(_allowances(draft, parent, config)))
    return BlockPlan(
        spec=spec,
        up_children=None if spec.split == LEARNED else _divide_inputs(spec, parent)[0],
        down_children=draw_down_children(spec) if spec.fan_out == "partition" else None,
    )


def _allowances(spec: BlockSpec, parent: ParentWeights, config: FPEConfig) -> list[int]:
    """How many weights each expert may keep."""
    extra = _extra(spec, config)
    biases = (*parent.up_biases, parent.down_bias)
    own_biases = sum(bias.numel() for bias in biases if bias is not None) // spec.experts
    allowances = []
    for matrices in _by_expert(spec, parent):
        weights = sum(int(matrix.count_nonzero()) for matrix in matrices)
        allowed = affordable(spec.budget, weights + own_biases) - own_biases - extra
        if allowed <= 0:
            raise PlanError(
                f"block {spec.name!r} is too small to pay for bias={spec.bias!r}, "
                f"learn_coupling={spec.learn_coupling}, budget={spec.budget}: nothing would be "
                "left of its weights."
            )
        allowances.append(allowed)
    return allowances


def _by_expert(spec: BlockSpec, parent: ParentWeights) -> Iterator[list[Tensor]]:
    """The up matrices and the down matrix of each expert."""
    for first in range(0, spec.all_parents, spec.parents):
        yield [matrix.narrow(1, first, spec.parents) for matrix in (*parent.ups, parent.down)]


def _prune(
    spec: BlockSpec, parent: ParentWeights, copies: int, allowances: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Masks of kept entries; every expert keeps its own budget."""
    up_masks: list[list[Tensor]] = [[] for _ in parent.ups]
    down_masks = []
    for (*ups, down), allowed in zip(_by_expert(spec, parent), allowances, strict=True):
        kept_ups, kept_down = keep_largest(ups, down, copies, allowed)
        for masks, mask in zip(up_masks, kept_ups, strict=True):
            masks.append(mask)
        down_masks.append(kept_down)
    return [_joined(masks) for masks in up_masks], _joined(down_masks)


def _joined(masks: list[Tensor]) -> Tensor:
    return torch.cat(masks, 1) if len(masks) > 1 else masks[0]


def _divide_inputs(spec: BlockSpec, parent: ParentWeights) -> tuple[Tensor, str]:
    """Child of each input, and how the layers will remember it."""
    if spec.split == RANDOM:
        return draw_up_children(spec), "hash"
    weight = torch.cat([up.detach() for up in parent.ups])
    if spec.experts > 1:
        return _divide_by_expert(spec, weight), "codes"
    seed = derive_seed(spec.seed, "up")
    children = divide(spec.split, weight, spec.alpha, seed=seed, shared=False)
    return children, "table" if children.dim() == 1 else "codes"


def _divide_by_expert(spec: BlockSpec, weight: Tensor) -> Tensor:
    """Child of each input `[all parents, inputs]`, each expert's weights divided on their own."""
    divided = [
        divide(spec.split, own, spec.alpha, seed=derive_seed(spec.seed, "up", str(e)), shared=False)
        for e, own in enumerate(weight.split(spec.parents, dim=1))
    ]
    return torch.cat([children.expand(spec.parents, -1) for children in divided])


def _plan_block_layout(draft: BlockSpec, parent: ParentWeights, config: FPEConfig) -> BlockPlan:
    spec = replace(draft, tile_size=min(config.tile_size or draft.parents, draft.parents))
    biases = sum(t.numel() for t in (*parent.up_biases, parent.down_bias) if t is not None)
    left = (spec.limit - biases) // spec.experts - _extra(spec, config)
    extra = spec.sources * spec.in_features + spec.out_features - left // spec.parents
    columns = TileColumns(spec.sources, spec.in_features, spec.out_features, spec.alpha, extra)
    replicate = spec.fan_out == "replicate"
    if not replicate:
        outputs_per_child = balanced(spec.out_features, spec.alpha)
        kept_inputs = columns.inputs_beside(spec.out_features, copies=1)
    else:
        outputs = spec.out_features
        if not columns.keeps_fan_out:
            outputs = _outputs_by_importance(spec, columns, parent)
        outputs_per_child = (outputs,) * spec.alpha
        kept_inputs = columns.inputs_beside(outputs, copies=spec.alpha)
    if kept_inputs < spec.alpha:
        raise PlanError(
            f"block {spec.name!r}: alpha={spec.alpha} with bias={config.bias!r}, "
            f"learn_coupling={config.learn_coupling}, budget={config.budget} leaves "
            f"{kept_inputs} inputs for {spec.alpha} children: lower alpha, or set layout='element'."
        )
    spec = replace(
        spec,
        child_inputs=tuple(
            map(min, balanced(kept_inputs, spec.alpha), balanced(spec.in_features, spec.alpha))
        ),
        child_outputs=outputs_per_child,
    )
    plan = BlockPlan(spec=spec)
    for tile, (start, stop) in enumerate(spec.tiles):
        ups = [up.detach()[:, start:stop] for up in parent.ups]
        children = _divide_tile(spec, tile, ups)
        _check_balance(spec, children)
        norms = of_inputs(ups, norm)
        if not replicate and spec.budget == 1.0:
            # A few inputs pay for couplings and biases. The smallest columns are of no use: they
            # belong to inputs that are large, as norms before MLPs make some.
            norms = (norms - norms.median()).abs()
        plan.inputs.append(keep_columns(norms, spec.child_inputs, children))
        plan.outputs.append(_tile_outputs(spec, tile, parent.down.detach()[:, start:stop]))
    return plan


def _divide_tile(spec: BlockSpec, tile: int, ups: Sequence[Tensor]) -> Tensor:
    """Child of each input of a tile, `[inputs]`."""
    if spec.split == RANDOM:
        return draw_tile_inputs(spec, tile)
    seed = derive_seed(spec.seed, "up", str(tile))
    return divide(spec.split, torch.cat(list(ups)), spec.alpha, seed=seed, shared=True)


def _tile_outputs(spec: BlockSpec, tile: int, down: Tensor) -> list[Tensor]:
    """Outputs written by each child of a tile."""
    if spec.fan_out == "replicate":
        everything = torch.zeros(spec.out_features, dtype=torch.int64, device="cpu")
        kept = keep_columns(of_outputs(down, norm), spec.child_outputs[:1], everything)[0]
        return [kept] * spec.alpha
    children = draw_tile_outputs(spec, tile)
    return [(children == child).nonzero().squeeze(1) for child in range(spec.alpha)]


def _check_balance(spec: BlockSpec, children: Tensor) -> None:
    sizes = torch.bincount(children.long(), minlength=spec.alpha).tolist()
    if any(size < wanted for size, wanted in zip(sizes, spec.child_inputs, strict=True)):
        raise PlanError(
            f"split {spec.split!r} gave the children of block {spec.name!r} {sizes} inputs; the "
            f"block layout needs a balanced split, at least {list(spec.child_inputs)}: "
            "use layout='element'."
        )


def _outputs_by_importance(spec: BlockSpec, columns: TileColumns, parent: ParentWeights) -> int:
    """Outputs each tile keeps when inputs and outputs compete by root-mean-square magnitude."""
    up_costs, down_costs = spec.sources, spec.alpha
    scores, costs = [], []
    for start, stop in spec.tiles:
        ups = [up.detach()[:, start:stop] for up in parent.ups]
        scores.append(of_inputs(ups, mean_square))
        scores.append(of_outputs(parent.down.detach()[:, start:stop], mean_square))
        costs += [up_costs] * spec.in_features + [down_costs] * spec.out_features
    order = torch.cat(scores).argsort(descending=True, stable=True)
    cost = torch.tensor(costs, dtype=torch.int64, device="cpu")[order]
    fits = cost.cumsum(0) <= columns.available * len(spec.tiles)
    is_output = cost.new_tensor(
        ([0] * spec.in_features + [1] * spec.out_features) * len(spec.tiles)
    )[order]
    outputs = int((is_output * fits).sum()) // len(spec.tiles)
    most = (columns.available - spec.sources * spec.alpha) // spec.alpha
    return max(1, min(outputs, most))
