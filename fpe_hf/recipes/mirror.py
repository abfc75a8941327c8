"""A run on the Hub: its checkpoints go up as they are written, and come down to be gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from transformers import TrainerCallback

from ..errors import RecipeError
from ..hub.exchange import exchange
from .claiming import RECIPE, hold, is_free
from .schema import Push

BRANCH = "run"
_LEFT_OUT = ("*training_args.bin", ".*", "*/.*", "report*")


class MirrorCallback(TrainerCallback):  # type: ignore[misc]
    """Uploads a run after every checkpoint, in one commit; older checkpoints disappear there, too.

    Args:
        folder: The run's folder.
        push: Where to.
    """

    def __init__(self, folder: Path, push: Push) -> None:
        self.folder, self.push = folder, push

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            upload_run(self.folder, self.push)


def upload_run(folder: Path, push: Push) -> None:
    """Makes the branch `run` of a repository equal to a run's folder.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    api, name = HfApi(), push.repo_id

    def upload() -> None:
        api.create_repo(name, private=push.private, exist_ok=True)
        api.create_branch(name, branch=BRANCH, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=BRANCH,
            ignore_patterns=list(_LEFT_OUT),
            delete_patterns="*",
            commit_message="State of the run",
        )

    exchange(f"uploading the run to {name!r}", upload)


def download_run(repo_id: str, folder: Path) -> None:
    """Fetches a run, to go on with it.

    Args:
        repo_id: `user/name`.
        folder: The run's folder, which must not hold anything yet.

    Raises:
        HubError: The Hub refused, or could not be reached.
        RecipeError: The folder is taken, or there is no run.
    """

    def check() -> None:
        if not is_free(folder):
            raise RecipeError(
                f"output.folder: {folder} is not empty; --resume goes on with what is there, and "
                "--resume-from wants another folder."
            )

    def download() -> None:
        snapshot_download(repo_id, revision=BRANCH, local_dir=folder)

    check()
    with hold(folder):
        check()
        exchange(f"fetching the run from {repo_id!r}", download)
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"{repo_id!r} holds no run of a recipe (no {RECIPE} in branch {BRANCH}).")
