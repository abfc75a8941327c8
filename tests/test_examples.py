"""The scripts in `examples/`."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "Package: {name}\nSection: {section}\nDescription: what {name} does\n"


def test_debian_sections(tmp_path: Path) -> None:
    """With an apt-cache that knows two large sections and a small one."""
    sections = {"libs": 120, "contrib/net": 150, "tiny": 5}
    records = [
        PACKAGE.format(name=f"{section[:3]}{number}", section=section)
        for section, size in sections.items()
        for number in range(size)
    ]
    (tmp_path / "listing").write_text("\n".join([*records, "Package: nothing-else\n"]))
    command = tmp_path / "apt-cache"
    command.write_text(f'#!/bin/sh\ncat "{tmp_path}/listing"\n')
    command.chmod(0o755)
    out = tmp_path / "data"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = [sys.executable, str(ROOT / "examples" / "debian_sections.py"), "--out", str(out)]
    result = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert "230 training and 40 test examples, 2 classes" in result.stdout
    rows = []
    for name in ("train.csv", "test.csv"):
        with (out / name).open(newline="", encoding="utf-8") as stream:
            rows += list(csv.DictReader(stream))
    assert len(rows) == 270
    assert {row["label"] for row in rows} == {"libs", "net"}
    assert len({row["text"] for row in rows}) == 270
