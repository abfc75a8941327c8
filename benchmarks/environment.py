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


def environment(device: torch.device) -> dict[str, Any]:
    """Processor, accelerator, versions and date, as JSON values.

    Args:
        device: What is measured.
    """
    gpu: dict[str, Any] = {}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        gpu["gpu"] = about.name
        gpu["compute capability"] = f"{about.major}.{about.minor}"
        gpu["GiB of GPU memory"] = round(about.total_memory / 2**30)
        gpu["cuda"] = torch.version.cuda
    return {
        "device": device.type,
        "processor": processor_name(),
        "cores": cores(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fpe_hf": fpe_hf.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor_name() -> str:
    """The processor's model name; where that says little, its family and model, too."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.M))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = (f"{key} {found[key]}" for key in ("cpu family", "model") if key in found)
    return f"{found['model name'].strip()} ({', '.join(numbers)})"


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
