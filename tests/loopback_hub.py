"""A Hub on loopback: as much of the Hub's HTTP API as huggingface_hub and datasets need to push and pull models, and to
download and stream data sets; and faults.

Repositories live in memory as they do in git: commits hold files by name, branches and tags point at commits, and large
files are stored once by their SHA-256 (LFS), at an address of their own. Data sets are called `datasets/org/name`.
Every request is recorded. `fault` may answer any of them in another way.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_CanaryCanaryCanaryCanaryCanaryCanary"
ACCOUNT = "tester"


@dataclass
class File:
    """What a commit holds under a name."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """The hash that the Hub knows a file by: SHA-256 of a large one, else that of git."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """The repository of a model or data set."""

    private: bool
    gated: bool = False
    """Nobody has access to its files."""
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        text = f"{len(self.commits)} {branch} {message} {sorted((name, file.oid) for name, file in files.items())}"
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.messages.append(message)
        return commit

    def files(self, revision: str) -> dict[str, File] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass(frozen=True)
class Request:
    """What came, without its body."""

    method: str
    path: str
    sent: int
    """Bytes of the body."""
    range: str = ""
    """The bytes that were asked for, if not all: `bytes=3-7`."""


@dataclass(frozen=True)
class Fault:
    """An answer other than the right one: a status, or none and the connection is cut, before or after the work."""

    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    seconds: float = 0.0
    """How long to wait first."""
    sent: int = 0
    """Without a status, and after the work: how many bytes of its content are sent before the connection is cut."""


class LoopbackHub:
    """The server; a context manager. `url` goes into HF_ENDPOINT, TOKEN into HF_TOKEN."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.writers = {ACCOUNT}
        self.fault: Callable[[int, Request], Fault | None] = lambda number, request: None
        self.lock = threading.RLock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:  # the client was killed, which tests do
                    self.close_connection = True

            def log_message(self, format: str, *arguments: Any) -> None:
                """Requests are recorded instead."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                hub.answer(self, body)

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"  # another host, to which no token is sent

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def sent(self) -> int:
        """Bytes of files that were sent: as large files, and in commits."""
        counted = [request for request in self.requests if request.method == "PUT" or "/commit/" in request.path]
        return sum(request.sent for request in counted)

    def environment(self, **more: str) -> dict[str, str]:
        """What a process needs to take this for the Hub. Without Xet, whose storage speaks another protocol."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **more}

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        request = Request(handler.command, handler.path, len(body), handler.headers.get("Range", ""))
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
        fault = self.fault(number, request)
        if fault:
            time.sleep(fault.seconds)
        status, content, headers = 200, b"", dict[str, str]()
        if fault is None or fault.after:
            with self.lock:
                status, content, headers = self.respond(request, handler.headers.get("Authorization"), body)
        if status == 200 and request.range and "Accept-Ranges" in headers:
            status, content, headers = _part(content, request.range, headers)
        if fault is not None:
            if fault.status is None:
                handler.close_connection = True
                if fault.sent:
                    self.send(handler, status, headers, content, upto=fault.sent)
                handler.connection.close()
                return
            status, headers = fault.status, {"X-Error-Message": fault.message, **fault.headers}
            content = json.dumps({"error": fault.message}).encode()
        self.send(handler, status, headers, content)

    def send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        *,
        upto: int | None = None,
    ) -> None:
        """The answer, or so many bytes of its content."""
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content[:upto])
            handler.wfile.flush()

    def respond(self, request: Request, authorization: str | None, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """The right answer: status, content, headers."""

        def said(value: Any, status: int = 200, code: str = "") -> tuple[int, bytes, dict[str, str]]:
            headers = {"Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {})
            return status, json.dumps(value).encode(), headers

        url = urlsplit(request.path)
        parts = [unquote(part) for part in url.path.split("/") if part]
        known = authorization == f"Bearer {TOKEN}"
        if request.method == "PUT":  # a signed address, which needs no token
            self.large[parts[-1]] = body
            return (200, b"", {}) if hashlib.sha256(body).hexdigest() == parts[-1] else (400, b"", {})
        if parts[:1] == ["lfs"]:
            if authorization:
                return said({"error": "a token came to where it does not belong"}, 400)
            content = self.large[parts[-1]]
            return 200, content, {"ETag": f'"{parts[-1]}"', "Accept-Ranges": "bytes"}
        if authorization and not known:
            return said({"error": "Invalid credentials in Authorization header"}, 401)
        if parts[:2] == ["api", "whoami-v2"]:
            return said(
                {"type": "user", "name": ACCOUNT, "orgs": []} if known else {"error": "no"}, 200 if known else 401
            )
        if parts[:2] == ["api", "validate-yaml"]:
            return said(*_validated(json.loads(body)["content"]))
        if parts[:3] == ["api", "repos", "create"]:
            wanted = json.loads(body)
            owner = wanted["organization"] or ACCOUNT
            name = f"{owner}/{wanted['name']}"
            if not known or owner not in self.writers:
                return said({"error": f"You don't have the rights to create a model under {owner}"}, 403)
            if name in self.repositories:
                return said({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
            self.repositories[name] = Repository(wanted.get("visibility") == "private" or bool(wanted.get("private")))
            self.repositories[name].commit("main", {".gitattributes": File(b"*.safetensors lfs\n", False)}, "initial")
            return said({"url": f"{self.url}/{name}"})

        asked, kind = parts[0] == "api", ""
        parts = parts[2:] if parts[:2] == ["api", "models"] else parts[asked:]
        if parts[0] == "datasets":
            kind, parts = "datasets/", parts[1:]
        names, rest = parts[:2], parts[2:]
        name = kind + "/".join(names).removesuffix(".git")
        repository = self.repositories.get(name)
        if repository is None or (repository.private and not known):
            return said({"error": "Repository not found"}, 404 if known else 401, "RepoNotFound")
        action, rest = (rest[0], rest[1:]) if rest else ("revision", ["main"])
        if request.method == "POST" and action not in ("paths-info",) and (not known or names[0] not in self.writers):
            return said({"error": "Forbidden: you may not write here"}, 403)
        if action == "info":  # /info/lfs/objects/batch
            return said(self._lfs_batch(json.loads(body)))
        if action == "branch":
            branch = "/".join(rest)
            if branch in repository.branches:
                return said({"error": "Reference already exists"}, 409)
            repository.branches[branch] = repository.branches[json.loads(body).get("startingPoint", "main")]
            return said({})
        revision, rest = (rest[0], rest[1:]) if rest else ("main", [])
        files = repository.files(revision)
        if files is None:
            return said({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        commit = repository.branches.get(revision, revision)
        if action == "revision":
            siblings = [{"rfilename": file} for file in files]
            known_by = {"id": name.removeprefix(kind), "sha": commit, "private": repository.private}
            return said(known_by | {"siblings": siblings})
        if action == "tree":
            below = "/".join(rest)
            if below and not any(file.startswith(f"{below}/") for file in files):
                return said({"error": f"{below} does not exist on {revision}"}, 404, "EntryNotFound")
            recursive = parse_qs(url.query).get("recursive") == ["true"]
            return said(_tree(files, below, recursive=recursive))
        if action == "paths-info":
            paths = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            return said([entry for entry in _tree(files, "", recursive=True) if entry["path"] in paths])
        if action == "preupload":
            return said({"files": [_upload_mode(entry, files) for entry in json.loads(body)["files"]]})
        if action == "commit":
            header = json.loads(body.splitlines()[0])["value"]
            if header.get("parentCommit", commit) != commit:
                return said({"error": "The parent commit is not the newest one"}, 412)
            return said(self._commit(name, repository, revision, files, body))
        if action == "resolve":
            file = files.get("/".join(rest))
            if repository.gated:
                return said({"error": "Access to it is restricted"}, 403 if known else 401, "GatedRepo")
            if file is None:
                status, content, headers = said({"error": "Entry not found"}, 404, "EntryNotFound")
                return status, content, headers | {"X-Repo-Commit": commit}
            headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if file.large:
                self.large[file.oid] = file.content
                headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
                return 302, b"", headers | {"Location": f"{self.storage}/lfs/{file.oid}"}
            return 200, file.content, headers
        return said({"error": f"{request.method} {request.path} is not spoken here"}, 404)

    def _lfs_batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where to send what is not stored yet."""
        objects = []
        for entry in wanted["objects"]:
            missing = entry["oid"] not in self.large
            actions = {"actions": {"upload": {"href": f"{self.url}/lfs/{entry['oid']}"}}} if missing else {}
            objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
        return {"transfer": "basic", "objects": objects}

    def _commit(
        self, name: str, repository: Repository, branch: str, files: dict[str, File], body: bytes
    ) -> dict[str, Any]:
        files, message = dict(files), ""
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
                case "lfsFile":
                    files[value["path"]] = File(self.large[value["oid"]], large=True)
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.commit(branch, files, message)
        return {"commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}", "success": True}


def _validated(card: str) -> tuple[dict[str, Any], int]:
    """The check of a card's metadata: it is a mapping, and the licence is one of a list."""
    parts = card.split("---\n", 2)
    try:
        metadata = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return {"errors": [{"message": "no YAML"}], "warnings": []}, 400
    if not isinstance(metadata, dict):
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}, 200
    if metadata.get("license", "mit") not in ("mit", "apache-2.0", "cc-by-4.0"):
        return {"errors": [{"message": '"license" must be one of [mit, apache-2.0, cc-by-4.0]'}], "warnings": []}, 400
    return {"errors": [], "warnings": []}, 200


def _entry(name: str, file: File) -> dict[str, Any]:
    large = {"lfs": {"oid": file.oid, "size": len(file.content), "pointerSize": 134}} if file.large else {}
    return {"type": "file", "path": name, "size": len(file.content), "oid": file.oid, **large}


def _tree(files: dict[str, File], below: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders in a folder ("": the root), or anywhere below it."""
    start = f"{below}/" if below else ""
    inside = {name: file for name, file in files.items() if name.startswith(start)}
    folders = {name[:place] for name in inside for place in range(len(start), len(name)) if name[place] == "/"}
    found: list[dict[str, Any]] = [
        {"type": "directory", "path": name, "size": 0, "oid": _oid(name)} for name in sorted(folders)
    ]
    found += [_entry(name, file) for name, file in sorted(inside.items())]
    return [entry for entry in found if recursive or "/" not in entry["path"][len(start) :]]


def _oid(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def _part(content: bytes, wanted: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """The answer to a request for a range of bytes: `bytes=3-7`, or `bytes=3-`."""
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
    if start > end:
        return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
    return 206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"}


def _upload_mode(entry: dict[str, Any], files: dict[str, File]) -> dict[str, Any]:
    """Large files go to the LFS store. What is there already is known by its hash."""
    path = entry["path"]
    mode = "lfs" if path.endswith((".safetensors", ".png")) else "regular"
    there = {"oid": files[path].oid} if path in files else {}
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, **there}
