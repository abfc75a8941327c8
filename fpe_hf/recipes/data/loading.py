"""From a recipe's `data` section to raw examples in columns that are named by their role."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RecipeError, did_you_mean
from ...pictures import Pictures, digits, fashion_mnist
from ..schema import Data

BUILDERS = ("imagefolder", "audiofolder", "csv", "json", "parquet", "arrow", "text")
_SAVED = ("dataset_info.json", "dataset_dict.json")  # in the folder of a saved data set
_LOOK_AHEAD = 100  # examples of a stream that tell the types of its columns
_SEED = 0  # of what is held out: the same for all arms and seeds
_ALIASES = {
    "image": ("image", "img", "pixel_values"),
    "text": ("text", "sentence", "content", "caption"),
    "text_pair": ("text_pair",),
    "audio": ("audio",),
    "features": ("features",),
    "label": ("label", "labels", "fine_label"),
}


@dataclass(frozen=True)
class Examples:
    """Raw examples.

    Attributes:
        train: `datasets.Dataset` or `IterableDataset` with columns among `image`, `text`,
            `text_pair`, `audio`, `features` and `label`.
        eval: Likewise.
        classes: Names of the classes, in the order of their labels; empty if there are none.
        columns: What the source calls its columns, for messages.
    """

    train: Any
    eval: Any
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()


def load_examples(data: Data) -> Examples:
    """Loads and splits a data set.

    Raises:
        RecipeError: It cannot be read, is empty, or lacks a column or a split.
    """
    if isinstance(data.splits.eval, str):
        train, held = _load(data, data.splits.train), _load(data, data.splits.eval)
    else:
        train, held = _hold_out(_load(data, data.splits.train), data.splits.eval)
    columns = tuple(train.column_names)
    train, held = _renamed(train, data), _renamed(held, data)
    train, held, classes = _with_labels(train, held)
    if data.classes is not None:
        train, held, classes = _first_classes(train, held, classes, data.classes)
    train, held = _capped(train, data.max_train_samples), _capped(held, data.max_eval_samples)
    for part, name in ((train, "train"), (held, "eval")):
        if not data.streaming and len(part) == 0:
            raise RecipeError(f"data.splits.{name}: {data.source!r} holds no example there.")
    return Examples(train, held, classes, columns)


# -- sources -----------------------------------------------------------------------------------


def _load(data: Data, split: str) -> Any:
    if data.source == "digits":
        _only_train(data, split)
        return _image_dataset(digits())
    if data.source == "fashion-mnist":
        return _image_dataset(fashion_mnist(split, data.data_dir))
    with _reading(data, split):
        if any(Path(data.source, name).is_file() for name in _SAVED):
            return _saved(data, split)
        import datasets

        _check_local(data)
        loaded = datasets.load_dataset(
            data.source,
            data.name,
            data_dir=data.data_dir,
            data_files=data.data_files,
            split=split,
            revision=data.revision,
            streaming=data.streaming,
        )
        return _described(loaded) if data.streaming else loaded


@contextmanager
def _reading(data: Data, split: str) -> Iterator[None]:
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # `datasets` raises whatever its readers raise
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise RecipeError(
            f"data: split {split!r} of {data.source!r} cannot be loaded ({cause})."
        ) from error


def _check_local(data: Data) -> None:
    """Refuses files and folders that are not there before anybody asks the Hub for them."""
    looks_local = data.source.startswith((".", "/", "~")) or data.source.count("/") > 1
    if data.source not in BUILDERS and looks_local and not Path(data.source).exists():
        raise RecipeError(f"data.source: there is no folder {data.source!r}.")
    if data.source in BUILDERS and data.data_dir is None and data.data_files is None:
        raise RecipeError(f"data.source={data.source!r} needs data.data_dir or data.data_files.")
    bare = "/" not in data.source and data.source not in BUILDERS
    if bare and not Path(data.source).exists():
        near = did_you_mean(data.source, ("digits", "fashion-mnist", *BUILDERS))
        if near:
            raise RecipeError(f"data.source: {data.source!r} is not known.{near}")
    if data.data_dir is not None and not _anywhere(data.data_dir) and data.source in BUILDERS:
        raise RecipeError(f"data.data_dir: there is no folder {data.data_dir!r}.")
    for file in _files(data.data_files):
        if data.source in BUILDERS and not _anywhere(file, data.data_dir):
            raise RecipeError(f"data.data_files: there is no file {file!r}.")


def _anywhere(place: str, below: str | None = None) -> bool:
    """Whether a local path exists; addresses and patterns are left to `datasets`."""
    if "://" in place or "*" in place:
        return True
    return Path(below or ".", place).exists() or Path(place).exists()


def _files(files: Any) -> Iterator[str]:
    if isinstance(files, dict):
        files = list(files.values())
    if isinstance(files, str):
        yield files
    for entry in files if isinstance(files, list) else ():
        yield from _files(entry)


def _described(stream: Any) -> Any:
    """A stream with names and types of its columns, which files of text do not say beforehand."""
    import datasets

    if stream.features is not None:
        return stream
    return stream.cast(datasets.Dataset.from_list(list(stream.take(_LOOK_AHEAD))).features)


def _only_train(data: Data, split: str) -> None:
    if split != "train":
        raise RecipeError(
            f"data.splits: {data.source} has no split {split!r}, only 'train', whole; hold out a "
            "share of it in data.splits.eval."
        )


def _saved(data: Data, split: str) -> Any:
    """A data set that `save_to_disk` wrote."""
    import datasets

    saved = datasets.load_from_disk(data.source)
    if isinstance(saved, datasets.Dataset):
        _only_train(data, split)
        return saved
    if split not in saved:
        raise RecipeError(f"data.splits: no split {split!r} there; accepted: {', '.join(saved)}.")
    return saved[split]


def _image_dataset(found: Pictures) -> Any:
    """Images as encoded by `datasets`: PNG, so that they look like those of any image data set."""
    import datasets
    from PIL import Image

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(found.names))}
    )
    grey = (found.images * (255 / found.white)).round().astype("uint8")
    columns = {"image": list(map(Image.fromarray, grey)), "label": found.labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


# -- parts and columns -------------------------------------------------------------------------


def _hold_out(dataset: Any, share: float) -> tuple[Any, Any]:
    if len(dataset) < 2:
        raise RecipeError(f"data: {len(dataset)} example(s) are too few to hold some out.")
    parts = dataset.train_test_split(test_size=share, seed=_SEED)
    return parts["train"], parts["test"]


def _renamed(dataset: Any, data: Data) -> Any:
    """Only the columns with a role, named by it."""
    names = dataset.column_names
    chosen: dict[str, str] = {}
    for role, aliases in _ALIASES.items():
        asked = data.columns.get(role)  # type: ignore[call-overload]
        if asked is not None and asked not in names:
            raise RecipeError(
                f"data.columns.{role}: there is no column {asked!r}; the data have "
                f"{', '.join(names)}.{did_you_mean(asked, names)}"
            )
        found = asked or next((alias for alias in aliases if alias in names), None)
        if found is not None:
            chosen[found] = role
    dataset = dataset.remove_columns([name for name in names if name not in chosen])
    renamed = {old: new for old, new in chosen.items() if old != new}
    return _with_files(dataset.rename_columns(renamed) if renamed else dataset)


def _with_files(dataset: Any) -> Any:
    """Paths where images or sounds are wanted become what the files hold."""
    import datasets

    for role, kind in (("image", datasets.Image), ("audio", datasets.Audio)):
        if getattr(dataset.features.get(role), "dtype", "") in ("string", "large_string"):
            dataset = dataset.cast_column(role, kind())
    return dataset


def _with_labels(train: Any, held: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """Labels as numbers from 0, and the names of the classes."""
    import datasets

    if "label" not in train.features:
        return train, held, ()
    feature = train.features["label"]
    if isinstance(train, datasets.IterableDataset):
        if isinstance(feature, datasets.ClassLabel):
            return train, held, tuple(feature.names)
        raise RecipeError("data.streaming: the classes are not known beforehand in this data set.")
    values, evaluated = (_distinct(part) for part in (train, held))
    if isinstance(feature, datasets.ClassLabel):
        _check_range([*values, *evaluated], len(feature.names))
        return train, held, tuple(feature.names)
    if all(type(value) is int for value in values):  # a boolean is a word
        return train, held, _numbered(values, evaluated)
    names = [str(value) for value in values]
    unknown = set(map(str, evaluated)) - set(names)
    if unknown:
        raise RecipeError(f"data.columns.label: {sorted(unknown)[0]!r} evaluates but never trains.")
    classes = datasets.ClassLabel(names=names)
    features = train.features | {"label": classes}

    def numbered(row: dict[str, Any]) -> dict[str, Any]:
        return {"label": classes.str2int(str(row["label"]))}

    return (
        train.map(numbered, features=datasets.Features(features)),
        held.map(numbered, features=datasets.Features(features)),
        tuple(names),
    )


def _distinct(part: Any) -> list[Any]:
    """The labels that occur."""
    values: list[Any] = part.unique("label")
    if None in values:
        raise RecipeError("data.columns.label: some labels are missing.")
    for value in values:
        if not isinstance(value, (int, str)):
            raise RecipeError(
                f"data.columns.label: {value!r} is no label: words or whole numbers are wanted."
            )
    return sorted(values, key=str)


def _check_range(values: list[int], count: int) -> None:
    for value in values:
        if not 0 <= value < count:
            raise RecipeError(
                f"data.columns.label: {value} is out of range: labels run from 0 to {count - 1}."
            )


def _numbered(values: list[int], evaluated: list[int]) -> tuple[str, ...]:
    count = max(values) + 1
    _check_range([*values, *evaluated], count)
    if len(values) < count / 2:
        raise RecipeError(
            f"data.columns.label: only {len(values)} of the labels 0 to {count - 1} occur: these "
            "are no classes. Name the column of the label in data.columns.label."
        )
    return tuple(map(str, range(count)))


def _first_classes(
    train: Any, held: Any, classes: tuple[str, ...], count: int
) -> tuple[Any, Any, tuple[str, ...]]:
    if count > len(classes):
        raise RecipeError(f"data.classes={count}: the data have {len(classes)} classes.")

    def wanted(label: int) -> bool:
        return label < count

    return (
        train.filter(wanted, input_columns="label"),
        held.filter(wanted, input_columns="label"),
        classes[:count],
    )


def _capped(dataset: Any, limit: int | None) -> Any:
    import datasets

    if limit is None:
        return dataset
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.take(limit)
    chosen = dataset.shuffle(seed=_SEED).select(range(min(limit, len(dataset))))
    return chosen
