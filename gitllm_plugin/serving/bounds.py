"""What reaches the endpoint: requests of its own names, of a bounded size, that arrive in a bounded time."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SECONDS_WITHOUT_A_BYTE = 20.0
_MOST_BYTES_AT_ONCE = 4  # requests' bodies, of the largest size, that are held at a time


class Bounds:
    """Stands in front of an app of ASGI.

    Args:
        app: the app.
        hosts: names that requests may come for; a page of another host, whose name was led here, is refused by it.
            None: any.
        key: what ``Authorization: Bearer`` has to say, but for ``/health``; None: nothing.
        most_bytes: of a request's body.
        refuse: makes the answer to a request that is not served, of status and reason.
    """

    def __init__(
        self,
        app: App,
        hosts: frozenset[str] | None,
        key: str | None,
        most_bytes: int,
        refuse: Callable[[int, str], App],
    ) -> None:
        self.app = app
        self.key = key
        self.hosts = hosts
        self.most_bytes = most_bytes
        self.refuse = refuse
        self._free = asyncio.Semaphore(_MOST_BYTES_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reason = self._stranger(headers)
        if reason is not None:
            await self.refuse(403, reason)(scope, receive, send)
            return
        if not self._has_key(scope["path"], headers):
            await self.refuse(401, "the key is missing, or another one")(scope, receive, send)
            return
        if scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = await self._body(headers, receive)
        if not isinstance(body, bytes):
            await self.refuse(*body)(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)

    def _stranger(self, headers: MutableMapping[bytes, str]) -> str | None:
        if self.hosts is None:
            return None
        host = _host_of(f"//{headers.get(b'host', '')}")
        if host not in self.hosts:
            return f"this server is not {host!r}; ask for one of its own names"
        origin = headers.get(b"origin")
        if origin is not None and _host_of(origin) not in self.hosts:
            return f"pages of {origin} may not ask"
        return None

    def _has_key(self, path: str, headers: MutableMapping[bytes, str]) -> bool:
        given = headers.get(b"authorization", "").removeprefix("Bearer ")
        return self.key is None or path == "/health" or hmac.compare_digest(given.encode(), self.key.encode())

    async def _body(self, headers: MutableMapping[bytes, str], receive: Receive) -> bytes | tuple[int, str]:
        too_large = 413, f"the request is too large: at most {self.most_bytes:,} bytes are taken"
        length = headers.get(b"content-length", "")
        if length.isdigit() and int(length) > self.most_bytes:
            return too_large
        pieces, size = [], 0
        async with self._free:
            while True:
                try:
                    message = await asyncio.wait_for(receive(), _SECONDS_WITHOUT_A_BYTE)
                except TimeoutError:
                    return 408, f"no byte of the request came for {_SECONDS_WITHOUT_A_BYTE:g} s"
                if message["type"] == "http.disconnect":
                    return 400, "the request broke off"
                size += len(message.get("body", b""))
                if size > self.most_bytes:
                    return too_large
                pieces.append(message.get("body", b""))
                if not message.get("more_body"):
                    return b"".join(pieces)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as a bracket that is not closed
        return ""


def _again(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read, and after it what comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def take() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return take
