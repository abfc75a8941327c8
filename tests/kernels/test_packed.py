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

from fpe_hf.kernels import native, packed
from fpe_hf.kernels.packed import MOST_TOKENS, Mode, packed_rows, usable
from fpe_hf.layers import FPELayer
from fpe_hf.packing import code_bits, pack
from planning.cases import Case, make_case

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


def layers(**options: Any) -> list[FPELayer]:
    """Layers with numbers as after training: copies differ, couplings are not 1."""
    found = make_case(**options).layers()
    for layer in found:
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
    compute = packed._compute

    def counting(x: Tensor, *rest: Any) -> Tensor:
        calls.append(len(x))
        return compute(x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(packed, "_compute", counting)
        yield calls


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    alpha = draw(st.sampled_from([2, 3, 4, 5, 8, 9, 16, 17]))
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
    mode: Mode
    rows: int
    columns: int
    children: int
    tokens: int
    density: float | None
    owner_rows: int | None
    half: bool
    seed: int


def ways(job: Job) -> list[packed._Way]:
    """All ways that the compiled kernel has for a job, whatever the number of tokens."""
    library = native.library("packed")
    assert library is not None
    several = job.mode == Mode.COPIES and job.children > 2 and packed._lanes(library) == 8
    return [packed._Way.CHILDREN if several else packed._Way.COLUMNS, packed._Way.TOKENS]


def jobs() -> st.SearchStrategy[Job]:
    return st.builds(
        Job,
        mode=st.sampled_from(list(Mode)),
        rows=st.integers(1, 9),
        columns=st.one_of(st.integers(1, 200), st.integers(1020, 1030), st.just(2100)),
        children=st.sampled_from([1, 2, 3, 4, 6, 8, 11, 16, 30, 256]),
        tokens=st.one_of(st.integers(1, 34), st.just(70)),
        density=st.sampled_from([None, 0.0, 0.1, 0.6, 1.0]),
        owner_rows=st.sampled_from([1, None]),
        half=st.booleans(),
        seed=st.integers(0, 99),
    )


@settings(max_examples=60)
@given(shapes(), st.integers(1, 40), st.integers(0, 99))
@torch.no_grad()
def test_it_equals_the_dense_matrix(shape: dict[str, Any], tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    for layer in layers(**shape):
        x = torch.randn(tokens, layer.in_features).to(layer.weight.dtype)
        assert usable(x, layer.in_features, layer.weight)
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


@settings(max_examples=80)
@given(jobs())
def test_rows_of_any_shape(job: Job) -> None:
    assert_rows(job)


@settings(max_examples=60)
@given(jobs())
def test_every_way_for_any_number_of_tokens(job: Job) -> None:
    assert_every_way(job)


@settings(max_examples=60)
@given(jobs())
def test_only_its_own_values_matter_to_a_row(job: Job) -> None:
    """Neither those of other rows, which may share a vector with them, nor the memory around."""
    for way in ways(job):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "_way", lambda *about, way=way: way)
            x, weight, *rest = arguments(job)
            keep = kept(job)
            counts = keep.sum(1) * (job.children if job.mode == Mode.COPIES else 1)
            odd = torch.arange(job.rows).repeat_interleave(counts) % 2 == 1
            around = weight.new_full((len(weight) + 32,), torch.nan)
            around[16:-16] = torch.where(odd, torch.nan, weight)
            found = packed_rows(x, around[16:-16], *rest)[..., ::2]
            assert torch.equal(found, packed_rows(x, weight, *rest)[..., ::2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "feature"),
    [
        ("", ""),
        ("-mavx", "avx"),
        ("-mavx2", "avx2"),
        ("-mavx2 -mfma -mbmi2", "avx2"),
        ("-march=skylake-avx512", "avx512vl"),
    ],
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
        assert_every_way(job)

    run()


def kept(job: Job) -> Tensor:
    torch.manual_seed(job.seed)
    if job.density is None:
        return torch.ones(job.rows, job.columns, dtype=torch.bool)
    return torch.rand(job.rows, job.columns) < job.density


def codes(job: Job) -> Tensor:
    torch.manual_seed(job.seed)
    return torch.randint(0, job.children, (job.owner_rows or job.rows, job.columns))


def arguments(job: Job) -> tuple[Any, ...]:
    """Those of `packed_rows`."""
    copies = job.children if job.mode == Mode.COPIES else 1
    keep = kept(job)
    weight = torch.randn(int(keep.sum()) * copies)
    return (
        torch.randn(job.tokens, (1 if job.mode == Mode.PARTS else job.children) * job.columns),
        weight.to(torch.bfloat16 if job.half else torch.float32),
        None if job.density is None else pack(keep, 1),
        None if copies > 1 or job.children == 1 else pack(codes(job), code_bits(job.children)),
        job.mode,
        job.rows,
        job.columns,
        job.children,
        job.owner_rows or job.rows,
    )


def assert_every_way(job: Job) -> None:
    for way in ways(job):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "_way", lambda *about, way=way: way)
            assert_rows(job)


def assert_rows(job: Job) -> None:
    mode, rows, columns, children, tokens, *_ = job
    copies = children if mode == Mode.COPIES else 1
    there = kept(job)[:, None].expand(rows, copies, columns)
    x, weight, *rest = arguments(job)
    dense = torch.zeros(there.shape, dtype=torch.float64).masked_scatter(there, weight.double())
    own = codes(job).expand(rows, columns)[:, None] == torch.arange(children)[:, None]
    matrix = dense if mode == Mode.COPIES else torch.where(own, dense, 0.0)
    found = packed_rows(x, weight, *rest)
    inputs = 1 if mode == Mode.PARTS else children
    by_child = x.double().view(tokens, inputs, columns).expand(tokens, children, columns)
    assert found.dtype == torch.float32
    error = (found.double() - multiplied(by_child, matrix, mode)).abs()
    assert bool((error <= 4e-6 * multiplied(by_child.abs(), matrix.abs(), mode)).all())


def multiplied(x: Tensor, matrix: Tensor, mode: Mode) -> Tensor:
    """`[tokens, children, columns]` times `[rows, children, columns]`."""
    parts = torch.einsum("tci,rci->tcr", x, matrix)
    return parts if mode == Mode.PARTS else parts.sum(1, keepdim=True)


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
    assert not usable(x, 20, layer.weight)
    torch.testing.assert_close(layer(x), fast)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_the_operator_is_sound(tokens: int) -> None:
    case: Case = make_case(d=20, h=9, o=20)
    for layer in case.layers():
        up = layer.index is not None
        arguments = (
            torch.randn(tokens, layer.in_features),
            layer.weight.detach(),
            layer.keep,
            layer.owner,
            int(Mode.PARTS if up else Mode.COPIES),
            9 if up else 20,
            20 if up else 9,
            case.spec.alpha,
            9 if up else 1,
        )
        torch.library.opcheck(packed._operator, arguments)
