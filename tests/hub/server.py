"""A model Hub on loopback that the real client can talk to. It is strict: what does not hash to
what it should, or has another size than announced, is refused; so is every request it does not
know. What it speaks is what huggingface_hub 2.4 asks for, without Xet."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from hub.faults import Fault
from hub.store import Blob, Commit, Repo, Tree

NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
LARGE = (".safetensors", ".png", ".bin", ".model")
PULL_REQUEST = "refs/pr/{}"


class Refusal(Exception):
    """An error reply, with the header that tells the client what it means."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Hub(ThreadingHTTPServer):
    """The server and all it keeps.

    Attributes:
        users: Token -> name of the account.
        readers: Tokens that may not write.
        repos: Name -> repository.
        objects: SHA-256 -> large file.
        part_size: Large files above it are uploaded in parts of this size.
        faults: What will go wrong.
        requests: Every request: method, path, status.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.users = {"hf_writer": "user", "hf_reader": "reader"}
        self.readers = {"hf_reader"}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size = 10**9
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, where: str, **fields: Any) -> Fault:
        """Has the next requests that fit go wrong; see `Fault`."""
        fault = Fault(where, **fields)
        self.faults.append(fault)
        return fault

    def count(self, pattern: str) -> int:
        """How many requests so far fit a pattern, as `"METHOD /path STATUS"`."""
        return sum(re.search(pattern, "{} {} {}".format(*one)) is not None for one in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that serves until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """Stays silent; `Hub.requests` has everything."""

    def do_any(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {unquote(url.path)}"
        with self.server.lock:
            fault = next((one for one in self.server.faults if one.meets(request)), None)
        self.fault = fault
        if fault is not None and fault.kind == "drop" and self._length():
            self.rfile.read(self._length() // 2)
            return self._hang_up()
        self.body = self.rfile.read(self._length())
        if fault is not None and fault.kind == "slow":
            threading.Event().wait(fault.seconds)
        try:
            if fault is not None and fault.kind == "status":
                return self._reply(fault.status, b'{"error": "as asked"}', dict(fault.headers))
            if fault is not None and fault.kind == "corrupt" and self.body:
                self.body = _corrupted(self.body)
            self._route(url.path)
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            self._reply(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def _route(self, path: str) -> None:
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                named = {key: unquote(value) for key, value in match.groupdict().items()}
                with self.server.lock:
                    action(self, **named)
                return
        raise Refusal(501, f"the test Hub does not know {self.command} {path}")

    # -- replies -----------------------------------------------------------------------------------

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.server.requests.append((self.command, self.path, status))
        fault = self.fault
        if fault is not None and fault.kind == "lose_reply":
            return self._hang_up()
        if fault is not None and fault.kind == "corrupt" and not self.body and status < 400:
            body = _corrupted(body)
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault is not None and fault.kind == "drop":
            self.wfile.write(body[: len(body) // 2])
            return self._hang_up()
        self.wfile.write(body)
        return None

    def _json(self, value: object, status: int = 200) -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    # -- who may do what ---------------------------------------------------------------------------

    def _token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" and token else None

    def _user(self) -> str:
        """Who asks."""
        user = self.server.users.get(self._token() or "")
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def _may_write(self, name: str) -> bool:
        user = self._user()
        return self._token() not in self.server.readers and name.partition("/")[0] == user

    def _repo(self, name: str, *, content: bool = False, write: bool = False) -> Repo:
        """A repository that the one who asks may see (may read, may change).

        As on the Hub, a private repository does not exist for others.
        """
        repo = self.server.repos.get(name)
        user = self.server.users.get(self._token() or "")
        if repo is None or (repo.private and user != repo.owner):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and user != repo.owner:
            raise Refusal(403 if user else 401, f"Access to {name} is restricted.", "GatedRepo")
        if write and not self._may_write(name):
            raise Refusal(403, "You don't have the rights to write to this repository.")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # -- accounts and repositories -----------------------------------------------------------------

    def whoami(self) -> None:
        role = "read" if self._token() in self.server.readers else "write"
        auth = {"accessToken": {"role": role, "displayName": "test"}}
        self._json({"type": "user", "name": self._user(), "orgs": [], "auth": auth})

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self._user()}/{asked['name']}"
        if not self._may_write(name):
            raise Refusal(403, "You don't have the rights to create a model under this namespace.")
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repos:
            return self._json({**url, "error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private"
        self.server.repos[name] = Repo(name, self._user(), private=private)
        return self._json(url)

    def create_branch(self, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        if revision in repo.refs:
            raise Refusal(409, f"Reference already exists: {revision}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repo.refs[revision] = self._commit(repo, start).oid
        self._json({})

    def refs(self, name: str) -> None:
        repo = self._repo(name)
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if not ref.startswith("refs/pr/")
        ]
        self._json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        told = {"id": name, "sha": commit.oid, "private": repo.private, "gated": repo.gated}
        card = commit.tree.get("README.md")
        if card is not None:
            told["cardData"] = _metadata(card.content.decode()) or {}
        self._json({**told, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str, path: str = "") -> None:
        repo = self._repo(name)
        tree = self._commit(repo, revision).tree
        below = {file: blob for file, blob in tree.items() if file.startswith(path and path + "/")}
        if path and not below:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        start = len(path) + 1 if path else 0
        shown = {f: b for f, b in below.items() if recursive or "/" not in f[start:]}
        self._json([_described(file, blob) for file, blob in sorted(shown.items())])

    # -- uploading ---------------------------------------------------------------------------------

    def validate_yaml(self) -> None:
        asked = json.loads(self.body)
        try:
            metadata = _metadata(asked["content"])
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        problems = [{"message": "empty or missing yaml metadata in repo card"}]
        return self._json({"errors": [], "warnings": [] if metadata else problems})

    def preupload(self, name: str, revision: str) -> None:
        repo = self._repo(name, write="create_pr" not in self.query)
        tree = self._commit(repo, revision).tree
        files = []
        for file in json.loads(self.body)["files"]:
            path, known = file["path"], tree.get(file["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = None if known is None else known.etag
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def lfs_batch(self, name: str) -> None:
        self._repo(name)
        self._user()
        asked = json.loads(self.body)
        if asked["operation"] != "upload" or asked["hash_algo"] != "sha256":
            raise Refusal(422, "only uploads by sha256 are known here")
        objects = [self._upload_action(name, one["oid"], one["size"]) for one in asked["objects"]]
        self._json({"transfer": "basic", "objects": objects})

    def _upload_action(self, name: str, oid: str, size: int) -> dict[str, Any]:
        told: dict[str, Any] = {"oid": oid, "size": size}
        if oid in self.server.objects:
            return told
        storage = f"{self.server.url}/storage/{oid}/{size}"
        upload: dict[str, Any] = {"href": storage}
        if size > self.server.part_size:
            count = math.ceil(size / self.server.part_size)
            parts = {str(number): f"{storage}/{number}" for number in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(self.server.part_size), **parts}
        verify = {"href": f"{self.server.url}/{name}.git/info/lfs/verify"}
        return {**told, "actions": {"upload": upload, "verify": verify}}

    def put(self, oid: str, size: str) -> None:
        self._store(oid, int(size), self.body)
        self._reply(200)

    def put_part(self, oid: str, size: str, number: str) -> None:
        self.server.parts[oid, int(number)] = self.body
        self._reply(200, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def complete(self, oid: str, size: str) -> None:
        content = b""
        for part in json.loads(self.body)["parts"]:
            piece = self.server.parts[oid, part["partNumber"]]
            if part["etag"].strip('"') != hashlib.md5(piece).hexdigest():
                raise Refusal(400, f"part {part['partNumber']} has another ETag")
            content += piece
        self._store(oid, int(size), content)
        self._json({})

    def _store(self, oid: str, size: int, content: bytes) -> None:
        if len(content) != size:
            raise Refusal(400, f"{len(content)} bytes were sent, {size} announced")
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"the content does not match its sha256 {oid}")
        self.server.objects[oid] = content

    def verify(self, name: str) -> None:
        asked = json.loads(self.body)
        content = self.server.objects.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            raise Refusal(404, f"no object {asked['oid']} of {asked['size']} bytes")
        self._json({})

    def commit(self, name: str, revision: str) -> None:
        as_pull_request = "create_pr" in self.query
        repo = self._repo(name, write=not as_pull_request)
        self._user()
        base = self._commit(repo, revision)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["key"] != "header" or not header["value"]["summary"]:
            raise Refusal(400, "a commit starts with its header")
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != base.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = self._changed(base.tree, operations)
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        ref = PULL_REQUEST.format(number) if as_pull_request else revision
        repo.refs.setdefault(ref, base.oid)
        commit = repo.add(ref, header["value"]["summary"], tree)
        link = f"{self.server.url}/{name}/discussions/{number}" if as_pull_request else None
        url = f"{self.server.url}/{name}/commit/{commit.oid}"
        self._json({"commitUrl": url, "commitOid": commit.oid, "pullRequestUrl": link})

    def _changed(self, tree: Tree, operations: list[dict[str, Any]]) -> Tree:
        """A tree after operations, all of which must be possible."""
        changed = dict(tree)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if re.search(r"^/|(^|/)\.\.?(/|$)|^\.git/", path):
                raise Refusal(400, f"{path!r} is not a path of a repository")
            if operation["key"] == "file":
                changed[path] = Blob(base64.b64decode(value["content"], validate=True), lfs=False)
            elif operation["key"] == "lfsFile":
                content = self.server.objects.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    raise Refusal(400, f"{path}: large file {value['oid']} has not been uploaded")
                changed[path] = Blob(content, lfs=True)
            elif operation["key"] == "deletedFile":
                if changed.pop(path, None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refusal(400, f"unknown operation {operation['key']!r}")
        return changed

    # -- downloading -------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, content=True)
        commit = self._commit(repo, revision)
        blob = commit.tree.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if blob is None:
            headers.update({"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return self._reply(404, b"Entry not found", headers)
        headers.update({"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"})
        content = blob.content
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._reply(200, content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            return self._reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._reply(206, content[first : last + 1], headers)


def _corrupted(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def _metadata(text: str) -> Any:
    """The YAML block that a model card starts with."""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def _described(path: str, blob: Blob) -> dict[str, Any]:
    told = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.lfs:
        size, pointer = len(blob.content), len(blob.pointer)
        told["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": pointer}
    return told


_REPO = f"/api/models/{NAME}"
_STORED = r"/storage/(?P<oid>[0-9a-f]{64})/(?P<size>\d+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create_repo),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", _REPO, _Handler.info),
    ("GET", f"{_REPO}/revision/{REVISION}", _Handler.info),
    ("GET", f"{_REPO}/refs", _Handler.refs),
    ("GET", f"{_REPO}/tree/{REVISION}", _Handler.tree),
    ("GET", f"{_REPO}/tree/{REVISION}/(?P<path>.+)", _Handler.tree),
    ("POST", f"{_REPO}/branch/{REVISION}", _Handler.create_branch),
    ("POST", f"{_REPO}/preupload/{REVISION}", _Handler.preupload),
    ("POST", f"{_REPO}/commit/{REVISION}", _Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", rf"/{NAME}\.git/info/lfs/verify", _Handler.verify),
    ("PUT", _STORED, _Handler.put),
    ("POST", _STORED, _Handler.complete),
    ("PUT", rf"{_STORED}/(?P<number>\d+)", _Handler.put_part),
    ("GET HEAD", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
]
