"""Recipes and data that cannot be run: each ends in a message that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from fpe_hf.errors import FPEError
from fpe_hf.recipes import preprocessing
from fpe_hf.recipes.library import find_recipe
from fpe_hf.recipes.parsing import parse_recipe, read_recipe
from fpe_hf.recipes.running import run_recipe
from fpe_hf.recipes.schema import Recipe
from tiny_data import (
    PIXELS,
    RATE,
    column,
    save_dataset,
    sentences,
    write_csv,
    write_fashion_mnist,
)
from tiny_models import tiny_model

MLP = """
model:
  task: feature-classification
  config: {model_type: mlp_classifier, hidden_sizes: [8]}
data: {source: digits, max_train_samples: 96, max_eval_samples: 32}
widen: {targets: [layers]}
train: {max_steps: 2, use_cpu: true, disable_tqdm: true, save_strategy: "no"}
output: {folder: FOLDER}
"""
Folder = Callable[[str], Path]


def refusal(recipe: Callable[[], Recipe]) -> str:
    """What the user reads."""
    with pytest.raises(FPEError) as caught:
        run_recipe(recipe(), say=lambda line: None)
    return str(caught.value)


def refused(folder: Path, *assignments: str, base: str = MLP) -> str:
    """What the user reads when they run a small recipe with these changes."""
    text = base.replace("FOLDER", str(folder / "run"))
    return refusal(lambda: parse_recipe(text, assignments))


# -- refused before anything is loaded ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a recipe is a mapping"),
        ("- model\n- data", "a recipe is a mapping"),
        ("model: {task: [", "not YAML"),
        ("model: 1\n\tdata: 2", "not YAML"),
        ("model: {task: causal-lm}\ndata: {}\nmodel: {}", "line 3: model is there twice (line 1)"),
        (MLP.replace("model:\n", "modell:\n"), "Did you mean 'model'?"),
        (MLP.replace("  task: feature-classification\n", ""), "model.task is missing"),
        (MLP.replace("targets", "target"), "widen.target is no key of a recipe."),
        (MLP.replace("max_steps", "max_step"), "line 7: train.max_step is no key"),
        (MLP.replace("digits", "digits, streaming: true"), "streaming"),
    ],
)
def test_text_that_is_no_recipe(text: str, said: str) -> None:
    with pytest.raises(FPEError) as caught:
        parse_recipe(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("model.task=image-clasification", "Did you mean 'image-classification'?"),
        ("model.name_or_path=here", "one of name_or_path (pretrained) and config"),
        ("model.config={hidden_sizes: [8]}", "config needs a model_type"),
        ("data.splits.eval=1.5", "data.splits.eval"),
        ("data.max_train_samples=none", "data.max_train_samples"),
        (
            "data.embed={name_or_path: clip, modality: image, batch_size: 0}",
            "data.embed.batch_size",
        ),
        ("widen.alpha=1", "alpha=1 is out of range"),
        ("widen.alpha=four", "alpha='four' must be an integer"),
        ("widen.split=randm", "Did you mean 'random'?"),
        ("widen.at={step: 1, epoch: 1}", "give one of step and epoch"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("train.output_dir=here", "output.folder"),
        ("compare.arms=[fpe]", "'dense'"),
        ("compare.seeds=[0, 0]", "each once"),
        ("output.push={repo_id: no name}", "output.push.repo_id"),
        ("sweep={widen.alpah: [2, 4]}", "Did you mean 'alpha'?"),
        ("evaluate.metrics=[]", "name at least one metric"),
        ("alpha", "write key.sub=value"),
        ("data.source.name=digits", "'source' holds 'digits'"),
    ],
)
def test_values_that_are_not_accepted(assignment: str, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, assignment)
    assert not (tmp_path / "run").exists()


def test_features_for_a_model_of_images(tmp_path: Path) -> None:
    embed = "data.embed={name_or_path: clip, modality: image}"
    said = refused(tmp_path, "model.task=image-classification", embed)
    assert "model.task must be 'feature-classification', not 'image-classification'" in said


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(FPEError, match="Did you mean 'digits-vit'"):
        find_recipe("digit-vit")


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\x80\x04\x95")
    with pytest.raises(FPEError, match=r"recipe\.yaml: cannot be read"):
        read_recipe(file)


# -- refused before training -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["data.source=digit"], "Did you mean 'digits'?"),
        (["data.source=./photos"], "there is no folder './photos'"),
        (["data.source=csv"], "needs data.data_dir or data.data_files"),
        (["data.source=csv", "data.data_files=none.csv"], "there is no file 'none.csv'"),
        (["data.source=imagefolder", "data.data_dir=none"], "there is no folder 'none'"),
        (["data.source=fashion-mnist", "data.data_dir=none"], "train-images-idx3-ubyte.gz"),
        (["data.splits.train=trian"], "digits has no split 'trian'"),
        (["data.splits={train: train, eval: test}"], "digits has no split 'test'"),
        (["data.columns={label: lable}"], "Did you mean 'label'?"),
        (["data.classes=11"], "the data have 10 classes"),
        (["model.config.model_type=mlp_clasifier"], "Did you mean 'mlp_classifier'?"),
        (["model.config.num_labels=3"], "a head for 3 classes, but the data have 10"),
        (["model.config.hidden_sizes=eight"], "model.config"),
        (["model.config={model_type: vit}"], "'vit' takes no features"),
        (["model.freeze=[head]"], "'head' names no parameter"),
        (["evaluate.metrics=[acuracy]"], "Did you mean 'accuracy'?"),
        (["widen.alpha=65"], "alpha"),
        (["widen.targets=[heads]"], "heads"),
        (["widen.targets=null"], "targets"),
        (["widen.at={step: 2}"], "step 2 is not within the training of 2 steps"),
        (["train.lr_scheduler_type=cosin"], "cosin"),
        (["train.optim=adamx"], "adamx"),
        (["train.fp16=true", "train.bf16=true"], "fp16"),
    ],
)
def test_recipes_that_do_not_fit(assignments: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, *assignments)


def test_a_folder_that_is_taken(tmp_path: Path) -> None:
    taken = tmp_path / "run" / "thesis.txt"
    taken.parent.mkdir()
    taken.write_text("all of it")
    said = refused(tmp_path)
    assert f"{taken.parent} exists and is not empty" in said
    assert taken.read_text() == "all of it"


TEXT = """
model: {task: text-classification, name_or_path: MODEL}
data: {source: csv, data_files: FILE, splits: {eval: 0.3}}
train: {max_steps: 2, use_cpu: true, disable_tqdm: true, save_strategy: "no"}
output: {folder: FOLDER}
"""


@pytest.fixture
def refused_texts(tiny_folder: Folder, tmp_path: Path) -> Callable[..., str]:
    """What the user reads who classifies the texts of a csv file."""

    def refused_file(content: str | None, *assignments: str, family: str = "bert") -> str:
        file = write_csv(tmp_path / "texts.csv")
        if content is not None:
            file.write_text(content, encoding="utf-8")
        base = TEXT.replace("MODEL", str(tiny_folder(family))).replace("FILE", str(file))
        return refused(tmp_path, *assignments, base=base)

    return refused_file


ROWS = "\n".join(f"{text},{number % 3}" for number, text in enumerate(sentences(9)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be loaded"),
        ("text,label\n", "no data"),
        ("text,label\na cat,1\n", "1 example(s) are too few"),
        (f"body,label\n{ROWS}", "no column for 'text' among body, label"),
        (f"text,topic\n{ROWS}", "no column for 'label' among text, topic"),
        (ROWS, "no column for 'text'"),
        (f"text,label\n{ROWS.replace(',2', ',-1')}", "-1 is out of range"),
        (f"text,label\n{ROWS.replace(',2', ',2000')}", "these are no classes"),
        (f"text,label\n{ROWS.replace(',2', ',2.5')}", "0.0 is no label"),
        (f"text,label\n{ROWS.replace(',2', ',')}", "some labels are missing"),
        (
            f"text,label\n{ROWS}\n,1\n,1\n,1\n,1\n,1\n",
            "some examples have no text",
        ),
    ],
)
def test_texts_that_cannot_be_used(
    content: str, said: str, refused_texts: Callable[..., str]
) -> None:
    assert said in refused_texts(content)


def test_a_model_that_is_not_there(refused_texts: Callable[..., str], tmp_path: Path) -> None:
    place = tmp_path / "no-model"
    said = refused_texts(None, f"model.name_or_path={place}")
    assert str(place) in said


def test_a_model_without_a_tokenizer(refused_texts: Callable[..., str], tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "bare")
    said = refused_texts(None, f"model.name_or_path={tmp_path / 'bare'}")
    assert "data.processor.name_or_path" in said


def test_a_model_of_another_kind(refused_texts: Callable[..., str]) -> None:
    said = refused_texts(None, family="wav2vec2")
    assert "AutoTokenizer" in said


def test_a_head_for_other_classes(
    refused_texts: Callable[..., str], tiny_folder: Folder, tmp_path: Path
) -> None:
    tiny_model("bert_classifier").save_pretrained(tmp_path / "five")
    said = refused_texts(
        None,
        f"model.name_or_path={tmp_path / 'five'}",
        f"data.processor.name_or_path={tiny_folder('bert')}",
    )
    assert "a head for 5 classes, but the data have 3" in said


def test_a_damaged_model(
    refused_texts: Callable[..., str], tiny_folder: Folder, tmp_path: Path
) -> None:
    weights = tmp_path / "cut" / "model.safetensors"
    tiny_model("bert").save_pretrained(weights.parent)
    weights.write_bytes(weights.read_bytes()[:1000])
    said = refused_texts(
        None,
        f"model.name_or_path={weights.parent}",
        f"data.processor.name_or_path={tiny_folder('bert')}",
    )
    assert f"'{weights.parent}' cannot be loaded" in said


def test_a_json_file_that_is_cut(refused_texts: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    rows = "\n".join(json.dumps({"text": text, "label": 0}) for text in sentences(9))
    file.write_text(rows[:-4], encoding="utf-8")
    said = refused_texts(None, "data.source=json", f"data.data_files={file}")
    assert "cannot be loaded" in said


def test_texts_for_a_language_model_that_are_too_short(tiny_folder: Folder, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("the cat\n\n\na dog", encoding="utf-8")
    base = TEXT.replace("text-classification", "causal-lm").replace("csv", "text")
    base = base.replace("MODEL", str(tiny_folder("llama"))).replace("FILE", str(file))
    assert "shorter than one block of 128 tokens" in refused(tmp_path, base=base)


def test_one_saved_data_set_is_not_also_a_test_set(tmp_path: Path) -> None:
    features = datasets.Dataset.from_dict({"features": [[0.0, 1.0]] * 9, "label": [0, 1, 2] * 3})
    features.save_to_disk(tmp_path / "data")
    source = f"data.source={tmp_path / 'data'}"
    said = refused(tmp_path, source, "data.splits={train: train, eval: test}")
    assert "no split 'test'" in said


def test_an_unknown_split_of_a_saved_data_set(tmp_path: Path) -> None:
    place = save_dataset(tmp_path / "data", {"image": "image", "label": "label"}, ["train", "test"])
    said = refused(tmp_path, f"data.source={place}", "data.splits={train: train, eval: validation}")
    assert "no split 'validation'" in said
    assert "train, test" in said


# -- images, sounds, files of other kinds ------------------------------------------------------


def image_folder(folder: Path) -> Path:
    """Images in a folder per class."""
    images, labels = column("image", 9), column("label", 9)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    return folder / "images"


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["while training", "beforehand"])
def test_a_corrupt_image(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "_EAGER_BYTES", kept)
    place = image_folder(tmp_path)
    image = place / "0" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    said = refused(tmp_path, "data.source=imagefolder", f"data.data_dir={place}")
    assert f"{image} cannot be read" in said


def test_images_of_different_sizes(tmp_path: Path) -> None:
    place = image_folder(tmp_path)
    odd = column("image", 1)[0].resize((PIXELS, PIXELS + 1))
    odd.save(place / "0" / "3.png")
    said = refused(tmp_path, "data.source=imagefolder", f"data.data_dir={place}")
    assert "one size" in said


def test_a_damaged_idx_file(tmp_path: Path) -> None:
    place = write_fashion_mnist(tmp_path)
    file = place / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-10])
    said = refused(tmp_path, "data.source=fashion-mnist", f"data.data_dir={place}")
    assert str(file) in said


def test_sounds_at_another_rate(tiny_folder: Folder, tmp_path: Path) -> None:
    sounds = [{"array": samples, "sampling_rate": 2 * RATE} for samples in column("audio", 9)]
    columns = {"audio": sounds, "label": column("label", 9)}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "data")
    base = TEXT.replace("text-classification", "audio-classification")
    base = base.replace("csv, data_files: FILE", str(tmp_path / "data"))
    base = base.replace("MODEL", str(tiny_folder("wav2vec2")))
    said = refused(tmp_path, base=base)
    assert f"{2 * RATE} samples per second, but the model takes {RATE}" in said


def test_a_tower_for_what_is_not_there(tiny_folder: Folder, tmp_path: Path) -> None:
    tower = f"name_or_path: {tiny_folder('bert')}, cache: {tmp_path}"
    said = refused(tmp_path, f"data.embed={{{tower}, modality: text}}")
    assert "data.embed.modality='text'" in said


# -- refused while training --------------------------------------------------------------------


def test_a_learning_rate_that_diverges(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        "train.learning_rate=1e30",
        "train.optim=sgd",
        "train.max_grad_norm=0",
        "train.max_steps=8",
        "train.logging_strategy=steps",
        "train.logging_steps=1",
    )
    assert "diverged" in said
    assert "train.learning_rate (it is 1e+30)" in said
