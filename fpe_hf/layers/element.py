"""The `element` layout: any mask. Weights are packed. A kernel takes them as they are where it can
(a few tokens on the CPU, no gradients); else the matrix is filled in for each forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError
from ..kernels.packed import Rows, fill, output_dtype, sums, usable
from ..packing import (
    code_bits,
    pack,
    pack_states,
    packed_bytes,
    states_bytes,
    take_kept,
    unpack,
    unpack_states,
)
from ..planning import BlockPlan, BlockSpec
from ..planning.draw import draw_down_children, draw_up_children
from ..planning.spec import INDEPENDENT
from .base import DownLayer, UpLayer


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
            saved if it follows from the seed (`hash`) or from `codes` (`kept`).
        codes: `kept`: packed child of each entry `[sources, parents, inputs]`, or alpha for those
            that are pruned. `keep` and `owner` follow from it. Otherwise `None`.
    """

    keep: Tensor | None
    owner: Tensor
    codes: Tensor | None

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
        # Rows: sources, experts, parents. The matrix: experts, then hidden neurons and sources.
        self.parent_rows = Rows(
            axes=(spec.sources_per_up, spec.experts, spec.parents),
            columns=spec.in_features,
            children=1,
            keep=(spec.all_parents, spec.parents, 1),
            owner=(0, spec.parents, 1) if rows > 1 else (0, 0, 0),
            inputs=(0, 0, 0),
            order=(1, 3, 2, 0) if spec.fused == "interleaved" else (1, 0, 3, 2),
        )
        self.rows = self.parent_rows._replace(children=spec.alpha)
        keep = torch.empty(packed_bytes(self.entries, 1), dtype=torch.uint8, device=device)
        kept = spec.assignment == "kept"
        self.register_buffer("keep", keep if spec.up_pruned[index] else None, persistent=not kept)
        size = packed_bytes(rows * spec.in_features, self.bits)
        children = torch.empty(size, dtype=torch.uint8, device=device)
        stored = spec.assignment in ("table", "codes")
        self.register_buffer("owner", children, persistent=stored)
        size = states_bytes(self.entries, spec.alpha + 1)
        codes = torch.empty(size, dtype=torch.uint8, device=device)
        self.register_buffer("codes", codes if kept else None)

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
        tensors |= layer.where(plan)
        if keep is None:
            tensors["weight"] = weight.clone(memory_format=torch.contiguous_format).view(-1)
        else:
            tensors["weight"] = take_kept(weight.flatten(0, 1), keep.flatten(0, 1))
        layer.bind({name: t.detach().to(weight.device) for name, t in tensors.items()})
        return layer

    def where(self, plan: BlockPlan) -> dict[str, Tensor]:
        """The index buffers that a plan gives."""
        assert plan.up_children is not None
        assert self.index is not None
        keep, children = plan.up_keep[self.index], plan.up_children
        if self.codes is None:
            tensors = {"owner": pack(children, self.bits)}
            return tensors if keep is None else {**tensors, "keep": pack(keep, 1)}
        alpha = self.spec.alpha
        states = children.to(torch.int16).expand(self.spec.sources_per_up, *self.codes_shape)
        states = states if keep is None else states.where(keep.cpu(), alpha)
        return {"codes": pack_states(states, alpha + 1)}

    def dense_weight(self) -> Tensor:
        matrix = fill(self.weight, self.keep, self._owner(), self.rows)
        coupling = self.couplings()
        if isinstance(coupling, Tensor) or coupling:
            parent = fill(self.weight, self.keep, None, self.parent_rows)
            if isinstance(coupling, Tensor):
                order = self.rows.order
                coupling = coupling.view(*self.rows.axes, 1).permute(order).unsqueeze(-1)
            matrix = torch.lerp(matrix, parent, coupling)  # own weights stay what they are
        return self._by_expert(matrix)

    def project(self, x: Tensor) -> Tensor:
        """`[..., inputs]` -> `[..., sources * hidden]`."""
        equal = self.coupling is None and self.spec.coupling == 1.0
        rows = self.parent_rows if equal else self.rows
        numbers = self.weight, self.bias, self.coupling
        if self.spec.experts == 1 and usable(x, self.in_features, rows, *numbers):
            return self._project_packed(x, rows)
        if equal and self.spec.fused is None:
            # All children of a parent see its full pre-activation: compute it once.
            parent = fill(self.weight, self.keep, None, rows)
            z = self.expand(functional.linear(x, self._by_expert(parent)))
            bias = self.dense_bias()
            return z if bias is None else z + bias.to(z.dtype)
        return functional.linear(x, self.dense_weight(), self.dense_bias())

    def _project_packed(self, x: Tensor, rows: Rows) -> Tensor:
        spec = self.spec
        owner = self._owner() if rows.children > 1 else None
        z = sums(x.reshape(-1, 1, rows.columns), self.weight, self.keep, owner, rows)
        coupling = self.couplings()
        if rows.children == 1:
            z = z.expand(-1, spec.alpha, -1, -1, -1)
        elif isinstance(coupling, Tensor) or coupling:
            if isinstance(coupling, Tensor):
                coupling = coupling.unsqueeze(1)
            z = (1 - coupling) * z + coupling * z.sum(1, keepdim=True)
        if self.bias is not None:
            children = spec.alpha if spec.bias == "child" else 1
            z = z + self.bias.view(-1, children, 1, spec.parents).transpose(0, 1)
        z = z.permute(0, *((2, 3, 4, 1)[axis] for axis in rows.order))
        return z.reshape(*x.shape[:-1], self.out_features).to(output_dtype(x))

    def _by_expert(self, matrix: Tensor) -> Tensor:
        """`[experts, ..., ..., ..., inputs]` -> `[experts, rows, inputs]`, or of the only one."""
        matrix = matrix.flatten(1, 3)
        return matrix if self.spec.experts > 1 else matrix[0]

    def readers(self) -> tuple[Tensor, Tensor]:
        keep, reader = self._keep(), self._codes().to(torch.int16)
        if keep is None:
            return reader, reader
        read = keep.any(dim=0)
        return reader.where(read, self.spec.alpha), reader.where(read, -1)

    def check(self, name: str) -> None:
        count = self.codes_shape[0] * self.codes_shape[1]
        owner: Any = self._buffers["owner"]
        keep = self._buffers["keep"]
        check_packed(f"{name}.owner", owner, self.bits, count, self.spec.alpha)
        if keep is not None:
            check_keep(f"{name}.keep", keep, self.entries, self.values)
        if self.codes is not None:
            self._check_codes(f"{name}.codes")

    def _check_codes(self, name: str) -> None:
        """Checks that codes name children that exist, and one child for each input."""
        alpha, states = self.spec.alpha, self._states()
        kept = states < alpha
        if int(states.max()) > alpha:
            raise CheckpointError(f"tensor {name!r} holds a child, but there are {alpha} children.")
        if int(kept.count_nonzero()) != self.values:
            raise CheckpointError(f"tensor {name!r} does not keep {self.values} entries.")
        if bool((states.amin(0) < states.where(kept, 0).amax(0)).any()):
            raise CheckpointError(f"tensor {name!r} gives one input to two children of a parent.")
        assert self.codes is not None
        if not torch.equal(pack_states(states, alpha + 1), self.codes.cpu()):
            raise CheckpointError(f"tensor {name!r} has bits set after its last entry.")

    def _states(self) -> Tensor:
        """The child of every entry, or alpha: int16 `[sources, parents, inputs]`."""
        assert self.codes is not None
        states = unpack_states(self.codes, self.spec.alpha + 1, self.entries)
        return states.view(self.spec.sources_per_up, *self.codes_shape)

    def reset_derived(self) -> None:
        if self.spec.assignment == "hash":
            self.owner = pack(draw_up_children(self.spec), self.bits).to(self.index_device())
        elif self.codes is not None and not self.codes.is_meta:
            states = self._states()
            kept = states < self.spec.alpha
            self.owner = pack(states.where(kept, 0).amax(0), self.bits)
            if self.keep is not None:
                self.keep = pack(kept, 1)

    def _owner(self) -> Tensor | None:
        """What `fill` and `sums` want: nothing if there is one child."""
        return self.owner if self.spec.alpha > 1 else None

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
        keep: Packed mask of kept outgoing weights of the parent `[outputs, parents]`, or of its
            children `[outputs, alpha, parents]` if they are independent; `None` if all are kept.
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
        independent = spec.fan_out == INDEPENDENT
        self.copies = spec.alpha if independent else 1
        self.entries = spec.out_features * self.copies * spec.all_parents
        self.bits = code_bits(spec.alpha)
        keep = torch.empty(packed_bytes(self.entries, 1), dtype=torch.uint8, device=device)
        self.register_buffer("keep", keep if spec.down_pruned else None)
        size = packed_bytes(self.entries, self.bits)
        children = torch.empty(size, dtype=torch.uint8, device=device)
        partition = spec.fan_out == "partition"
        self.register_buffer("owner", children if partition else None, persistent=False)
        # Rows: outputs and experts, copies between them. The matrix: experts, outputs, hidden.
        self.rows = Rows(
            axes=(spec.out_features, 1 if partition else spec.alpha, spec.experts),
            columns=spec.parents,
            children=spec.alpha if partition else 1,
            keep=(self.copies * spec.experts, spec.experts if independent else 0, 1),
            owner=(spec.experts, 0, 1),
            inputs=(0, 0, 0) if partition else (0, 1, 0),
            order=(2, 0, 1, 3),
        )

    @classmethod
    def from_parent(
        cls, plan: BlockPlan, stock: str, weight: Tensor, bias: Tensor | None
    ) -> ElementDown:
        """Moves a parent's weights `[outputs, parents]` and bias into the packed form."""
        spec, keep = plan.spec, plan.down_keep
        layer = cls(spec, stock, dtype=weight.dtype, device="meta")
        tensors = layer.where(plan) | ({} if bias is None else {"bias": bias.clone()})
        copies = weight.unsqueeze(1)
        if plan.down_children is None:
            copies = copies.expand(-1, spec.alpha, -1)
        if keep is None:
            tensors["weight"] = copies.clone(memory_format=torch.contiguous_format).view(-1)
        else:
            tensors["weight"] = take_kept(copies, keep.unsqueeze(1))
        layer.bind({name: t.detach().to(weight.device) for name, t in tensors.items()})
        return layer

    def where(self, plan: BlockPlan) -> dict[str, Tensor]:
        """The index buffers that a plan gives."""
        codes = {"owner": plan.down_children, "keep": plan.down_keep}
        bits = {"owner": self.bits, "keep": 1}
        return {name: pack(own, bits[name]) for name, own in codes.items() if own is not None}

    def dense_weight(self) -> Tensor:
        matrix = fill(self.weight, self.keep, self.owner, self.rows).flatten(2)
        return matrix if self.spec.experts > 1 else matrix[0]

    def project(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` -> `[..., outputs]`."""
        spec = self.spec
        if spec.experts > 1 or not usable(
            hidden, self.in_features, self.rows, self.weight, self.bias
        ):
            return functional.linear(hidden, self.dense_weight(), self.bias)
        x = hidden.reshape(-1, spec.alpha, spec.parents)
        result = sums(x, self.weight, self.keep, self.owner, self.rows)
        result = result.sum((1, 3, 4))  # of children or copies
        result = result if self.bias is None else result + self.bias
        return result.to(output_dtype(hidden)).view(*hidden.shape[:-1], self.out_features)

    def check(self, name: str) -> None:
        keep = self._buffers["keep"]
        if keep is not None:
            replicated = self.spec.fan_out == "replicate"
            copies = self.spec.alpha if replicated else 1
            kept, remainder = divmod(self.values, copies)
            if remainder:
                raise CheckpointError(
                    f"tensor {name + '.weight'!r} has {self.values} values, not a multiple "
                    f"of alpha={copies}."
                )
            check_keep(f"{name}.keep", keep, self.entries, kept)

    def reset_derived(self) -> None:
        if self.owner is not None:
            self.owner = pack(draw_down_children(self.spec), self.bits).to(self.index_device())
