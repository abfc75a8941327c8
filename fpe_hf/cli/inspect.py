"""`fpe-hf inspect`: what could be widened in a dense model, or what is in a widened one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .folders import check_place, looked_for
from .speed import costs_as_json, print_speed
from .tables import print_audit, print_table, printable, working

if TYPE_CHECKING:
    from ..auditing import AuditReport
    from ..checkpoint.plan import FPEQuantizationConfig
    from ..discovery import MLPBlock, MLPBlocks, NearMiss


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id or local folder, dense or widened.",
            metavar="MODEL_OR_DIR",
            callback=check_place,
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of tables.")
    ] = False,
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only", help="Of a widened model, read the config but not the weights."
        ),
    ] = False,
    revision: Annotated[
        str, typer.Option(help="Branch, tag or commit of a model on the Hub.")
    ] = "main",
) -> None:
    """Shows the MLP blocks of a model, or audits a widened one.

    Of a dense model only the config is read: it may be of any size.
    """
    with looked_for(model), working(f"Reading the config of {model}"):
        from transformers import AutoConfig

        from ..checkpoint.loading import model_class

        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
        kind = model_class(config).__name__
        plan = _plan(config)
    about = {"model": model, "class": kind, "widened": plan is not None}
    if plan is None:
        _show_dense(about, config, as_json)
    else:
        _show_widened(about, plan, None if config_only else _audit(model, revision), as_json)


def _plan(config: Any) -> FPEQuantizationConfig | None:
    """The plan of a widened model, `None` for a dense one."""
    from ..checkpoint.files import stored_plan
    from ..checkpoint.plan import FPEQuantizationConfig

    stored = stored_plan(vars(config))
    return None if stored is None else FPEQuantizationConfig(**stored)


def _show_dense(about: dict[str, Any], config: Any, as_json: bool) -> None:
    from ..checkpoint.loading import empty_model
    from ..discovery import find_mlps

    with working("Looking for MLP blocks"):
        model = empty_model(config)
        found = find_mlps(model)
    about["class"] = type(model).__name__
    if as_json:
        blocks = [_block_dict(block) for block in found]
        misses = [_miss_dict(miss) for miss in found.near_misses]
        _print_json({**about, "blocks": blocks, "near_misses": misses})
        return
    typer.echo(f"{about['class']}, not widened: {_count(len(found), 'MLP block')}")
    if found:
        typer.echo()
        _print_blocks(found)
    if found.near_misses:
        typer.echo(f"\nLeft alone: {len(found.near_misses)}\n")
        print_table(["up", "down", "reason"], map(_miss_cells, found.near_misses), left=3)


def _print_blocks(found: MLPBlocks) -> None:
    header = ["block", "kind", "activation", "up", "down", "in", "hidden", "out"]
    print_table(header, map(_block_cells, found), left=5)


def _block_cells(block: MLPBlock) -> list[str]:
    names = [_below(block.name, name) for name in (*block.ups, block.down)]
    sizes = [str(size) for size in (block.in_features, block.parents, block.out_features)]
    return [block.name, block.kind, block.activation, " + ".join(names[:-1]), names[-1], *sizes]


def _below(block: str, name: str) -> str:
    return name.removeprefix(block + ".")


def _miss_cells(miss: NearMiss) -> list[str]:
    return [" + ".join(miss.up), miss.down or "", miss.reason]


def _block_dict(block: MLPBlock) -> dict[str, Any]:
    return {**asdict(block), "kind": block.kind}


def _miss_dict(miss: NearMiss) -> dict[str, Any]:
    return {**asdict(miss), "block": None if miss.block is None else _block_dict(miss.block)}


def _audit(model: str, revision: str) -> AuditReport:
    from ..auditing import audit
    from ..checkpoint.loading import load_model
    from .validate import check_folder

    if Path(model).is_dir():  # one on the Hub is left to the checks made when it is loaded
        check_folder(Path(model))
    loaded = load_model(model, dtype="auto", revision=revision)
    with working("Counting"):
        return audit(loaded)


def _show_widened(
    about: dict[str, Any], plan: FPEQuantizationConfig, report: AuditReport | None, document: bool
) -> None:
    """Shows a plan and an audit.

    Raises:
        BudgetError: An invariant does not hold; everything has been printed then.
    """
    if document:
        told = None if report is None else report.to_dict()
        parts = {"config": plan.config, "blocks": plan.blocks, "costs": costs_as_json(plan.specs)}
        _print_json({**about, **parts, "audit": told})
    else:
        typer.echo(f"{about['class']}, widened: {_count(len(plan.specs), 'MLP block')}")
        settings = {
            name: value for name, value in plan.config.items() if value not in (None, {}, [])
        }
        if plan.config.get("split") == "learned":
            for name in ("open", "fan_out"):  # it starts open, and training divides the outputs
                settings.pop(name, None)
        chosen = ", ".join(f"{name}={value}" for name, value in settings.items())
        typer.echo(printable(chosen) + "\n")
        print_speed(plan.specs)
        if report is None:
            _print_specs(plan)
        else:
            print_audit(report)
    if report is not None:
        report.raise_for_breach()


def _print_specs(plan: FPEQuantizationConfig) -> None:
    header = ["block", "layout", "alpha", "in", "parents", "out", "parent non-zeros", "non-zeros"]
    rows = [
        [
            spec.name,
            spec.layout,
            *map(str, (spec.alpha, spec.in_features, spec.parents, spec.out_features)),
            *(f"{count:,}" for count in (spec.parent_nonzeros, spec.nonzeros)),
        ]
        for spec in plan.specs
    ]
    print_table(header, rows, left=2)
    typer.echo("According to the config; the weights were not read.")


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
