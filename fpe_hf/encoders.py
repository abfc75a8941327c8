"""Frozen encoders that turn images or texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

_LENGTH = 512


class Encoder:
    """A frozen tower and its preprocessing. The weights are loaded when they are first needed.

    Args:
        place: Hub id or folder.
        modality: What it reads.
        revision: Branch, tag or commit on the Hub.
        length: Longest text in tokens; by default what the tower can take, up to 512.

    Attributes:
        config: The tower's config.
        processor: Its tokenizer or image processor.
        length: Longest text in tokens.

    Raises:
        OSError: It cannot be read.
        ValueError: It is of no kind that transformers knows.
    """

    def __init__(
        self,
        place: str | Path,
        modality: Literal["image", "text"],
        *,
        revision: str = "main",
        length: int | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

        self._place, self._revision = place, revision
        self.modality = modality
        kind = AutoTokenizer if modality == "text" else AutoImageProcessor
        self.config: Any = self._read(AutoConfig)
        self.processor: Any = self._read(kind)
        limits = [length, getattr(self.config, "max_position_embeddings", None), _LENGTH]
        limits.append(getattr(self.processor, "model_max_length", None))
        self.length = int(min(limit for limit in limits if limit))
        self._model: Any = None

    def _read(self, kind: Any) -> Any:
        return kind.from_pretrained(self._place, revision=self._revision, trust_remote_code=False)

    def load(self) -> Any:
        """The tower, on this process's device; read once."""
        if self._model is None:
            from accelerate import PartialState
            from transformers import AutoModel

            self._model = self._read(AutoModel).to(PartialState().device).eval()
        return self._model

    @torch.no_grad()
    def __call__(self, rows: Sequence[Any]) -> Tensor:
        """`[rows, features]`, float32, on the CPU: the tower's projection if it has one (CLIP),
        else its pooled output (images), or the mean over tokens (texts)."""
        return self._vectors(list(rows)).float().cpu()

    def _vectors(self, rows: list[Any]) -> Tensor:
        model = self.load()
        if self.modality == "image":
            images = [image.convert("RGB") for image in rows]
            inputs = self.processor(images, return_tensors="pt").to(model.device)
            if hasattr(model, "get_image_features"):
                return _pooled(model.get_image_features(**inputs))
            return _pooled(model(**inputs))
        inputs = self.processor(
            rows, padding=True, truncation=True, max_length=self.length, return_tensors="pt"
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
