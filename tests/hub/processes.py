"""Clients of the test Hub in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checkpoint.fresh import ROOT
from hub.server import Hub


def run_client(hub: Hub, home: Path, code: str, *arguments: object) -> str:
    """Runs code in a new interpreter that is connected to the Hub.

    Args:
        hub: The Hub.
        home: Where the client works, and keeps its cache.
        code: Python; its `sys.argv[1:]` are the arguments.
        arguments: Of the code.

    Returns:
        What it wrote to stdout and stderr.
    """
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "",
        "HF_HUB_ETAG_TIMEOUT": "600",
        "HF_HUB_DOWNLOAD_TIMEOUT": "600",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    home.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=home,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    written = result.stdout + result.stderr
    assert result.returncode == 0, written[-6000:]
    return written
