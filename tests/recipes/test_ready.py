"""Every ready recipe at tiny scale, through the loading path that its users take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fpe_hf.recipes.building import auto_class, build_parent
from fpe_hf.recipes.data import load_examples
from fpe_hf.recipes.library import find_recipe, recipe_names
from fpe_hf.recipes.parsing import read_recipe
from fpe_hf.recipes.preprocessing import prepare
from fpe_hf.recipes.running import run_recipe
from fpe_hf.recipes.schema import Recipe, Widen
from fpe_hf.recipes.training import make_trainer
from tiny_data import save_dataset, sentences, write_csv, write_fashion_mnist

STEPS = 3
TINY = {
    "train.max_steps": STEPS,
    "train.eval_strategy": "no",
    "train.save_strategy": "no",
    "train.per_device_train_batch_size": 4,
    "train.per_device_eval_batch_size": 4,
    "train.gradient_accumulation_steps": 1,
    "train.dataloader_num_workers": 0,
    "train.use_cpu": True,
    "train.disable_tqdm": True,
    "compare.arms": ["dense", "fpe"],
    "compare.seeds": [0],
}
FAMILIES = {
    "bert-sst2": "bert",
    "clip-contrastive": "clip",
    "dinov2-image-classification": "dinov2",
    "llama-causal-lm": "llama",
    "minilm-text-classification": "bert",
    "text-local-files": "distilbert",
    "vit-image-classification": "vit",
    "wav2vec2-audio-classification": "wav2vec2",
    "whisper-audio-classification": "whisper",
}
"""Recipe that fine-tunes a pretrained model -> family of the tiny model in its place."""

SMALLER: dict[str, dict[str, object]] = {
    "causal-lm-text-files": {
        "data.max_length": 8,
        "model.config.vocab_size": 96,
        "model.config.n_embd": 32,
        "model.config.n_layer": 2,
    },
    "digits-vit": {"data.max_train_samples": 40, "data.max_eval_samples": 20},
    "llama-causal-lm": {"data.max_length": 8},
    "wav2vec2-audio-classification": {"data.max_length": 400},
    "whisper-audio-classification": {"data.max_length": 320},
}
"""Recipe -> what else it takes to make it tiny."""


@pytest.fixture
def tiny_recipe(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Recipe]:
    """Name -> the ready recipe on tiny models and data, in the columns and splits it names."""

    def make(name: str) -> Recipe:
        whole = read_recipe(find_recipe(name))
        values = {**TINY, **SMALLER.get(name, {}), "output.folder": str(tmp_path / "run")}
        if whole.model.name_or_path is not None:
            values["model.name_or_path"] = str(tiny_folder(FAMILIES[name]))
        if whole.data.embed is not None:
            family = {"image": "clip", "text": "bert"}[whole.data.embed.modality]
            values["data.embed.name_or_path"] = str(tiny_folder(family))
            values["data.embed.cache"] = str(tmp_path / "cache")
        if whole.data.processor.name_or_path is not None:
            values["data.processor.name_or_path"] = str(tiny_folder("gpt2"))
        if whole.widen.at is not None:
            values["widen.at"] = {"step": 1}
        values |= local_data(whole, tmp_path)
        assignments = [f"{key}={yaml.safe_dump(value)}" for key, value in values.items()]
        return read_recipe(find_recipe(name), assignments)

    return make


def local_data(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Few examples of the kind that the recipe reads."""
    data = recipe.data
    splits = [split for split in (data.splits.train, data.splits.eval) if isinstance(split, str)]
    if data.source == "digits":
        return {}
    if data.source == "fashion-mnist":
        return {"data.data_dir": str(write_fashion_mnist(folder))}
    if data.source in ("csv", "text"):
        file = folder / "texts"
        if data.source == "csv":
            write_csv(file)
        else:
            file.write_text("\n".join(sentences(40)), encoding="utf-8")
        return {"data.data_dir": None, "data.data_files": dict.fromkeys(splits, str(file))}
    saved = save_dataset(folder / "data", dict(data.columns), splits)
    return {"data.source": str(saved), "data.name": None}


ALIKE = {
    "clip-b32-cifar100",
    "clip-b32-imagenet-100",
    "clip-b32-imagenet-1k",
    "clip-l14-cifar100",
    "fashion-mnist-deep-mlp",
    "minilm-text-classification",
    "whisper-audio-classification",
}
"""Recipes that differ from others in names of data, models and columns alone."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.nightly) if n in ALIKE else n for n in recipe_names()],
)
def test_trains_both_arms_and_the_widened_model_reloads(
    name: str, tiny_recipe: Callable[[str], Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(name)

    results = run_recipe(recipe, say=lambda line: None)

    dense, fpe = results.of_arm("dense")[0], results.of_arm("fpe")[0]
    assert dense.steps == fpe.steps == STEPS
    assert 0 < fpe.nonzeros <= dense.nonzeros
    assert fpe.audit is not None
    assert fpe.audit["blocks"]

    prepared = prepare(recipe, load_examples(recipe.data))
    model = auto_class(recipe).from_pretrained(recipe.output.folder / "seed-0" / "fpe" / "model")
    again = make_trainer(recipe, prepared, model, tmp_path / "again", 0).evaluate()
    assert again["eval_loss"] == fpe.metrics["loss"]


@pytest.mark.parametrize(
    "name", ["bert-sst2", "causal-lm-text-files", "llama-causal-lm", "vit-image-classification"]
)
def test_a_learned_split_in_its_place(name: str, tiny_recipe: Callable[[str], Recipe]) -> None:
    widen = Widen.model_validate({"split": "learned", "bias": "child", "at": {"step": 1}})
    recipe = tiny_recipe(name).model_copy(update={"widen": widen})

    results = run_recipe(recipe, say=lambda line: None)

    dense, fpe = results.of_arm("dense")[0], results.of_arm("fpe")[0]
    assert fpe.nonzeros == dense.nonzeros
    assert fpe.peak_parameters > dense.peak_parameters
    auto_class(recipe).from_pretrained(recipe.output.folder / "seed-0" / "fpe" / "model")


@pytest.mark.parametrize("name", FAMILIES)
def test_starts_from_the_pretrained_weights(
    name: str, tiny_recipe: Callable[[str], Recipe]
) -> None:
    recipe = tiny_recipe(name)
    saved = load_file(Path(recipe.model.name_or_path or "") / "model.safetensors")

    parent = build_parent(recipe, prepare(recipe, load_examples(recipe.data)), seed=0)

    drawn = {
        key.split(".")[0]
        for key, value in parent.state_dict().items()
        if not any(torch.equal(value, other) for other in saved.values())
    }
    assert drawn <= {"classifier", "pre_classifier", "projector"}
