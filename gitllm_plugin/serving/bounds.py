"""What reaches the endpoint: requests for its own names, with the key, of a bounded size and time."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

from gitllm_plugin.common.web_requests import App, Body, Headers, Receive, Refused, Scope, Send, check_sender, replayed

_MOST_HELD = 16
"""Bodies of the largest size that are in memory at a time, or as many more smaller ones."""


class Bounds:
    """Stands in front of an app of ASGI.

    Args:
        app: the app.
        hosts: names that requests may be for, whose pages may ask too; None: any.
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
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = f"the request is too large: at most {self.most_bytes:,} bytes are taken"
        body, held = Body(receive, self.most_bytes, too_large), 0

        def take(size: int) -> None:
            nonlocal held
            if self._held + size > _MOST_HELD * self.most_bytes:
                raise Refused(503, "too many large requests at a time; try again in a few seconds")
            held += size
            self._held += size

        try:
            try:
                check_sender(scope, self.hosts, self.hosts or ())
                self._check_key(scope["path"], scope["headers"])
                body.check_length(scope["headers"])
                content = await body.read(take)
            except Refused as refused:
                await body.leave(scope["headers"])
                await self.refuse(refused.status, str(refused))(scope, receive, send)
                return
            await self.app(scope, replayed(content, receive), send)
        finally:
            self._held -= held

    def _check_key(self, path: str, headers: Headers) -> None:
        given = dict(headers).get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.key is not None and path != "/health" and not hmac.compare_digest(given, self.key.encode()):
            raise Refused(401, "the key is missing, or another one")


class Room:
    """So much of something, such as pixels in memory; who wants more than is left waits, in the order of arrival.

    Args:
        size: all there is.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Take some, at most all there is; wait until so much is left."""
        async with self._turn:
            while size > self._left:
                self._freed.clear()
                await self._freed.wait()
            self._left -= size

    def give(self, size: int) -> None:
        """Give some back, in the loop's thread."""
        self._left += size
        self._freed.set()
