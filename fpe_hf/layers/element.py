"""The `element` layout: any mask. Weights are packed. A kernel takes them as they are where it can
(a few tokens on the CPU, no gradients); else the matrix is rebuilt for each forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError
from ..kernels.ordinary import is_ordinary
from ..kernels.packed import Mode, output_dtype, packed_rows, usable
from ..packing import code_bits, pack, packed_bytes, put_kept, take_kept, unpack
from ..planning import BlockPlan, BlockSpec
from ..planning.draw import draw_down_children, draw_up_children
from .base import DownLayer, UpLayer


def fill(weight: Tensor, keep: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The matrix of which `weight` holds the kept entries in row-major order.

    Args:
        weight: `[values]`.
        keep: bool, `shape`, or `None` if every entry is kept.
        shape: Shape of the matrix.
    """
    if keep is None:
        return weight.view(shape)
    if weight.is_cpu and is_ordinary(weight, keep):
        filled: Tensor = _Fill.apply(weight, keep, shape)  # type: ignore[no-untyped-call]
        return filled
    return weight.new_zeros(shape).masked_scatter(keep, weight)


class _Fill(torch.autograd.Function):
    """`masked_scatter`, whose own way back takes 16 bytes for every entry of the matrix."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(keep)
        return put_kept(weight, keep.expand(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return take_kept(gradient, keep), None, None


def divided(weight: Tensor, others: Tensor, alpha: int, codes: Tensor) -> Tensor:
    """The children's matrices: each weight for the child that owns it.

    Args:
        weight: `[sources or outputs, 1, ...]`.
        others: What the other children have in its place; can be expanded to the result.
        alpha: Children per parent.
        codes: The child that owns each weight; can be expanded to `weight`.

    Returns:
        `[sources or outputs, alpha, ...]`.
    """
    shape = (len(weight), alpha, *weight.shape[2:])
    return others.expand(shape).scatter(1, codes.long().expand(weight.shape), weight)


def check_packed(name: str, packed: Tensor, bits: int, count: int, limit: int) -> Tensor:
    """Unpacks and checks stored codes: below `limit`, and nothing after the last one.

    Raises:
        CheckpointError: Naming the tensor.
    """
    everything = unpack(packed, bits, packed.numel() * 8 // bits)
    codes = everything[:count]
    if bool((codes >= limit).any()):
        raise CheckpointError(
            f"tensor {name!r} holds child {int(codes.max())}, but there are {limit} children."
        )
    if bool(everything[count:].any()):
        raise CheckpointError(f"tensor {name!r} has bits set after its last entry.")
    return codes


def check_keep(name: str, packed: Tensor, count: int, kept: int) -> None:
    """Checks that a stored mask keeps as many entries as there are weights.

    Raises:
        CheckpointError: Naming the tensor.
    """
    found = int(check_packed(name, packed, 1, count, 2).sum(dtype=torch.int64))
    if found != kept:
        raise CheckpointError(f"tensor {name!r} keeps {found} entries, but {kept} were expected.")


class ElementUp(UpLayer):
    """Up projection in the `element` layout.

    Attributes:
        keep: Packed mask of kept entries `[sources, parents, inputs]`, or `None`.
        owner: Packed child of each input: `[inputs]` (`table`) or `[parents, inputs]`; not
            saved if it follows from the seed (`hash`).
    """

    keep: Tensor | None
    owner: Tensor

    def __init__(
        self,
        spec: BlockSpec,
        index: int,
        stock: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        values = spec.up_values[index]
        super().__init__(spec, index, stock, values=values, dtype=dtype, device=device)
        self.entries = spec.sources_per_up * spec.all_parents * spec.in_features
        self.bits = code_bits(spec.alpha)
        rows = 1 if spec.assignment == "table" else spec.all_parents
        self.codes_shape = (rows, spec.in_features)
        keep = torch.empty(packed_bytes(self.entries, 1), dtype=torch.uint8, device=device)
        self.register_buffer("keep", keep if spec.up_pruned[index] else None)
        size = packed_bytes(rows * spec.in_features, self.bits)
        children = torch.empty(size, dtype=torch.uint8, device=device)
        self.register_buffer("owner", children, persistent=spec.assignment != "hash")

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, index: int, stock: str, weight: Tensor, bias: Tensor | None
    ) -> ElementUp:
        """Moves a parent's weights into the packed form.

        Args:
            plan: The block's plan.
            index: Which of the block's up modules this is.
            stock: Kind of the replaced module.
            weight: `[sources, parents, inputs]`.
            bias: `[sources, parents]` or `None`.
        """
        layer = cls(plan.spec, index, stock, dtype=weight.dtype, device="meta")
        keep = plan.up_keep[index]
        assert plan.up_children is not None
        tensors = {name: t.clone() for name, t in layer.parent_extras(weight, bias).items()}
        tensors["owner"] = pack(plan.up_children, layer.bits)
        if keep is None:
            tensors["weight"] = weight.clone(memory_format=torch.contiguous_format).view(-1)
        else:
            tensors["weight"] = take_kept(weight.flatten(0, 1), keep.flatten(0, 1))
            tensors["keep"] = pack(keep, 1)
        layer.bind({name: t.detach().to(weight.device) for name, t in tensors.items()})
        return layer

    def parent_weight(self) -> Tensor:
        """The parent's weights, pruned ones as zeros, `[sources, parents, inputs]`."""
        spec = self.spec
        shape = (spec.sources_per_up, spec.all_parents, spec.in_features)
        return fill(self.weight, self._keep(), shape)

    def dense_weight(self) -> Tensor:
        spec = self.spec
        parent = self.parent_weight().unsqueeze(1)
        coupling = self.couplings()
        if isinstance(coupling, Tensor):
            others = coupling[:, None, :, None] * parent
        else:
            others = coupling * parent if coupling else parent.new_zeros(())
        weight = divided(parent, others, spec.alpha, self._codes())
        return self.merge_sources(_by_tile(weight, spec))

    def project(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., sources * hidden]`."""
        if self.spec.experts == 1 and usable(x, self.in_features, *self.numbers().values()):
            return self._project_packed(x)
        if self.coupling is None and self.spec.coupling == 1.0 and self.spec.fused is None:
            # All children of a parent see its full pre-activation: compute it once.
            z = self.expand(functional.linear(x, self.parent_weight()[0]))
            bias = self.dense_bias()
            return z if bias is None else z + bias.to(z.dtype)
        return functional.linear(x, self.dense_weight(), self.dense_bias())

    def _project_packed(self, x: Tensor) -> Tensor:
        spec = self.spec
        coupling = self.couplings()
        equal = coupling == 1.0 if isinstance(coupling, float) else False
        sums = packed_rows(
            x.reshape(-1, spec.in_features),
            self.weight,
            self.keep,
            None if equal else self.owner,
            Mode.PARTS,
            rows=spec.sources_per_up * spec.parents,
            columns=spec.in_features,
            children=1 if equal else spec.alpha,
            owner_rows=self.codes_shape[0],
        )
        z = sums.unflatten(2, (spec.sources_per_up, spec.parents))  # [tokens, children, ...]
        if equal:
            z = z.expand(-1, spec.alpha, -1, -1)
        elif isinstance(coupling, Tensor) or coupling:
            z = (1 - coupling) * z + coupling * z.sum(1, keepdim=True)
        by_source = z.permute(2, 1, 3, 0).flatten(1, 2)  # [sources, hidden, tokens]
        result = self.merge_sources(by_source).t()
        bias = self.dense_bias()
        result = result if bias is None else result + bias
        return result.to(output_dtype(x)).contiguous().view(*x.shape[:-1], self.out_features)

    def cover(self) -> tuple[bool, float]:
        keep, read = self._keep(), self._codes() < self.spec.alpha
        if keep is not None:
            read = read & keep.any(dim=0)
        return True, int(read.count_nonzero()) / read.numel()  # a code names one child

    def check(self, name: str) -> None:
        count = self.codes_shape[0] * self.codes_shape[1]
        owner: Any = self._buffers["owner"]
        keep = self._buffers["keep"]
        check_packed(f"{name}.owner", owner, self.bits, count, self.spec.alpha)
        if keep is not None:
            check_keep(f"{name}.keep", keep, self.entries, self.weight.numel())

    def reset_derived(self) -> None:
        if self.spec.assignment == "hash":
            self.owner = pack(draw_up_children(self.spec), self.bits).to(self.index_device())

    def _keep(self) -> Tensor | None:
        if self.keep is None:
            return None
        shape = (self.spec.sources_per_up, self.spec.all_parents, self.spec.in_features)
        return unpack(self.keep, 1, self.entries).view(shape).bool()

    def _codes(self) -> Tensor:
        """The child that reads each input: uint8 `[parents or 1, inputs]`."""
        count = self.codes_shape[0] * self.codes_shape[1]
        return unpack(self.owner, self.bits, count).view(self.codes_shape)


class ElementDown(DownLayer):
    """Down projection in the `element` layout.

    Attributes:
        keep: Packed mask of kept outgoing weights of the parent `[outputs, parents]`, or `None`.
        owner: Packed child of each outgoing weight (partition), never saved; or `None`.
    """

    keep: Tensor | None
    owner: Tensor | None

    def __init__(
        self,
        spec: BlockSpec,
        stock: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(spec, stock, values=spec.down_values, dtype=dtype, device=device)
        self.entries = spec.out_features * spec.all_parents
        self.bits = code_bits(spec.alpha)
        keep = torch.empty(packed_bytes(self.entries, 1), dtype=torch.uint8, device=device)
        self.register_buffer("keep", keep if spec.down_pruned else None)
        size = packed_bytes(self.entries, self.bits)
        children = torch.empty(size, dtype=torch.uint8, device=device)
        partition = spec.fan_out == "partition"
        self.register_buffer("owner", children if partition else None, persistent=False)

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, stock: str, weight: Tensor, bias: Tensor | None
    ) -> ElementDown:
        """Moves a parent's weights `[outputs, parents]` and bias into the packed form."""
        spec = plan.spec
        layer = cls(spec, stock, dtype=weight.dtype, device="meta")
        keep = plan.down_keep
        tensors: dict[str, Tensor] = {} if bias is None else {"bias": bias.clone()}
        copies = weight.unsqueeze(1)
        if plan.down_children is None:
            copies = copies.expand(-1, spec.alpha, -1)
        else:
            tensors["owner"] = pack(plan.down_children, layer.bits)
        if keep is None:
            tensors["weight"] = copies.clone(memory_format=torch.contiguous_format).view(-1)
        else:
            tensors["weight"] = take_kept(copies, keep.unsqueeze(1))
            tensors["keep"] = pack(keep, 1)
        layer.bind({name: t.detach().to(weight.device) for name, t in tensors.items()})
        return layer

    def dense_weight(self) -> Tensor:
        spec = self.spec
        keep = self._keep()
        if self.owner is None:
            shape = (spec.out_features, spec.alpha, spec.all_parents)
            mask = None if keep is None else keep.unsqueeze(1).expand(shape)
            return self.by_expert(_by_tile(fill(self.weight, mask, shape), spec))
        parent = fill(self.weight, keep, (spec.out_features, spec.all_parents)).unsqueeze(1)
        weight = divided(parent, parent.new_zeros(()), spec.alpha, self._codes())
        return self.by_expert(_by_tile(weight, spec))

    def project(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., outputs]`."""
        if self.spec.experts == 1 and usable(hidden, self.in_features, *self.numbers().values()):
            return self._project_packed(hidden)
        return functional.linear(hidden, self.dense_weight(), self.bias)

    def _project_packed(self, hidden: Tensor) -> Tensor:
        spec = self.spec
        sums = packed_rows(
            hidden.reshape(-1, spec.hidden),
            self.weight,
            self.keep,
            self.owner,
            Mode.COPIES if self.owner is None else Mode.OWNED,
            rows=spec.out_features,
            columns=spec.parents,
            children=spec.alpha,
            owner_rows=spec.out_features,
        )
        result = sums[:, 0]
        result = result if self.bias is None else result + self.bias
        return result.to(output_dtype(hidden)).view(*hidden.shape[:-1], self.out_features)

    def check(self, name: str) -> None:
        keep = self._buffers["keep"]
        if keep is not None:
            copies = self.spec.alpha if self._buffers["owner"] is None else 1
            kept, remainder = divmod(self.weight.numel(), copies)
            if remainder:
                raise CheckpointError(
                    f"tensor {name + '.weight'!r} has {self.weight.numel()} values, not a multiple "
                    f"of alpha={copies}."
                )
            check_keep(f"{name}.keep", keep, self.entries, kept)

    def reset_derived(self) -> None:
        if self.owner is not None:
            self.owner = pack(draw_down_children(self.spec), self.bits).to(self.index_device())

    def _keep(self) -> Tensor | None:
        if self.keep is None:
            return None
        shape = (self.spec.out_features, self.spec.all_parents)
        return unpack(self.keep, 1, self.entries).view(shape).bool()

    def _codes(self) -> Tensor:
        """The child that keeps each outgoing weight: uint8 `[outputs, 1, parents]`."""
        assert self.owner is not None
        codes = unpack(self.owner, self.bits, self.entries)
        return codes.view(self.spec.out_features, 1, self.spec.all_parents)


def _by_tile(weight: Tensor, spec: BlockSpec) -> Tensor:
    """Puts hidden neurons in order, the tiles being experts: `[n, alpha, all parents, ...]` ->
    `[n, experts * hidden, ...]`."""
    by_expert: Tensor = weight.unflatten(2, (spec.experts, spec.parents))
    return by_expert.transpose(1, 2).flatten(1, 3)
