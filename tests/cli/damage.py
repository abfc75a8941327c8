"""Every way to damage a saved widened model, with what a command must say about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LAYER = "vit.layers.0.mlp"


def flip_header(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[8] ^= 0xFF  # the brace that opens the header
    (folder / WEIGHTS).write_bytes(data)


def flip_data(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    size = int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8 : 8 + size])[f"{LAYER}.fc2.weight"]["data_offsets"]
    data[8 + size + start] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])


def lose_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def lose_widened_tensor(folder: Path) -> None:
    _edit_tensors(folder, lambda tensors: tensors.pop(f"{LAYER}.fc1.inputs"))


def lose_stock_tensor(folder: Path) -> None:
    _edit_tensors(folder, lambda tensors: tensors.pop("classifier.weight"))


def exchange_tensors(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        first, second = (f"vit.layers.{layer}.mlp.fc1.weight" for layer in (0, 1))
        tensors[first], tensors[second] = tensors[second], tensors[first]

    _edit_tensors(folder, edit)


def index_out_of_range(folder: Path) -> None:
    _edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.fc1.inputs"][0, 0].fill_(32))


def shape_off_by_one(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{LAYER}.fc1.weight"] = tensors[f"{LAYER}.fc1.weight"][:-1].clone()

    _edit_tensors(folder, edit)


def future_version(folder: Path) -> None:
    _edit_plan(folder, lambda plan: plan.update(format_version=4))


def config_typo(folder: Path) -> None:
    _edit_plan(folder, lambda plan: plan["config"].update(alhpa=plan["config"].pop("alpha")))


def plan_off_by_one(folder: Path) -> None:
    _edit_plan(folder, lambda plan: plan["blocks"][0].update(parents=49))


def _edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _edit_plan(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    edit(config["quantization_config"])
    (folder / CONFIG).write_text(json.dumps(config))


DAMAGES: dict[Callable[[Path], None], str] = {
    flip_header: "model.safetensors' is broken or truncated",
    flip_data: f"tensors of '{LAYER}.fc2' do not match their checksum",
    truncate: "model.safetensors' is broken or truncated",
    lose_weights: "model.safetensors is missing",
    lose_widened_tensor: f"tensor '{LAYER}.fc1.inputs' is missing",
    lose_stock_tensor: "tensor 'classifier.weight' is missing",
    exchange_tensors: f"tensors of '{LAYER}.fc1' do not match their checksum",
    index_out_of_range: f"tensor '{LAYER}.fc1.inputs' holds index 32",
    shape_off_by_one: f"tensor '{LAYER}.fc1.weight' has shape (1055,); the model has (1056,)",
    future_version: "format_version=4 is newer than this fpe_hf reads (3): upgrade fpe_hf",
    config_typo: "'alhpa' is not a field of FPEConfig",
    plan_off_by_one: f"block '{LAYER}'",
}
