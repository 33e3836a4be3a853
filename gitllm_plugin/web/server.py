"""Serves the page on 127.0.0.1, and removes what it was given."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.web.guard import Guard
from gitllm_plugin.web.limits import MOST_UPLOADED, MOST_WAITING
from gitllm_plugin.web.page import build_page

HOST = "127.0.0.1"
_PORTS = range(7860, 7960)
_CONNECTIONS = 200
_SESSIONS = 64
"""Of which something is kept; Gradio's own number is 10,000, and what nobody fetched of an answer waits in each."""


def serve(pipeline: Pipeline, name: str, port: int | None = None, open_browser: bool = False) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C.

    Args:
        pipeline: the model.
        name: of the model, for the page.
        port: None for the first free one from 7860 on, 0 for any free one.
        open_browser: whether to open the page.

    Raises:
        ConfigError: Gradio is not installed, or the port is taken.
    """
    with _folder() as folder:
        app = page_app(pipeline, name, folder)
        with closing(_listen(port)) as listening:
            url = f"http://{HOST}:{listening.getsockname()[1]}/"
            print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
            if open_browser:
                webbrowser.open(url)
            with suppress(KeyboardInterrupt):  # which uvicorn raises once more when it has ended
                _run(app, listening)


def page_app(pipeline: Pipeline, name: str, folder: Path) -> Guard:
    """Make the page's server, as ASGI has it.

    Args:
        pipeline: the model.
        name: of the model, for the page.
        folder: for uploads, figures and example pictures. Gradio reads it from the environment, where it stays.

    Raises:
        ConfigError: Gradio is not installed.
    """
    # Not the one that all pages of this user share, whose files any of them serves.
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "cache")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # of which times are kept
    examples = folder / "examples"
    examples.mkdir(parents=True)
    page = build_page(pipeline, name, examples)
    import gradio as gr
    from fastapi import FastAPI

    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    page.has_launched = True  # else Gradio takes any file of this machine for an upload
    page.state_session_capacity = _SESSIONS
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="",
        server_name=HOST,
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
    return Guard(app, folder / "uploads")


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


def _listen(port: int | None) -> socket.socket:
    for each in _PORTS if port is None else (port,):
        listening = socket.socket()
        if os.name != "nt":  # a page that has just ended holds its port no longer
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, each))
            listening.listen(128)
            return listening
        except (OSError, OverflowError) as error:
            listening.close()
            reason = error
    raise ConfigError(f"the page cannot be served: {reason}; give another --port, or none")


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gitllm-page-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
