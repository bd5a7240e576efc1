"""A small Hub on loopback: enough of the protocol for the real `huggingface_hub` client to push to and load from.

    with HubServer() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(cache_folder)})
        hub.repositories["user/name"].files()          # path -> bytes, after the pushes

Repositories, commits and large files live in memory. Writing needs any bearer token, as on the real Hub.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

_LARGE = 1 << 10  # bytes; binary files above it are sent as large files (LFS)


class Repository:
    """The commits of one model repository: `(hash, summary, {path: bytes})`, oldest first."""

    def __init__(self, name):
        self.name = name
        self.commits = []
        self.commit("initial commit", {})

    def commit(self, summary, files):
        parent = self.commits[-1][0] if self.commits else ""
        digest = hashlib.sha1(f"{self.name}{parent}{summary}{len(self.commits)}".encode()).hexdigest()
        self.commits.append((digest, summary, files))
        return digest

    def find(self, revision="main"):
        """The commit that `revision` ("main" or a hash) names, or `None`."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def files(self, revision="main"):
        return self.find(revision)[2]


class _Failure(Exception):
    """An answer with an error status; the client tells errors apart by `code`."""

    def __init__(self, status, code, message="", **headers):
        super().__init__(message or code)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": str(self), **headers}


def _blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """Context manager; `url` is the endpoint while it runs."""

    def __init__(self):
        self.repositories = {}  # "user/name" -> Repository
        self.large_files = {}  # sha256 -> bytes
        self.requests = []  # "METHOD /path" of everything that was asked
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache):
        """Variables that send a Python process to this Hub, with `cache` as its cache folder."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_TOKEN": "hf_test",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state = None

    # (method, pattern, name of the function); "main" is the only branch
    routes = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "large_file_batch"),
        ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", "large_file_put"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer("GET")

    do_HEAD = do_GET

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def do_DELETE(self):
        self.answer("DELETE")

    def answer(self, method):
        self.hub = self.server_state
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.read_body()
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        try:
            for allowed, pattern, function in self.routes:
                found = re.fullmatch(pattern, url.path)
                if found and allowed == method:
                    # as with signed addresses of a store, large files need no token
                    if method not in ("GET", "PUT") and "authorization" not in self.headers:
                        raise _Failure(401, "Unauthorized")
                    arguments = {name: unquote(value) for name, value in found.groupdict().items() if value}
                    return getattr(self, function)(**arguments)
            raise _Failure(404, "NotFound", f"no such route: {method} {url.path}")
        except _Failure as failure:
            self.send({"error": str(failure)}, failure.status, failure.headers)

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, name):
        if name not in self.hub.repositories:
            raise _Failure(404, "RepoNotFound", "Repository not found")
        return self.hub.repositories[name]

    def revision(self, repo, revision):
        found = self.repository(repo).find(revision)
        if found is None:
            raise _Failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def whoami(self):
        self.send({"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_card(self):
        self.send({"errors": [], "warnings": []})

    def create(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if name in self.hub.repositories:
            return self.send({"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409)
        self.hub.repositories[name] = Repository(name)
        self.send({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def delete(self):
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.repository(name)
        del self.hub.repositories[name]
        self.send({})

    def info(self, repo, revision="main"):
        commit, _, files = self.revision(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.send({"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def refs(self, repo):
        head = self.repository(repo).find()[0]
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": head}
        self.send({"branches": [branch], "converts": [], "tags": []})

    def entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
        if self.is_large(path, len(content), content[:512]):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def tree(self, repo, revision, path=""):
        files = self.revision(repo, revision)[2]
        prefix = path.rstrip("/") + "/" if path else ""
        inside = {name: content for name, content in files.items() if name.startswith(prefix)}
        if path and not inside:
            raise _Failure(404, "EntryNotFound", f"{path} does not exist on {revision}")
        folders = {str(folder) for name in inside for folder in PurePosixPath(name).parents if folder.name}
        folders = [name for name in folders if name.startswith(prefix)]
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [{"type": "directory", "path": name, "size": 0, "oid": _blob_id(name.encode())} for name in folders]
        entries += [self.entry(name, content) for name, content in inside.items()]
        if not recursive:
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        self.send(sorted(entries, key=lambda entry: entry["path"]))

    def paths_info(self, repo, revision):
        files = self.revision(repo, revision)[2]
        asked = json.loads(self.body)["paths"]
        self.send([self.entry(path, files[path]) for path in asked if path in files])

    @staticmethod
    def is_large(path, size, sample):
        return size > _LARGE and (path.endswith((".safetensors", ".bin")) or b"\0" in sample)

    def preupload(self, repo, revision):
        files = self.revision(repo, revision)[2]
        answers = []
        for file in json.loads(self.body)["files"]:
            large = self.is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = files.get(file["path"])
            oid = None
            if known is not None:
                oid = hashlib.sha256(known).hexdigest() if large else _blob_id(known)
            mode = "lfs" if large else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send({"files": answers})

    def commit(self, repo, revision):
        parent, _, files = self.revision(repo, revision)
        files = dict(files)
        summary = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            path = value.get("path", "")
            if key == "header":
                summary = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise _Failure(412, "PreconditionFailed", "A commit has happened since")
            elif key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise _Failure(400, "BadRequest", f"the large file of {path} was not uploaded")
                files[path] = self.hub.large_files[value["oid"]]
            elif key == "deletedFile":
                files.pop(path)
            elif key == "deletedFolder":
                files = {
                    name: content for name, content in files.items() if not name.startswith(path.rstrip("/") + "/")
                }
        commit = self.repository(repo).commit(summary, files)
        self.send({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    def large_file_batch(self, repo):
        self.repository(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large_files:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/large/{wanted['oid']}", "header": {}}}
            objects.append(answer)
        self.send({"transfer": "basic", "objects": objects})

    def large_file_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Failure(400, "BadRequest", "content and name differ")
        self.hub.large_files[oid] = self.body
        self.send({})

    def resolve(self, repo, revision, path):
        commit, _, files = self.revision(repo, revision)
        at = {"X-Repo-Commit": commit}
        if path not in files:
            raise _Failure(404, "EntryNotFound", "Entry not found", **at)
        content = files[path]
        entry = self.entry(path, content)
        self.send(content, headers={"ETag": f'"{entry.get("lfs", entry)["oid"]}"', **at})


__all__ = ["HubServer", "Repository"]
