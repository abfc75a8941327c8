"""Which files of a folder belong on the Hub, and which must never get there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.files import module_folders
from ..errors import HubError

WEIGHTS = re.compile(r"([^/]*\.safetensors(\.index\.json)?|pytorch_model[^/]*)$")
MAX_CONFIG_BYTES = 2**20
_DATA = frozenset(
    ".safetensors .json .jsonl .txt .model .jinja .tiktoken .yaml .yml .toml .md .png .svg "
    ".csv".split()
)
_TEXT = _DATA - {".safetensors", ".model", ".png"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_CODE = ".py"
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class Contents:
    """The files of a folder.

    Attributes:
        pushed: Path in the repository -> file, for those that belong on the Hub: weights, config,
            tokenizer, texts and figures, modules of sentence-transformers, and code that a config
            names.
        left_out: Paths of all others: checkpoints to resume from, pickles, code, hidden files.
    """

    pushed: dict[str, Path]
    left_out: tuple[str, ...]


def contents_of(folder: Path, token: object = None) -> Contents:
    """Sorts the files of a folder.

    Args:
        folder: The folder. What is in folders inside it is left out, but for modules.
        token: The token that will be used, which must be in no file.

    Raises:
        HubError: A file that would be pushed holds something that looks like an access token.
    """
    entries = sorted(folder.iterdir())
    for module in sorted({*module_folders(folder)} - {"."}):
        home = folder / module
        if home.is_dir() and not home.is_symlink():
            entries = [*(own for own in entries if own != home), *sorted(home.iterdir())]
    names = {entry.relative_to(folder).as_posix(): entry for entry in entries}
    coded = _names_code(entries)
    pushed = {name: entry for name, entry in names.items() if _belongs(entry, coded)}
    for name, file in pushed.items():
        if file.suffix in _TEXT or file.suffix not in _DATA:
            check_secret(name, file.read_bytes(), token)
    return Contents(pushed, tuple(name for name in names if name not in pushed))


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


def _belongs(entry: Path, coded: bool) -> bool:
    if not entry.is_file() or entry.name.startswith("."):
        return False
    code = coded and entry.suffix == _CODE
    return code or entry.suffix in _DATA or entry.stem in _LEGAL


def _names_code(entries: Sequence[Path]) -> bool:
    """Whether a config says that classes are in a file of code beside it."""
    stems = [re.escape(entry.stem) for entry in entries if entry.suffix == _CODE]
    if not stems:
        return False
    named = re.compile(rf'["-](?:{"|".join(stems)})\.\w+"')
    configs = (entry for entry in entries if entry.suffix == ".json" and entry.is_file())
    small = (entry for entry in configs if entry.stat().st_size <= MAX_CONFIG_BYTES)
    return any(named.search(entry.read_text(encoding="utf-8", errors="replace")) for entry in small)
