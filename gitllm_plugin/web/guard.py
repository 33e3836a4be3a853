"""What reaches the page's server: requests of its own page and of programs of this machine, of a bounded size.

A page in a browser may be any host's: it can send requests to 127.0.0.1, and by a name that it lets point there
(DNS rebinding) also read the answers. Both are told by headers that a page cannot set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
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
    f"{_API}/run/predict",  # a click on an example; what waits in the queue is not asked for by it
)
_BELOW = (*_ASSETS, f"{_API}/heartbeat/", f"{_API}/file=", f"{_API}/call/", "/pwa_icon")
_CLOSED = (f"{_API}/call/v2", f"{_API}/file=http", f"{_API}/file=//")
_CALLS = (f"{_API}/queue/join", f"{_API}/call/", f"{_API}/run/")

_UPLOAD = f"{_API}/upload"

_SLOWEST = 30.0
"""Seconds without a byte of a request that is not complete."""

_MOST_LEFT = 2**28
"""Bytes of a request that are read to be dropped."""


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        reason: a sentence.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


_TOO_LARGE = Refused(
    413,
    f"The request is too large: at most {MOST_BYTES:,} bytes are taken, of a picture {MOST_UPLOADED:,}, of a question "
    f"{MOST_CHARACTERS:,} characters.",
)


class Guard:
    """Stands in front of a server of ASGI.

    Args:
        app: the server.
        folder: where uploads are; no other file may be named in a request.
    """

    def __init__(self, app: App, folder: Path):
        self.app = app
        self.folder = folder
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
        body = _Body(receive, MOST_BYTES)
        try:
            check_sender(scope["method"], scope["path"], headers)
            check_route(scope["path"])
            if scope["path"] == _UPLOAD:
                await self._upload(scope, body, send)
                return
            check_length(headers, MOST_BYTES)
            content = await _read(body)
            if scope["method"] == "POST" and scope["path"].startswith(_CALLS):
                check_files(content, self.folder)
        except Refused as refused:
            await body.leave(headers)
            await _tell(refused, send)
            return
        await self.app(scope, _replayed(content, receive), send)

    async def _upload(self, scope: Scope, body: _Body, send: Send) -> None:
        body.most = most = MOST_UPLOADED + 2**20
        length = check_length(scope["headers"], most)
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


def check_sender(method: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
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
    if not known or path.startswith(_CLOSED) or "/../" in f"{path}/":
        raise Refused(404, "There is nothing here.")


def check_length(headers: Sequence[tuple[bytes, bytes]], most: int) -> int:
    """Give the length that a request says it has, 0 where it says none.

    Raises:
        Refused: it is more than is read.
    """
    length = dict(headers).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > most:
        raise _TOO_LARGE
    return int(length)


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


def _remove_files_in(folder: Path) -> None:
    """Remove what uploads that were not completed have left; complete ones are in folders of their own."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not path.is_dir():
                path.unlink(missing_ok=True)


class _Body:
    """Gives a request's body as far as ``most`` bytes, and waits for none too long.

    Attributes:
        cut: why it ended before it was whole.
    """

    def __init__(self, receive: Receive, most: int):
        self.receive = receive
        self.most = most
        self.whole = False
        self.cut: Refused | None = None

    async def __call__(self) -> MutableMapping[str, Any]:
        """Give the next message."""
        if self.whole:
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), _SLOWEST)
        except asyncio.TimeoutError:
            self.cut = Refused(408, f"No byte of the request came for {_SLOWEST:.0f} seconds.")
            return {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self.cut = Refused(400, "The request was not complete.")
            return message
        self.most -= len(message.get("body", b""))
        if self.most < 0:
            self.cut = _TOO_LARGE
            return {"type": "http.disconnect"}
        self.whole = not message.get("more_body", False)
        return message

    async def leave(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Read what is left and drop it: who still sends would see a broken connection instead of the answer."""
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _MOST_LEFT or self.cut not in (None, _TOO_LARGE):
            return
        self.most, self.cut = _MOST_LEFT, None
        while not self.whole and self.cut is None:
            await self()


async def _read(receive: _Body) -> bytes:
    body = bytearray()
    while not receive.whole:
        message = await receive()
        if receive.cut is not None:
            raise receive.cut
        body += message.get("body", b"")
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
    body = json.dumps({"detail": str(refused)}).encode()  # which Gradio's page shows
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the request is not read
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
