"""`fpe-hf widen`: from a pretrained model to a folder with the widened one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..config import AUTO, BIASES, FAN_OUTS, LAYOUTS, PURPOSES, FPEConfig
from ..errors import ConfigError
from .folders import check_place, looked_for, new_folder
from .tables import print_audit, printable

if TYPE_CHECKING:
    from ..streaming.widening import WidenedCheckpoint

_SIZE_HELP = "Largest weight file, such as 5GB: one is held in memory. [default: 1GB]"


def _field(name: str, help: str, metavar: str | None = None) -> Any:
    """An option for a field of `FPEConfig`; unset, it leaves the field to --config."""
    default = getattr(FPEConfig, name)
    flag = name.replace("_", "-")
    return typer.Option(
        f"--{flag}/--no-{flag}" if isinstance(default, bool) else f"--{flag}",
        help=help if default is None or default is False else f"{help} [default: {default}]",
        metavar=metavar,
        show_default=False,
    )


def _words(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, metavar="NAME", show_default=False)


def widen(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id or local folder of a transformers model.",
            metavar="MODEL",
            callback=check_place,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", metavar="DIR")],
    alpha: Annotated[int | None, _field("alpha", "Children per parent neuron.")] = None,
    split: Annotated[
        str | None, _field("split", "How inputs are divided.", "random|feature|learned")
    ] = None,
    fan_out: Annotated[
        str | None, _field("fan_out", "How outgoing weights are divided.", "|".join(FAN_OUTS))
    ] = None,
    layout: Annotated[
        str | None,
        _field("layout", "How weights are stored and computed.", "|".join((*LAYOUTS, AUTO))),
    ] = None,
    tile_size: Annotated[
        int | None, _field("tile_size", "Parents per tile, for --layout block. [default: all]")
    ] = None,
    purpose: Annotated[
        str | None, _field("purpose", "What --layout auto is to be fast in.", "|".join(PURPOSES))
    ] = None,
    coupling: Annotated[
        float | None,
        _field("coupling", "From 0 (plain FPE) to 1 (exact start, with --fan-out partition)."),
    ] = None,
    learn_coupling: Annotated[
        bool | None, _field("learn_coupling", "Train a coupling per parent.")
    ] = None,
    bias: Annotated[
        str | None, _field("bias", "One bias per parent or per child.", "|".join(BIASES))
    ] = None,
    budget: Annotated[
        float | None, _field("budget", "Share of the parent's non-zeros to end with.")
    ] = None,
    open: Annotated[
        bool | None, _field("open", "Leave the budget open, to be closed in training.")
    ] = None,
    seed: Annotated[int | None, _field("seed", "Of everything drawn at random.")] = None,
    target: Annotated[
        list[str] | None,
        _words("--target", "Name or pattern of blocks to widen; repeatable. [default: all]"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        _words("--exclude", "Name or pattern of blocks to leave alone; repeatable."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON object with fields of FPEConfig; options take precedence over it.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; auto keeps the one they are stored in."),
    ] = "auto",
    max_shard_size: Annotated[
        str | None, typer.Option(help=_SIZE_HELP, metavar="SIZE", show_default=False)
    ] = None,
    revision: Annotated[
        str, typer.Option(help="Branch, tag or commit of a model on the Hub.")
    ] = "main",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model saved in DIR.")
    ] = False,
) -> None:
    """Widens a model, audits its budget and saves it."""
    fields = {
        "alpha": alpha,
        "split": split,
        "fan_out": fan_out,
        "layout": layout,
        "tile_size": tile_size,
        "purpose": purpose,
        "coupling": coupling,
        "learn_coupling": learn_coupling,
        "bias": bias,
        "budget": budget,
        "open": open,
        "seed": seed,
        "targets": target or None,
        "exclude": exclude or None,
    }
    wanted = _configuration(
        config, {name: value for name, value in fields.items() if value is not None}
    )
    options: dict[str, Any] = {"dtype": dtype, "revision": revision}
    if max_shard_size is not None:
        options["max_shard_size"] = _size(max_shard_size)
    with looked_for(model), new_folder(out, overwrite=overwrite, source=model) as folder:
        written = _widen(model, folder, wanted, options)
        from ..hub.companions import copy_companions

        left = copy_companions(model, folder, revision=revision).left
    print_audit(written.report)
    if left:
        typer.echo(printable("Not copied: " + ", ".join(left)))
    typer.echo(f"Saved the widened {written.model_class} to {out}")


def _widen(
    model: str, folder: Path, config: FPEConfig, options: dict[str, Any]
) -> WidenedCheckpoint:
    """Widens block by block; as a whole where that is the only way."""
    from ..streaming.stock import NotStreamableError
    from ..streaming.widening import widen_checkpoint, widen_in_memory

    try:
        return widen_checkpoint(model, folder, config, **options)
    except NotStreamableError as reason:
        logging.getLogger("fpe_hf").warning(
            "%s is loaded as a whole, which takes the memory of all its weights: %s.", model, reason
        )
    for file in folder.iterdir():
        file.unlink()
    return widen_in_memory(model, folder, config, **options)


def _configuration(file: Path | None, fields: dict[str, Any]) -> FPEConfig:
    """The configuration in a file, or the default one, with some fields changed."""
    if file is None:
        return FPEConfig(**fields)
    try:
        config = FPEConfig.from_json(file.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    return config.with_overrides(**fields)


def _size(text: str) -> int:
    from huggingface_hub.serialization._base import parse_size_to_int

    try:
        size = parse_size_to_int(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a size such as 500MB or 5GB.", param_hint="--max-shard-size"
        ) from error
    if size <= 0:
        raise typer.BadParameter(f"{text!r} is not above 0.", param_hint="--max-shard-size")
    return size
