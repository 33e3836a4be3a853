"""Addresses that servers listen on: taken before a model is loaded, so that a wrong one is told at once."""

from __future__ import annotations

import os
import socket

from gitllm_plugin.errors import ConfigError

_WAITING = 512
"""Connections that wait to be taken."""


def bind(host: str, port: int | str) -> socket.socket:
    """Take an address; who connects is refused until :func:`listen`.

    Args:
        host: an address or a name of this machine.
        port: 0 for any free one.

    Raises:
        ConfigError: there is no such port or address, or another program has it.
    """
    text = str(port)
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and (port := int(text)) <= 65535):
        raise ConfigError(f"--port is {text!r:.50}; give a number from 1 to 65535, or 0 for any free port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host is {host!r:.200}, which is neither an address nor a known name") from error
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    taken = socket.socket(family, kind, protocol)
    if os.name != "nt":  # a server that has just ended holds its port no longer
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _not_free(host, port, error) from error
    return taken


def listen(taken: socket.socket) -> None:
    """Let programs connect.

    Raises:
        ConfigError: another program, which had taken the address too, was faster.
    """
    try:
        taken.listen(_WAITING)
    except OSError as error:
        host, port = taken.getsockname()[:2]
        raise _not_free(host, port, error) from error


def url_of(host: str, taken: socket.socket) -> str:
    """Give the address as a browser of this machine takes it."""
    shown = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{taken.getsockname()[1]}"


def _not_free(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"{host}:{port} cannot be listened on ({error.strerror}); give another --port or --host")
