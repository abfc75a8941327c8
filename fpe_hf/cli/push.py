"""`fpe-hf push`: from a folder to the Hub, with a model card."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Token, WidenedFolder
from .tables import printable, working


def push(
    folder: WidenedFolder,
    repo_id: Annotated[str, typer.Argument(help="Where to push it: user/name.", metavar="REPO")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch to push to; made if it does not exist. [default: main]"),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of changing main.")
    ] = False,
    token: Token = None,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense", help="Push the stock model, zeros filled in, which loads without fpe_hf."
        ),
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id of the dense parent, for the card.", metavar="REPO"),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Licence, for the card. [default: that of --base-model]"),
    ] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and the files; push nothing.")
    ] = False,
) -> None:
    """Pushes a widened model to the Hub.

    Everything that belongs to it arrives in one commit. The folder is validated and audited first,
    and only read. A model card is written from the facts, unless the folder has a README.md of its
    own.
    """
    from ..hub.push import check_destination, packed, push_to_hub

    if dry_run:
        check_destination(repo_id, revision, create_pr)
        with packed(
            folder,
            repo_id,
            token=token,
            revision=revision,
            dense=dense,
            base_model=base_model,
            license=license,
        ) as package:
            typer.echo(printable(package.card))
            typer.echo(printable("Files: " + ", ".join(sorted(package.files))))
            _say_left_out(package.left_out)
        return
    with working(f"Pushing to {repo_id}"):
        pushed = push_to_hub(
            folder,
            repo_id,
            private=private or None,
            token=token,
            revision=revision,
            create_pr=create_pr,
            dense=dense,
            base_model=base_model,
            license=license,
            commit_message=message,
        )
    typer.echo(f"Pushed {len(pushed.files)} files: {pushed.pull_request or pushed.url}")
    if pushed.deleted:
        typer.echo(printable("Removed there: " + ", ".join(pushed.deleted)))
    _say_left_out(pushed.left_out)


def _say_left_out(names: tuple[str, ...]) -> None:
    if names:
        typer.echo(printable("Left out: " + ", ".join(names)))
