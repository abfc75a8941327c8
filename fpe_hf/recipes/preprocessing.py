"""From raw examples to what the Trainer feeds the model, by task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import RecipeError
from .data import Examples
from .data.in_memory import InMemory, stack
from .schema import Recipe

Rows = dict[str, list[Any]]
Transform = Callable[[Rows], dict[str, Any]]

_EAGER_BYTES = 2 << 30
"""Preprocess beforehand and keep in a file up to this size; above it, while training."""

_ROLES = {
    "feature-classification": ("features", "label"),
    "image-classification": ("image", "label"),
    "text-classification": ("text", "label"),
    "audio-classification": ("audio", "label"),
    "image-text-contrastive": ("image", "text"),
    "causal-lm": ("text",),
}


@dataclass(frozen=True)
class Prepared:
    """Data sets as the Trainer takes them.

    Attributes:
        train: Training examples.
        eval: Evaluation examples.
        collate: Makes a batch of a list of examples.
        processor: Tokenizer, image processor or the like to save with the model, if there is one.
        classes: Names of the classes.
        num_features: Width of the feature vectors, 0 if there are none.
    """

    train: Any
    eval: Any
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]
    processor: Any
    classes: tuple[str, ...]
    num_features: int = 0

    def example_inputs(self, count: int = 2) -> dict[str, Tensor]:
        """The first examples, without labels, as a batch."""
        return self._inputs([row for row, _ in zip(self.train, range(count), strict=False)])

    def sample(self, batches: int = 8, size: int = 32) -> list[dict[str, Tensor]]:
        """Batches without labels, from all over the training examples (a stream's first ones)."""
        count = batches * size
        if hasattr(self.train, "__len__"):
            count = min(count, len(self.train))
            rows = [self.train[place * len(self.train) // count] for place in range(count)]
        else:
            rows = [row for row, _ in zip(self.train, range(count), strict=False)]
        return [self._inputs(rows[first : first + size]) for first in range(0, len(rows), size)]

    def _inputs(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        return {name: tensor for name, tensor in batch.items() if name != "labels"}


def prepare(recipe: Recipe, examples: Examples) -> Prepared:
    """Preprocesses the examples for the recipe's task.

    Raises:
        RecipeError: A column is missing or an example cannot be read.
    """
    task = recipe.model.task
    if task == "feature-classification":
        return _features(recipe, examples)
    _need(examples, _ROLES[task], task)
    by_task: dict[str, Callable[[Recipe, Examples], Prepared]] = {
        "image-classification": _images,
        "text-classification": _texts,
        "audio-classification": _sounds,
        "image-text-contrastive": _pairs,
        "causal-lm": _language,
    }
    return by_task[task](recipe, examples)


def _need(examples: Examples, roles: Sequence[str], task: str) -> None:
    """Refuses examples without a column for one of the roles."""
    have = examples.train.column_names
    for role in roles:
        if role not in have:
            raise RecipeError(
                f"data: the task {task!r} needs {' and '.join(roles)}; there is no column for "
                f"{role!r} among {', '.join(examples.columns or have)}. "
                f"Name it in data.columns.{role}."
            )
    if "label" in roles and not examples.classes:
        raise RecipeError("data: there are no classes; name the label in data.columns.label.")


def _apply(dataset: Any, transform: Transform) -> Any:
    """Runs a transform now, keeping the results, or at each access if they would fill the disk."""
    if _is_stream(dataset):
        return dataset.map(transform, batched=True, remove_columns=dataset.column_names)
    one_by_one = _AtAccess(dataset, transform)
    size = sum(np.asarray(value).nbytes for value in one_by_one[0].values())
    if size * len(dataset) > _EAGER_BYTES:
        return one_by_one
    try:
        done = _run(dataset, transform)
        return InMemory.of(done) or done.with_format("torch")
    except RecipeError:
        for index in range(len(dataset)):
            one_by_one[index]  # the example that is to blame raises, named
        raise


def _run(dataset: Any, transform: Transform) -> Any:
    with _readable("an example"):
        return dataset.map(
            transform,
            batched=True,
            remove_columns=dataset.column_names,
            desc="Preprocessing",
            load_from_cache_file=False,
        )


class _AtAccess(Dataset[dict[str, Any]]):
    """Examples that are preprocessed whenever they are read."""

    def __init__(self, raw: Any, transform: Transform) -> None:
        self.raw, self.transform = raw, transform

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        with _readable(_called(self.raw, index)):
            rows = self.transform(self.raw[index : index + 1])
            return {name: values[0] for name, values in rows.items()}


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns whatever a decoder or a processor raises into an error that says where."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RecipeError(f"data: {what} cannot be read ({cause}).") from error


def _called(raw: Any, index: int) -> str:
    """How to call an example: by its file if it has one."""
    import datasets

    for name, feature in raw.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            stored = raw.cast_column(name, type(feature)(decode=False))[index][name] or {}
            if stored.get("path"):
                return str(stored["path"])
    return f"example {index}"


def _is_stream(dataset: Any) -> bool:
    import datasets

    return isinstance(dataset, datasets.IterableDataset)


def _given(rows: Rows, role: str) -> list[Any]:
    """The values of a column, none of which may be missing."""
    values = list(rows[role])
    if any(value is None for value in values):
        raise RecipeError(f"data.columns.{role}: some examples have no {role}.")
    return values


def _both(examples: Examples, transform: Transform) -> tuple[Any, Any]:
    return _apply(examples.train, transform), _apply(examples.eval, transform)


# -- vectors -----------------------------------------------------------------------------------


def _features(recipe: Recipe, examples: Examples) -> Prepared:
    if recipe.data.embed is not None:
        from .data.embedding import embed

        _need(examples, ("label",), recipe.model.task)
        examples = embed(recipe.data.embed, examples)
    role = "features" if "features" in examples.train.column_names else "image"
    _need(examples, (role, "label"), recipe.model.task)
    read = _vectors if role == "features" else _pixels
    width = read(next(iter(examples.train))[role]).size

    def transform(rows: Rows) -> dict[str, Any]:
        vectors = [read(value) for value in _given(rows, role)]
        for vector in vectors:
            if vector.size != width:
                raise RecipeError(
                    f"data: {role} of {width} and of {vector.size} numbers: an MLP takes inputs of "
                    "one size. Make them equal."
                )
        return {"features": np.stack(vectors), "labels": rows["label"]}

    train, held = _both(examples, transform)
    return Prepared(train, held, stack, None, examples.classes, width)


def _vectors(value: Any) -> Any:
    return np.asarray(value, np.float32).reshape(-1)


def _pixels(image: Any) -> Any:
    return _vectors(image) / 255


# -- images ------------------------------------------------------------------------------------


def _images(recipe: Recipe, examples: Examples) -> Prepared:
    processor = _image_processor(recipe)
    channels = len(getattr(processor, "image_mean", None) or (0, 0, 0))

    def transform(rows: Rows) -> dict[str, Any]:
        mode = "L" if channels == 1 else "RGB"
        images = [image.convert(mode) for image in _given(rows, "image")]
        pixels = processor(images, return_tensors="np")["pixel_values"]
        return {"pixel_values": np.asarray(pixels, np.float32), "labels": rows["label"]}

    train, held = _both(examples, transform)
    return Prepared(train, held, stack, processor, examples.classes)


def _image_processor(recipe: Recipe) -> Any:
    """The pretrained model's own, or one that fits the config."""
    from transformers import AutoImageProcessor, ViTImageProcessor

    if recipe.data.processor.name_or_path or recipe.model.name_or_path:
        return _pretrained(AutoImageProcessor, recipe)
    config = model_config(recipe)
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)

    def per_channel(values: tuple[float, ...]) -> list[float]:
        return list(values * channels if len(values) == 1 else values)

    return ViTImageProcessor(
        size={"height": height, "width": width},
        image_mean=per_channel(recipe.data.processor.mean),
        image_std=per_channel(recipe.data.processor.std),
    )


def _pretrained(kind: Any, recipe: Recipe) -> Any:
    """The preprocessing that the recipe names, or that of its pretrained model."""
    place = recipe.data.processor.name_or_path or recipe.model.name_or_path
    if place is None:
        raise RecipeError(
            "data.processor.name_or_path is missing: a model built from a config needs one to load "
            f"as {kind.__name__}."
        )
    own = place == recipe.model.name_or_path
    try:
        revision = (own and recipe.model.revision) or "main"
        return kind.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # processors raise what they like where their files are missing
        raise RecipeError(
            f"data.processor: no {kind.__name__} can be loaded from {place!r} "
            f"({' '.join(str(error).split())[:200]}). Name one in data.processor.name_or_path."
        ) from error


# -- texts -------------------------------------------------------------------------------------


def _tokenizer(recipe: Recipe) -> Any:
    from transformers import AutoTokenizer

    tokenizer = _pretrained(AutoTokenizer, recipe)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up by transformers
        raise RecipeError(
            f"data.processor: {tokenizer.name_or_path!r} has no tokenizer. Name one in "
            "data.processor.name_or_path."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _texts(recipe: Recipe, examples: Examples) -> Prepared:
    from transformers import DataCollatorWithPadding

    tokenizer = _tokenizer(recipe)

    def transform(rows: Rows) -> dict[str, Any]:
        pair = _given(rows, "text_pair") if "text_pair" in rows else None
        tokens = tokenizer(
            _given(rows, "text"), pair, truncation=True, max_length=recipe.data.max_length
        )
        return {**tokens, "labels": rows["label"]}

    train, held = _both(examples, transform)
    return Prepared(train, held, DataCollatorWithPadding(tokenizer), tokenizer, examples.classes)


def _language(recipe: Recipe, examples: Examples) -> Prepared:
    """Texts end to end, cut into blocks of equal length."""
    from transformers import default_data_collator

    tokenizer = _tokenizer(recipe)
    length = recipe.data.max_length or 128
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def transform(rows: Rows) -> dict[str, Any]:
        texts = [text for text in _given(rows, "text") if text.strip()]
        joined = [token for text in texts for token in (*tokenizer(text)["input_ids"], *end)]
        if len(joined) < length:
            return {"input_ids": [], "labels": []}
        blocks = [joined[i : i + length] for i in range(0, len(joined) - length + 1, length)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    def run(dataset: Any) -> Any:
        if _is_stream(dataset):
            done = dataset.map(transform, batched=True, remove_columns=dataset.column_names)
        else:
            done = _run(dataset, transform)
            if not len(done):
                raise RecipeError(f"data: the texts are shorter than one block of {length} tokens.")
        return done.with_format("torch")

    return Prepared(run(examples.train), run(examples.eval), default_data_collator, tokenizer, ())


# -- sounds and pairs --------------------------------------------------------------------------


def _sounds(recipe: Recipe, examples: Examples) -> Prepared:
    from transformers import AutoFeatureExtractor

    extractor = _pretrained(AutoFeatureExtractor, recipe)
    rate = extractor.sampling_rate
    length = recipe.data.max_length or 10 * rate

    def transform(rows: Rows) -> dict[str, Any]:
        sounds = [_samples(sound, rate)[:length] for sound in _given(rows, "audio")]
        whole = [np.pad(sound, (0, length - len(sound))) for sound in sounds]
        inputs = extractor(whole, sampling_rate=rate, return_tensors="np")
        return {**{k: np.asarray(v) for k, v in inputs.items()}, "labels": rows["label"]}

    train, held = (
        _apply(_resampled(part, rate), transform) for part in (examples.train, examples.eval)
    )
    return Prepared(train, held, stack, extractor, examples.classes)


def _resampled(examples: Any, rate: int) -> Any:
    """Sounds in files are decoded at the rate of the model."""
    import datasets

    if isinstance(examples.features.get("audio"), datasets.Audio):
        return examples.cast_column("audio", datasets.Audio(sampling_rate=rate))
    return examples


def _samples(sound: Any, rate: int) -> Any:
    """The samples of a decoded sound, or of a plain list of them."""
    if hasattr(sound, "get_all_samples"):
        decoded = sound.get_all_samples()
        if decoded.sample_rate != rate:
            raise _wrong_rate(decoded.sample_rate, rate)
        return decoded.data.mean(0).numpy()
    if isinstance(sound, dict):
        if sound.get("sampling_rate", rate) != rate:
            raise _wrong_rate(sound["sampling_rate"], rate)
        sound = sound["array"]
    return np.asarray(sound, np.float32)


def _wrong_rate(found: int, wanted: int) -> RecipeError:
    return RecipeError(
        f"data: a sound has {found} samples per second, but the model takes {wanted}: resample it."
    )


def _pairs(recipe: Recipe, examples: Examples) -> Prepared:
    from transformers import AutoProcessor

    processor = _pretrained(AutoProcessor, recipe)

    def transform(rows: Rows) -> dict[str, Any]:
        images = [image.convert("RGB") for image in _given(rows, "image")]
        inputs = processor(
            text=_given(rows, "text"),
            images=images,
            padding="max_length",
            truncation=True,
            max_length=recipe.data.max_length,
            return_tensors="np",
        )
        return {name: np.asarray(value) for name, value in inputs.items()}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**stack(rows), "return_loss": True}

    train, held = _both(examples, transform)
    return Prepared(train, held, collate, processor, ())


def model_config(recipe: Recipe, **fields: Any) -> Any:
    """The transformers config of a model to be built from scratch.

    Raises:
        RecipeError: The model type or a value is not accepted.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from ..errors import did_you_mean

    own = dict(recipe.model.config or {})
    kind = own.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise RecipeError(
            f"model.config.model_type: {kind!r} is not known.{did_you_mean(kind, CONFIG_MAPPING)}"
        )
    try:
        return AutoConfig.for_model(kind, **{**fields, **own})
    except Exception as error:  # configs raise what they like at a value they do not like
        raise RecipeError(f"model.config: {' '.join(str(error).split())[:300]}") from error
