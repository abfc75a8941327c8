"""Hidden activations that are made only when something reads them.

An up projection may return a `Hidden` instead of numbers. Elementwise functions of it are written
down. If the next to read it is the down projection of its block, as in nearly every model, the
whole MLP runs as one operation, a chunk of tokens at a time (`fpe_hf.kernels.chunked`). Anything
else that reads it gets the numbers, as if they had always been there: nothing is assumed about the
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import StaleError
from ..kernels import mlp
from ..kernels.chunked import ChunkedMLP
from ..kernels.expression import Expression
from ..kernels.ordinary import is_ordinary
from ..kernels.pointwise import Node, Source, Step, evaluate, is_elementwise, sources
from ..planning import BlockSpec

_allowed: ContextVar[bool] = ContextVar("fpe_hf_hidden_allowed", default=True)


@contextmanager
def eager_hidden() -> Iterator[None]:
    """Within it, up projections make their numbers at once."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def may_wait(*tensors: Tensor | None) -> bool:
    """Whether a projection of these tensors may be put off."""
    return is_ordinary(*tensors) and _allowed.get()


class Pending:
    """A call of an up projection that has not been made.

    Attributes:
        spec: The block.
        x: What it reads `[tokens, in_features]`. A copy: the original may be overwritten before the
            call is made.
        numbers: Its index, weight, bias and coupling.
        lead: Leading dimensions of what it was given.
        project: Makes the call: `project(x, weight, bias, coupling)`.
        recompute: Whether the backward pass should make the pre-activations anew.
    """

    def __init__(
        self,
        spec: BlockSpec,
        x: Tensor,
        numbers: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        project: Callable[..., Tensor],
        recompute: bool,
    ) -> None:
        self.spec = spec
        self.x = x.reshape(-1, spec.in_features).clone(memory_format=torch.contiguous_format)
        self.numbers = numbers
        self.lead = x.shape[:-1]
        self.project = project
        self.recompute = recompute
        self._stamps = self._stamp()

    def _stamp(self) -> list[tuple[int, int]]:
        """Where its numbers are, and how often they have been written to."""
        return [
            (t.data_ptr(), 0 if t.is_inference() else t._version)
            for t in self.numbers
            if t is not None
        ]

    def check(self) -> None:
        """Checks that the call still means what it meant.

        Raises:
            StaleError: A parameter has been changed meanwhile.
        """
        if self._stamp() != self._stamps:
            raise StaleError(
                f"block {self.spec.name!r}: the weights were changed after its up projection ran "
                "and before its hidden activations were read; clone() them before an optimizer or "
                "a cast changes the weights, or run the model within "
                "fpe_hf.layers.hidden.eager_hidden()."
            )

    @property
    def trained(self) -> tuple[Tensor | None, ...]:
        """What its result depends on: what it reads, weight, bias and coupling."""
        return (self.x, *self.numbers[1:])

    def value(self, trained: tuple[Tensor | None, ...]) -> Tensor:
        """Its result, from tensors in the place of its own."""
        x, *numbers = trained
        assert x is not None
        return self.project(x.view(*self.lead, -1), *numbers)


class Hidden(Tensor):
    """A tensor that is not there yet.

    Attributes:
        node: The elementwise expression that it stands for. Both sources of a fused gate and up,
            as their projection makes them, are a source of the number -1.
        sample: One element of its dtype.
        with_grad: Whether gradients were on when it was written down.
        numbers: What it stands for, once that is made.
    """

    node: Node
    sample: Tensor
    with_grad: bool
    numbers: Tensor | None

    @staticmethod
    def wait(node: Node, sample: Tensor) -> Hidden:
        """The `Hidden` of an expression, tied to what it depends on."""
        pendings = _pendings(node)
        trained = [tensor for pending in pendings for tensor in pending.trained]
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in trained):
            tied: Hidden = _Wait.apply(node, sample, *trained)  # type: ignore[no-untyped-call]
            tied.with_grad = True
            return tied
        return Hidden._make(node, sample)

    @staticmethod
    def _make(node: Node, sample: Tensor) -> Hidden:
        source = sources(node)[0]
        spec = source.up.spec
        width = spec.hidden * (spec.sources_per_up if source.source < 0 else 1)
        hidden: Hidden = Tensor._make_wrapper_subclass(
            Hidden, (*source.up.lead, width), dtype=sample.dtype, device=source.up.x.device
        )
        hidden.node = node
        hidden.sample = sample
        hidden.with_grad = torch.is_grad_enabled()
        hidden.numbers = None
        return hidden

    def made(self) -> Tensor:
        """The numbers. Made once: whoever writes to them writes to what everybody reads."""
        if self.numbers is None:
            pendings = _pendings(self.node)
            for pending in pendings:
                pending.check()
            with torch.set_grad_enabled(self.with_grad):
                self.numbers = _value(self.node, {p: p.trained for p in pendings})
        return self.numbers

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        later = None
        if all(h.numbers is None for h in tree_leaves((args, kwargs)) if isinstance(h, Hidden)):
            later = _later(func, args, kwargs)
        if later is not None:
            return later
        made = tree_map_only(Hidden, Hidden.made, (args, kwargs))
        return func(*made[0], **made[1])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default and args[0].numbers is None:
            detached = Hidden._make(args[0].node, args[0].sample)
            detached.with_grad = False
            return detached
        made = tree_map_only(Hidden, Hidden.made, (args, kwargs or {}))
        return func(*made[0], **made[1])


_ABOUT = frozenset(
    [
        getattr(Tensor, name).__get__
        for name in "device dtype grad_fn is_cpu is_cuda is_leaf is_meta is_mps is_quantized "
        "is_sparse is_xla layout ndim requires_grad shape".split()
    ]
    + [
        getattr(Tensor, name)
        for name in "__len__ dim element_size get_device is_complex is_contiguous "
        "is_floating_point nelement numel size stride".split()
    ]
)
"""What a `Hidden` knows of itself."""


def _pendings(node: Node) -> list[Pending]:
    return list(dict.fromkeys(source.up for source in sources(node)))


def _value(node: Node, trained: dict[Pending, tuple[Tensor | None, ...]]) -> Tensor:
    order = sources(node)
    whole = {pending: pending.value(own) for pending, own in trained.items()}
    return evaluate(node, [_own_rows(whole[s.up], s) for s in order], order)


def _own_rows(rows: Tensor, source: Source) -> Tensor:
    """The part `[..., hidden]` of a projection's result `[..., sources * hidden]`."""
    spec = source.up.spec
    if source.source < 0 or spec.fused is None:
        return rows
    if spec.fused == "interleaved":
        return rows[..., source.source :: 2]
    return rows.narrow(-1, source.source * spec.hidden, spec.hidden)


def finish(
    hidden: Hidden, spec: BlockSpec, outputs: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor | None:
    """The whole MLP up to the down projection of a block that reads `hidden`.

    Args:
        hidden: Its hidden activations.
        spec: The block.
        outputs: Index of the down projection, or `None`.
        weight: Its weights.
        bias: Its bias or `None`.

    Returns:
        `[..., out_features]`, or `None` if it must be computed from the numbers of `hidden`.
    """
    order = sources(hidden.node)
    pendings = _pendings(hidden.node)
    whole = any(source.source < 0 for source in order)
    if hidden.numbers is not None or whole or any(p.spec != spec for p in pendings):
        return None
    for pending in pendings:
        pending.check()
    places = tuple((pendings.index(s.up), s.source) for s in order)
    tensors = [t for p in pendings for t in (p.x, *p.numbers)]
    # Within an autograd function nothing tells whether its result will have gradients.
    trained = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*tensors, weight, bias)
    )
    keep = trained and not any(pending.recompute for pending in pendings)
    expression = Expression(spec, hidden.node, tuple(order), places, len(pendings), keep)
    operands = (*tensors, outputs, weight, bias)
    way = mlp.FusedMLP if mlp.usable(expression, operands) else ChunkedMLP
    result: Tensor = way.apply(expression, *operands)  # type: ignore[no-untyped-call]
    return result.view(*pendings[0].lead, spec.out_features)


class _Wait(torch.autograd.Function):
    """Ties a `Hidden` to what it depends on, should autograd ever reach it."""

    @staticmethod
    def forward(ctx: Any, node: Node, sample: Tensor, *trained: Tensor | None) -> Tensor:
        ctx.node = node
        ctx.save_for_backward(*trained)
        return Hidden._make(node, sample)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad(), eager_hidden():
            trained = [
                t if t is None else t.detach().requires_grad_(needed)
                for t, needed in zip(ctx.saved_tensors, wanted, strict=True)
            ]
            own = iter(trained)
            pendings = _pendings(ctx.node)
            given = {p: tuple(next(own) for _ in p.trained) for p in pendings}
            value = _value(ctx.node, given)
        leaves = [t for t in trained if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(value, leaves, gradient))
        return (None, None, *(next(found) if needed else None for needed in wanted))


def _later(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function makes of `Hidden`s if it can wait, too; else `None`."""
    hiddens = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Hidden)]
    if not hiddens or not isinstance(args[0] if args else None, (Hidden, int, float)):
        return None
    first = hiddens[0]
    if func is Tensor.contiguous or (func is functional.dropout and _keeps_all(*args, **kwargs)):
        return first
    fused = [isinstance(h.node, Source) and h.node.source < 0 for h in hiddens]
    if any(fused):
        return _sources_of(first, func, args, kwargs) if len(hiddens) == 1 else None
    if any(h.shape != first.shape for h in hiddens):
        return None
    nodes = tuple(a.node if isinstance(a, Hidden) else a for a in args)
    if not is_elementwise(func, nodes, kwargs) or not may_wait(first.sample):
        return None
    sample = func(*(a.sample if isinstance(a, Hidden) else a for a in args), **kwargs)
    if sample.shape != first.sample.shape:
        return None
    return Hidden.wait(Step(func, nodes, kwargs), sample)


def _keeps_all(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    return not training or p == 0.0


def _sources_of(hidden: Hidden, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Gate and up, where a function takes apart the rows of a fused projection; else `None`."""
    if func is Tensor.__getitem__:
        index = args[1]
        if not (isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis):
            return None
    elif func in (torch.chunk, Tensor.chunk, torch.split, Tensor.split):
        if kwargs.get("dim", args[2] if len(args) > 2 else 0) not in (-1, hidden.dim() - 1):
            return None
    else:
        return None
    pending = hidden.node.up  # type: ignore[union-attr]
    rows = torch.arange(hidden.shape[-1])
    line = rows.view((1,) * (hidden.dim() - 1) + (-1,))
    found = func(line, *args[1:], **kwargs)
    parts = []
    for part in found if isinstance(found, tuple) else (found,):
        matching = [
            source
            for source in range(2)
            if torch.equal(part.flatten(), _own_rows(rows, Source(pending, source)))
        ]
        if not matching:
            return None
        parts.append(Hidden.wait(Source(pending, matching[0]), hidden.sample))
    return tuple(parts) if isinstance(found, tuple) else parts[0]
