"""Whatever answers at an address in the form of OpenAI's chat completions: texts alone."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from PIL import Image

from gitllm_plugin.conform.asked import Asked
from gitllm_plugin.errors import ConfigError

_SECONDS = 300


class UrlEngine:
    """An endpoint, as its clients see it.

    Args:
        url: of the server, with or without ``/v1``.
        precision: what it serves, by which questions are chosen whose answers rounding does not change.

    Raises:
        ConfigError: nothing answers there.
    """

    batches = True

    def __init__(self, url: str, precision: str = "float32") -> None:
        self.name = url
        self.precision = precision
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        try:
            self._model = self._send("/models")["data"][0]["id"]
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{self._url}/models names no model: is it an endpoint like OpenAI's?") from error

    def texts(self, asked: Sequence[Asked], new_tokens: int) -> list[str]:
        """Ask all at once."""
        with ThreadPoolExecutor(len(asked)) as threads:
            return list(threads.map(lambda each: self._text(each, new_tokens), asked))

    def _text(self, asked: Asked, new_tokens: int) -> str:
        pictures = [{"type": "image_url", "image_url": {"url": _data_uri(each)}} for each in asked.pictures]
        message = {"role": "user", "content": [*pictures, {"type": "text", "text": asked.question}]}
        body = {"model": self._model, "messages": [message], "max_tokens": new_tokens, "temperature": 0}
        return self._send("/chat/completions", body)["choices"][0]["message"]["content"] or ""

    def _send(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("GITLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self._url + path, data, headers), timeout=_SECONDS) as reply:
                return json.load(reply)
        except HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            raise ConfigError(f"{self._url}{path} answered {error.code}: {said}") from error
        except (URLError, OSError, ValueError) as error:
            raise ConfigError(f"{self._url}{path} does not answer ({error}): is the server running?") from error


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
