"""Which files of a folder belong on the Hub, and which must never get there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import HubError

WEIGHTS = re.compile(r"(.*\.safetensors(\.index\.json)?|pytorch_model.*)$")
_DATA = frozenset(
    ".safetensors .json .jsonl .txt .model .jinja .tiktoken .yaml .yml .toml .md .png .svg "
    ".csv".split()
)
_TEXT = _DATA - {".safetensors", ".model", ".png"}
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class Contents:
    """The files of a folder.

    Attributes:
        pushed: Those that belong on the Hub: weights, config, tokenizer, texts and figures.
        left_out: Names of all others: checkpoints to resume from, pickles, code, hidden files.
    """

    pushed: tuple[Path, ...]
    left_out: tuple[str, ...]


def contents_of(folder: Path, token: object = None) -> Contents:
    """Sorts the files of a folder.

    Args:
        folder: The folder. What is in folders inside it is left out.
        token: The token that will be used, which must be in no file.

    Raises:
        HubError: A file that would be pushed holds something that looks like an access token.
    """
    entries = sorted(folder.iterdir())
    pushed = tuple(entry for entry in entries if _belongs(entry))
    left_out = tuple(entry.name for entry in entries if entry not in pushed)
    for file in pushed:
        if file.suffix in _TEXT:
            check_secret(file.name, file.read_bytes(), token)
    return Contents(pushed, left_out)


def check_secret(name: str, content: bytes, token: object = None) -> None:
    """Refuses what holds an access token.

    Raises:
        HubError: It does.
    """
    known = isinstance(token, str) and len(token) > 0 and token.encode() in content
    if known or _TOKEN.search(content):
        raise HubError(
            f"{name} holds what looks like an access token of the Hub; nothing was pushed. "
            "Remove it from the file, and revoke the token if others may have seen it."
        )


def _belongs(entry: Path) -> bool:
    hidden = entry.name.startswith(".")
    return entry.is_file() and not hidden and entry.suffix in _DATA
