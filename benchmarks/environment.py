"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import fpe_hf


def environment(device: torch.device, *, cpu_time: bool = False) -> dict[str, Any]:
    """Processor, accelerator, threads, clock, versions and date, as JSON values.

    Args:
        device: What is measured.
        cpu_time: Whether times are processor times.
    """
    return {
        "device": device.type,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "processor time" if cpu_time else "wall clock",
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fpe_hf": fpe_hf.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def processor_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()


def available_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    match = (
        re.search(r"^MemAvailable:\s+(\d+) kB$", info.read_text(), re.M) if info.exists() else None
    )
    return 1024 * int(match[1]) if match else 8 * 2**30


def _commit() -> str | None:
    """The commit that is measured, marked if files differ from it."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=12", "--dirty"]
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
