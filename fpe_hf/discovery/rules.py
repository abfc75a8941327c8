"""How operations pass on which weight row made each element.

`follow` computes the lineage of an operation's result from those of its operands; the table at
the end says by which rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fpe_hf.discovery.lineage import (
    Call,
    Ended,
    Lineage,
    Live,
    Op,
    Outcome,
    Step,
    Track,
    live_tracks,
)
from fpe_hf.discovery.rows import NO_ROW, compact, narrowed, same_rows, varies, varying

T = TypeVar("T")

MAX_SOURCES = 2
"""Rows that one hidden channel may depend on: gate and up."""


def follow(step: Step) -> Outcome:
    """The lineage of the output of `step` (a list if it returns several tensors).

    Call it outside of any dispatch mode, and only if some operand has a lineage.
    """
    rule = RULES.get(step.name)
    if rule is None:
        rule = _pointwise if torch.Tag.pointwise in step.func.tags else _unknown
    try:
        return rule(step)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        # An overload with other arguments than the rule knows: refuse rather than guess.
        return _like(step.output, _unknown(step))


def carries(step: Step, source: Tensor) -> bool:
    """Whether the output of `step` still is `source` up to place, scale and norm."""
    rule = RULES.get(step.name)
    if step.name in PRODUCTS:
        # Broadcast, it would scale something else, unless only copies of it are weighted.
        return source.shape == step.result.shape or _only_scaled(step, source)
    if step.name in LINEAR | LINEAR_REDUCTIONS | CLAMPS:
        return True
    norms = (_normalise, _standardise)
    return step.name in PLACING or rule in (*MOVES, _join, _copy, *norms)


def _only_scaled(step: Step, source: Tensor) -> bool:
    """Whether what `source` is multiplied by is the same for all of its channels."""
    lineage = step.lineage(source)
    if not isinstance(lineage, Live):
        return False
    tracks, _ = _merge([(source, lineage)], step.result.shape)
    others = [tensor for tensor, _ in step.operands() if tensor is not source]
    return _stranger(step, tracks, others) is None


def end(step: Step, reason: str, quiet: bool = False, statistic: bool = False) -> Ended | None:
    """The end of all lineages that enter `step`.

    Args:
        step: The operation that mixes the rows.
        reason: Why, in words.
        quiet: Forget the lineage altogether unless an activation was seen: it is no MLP.
        statistic: See `Ended.statistic`.
    """
    lineages = [lineage for _, lineage in step.operands()]
    ended = [lineage for lineage in lineages if isinstance(lineage, Ended)]
    tracks = live_tracks(lineages)
    calls = _unique(
        [track.call for track in tracks] + [call for lineage in ended for call in lineage.calls]
    )
    parts: list[Track | Ended] = [*tracks, *ended]
    ops = _unique(op for part in parts for op in part.ops)
    if not calls or (quiet and not ops):
        return None
    statistic = statistic or (not tracks and all(lineage.statistic for lineage in ended))
    # The first cause is the one to tell.
    reason = ended[0].reason if ended else reason
    return Ended(calls, reason, () if statistic else ops, statistic)


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def _unknown(step: Step) -> Lineage | None:
    return end(step, f"{step.place} between them may mix the hidden channels")


def _forget(step: Step) -> Outcome:
    """Products with other activations, as in attention: no MLP, not worth a word."""
    return None


def _normalise(step: Step) -> Outcome:
    return end(step, f"{step.place} between them normalises over the hidden axis")


def _standardise(step: Step) -> Outcome:
    return end(step, f"{step.place} between them scales each hidden channel by its own statistics")


def _convolve(step: Step) -> Outcome:
    return end(step, f"{step.place} between them is a convolution over the hidden channels")


def _keep(step: Step) -> Outcome:
    """Same elements, same shape."""
    return step.lineage(step.args[0])


def _copy(step: Step) -> Outcome:
    """`target.copy_(source)`: the target's old values are gone."""
    source = step.args[1]
    lineage = step.lineage(source) if isinstance(source, Tensor) else None
    if isinstance(lineage, Live):
        shape = step.args[0].shape
        return Live(tuple(_broadcast(track, shape) for track in lineage.tracks))
    return lineage


def _move(step: Step) -> Outcome:
    """Elements change places: replay the operation on the index tensors."""
    lineage = step.lineage(step.args[0])
    if not isinstance(lineage, Live):
        return _like(step.output, end(step, ""))
    moved = [step.func(track.rows, *step.args[1:], **step.kwargs) for track in lineage.tracks]
    if isinstance(step.output, Tensor):
        return _moved(lineage.tracks, moved)
    return [_moved(lineage.tracks, parts) for parts in zip(*moved, strict=True)]


def _reshape(step: Step) -> Outcome:
    lineage = step.lineage(step.args[0])
    if not isinstance(lineage, Live):
        return lineage
    moved = [track.rows.reshape(step.output.shape) for track in lineage.tracks]
    live = _moved(lineage.tracks, moved)
    return Live(
        tuple(
            replace(new, reshaped=old.reshaped or _cuts(old.rows, new.rows))
            for old, new in zip(lineage.tracks, live.tracks, strict=True)
        )
    )


def _cuts(before: Tensor, after: Tensor) -> bool:
    """Whether the hidden axis was cut, or merged with another."""
    sizes = [[rows.size(axis) for axis in varying(rows)] for rows in (before, after)]
    return sizes[0] != sizes[1]


def _moved(tracks: Sequence[Track], rows: Sequence[Tensor]) -> Live:
    pairs = zip(tracks, rows, strict=True)
    return Live(tuple(replace(track, rows=compact(moved)) for track, moved in pairs))


def _like(output: Any, lineage: Lineage | None) -> Outcome:
    """`lineage` for every tensor that an operation returned."""
    return lineage if isinstance(output, Tensor) else [lineage for _ in output]


def _pick(step: Step) -> Outcome:
    """Elements picked by index tensors, whose values a fake tensor does not have.

    Along an axis on which the rows do not vary any index gives the same rows, so 0 will do.
    """
    lineage = step.lineage(step.args[0])
    if not isinstance(lineage, Live):
        return end(step, "")
    axes = _picked_axes(step)
    if any(set(axes) & set(varying(track.rows)) for track in lineage.tracks):
        return end(step, f"{step.place} between them picks hidden channels by an index tensor")
    shape = step.output.shape
    moved = []
    for track in lineage.tracks:
        core = narrowed(track.rows, varying(track.rows))
        if step.name == "index":
            indices = [None if i is None else _zeros(i) for i in step.args[1]]
            core = core[tuple(slice(None) if i is None else i for i in indices)]
        moved.append(core.expand(shape))
    return _moved(lineage.tracks, moved)


def _zeros(index: Tensor) -> Tensor:
    """An index tensor of the same shape that picks element 0 (as often as a mask is set)."""
    if index.dtype == torch.bool:
        return torch.zeros(int(index.sum()), dtype=torch.int64, device="cpu")
    return torch.zeros(index.shape, dtype=torch.int64, device="cpu")


def _picked_axes(step: Step) -> list[int]:
    if step.name != "index":
        return [step.args[1] % step.args[0].dim()]
    axes: list[int] = []
    axis = 0
    for index in step.args[1]:
        width = index.dim() if index is not None and index.dtype == torch.bool else 1
        axes += range(axis, axis + width) if index is not None else []
        axis += width
    return axes


def _join(step: Step) -> Outcome:
    """`cat` and `stack`: a row index for the parts a call made, `NO_ROW` elsewhere."""
    parts = [(part, step.lineage(part)) for part in step.args[0]]
    lineages = [lineage for _, lineage in parts]
    tracks = live_tracks(lineages)
    calls = _unique(track.call for track in tracks)
    if any(isinstance(lineage, Ended) for lineage in lineages) or len(calls) > MAX_SOURCES:
        return end(step, "several activations are joined between them", quiet=True)
    joined = []
    for call in calls:
        own = [track for track in tracks if track.call is call]
        rows = [_rows_of(call, part, lineage) for part, lineage in parts]
        if any(index is None for index in rows):
            return end(step, "several activations are joined between them", quiet=True)
        index = compact(step.func(rows, *step.args[1:], **step.kwargs))
        ops = _unique(op for track in own for op in track.ops)
        # Pieces of the hidden axis put together again may have been cut at fixed places.
        pieced = any(_cuts(track.rows, index) for track in own)
        reshaped = pieced or any(track.reshaped for track in own)
        joined.append(Track(call, index, ops, reshaped))
    return Live(tuple(joined))


def _rows_of(call: Call, part: Tensor, lineage: Lineage | None) -> Tensor | None:
    """The rows of `call` in `part`; `None` if `part` holds several of them per element."""
    own = [track.rows for track in live_tracks([lineage]) if track.call is call]
    if not own:
        return torch.full((), NO_ROW, dtype=torch.int32, device="cpu").expand(part.shape)
    return own[0] if len(own) == 1 else None


def _reduce(step: Step) -> Outcome:
    """A statistic: over tokens each channel keeps its own, over the hidden axis they mix."""
    lineage = step.lineage(step.args[0])
    if not isinstance(lineage, Live):
        return _like(step.output, end(step, "", statistic=True))
    axes = _reduced_axes(step)
    if any(set(axes) & set(varying(track.rows)) for track in lineage.tracks):
        reason = f"{step.place} between them reduces over the hidden axis"
        return _like(step.output, end(step, reason, statistic=True))
    ops = () if step.name in LINEAR_REDUCTIONS else (Op(step.name, step.module),)
    shape = step.result.shape
    tracks = []
    for track in lineage.tracks:
        rest = [axis for axis in range(track.rows.dim()) if axis not in axes]
        core = narrowed(track.rows, rest)
        rows = core if core.dim() == len(shape) else core.squeeze(tuple(axes))
        tracks.append(replace(track, rows=rows.expand(shape), ops=_unique(track.ops + ops)))
    return _like(step.output, Live(tuple(tracks)))


def _reduced_axes(step: Step) -> list[int]:
    """The axes an operation reduces over, or along which it mixes; all if it names none."""
    dims = step.args[0].dim()
    names = [argument.name for argument in step.func._schema.arguments]
    name = next((name for name in ("dim", "dims") if name in names), None)
    given = None
    if name is not None:
        place = names.index(name)
        given = step.args[place] if place < len(step.args) else step.kwargs.get(name)
    if given is None or given == []:
        return list(range(dims))
    return [axis % dims for axis in ([given] if isinstance(given, int) else given)]


def _glu(step: Step) -> Outcome:
    """`a * sigmoid(b)` for the halves `a` and `b` along an axis."""
    lineage = step.lineage(step.args[0])
    if not isinstance(lineage, Live) or len(lineage.tracks) != 1:
        return end(step, f"{step.place} between them combines several projections", quiet=True)
    track = lineage.tracks[0]
    axis = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", -1)
    value, gate = (compact(half) for half in track.rows.chunk(2, axis))
    gated = replace(track, rows=gate, ops=_unique((*track.ops, Op(step.name, step.module))))
    return Live((replace(track, rows=value), gated))


def _pointwise(step: Step) -> Outcome:
    """Each element of the result depends on the elements at its own place."""
    operands = step.operands()
    merged, self_product = _merge(operands, step.result.shape)
    calls = {track.call for track in merged}
    mixed = [
        lineage
        for _, lineage in operands
        if isinstance(lineage, Ended) and (not merged or not calls.isdisjoint(lineage.calls))
    ]
    others = [
        tensor
        for tensor, lineage in operands
        if lineage is None or (isinstance(lineage, Ended) and lineage not in mixed)
    ]
    op = Op(step.name, step.module) if _is_nonlinear(step, self_product) else None
    if mixed:
        return _pointwise_ended(step, others, op)
    stranger = _stranger(step, merged, others)
    if stranger is not None:
        parameter = step.parameter(stranger)
        if parameter is not None:
            reason = f"{step.name} with a parameter per hidden channel ({parameter})"
            return _with_op(end(step, reason), op)
        return end(step, f"{step.name} with another activation of the hidden width", quiet=True)
    if len(merged) > MAX_SOURCES:
        names = " and ".join(sorted({call.projection for call in calls}))
        reason = f"{len(merged)} rows, of {names}, meet in each hidden channel, not one or two"
        return end(step, reason, quiet=True)
    ops = () if op is None else (op,)
    live = Live(tuple(replace(track, ops=_unique(track.ops + ops)) for track in merged))
    return _like(step.output, live)


def _merge(
    operands: Sequence[tuple[Tensor, Lineage | None]], shape: Sequence[int]
) -> tuple[list[Track], bool]:
    """The distinct tracks of all operands, and whether some rows came in more than once."""
    merged: list[Track] = []
    repeated = False
    for track in live_tracks(lineage for _, lineage in operands):
        new = _broadcast(track, shape)
        for place, old in enumerate(merged):
            if old.call is new.call and same_rows(old.rows, new.rows):
                reshaped = old.reshaped or new.reshaped
                merged[place] = replace(old, ops=_unique(old.ops + new.ops), reshaped=reshaped)
                repeated = True
                break
        else:
            merged.append(new)
    return merged, repeated


def _broadcast(track: Track, shape: Sequence[int]) -> Track:
    return replace(track, rows=track.rows.expand(tuple(shape)))


def _is_nonlinear(step: Step, self_product: bool) -> bool:
    """Whether a pointwise operation bends the values that are followed."""
    if step.name in PRODUCTS:
        divisor = step.args[1] if step.name == "div" else None
        return self_product or (isinstance(divisor, Tensor) and step.lineage(divisor) is not None)
    if step.name == "where":
        return step.lineage(step.args[0]) is not None
    return step.name not in LINEAR


def _stranger(step: Step, tracks: Sequence[Track], others: Sequence[Tensor]) -> Tensor | None:
    """An operand without lineage that is not the same for all hidden channels."""
    axes = {axis for track in tracks for axis in varying(track.rows)}
    dims = step.result.dim()
    return next((other for other in others if varies(other, axes, dims)), None)


def _pointwise_ended(step: Step, others: Sequence[Tensor], op: Op | None) -> Outcome:
    size = step.result.numel()
    if step.name in SUMS and any(
        other.numel() == size and step.parameter(other) is None for other in others
    ):
        return None  # A residual sum: whatever reads it reads more than these projections.
    return _with_op(end(step, ""), op)


def _with_op(ended: Ended | None, op: Op | None) -> Ended | None:
    if ended is None or op is None or ended.statistic:
        return ended
    return replace(ended, ops=_unique((*ended.ops, op)))


def _rrelu(step: Step) -> Outcome:
    """`rrelu_with_noise(x, noise, ...)`: the noise is scratch space."""
    return _pointwise(replace(step, args=step.args[:1]))


# -- the table of operations --------------------------------------------------------------------
# What is not named here is pointwise if PyTorch tags it so, else it ends the lineage.

LINEAR = frozenset("add sub rsub neg positive masked_fill where lerp".split())
"""Pointwise operations that are no activation, whatever their operands."""

PRODUCTS = frozenset("mul div".split())
"""Pointwise operations that are an activation only if the values meet themselves."""

SUMS = frozenset("add sub".split())
"""Operations of a residual connection."""

LINEAR_REDUCTIONS = frozenset("mean sum".split())

CLAMPS = frozenset("clamp clamp_min clamp_max nan_to_num".split())
"""Pointwise operations that keep values within bounds but are seldom an activation."""

PLACING = frozenset(
    "index_add index_copy index_put _unsafe_index_put scatter scatter_add masked_scatter "
    "slice_scatter select_scatter constant_pad_nd native_dropout as_strided".split()
)
"""Operations that put values, or sums of them, somewhere else."""

HEAVY = frozenset("mm addmm bmm baddbmm addbmm matmul convolution _grouped_mm".split())
"""Operations worth sparing if only the shape of the result matters."""

SHAPE_ONLY = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full "
    "new_empty new_empty_strided device layout sym_size sym_stride sym_numel".split()
)
"""Operations that read what a tensor is like, not its values."""

_KINDS: dict[Callable[[Step], Outcome], str] = {
    _keep: "clone contiguous alias detach _to_copy lift_fresh lift_fresh_copy to dropout",
    _reshape: "view _unsafe_view reshape _reshape_alias flatten unflatten",
    _move: (
        "permute transpose t slice select narrow expand unsqueeze squeeze unbind split "
        "split_with_sizes chunk flip roll repeat diagonal movedim unsafe_split unsafe_chunk "
        "unsafe_split_with_sizes"
    ),
    _pick: "index index_select gather",
    _join: "cat stack",
    _copy: "copy",
    _reduce: (
        "mean sum amax amin max min var std var_mean std_mean linalg_vector_norm norm prod "
        "logsumexp any all _softmax _log_softmax cumsum"
    ),
    _normalise: (
        "native_layer_norm native_group_norm layer_norm group_norm rms_norm _fused_rms_norm"
    ),
    _standardise: (
        "native_batch_norm batch_norm _native_batch_norm_legit cudnn_batch_norm "
        "_native_batch_norm_legit_no_training"
    ),
    _convolve: "convolution conv1d conv2d conv3d _conv_depthwise2d",
    _forget: (
        "mm bmm addmm baddbmm addbmm matmul mv dot _grouped_mm fill zero "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention "
        "_scaled_dot_product_cudnn_attention scaled_dot_product_attention "
        "_scaled_dot_product_fused_attention_overrideable"
    ),
    # Untagged, though pointwise.
    _pointwise: "_prelu_kernel prelu log_sigmoid_forward hardswish mish",
    _rrelu: "rrelu_with_noise rrelu_with_noise_functional",
    _glu: "glu",
}

RULES: dict[str, Callable[[Step], Outcome]] = {
    name: rule for rule, names in _KINDS.items() for name in names.split()
}
"""Operator name -> the rule that follows it."""

MOVES = (_keep, _reshape, _move, _pick)
"""Rules of operations that pass elements on as they are."""
