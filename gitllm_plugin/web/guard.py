"""What reaches the page's server: requests of its own page and of programs, of a bounded size, about uploads alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Collection, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from gitllm_plugin.common.web_requests import App, Body, Receive, Refused, Scope, Send, check_sender, replayed
from gitllm_plugin.web.limits import MOST_BYTES, MOST_CHARACTERS, MOST_KEPT, MOST_UPLOADED

_ASSETS = ("/assets/", "/static/", "/svelte/")
_API = "/gradio_api"
# What the page and Gradio's client use; not what fetches from other hosts, edits the page or goes around the queue.
_ROUTES = (
    *("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(f"{_API}/{name}" for name in ("info", "info/", "startup-events", "queue/join", "queue/data", "cancel", "reset")),
    *(f"{_API}/{name}" for name in ("upload", "upload_progress", "app_id", "token", "user", "login_check")),
    f"{_API}/run/predict",  # a click on an example; what waits in the queue is not asked for by it
)
_BELOW = (*_ASSETS, f"{_API}/heartbeat/", f"{_API}/file=", f"{_API}/call/", "/pwa_icon")
_CLOSED = (f"{_API}/call/v2", f"{_API}/file=http", f"{_API}/file=//")
_CALLS = (f"{_API}/queue/join", f"{_API}/call/", f"{_API}/run/")

_UPLOAD = f"{_API}/upload"
_TOO_LARGE = (
    f"The request is too large: at most {MOST_BYTES:,} bytes are taken, of a picture {MOST_UPLOADED:,}, of a question "
    f"{MOST_CHARACTERS:,} characters."
)


class Guard:
    """Stands in front of a server of ASGI.

    Args:
        app: the server.
        folder: where uploads are; no other file may be named in a request.
        hosts: names that requests may be for; None: any.
    """

    def __init__(self, app: App, folder: Path, hosts: Collection[str] | None) -> None:
        self.app = app
        self.folder = folder
        self.hosts = hosts
        self.uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        # Gradio would believe what a proxy tells, and there is none.
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        headers = [pair for pair in headers if not pair[0].startswith((b"x-forwarded", b"forwarded"))]
        scope = {**scope, "headers": headers}
        body = Body(receive, MOST_BYTES, _TOO_LARGE)
        try:
            check_sender(scope, self.hosts)
            check_route(scope["path"])
            if scope["path"] == _UPLOAD:
                await self._upload(scope, body, send)
                return
            body.check_length(headers)
            content = await body.read()
            if scope["method"] == "POST" and scope["path"].startswith(_CALLS):
                check_files(content, self.folder)
        except Refused as refused:
            await body.leave(headers)
            await _tell(refused, send)
            return
        await self.app(scope, replayed(content, receive), send)

    async def _upload(self, scope: Scope, body: Body, send: Send) -> None:
        body.most = MOST_UPLOADED + 2**20
        length = body.check_length(scope["headers"])
        if await asyncio.to_thread(_size_below, self.folder) + length > MOST_KEPT:
            raise Refused(507, f"{MOST_KEPT:,} bytes of uploads are kept; they are deleted within the hour.")
        started = False

        async def send_if_whole(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if body.cut is None:
                started = True
                await send(message)

        self.uploading += 1
        try:
            await self.app(scope, body, send_if_whole)
        except Exception:
            if body.cut is None:
                raise
        finally:
            self.uploading -= 1
            if not self.uploading:
                await asyncio.to_thread(_remove_files_in, self.folder)
        if body.cut is not None and not started:
            raise body.cut


def check_route(path: str) -> None:
    """Refuse routes that the page does not use.

    Raises:
        Refused: there is nothing.
    """
    known = path in _ROUTES or path.startswith(_BELOW)
    if not known or path.startswith(_CLOSED) or "/../" in f"{path}/":
        raise Refused(404, "There is nothing here.")


def check_files(body: bytes, folder: Path) -> None:
    """Refuse a question about a file that was not uploaded, or about an address.

    Args:
        body: of the request, JSON.
        folder: the uploads'.

    Raises:
        Refused: it is no JSON, or names such a file.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The request is no JSON.") from error
    for path in _paths(content):
        try:
            real = Path(os.path.realpath(path))
            inside = real.is_relative_to(os.path.realpath(folder)) and real.is_file()
        except (ValueError, OSError):  # no name of a file
            inside = False
        if not inside:
            raise Refused(403, f"{path[:200]} is no upload, or was deleted: upload the picture (again).")


def _paths(content: Any) -> Iterator[str]:
    """Find what a request names as files; without recursion, which its depth could exhaust."""
    left = [content]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if isinstance(node.get("path"), str):
                yield node["path"]
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _size_below(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # just deleted
                continue
    return total


def _remove_files_in(folder: Path) -> None:
    """Remove what uploads that were not completed have left; complete ones are in folders of their own."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not path.is_dir():
                path.unlink(missing_ok=True)


async def _tell(refused: Refused, send: Send) -> None:
    body = json.dumps({"detail": str(refused)}).encode()  # which Gradio's page shows
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the request is not read
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
