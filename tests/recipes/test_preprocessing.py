from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch

from fpe_hf.recipes import preprocessing
from fpe_hf.recipes.data import load_examples
from fpe_hf.recipes.data.in_memory import InMemory
from fpe_hf.recipes.parsing import parse_recipe
from fpe_hf.recipes.preprocessing import Prepared, prepare
from fpe_hf.recipes.running import run_recipe
from fpe_hf.recipes.schema import Recipe
from tiny_data import CLASSES, RATE, column, save_dataset, sentences, write_csv

Folder = Callable[[str], Path]


def recipe(model: str, data: str, train: str = "{max_steps: 2, use_cpu: true}") -> Recipe:
    """A recipe of these sections."""
    lines = [f"model: {{{model}}}", f"data: {{{data}}}", f"train: {train}"]
    return parse_recipe("\n".join([*lines, "output: {folder: unused}"]))


def prepared(wanted: Recipe) -> Prepared:
    """What the Trainer gets."""
    return prepare(wanted, load_examples(wanted.data))


def image_folder(folder: Path) -> Path:
    """Images in folders by split and class."""
    for split in ("train", "test"):
        for number, image in enumerate(column("image", 12)):
            place = folder / split / CLASSES[number % len(CLASSES)]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number}.png")
    return folder


def test_preprocessing_while_training_gives_the_same_as_beforehand(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(
        f"task: image-classification, name_or_path: {tiny_folder('vit')}",
        f"source: imagefolder, data_dir: {image_folder(tmp_path)}",
    )
    kept = prepared(wanted)
    monkeypatch.setattr(preprocessing, "_EAGER_BYTES", 0)
    read = prepared(wanted)

    assert isinstance(kept.train, InMemory)
    assert not isinstance(read.train, InMemory)
    for before, later in ((kept.train, read.train), (kept.eval, read.eval)):
        batches = [kept.collate(list(part)) for part in (before, later)]
        assert batches[0].keys() == batches[1].keys() == {"pixel_values", "labels"}
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


@pytest.mark.parametrize("task", ["image-classification", "feature-classification", "causal-lm"])
def test_streams_train(task: str, tiny_folder: Folder, tmp_path: Path) -> None:
    if task == "causal-lm":
        file = tmp_path / "texts.txt"
        file.write_text("\n".join(sentences(60)), encoding="utf-8")
        model = f"name_or_path: {tiny_folder('llama')}"
        source = f"source: text, data_files: {{train: {file}, test: {file}}}, max_length: 8"
    else:
        model = f"name_or_path: {tiny_folder('vit')}"
        if task == "feature-classification":
            model = "config: {model_type: mlp_classifier}"
        source = f"source: imagefolder, data_dir: {image_folder(tmp_path)}, max_eval_samples: 4"
    wanted = recipe(
        f"task: {task}, {model}",
        f"{source}, streaming: true, splits: {{train: train, eval: test}}",
        "{max_steps: 2, per_device_train_batch_size: 4, use_cpu: true, disable_tqdm: true}",
    )
    targets = ["layers"] if task == "feature-classification" else None
    update = {
        "output": wanted.output.model_copy(update={"folder": tmp_path / "run"}),
        "widen": wanted.widen.model_copy(update={"targets": targets}),
    }
    results = run_recipe(wanted.model_copy(update=update), say=lambda line: None)
    assert [run.steps for run in results.runs] == [2, 2]


def test_a_stream_of_words_as_labels_is_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "texts.csv")
    wanted = recipe(
        f"task: text-classification, name_or_path: {tiny_folder('bert')}",
        f"source: csv, data_files: {{train: {file}, test: {file}}}, streaming: true, "
        "splits: {train: train, eval: test}",
    )
    with pytest.raises(ValueError, match=r"data\.streaming: the classes are not known"):
        load_examples(wanted.data)


def test_paths_of_images_in_a_table_are_read(tiny_folder: Folder, tmp_path: Path) -> None:
    files = sorted((image_folder(tmp_path / "images") / "train").rglob("*.png"))
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [("file", "label"), *((file, file.parent.name) for file in files)]
        )
    wanted = recipe(
        f"task: image-classification, name_or_path: {tiny_folder('vit')}",
        f"source: csv, data_files: {tmp_path / 'table.csv'}, columns: {{image: file}}",
    )
    ready = prepared(wanted)
    assert ready.classes == tuple(sorted(CLASSES))
    assert ready.train[0]["pixel_values"].shape == (3, 16, 16)


def test_sounds_in_files_are_decoded_at_the_rate_of_the_model(tmp_path: Path) -> None:
    sounds = datasets.Dataset.from_dict({"audio": ["a.wav"]}).cast_column(
        "audio", datasets.Audio(sampling_rate=2 * RATE)
    )
    assert preprocessing._resampled(sounds, RATE).features["audio"].sampling_rate == RATE


def test_sounds_are_cut_and_padded_to_one_length(tiny_folder: Folder, tmp_path: Path) -> None:
    place = save_dataset(tmp_path / "data", {"audio": "audio", "label": "label"}, ["train", "test"])
    wanted = recipe(
        f"task: audio-classification, name_or_path: {tiny_folder('wav2vec2')}",
        f"source: {place}, max_length: 220, splits: {{train: train, eval: test}}",
    )
    batch = (ready := prepared(wanted)).collate(list(ready.train))
    assert batch["input_values"].shape == (9, 220)


def test_texts_of_a_language_model_are_cut_into_whole_blocks(
    tiny_folder: Folder, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("the cat sleeps\n\na dog\n", encoding="utf-8")
    folder = tiny_folder("llama")
    wanted = recipe(
        f"task: causal-lm, name_or_path: {folder}",
        f"source: text, data_files: {{train: {file}, test: {file}}}, max_length: 5, "
        "splits: {train: train, eval: test}",
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    joined = [*tokenizer("the cat sleeps")["input_ids"], end, *tokenizer("a dog")["input_ids"], end]
    blocks = [row["input_ids"].tolist() for row in prepared(wanted).train]
    assert blocks == [joined[:5], joined[5:10]]
