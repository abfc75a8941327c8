"""Projections of a few tokens in C equal dense ones, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fpe_hf.kernels import few, native
from fpe_hf.layers.block import _kept
from planning.cases import Case, cases, make_case

pytestmark = pytest.mark.skipif(native.library("few") is None, reason="no C compiler for few.c")


@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(cases(layout="block"), st.sampled_from(list(few.MOST_TOKENS)), st.data())
def test_any_shape(case: Case, dtype: torch.dtype, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, few.MOST_TOKENS[dtype]))
    tolerance = {torch.bfloat16: 2.0**-8, torch.float32: 2e-6}[dtype]
    for layer in case.layers():
        layer.to(dtype)
        x = torch.randn(tokens, layer.in_features, generator=torch.Generator().manual_seed(tokens))
        x = x.to(dtype)
        found = layer(x)
        assert found.dtype == dtype
        assert any(issubclass(kind, (few.FewUp, few.FewDown)) for kind in _kept[layer])
        bias = layer.dense_bias()
        expected = functional.linear(
            x.double(), layer.double().dense_weight(), None if bias is None else bias.double()
        )
        scale = expected.abs().max().clamp(min=1.0)
        assert float(((found.double() - expected) / scale).abs().max()) < tolerance


@torch.no_grad()
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
def test_wide(fan_out: str) -> None:
    """Rows of several vectors and a rest, tokens in several groups."""
    case = make_case(d=107, h=50, o=61, layout="block", alpha=3, tile_size=20, fan_out=fan_out)
    for layer in case.layers():
        x = torch.randn(7, layer.in_features)
        expected = functional.linear(x, layer.dense_weight(), layer.dense_bias())
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_any_form_of_input() -> None:
    for layer in make_case(d=12, h=6, o=12, layout="block", alpha=3).layers():
        x = torch.randn(layer.in_features, 4).t()
        assert not x.is_contiguous()
        expected = layer(x.contiguous())
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x.view(2, 2, -1)), expected.view(2, 2, -1))
        torch.testing.assert_close(layer(x[0]), expected[0])
        assert layer(x[:0]).shape == (0, layer.out_features)


@torch.no_grad()
def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    for layer in make_case(d=40, h=33, o=29, layout="block", alpha=2, tile_size=9).layers():
        x = torch.randn(3, layer.in_features)
        found = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(layer(x))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(*found)


@torch.no_grad()
def test_it_follows_its_numbers() -> None:
    for layer in make_case(d=12, h=6, o=12, layout="block", alpha=3).layers():
        x = torch.randn(1, layer.in_features)
        before = layer(x)
        layer.weight.mul_(2)
        assert layer.bias is not None
        layer.bias.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)
        layer.load_state_dict({k: torch.zeros_like(v) for k, v in layer.state_dict().items()})
        assert not layer(x).any()


def test_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(2, 6), torch.randn(5)
    assert few.usable(x, 6, weight, None)
    assert few.usable(x.bfloat16(), 6, weight.bfloat16())
    assert not few.usable(x.double(), 6, weight.double())
    assert not few.usable(x.half(), 6, weight.half())
    assert not few.usable(x, 6, weight.bfloat16())
    assert not few.usable(x[:0], 6, weight)
    assert not few.usable(torch.randn(few.MOST_TOKENS[torch.float32] + 1, 6), 6, weight)
    assert not few.usable(x, 6, weight.clone().requires_grad_())
    assert not few.usable(x.clone().requires_grad_(), 6, weight)
    assert not few.usable(x.to("meta"), 6, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not few.usable(x, 6, weight)
    with torch.no_grad():
        assert few.usable(x, 6, weight.clone().requires_grad_())
    monkeypatch.setattr(native, "library", lambda name: None)
    assert not few.usable(x, 6, weight)
