"""Embeddings of a frozen tower: computed once, then read from disk.

A cached embedding is keyed by all that it depends on: the tower's weights, the preprocessing, and
the examples. So a changed tower, crop or subset is embedded anew, and the same one never twice.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    tower = _Tower(settings)
    train, held = (tower.embed(part) for part in (examples.train, examples.eval))
    return Examples(train, held, examples.classes)


class _Tower:
    """A frozen encoder and its preprocessing, loaded when a part is not cached yet."""

    def __init__(self, settings: Embed) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

        self.settings = settings
        place = settings.name_or_path
        kind = AutoTokenizer if settings.modality == "text" else AutoImageProcessor
        try:
            self.config = AutoConfig.from_pretrained(place, **self._where)
            self.processor = kind.from_pretrained(place, **self._where)
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"data.embed: {place!r} cannot be loaded ({' '.join(str(error).split())[:200]})."
            ) from error
        self._model: Any = None

    @property
    def _where(self) -> dict[str, Any]:
        return {"revision": self.settings.revision or "main", "trust_remote_code": False}

    def embed(self, examples: Any) -> Any:
        """The examples with `features` for what the tower reads."""
        import datasets

        place = self._cache() / self._key(examples)
        about = place / "dataset_info.json"
        if not about.is_file():
            features = self._features(examples)
            columns = {"features": list(features.numpy()), "label": examples["label"][:]}
            try:
                with whole_folder(place) as folder:
                    datasets.Dataset.from_dict(columns).save_to_disk(folder)
            except OSError:
                if not about.is_file():  # else another process was quicker
                    raise
        return datasets.load_from_disk(place)

    def _cache(self) -> Path:
        from huggingface_hub.constants import HF_HOME

        folder = self.settings.cache or Path(HF_HOME) / "fpe_hf" / "embeddings"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _key(self, examples: Any) -> str:
        processing: dict[str, Any] = getattr(self.processor, "to_dict", dict)()
        if self.settings.modality == "text":
            processing = {"length": self._length(), "vocabulary": len(self.processor)}
        known = [_FORMAT, self._weights(), self.settings.modality, processing]
        text = json.dumps([*known, examples._fingerprint], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _weights(self) -> str:
        """What stands for the tower's weights: the Hub's commit, or a hash of local files."""
        place = Path(self.settings.name_or_path)
        if not place.is_dir():
            return f"{self.settings.name_or_path}@{self.config._commit_hash}"
        digest = hashlib.sha256()
        for file in sorted(place.iterdir()):
            if file.suffix in (".safetensors", ".json", ".txt"):
                digest.update(file.name.encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _length(self) -> int:
        limit = getattr(self.config, "max_position_embeddings", None)
        limits = [limit, self.processor.model_max_length, 512]
        return int(min(limit for limit in limits if limit))

    def _features(self, examples: Any) -> Tensor:
        """`[examples, features]`, float32."""
        from tqdm.auto import tqdm

        if self._model is None:
            self._model = self._load()
        parts = []
        starts = range(0, len(examples), self.settings.batch_size)
        for start in tqdm(starts, desc="Embedding", unit="batch", delay=2, leave=False):
            rows = examples[start : start + self.settings.batch_size][self.settings.modality]
            parts.append(self._vectors(rows).float().cpu())
        return torch.cat(parts)

    def _load(self) -> Any:
        from accelerate import PartialState
        from transformers import AutoModel

        place = self.settings.name_or_path
        try:
            model = AutoModel.from_pretrained(place, **self._where)
        except (OSError, ValueError) as error:
            raise RecipeError(f"data.embed: the tower {place!r} cannot be loaded.") from error
        return model.to(PartialState().device).eval()

    @torch.no_grad()
    def _vectors(self, rows: list[Any]) -> Tensor:
        """One vector per example: the tower's projection if it has one (CLIP), else its pooled
        output (images), or the mean over tokens (texts)."""
        model = self._model
        if self.settings.modality == "image":
            images = [image.convert("RGB") for image in rows]
            inputs = self.processor(images, return_tensors="pt").to(model.device)
            if hasattr(model, "get_image_features"):
                return _pooled(model.get_image_features(**inputs))
            return _pooled(model(**inputs))
        inputs = self.processor(
            rows, padding=True, truncation=True, max_length=self._length(), return_tensors="pt"
        ).to(model.device)
        if hasattr(model, "get_text_features"):
            return _pooled(model.get_text_features(**inputs))
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean


def _pooled(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    vectors: Tensor = output.last_hidden_state.mean(1) if pooled is None else pooled
    return vectors.flatten(1)
