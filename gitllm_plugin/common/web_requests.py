"""What reaches a server of this package: requests for its own names and of its own pages, of a bounded size and time.

A page in a browser may be any host's: it can send requests to 127.0.0.1, and by a name that it lets point there
(DNS rebinding) also read the answers. Both are told by headers that a page cannot set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

OWN_HOSTS = ("127.0.0.1", "localhost", "::1")
"""How programs and browsers of this machine call it."""

_SLOWEST = 20.0
"""Seconds without a byte of a request that is not complete."""

_LONGEST = 300.0
"""Seconds for a request to be complete."""

_MOST_LEFT = 2**28
"""Bytes of a request that are read to be dropped."""

_TOO_LARGE = 413


class Refused(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        reason: a sentence.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def hosts_of(address: str) -> frozenset[str] | None:
    """Give the names that requests may be for, by the address that is listened on.

    Of an address that means all of this machine's, nobody knows the names that it has elsewhere: None, any.
    """
    return None if address in ("", "0.0.0.0", "::") else frozenset({*OWN_HOSTS, address.lower()})


def check_sender(scope: Scope, hosts: Collection[str] | None, neighbours: Collection[str] = ()) -> None:
    """Refuse a request for a name that is not the server's, and one that another host's page sends.

    Args:
        scope: of the request, as ASGI has it.
        hosts: names that requests may be for; None: any.
        neighbours: hosts whose pages may ask too, whichever port they are of.

    Raises:
        Refused: saying what was given.
    """
    headers: Headers = scope["headers"]
    given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    named = [value for name, value in headers if name.lower() == b"host"]
    if hosts is not None and (len(named) != 1 or _hostname(f"//{given['host']}") not in hosts):
        shown = ", ".join(value.decode("latin-1")[:100] for value in named) or "none"
        raise Refused(403, f"The header Host is {shown}; this server is {', '.join(sorted(hosts))} alone.")
    host, origin = given.get("host", "").lower(), given.get("origin")
    # Who listens to the network may have a proxy in front that speaks TLS.
    own = [f"http://{host}"] + [f"https://{host}"] * (hosts is None)
    if origin is not None:
        if _hostname(origin) in neighbours:
            return
        if origin.lower() not in own:
            raise Refused(403, f"The request comes from {origin[:100]}; requests of other pages are refused.")
    if scope["method"] in ("GET", "HEAD") and scope["path"] == "/":
        return  # a link or a bookmark, which reads nothing
    referer = given.get("referer")
    if referer is not None and not f"{referer.lower()}/".startswith(tuple(f"{each}/" for each in own)):
        raise Refused(403, f"The request comes from {referer[:100]}; requests of other pages are refused.")
    if given.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(403, "The request comes from another page; requests of other pages are refused.")


def _hostname(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:  # such as a bracket that is not closed
        return None
    return parts.hostname if not parts.path and parts.username is None else None


class Body:
    """Gives a request's body as far as ``most`` bytes, and waits for none too long.

    Args:
        receive: of the request.
        most: bytes.
        too_large: a sentence for whoever sends more.

    Attributes:
        cut: why it ended before it was whole.
    """

    def __init__(self, receive: Receive, most: int, too_large: str) -> None:
        self.receive = receive
        self.most = most
        self.whole = False
        self.cut: Refused | None = None
        self._too_large = Refused(_TOO_LARGE, too_large)
        self._until = time.monotonic() + _LONGEST

    def check_length(self, headers: Headers) -> int:
        """Give the length that a request says it has, 0 where it says none.

        Raises:
            Refused: it is more than is read.
        """
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.most:
            raise self._too_large
        return int(length)

    async def __call__(self) -> MutableMapping[str, Any]:
        """Give the next message."""
        if self.whole:
            return await self.receive()
        left = self._until - time.monotonic()
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, min(_SLOWEST, left)))
        except asyncio.TimeoutError:
            slow = f"No byte of the request came for {_SLOWEST:.0f} seconds"
            self.cut = Refused(408, f"{slow if left > _SLOWEST else f'The request took {_LONGEST:.0f} seconds'}.")
            return {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self.cut = Refused(400, "The request was not complete.")
            return message
        self.most -= len(message.get("body", b""))
        if self.most < 0:
            self.cut = self._too_large
            return {"type": "http.disconnect"}
        self.whole = not message.get("more_body", False)
        return message

    async def read(self, take: Callable[[int], None] = lambda size: None) -> bytes:
        """Read all of it.

        Args:
            take: is told the size of each piece before it is kept, and may raise :class:`Refused`.

        Raises:
            Refused: it is too large, too slow, or breaks off.
        """
        body = bytearray()
        while not self.whole:
            message = await self()
            if self.cut is not None:
                raise self.cut
            take(len(message.get("body", b"")))
            body += message.get("body", b"")
        return bytes(body)

    async def leave(self, headers: Headers) -> None:
        """Read what is left and drop it: who still sends would see a broken connection instead of the answer."""
        length = dict(headers).get(b"content-length", b"0")
        known = length.isdigit() and len(length) <= 18 and int(length) <= _MOST_LEFT
        if not known or (self.cut is not None and self.cut.status != _TOO_LARGE):
            return
        self.most, self.cut = _MOST_LEFT, None
        while not self.whole and self.cut is None:
            await self()


def replayed(body: bytes, receive: Receive) -> Receive:
    """Give what was read once more, then what comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def take() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return take
