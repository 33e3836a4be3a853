"""Serves the endpoint until Ctrl-C."""

from __future__ import annotations

import socket
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gitllm_plugin.common.listening import listen, url_of
from gitllm_plugin.common.web_requests import hosts_of
from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from gitllm_plugin.inference.asking import Answering
    from gitllm_plugin.serving.messages import Limits

_CONNECTIONS = 500


def check_installed() -> None:
    """Refuse before a model is loaded.

    Raises:
        ConfigError: what serves is not installed.
    """
    if not all(map(find_spec, ("fastapi", "uvicorn"))):
        raise ConfigError("serving needs fastapi and uvicorn: pip install 'gitllm-plugin[serve]'")


def serve(engine: Answering, name: str, host: str, taken: socket.socket, key: str | None, limits: Limits) -> None:
    """Serve a model.

    Args:
        engine: the model.
        name: what it is called; of a path its last part.
        host: the address to listen on.
        taken: bound to it, see :func:`~gitllm_plugin.common.listening.bind`.
        key: what requests have to bring; None: nothing.
        limits: what one request may cost.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    import uvicorn

    from gitllm_plugin.serving.api import make_app

    name = Path(name).resolve().name
    config = uvicorn.Config(
        make_app(engine, name, hosts_of(host), limits, key),
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=10,
    )
    with closing(taken):
        listen(taken)
        print(f"{name} answers at {url_of(host, taken)}/v1 (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[taken])
