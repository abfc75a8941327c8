"""The command line: `run`, `gpu`, `costs` and `report`."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from .cases import costs_preset, gpu_presets, presets
from .costs import write_costs
from .environment import cores, environment
from .measuring import Setting, measure
from .report import write_report
from .results import Results

RESULTS = Path(__file__).resolve().parent / "results"

Threads = Annotated[str, typer.Option(help="Of a CPU, comma-separated; all takes all cores.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Resume = Annotated[bool, typer.Option("--resume", help="Measure only what is missing.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="table, quick, element or full.")] = "table",
    name: Annotated[str, typer.Option(help="Of the results; PRESET-DEVICE by default.")] = "",
    out: Out = RESULTS,
    threads: Threads = "1,all",
    device: Device = "auto",
    budget: Annotated[float, typer.Option(help="Seconds in all; 0 keeps the preset's.")] = 0.0,
    resume: Resume = False,
    only: Annotated[list[str] | None, typer.Option(help="A part, such as forward=1,128.")] = None,
) -> None:
    """Measures blocks and models, prints the table for the documentation, and stores it."""
    setting = prepare(device, threads)
    known = presets()
    if preset not in known:
        raise typer.BadParameter(f"--preset {preset}: choose among {', '.join(known)}.")
    wanted = known[preset]
    try:
        for choice in only or ():
            wanted = wanted.only(choice)
    except ValueError as error:
        raise typer.BadParameter(f"--only {error}") from error
    wanted = replace(wanted, budget=budget or wanted.budget)
    path = out / f"{name or f'{preset}-{setting.device.type}'}.json"
    results = start(path, setting, resume)
    measure([wanted], setting, results, wanted.budget)
    print(write_report(results))


@app.command()
def gpu(
    device: Device = "cuda",
    budget: Annotated[float, typer.Option(help="Seconds in all.")] = 420.0,
    name: Annotated[str, typer.Option(help="Of the results; that of the GPU by default.")] = "",
    out: Out = RESULTS,
    resume: Resume = False,
) -> None:
    """Tests and measures everything worth knowing on a GPU, the most important first. With
    --device cpu it rehearses, at small widths."""
    setting = prepare(device, "1")
    here = environment(setting.device)
    called = re.sub(r"\W+", "-", here.get("gpu", "gpu-rehearsal")).strip("-").lower()
    results = start(out / f"{name or called}.json", setting, resume)
    measure(gpu_presets(setting.device.type), setting, results, budget)
    print(write_report(results))


@app.command()
def costs(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    threads: Threads = "1",
    device: Device = "auto",
    dtypes: Annotated[str, typer.Option(help="Comma-separated: fp32, bf16.")] = "fp32",
    modes: Annotated[str, typer.Option(help="Comma-separated: forward, train.")] = "forward",
    budget: Annotated[float, typer.Option(help="Seconds in all.")] = 300.0,
    resume: Resume = False,
) -> None:
    """Measures the table from which `layout="auto"` chooses, for this kind of device."""
    setting = prepare(device, threads)
    results = start(out.with_suffix(".rows.json"), setting, resume)
    wanted = costs_preset(tuple(dtypes.split(",")), tuple(modes.split(",")))
    measure([wanted], setting, results, budget)
    if results.left:
        left = len(results.left)
        raise typer.BadParameter(f"--budget {budget:g}: {left} cases are missing; add --resume.")
    write_costs(results, out)
    results.path.unlink()


@app.command()
def report(file: Path) -> None:
    """Writes the page of stored results anew."""
    print(write_report(Results.read(file)))


def prepare(device: str, threads: str) -> Setting:
    """Where to measure. Fixes the random numbers and keeps progress bars out of the way.

    Args:
        device: `cpu`, `cuda` or `auto`.
        threads: Numbers of threads of a CPU, or `all`, comma-separated.
    """
    logging.getLogger("fpe_hf").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    words = ["0"] if device == "cuda" else threads.split(",")
    try:
        numbers = {cores() if word == "all" else int(word) for word in words}
    except ValueError as error:
        raise typer.BadParameter(f"--threads {threads}: numbers, or all, such as 1,all.") from error
    return Setting(torch.device(device), tuple(sorted(numbers)))


def start(path: Path, setting: Setting, resume: bool) -> Results:
    """Results to add to: those of the file, or none.

    Args:
        path: The file.
        setting: Where is measured.
        resume: Whether to go on with the file.
    """
    here = environment(setting.device)
    # A folder of this machine would say nothing elsewhere.
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    command = " ".join(["python -m benchmarks", *words])
    if not resume or not path.exists():
        return Results(path, command, here)
    results = Results.read(path)
    then: dict[str, Any] = results.environment
    changed = [n for n in ("device", "processor", "gpu", "torch") if then.get(n) != here.get(n)]
    if changed:
        raise typer.BadParameter(f"--resume: {path} has another {', '.join(changed)}.")
    commits = (str(then["commit"]), str(here["commit"]))
    then["commit"] = ", ".join(dict.fromkeys(commits))
    return results


if __name__ == "__main__":
    app()
