"""Writing a checkpoint tensor by tensor: a safetensors file at a time is held in memory."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.files import INDEX, SINGLE


class ShardWriter:
    """Collects tensors, and writes them out whenever they fill a file.

    Tensors keep the order in which they come.

    Args:
        folder: Where to write.
        max_bytes: Size of a file; one larger tensor has a file to itself.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor. It must not change until the writer has finished.

        Args:
            name: Its name in the checkpoint, not given before.
            tensor: A tensor on the CPU.
        """
        self.make_room(tensor.nbytes)
        own = tensor.detach().contiguous()
        if own.untyped_storage().nbytes() > own.nbytes:
            own = own.clone()  # a view would keep all of its storage in memory
        self._pending[name] = own
        self._pending_bytes += own.nbytes
        self._total_bytes += own.nbytes

    def make_room(self, size: int) -> None:
        """Writes out what there is, unless `size` bytes more fit into the same file."""
        if self._pending and self._pending_bytes + size > self._max_bytes:
            self._write()

    def _write(self) -> None:
        # The names say how many files there are, which is known in the end only.
        file = self._folder / f"shard-{len(self._written)}.safetensors"
        save_file(self._pending, file, metadata={"format": "pt"})
        self._written.append((file, list(self._pending)))
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self, parameters: int) -> None:
        """Writes the rest, gives the files their names, and writes an index if there are several.

        Args:
            parameters: Number of parameters of the model, for the index.
        """
        if self._pending or not self._written:
            self._write()
        count = len(self._written)
        if count == 1:
            self._written[0][0].rename(self._folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for place, (file, names) in enumerate(self._written, 1):
            name = f"{Path(SINGLE).stem}-{place:05d}-of-{count:05d}.safetensors"
            file.rename(self._folder / name)
            weight_map.update(dict.fromkeys(names, name))
        metadata = {"total_parameters": parameters, "total_size": self._total_bytes}
        index = {"metadata": metadata, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self._folder / INDEX).write_text(text, encoding="utf-8")
