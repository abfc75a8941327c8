"""The test Hub itself: what it refuses, so that the tests against it mean something."""

from __future__ import annotations

import hashlib
import json
from http.client import HTTPConnection
from typing import Any, NamedTuple

import pytest

from hub.server import Hub
from hub.store import Blob

NAME = "user/name"
MODELS = f"/api/models/{NAME}"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def repo(server: Hub) -> str:
    """A repository with one file of five bytes; its commit."""
    assert ask(server, "POST", "/api/repos/create", {"name": "name"}).status == 200
    tree = {"a.txt": Blob(b"12345", lfs=False)}
    return server.repos[NAME].add("main", "a file", tree).oid


def ask(
    hub: Hub, method: str, path: str, body: Any = None, token: str = "hf_writer", **headers: str
) -> Reply:
    connection = HTTPConnection(*hub.server_address[:2])
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {token}", **headers} if token else headers
    connection.request(method, path, content, sent)
    response = connection.getresponse()
    return Reply(response.status, dict(response.getheaders()), response.read())


def commit(hub: Hub, *operations: tuple[str, dict[str, Any]], **header: str) -> Reply:
    lines = [("header", {"summary": "change", **header}), *operations]
    body = b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in lines)
    return ask(hub, "POST", f"{MODELS}/commit/main", body)


def test_large_files_must_match_their_hash_and_size(server: Hub) -> None:
    content = b"content"
    oid = hashlib.sha256(content).hexdigest()
    assert ask(server, "PUT", f"/storage/{oid}/7", b"kontent").status == 400
    assert ask(server, "PUT", f"/storage/{oid}/8", content).status == 400
    assert server.objects == {}
    assert ask(server, "PUT", f"/storage/{oid}/7", content).status == 200
    assert server.objects == {oid: content}


def test_a_part_must_be_the_one_that_was_sent(server: Hub) -> None:
    content = b"content"
    storage = f"/storage/{hashlib.sha256(content).hexdigest()}/7"
    etags = [
        ask(server, "PUT", f"{storage}/{number}", part).headers["ETag"]
        for number, part in ((1, b"cont"), (2, b"ent"))
    ]
    parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, start=1)]
    wrong = [parts[0], {**parts[1], "etag": "other"}]
    assert ask(server, "POST", storage, {"parts": wrong}).status == 400
    assert ask(server, "POST", storage, {"parts": parts}).status == 200
    assert list(server.objects.values()) == [content]


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (("lfsFile", {"path": "b", "oid": "0" * 64, "size": 1}), 400),
        (("deletedFile", {"path": "not-there"}), 404),
        (("file", {"path": "../b", "content": ""}), 400),
        (("file", {"path": ".git/config", "content": ""}), 400),
        (("rename", {"path": "b"}), 400),
    ],
)
def test_a_commit_is_made_whole_or_not(server: Hub, repo: str, operation: Any, status: int) -> None:
    good = ("file", {"path": "new", "content": "aGk=", "encoding": "base64"})
    assert commit(server, good, operation).status == status
    assert server.repos[NAME].files() == {"a.txt": b"12345"}
    assert commit(server, good).status == 200
    assert server.repos[NAME].files() == {"a.txt": b"12345", "new": b"hi"}


def test_a_commit_on_an_old_parent_is_refused(server: Hub, repo: str) -> None:
    good = ("file", {"path": "new", "content": "aGk="})
    assert commit(server, good, parentCommit="0" * 40).status == 412
    assert commit(server, good, parentCommit=repo).status == 200


def test_ranges_and_etags(server: Hub, repo: str) -> None:
    path = f"/{NAME}/resolve/main/a.txt"
    whole = ask(server, "GET", path)
    git_id = hashlib.sha1(b"blob 5\x0012345").hexdigest()
    assert (whole.body, whole.headers["ETag"]) == (b"12345", f'"{git_id}"')
    assert whole.headers["X-Repo-Commit"] == repo
    part = ask(server, "GET", path, Range="bytes=1-2")
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"23", "bytes 1-2/5")
    assert ask(server, "GET", path, Range="bytes=3-").body == b"45"
    assert ask(server, "GET", path, Range="bytes=5-").status == 416
    head = ask(server, "HEAD", path)
    assert (head.body, head.headers["Content-Length"]) == (b"", "5")


@pytest.mark.parametrize(
    ("path", "token", "status", "code"),
    [
        ("user/other/resolve/main/a.txt", "hf_writer", 404, "RepoNotFound"),
        (f"{NAME}/resolve/other/a.txt", "hf_writer", 404, "RevisionNotFound"),
        (f"{NAME}/resolve/main/b.txt", "hf_writer", 404, "EntryNotFound"),
        (f"{NAME}/resolve/main/a.txt", "hf_reader", 404, "RepoNotFound"),
        (f"{NAME}/resolve/main/a.txt", "", 401, "RepoNotFound"),
    ],
)
def test_what_is_not_there_or_not_for_you(
    server: Hub, repo: str, path: str, token: str, status: int, code: str
) -> None:
    server.repos[NAME].private = True
    reply = ask(server, "GET", f"/{path}", token=token)
    assert (reply.status, reply.headers.get("X-Error-Code")) == (status, code)


def test_a_gated_model_is_shown_and_not_given(server: Hub, repo: str) -> None:
    server.repos[NAME].gated = True
    assert ask(server, "GET", MODELS, token="hf_reader").status == 200
    reply = ask(server, "GET", f"/{NAME}/resolve/main/a.txt", token="hf_reader")
    assert (reply.status, reply.headers["X-Error-Code"]) == (403, "GatedRepo")


def test_an_unknown_request_is_refused(server: Hub) -> None:
    assert ask(server, "POST", "/api/models/user/name/settings").status == 501
    assert server.count("POST .*/settings 501") == 1
