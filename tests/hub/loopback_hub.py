"""A small Hub on 127.0.0.1 that speaks enough of the protocol for the real client, and misbehaves when asked to.

It shows that our side of the conversation is right as far as huggingface_hub's client and this reading of its protocol
go. The real Hub, Xet transfers, pull requests and true rate limits are not in it.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# Of the tests' user alice.
TOKEN = "hf_ThisIsTheSecretOfAlice0000000000"
READ_TOKEN = "hf_ThisTokenOfAliceMayOnlyRead00000"

LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other"}
# What the Hub stores outside git.
LARGE = re.compile(r"\.(safetensors|bin|png|gif)$")


@dataclass
class Account:
    """Whom a token belongs to; `role` is "write" or "read"."""

    name: str
    role: str = "write"


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha -> path -> content
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.refs.get(revision, revision)]


@dataclass
class Fault:
    """Something that goes wrong with requests whose "METHOD path" matches `pattern`, the first `times` of them.

    Kinds: a status code; "reset" (the connection breaks before an answer), "lost" (the same, after the work was done),
    "cut" (half of the answer's body), "hang" (no answer at all), "spoil" (a commit is stored with another index).
    """

    pattern: str
    kind: int | str
    times: int = 1
    hits: int = 0


class LoopbackHub:
    """Repositories in memory behind two ports: the Hub itself, and the storage that large files are redirected to."""

    def __init__(self):
        self.accounts: dict[str, Account] = {}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.surprises: list[str] = []  # requests that this Hub does not know, and tokens where none belong
        self.closing = threading.Event()
        self.counter = itertools.count()
        self.lock = threading.RLock()
        self.servers = []
        for handler in (HubHandler, StorageHandler):
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads, server.hub = True, self
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.servers.append(server)
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def close(self) -> None:
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo_id: str, changes: dict[str, bytes | None], message: str = "", branch: str = "main") -> str:
        """Add a commit; a content of None deletes."""
        repo = self.repos[repo_id]
        files = dict(repo.commits[repo.refs[branch]]) if branch in repo.refs else {}
        for path, content in changes.items():
            files.pop(path, None) if content is None else files.update({path: content})
        sha = hashlib.sha1(f"{next(self.counter)}".encode()).hexdigest()
        repo.commits[sha], repo.refs[branch] = files, sha
        repo.messages.append(message)
        return sha

    def create(self, repo_id: str, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(private=private)
        self.commit(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repo


class Refusal(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "", body: dict | None = None):
        self.status, self.code, self.message, self.body = status, code, message, body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    routes: list[tuple[str, str, str]] = []  # method, path pattern, name of the handling method

    def log_message(self, *args) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        hub = self.hub = self.server.hub
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        with hub.lock:
            hub.requests.append(f"{self.command} {path}")
            fault = self._fault(path)
        self.cut = fault is not None and fault.kind == "cut"
        self.spoil = fault is not None and fault.kind == "spoil"
        if fault is not None and isinstance(fault.kind, int):
            return self.answer({"error": "a fault was injected"}, fault.kind)
        if fault is not None and fault.kind == "hang":
            self.close_connection = True
            hub.closing.wait(120)
            return None
        if fault is not None and fault.kind == "reset":
            return self._break()
        if fault is not None and fault.kind == "lost":
            self.answer = lambda *args, **kwargs: self._break()
        try:
            with hub.lock:
                self._route(path)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            headers = {name: value for name, value in headers.items() if value}
            self.answer(refusal.body or {"error": refusal.message}, refusal.status, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if (
                fault.hits < fault.times
                and not path.startswith("/faults")
                and re.search(fault.pattern, f"{self.command} {path}")
            ):
                fault.hits += 1
                return fault
        return None

    def _break(self) -> None:
        """Answer with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        raise ConnectionResetError

    def _route(self, path: str) -> None:
        for method, pattern, name in self.routes:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                return getattr(self, name)(**match.groupdict())
        self.hub.surprises.append(f"{self.command} {path}")
        raise Refusal(404, message=f"this Hub knows no {self.command} {path}")

    def answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = dict(headers or {})
        if isinstance(content, bytes) and status == 200 and "Range" in self.headers:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"]).groups()
            end = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data, status = data[int(first) : end + 1], 206
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut:
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)


class StorageHandler(Handler):
    """Where large files are put and fetched. It asks for no token and must be sent none."""

    routes = [("PUT", r"/(?P<sha>\w{64})", "put"), ("GET", r"/(?P<sha>\w{64})", "get")]

    def expect_no_token(self) -> None:
        if "Authorization" in self.headers:
            self.hub.surprises.append("a token was sent to the storage")

    def put(self, sha: str) -> None:
        self.expect_no_token()
        if hashlib.sha256(self.body).hexdigest() != sha:
            raise Refusal(400, message="the content is not what its name says")
        self.hub.blobs[sha] = self.body
        self.answer({})

    def get(self, sha: str) -> None:
        self.expect_no_token()
        self.answer(self.hub.blobs[sha], headers={"ETag": f'"{sha}"'})


REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"


class HubHandler(Handler):
    routes = [
        ("GET", r"/api/agent-harnesses", "harnesses"),
        ("GET", r"/api/agent-harnesses", "nothing"),  # the client asks for it by itself and can do without
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("GET", rf"/api/models/{REPO}/auth-check/write", "check_write"),
        ("GET", rf"/api/models/{REPO}", "info"),
        ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", "info"),
        ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", "tree"),
        ("POST", rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/models/{REPO}/tag/(?P<revision>[^/]+)", "tag"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", r"/lfs-verify", "lfs_verify"),
        ("PUT", r"/faults", "set_faults"),
        ("GET", r"/faults", "get_faults"),
        ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def set_faults(self) -> None:
        """Not of the protocol: lets a client in another process say what is to go wrong."""
        self.hub.faults = [Fault(**fault) for fault in json.loads(self.body)]
        self.answer({})

    def get_faults(self) -> None:
        self.answer([dataclasses.asdict(fault) for fault in self.hub.faults])

    def account(self) -> Account | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return self.hub.accounts.get(token)

    def repo(self, repo_id: str, write: bool = False) -> Repo:
        account, repo = self.account(), self.hub.repos.get(repo_id)
        owner = account is not None and account.name == repo_id.partition("/")[0]
        if repo is None or (repo.private and not owner):
            raise Refusal(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and not (owner and account.role == "write"):
            raise Refusal(403, message="You don't have the rights to write here")
        return repo

    def sha(self, repo: Repo, revision: str) -> str:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise Refusal(404, "RevisionNotFound", "Revision not found")
        return sha

    def harnesses(self) -> None:
        """The client asks once a day which programs may be driving it."""
        self.answer({"standardEnvVars": [], "harnesses": {}})

    def nothing(self) -> None:
        raise Refusal(404, message="Not found")

    def whoami(self) -> None:
        account = self.account()
        if account is None:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        token = {"displayName": "test", "role": account.role}
        self.answer({"name": account.name, "type": "user", "orgs": [], "auth": {"accessToken": token}})

    def validate_yaml(self) -> None:
        _, metadata, _ = json.loads(self.body)["content"].split("---\n", 2)
        data, errors = yaml.safe_load(metadata) or {}, []
        if "license" in data and data["license"] not in LICENSES:
            errors.append({"message": '"license" must be one of ' + ", ".join(sorted(LICENSES))})
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                if (
                    not {"task", "dataset", "metrics"} <= result.keys()
                    or not {"name", "type"} <= result["dataset"].keys()
                ):
                    errors.append({"message": '"model-index" is not complete'})
        answer = {"errors": errors, "warnings": []}
        if self.headers.get("Accept") == "text/plain":
            answer = "; ".join(error["message"] for error in errors).encode()
        self.answer(answer, 400 if errors else 200)

    def create_repo(self) -> None:
        account, wanted = self.account(), json.loads(self.body)
        owner = wanted.get("organization") or (account and account.name)
        repo_id = f"{owner}/{wanted['name']}"
        if account is None or account.role != "write" or owner != account.name:
            raise Refusal(403, message=f"You don't have the rights to create a model under the namespace {owner!r}")
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repos:
            raise Refusal(409, message="You already created this model repo", body={"error": "exists", "url": url})
        self.hub.create(repo_id, private=wanted.get("visibility") == "private")
        self.answer({"url": url, "name": repo_id})

    def check_write(self, repo_id: str) -> None:
        self.repo(repo_id, write=True)
        self.answer({})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repo = self.repo(repo_id)
        sha = self.sha(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        facts = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "siblings": siblings}
        self.answer({"_id": repo_id, **facts, "tags": [], "downloads": 0, "likes": 0})

    def entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if LARGE.search(path):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def tree(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id)
        files = repo.commits[self.sha(repo, revision)]
        folders = sorted({path.rpartition("/")[0] for path in files} - {""})
        entries = [{"type": "directory", "path": path, "oid": git_oid(path.encode())} for path in folders]
        entries += [self.entry(path, content) for path, content in sorted(files.items())]
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        self.answer([entry for entry in entries if recursive or "/" not in entry["path"]])

    def paths_info(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id)
        files = repo.commits[self.sha(repo, revision)]
        paths = parse_qs(self.body.decode())["paths"]
        self.answer([self.entry(path, files[path]) for path in paths if path in files])

    def preupload(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id, write=True)
        there = repo.commits[self.sha(repo, revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            answer = {"path": path, "uploadMode": "lfs" if LARGE.search(path) else "regular", "shouldIgnore": False}
            if path in there:
                entry = self.entry(path, there[path])
                answer["oid"] = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            answers.append(answer)
        self.answer({"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        self.repo(repo_id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.storage}/{wanted['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/lfs-verify"}}
            known = wanted["oid"] in self.hub.blobs
            objects.append(dict(wanted) if known else {**wanted, "actions": actions})
        self.answer({"objects": objects, "transfer": "basic"})

    def lfs_verify(self) -> None:
        wanted = json.loads(self.body)
        if len(self.hub.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, message="not uploaded")
        self.answer({})

    def commit(self, repo_id: str, revision: str) -> None:
        self.repo(repo_id, write=True)
        changes, message = {}, ""
        for line in self.body.splitlines():
            value, key = (entry := json.loads(line))["value"], entry["key"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changes[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                changes[value["path"]] = None
        if self.spoil:
            changes["model_index.json"] = b"{}"
        sha = self.hub.commit(repo_id, changes, message, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None})

    def tag(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id, write=True)
        repo.refs[json.loads(self.body)["tag"]] = self.sha(repo, revision)
        self.answer({})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self.repo(repo_id)
        sha = self.sha(repo, revision)
        headers = {"X-Repo-Commit": sha}
        content = repo.commits[sha].get(path)
        if content is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        if not LARGE.search(path):
            return self.answer(content, headers={**headers, "ETag": f'"{git_oid(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        self.hub.blobs[digest] = content
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self.answer(b"", 302, {**headers, "Location": f"{self.hub.storage}/{digest}"})


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
