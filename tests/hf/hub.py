"""A stand-in of the model hub: a real HTTP server with as much of its API as its client needs to write and to read.

Repositories are made, files come as git's (in the commit) or through LFS (weights, by a PUT of their own), and are read
back by revision. Who writes needs the token.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Holds repositories in memory.

    Attributes:
        repositories: name -> path -> bytes.
        private: name -> whether it was made so.
        asked: what was requested, ``METHOD path``.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.private, self.lfs, self.asked = {}, {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self._chunks() if chunked else self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        writes = self.command in ("POST", "PUT") and not path.startswith("/lfs/") and "paths-info" not in path
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if parts[0] == "lfs":
            self.server.lfs[parts[1]] = body
            return self._send(200, {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch(json.loads(body))
        if parts[:2] == ["api", "models"]:
            return self._of_model("/".join(parts[2:4]), parts[4:], body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        return self._send(404, {"error": f"no such path {path}"})

    def _create(self, wanted):
        name = f"{wanted.get('organization') or 'ann'}/{wanted['name']}"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, {})
        self.server.private.setdefault(name, wanted.get("private") or wanted.get("visibility") == "private")
        return self._send(status, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _of_model(self, name, rest, body):
        files = self.server.repositories.get(name)
        if files is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        action = rest[0] if rest else "revision"
        if action == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": modes})
        if action == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                if entry["key"] == "lfsFile":
                    files[entry["value"]["path"]] = self.server.lfs[entry["value"]["oid"]]
            return self._send(200, {"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        if action == "tree":
            found = [
                {"type": "file", "path": path, "size": len(data), "oid": _sha(data)} for path, data in files.items()
            ]
            return self._send(200, found)
        siblings = [{"rfilename": path} for path in files]
        return self._send(200, {"id": name, "sha": COMMIT, "siblings": siblings, "private": True, "tags": []})

    def _lfs_batch(self, wanted):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}}
            for each in wanted["objects"]
        ]
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _file(self, name, path):
        data = self.server.repositories.get(name, {}).get(path)
        if data is None:
            code = "EntryNotFound" if name in self.server.repositories else "RepoNotFound"
            return self._send(404, {"error": code}, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
        return self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha(data)}"'})

    def _send(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data


def _sha(data):
    return hashlib.sha256(data).hexdigest()


@contextmanager
def hub():
    """Serve until the block ends."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
