"""The endpoint as OpenAI's own client, curl and strangers use it: a real server on a port, and a tiny model."""

import base64
import concurrent.futures
import json
import re
import socket
import threading
import time

import httpx
import openai
import pytest
from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Decoding, Question
from gitllm_plugin.serving.batcher import Batcher, BusyError
from tests.serving.kit import COLORS, Served, data_uri, messages


def answered(served):
    return int(re.search(r"gitllm_answered_total (\d+)", httpx.get(f"{served.url}/metrics").text)[1])


def test_the_answers_are_the_pipelines(served, pipeline):
    client, before = served.client(), answered(served)
    assert [model.id for model in client.models.list()] == ["tiny-model"]
    for color in COLORS:
        image = Image.new("RGB", (40, 30), color)
        expected = pipeline.answer(image, "what color?", "Look.", Decoding(12))
        asked = messages(data_uri(color), system="Look.")
        reply = client.chat.completions.create(model="tiny-model", messages=asked, max_tokens=12)
        assert reply.choices[0].message.content == expected
        pieces = list(client.chat.completions.create(model="", messages=asked, max_tokens=12, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
        assert pieces[-1].choices[0].finish_reason == reply.choices[0].finish_reason
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok", "model": "tiny-model"}
    assert answered(served) == before + 8


WRONG = {
    "no picture": ([{"role": "user", "content": "hello"}], {}, "no picture; send it as"),
    "an address": (messages("https://example.org/cat.png"), {}, "addresses are not fetched"),
    "a file elsewhere": (messages("file:///etc/passwd"), {}, "no file below the folder that this server gives"),
    "no base64": (messages("data:image/png;base64,%%%"), {}, "not base64"),
    "no image": (messages("data:image/png;base64,aGVsbG8="), {}, "picture 1"),
    "EPS": (
        messages("data:image/eps;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode()),
        {},
        "picture 1",
    ),
    "two pictures": (
        [{"role": "user", "content": [messages(data_uri(c))[0]["content"][1] for c in ("red", "blue")]}],
        {},
        "this model takes 1 to 1",
    ),
    "no question": (messages(data_uri("red")) + [{"role": "assistant", "content": "red"}], {}, "the user's last"),
    "no user": ([{"role": "system", "content": "Look."}], {}, "the last message is the system's"),
    "the assistant's picture": (
        [{**messages(data_uri("red"))[0], "role": "assistant"}, *messages(data_uri("red"))],
        {},
        "send pictures in messages of the user",
    ),
    "a long question": (messages(data_uri("red"), "why " * 6000), {}, "characters"),
    "many tokens": (messages(data_uri("red")), {"max_tokens": 100_000}, "at most 256"),
    "a field that nobody reads": (messages(data_uri("red")), {"extra_body": {"guided_json": {}}}, "guided_json"),
    "several answers": (messages(data_uri("red")), {"n": 3}, "n: "),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_cannot_be_answered_is_told(served, name):
    asked, options, message = WRONG[name]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=re.escape(message)):
            served.client().chat.completions.create(model="tiny-model", messages=asked, stream=stream, **options)


def test_another_model(served):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'; this server has 'tiny-model'"):
        served.client().chat.completions.create(model="gpt-4", messages=messages(data_uri("red")))


def test_strangers(served):
    """Names that were led here and pages of other hosts; other methods and places; bodies without an end."""
    post = {"url": f"{served.url}/v1/chat/completions", "json": {"messages": messages(data_uri("red"))}}
    assert httpx.get(f"{served.url}/health", headers={"Host": "evil.example"}).status_code == 403
    assert httpx.post(**post, headers={"Host": "evil.example:80"}).status_code == 403
    assert httpx.post(**post, headers={"Host": "[::1"}).status_code == 403
    assert httpx.post(**post, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.post(**post, headers={"Origin": "null"}).status_code == 403
    assert httpx.post(**post, headers={"Origin": f"http://localhost:{served.port}"}).status_code == 200
    for path in ("/docs", "/openapi.json", "/v1/../etc/passwd", "/v1/files"):
        assert httpx.get(served.url + path).status_code == 404
    large = b'{"messages": "' + b"x" * 21 * 2**20 + b'"}'
    assert httpx.post(post["url"], content=large).status_code == 413
    assert httpx.post(post["url"], content=iter([large[:5], large[5:]])).status_code == 413
    assert httpx.post(post["url"], content=b"[" * 100_000).status_code == 400
    assert httpx.post(post["url"], content=b"\xff\xfe").status_code == 400


def test_a_key(folder):
    served = Served(folder, GITLLM_API_KEY="right")
    try:
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").chat.completions.create(model="", messages=messages(data_uri("red")))
        assert served.client("right").chat.completions.create(model="", messages=messages(data_uri("red"))).choices
        assert httpx.get(f"{served.url}/health").status_code == 200
    finally:
        served.close()


def ask_badly(served, number):
    """A request that is broken, huge, too slow or dropped."""
    url, kind = f"{served.url}/v1/chat/completions", number % 4
    if kind == 0:
        return httpx.post(url, content=b"{" * 50).status_code == 400
    if kind == 1:
        return httpx.post(url, content=b"x" * 21 * 2**20, timeout=60).status_code == 413
    body = json.dumps({"messages": messages(data_uri("red")), "max_tokens": 200, "stream": kind == 3}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head + (body if kind == 3 else body[:20]))
        time.sleep(0.2)
    return True


def test_what_is_refused_is_counted_and_told_in_one_form(served):
    def refused():
        return int(re.search(r"gitllm_refused_total (\d+)", httpx.get(f"{served.url}/metrics").text)[1])

    before = refused()
    for body in (b"{", b"[]", b'{"messages": 3}'):
        reply = httpx.post(f"{served.url}/v1/chat/completions", content=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"].startswith("not a request for a chat completion: ")
        assert ": : " not in reply.json()["error"]["message"]
    assert refused() == before + 3
    for path in ("/v1/completions", "/", "/v1/chat"):
        assert f"POST {path}" in httpx.post(f"{served.url}{path}").json()["error"]["message"]
    assert httpx.get(f"{served.url}/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("requests", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_bad_requests_hurt_no_other(served, pipeline, requests):
    expected = {
        color: pipeline.answer(Image.new("RGB", (40, 30), color), "what color?", decoding=Decoding(8))
        for color in COLORS
    }

    def ask(number):
        if number % 5 == 4:
            return ask_badly(served, number // 5)
        color = COLORS[number % len(COLORS)]
        asked = {"messages": messages(data_uri(color)), "max_tokens": 8}
        for _ in range(100):
            reply = httpx.post(f"{served.url}/v1/chat/completions", json=asked, timeout=120)
            if reply.status_code != 503:
                break
            time.sleep(0.2)
        return reply.json()["choices"][0]["message"]["content"] == expected[color]

    sizes = []
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        for first in range(0, requests, 100):
            assert all(pool.map(ask, range(first, min(requests, first + 100))))
            sizes.append(served.memory())
    # The first round loads and grows what stays.
    assert sizes[-1] < sizes[min(1, len(sizes) - 1)] * 1.05
    assert "gitllm_waiting 0" in httpx.get(f"{served.url}/metrics").text


class Slow:
    """A pipeline that waits until it is let."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.let, self.seen = threading.Event(), []

    def answers(self, questions, decoding):
        self.seen.append(len(questions))
        self.let.wait(30)
        if any(question.text == "break" for question in questions):
            raise RuntimeError("no memory")
        return [question.text for question in questions]


def test_the_queue():
    slow = Slow(None)
    batcher = Batcher(slow, batch_size=3, most_waiting=5, seconds=60)
    ask = lambda text, tokens=4: batcher.ask(Question((), text), Decoding(tokens))  # noqa: E731
    first = ask("first")
    while batcher.waiting:
        time.sleep(0.01)
    rest = [ask(text) for text in ("a", "b", "c", "d")] + [ask("other", 9)]
    with pytest.raises(BusyError, match="5 questions are waiting"):
        ask("too many")
    rest[1].cancel()
    after = ask("in its place")
    slow.let.set()
    assert first.result(5) == "first" and after.result(5) == "in its place"
    assert [future.result(5) for n, future in enumerate(rest) if n != 1] == ["a", "c", "d", "other"]
    # Those of one search share batches, in their order; what was dropped is not computed.
    assert slow.seen == [1, 2, 1, 2] or slow.seen == [1, 3, 1, 1]
    broken = ask("break")
    with pytest.raises(RuntimeError, match="no memory"):
        broken.result(5)
    assert ask("after").result(5) == "after"
    batcher.close()


def test_who_waited_too_long_is_told():
    slow = Slow(None)
    batcher = Batcher(slow, seconds=0.2)
    first, second = (batcher.ask(Question((), text), Decoding(tokens)) for text, tokens in (("a", 3), ("b", 4)))
    time.sleep(0.5)
    slow.let.set()
    assert first.result(5) == "a"
    with pytest.raises(BusyError, match="waited longer than 0.2 s"):
        second.result(5)
    batcher.close()


def test_a_stream_that_nobody_reads_ends(pipeline):
    batcher = Batcher(pipeline)
    question = Question((Image.new("RGB", (9, 9)),), "what?")
    pieces = []
    answer = batcher.ask(question, Decoding(200, repetition_penalty=2.0), lambda piece: bool(pieces.append(piece)))
    assert len(answer.result(30)) <= len(pieces[0]) + 1 and len(pieces) == 1
    with pytest.raises(DataError):
        batcher.ask(Question((), "no picture"), Decoding(4), lambda piece: True).result(30)
    batcher.close()
