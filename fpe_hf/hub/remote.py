"""Looking at a model on the Hub without downloading its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.files import CONFIG, INDEX, check_json_size, of_variant, read_json, weight_files
from ..checkpoint.validate import ValidationReport, validate_checkpoint
from ..errors import CheckpointError
from ..files import scratch
from .exchange import exchange

_MAX_HEADER = 100_000_000  # what safetensors itself reads at most
_FIRST_READ = 100_000
_CODE = (".py", ".so", ".sh", ".ipynb")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5", ".msgpack")


@dataclass(frozen=True)
class RemoteReport:
    """What a valid repository holds.

    Attributes:
        commit: Id of the commit that was looked at.
        checkpoint: What its files hold.
        never_read: Names of pickles and code, which loading a widened model does not touch.
    """

    commit: str
    checkpoint: ValidationReport
    never_read: tuple[str, ...]


def validate_repo(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    numbers: bool = False,
    variant: str | None = None,
) -> RemoteReport:
    """Checks a widened model on the Hub before it is loaded.

    Without `numbers`, the config and the headers of the weight files are all that is fetched:
    names, shapes, dtypes and sizes are checked, but no index and no checksum.

    Args:
        repo_id: Hub id.
        revision: Branch, tag or commit.
        token: Access token; otherwise the one of `hf auth login` or `HF_TOKEN`.
        numbers: Download the weights and check their numbers, too.
        variant: Which files to check, as `from_pretrained` takes it.

    Raises:
        CheckpointError: Anything is missing, damaged, contradictory or from a newer format.
        HubError: The Hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="fpe_hf")
    what = f"reading {repo_id!r}"
    sha, sizes = exchange(what, lambda: _list(api, repo_id, revision), token=token)
    with scratch("fpe_hf-validate-") as place:
        (folder := place / "model").mkdir()
        fetch = _Fetcher(api, repo_id, sha, folder, what, token)
        for name in (CONFIG, of_variant(INDEX, variant)):
            if name in sizes:
                check_json_size(name, sizes[name])
                fetch.file(name)
        for name in weight_files(folder, read_json(folder / CONFIG), variant, sizes):
            if numbers:
                fetch.file(name)
            else:
                write_hollow(folder / name, sizes[name], fetch.reader(name))
        report = validate_checkpoint(folder, numbers=numbers, variant=variant, limited=True)
    never_read = tuple(name for name in sizes if name.endswith((*_CODE, *_PICKLES)))
    return RemoteReport(sha, report, never_read)


def _list(api: Any, repo_id: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """The commit of a revision, and the sizes of its files."""
    from huggingface_hub.hf_api import RepoFile

    sha = api.model_info(repo_id, revision=revision).sha
    entries = api.list_repo_tree(repo_id, revision=sha)
    return sha, {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def write_hollow(file: Path, size: int, read: Callable[[int, int], bytes]) -> None:
    """Writes a safetensors file that has its header and its size, and holes for numbers.

    Args:
        file: Where to write it.
        size: Its size.
        read: Reads the bytes from a first to a last position, the last included.

    Raises:
        CheckpointError: The header does not fit in the file.
    """
    start = read(0, min(size, _FIRST_READ) - 1) if size else b""
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise CheckpointError(f"{file.name!r} is broken or truncated: its header does not fit.")
    header = start[: 8 + length]
    if len(header) < 8 + length:
        header += read(len(header), 7 + length)
    with file.open("wb") as out:
        out.write(header)
        out.truncate(size)


@dataclass(frozen=True)
class _Fetcher:
    """Fetches files of one commit into a folder."""

    api: Any
    repo_id: str
    sha: str
    folder: Path
    what: str
    token: object

    def file(self, name: str) -> None:
        def action() -> object:
            return self.api.hf_hub_download(
                self.repo_id, name, revision=self.sha, local_dir=self.folder
            )

        exchange(self.what, action, token=self.token)

    def reader(self, name: str) -> Callable[[int, int], bytes]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self.repo_id, name, revision=self.sha, endpoint=self.api.endpoint)
        headers = build_hf_headers(token=self.api.token, library_name="fpe_hf")

        def read(first: int, last: int) -> bytes:
            wanted = {**headers, "Range": f"bytes={first}-{last}"}
            content = b""
            with http_stream_backoff("GET", url, headers=wanted) as response:
                hf_raise_for_status(response)
                skipped = 0 if response.status_code == 206 else first  # a server without ranges
                for chunk in response.iter_bytes(2**16):
                    content += chunk
                    if len(content) > skipped + last - first:
                        break
            return content[skipped : skipped + last - first + 1]

        return lambda first, last: exchange(self.what, lambda: read(first, last), token=self.token)
