"""Follow-up questions, files of the server's machine, and answers by llama.cpp where there is no torch."""

import asyncio
import socket
import threading

import httpx
import openai
import pytest
from PIL import Image

from gitllm_plugin import Pipeline
from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Decoding
from gitllm_plugin.serving.messages import ChatRequest, Limits, read_request
from tests.serving.kit import Served, data_uri, messages


class Model:
    """What requests are read for."""

    def __init__(self, max_images, conversations=False, places_pictures=False):
        self.max_images, self.conversations, self.places_pictures = max_images, conversations, places_pictures


def asked(*turns):
    """Make messages of colors (a picture), ``say:`` (the assistant) and questions."""
    made = []
    for turn in turns:
        if turn.startswith("say:"):
            made.append({"role": "assistant", "content": turn[4:]})
            continue
        words = turn.split(" ")
        uris = [data_uri(word[1:]) for word in words if word.startswith("@")]
        text = " ".join(word for word in words if not word.startswith("@"))
        parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        made.append({"role": "user", "content": [*parts, {"type": "text", "text": text}] if uris else text})
    return made


def read(turns, most_pictures=1, **limits):
    request = ChatRequest.model_validate({"messages": asked(*turns)})
    wanted = read_request(request, Limits(**limits), Model(most_pictures))
    pixels = wanted.count_pixels(Limits(**limits))
    question = wanted.question(Limits(**limits), pixels)
    assert pixels == sum(picture.shape[0] * picture.shape[1] for picture in question.pictures)
    assert len(wanted.pictures) == len(question.pictures)
    return question.text, [tuple(picture[0, 0]) for picture in question.pictures]


RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("turns", "most", "text", "pictures"),
    [
        (["@red what?"], 1, "what?", [RED]),
        (["@red what?", "say:a car", "is it fast?"], 1, "is it fast?", [RED]),
        (["@red", "say:a car", "and now?", "say:the same", "why?"], 1, "why?", [RED]),
        # A model of one picture is asked about the newest, one of several about as many as it takes, in their order.
        (["@red what?", "say:a car", "@blue and this?"], 1, "and this?", [BLUE]),
        (["@red what?", "say:a car", "@blue and this?"], 2, "and this?", [RED, BLUE]),
        (["@red a", "@green b", "@blue c", "which is the last?"], 2, "which is the last?", [GREEN, BLUE]),
        (["@red @green a", "say:two", "@blue same?"], 2, "same?", [BLUE]),
        (["@red @green a", "say:two", "@blue same?"], 3, "same?", [RED, GREEN, BLUE]),
        (["hello", "say:hello", "@green what?"], 4, "what?", [GREEN]),
    ],
)
def test_a_follow_up_is_about_the_pictures_of_the_conversation(turns, most, text, pictures):
    assert read(turns, most) == (text, pictures)


def test_pictures_that_are_not_looked_at_are_not_read():
    broken = asked("@red what?", "say:a car", "@blue and this?")
    broken[0]["content"][0]["image_url"]["url"] = "data:image/png;base64,aGVsbG8="
    request = ChatRequest.model_validate({"messages": broken})
    assert read_request(request, Limits(), Model(1)).question(Limits(), 40 * 30).text == "and this?"
    with pytest.raises(DataError, match="picture 1"):
        read_request(request, Limits(), Model(2)).count_pixels(Limits())
    with pytest.raises(DataError, match="picture 2"):
        read(["@red what?", "@blue and this?"], 2, pixels=40 * 30 * 2 - 1)


@pytest.mark.parametrize(
    ("turns", "most", "before"),
    [
        (["@red what?"], 1, ()),
        (["@red what?", "say:a car", "is it fast?"], 1, (("what?", "a car"),)),
        (
            ["@red what?", "say:a car", "and now?", "say:the same", "why?"],
            1,
            (("what?", "a car"), ("and now?", "the same")),
        ),
        # What was said of a picture that is not seen any more is not read.
        (["@red what?", "say:a car", "@blue and this?"], 1, ()),
        (["@red what?", "say:a car", "@blue and this?", "say:a bus", "why?"], 1, (("and this?", "a bus"),)),
        (["@red what?", "say:a car", "@blue and this?"], 2, (("what?", "a car"),)),
        (["hello", "say:hi", "@green what?"], 1, (("hello", "hi"),)),
    ],
)
def test_a_model_of_conversations_reads_what_was_said(turns, most, before):
    request = ChatRequest.model_validate({"messages": asked(*turns)})
    assert read_request(request, Limits(), Model(most, conversations=True)).turns == before
    assert read_request(request, Limits(), Model(most)).turns == ()


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        (["@red what?", "and why?"], "these messages are of: user, user;"),
        (["@red what?", "say:a", "say:b", "why?"], "of: user, assistant, assistant, user;"),
        (["@red what?", f"say:{'long ' * 5000}", "why?"], "the conversation before it has 25,00"),
    ],
)
def test_what_no_conversation_is(turns, told):
    request = ChatRequest.model_validate({"messages": asked(*turns)})
    with pytest.raises(DataError, match=told):
        read_request(request, Limits(), Model(1, conversations=True))


def test_a_conversation_with_openais_client(served, pipeline):
    client = served.client()
    said = messages(data_uri("blue"), "what color?")
    for question in ("what color?", "is it large?", "and what else?"):
        if len(said) > 1:
            said.append({"role": "user", "content": question})
        expected = pipeline.answer(Image.new("RGB", (40, 30), "blue"), question, decoding=Decoding(9))
        reply = client.chat.completions.create(model="", messages=said, max_tokens=9)
        assert reply.choices[0].message.content == expected
        said.append({"role": "assistant", "content": expected})


# ---------------------------------------------------------------- files


def named(url):
    return {"messages": messages(url, "what color?"), "max_tokens": 5}


@pytest.fixture(scope="module")
def pictures(served, folder):
    """Pictures below the folder that the server gives, and around it what it must not give."""
    root = folder.parent
    (root / "more pictures").mkdir()
    Image.new("RGB", (40, 30), "green").save(root / "more pictures" / "a b.png")
    Image.new("RGB", (40, 30), "green").save(root / "green.png")
    (root / "inside.png").symlink_to(root / "green.png")
    (root / "text.png").write_text("no picture")
    outside = root.parent / f"{root.name}-secret.png"
    Image.new("RGB", (40, 30), "red").save(outside)
    (root / "outside.png").symlink_to(outside)
    (root / "up").symlink_to(root.parent)
    return root


def test_files_below_the_folder_are_read(served, pipeline, pictures):
    expected = pipeline.answer(Image.new("RGB", (40, 30), "green"), "what color?", decoding=Decoding(5))
    for url in (
        "file:green.png",
        f"file://{pictures}/green.png",
        f"file://localhost{pictures}/green.png",
        "file:inside.png",
        "file:more%20pictures/a%20b.png",
        "file:more pictures/../green.png",
    ):
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=named(url), timeout=60).json()
        assert reply["choices"][0]["message"]["content"] == expected, url


@pytest.mark.parametrize(
    "url",
    [
        "file:../{name}-secret.png",
        "file:///etc/hostname",
        "file:/etc/hostname",
        "file:%2e%2e/{name}-secret.png",
        "file:..%2f{name}-secret.png",
        "file:outside.png",
        "file:up/{name}-secret.png",
        "file://{root}-secret.png",
        "file://other.example{root}/green.png",
        "file:nothing.png",
        "file:more pictures",
        "file:",
        "file:a%00b.png",
        "file:[",
        "file://[::1/green.png",
        "file:" + "x" * 5000,
        "FILE:green.png",
        "green.png",
    ],
)
def test_no_other_file_is_read(served, pictures, url):
    url = url.format(root=pictures, name=pictures.name)
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=named(url), timeout=60)
    assert reply.status_code == 400 and "below the folder" in reply.json()["error"]["message"], reply.text


def test_what_is_no_picture_or_too_large(served, pictures):
    (pictures / "large.png").write_bytes(b"\0" * (20 * 2**20 + 1))
    for name, told in (("text.png", "picture 1"), ("large.png", "more than 20,971,520 bytes")):
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=named(f"file:{name}"), timeout=60)
        assert reply.status_code == 400 and told in reply.json()["error"]["message"]


def test_without_a_folder_no_file_is_read(pictures):
    with pytest.raises(DataError, match="files only below the folder of --files"):
        request = ChatRequest.model_validate(named(f"file://{pictures}/green.png"))
        read_request(request, Limits(), Model(1)).count_pixels(Limits())


def test_a_file_that_has_grown_since_it_was_counted_is_refused(tmp_path):
    limits = Limits(files=tmp_path)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    asked = read_request(ChatRequest.model_validate(named(f"file://{tmp_path}/a.png")), limits, Model(1))
    pixels = asked.count_pixels(limits)
    assert pixels == 12 and len(asked.question(limits, pixels).pictures) == 1
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than the 12 allowed"):
        asked.question(limits, pixels)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"type": "text"}], "a part of type text has no text"),
        ([{"type": "image_url"}], "has its picture as one of"),
        ([{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": None}], "has its picture as one of"),
    ],
)
def test_a_part_with_nothing_in_it_is_told(content, told):
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": content}]})
    with pytest.raises(DataError, match=told):
        read_request(request, Limits(), Model(1))


# ---------------------------------------------------------------- who waits for whom


def test_nobody_waits_for_requests_that_do_not_come(served):
    """Many that have begun and send no more, slowly or not at all, hold nobody up."""
    begun = []
    try:
        for _ in range(40):
            connection = socket.create_connection(("127.0.0.1", served.port))
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{"
            )
            begun.append(connection)
        reply = httpx.post(f"{served.url}/v1/chat/completions", json=named(data_uri("red")), timeout=15)
        assert reply.status_code == 200
    finally:
        for connection in begun:
            connection.close()


def test_a_stream_that_is_dropped_while_it_waits_frees_its_place():
    """In the queue already, not only when its turn has come."""
    import uvicorn

    from gitllm_plugin.serving.api import make_app
    from tests.serving.test_endpoint import Slow

    class Stuck(Slow):
        max_images, conversations, places_pictures = 1, False, False
        stream = property(lambda self: pytest.fail("the dropped question was computed"))

        def is_cut(self, answer, decoding):
            return False

    stuck = Stuck(None)
    app = make_app(stuck, "stuck", None, Limits(waiting=1))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
        threads = [threading.Thread(target=server.run, kwargs={"sockets": [listening]})]
        threads[0].start()
        while not server.started:
            pass
        answers = []
        ask = lambda: answers.append(httpx.post(url, json=named(data_uri("red")), timeout=60).status_code)  # noqa: E731
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
        while not stuck.seen:
            pass
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json={**named(data_uri("red")), "stream": True}, timeout=0.5)
        for _ in range(100):  # its place is free
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            threads[-1].join(0.3)
            if threads[-1].is_alive():
                break
        stuck.let.set()
        for thread in threads[1:]:
            thread.join(30)
        server.should_exit = True
        threads[0].join(30)
    assert answers.count(200) == 2 and set(answers) <= {200, 503}


class Waits:
    """A model that answers when it is let."""

    max_images, conversations, places_pictures = 1, False, False

    def __init__(self):
        self.let = threading.Event()

    def answers(self, questions, decoding):
        self.let.wait(60)
        return ["answer"] * len(questions)

    def is_cut(self, answer, decoding):
        return False


SMALL = {
    "a small picture": (named(data_uri("red", (10, 10))), None),
    "no picture": ({"messages": [{"role": "user", "content": "what?"}]}, "no picture; send it as"),
    "no base64": (named("data:image/png;base64,%%%"), "is not base64"),
    "too large": (named(data_uri("red", (101, 100))), "more than the 10,000 allowed"),
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_who_waits_for_room_keeps_nobody_from_decoding(name, monkeypatch):
    """Four requests fill the room for pixels but for a little, and three more of the largest size wait for it."""
    from gitllm_plugin.serving.api import make_app
    from gitllm_plugin.serving.bounds import Room

    content, told = SMALL[name]
    model, wanted, take = Waits(), [], Room.take
    monkeypatch.setattr(Room, "take", lambda self, size: wanted.append(size) or take(self, size))
    app = make_app(model, "waits", None, Limits(pixels=10_000, batch_size=1))

    async def all_want_room():
        while len(wanted) < 7:
            await asyncio.sleep(0.01)

    async def run():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            ask = lambda body: asyncio.create_task(client.post("/v1/chat/completions", json=body))  # noqa: E731
            large = [ask(named(data_uri("red", (100, 99)))) for _ in range(7)]
            await asyncio.wait_for(all_want_room(), 30)
            reply = ask(content)
            if told is not None:
                answer = await asyncio.wait_for(reply, 30)
                assert answer.status_code == 400 and told in answer.text
            model.let.set()
            assert [each.status_code for each in await asyncio.gather(*large)] == [200] * 7
            return await reply

    assert asyncio.run(run()).status_code == (200 if told is None else 400)


# ---------------------------------------------------------------- addresses and engines


@pytest.mark.parametrize("command", ["serve", "demo"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--port", "80000"], "--port is '80000'; give a number from 1 to 65535"),
        (["--port=-1"], "--port is '-1'"),
        (["--port", "http"], "--port is 'http'"),
        (["--port", "8_0"], "--port is '8_0'"),
        (["--port", ""], "--port is ''"),
        (["--port", "0", "--host", "no such name"], "--host is 'no such name'"),
        (["--port", "0", "--host", "192.0.2.1"], "192.0.2.1:0 cannot be listened on"),
        (["--port", "{taken}"], "give another --port or --host"),
    ],
)
def test_a_wrong_address_is_one_line_before_a_model_is_loaded(command, given, told, folder, capsys, monkeypatch):
    monkeypatch.setattr("gitllm_plugin.host.open_model.open_answering", lambda path: pytest.fail("it was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = [each.format(taken=taken.getsockname()[1]) for each in given]
        assert main([command, "--model", str(folder), *given]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_network_names_its_own_pages(served):
    """Who listens to the network takes any name, and still no page of another host's."""
    from gitllm_plugin.common.web_requests import Refused, check_sender, hosts_of

    def sender(**headers):
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        check_sender({"headers": given, "method": "POST", "path": "/v1/chat/completions"}, hosts_of("0.0.0.0"))

    for own in ({}, {"origin": "http://box.example:8000"}, {"origin": "https://box.example:8000"}):
        sender(host="box.example:8000", **own)
    for other in (
        {"origin": "http://box.example"},
        {"origin": "http://evil.example"},
        {"referer": "http://evil.example/box.example:8000"},
        {"sec_fetch_site": "cross-site"},
    ):
        with pytest.raises(Refused, match="requests of other pages are refused"):
            sender(host="box.example:8000", **other)


@pytest.fixture(scope="module")
def llama_folder(folder, tmp_path_factory):
    for package in ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
        pytest.importorskip(package, reason="pip install 'gitllm-plugin[llama-cpp]'")
    target = tmp_path_factory.mktemp("llama") / "tiny-gguf"
    assert main(["export", str(folder), str(target), "--to", "llama.cpp"]) == 0
    return target


@pytest.fixture(scope="module")
def without_torch(llama_folder):
    served = Served(llama_folder, hidden=("torch", "transformers", "torchvision"))
    yield served
    assert served.close() in (0, 130)


@pytest.fixture(scope="module")
def in_float32(folder):
    return Pipeline.from_pretrained(folder, dtype="float32")


@pytest.mark.parametrize("color", ["red", "green", "white"])
def test_llama_cpp_answers_where_there_is_no_torch(without_torch, in_float32, color):
    client, uri = without_torch.client(), data_uri(color)
    expected = in_float32.answer(Image.new("RGB", (40, 30), color), "what color?", decoding=Decoding(9))
    asked = messages(uri, "what color?")
    reply = client.chat.completions.create(model="tiny-gguf", messages=asked, max_tokens=9)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason in ("stop", "length")
    pieces = list(client.chat.completions.create(model="", messages=asked, max_tokens=9, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    follow_up = [*asked, {"role": "assistant", "content": expected}, {"role": "user", "content": "is it large?"}]
    reply = client.chat.completions.create(model="", messages=follow_up, max_tokens=9)
    again = in_float32.answer(Image.new("RGB", (40, 30), color), "is it large?", decoding=Decoding(9))
    assert reply.choices[0].message.content == again


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0.7}, "greedily"),
        ({"max_tokens": 257}, "at most 256"),
        ({"messages": messages(data_uri("red"), "why? " * 3_000)}, "tokens"),
        ({"messages": messages("data:image/png;base64,aGVsbG8=")}, "picture 1"),
    ],
)
def test_what_llama_cpp_cannot_is_told(without_torch, options, told):
    given = {"model": "", "messages": messages(data_uri("red")), **options}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=told):
            without_torch.client().chat.completions.create(**given, stream=stream)
    assert httpx.get(f"{without_torch.url}/health").json()["status"] == "ok"
