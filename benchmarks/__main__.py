"""The command line: `run`, `report` and `costs`."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from .cases import presets
from .costs import costs_preset, write_costs
from .environment import environment
from .measuring import Setting, measure
from .report import write_report
from .results import Results

RESULTS = Path(__file__).resolve().parent / "results"

Threads = Annotated[int, typer.Option(help="Threads of a CPU; 0 takes all cores.")]
CpuTime = Annotated[bool, typer.Option("--cpu-time", help="Processor time, for a busy machine.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="quick, table or full.")] = "table",
    quick: Annotated[bool, typer.Option("--quick", help="The same as --preset quick.")] = False,
    name: Annotated[str, typer.Option(help="Of the results; PRESET-DEVICE by default.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    threads: Threads = 1,
    device: Device = "auto",
    cpu_time: CpuTime = False,
    budget: Annotated[float, typer.Option(help="Seconds per case; 0 keeps the preset's.")] = 0.0,
    peak: Annotated[bool, typer.Option(help="Peak of resident memory, too (slow).")] = False,
    resume: Annotated[bool, typer.Option(help="Measure only what is missing.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A part, such as tokens=1,16.")] = None,
) -> None:
    """Measures blocks and models, prints the table, and stores it with its plots."""
    place = prepare(device, threads)
    known = presets(place.type)
    preset = "quick" if quick else preset
    if preset not in known:
        raise typer.BadParameter(f"--preset {preset}: choose among {', '.join(known)}.")
    wanted = known[preset]
    try:
        for choice in only or ():
            wanted = wanted.only(choice)
    except ValueError as error:
        raise typer.BadParameter(f"--only {error}") from error
    if budget:
        wanted = dataclasses.replace(wanted, budget=budget)
    quiet()
    path = out / f"{name or f'{preset}-{place.type}'}.json"
    results = start(path, environment(place, cpu_time=cpu_time), resume)
    measure(wanted, Setting(place, cpu_time, peak), results)
    print(write_report(results))


@app.command()
def report(file: Path) -> None:
    """Writes the Markdown page and the plots of stored results anew."""
    print(write_report(Results.read(file)))


@app.command()
def costs(
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    threads: Threads = 1,
    device: Device = "auto",
    cpu_time: CpuTime = False,
    dtypes: Annotated[str, typer.Option(help="Comma-separated: fp32, bf16.")] = "fp32",
    modes: Annotated[str, typer.Option(help="Comma-separated: forward, train.")] = "forward",
    budget: Annotated[float, typer.Option(help="Seconds per case.")] = 8.0,
    resume: Annotated[bool, typer.Option(help="Measure only what is missing.")] = False,
) -> None:
    """Measures the table from which `layout="auto"` chooses, for this kind of device."""
    place = prepare(device, threads)
    here = environment(place, cpu_time=cpu_time)
    results = start(out.with_suffix(".rows.json"), here, resume)
    wanted = costs_preset(tuple(dtypes.split(",")), tuple(modes.split(",")), budget)
    measure(wanted, Setting(place, cpu_time), results)
    write_costs(results, out)
    results.path.unlink()


def prepare(device: str, threads: int) -> torch.device:
    """Fixes the threads and the random numbers, and returns the device.

    Args:
        device: `cpu`, `cuda` or `auto`.
        threads: Threads of a CPU; 0 takes all cores.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    torch.manual_seed(0)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def quiet() -> None:
    """Keeps progress bars of loading and advice on training out of the way."""
    logging.getLogger("fpe_hf").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def start(path: Path, here: dict[str, Any], resume: bool) -> Results:
    """Results to add to: those of the file, or none.

    Args:
        path: The file.
        here: The environment.
        resume: Whether to go on with the file.
    """
    # A folder of this machine would say nothing elsewhere.
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    command = " ".join(["python -m benchmarks", *words])
    if not resume or not path.exists():
        return Results(path, command, here)
    results = Results.read(path)
    fixed = ("device", "processor", "threads", "clock", "gpu", "torch")
    changed = [name for name in fixed if results.environment[name] != here[name]]
    if changed:
        raise typer.BadParameter(f"--resume: {path} has another {', '.join(changed)}.")
    commits = (str(results.environment["commit"]), str(here["commit"]))
    results.environment["commit"] = ", ".join(dict.fromkeys(commits))
    return results


if __name__ == "__main__":
    app()
