"""Which expressions are the usual activations, with or without a gate, that `activations.h` has.

Models call them by name or spell them out. An expression is brought into a form of sums and
products first, in which different ways to write a function agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .pointwise import Node, Source, Step


class Kind(IntEnum):
    """What `activations.h` knows."""

    RELU = 0
    SIGMOID_LINEAR = 1
    """`x * sigmoid(scale * x)`: SiLU, and with a scale of 1.702 CLIP's fast GELU."""
    GELU = 2
    GELU_TANH = 3
    RELU_SQUARED = 4


@dataclass(frozen=True)
class Activation:
    """An activation of one source, times another source if there is a gate.

    Attributes:
        kind: Which one.
        scale: Of `SIGMOID_LINEAR`.
        pre: The source that it is applied to.
        gated: The source that it is multiplied with, or `None`.
    """

    kind: Kind
    scale: float
    pre: Source
    gated: Source | None = None


def recognise(node: Node) -> Activation | None:
    """The activation that an expression is, or `None` if it is something else."""
    form = _form(node)
    if form is None:
        return None
    product = _as_product(form)
    found = _plain(product)
    if found is not None:
        return found
    for place, gate in enumerate(product.factors):
        if isinstance(gate, Source):
            rest = (*product.factors[:place], *product.factors[place + 1 :])
            found = _plain(_Product(product.number, rest))
            if found is not None and found.pre is not gate:
                return Activation(found.kind, found.scale, found.pre, gate)
    return None


@dataclass(frozen=True, eq=False)
class _Product:
    """A number times all factors."""

    number: float
    factors: tuple[_Form, ...]


@dataclass(frozen=True, eq=False)
class _Sum:
    """A number plus all terms."""

    number: float
    terms: tuple[_Form, ...]


@dataclass(frozen=True, eq=False)
class _Call:
    """A function of one operand."""

    name: str
    operand: _Form


_Form = _Product | _Sum | _Call | Source


def _names() -> dict[Callable[..., Any], str]:
    homes = (torch, Tensor, functional)
    named = "gelu silu relu sigmoid tanh erf square pow mul multiply div add".split()
    found = {getattr(home, name, None): name for name in named for home in homes}
    found |= {getattr(Tensor, f"__{side}{n}__"): n for n in ("mul", "add") for side in ("", "r")}
    found |= {Tensor.__truediv__: "div", Tensor.__pow__: "pow"}
    return {function: name for function, name in found.items() if function is not None}


_NAMES = _names()
_MOST_FACTORS = 4
"""Of a whole power that is written out as a product."""


def _form(node: Any) -> _Form | None:
    """Sums and products of an expression, or `None` if it has other parts than these."""
    if isinstance(node, Source):
        return node
    if not isinstance(node, Step) or node.function not in _NAMES:
        return None
    name, options = _NAMES[node.function], dict(node.kwargs)
    options.pop("inplace", None)  # what writes to its operand is never recorded
    if name == "gelu":
        name = "gelu" if options.pop("approximate", "none") == "none" else "gelu_tanh"
    if options:
        return None
    numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
    forms = [_form(arg) for arg in node.args if isinstance(arg, (Source, Step))]
    known = [form for form in forms if form is not None]
    if len(known) + len(numbers) != len(node.args) or not all(map(math.isfinite, numbers)):
        return None
    return _combined(name, node.args, known, [float(number) for number in numbers])


def _combined(
    name: str, args: Sequence[Any], forms: list[_Form], numbers: list[float]
) -> _Form | None:
    if name in ("mul", "multiply") and len(args) == 2:
        parts = [_as_product(form) for form in forms]
        number = math.prod([*numbers, *(part.number for part in parts)])
        return _Product(number, tuple(f for part in parts for f in part.factors))
    if name == "add" and len(args) == 2:
        sums = [form if isinstance(form, _Sum) else _Sum(0.0, (form,)) for form in forms]
        number = math.fsum([*numbers, *(part.number for part in sums)])
        return _Sum(number, tuple(term for part in sums for term in part.terms))
    if name == "div" and len(args) == 2 and numbers and args[1] == numbers[0] != 0:
        part = _as_product(forms[0])
        return _Product(part.number / numbers[0], part.factors)
    if name == "square" and len(args) == 1:
        return _power(forms[0], 2)
    if name == "pow" and len(args) == 2 and numbers and args[1] == numbers[0]:
        whole = numbers[0].is_integer() and 1 <= numbers[0] <= _MOST_FACTORS
        return _power(forms[0], int(numbers[0])) if whole else None
    return _Call(name, forms[0]) if len(args) == len(forms) == 1 else None


def _power(form: _Form, exponent: int) -> _Product:
    part = _as_product(form)
    return _Product(part.number**exponent, part.factors * exponent)


def _as_product(form: _Form) -> _Product:
    return form if isinstance(form, _Product) else _Product(1.0, (form,))


def _plain(product: _Product) -> Activation | None:
    """An activation of a source, without a gate."""
    sources = set(_sources(product))
    if len(sources) != 1:
        return None
    [x] = sources
    for kind, template in _templates(x):
        if _same(product, _as_product(template)):
            return Activation(kind, 1.0, x)
    scale = _scale(product, x)
    return None if scale is None else Activation(Kind.SIGMOID_LINEAR, scale, x)


def _sources(form: _Form) -> list[Source]:
    if isinstance(form, Source):
        return [form]
    if isinstance(form, _Call):
        return _sources(form.operand)
    inner = form.factors if isinstance(form, _Product) else form.terms
    return [source for part in inner for source in _sources(part)]


def _templates(x: Source) -> list[tuple[Kind, _Form]]:
    """Ways to write the activations of a source, except `x * sigmoid(scale * x)`."""
    rational, cube = math.sqrt(2 / math.pi), 0.044715
    inner = _Sum(0.0, (x, _Product(cube, (x, x, x))))
    factored = _Sum(1.0, (_Product(cube, (x, x)),))
    erf = _Call("erf", _Product(1 / math.sqrt(2), (x,)))

    def half(share: _Form) -> _Form:
        return _Product(0.5, (x, _Sum(1.0, (share,))))

    return [
        (Kind.RELU, _Call("relu", x)),
        (Kind.RELU_SQUARED, _Product(1.0, (_Call("relu", x),) * 2)),
        (Kind.SIGMOID_LINEAR, _Call("silu", x)),
        (Kind.GELU, _Call("gelu", x)),
        (Kind.GELU, half(erf)),
        (Kind.GELU_TANH, _Call("gelu_tanh", x)),
        (Kind.GELU_TANH, half(_Call("tanh", _Product(rational, (inner,))))),
        (Kind.GELU_TANH, half(_Call("tanh", _Product(rational, (x, factored))))),
    ]


def _scale(product: _Product, x: Source) -> float | None:
    """The scale of `x * sigmoid(scale * x)`, or `None` if the product is something else."""
    if product.number != 1.0 or len(product.factors) != 2:
        return None
    for own, share in (product.factors, product.factors[::-1]):
        if own is x and isinstance(share, _Call) and share.name == "sigmoid":
            operand = _as_product(share.operand)
            return operand.number if operand.factors == (x,) else None
    return None


_CLOSE = 1e-6
"""Constants are written with some digits only. Relative."""


def _same(one: _Form, other: _Form) -> bool:
    """Whether two forms are the same function, whatever the order of factors and terms."""
    if isinstance(one, Source) or isinstance(other, Source):
        return one is other
    if isinstance(one, _Call) and isinstance(other, _Call):
        return one.name == other.name and _same(one.operand, other.operand)
    if isinstance(one, _Product) and isinstance(other, _Product):
        inner, outer = one.factors, list(other.factors)
    elif isinstance(one, _Sum) and isinstance(other, _Sum):
        inner, outer = one.terms, list(other.terms)
    else:
        return False
    if len(inner) != len(outer) or not math.isclose(one.number, other.number, rel_tol=_CLOSE):
        return False
    for part in inner:
        match = next((i for i, candidate in enumerate(outer) if _same(part, candidate)), None)
        if match is None:
            return False
        del outer[match]
    return True
