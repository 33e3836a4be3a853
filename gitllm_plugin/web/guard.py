"""What reaches the page's server: requests of its own page and of programs of this machine, of a bounded size.

A page in a browser may be any host's: it can send requests to 127.0.0.1, and by a name that it lets point there
(DNS rebinding) also read the answers. Both are told by headers that a page cannot set.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gitllm_plugin.web.limits import MOST_BYTES, MOST_CHARACTERS, MOST_KEPT, MOST_UPLOADED

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOSTS = ("127.0.0.1", "localhost", "::1")

_ASSETS = ("/assets/", "/static/", "/svelte/")
_API = "/gradio_api"
# What the page and Gradio's client use; not what fetches from other hosts, edits the page or goes around the queue.
_ROUTES = (
    *("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(f"{_API}/{name}" for name in ("info", "info/", "startup-events", "queue/join", "queue/data", "cancel", "reset")),
    *(f"{_API}/{name}" for name in ("upload", "upload_progress", "app_id", "token", "user", "login_check")),
)
_BELOW = (*_ASSETS, f"{_API}/heartbeat/", f"{_API}/file=", f"{_API}/call/", "/pwa_icon")
_CALLS = (f"{_API}/queue/join", f"{_API}/call/")

_SLOWEST = 30.0
"""Seconds without a byte of a request that is not complete."""


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        reason: a sentence.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Guard:
    """Stands in front of a server of ASGI.

    Args:
        app: the server.
        folder: where uploads are; no other file may be named in a request.
    """

    def __init__(self, app: App, folder: Path):
        self.app = app
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        try:
            check_sender(scope["method"], scope["path"], headers)
            check_route(scope["path"])
            receive = await self._bounded(scope, headers, receive)
        except Refused as refused:
            await _tell(refused, send)
            return
        # Gradio would believe what a proxy tells, and there is none.
        kept = [(name, value) for name, value in headers if not name.startswith((b"x-forwarded", b"forwarded"))]
        await self.app({**scope, "headers": kept}, receive, send)

    async def _bounded(self, scope: Scope, headers: list[tuple[bytes, bytes]], receive: Receive) -> Receive:
        uploads = scope["path"] == f"{_API}/upload"
        most = MOST_UPLOADED + 2**20 if uploads else MOST_BYTES
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise _too_large(most)
        if uploads and await asyncio.to_thread(_size_below, self.folder) + int(length) > MOST_KEPT:
            raise Refused(507, f"{MOST_KEPT:,} bytes of uploads are kept; they are deleted within the hour.")
        if uploads:
            return _counted(receive, most)
        body = b""
        if scope["method"] not in ("GET", "HEAD"):
            body = await _read(_counted(receive, most))
            if scope["path"].startswith(_CALLS):
                check_files(body, self.folder)
        return _replayed(body, receive)


def check_sender(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse what another host's page sends, whatever it is called.

    Raises:
        Refused: saying what was given.
    """
    given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or _hostname(f"//{given['host']}") not in HOSTS:
        shown = ", ".join(value.decode("latin-1")[:100] for value in hosts) or "none"
        raise Refused(403, f"The header Host is {shown}; this page is served as {', '.join(HOSTS)} alone.")
    own = f"http://{given['host']}".lower()
    origin = given.get("origin")
    if origin is not None and origin.lower() != own:
        raise Refused(403, f"The request comes from {origin[:100]}; requests of other pages are refused.")
    if method in ("GET", "HEAD") and path == "/":
        return  # a link or a bookmark, which reads nothing
    referer = given.get("referer")
    if referer is not None and not f"{referer.lower()}/".startswith(f"{own}/"):
        raise Refused(403, f"The request comes from {referer[:100]}; requests of other pages are refused.")
    if given.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(403, "The request comes from another page; requests of other pages are refused.")


def check_route(path: str) -> None:
    """Refuse routes that the page does not use.

    Raises:
        Refused: there is nothing.
    """
    known = path in _ROUTES or path.startswith(_BELOW)
    if not known or "/../" in f"{path}/" or path.startswith((f"{_API}/file=http", f"{_API}/file=//")):
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
            inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
        except ValueError:  # a null byte
            inside = False
        if not inside:
            raise Refused(403, f"{path[:200]} was not uploaded here: upload the picture, and name what that gives.")


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


def _hostname(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if not parts.path and parts.username is None else None


def _size_below(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # just deleted
                continue
    return total


def _too_large(most: int) -> Refused:
    return Refused(
        413,
        f"The request is too large: at most {most:,} bytes are taken, of a picture {MOST_UPLOADED:,}, of a question "
        f"{MOST_CHARACTERS:,} characters.",
    )


def _counted(receive: Receive, most: int) -> Receive:
    """Read no more than ``most`` bytes, and wait for none too long."""
    count, complete = 0, False

    async def counted() -> MutableMapping[str, Any]:
        nonlocal count, complete
        if complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), _SLOWEST)
        except asyncio.TimeoutError:
            return {"type": "http.disconnect"}
        count += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        return message if count <= most else {"type": "http.disconnect"}

    return counted


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _too_large(MOST_BYTES)
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give what was read once more, then what comes."""
    given = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _tell(refused: Refused, send: Send) -> None:
    body = f"{refused}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the request is not read
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
