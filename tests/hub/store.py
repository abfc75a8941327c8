"""What the test Hub keeps: accounts, objects, and repositories as chains of commits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its content, and whether it is stored as a large file (LFS)."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself stores of a large file."""
        lines = "version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}"
        return "\n".join([*lines, f"size {len(self.content)}", ""]).encode()

    @property
    def oid(self) -> str:
        """The id that git gives it."""
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


Tree = dict[str, Blob]


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: Tree


@dataclass
class Repo:
    """A model repository. A branch or pull request is a name for a commit."""

    name: str
    owner: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add("main", "initial commit", {".gitattributes": Blob(b"", lfs=False)})

    def add(self, ref: str, title: str, tree: Tree) -> Commit:
        """Puts a commit on a ref: from one moment to the next, all of it or nothing."""
        parent = self.refs.get(ref)
        identity = [str(len(self.commits)), parent or "", title]
        identity += [f"{path} {blob.oid}" for path, blob in sorted(tree.items())]
        oid = hashlib.sha1("\n".join(identity).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(tree))
        self.refs[ref] = oid
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a pull request or a commit id."""
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits that lead to a revision, the newest first."""
        chain = []
        commit = self.find(revision)
        while commit is not None:
            chain.append(commit)
            commit = self.commits.get(commit.parent or "")
        return chain

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of a revision, without what every repository starts with."""
        commit = self.find(revision)
        assert commit is not None, f"{self.name} has no revision {revision!r}"
        return {
            path: blob.content for path, blob in commit.tree.items() if path != ".gitattributes"
        }
