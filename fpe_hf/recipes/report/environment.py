"""Where a run was made: versions, device, threads."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch
from accelerate import PartialState

from ...version import __version__

_PACKAGES = ("torch", "transformers", "accelerate", "datasets")


def environment() -> dict[str, str]:
    """Describes this process and its machine: name -> value."""
    state = PartialState()
    return {
        "fpe_hf": __version__,
        "Python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(state.device),
        "processes": str(state.num_processes),
        "threads per process": str(torch.get_num_threads()),
    }


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return device.type
