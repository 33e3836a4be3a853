"""The endpoint: ``/v1/models``, ``/v1/chat/completions``, ``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.pipeline import Decoding, Pipeline, Question
from gitllm_plugin.serving.batcher import Batcher, BusyError
from gitllm_plugin.serving.bounds import App, Bounds
from gitllm_plugin.serving.messages import ChatRequest, Reply, error_body, read_request


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        megabytes: of a request.
        pixels: of all its pictures.
        characters: of its question, and of its instruction.
        new_tokens: of an answer.
        waiting: questions in the queue.
        seconds: for an answer, waiting included.
        batch_size: questions that are answered together.
    """

    megabytes: int = 20
    pixels: int = 50_000_000
    characters: int = 20_000
    new_tokens: int = 256
    waiting: int = 64
    seconds: float = 120
    batch_size: int = 8


def make_app(
    pipeline: Pipeline, name: str, hosts: frozenset[str] | None, limits: Limits, key: str | None = None
) -> App:
    """Make the server, as ASGI has it.

    Args:
        pipeline: the model.
        name: of the model.
        hosts: names and addresses that requests may be for; None: any.
        limits: what one request may cost.
        key: what ``Authorization: Bearer`` has to say; None: nothing.
    """
    endpoint = _Endpoint(pipeline, name, limits)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=endpoint.lifespan)
    app.get("/health")(endpoint.health)
    app.get("/metrics")(endpoint.metrics)
    app.get("/v1/models")(endpoint.models)
    app.post("/v1/chat/completions")(endpoint.chat)
    return Bounds(app, hosts, key, limits.megabytes * 2**20, _error)


class _Endpoint:
    """What the routes do."""

    def __init__(self, pipeline: Pipeline, name: str, limits: Limits) -> None:
        self.pipeline = pipeline
        self.name = name
        self.limits = limits
        self.batcher = Batcher(pipeline, limits.batch_size, limits.waiting, limits.seconds)
        # Decoding of large pictures is what takes memory: a few at a time.
        self._decoding = asyncio.Semaphore(2)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """End the model's thread with the server."""
        yield
        await run_in_threadpool(self.batcher.close)

    async def health(self) -> Response:
        """Say that the server is there."""
        return JSONResponse({"status": "ok", "model": self.name})

    async def metrics(self) -> Response:
        """Count, in Prometheus' form."""
        counts = {f"gitllm_{name}_total": value for name, value in asdict(self.batcher.counts).items()}
        lines = [f"{name} {value}" for name, value in {**counts, "gitllm_waiting": self.batcher.waiting}.items()]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def models(self) -> Response:
        """Name the model."""
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "gitllm"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        """Answer a question."""
        try:
            asked = ChatRequest.model_validate_json(await request.body())
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
            return _error(400, f"not a request for a chat completion: {faults}")
        if asked.model not in ("", self.name):
            return _error(404, f"there is no model {asked.model!r:.100}; this server has {self.name!r}")
        limits = self.limits
        try:
            async with self._decoding:
                bounds = (limits.pixels, limits.characters, limits.new_tokens)
                question, decoding = await run_in_threadpool(read_request, asked, *bounds)
            decoding.as_arguments()
            if asked.stream:
                return await self._stream(question, decoding)
            return await self._whole(request, question, decoding)
        except (DataError, ConfigError) as error:
            return _error(400, str(error))
        except BusyError as error:
            return _error(503, str(error), "overloaded_error")
        except Exception as error:  # noqa: BLE001 - of one request; it says so, and the others go on
            return _error(500, f"{type(error).__name__}: {error}", "server_error")

    async def _whole(self, request: Request, question: Question, decoding: Decoding) -> Response:
        future = self.batcher.ask(question, decoding)
        answer = asyncio.wrap_future(future)
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)
            return JSONResponse(Reply(self.name).whole(answer.result(), self._is_cut(answer.result(), decoding)))
        finally:
            gone.cancel()
            future.cancel()  # where it still waits, its place is free

    async def _stream(self, question: Question, decoding: Decoding) -> Response:
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        gone = False

        def piece(answer: str) -> bool:
            loop.call_soon_threadsafe(pieces.put_nowait, answer)
            return not gone

        future = self.batcher.ask(question, decoding, piece)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(pieces.put_nowait, None))
        # Errors of the question become a status: the first piece is waited for.
        first = await pieces.get()
        if first is None:
            first = future.result()

        async def events() -> AsyncIterator[str]:
            nonlocal gone
            reply, sent = Reply(self.name), ""
            try:
                answer: str | None = first
                while answer is not None:
                    yield _event(reply.piece(answer[len(sent) :], first=not sent))
                    sent = answer
                    answer = None if future.done() and pieces.empty() else await pieces.get()
                if future.exception() is not None:
                    yield _event(error_body(str(future.exception()), "server_error"))
                else:
                    rest = future.result()[len(sent) :]
                    if rest:
                        yield _event(reply.piece(rest))
                    yield _event(reply.end(self._is_cut(future.result(), decoding)))
                yield "data: [DONE]\n\n"
            finally:
                gone = True
                future.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    def _is_cut(self, answer: str, decoding: Decoding) -> bool:
        """Tell whether an answer ended because it had as many tokens as it may have."""
        tokens = self.pipeline.text_encoder.tokenizer(answer, add_special_tokens=False).input_ids
        return len(tokens) >= decoding.max_new_tokens


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, kind: str = "invalid_request_error") -> Response:
    headers = {"Retry-After": "2"} if status == 503 else None
    return JSONResponse(error_body(message, kind), status_code=status, headers=headers)
