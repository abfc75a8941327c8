"""Nothing depends on the process-wide default dtype and device, which any program may set."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import fpe_hf
from fpe_hf import FPEConfig
from fpe_hf.conversion import plan_blocks
from tiny_models import tiny_model

PACKAGE = Path(fpe_hf.__file__).parent
BOTH = (
    "as_tensor asarray empty eye full linspace logspace normal ones rand randn scalar_tensor "
    "tensor zeros"
).split()
INTEGERS = "arange randint randperm tril_indices triu_indices".split()
"""These make integers whatever the default is."""


def faults(code: str) -> Iterator[tuple[int, str]]:
    """Calls of torch's that make a tensor without saying its dtype and device: line and call."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        module, name = ast.unparse(node.func.value), node.func.attr
        needed = {"dtype", "device"} if name in BOTH else {"device"} if name in INTEGERS else set()
        given = {keyword.arg for keyword in node.keywords}
        if module == "torch" and None not in given and needed - given:
            yield node.lineno, ast.unparse(node)


def faults_in(room: str) -> list[str]:
    """Those of a folder or file of the package, each with its place."""
    place = PACKAGE / room
    return [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {call}"
        for path in (place.rglob("*.py") if place.is_dir() else [place])
        for line, call in faults(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if p.name[0] != "_"))
def test_tensors_are_made_with_dtype_and_device(room: str) -> None:
    found = faults_in(room)
    assert not found, "\n".join(found)


LAYOUTS = ("element", "block")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.zeros(3)", True),
        ("torch.zeros(3, dtype=d)", True),
        ("torch.zeros(3, dtype=d, device=e)", False),
        ("torch.full((), 1.0, device=e)", True),
        ("torch.arange(3)", True),
        ("torch.arange(3, device=e)", False),
        ("torch.tensor(x, **like)", False),
        ("torch.zeros_like(x)", False),
        ("x.new_zeros(3)", False),
    ],
)
def test_what_the_rule_finds(code: str, found: bool) -> None:
    assert bool(list(faults(code))) == found


DEFAULTS = {"bfloat16": torch.bfloat16, "float64": torch.float64, "meta": torch.device("meta")}
FAMILIES = ("llama", "bert")
IDS = torch.arange(3, 13)[None]


@contextmanager
def default(name: str) -> Iterator[None]:
    """Sets the default dtype or device of the process."""
    before = torch.get_default_dtype()
    value = DEFAULTS[name]
    try:
        if isinstance(value, torch.dtype):
            torch.set_default_dtype(value)
        else:
            torch.set_default_device(value)
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


def outputs(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("fan_out", ["replicate", "partition"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["random", "feature"])
def test_plans(name: str, fan_out: str, layout: str, split: str) -> None:
    model = tiny_model("llama")
    config = FPEConfig(fan_out=fan_out, layout=layout, split=split)
    config = config.with_overrides(tile_size=16 if layout == "block" else None, bias="child")
    expected = plan_blocks(model, config)
    with default(name):
        found = plan_blocks(model, config)
    for (_, one), (_, other) in zip(expected, found, strict=True):
        assert one.spec == other.spec
        fields = ("up_children", "up_keep", "down_children", "down_keep", "inputs", "outputs")
        for field in fields:
            same(getattr(one, field), getattr(other, field))


def same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert one.device == other.device
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, others in zip(one, other, strict=True):
            same(mine, others)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_widening_running_saving_and_loading(
    family: str, layout: str, name: str, tmp_path: Path
) -> None:
    model = tiny_model(family).eval()
    expected = outputs(fpe_hf.widen(copy.deepcopy(model), layout=layout, learn_coupling=True))
    with default(name):
        fpe_hf.widen(model, layout=layout, learn_coupling=True)
        model.save_pretrained(tmp_path)
        report = fpe_hf.audit(model, strict=True)
    assert report.ok
    assert torch.equal(outputs(model), expected)
    if name == "meta":
        return  # transformers itself cannot load then
    with default(name):
        loaded = fpe_hf.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    assert torch.equal(outputs(loaded), expected)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_layers(layout: str, tokens: int, name: str) -> None:
    """Forward and backward of the MLPs: what lies around them is not ours."""
    model = fpe_hf.widen(tiny_model("llama"), layout=layout)
    mlp = model.get_submodule("model.layers.0.mlp")
    x = torch.randn(tokens, model.config.hidden_size)
    expected = gradients(mlp, x)
    with default(name):
        found = gradients(mlp, x)
    assert all(map(torch.equal, found, expected))


def gradients(mlp: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = mlp(x)
    with torch.no_grad():
        quick = mlp(x)
    return [quick, y, *torch.autograd.grad(y.square().sum(), [x, *mlp.parameters()])]


@pytest.mark.parametrize("name", ["bfloat16", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_generating(layout: str, name: str) -> None:
    model = fpe_hf.widen(tiny_model("llama"), layout=layout).eval()
    expected = model.generate(IDS, max_new_tokens=5, do_sample=False)
    with default(name):
        assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), expected)
