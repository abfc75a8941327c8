"""The command line: `run` and `report`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from .pool import TIME_LIMIT, sweep
from .types import model_types

DONE = ("pass", "no export", "refused", "no MLP")
"""What `--retry` does not run again."""

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="JSON lines, one per type.")] = Path(
        "build/coverage.jsonl"
    ),
    types: Annotated[str, typer.Option(help="Comma-separated types; all by default.")] = "",
    steps: Annotated[str, typer.Option(help="forward, find or all.")] = "all",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    limit: Annotated[float, typer.Option(help="Seconds per type.")] = TIME_LIMIT,
    resume: Annotated[bool, typer.Option(help="Skip the types that are in the file.")] = False,
    retry: Annotated[bool, typer.Option(help="Like --resume, but skip only passes.")] = False,
) -> None:
    """Checks model types and appends a record of each to a file."""
    wanted = [name for name in types.split(",") if name] or model_types()
    known = read(out) if resume or retry else []
    done = {record["type"] for record in known if not retry or record["status"] in DONE}
    out.parent.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with (
        out.open("a" if resume or retry else "w") as file,
        tqdm(total=len(wanted), mininterval=5) as bar,
    ):
        bar.update(len(done & set(wanted)))
        for record in sweep([name for name in wanted if name not in done], steps, jobs, limit):
            file.write(json.dumps(record) + "\n")
            file.flush()
            counts[record["status"]] += 1
            bar.set_postfix(counts, refresh=False)
            bar.update()


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="Records of a run.")],
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path("docs"),
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Records of a run with another version of transformers; repeatable."),
    ] = None,
) -> None:
    """Writes `coverage.md` and `coverage.json` from the records of a run."""
    from .report import write

    write(read(file), folder, [read(other) for other in also or ()])


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, the last of each type."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines() if line]
    return list({record["type"]: record for record in records}.values())


if __name__ == "__main__":
    app()
