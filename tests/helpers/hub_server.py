"""A model hub on the loopback interface, with the part of the protocol that huggingface_hub needs for models.

Datasets are read by the library datasets, in the same way. A model and a dataset do not have the same name here.

It keeps everything in memory: accounts, repositories, branches and commits. A test may break it: `status` answers every
request with an error, and `cut_at` closes the next download after so many bytes.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants

LICENCES = ("apache-2.0", "mit", "other")
LARGE = (".safetensors", ".bin", ".pt")  # files that are uploaded by the protocol of git-lfs


@dataclass
class Account:
    name: str
    role: str = "write"
    organisations: tuple[str, ...] = ()


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """Add a commit with these files, and with all other files as they were."""
        files = self.commits.get(self.branches.get(branch, ""), {}) | files
        self.messages.append(message)
        said = json.dumps([len(self.messages), {path: hashlib.sha1(b).hexdigest() for path, b in files.items()}])
        self.branches[branch] = commit = hashlib.sha1(said.encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **body: object):
        self.status, self.code, self.message, self.body = status, code, message, body


class Hub:
    """The state of the hub. `log` has (method, path, Range header) of each request."""

    def __init__(self) -> None:
        self.accounts = {"secret": Account("me", organisations=("team",)), "reader": Account("me", role="read")}
        self.accounts["other"] = Account("somebody")
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str | None]] = []
        self.status: int | None = None
        self.cut_at: int | None = None
        self.url = ""

    def make(self, name: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        self.repositories[name] = made = Repository(private)
        made.commit("main", {".gitattributes": b""} | (files or {}))
        return made

    def may_write(self, account: Account | None, owner: str) -> bool:
        return account is not None and account.role != "read" and owner in (account.name, *account.organisations)

    # ---- answers: (JSON value) or bytes; account is None without a token

    def answer(self, method: str, path: str, account: Account | None, body: bytes) -> object:
        if path == "/api/whoami-v2":
            if account is None:
                raise Refused(401)
            orgs = [{"name": name, "roleInOrg": "write"} for name in account.organisations]
            token = {"accessToken": {"displayName": "test", "role": account.role}}
            return {"type": "user", "name": account.name, "orgs": orgs, "auth": token}
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            given = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
            if given.get("license", "mit") not in LICENCES:
                raise Refused(400, errors=[{"message": '"license" must be one of the known licences'}])
            return {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            return self.create(account, json.loads(body))
        if match := re.fullmatch(r"/large/(\w+)", path):
            if hashlib.sha256(body).hexdigest() != match[1]:
                raise Refused(400)
            self.large[match[1]] = body
            return {}
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.of(match[1], account, write=True)
            return {"transfer": "basic", "objects": [self.upload_of(one) for one in json.loads(body)["objects"]]}
        if match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self.of(match[1], account)
            commit = self.commit_of(repository, match[2])
            if match[3] not in repository.commits[commit]:
                raise Refused(404, "EntryNotFound")
            return commit, repository.commits[commit][match[3]]
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path):
            return self.of_model(method, match[1], match[2], unquote(match[3] or "main"), account, body)
        raise Refused(404)

    def of_model(
        self, method: str, name: str, what: str | None, revision: str, account: Account | None, body: bytes
    ) -> object:
        repository = self.of(name, account, write=method == "POST" or what == "auth-check")
        if what in (None, "revision"):
            commit = self.commit_of(repository, revision)
            files = [{"rfilename": path} for path in sorted(repository.commits[commit])]
            return {"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": files}
        if what == "auth-check":
            return {}
        if what == "branch":
            if revision in repository.branches:
                raise Refused(409)
            repository.branches[revision] = repository.branches["main"]
            return {}
        if what == "tree":
            revision, _, folder = revision.partition("/")
            files = repository.commits[self.commit_of(repository, revision)]
            there = [path for path in files if path.startswith(f"{folder}/" if folder else "")]
            if not there:
                raise Refused(404, "EntryNotFound")
            sizes = {path: {"size": len(files[path]), "oid": etag_of(path, files[path])} for path in there}
            return [{"type": "file", "path": path, **size} for path, size in sizes.items()]
        commit = self.commit_of(repository, revision)
        if what == "preupload":
            paths = [one["path"] for one in json.loads(body)["files"]]
            return {"files": [self.preupload_of(path, repository.commits[commit]) for path in paths]}
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            header, files = lines[0]["value"], {}
            for line in lines[1:]:
                value = line["value"]
                large = line["key"] == "lfsFile"
                files[value["path"]] = self.large[value["oid"]] if large else base64.b64decode(value["content"])
            made = repository.commit(revision, files, header["summary"])
            return {"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made}
        raise Refused(404)

    def create(self, account: Account | None, given: dict) -> dict:
        if account is None:
            raise Refused(401)
        owner = given["organization"] or account.name
        name = f"{owner}/{given['name']}"
        if not self.may_write(account, owner):
            raise Refused(403, message="You don't have the rights to create a model under this namespace")
        if name in self.repositories:
            raise Refused(409, url=f"{self.url}/{name}")
        self.make(name, private=given.get("visibility") == "private")
        return {"url": f"{self.url}/{name}"}

    def of(self, name: str, account: Account | None, write: bool = False) -> Repository:
        """Return a repository that the account may see. A private one does not show itself to others."""
        repository, owner = self.repositories.get(name), name.partition("/")[0]
        mine = account is not None and owner in (account.name, *account.organisations)
        if repository is None or (repository.private and not mine):
            raise Refused(401 if account is None else 404, "RepoNotFound", "Repository not found")
        if write and not self.may_write(account, owner):
            raise Refused(403, message="Forbidden: pass a token that may write")
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def upload_of(self, wanted: dict) -> dict:
        known = {} if wanted["oid"] in self.large else {"upload": {"href": f"{self.url}/large/{wanted['oid']}"}}
        return {"oid": wanted["oid"], "size": wanted["size"], **({"actions": known} if known else {})}

    def preupload_of(self, path: str, files: dict[str, bytes]) -> dict:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        oid = etag_of(path, files[path]) if path in files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def etag_of(path: str, content: bytes) -> str:
    """Return the SHA-256 of a large file, and the hash that git gives to a small one."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def respond(self) -> None:
        path, hub = urlsplit(self.path).path, self.hub
        hub.log.append((self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        try:
            if hub.status is not None:
                raise Refused(hub.status)
            if token and token not in hub.accounts:
                raise Refused(401, message="Invalid credentials in Authorization header")
            found = hub.answer(self.command, path, hub.accounts.get(token), body)
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self.send(refused.status, json.dumps({"error": refused.message} | refused.body).encode(), headers)
            return
        if isinstance(found, tuple):
            self.send_file(path, *found)
        else:
            self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def send_file(self, path: str, commit: str, content: bytes) -> None:
        headers = {"ETag": f'"{etag_of(path, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start is not None:
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
            content = content[int(start[1]) :]
        self.send(200 if start is None else 206, content, headers)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "ETag" in headers and self.hub.cut_at is not None and self.hub.cut_at < len(content):
            content, self.hub.cut_at = content[: self.hub.cut_at], None
            self.close_connection = True
        self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves on a free port of the loopback interface until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def address(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub takes for the only one, an empty cache, and the login of `me`."""
    for name, value in {"HF_HUB_CACHE": tmp_path / "cache", "HF_TOKEN_PATH": tmp_path / "token"}.items():
        monkeypatch.setattr(constants, name, str(value))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with running_hub() as made:
        address(monkeypatch, made.url)
        yield made
