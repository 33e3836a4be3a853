"""Serves the endpoint until Ctrl-C."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gitllm_plugin.errors import ConfigError

if TYPE_CHECKING:
    from gitllm_plugin.inference.pipeline import Pipeline
    from gitllm_plugin.serving.api import Limits

_CONNECTIONS = 500


def check_installed() -> None:
    """Refuse before a model is loaded.

    Raises:
        ConfigError: what serves is not installed.
    """
    if not all(map(find_spec, ("fastapi", "uvicorn"))):
        raise ConfigError("serving needs fastapi and uvicorn: pip install 'gitllm-plugin[serve]'")


def serve(
    pipeline: Pipeline,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve a model.

    Args:
        pipeline: the model.
        name: what it is called; of a path its last part.
        host: the address to listen on.
        port: 0 for a free one.
        key: what requests have to bring; None: nothing.
        limits: what one request may cost.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    import uvicorn

    from gitllm_plugin.serving.api import Limits, make_app

    name = Path(name).resolve().name
    # Of an address that means all of this machine's, nobody knows the names that it has elsewhere.
    hosts = None if host in ("0.0.0.0", "::") else frozenset({"localhost", "127.0.0.1", "::1", host})
    app = make_app(pipeline, name, hosts, limits or Limits(), key)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=10,
    )
    try:
        listening = config.bind_socket()
    except (SystemExit, OSError, OverflowError) as error:
        raise ConfigError(f"{host}:{port} cannot be listened on; give another --port or --host") from error
    print(f"{name} answers at http://{host}:{listening.getsockname()[1]}/v1 (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[listening])
