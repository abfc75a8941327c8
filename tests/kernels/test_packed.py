from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fpe_hf.errors import CheckpointError
from fpe_hf.kernels import native, packed
from fpe_hf.kernels.packed import MOST_TOKENS, Rows, fill, sums, take, usable
from fpe_hf.layers import ElementDown, ElementUp, FPELayer, element
from fpe_hf.packing import code_bits, pack
from planning.cases import make_case

pytestmark = pytest.mark.skipif(
    native.unavailable("packed") is not None, reason=f"no kernel: {native.unavailable('packed')}"
)
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""What rounding a result to its number format may change, relative to it."""

SUMMING = 5e-7
"""What summing in float32 may change, relative to the sum of the sizes of all terms."""

OPTIONS: dict[str, dict[str, Any]] = {
    "hard": {"coupling": 0.0},
    "coupled": {"coupling": 0.3},
    "equal": {"coupling": 1.0},
    "learned": {"coupling": 1.0, "learn_coupling": True},
    "child": {"bias": "child"},
    "unbiased": {"biased": False},
    "table": {"split": "feature"},
}


def layers(**options: Any) -> list[ElementUp | ElementDown]:
    """Layers with numbers as after training: copies differ, couplings are not 1."""
    found = make_case(**options).layers()
    for layer in found:
        assert isinstance(layer, (ElementUp, ElementDown))
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return found


def reference(layer: FPELayer, x: Tensor, sizes: bool = False) -> Tensor:
    """The same in float64, by an ordinary product; or the sum of the sizes of its terms."""
    exact = deepcopy(layer).double()
    numbers = (x.double(), exact.dense_weight(), exact.dense_bias())
    if sizes:
        numbers = tuple(None if number is None else number.abs() for number in numbers)
    return functional.linear(*numbers)


def assert_near(found: Tensor, layer: FPELayer, x: Tensor) -> None:
    expected = reference(layer, x)
    terms = reference(layer, x, sizes=True)
    assert found.shape == expected.shape
    error = (found.double() - expected).abs()
    assert bool((error <= ROUNDING[found.dtype] * expected.abs() + SUMMING * terms).all())


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens each call of the kernel had."""
    calls: list[int] = []

    def counting(x: Tensor, *rest: Any) -> Tensor:
        calls.append(len(x))
        return sums(x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(element, "sums", counting)
        yield calls


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    alpha = draw(st.sampled_from([2, 3, 4, 5, 8, 9, 16]))
    return {
        "kind": draw(st.sampled_from(["plain", "gated", "halves", "interleaved"])),
        "d": draw(st.integers(alpha, 150)),
        "h": draw(st.integers(1, 40)),
        "o": draw(st.integers(alpha, 40)),
        "alpha": alpha,
        "fan_out": draw(st.sampled_from(["replicate", "partition"])),
        "zeros": draw(st.sampled_from([0.0, 0.5])),
        "weights": draw(st.integers(0, 5)),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16])),
        **draw(st.sampled_from([OPTIONS["hard"], OPTIONS["coupled"], OPTIONS["equal"]])),
    }


class Job(NamedTuple):
    """A packed matrix and what is done with it."""

    axes: tuple[int, int, int]
    columns: int
    copies: bool
    """Rows along the second axis have inputs of their own; else children share rows."""
    own: bool
    """Copies: a mask for each. Children: an input for each."""
    children: int
    shared: int
    """How many of the outer axes have the same codes."""
    density: float | None
    tokens: int
    half: bool
    order: tuple[int, int, int, int]
    seed: int

    @property
    def rows(self) -> Rows:
        _, middle, inner = self.axes
        every = (middle * inner, inner, 1)
        keep = (inner, 0, 1) if self.copies and not self.own else every
        owner = (*((0,) * self.shared), *every[self.shared :])
        inputs = (0, 1, 0) if self.copies else (0, 0, 0)
        children = 1 if self.copies else self.children
        return Rows(self.axes, self.columns, children, keep, owner, inputs, self.order)


def jobs(most_children: int = 16) -> st.SearchStrategy[Job]:
    return st.builds(
        Job,
        axes=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)),
        columns=st.one_of(st.integers(1, 200), st.integers(1020, 1030)),
        copies=st.booleans(),
        own=st.booleans(),
        children=st.sampled_from(
            [n for n in (1, 2, 3, 4, 6, 8, 11, 16, 256) if n <= most_children]
        ),
        shared=st.integers(0, 3),
        density=st.sampled_from([None, 0.0, 0.1, 0.6, 1.0]),
        tokens=st.integers(0, 9),
        half=st.booleans(),
        order=st.permutations(range(4)).map(tuple),
        seed=st.integers(0, 99),
    )


class Packed(NamedTuple):
    """The tensors of a job, and its matrix entry by entry."""

    weight: Tensor
    keep: Tensor | None
    owner: Tensor | None
    there: Tensor
    """bool `[*axes, columns]`"""
    codes: Tensor
    """`[*axes, columns]`"""
    matrix: Tensor
    """float64 `[*axes, children, columns]`"""


def of_every_row(rows: Rows, steps: tuple[int, int, int], stored: Tensor) -> Tensor:
    """Rows of a mask or of codes, one for every row of the matrix."""
    places = [
        sum(n * step for n, step in zip(at, steps, strict=True))
        for at in product(*map(range, rows.axes))
    ]
    return stored[torch.tensor(places)].view(*rows.axes, rows.columns)


def make(job: Job, dtype: torch.dtype | None = None) -> Packed:
    rows = job.rows
    torch.manual_seed(job.seed)
    mask = torch.rand(rows.span(rows.keep), rows.columns) < (job.density or 1.0)
    codes = torch.randint(0, rows.children, (rows.span(rows.owner), rows.columns))
    mask = torch.ones_like(mask) if job.density is None else mask & (job.density > 0)
    there, owners = of_every_row(rows, rows.keep, mask), of_every_row(rows, rows.owner, codes)
    dtype = dtype or (torch.bfloat16 if job.half else torch.float32)
    weight = torch.randn(int(there.sum())).to(dtype)
    parent = torch.zeros(there.shape, dtype=torch.float64)
    parent[there] = weight.double()
    matrix = torch.stack([torch.where(owners == c, parent, 0.0) for c in range(rows.children)], 3)
    return Packed(
        weight,
        None if job.density is None else pack(mask, 1),
        None if rows.children == 1 else pack(codes, code_bits(rows.children)),
        there,
        owners,
        matrix,
    )


def inputs(job: Job) -> Tensor:
    count = job.axes[1] if job.copies else job.children if job.own else 1
    return torch.randn(job.tokens, count, job.columns)


def multiplied(job: Job, x: Tensor, matrix: Tensor) -> Tensor:
    if job.copies:
        return torch.einsum("tbi,abcki->tkabc", x, matrix)
    return torch.einsum("tki,abcki->tkabc", x.expand(-1, job.rows.children, -1), matrix)


def assert_sums(job: Job) -> None:
    given, x = make(job), inputs(job)
    found = sums(x, given.weight, given.keep, given.owner, job.rows)
    assert found.dtype == torch.float32
    expected, sizes = (
        multiplied(job, *pair)
        for pair in ((x.double(), given.matrix), (x.double().abs(), given.matrix.abs()))
    )
    assert bool(((found.double() - expected).abs() <= 4e-6 * sizes).all())


def assert_moves(job: Job, dtype: torch.dtype) -> None:
    given, rows = make(job, dtype), job.rows
    about = (given.keep, given.owner, rows)
    filled = fill(given.weight, *about)
    expected = given.matrix.permute(*rows.order, 4)
    assert filled.shape == rows.shape
    assert torch.equal(filled.double(), expected)
    matrix = torch.randn(rows.shape).to(dtype)
    taken = take(matrix, *about, given.weight.numel())
    by_row = matrix.permute(*(rows.order.index(axis) for axis in range(4)), 4)
    assert torch.equal(taken, by_row.gather(3, given.codes.unsqueeze(3)).squeeze(3)[given.there])


@settings(max_examples=60)
@given(shapes(), st.integers(1, MOST_TOKENS), st.integers(0, 99))
@torch.no_grad()
def test_it_equals_the_dense_matrix(shape: dict[str, Any], tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    for layer in layers(**shape):
        x = torch.randn(tokens, layer.in_features).to(layer.weight.dtype)
        assert usable(x, layer.in_features, layer.rows, layer.weight)
        output = layer(x)
        assert output.dtype == x.dtype
        assert output.is_contiguous()
        assert_near(output, layer, x)


@pytest.mark.parametrize("kind", ["plain", "gated", "halves", "interleaved"])
@pytest.mark.parametrize(("option", "fan_out"), list(product(OPTIONS, ["replicate", "partition"])))
@torch.no_grad()
def test_every_kind_of_layer(kind: str, option: str, fan_out: str) -> None:
    for layer in layers(kind=kind, d=21, h=9, o=10, fan_out=fan_out, alpha=3, **OPTIONS[option]):
        for lead in [(), (1,), (2, 3), (2, 1, 20)]:
            x = torch.randn(*lead, layer.in_features)
            assert_near(layer(x), layer, x)


@settings(max_examples=100)
@given(jobs())
def test_sums_of_any_rows(job: Job) -> None:
    assert_sums(job)


MOVED = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@settings(max_examples=100)
@given(jobs(256), st.sampled_from(MOVED))
def test_filling_in_and_taking_out(job: Job, dtype: torch.dtype) -> None:
    assert_moves(job, dtype)


@given(jobs(256), st.sampled_from(MOVED))
def test_plain_operations_move_the_same(job: Job, dtype: torch.dtype) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_in_c", lambda *tensors: False)
        assert_moves(job, dtype)


@settings(max_examples=15)
@given(jobs())
def test_moving_has_derivatives_of_any_order(job: Job) -> None:
    job = job._replace(columns=job.columns % 5 + 1, children=min(job.children, 3))
    given, rows = make(job, torch.float64), job.rows
    weight = given.weight.requires_grad_()
    matrix = torch.randn(rows.shape, dtype=torch.float64, requires_grad=True)
    count = weight.numel()
    for function, variable in (
        (lambda w: fill(w, given.keep, given.owner, rows) ** 2, weight),
        (lambda m: take(m, given.keep, given.owner, rows, count) ** 2, matrix),
    ):
        torch.autograd.gradcheck(function, variable, check_batched_grad=True)
        torch.autograd.gradgradcheck(function, variable)


@settings(max_examples=60)
@given(jobs())
def test_only_its_own_values_matter_to_a_row(job: Job) -> None:
    """Neither those of other rows, which may share a vector with them, nor the memory around."""
    given, x = make(job), inputs(job)
    outer = torch.arange(job.axes[0]).view(-1, 1, 1, 1).expand(given.there.shape)
    odd = outer[given.there] % 2 == 1
    around = given.weight.new_full((len(odd) + 64,), torch.nan)
    around[32:-32] = torch.where(odd, torch.nan, given.weight)
    about = (given.keep, given.owner, job.rows)
    found = sums(x, around[32:-32], *about)[:, :, ::2]
    assert torch.equal(found, sums(x, given.weight, *about)[:, :, ::2])


@given(jobs())
def test_defaults_of_the_process_do_not_matter(job: Job) -> None:
    given, x = make(job), inputs(job)
    about = (given.weight, given.keep, given.owner, job.rows)
    expected = sums(x, *about), fill(*about)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = sums(x, *about), fill(*about)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


FULL = Job((3, 1, 4), 70, False, False, 3, 0, 0.5, 2, False, (0, 1, 2, 3), 0)


def damaged() -> dict[str, tuple[Any, ...]]:
    """Arguments of `fill` that do not fit each other."""
    weight, keep, owner, *_ = make(FULL)
    assert keep is not None
    assert owner is not None
    more, wrong = keep.clone(), owner.clone()
    more[:4] = 255
    wrong[:8] = 255
    return {
        "another mask": (weight, more, owner),
        "a short mask": (weight, keep[:-1], owner),
        "a mask of booleans": (weight, keep.bool(), owner),
        "a mask with gaps": (weight, torch.stack([keep, keep], 1)[:, 0], owner),
        "a mask elsewhere": (weight, keep.to("meta"), owner),
        "a child too many": (weight, keep, wrong),
        "short codes": (weight, keep, owner[:-1]),
        "no codes": (weight, keep, None),
        "too few weights": (weight[:-1], keep, owner),
        "too many weights": (torch.cat([weight, weight]), keep, owner),
        "no weights": (weight[:0], keep, owner),
    }


@pytest.mark.parametrize("how", damaged())
def test_what_does_not_fit_is_refused(how: str) -> None:
    weight, keep, owner = damaged()[how]
    with pytest.raises(CheckpointError):
        packed._Fill.apply(weight, keep, owner, FULL.rows)
    matrix = torch.randn(FULL.rows.shape)
    with pytest.raises(CheckpointError):
        packed._Take.apply(matrix, keep, owner, FULL.rows, weight.numel())
    if how != "a child too many":  # it reads nothing there
        with pytest.raises(CheckpointError):
            sums(inputs(FULL), weight, keep, owner, FULL.rows)


def test_a_child_too_many_in_rows_that_keep_nothing_is_refused() -> None:
    weight, keep, owner = damaged()["a child too many"]
    with pytest.raises(CheckpointError):
        packed._Fill.apply(weight[:0], torch.zeros_like(keep), owner, FULL.rows)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(2, 1, 69), torch.float32),
        (torch.randn(2, 2, 70), torch.float32),
        (torch.randn(2, 1, 70), torch.float16),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Tensor, weight: torch.dtype) -> None:
    given = make(FULL)
    with pytest.raises(ValueError, match="do not fit"):
        sums(x, given.weight.to(weight), given.keep, given.owner, FULL.rows)


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 19, 21, 40])
def test_a_wrong_width_is_refused_as_by_a_linear_module(width: int) -> None:
    for layer in layers(d=20, h=10, o=20):
        for tokens in (1, 100):
            with pytest.raises(RuntimeError, match="cannot be multiplied"):
                layer(torch.randn(tokens, width))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "feature"),
    [("", ""), ("-mavx", "avx"), ("-mavx2 -mfma", "avx2"), ("-march=skylake-avx512", "avx512vl")],
)
def test_other_instruction_sets(
    machine: str, feature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as this machine has them, the same source without the newer ones."""
    if feature and feature not in native._cpu().split():
        pytest.skip(f"this machine has no {feature}")
    flags = ("-O1", "-std=gnu11", "-fPIC", "-Wno-psabi", *machine.split())
    library = native._load(
        "packed", native._compiled("packed", native._compiler(), flags, tmp_path)
    )
    monkeypatch.setattr(native, "library", lambda name: library)

    @settings(max_examples=80)
    @given(jobs())
    def run(job: Job) -> None:
        assert_sums(job)
        assert_moves(job, torch.bfloat16 if job.half else torch.float32)

    run()


@torch.no_grad()
def test_nothing_depends_on_threads_or_on_the_run() -> None:
    before = torch.get_num_threads()
    try:
        for layer in layers(d=70, h=33, o=65, alpha=3):
            for tokens in (1, 3, 20):
                x = torch.randn(tokens, layer.in_features)
                torch.set_num_threads(1)
                one = layer(x)
                assert torch.equal(layer(x), one)
                torch.set_num_threads(2)
                assert torch.equal(layer(x), one)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_inputs_in_any_memory_order() -> None:
    for layer in layers(d=20, h=9, o=20):
        width = layer.in_features
        for x in (
            torch.randn(width, 6).t(),
            torch.randn(4, 2 * width)[:, ::2],
            torch.randn(1, width).expand(5, width),
            torch.randn(3, width, 2).transpose(1, 2),
        ):
            assert not x.is_contiguous()
            assert_near(layer(x), layer, x)


def test_it_stands_in_for_few_tokens_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers(d=20, h=9)[0]
    with counted(monkeypatch) as calls:
        layer(torch.randn(1, 20))
        layer.requires_grad_(False)
        layer(torch.randn(1, 20, requires_grad=True))
        assert calls == []
        layer(torch.randn(2, 20))
        layer.requires_grad_(True)
        with torch.inference_mode():
            layer(torch.randn(2, 3, 20))
        with torch.no_grad():
            layer(torch.randn(MOST_TOKENS, 20))
            layer(torch.randn(MOST_TOKENS + 1, 20))
            assert layer(torch.randn(0, 20)).shape == (0, layer.out_features)
            layer.double()(torch.randn(1, 20, dtype=torch.float64))
            layer.half()(torch.randn(1, 20, dtype=torch.float16))
            layers(d=20, h=9, alpha=17)[0](torch.randn(1, 20))
        assert calls == [2, 6, MOST_TOKENS]


def test_gradients_are_those_of_the_matrix() -> None:
    for layer in layers(d=20, h=9, coupling=0.3):
        x = torch.randn(2, layer.in_features, requires_grad=True)
        [gradient] = torch.autograd.grad(layer(x).sum(), x)
        torch.testing.assert_close(gradient, layer.dense_weight().sum(0).expand(2, -1))


@torch.no_grad()
def test_function_transforms_see_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers(d=20, h=9)[0].requires_grad_(False)
    x, tangent = torch.randn(3, 20), torch.randn(3, 20)
    with counted(monkeypatch) as calls:
        mapped = torch.func.vmap(layer)(x)
        output, moved = torch.func.jvp(layer, (x,), (tangent,))
        with torch.autograd.forward_ad.dual_level():
            dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
            forward = torch.autograd.forward_ad.unpack_dual(dual).tangent
        traced = torch.jit.trace(layer, x, check_trace=False)
        assert calls == []
    expected = reference(layer, x).float()
    for found in (mapped, output, traced(x)):
        torch.testing.assert_close(found, expected)
    for found in (moved, forward):
        torch.testing.assert_close(found, tangent @ layer.dense_weight().t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in layers(d=20, h=9, o=20):
        x = torch.randn(3, layer.in_features)
        with counted(monkeypatch) as calls, torch.autocast("cpu", dtype=dtype):
            output = layer(x)
            assert output.dtype == functional.linear(x, layer.dense_weight()).dtype
        assert calls == [3]
        assert_near(output, layer, x)


@pytest.mark.parametrize("option", ["hard", "learned"])
@torch.no_grad()
def test_compiles_to_one_graph(option: str) -> None:
    torch._dynamo.reset()
    up, down = layers(d=20, h=9, o=20, **OPTIONS[option])
    chain = nn.Sequential(up, nn.GELU(), down)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    for tokens in (1, 3, MOST_TOKENS + 1):
        x = torch.randn(tokens, 20)
        expected = chain(x)
        torch.testing.assert_close(compiled(x), expected)


@torch.no_grad()
def test_exported_programs_hold_plain_operations() -> None:
    up, down = layers(d=20, h=9, o=20)
    chain = nn.Sequential(up, nn.GELU(), down)
    tokens = torch.export.Dim("tokens")
    exported = torch.export.export(
        chain, (torch.randn(3, 20),), dynamic_shapes=({0: tokens},), strict=False
    )
    assert "fpe_hf" not in str(exported.graph)
    x = torch.randn(7, 20)
    torch.testing.assert_close(exported.module()(x), chain(x))


@torch.no_grad()
def test_without_a_library_plain_operations_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 20)
    layer = layers(d=20, h=9)[0]
    fast = layer(x)
    monkeypatch.setattr(native, "library", lambda name: None)
    assert not usable(x, 20, layer.rows, layer.weight)
    torch.testing.assert_close(layer(x), fast)


@torch.no_grad()
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_the_operator_is_sound(tokens: int, fan_out: str) -> None:
    for layer in layers(d=20, h=9, o=20, fan_out=fan_out):
        inputs = 1 if layer.index is not None else layer.spec.alpha
        x = torch.randn(tokens, inputs, layer.rows.columns)
        about = (layer.weight.detach(), layer.keep, layer.owner, packed._flattened(layer.rows))
        torch.library.opcheck(packed._operator, (x, *about))
