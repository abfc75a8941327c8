"""`push_to_hub`: a widened model, with all that belongs to it, in one commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, HubError
from ..files import scratch
from ..modules import core_of
from ..version import __version__
from .contents import WEIGHTS, check_secret, contents_of
from .exchange import exchange
from .facts import License, collect_facts

CARD = "README.md"
AUDIT = "audit.json"
_GENERATED = "<!-- Written by fpe_hf; delete this line to keep what you change. -->"


@dataclass(frozen=True)
class Pushed:
    """What has been pushed.

    Attributes:
        repo_id: The repository.
        commit: Id of the commit.
        url: Page of the commit.
        pull_request: Page of the pull request, if one was asked for.
        files: Names of the files, whether they have changed or not.
        deleted: Names of weight files of an earlier push that were removed.
        left_out: Names of the folder's entries that do not belong on the Hub.
    """

    repo_id: str
    commit: str
    url: str
    pull_request: str | None
    files: tuple[str, ...]
    deleted: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Package:
    """Everything that will be pushed.

    Attributes:
        files: Path in the repository -> local file, or content.
        left_out: Names of the folder's entries that will not be pushed.
        message: Message of the commit.
    """

    files: dict[str, Path | bytes]
    left_out: tuple[str, ...]
    message: str

    @property
    def card(self) -> str:
        """The model card."""
        card = self.files[CARD]
        return (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8")


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    processor: Any = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dense: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    commit_message: str | None = None,
    max_shard_size: int | str | None = None,
) -> Pushed:
    """Pushes a widened model to the Hub: weights, config, what is beside them, and a model card.

    All of it arrives in one commit, or nothing does. Before, the files are validated and the
    budget is audited. The folder is only read. Pushing again replaces what has changed; weight
    files of an earlier push that are no longer needed are removed.

    Args:
        model: A widened model, a model of sentence-transformers that holds one, or a folder. Of a
            folder, data, texts and figures are pushed, and code that a config names; pickles, other
            code, hidden files and folders are not, but for modules of sentence-transformers.
        repo_id: `"user/name"`. It is made if it does not exist.
        processor: Tokenizer or processor to save beside a model that is given as an object.
        private: Make a new repository private.
        token: Access token; otherwise the one of `hf auth login` or `HF_TOKEN`.
        revision: Branch to push to. It is made if it does not exist.
        create_pr: Open a pull request instead of changing the main branch.
        dense: Push the stock variant, zeros filled in, which loads without fpe_hf.
        base_model: Hub id of the dense parent, for the card, if not the one that was widened by
            its id; its licence is carried over.
        license: Licence, for the card, if not that of `base_model`.
        commit_message: Message of the commit.
        max_shard_size: Largest weight file of a model given as an object, or of a stock variant;
            transformers' choice otherwise.

    Returns:
        Where it is now.

    Raises:
        ConfigError: The arguments contradict each other.
        CheckpointError: The folder does not hold a widened model, or a damaged one.
        BudgetError: The model breaks an invariant.
        ExportError: With `dense`: there is no stock equivalent.
        HubError: The Hub refused or could not be reached, or a file holds an access token.
    """
    check_destination(repo_id, revision, create_pr)
    with packed(
        model,
        repo_id,
        processor=processor,
        token=token,
        revision=revision,
        dense=dense,
        base_model=base_model,
        license=license,
        commit_message=commit_message,
        max_shard_size=max_shard_size,
    ) as package:
        return _send(package, repo_id, private, token, revision, create_pr)


def check_destination(repo_id: str, revision: str | None, create_pr: bool) -> None:
    """Checks what can be checked of a destination without asking the Hub.

    Raises:
        HubError: `repo_id` cannot be the name of a repository.
        ConfigError: A branch and a pull request are asked for.
    """
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    exchange(f"pushing to {repo_id!r}", lambda: validate_repo_id(repo_id))
    if create_pr and revision not in (None, "main"):
        raise ConfigError(
            f"create_pr=True cannot be combined with revision={revision!r}: pull requests are "
            "opened against the main branch. Drop one of them."
        )


@contextmanager
def packed(
    model: Any,
    repo_id: str,
    *,
    processor: Any = None,
    token: object = None,
    revision: str | None = None,
    dense: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    commit_message: str | None = None,
    max_shard_size: int | str | None = None,
) -> Iterator[Package]:
    """Puts together what `push_to_hub` pushes; the arguments and errors are the same.

    Yields:
        A package whose files exist until the end of the block.
    """
    saving = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with scratch("fpe_hf-push-") as place:
        if isinstance(model, (str, os.PathLike)):
            folder = Path(model)
        else:
            folder = place / "widened"
            whole = core_of(model) is not model  # of sentence-transformers: it writes cards, too
            model.save_pretrained(folder, **({"create_model_card": False} if whole else saving))
            if processor is not None:
                processor.save_pretrained(folder)
        contents = contents_of(folder, token)
        widened = _load(folder)
        base_model = base_model or _parent_of(widened)
        facts = collect_facts(
            widened,
            folder,
            base_model=base_model,
            license=License(license) if license else _license_of(base_model, token),
            dense=dense,
        )
        files: dict[str, Path | bytes] = {**contents.pushed}
        if dense:
            files = {name: file for name, file in files.items() if not WEIGHTS.match(name)}
            files.update(_stock_files(widened, place / "dense", saving))
        files[AUDIT] = facts.audit.to_json().encode()
        if _may_write_card(files.get(CARD)):
            from .card import model_card

            card = model_card(repo_id, facts, revision if _is_branch(revision) else None)
            files[CARD] = f"{card}\n{_GENERATED}\n".encode()
        for name, content in files.items():
            if isinstance(content, bytes):
                check_secret(name, content, token)
        what = "stock variant of the" if dense else "widened"
        message = commit_message or f"Upload {what} {facts.model_class} (fpe_hf {__version__})"
        yield Package(files, contents.left_out, message)


def _load(folder: Path) -> Any:
    """Validates the folder of a widened model, and loads it."""
    from ..checkpoint.validate import validate_checkpoint
    from .loading import from_pretrained

    validate_checkpoint(folder)
    return from_pretrained(folder, dtype="auto")


def _parent_of(widened: Any) -> str | None:
    """The dense parent, as the plan of a model names it."""
    from ..checkpoint.saving import plan_of

    plan = plan_of(widened)
    return None if plan is None else plan.base_model


def _stock_files(widened: Any, folder: Path, saving: dict[str, Any]) -> dict[str, Path | bytes]:
    from ..dense import to_dense

    to_dense(widened).save_pretrained(folder, **saving)
    return {**contents_of(folder).pushed}


def _license_of(base_model: str | None, token: Any) -> License | None:
    """The licence of a model on the Hub, `None` if it cannot be learned: a card states facts."""
    from huggingface_hub import HfApi

    if base_model is None:
        return None
    try:
        data = HfApi(token=token).model_info(base_model).card_data
    except Exception:  # not there, not allowed, not reachable: the push does not depend on it
        return None
    if data is None or not isinstance(data.license, str):
        return None
    return License(data.license, data.license_name, data.license_link, of_base=True)


def _is_branch(revision: str | None) -> bool:
    """Whether a revision is a branch of its own: not the main one, and no pull request."""
    return revision not in (None, "main") and not str(revision).startswith("refs/")


def _may_write_card(card: Path | bytes | None) -> bool:
    """Whether there is no card yet, or one that was written here."""
    if card is None:
        return True
    content = card if isinstance(card, bytes) else card.read_bytes()
    return _GENERATED.encode() in content


# -- sending ---------------------------------------------------------------------------------------


def _send(
    package: Package,
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
) -> Pushed:
    """Sends a package. Every step may be repeated, except opening a pull request."""
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="fpe_hf", library_version=__version__)
    what = f"pushing to {repo_id!r}"

    def prepare() -> str:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and _is_branch(revision):
            api.create_branch(name, branch=revision, exist_ok=True)
        return name

    name = exchange(what, prepare, token=token)
    branch = revision or "main"

    def commit() -> Pushed:
        return _commit(api, package, name, branch, create_pr)

    return exchange(what, commit, token=token, retry=not create_pr)


def _commit(api: Any, package: Package, repo_id: str, branch: str, create_pr: bool) -> Pushed:
    """One commit with all files, on top of what is there now.

    Large files that are on the Hub already are not sent again, and if nothing is left to change
    there is no new commit: so this may be repeated when a reply is lost.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head = api.model_info(repo_id, revision=branch)
    there = [sibling.rfilename for sibling in head.siblings or ()]
    files = dict(package.files)
    if CARD in there and isinstance(files[CARD], bytes) and _is_edited(api, repo_id, head.sha):
        del files[CARD]
    stale = [name for name in there if WEIGHTS.fullmatch(name) and name not in files]
    operations: Sequence[Any] = [
        *(CommitOperationDelete(name) for name in stale),
        *(CommitOperationAdd(name, _as_argument(file)) for name, file in files.items()),
    ]
    info = _as_hub_error(
        lambda: api.create_commit(
            repo_id,
            operations,
            commit_message=package.message,
            revision=branch,
            create_pr=create_pr,
            parent_commit=head.sha,
        )
    )
    return Pushed(
        repo_id=repo_id,
        commit=info.oid,
        url=info.commit_url,
        pull_request=info.pr_url,
        files=tuple(files),
        deleted=tuple(stale),
        left_out=package.left_out,
    )


def _as_argument(file: Path | bytes) -> str | bytes:
    return file if isinstance(file, bytes) else str(file)


def _is_edited(api: Any, repo_id: str, revision: str) -> bool:
    """Whether the card on the Hub is someone's own."""
    with scratch("fpe_hf-card-") as place:
        card = api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=place)
        return not _may_write_card(Path(card))


def _as_hub_error(action: Callable[[], Any]) -> Any:
    """Has what the client says about files be an error of ours.

    Raises:
        HubError: The card's metadata are not accepted, or the Hub refuses a file.
    """
    try:
        return action()
    except ValueError as error:
        if isinstance(error, UnicodeError) or error.__cause__ is not None:
            raise
        raise HubError(f"the Hub does not accept the files: {error}") from error
