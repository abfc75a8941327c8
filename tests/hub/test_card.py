"""The model card: every fact in it is one, and a stranger finds what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import fpe_hf
from fpe_hf.hub.card import model_card
from fpe_hf.hub.facts import License, ModelFacts, collect_facts
from fpe_hf.hub.results import Evaluation
from tiny_models import tiny_model

NAME = "user/wide-vit"
RESULTS = {
    "dataset": "digits",
    "metric": "accuracy",
    "arms": {
        "dense": {"mean": 95.68, "std": 0.84, "values": [95.0, 96.36], "nonzeros": 6336},
        "fpe": {"mean": 95.8, "values": [95.8]},
    },
}


@pytest.fixture(scope="module")
def model() -> Any:
    return fpe_hf.widen(tiny_model("vit"), alpha=2, seed=3)


def facts(model: Any, folder: Path, **known: Any) -> ModelFacts:
    return collect_facts(model, folder, **known)


def test_all_that_is_known(model: Any, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "report.png").touch()
    (tmp_path / "report.md").touch()
    base = License("mit", of_base=True)
    card = model_card(NAME, facts(model, tmp_path, base_model="org/vit", license=base))
    data = card.data.to_dict()
    results = data.pop("model-index")
    assert data == {
        "base_model": "org/vit",
        "library_name": "fpe_hf",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["fpe", "fixed-parameter-expansion", "arxiv:2510.04500", "transformers"],
    }
    metrics = [
        {"type": "accuracy", "value": 95.68, "name": "accuracy (dense)"},
        {"type": "accuracy", "value": 95.8, "name": "accuracy (fpe)"},
    ]
    dataset = {"name": "digits", "type": "digits"}
    task = {"type": "image-classification"}
    entry = {"task": task, "dataset": dataset, "metrics": metrics}
    assert results == [{"name": "wide-vit", "results": [entry]}]

    total = fpe_hf.audit(model).total
    for text in (
        "This is [org/vit](https://huggingface.co/org/vit) with 2 MLP blocks widened",
        f"{total.children} neurons instead of {total.parents}, and {total.nonzeros:,} non-zero",
        "The licence, `mit`, is that of [org/vit]",
        "| `dense` | digits | accuracy | 95.68 ± 0.84 | 2 | 6,336 |",
        "| `fpe` | digits | accuracy | 95.8 | 1 |  |",
        f'import fpe_hf\n\nmodel = fpe_hf.from_pretrained("{NAME}")  # a ViTForImageClass',
        "More is in the [report](report.md).",
        "![report.png](<report.png>)",
        "by the recipe [recipe.yaml](recipe.yaml)",
        "| `alpha` | `2` |",
        "| `split` | `random` |",
        "| `seed` | `3` |",
        "arXiv:2510.04500",
    ):
        assert text in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_what_is_not_known_is_left_out(model: Any, tmp_path: Path) -> None:
    card = model_card(NAME, facts(model, tmp_path))
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "This is a `ViTForImageClassification` with 2 MLP blocks widened" in card.text
    assert "No measured results were recorded with this model." in card.text
    for word in ("licence", "recipe", "## Results", "None", "!["):
        assert word not in card.text


def test_a_class_without_a_task_and_one_block(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("albert"))
    card = model_card(NAME, facts(model, tmp_path))
    assert card.data.pipeline_tag is None
    assert "with 1 MLP block widened" in card.text


def test_the_stock_variant_needs_no_fpe_hf(model: Any, tmp_path: Path) -> None:
    card = model_card(NAME, facts(model, tmp_path, dense=True), revision="dense")
    load = f'AutoModelForImageClassification.from_pretrained("{NAME}", revision="dense")'
    assert load in card.text
    assert "import fpe_hf" not in card.text
    assert "This is the stock variant" in card.text
    assert card.data.library_name == "transformers"


def test_names_are_text_and_not_markup(model: Any, tmp_path: Path) -> None:
    nasty = "a`b|c\n# d <script>[x](y)"
    evaluation = Evaluation(arm=nasty, metric=nasty, value=1.0, dataset=nasty)
    known = facts(model, tmp_path)
    changed = {**vars(known), "evaluations": (evaluation,), "config": {"split": nasty}}
    text = model_card(NAME, ModelFacts(**changed)).text
    assert "\n# d" not in text
    assert "<script>[x]" not in text.replace("`a'b\\|c # d <script>[x](y)`", "")
    rows = [line for line in text.splitlines() if "script" in line]
    assert all(line.count("|") - line.count("\\|") == 5 for line in rows[:1]), rows


def test_a_breach_of_the_budget_gets_no_card(tmp_path: Path) -> None:
    model = fpe_hf.widen(tiny_model("bert"), layout="element")
    name, layer = next((n, m) for n, m in model.named_modules() if hasattr(m, "keep"))
    assert name
    import torch

    layer.weight = torch.nn.Parameter(torch.ones(layer.weight.numel() + 1))
    with pytest.raises(fpe_hf.FPEError):
        facts(model, tmp_path)
