"""Serves the page, on 127.0.0.1 unless told, and removes what it was given."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gitllm_plugin.common.listening import bind, listen, url_of
from gitllm_plugin.common.web_requests import OWN_HOSTS, hosts_of
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.asking import Answering, Question
from gitllm_plugin.web.guard import Guard
from gitllm_plugin.web.limits import MOST_UPLOADED, MOST_WAITING
from gitllm_plugin.web.page import build_page

HOST = "127.0.0.1"
_PORTS = range(7860, 7960)
_CONNECTIONS = 200
_SESSIONS = 64
"""Of which something is kept; Gradio's own number is 10,000, and what nobody fetched of an answer waits in each."""


def check_installed() -> None:
    """Refuse before a model is loaded.

    Raises:
        ConfigError: Gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise ConfigError('the page needs Gradio: pip install "gitllm-plugin[web]"')


def take_address(host: str, port: int | str | None) -> socket.socket:
    """Take the address to serve at.

    Args:
        host: an address of this machine.
        port: None for the first free one from 7860 on, 0 for any free one.

    Raises:
        ConfigError: there is no such one, or another program has it.
    """
    if port is not None:
        return bind(host, port)
    for each in _PORTS[:-1]:
        taken = None
        try:
            taken = bind(host, each)
            listen(taken)
            return taken
        except ConfigError:
            if taken is not None:
                taken.close()
    return bind(host, _PORTS[-1])


def serve(
    engine: Answering,
    name: str,
    host: str,
    taken: socket.socket,
    examples: Sequence[Question] = (),
    open_browser: bool = False,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        engine: the model.
        name: of the model, for the page.
        host: the address that is served at.
        taken: bound to it.
        examples: questions that the model was trained to answer.
        open_browser: whether to open the page.

    Raises:
        ConfigError: Gradio is not installed, or the address cannot be listened on.
    """
    with _folder() as folder, closing(taken):
        app = page_app(engine, name, folder, host, examples)
        listen(taken)
        url = f"{url_of(host, taken)}/"
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        if host not in OWN_HOSTS:
            print(f"whoever reaches {host} can ask: there is neither a key nor TLS", flush=True)
        if open_browser:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):  # which uvicorn raises once more when it has ended
            _run(app, taken)


def page_app(engine: Answering, name: str, folder: Path, host: str = HOST, trained: Sequence[Question] = ()) -> Guard:
    """Make the page's server, as ASGI has it.

    Args:
        engine: the model.
        name: of the model, for the page.
        folder: for uploads and example pictures. Gradio reads it from the environment, where it stays.
        host: the address that is served at.
        trained: questions that the model was trained to answer.

    Raises:
        ConfigError: Gradio is not installed.
    """
    # Not the one that all pages of this user share, whose files any of them serves.
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "cache")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # of which times are kept
    examples = folder / "examples"
    examples.mkdir(parents=True)
    page = build_page(engine, name, examples, trained)
    import gradio as gr
    from fastapi import FastAPI

    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    page.has_launched = True  # else Gradio takes any file of this machine for an upload
    page.state_session_capacity = _SESSIONS
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="",
        server_name=host,
        max_file_size=MOST_UPLOADED,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
    )
    with suppress(AttributeError):  # of Gradio 6
        page._queue.pending_messages_per_session.max_size = _SESSIONS
    return Guard(app, folder / "uploads", hosts_of(host))


def _run(app: Any, listening: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and removes what was uploaded
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gitllm-page-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
