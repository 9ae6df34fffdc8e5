"""A hub of datasets on loopback, as far as the library `datasets` asks it."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Repositories = Mapping[str, Mapping[str, Mapping[str, bytes]]]  # name -> revision -> file -> content


@contextmanager
def datasets_hub(repositories: Repositories) -> Iterator[str]:
    """Yield the address of a hub with these datasets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Handler,), {"repositories": repositories}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for name, revisions in self.repositories.items():
            if path.startswith(f"/datasets/{name}/resolve/"):
                revision, _, file = path.removeprefix(f"/datasets/{name}/resolve/").partition("/")
                return self._file(self._revision(revisions, revision), file)
            if path.startswith(f"/api/datasets/{name}"):
                what, _, rest = path.removeprefix(f"/api/datasets/{name}").strip("/").partition("/")
                return self._description(name, self._revision(revisions, rest.partition("/")[0] or "main"), what)
        return self._refuse("RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""

    def _revision(self, revisions, wanted):
        """Return the commit and the files of a revision, which is a name or a commit. None for an unknown revision."""
        commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in revisions}
        return next(((commits[name], revisions[name]) for name in revisions if wanted in (name, commits[name])), None)

    def _file(self, found, file: str) -> None:
        if found is None:
            return self._refuse("RevisionNotFound")
        commit, files = found
        if file not in files:
            return self._refuse("EntryNotFound", commit)
        return self._answer(200, files[file], {"ETag": _etag(files[file]), "X-Repo-Commit": commit})

    def _description(self, name: str, found, what: str) -> None:
        if found is None:
            return self._refuse("RevisionNotFound")
        commit, files = found
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": _etag(content).strip('"')}
            for file, content in files.items()
        ]
        about = {"id": name, "sha": commit, "private": False, "gated": False, "disabled": False, "tags": []}
        about |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in files]}
        return self._answer(200, json.dumps(entries if what == "tree" else about).encode())

    def _refuse(self, code: str, commit: str = "none") -> None:
        self._answer(404, b"{}", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def _answer(self, code: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha1(content).hexdigest()}"'
