from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fpe_hf.encoders import Encoder
from fpe_hf.errors import RecipeError
from fpe_hf.recipes.data import Examples
from fpe_hf.recipes.data.embedding import embed
from fpe_hf.recipes.schema import Embed

TEXTS = ["a b c", "d e", "f", "a b", "c d e f a", "b"]


def examples(texts: list[str] = TEXTS) -> Examples:
    part = datasets.Dataset.from_dict({"text": texts, "label": [0, 1] * (len(texts) // 2)})
    return Examples(part, part.select(range(2)), ("one", "two"))


@pytest.fixture
def tower(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Embed:
    return Embed(name_or_path=str(tiny_folder("bert")), modality="text", cache=tmp_path)


def vectors(embedded: Examples) -> Any:
    return np.asarray(embedded.train.with_format("numpy")["features"][:])


def test_texts_become_the_mean_over_their_tokens(tower: Embed) -> None:
    embedded = embed(tower, examples())
    tokenizer = AutoTokenizer.from_pretrained(tower.name_or_path)
    model = AutoModel.from_pretrained(tower.name_or_path).eval()
    with torch.no_grad():
        for text, vector in zip(TEXTS, vectors(embedded), strict=True):
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            np.testing.assert_allclose(vector, hidden.mean(0).numpy(), atol=1e-5)
    assert embedded.train["label"][:] == [0, 1, 0, 1, 0, 1]
    assert len(embedded.eval) == 2


def test_images_become_their_projection(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from PIL import Image

    clip = Embed(name_or_path=str(tiny_folder("clip")), modality="image", cache=tmp_path)
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    part = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    found = vectors(embed(clip, Examples(part, part, ("red", "blue"))))
    width = AutoModel.from_pretrained(clip.name_or_path).config.projection_dim
    assert found.shape == (2, width)
    assert not np.allclose(found[0], found[1])


def test_the_same_is_embedded_once(tower: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = Encoder.__call__
    monkeypatch.setattr(
        Encoder, "__call__", lambda self, rows: (calls.append(len(rows)), encode(self, rows))[1]
    )
    first = vectors(embed(tower, examples()))
    assert calls == [len(TEXTS), 2]
    assert np.array_equal(vectors(embed(tower, examples())), first)
    embed(tower, examples(TEXTS[::-1]))
    assert calls == [len(TEXTS), 2, len(TEXTS), 2]


def test_another_tower_is_another_key(tower: Embed, tmp_path: Path) -> None:
    first = vectors(embed(tower, examples()))
    other = tmp_path / "other"
    model = AutoModel.from_pretrained(tower.name_or_path)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tower.name_or_path).save_pretrained(other)
    changed = tower.model_copy(update={"name_or_path": str(other)})
    assert not np.allclose(vectors(embed(changed, examples())), first)


def test_an_interrupted_embedding_leaves_nothing(
    tower: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, path: Any, **kwargs: Any) -> None:
        (Path(path) / "half").mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", broken)
        with pytest.raises(OSError, match="No space"):
            embed(tower, examples())
    assert len(embed(tower, examples()).train) == len(TEXTS)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"name_or_path": "./nowhere"}, "nowhere"), ({"modality": "image"}, "no such column")],
)
def test_what_cannot_be_embedded(tower: Embed, change: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        embed(tower.model_copy(update=change), examples())
