"""The endpoint: ``/v1/models``, ``/v1/chat/completions``, ``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from gitllm_plugin.common.web_requests import App
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.serving.batcher import Batcher, BusyError
from gitllm_plugin.serving.bounds import Bounds, Room
from gitllm_plugin.serving.messages import ChatRequest, Limits, Reply, error_body, read_request

_ROOM = 4
"""Requests of most pixels whose pictures are in memory at a time, or as many more smaller ones."""


def make_app(engine: Answering, name: str, hosts: frozenset[str] | None, limits: Limits, key: str | None = None) -> App:
    """Make the server, as ASGI has it.

    Args:
        engine: the model.
        name: of the model.
        hosts: names and addresses that requests may be for; None: any.
        limits: what one request may cost.
        key: what ``Authorization: Bearer`` has to say; None: nothing.
    """
    endpoint = _Endpoint(engine, name, limits)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=endpoint.lifespan)
    app.get("/health")(endpoint.health)
    app.get("/metrics")(endpoint.metrics)
    app.get("/v1/models")(endpoint.models)
    app.post("/v1/chat/completions")(endpoint.chat)
    app.exception_handler(HTTPException)(_no_route)
    return Bounds(app, hosts, key, limits.megabytes * 2**20, _error)


class _Endpoint:
    """What the routes do."""

    def __init__(self, engine: Answering, name: str, limits: Limits) -> None:
        self.engine = engine
        self.name = name
        self.limits = limits
        self.batcher = Batcher(engine, limits.batch_size, limits.waiting, limits.seconds)
        # Decoding of large pictures is what takes memory: a few at a time.
        self._decoding = asyncio.Semaphore(2)
        self._room = Room(_ROOM * limits.pixels)

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
            faults = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()[:5]]
            told = "; ".join(f"{place}: {message}" if place else message for place, message in faults)
            return self._refuse(f"not a request for a chat completion: {told}")
        if asked.model not in ("", self.name):
            return _error(404, f"there is no model {asked.model!r:.100}; this server has {self.name!r}")
        try:
            wanted = read_request(asked, self.limits, self.engine)
            async with self._decoding:
                pixels = await run_in_threadpool(wanted.count_pixels, self.limits)
            # Not inside: who waits for room would keep from decoding those that need little, or are refused.
            room = asyncio.ensure_future(self._room.take(pixels))
            if not await _comes(room, request):
                return Response(status_code=499)
            try:
                async with self._decoding:
                    question = await run_in_threadpool(wanted.question, self.limits, pixels)
            except BaseException:
                self._room.give(pixels)
                raise
            answer = self._answer_stream if asked.stream else self._answer_whole
            return await answer(request, question, wanted.decoding, pixels)
        except (DataError, ConfigError) as error:
            return self._refuse(str(error))
        except BusyError as error:
            return _error(503, str(error))
        except Exception as error:  # noqa: BLE001 - of one request; it says so, and the others go on
            return _error(500, f"{type(error).__name__}: {error}")

    def _refuse(self, message: str) -> Response:
        self.batcher.counts.refused += 1
        return _error(400, message)

    def _ask(
        self, question: Question, decoding: Decoding, pixels: int, piece: Callable[[str], object] | None = None
    ) -> Future[str]:
        """Put a question into the queue; when it is done with, the room of its pixels is given back."""
        loop = asyncio.get_running_loop()
        try:
            future = self.batcher.ask(question, decoding, piece)
        except BaseException:
            self._room.give(pixels)
            raise
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._room.give, pixels))
        return future

    async def _answer_whole(self, request: Request, question: Question, decoding: Decoding, pixels: int) -> Response:
        future = self._ask(question, decoding, pixels)
        answer = asyncio.wrap_future(future)
        try:
            if not await _comes(answer, request):
                return Response(status_code=499)
            return JSONResponse(Reply(self.name).whole(answer.result(), self.engine.is_cut(answer.result(), decoding)))
        finally:
            future.cancel()  # where it still waits, its place is free

    async def _answer_stream(self, request: Request, question: Question, decoding: Decoding, pixels: int) -> Response:
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        gone = False

        def piece(answer: str) -> bool:
            loop.call_soon_threadsafe(pieces.put_nowait, answer)
            return not gone

        future = self._ask(question, decoding, pixels, piece)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(pieces.put_nowait, None))
        # Errors of the question become a status: the first piece is waited for.
        begun = asyncio.ensure_future(pieces.get())
        if not await _comes(begun, request):
            gone = True
            future.cancel()
            return Response(status_code=499)
        first = begun.result()
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
                    yield _event(reply.end(self.engine.is_cut(future.result(), decoding)))
                yield "data: [DONE]\n\n"
            finally:
                gone = True
                future.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")


async def _comes(thing: asyncio.Future[Any], request: Request) -> bool:
    """Wait for something for who asked; False: who asked is gone before, and it is cancelled."""
    gone = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({thing, gone}, return_when=asyncio.FIRST_COMPLETED)
        return thing.done() or not thing.cancel()
    finally:
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _no_route(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


def _error(status: int, message: str) -> Response:
    kind = {500: "server_error", 503: "overloaded_error"}.get(status, "invalid_request_error")
    headers = {"Retry-After": "2"} if status == 503 else None
    return JSONResponse(error_body(message, kind), status_code=status, headers=headers)
