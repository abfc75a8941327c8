"""Embeddings of a frozen tower: computed once, then read from disk.

A cached embedding is keyed by all that it depends on: the tower's weights, the preprocessing, and
the examples. So a changed tower, crop or subset is embedded anew, and the same one never twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoders import Encoder
from ...errors import RecipeError
from ...files import whole_folder
from ..schema import Embed
from .loading import Examples

_FORMAT = 1  # raise it when the way of embedding changes


def embed(settings: Embed, examples: Examples) -> Examples:
    """Replaces images or texts by the vectors of a tower.

    Args:
        settings: Tower and cache.
        examples: With a column `image` or `text`, and `label`.

    Returns:
        The same examples with a column `features`.

    Raises:
        RecipeError: The tower cannot be loaded, or there is nothing for it to read.
    """
    if settings.modality not in (examples.train.column_names or ()):
        raise RecipeError(
            f"data.embed.modality={settings.modality!r}: the data have no such column, only "
            f"{', '.join(examples.train.column_names)}. Name it in data.columns."
        )
    with _loading(settings):
        encoder = Encoder(
            settings.name_or_path, settings.modality, revision=settings.revision or "main"
        )
    train, held = (_embedded(settings, encoder, part) for part in (examples.train, examples.eval))
    return Examples(train, held, examples.classes)


def _embedded(settings: Embed, encoder: Encoder, examples: Any) -> Any:
    """The examples with `features` for what the tower reads."""
    import datasets

    place = _cache(settings) / _key(settings, encoder, examples)
    about = place / "dataset_info.json"
    if not about.is_file():
        features = _features(settings, encoder, examples)
        columns = {"features": list(features.numpy()), "label": examples["label"][:]}
        try:
            with whole_folder(place) as folder:
                datasets.Dataset.from_dict(columns).save_to_disk(folder)
        except OSError:
            if not about.is_file():  # else another process was quicker
                raise
    return datasets.load_from_disk(place)


def _cache(settings: Embed) -> Path:
    from huggingface_hub.constants import HF_HOME

    folder = settings.cache or Path(HF_HOME) / "fpe_hf" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(settings: Embed, encoder: Encoder, examples: Any) -> str:
    processing: dict[str, Any] = getattr(encoder.processor, "to_dict", dict)()
    if settings.modality == "text":
        processing = {"length": encoder.length, "vocabulary": len(encoder.processor)}
    known = [_FORMAT, _weights(settings, encoder), settings.modality, processing]
    text = json.dumps([*known, examples._fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _weights(settings: Embed, encoder: Encoder) -> str:
    """What stands for the tower's weights: the Hub's commit, or a hash of local files."""
    place = Path(settings.name_or_path)
    if not place.is_dir():
        return f"{settings.name_or_path}@{encoder.config._commit_hash}"
    digest = hashlib.sha256()
    for file in sorted(place.iterdir()):
        if file.suffix in (".safetensors", ".json", ".txt"):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _features(settings: Embed, encoder: Encoder, examples: Any) -> Tensor:
    """`[examples, features]`, float32."""
    from tqdm.auto import tqdm

    with _loading(settings):
        encoder.load()
    starts = range(0, len(examples), settings.batch_size)
    batches = tqdm(starts, desc="Embedding", unit="batch", delay=2, leave=False)
    rows = (examples[s : s + settings.batch_size][settings.modality] for s in batches)
    return torch.cat([encoder(batch) for batch in rows])


@contextmanager
def _loading(settings: Embed) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"data.embed: {settings.name_or_path!r} cannot be loaded "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
