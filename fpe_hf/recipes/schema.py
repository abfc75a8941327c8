"""What a recipe may say: its fields, their types, and what goes together.

The models here describe; nothing is loaded or downloaded. Two sections belong to others and are
passed on as they are: `widen` holds the fields of `FPEConfig`, `train` those of transformers'
`TrainingArguments`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from ..config import FPEConfig

Task = Literal[
    "feature-classification",
    "image-classification",
    "text-classification",
    "audio-classification",
    "image-text-contrastive",
    "causal-lm",
]
Arm = Literal["dense", "fpe", "fpe-random", "overlap", "wide-dense", "narrow-dense", "dense-longer"]

SET_BY_RECIPE = {
    "output_dir": "output.folder",
    "seed": "compare.seeds",
    "data_seed": "compare.seeds",
    "push_to_hub": "output.push",
    "hub_model_id": "output.push.repo_id",
    "hub_private_repo": "output.push.private",
    "hub_token": "the environment variable HF_TOKEN",
    "resume_from_checkpoint": "the option --resume",
    "remove_unused_columns": "data.columns",
    "do_train": "the recipe itself",
    "do_eval": "the recipe itself",
}
"""Arguments of the Trainer that a recipe sets -> where it takes them from."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Section):
    """The model all arms start from: pretrained, or built from a config.

    Attributes:
        task: What it is trained for; decides the class, the preprocessing and the inputs.
        name_or_path: Hub id or local folder of a pretrained model.
        revision: Branch, tag or commit on the Hub.
        config: Fields of a transformers config, `model_type` among them, to build a model of random
            weights. `mlp_classifier` and `cnn_classifier` are model types of this package.
        freeze: Names or shell patterns of parameters that are not trained.
    """

    task: Task
    name_or_path: str | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    freeze: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.name_or_path is None) == (self.config is None):
            raise ValueError("give one of name_or_path (pretrained) and config (from scratch)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as 'vit' or 'mlp_classifier'")
        return self


class Splits(_Section):
    """Which examples train and which evaluate.

    Attributes:
        train: Name of a split, with a slice if wanted (`train[:80%]`).
        eval: Name of a split, or the share of `train` to hold out, in (0, 1).
    """

    train: str = "train"
    eval: str | Annotated[float, Field(gt=0, lt=1)] = 0.2


class Processor(_Section):
    """Preprocessing for models built from a config; pretrained ones bring theirs.

    Attributes:
        name_or_path: Hub id or folder of a tokenizer, image processor or feature extractor.
        mean: Of the pixels of each channel, after scaling to 0 to 1.
        std: Likewise.
    """

    name_or_path: str | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.5,)


class Embed(_Section):
    """A frozen tower that turns the examples into features once, before training.

    Attributes:
        name_or_path: Hub id or folder of the tower.
        revision: Branch, tag or commit on the Hub.
        modality: What it reads.
        batch_size: Examples at a time.
        cache: Folder for the embeddings; by default below Hugging Face's cache.
    """

    name_or_path: str
    revision: str | None = None
    modality: Literal["image", "text"]
    batch_size: PositiveInt = 64
    cache: Path | None = None


class Data(_Section):
    """The data set.

    Attributes:
        source: `digits` (scikit-learn), `fashion-mnist` (IDX files in `data_dir`, by default those
            of Debian's package dataset-fashion-mnist), a builder of `datasets` (`imagefolder`,
            `audiofolder`, `csv`, `json`, `parquet`, `arrow`, `text`), the folder of a saved
            data set, or a Hub id.
        name: Configuration of a Hub data set.
        revision: Branch, tag or commit on the Hub.
        data_dir: As in `datasets.load_dataset`.
        data_files: As in `datasets.load_dataset`.
        splits: What trains, what evaluates.
        columns: Role (`image`, `text`, `text_pair`, `audio`, `features`, `label`) -> column.
        classes: Keep the first so many classes only.
        max_train_samples: Cap, drawn at random.
        max_eval_samples: Likewise.
        streaming: Read while training; needs `train.max_steps` and an evaluation split.
        max_length: Longest input in tokens, or in samples of sound.
        processor: Preprocessing.
        embed: Train on the embeddings of a frozen tower.
    """

    source: str
    name: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    splits: Splits = Splits()
    columns: dict[Literal["image", "text", "text_pair", "audio", "features", "label"], str] = Field(
        default_factory=dict
    )
    classes: Annotated[int, Field(ge=2)] | None = None
    max_train_samples: PositiveInt | None = None
    max_eval_samples: PositiveInt | None = None
    streaming: bool = False
    max_length: PositiveInt | None = None
    processor: Processor = Processor()
    embed: Embed | None = None

    @model_validator(mode="after")
    def _streams_with_a_split(self) -> Data:
        if self.streaming and not isinstance(self.splits.eval, str):
            raise ValueError("streaming cannot hold examples out: name a split in splits.eval")
        return self


class When(_Section):
    """A moment of the training: one of the two.

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs done, fractions allowed.
    """

    step: PositiveInt | None = None
    epoch: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> When:
        if (self.step is None) == (self.epoch is None):
            raise ValueError("give one of step and epoch")
        return self


class _Span(_Section):
    """A part of the training from the split on, as shares of it."""

    begin: Annotated[float, Field(ge=0, lt=1)]
    end: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin={self.begin} must come before end={self.end}")
        return self


class Schedule(_Span):
    """How an open budget closes, as in `BudgetSchedule`.

    Attributes:
        begin: When it begins to, as a share of the training from the split on.
        end: When it is closed, likewise.
        power: Of the falling curve: 1 is a straight line, more falls faster at first.
        every: Steps from one change of the masks to the next; by default a hundred in all.
        moves: Keep the budget from the first step on and move the masks: `gradient` or `random`.
    """

    begin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    power: Annotated[float, Field(gt=0)] = 3
    every: PositiveInt | None = None
    moves: Literal["gradient", "random"] | None = None


class CouplingSchedule(_Span):
    """How a fixed coupling is annealed, as in `fpe_hf.CouplingSchedule`.

    Attributes:
        begin: When it begins to fall, as a share of the training from the split on.
        end: When it has fallen, likewise.
        shape: Of the fall: `linear`, or `cosine`.
        to: What it falls to.
    """

    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(gt=0, le=1)] = 0.5
    shape: Literal["linear", "cosine"] = "linear"
    to: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Widen(BaseModel):
    """How and when to widen: schedules, and the fields of `FPEConfig`.

    Attributes:
        at: When the dense parent is split in training; before it, by default.
        schedule: How the budget closes, with `split: learned` or `open: true`.
        coupling_schedule: How a fixed `coupling` is annealed in training.
        coupling_lr_factor: Learning rate of learned couplings (`learn_coupling: true`), in
            multiples of `train.learning_rate`; they do not decay then.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    at: When | None = None
    schedule: Schedule | None = None
    coupling_schedule: CouplingSchedule | None = None
    coupling_lr_factor: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Widen:
        if not self.starts_open and self.schedule is not None:
            raise ValueError(
                "schedule is how an open budget closes: set split: learned or open: true, "
                "or leave schedule out"
            )
        annealed, factor = self.coupling_schedule, self.coupling_lr_factor
        if annealed is not None and not any(
            one.coupling > annealed.to and not one.learn_coupling for one in self._configs()
        ):
            raise ValueError(
                f"coupling_schedule anneals a fixed coupling above to={annealed.to}: set coupling: "
                "1.0 and leave learn_coupling out, or leave coupling_schedule out"
            )
        if factor is not None and not any(one.learn_coupling for one in self._configs()):
            raise ValueError(
                "coupling_lr_factor is for learned couplings: set learn_coupling: true, or leave "
                "coupling_lr_factor out"
            )
        return self

    @property
    def starts_open(self) -> bool:
        """Whether some block holds more than its budget at first."""
        return any(one.starts_open for one in self._configs())

    def _configs(self) -> list[FPEConfig]:
        """The configuration, and those of blocks that differ from it."""
        config = self.fpe()
        return [config, *(config.for_block([pattern]) for pattern in config.overrides)]

    def fpe(self) -> FPEConfig:
        """The configuration to widen with."""
        return FPEConfig.from_dict(self.model_extra or {})


class Evaluate(_Section):
    """What is measured.

    Attributes:
        metrics: `accuracy`, `f1`, `top5_accuracy`, `perplexity`, `loss` (all offline), or ids of
            metrics on the Hub. Arms are compared by the first.
    """

    metrics: tuple[str, ...] | None = None

    @field_validator("metrics")
    @classmethod
    def _some(cls, metrics: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if metrics is not None and not metrics:
            raise ValueError("name at least one metric")
        return metrics


class Compare(_Section):
    """The arms and their repetitions.

    Attributes:
        arms: `dense` (the parent, as many steps), `fpe` (as `widen` says), and as controls
            `fpe-random` (the paper's random split), `overlap` (children that share inputs, at the
            same budget), `wide-dense` (all children's weights: more parameters, the ceiling),
            `narrow-dense` (with a budget below 1: the parent with as many neurons as it pays for)
            and `dense-longer` (the parent, for the training FLOPs of `fpe`).
        seeds: One repetition each: initial weights, order of the data, splits.
    """

    arms: tuple[Arm, ...] = ("dense", "fpe")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = (0,)

    @field_validator("arms")
    @classmethod
    def _beside_dense(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        lacking = {"dense", "fpe"} - set(arms)
        if lacking:
            raise ValueError(f"{sorted(lacking)} is missing: FPE is always compared with dense")
        return arms

    @field_validator("arms", "seeds")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values or len(set(values)) < len(values):
            raise ValueError("name at least one, each once")
        return values


class Push(_Section):
    """Where on the Hub the widened model goes.

    Attributes:
        repo_id: `user/name`.
        private: Whether others are kept out.
        revision: Branch to push to.
        checkpoints: Also upload the run after every checkpoint, to the branch `run`, so that it can
            be gone on with elsewhere.
    """

    repo_id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    private: bool = False
    revision: str | None = None
    checkpoints: bool = False


class Output(_Section):
    """What is left behind.

    Attributes:
        folder: Folder for models, checkpoints and the report.
        push: Push the widened model of the best seed.
    """

    folder: Path
    push: Push | None = None


class Recipe(_Section):
    """A comparison, from the data to the report.

    Attributes:
        description: One line for `fpe-hf recipes ls`.
        model: The model.
        data: The data.
        widen: How and when to widen.
        train: Fields of transformers' `TrainingArguments`.
        evaluate: What to measure.
        compare: Arms and seeds.
        output: What to write.
        sweep: Dotted key -> values; `fpe-hf sweep` runs their product.
    """

    description: str = ""
    model: Model
    data: Data
    widen: Widen = Widen()
    train: dict[str, Any] = Field(default_factory=dict)
    evaluate: Evaluate = Evaluate()
    compare: Compare = Compare()
    output: Output
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        features = self.model.task == "feature-classification"
        if self.data.embed is not None and not features:
            raise ValueError(
                f"data.embed makes features: model.task must be 'feature-classification', "
                f"not {self.model.task!r}"
            )
        if self.data.streaming and int(self.train.get("max_steps", -1)) <= 0:
            raise ValueError("data.streaming needs train.max_steps: a stream has no known length")
        if self.data.streaming and self.data.embed is not None:
            raise ValueError("data.embed embeds everything beforehand: turn data.streaming off")
        widen = self.widen.fpe()
        if "narrow-dense" in self.compare.arms and widen.budget == 1:
            raise ValueError(
                "compare.arms: 'narrow-dense' is for a smaller budget: set widen.budget below 1, "
                "or leave it out of the arms"
            )
        if "wide-dense" in self.compare.arms and widen.alpha == 1:
            raise ValueError(
                "compare.arms: with widen.alpha=1 nothing is wider than 'dense': leave "
                "'wide-dense' out of the arms"
            )
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, those of the task by default; the first compares arms."""
        if self.evaluate.metrics is not None:
            return self.evaluate.metrics
        by_task = {"causal-lm": "perplexity", "image-text-contrastive": "loss"}
        return (by_task.get(self.model.task, "accuracy"),)
