"""Write what Debian says of its packages, and the section of each, as train.csv and test.csv.

A text classification task of real sentences that every Debian machine holds, for recipes that need
one without the Hub:

    python examples/debian_sections.py --out data
    fpe-hf run minilm-debian-sections data.data_dir=data
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FEWEST = 100
TEST_SHARE = 0.15
SEED = 0


def main() -> None:
    """Reads the command line and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default: data)")
    folder: Path = parser.parse_args().out
    rows = sorted(set(packages()))
    sizes = Counter(section for _, section in rows)
    rows = [row for row in rows if sizes[row[1]] >= FEWEST]
    random.Random(SEED).shuffle(rows)
    test = round(TEST_SHARE * len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("test.csv", rows[:test]), ("train.csv", rows[test:])):
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("text", "label"))
            writer.writerows(part)
    classes = len({section for _, section in rows})
    print(f"{len(rows) - test} training and {test} test examples, {classes} classes, in {folder}")


def packages() -> Iterator[tuple[str, str]]:
    """Description and section of every package that apt knows."""
    listing = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    for record in listing.stdout.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line)
        if "Description" in fields and "Section" in fields:
            yield fields["Description"], fields["Section"].rpartition("/")[2]


if __name__ == "__main__":
    main()
