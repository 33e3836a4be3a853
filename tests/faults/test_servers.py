"""Shards on servers that trickle, stop, lie or never end: one error in a bounded time, and nothing is kept of it."""

import contextlib
import socket
import socketserver
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards import fetch as fetch_module
from gitllm_plugin.m3it.shards import folder as folder_module
from gitllm_plugin.m3it.shards.folder import FETCH_ATTEMPTS, ShardFolder
from gitllm_plugin.m3it.shards.mixture import ItemTable
from tests.m3it_shards import make_groups, write_shards

SECONDS = 0.2  # that a server is waited for where something is wrong with it, in the place of 60
SHARD = "/a/train/000000.tar"
MANIFEST = "/manifest.json"


class Server(socketserver.ThreadingTCPServer):
    """Answers as HTTP does, but what ``troubles`` names, as these say. ``asked`` counts."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked = folder, Counter()
        self.troubles: dict[str, Callable[[Handler, bytes], None]] = {}
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self):
        method, path, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        body = (self.server.folder / path[1:]).read_bytes()
        with contextlib.suppress(OSError):  # whoever asked has gone
            if method == "HEAD":
                return self.head(len(body))
            self.server.asked[path] += 1
            self.server.troubles.get(path, whole)(self, body)

    def head(self, size: int | None, *more: str):
        length = () if size is None else (f"Content-Length: {size}",)
        lines = ("HTTP/1.1 200 OK", *length, *more, "Connection: close", "", "")
        self.wfile.write("\r\n".join(lines).encode())

    def drip(self, data: bytes):
        for byte in data:
            self.wfile.write(bytes([byte]))
            if self.server.over.wait(0.05):
                return

    def pause(self):
        self.server.over.wait(20)


def whole(handler: Handler, body: bytes):
    handler.head(len(body))
    handler.wfile.write(body)


def never_answers(handler: Handler, body: bytes):
    handler.pause()


def trickles(handler: Handler, body: bytes):
    handler.head(len(body))
    handler.drip(body)


def trickles_its_head(handler: Handler, body: bytes):
    handler.drip(b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * len(body))


def trickles_after_a_good_start(handler: Handler, body: bytes):
    handler.head(len(body))
    handler.wfile.write(body[:-40])
    handler.drip(body[-40:])


def stops_in_the_middle(handler: Handler, body: bytes):
    handler.head(len(body))
    handler.wfile.write(body[: len(body) // 2])
    handler.pause()


def ends_before_its_length(handler: Handler, body: bytes):
    handler.head(len(body))
    handler.wfile.write(body[: len(body) // 2])


def says_less_than_there_is(handler: Handler, body: bytes):
    handler.head(len(body) // 2)
    handler.wfile.write(body)


def never_ends(handler: Handler, body: bytes):
    handler.head(None)
    handler.wfile.write(body)
    while not handler.server.over.is_set():
        handler.wfile.write(bytes(2**16))


def never_ends_in_chunks(handler: Handler, body: bytes):
    handler.head(None, "Transfer-Encoding: chunked")
    while not handler.server.over.is_set():
        handler.wfile.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")


def unpacks_to_gigabytes(handler: Handler, body: bytes):
    packed = zlib.compressobj(wbits=31)
    handler.head(None, "Content-Encoding: gzip")
    while not handler.server.over.is_set():
        handler.wfile.write(packed.compress(bytes(2**20)))


def drops_the_line(handler: Handler, body: bytes):
    handler.connection.shutdown(socket.SHUT_RDWR)


TROUBLES = [
    never_answers,
    trickles,
    trickles_its_head,
    trickles_after_a_good_start,
    stops_in_the_middle,
    ends_before_its_length,
    says_less_than_there_is,
    never_ends,
    never_ends_in_chunks,
    unpacks_to_gigabytes,
    drops_the_line,
]


@pytest.fixture
def groups(tmp_path):
    return make_groups(tmp_path / "a.jsonl", "a", "train", rows=4)


@pytest.fixture
def server(tmp_path, groups, monkeypatch):
    write_shards(tmp_path / "shards", groups, records_per_shard=2)
    monkeypatch.setattr(folder_module, "SECONDS_BETWEEN_ATTEMPTS", 0.01)
    monkeypatch.setattr(folder_module, "MOST_MANIFEST_BYTES", 2**20)
    with Server(tmp_path / "shards") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def within_its_bound(call):
    """Call in a thread that is given many times the servers' patience, and give what it raised."""
    raised = []

    def run():
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(15)
    assert not thread.is_alive(), "it hangs"
    assert raised, "it is taken for a whole file"
    return raised[0]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_shard_is_told_and_the_others_are_read(server, groups, tmp_path, trouble, monkeypatch):
    folder = ShardFolder(server.url, tmp_path / "cache")
    table = ItemTable(folder.read_manifest(), ["a"], "train", 16)
    server.troubles[SHARD] = trouble
    with monkeypatch.context() as patched:
        patched.setattr(fetch_module, "SECONDS", SECONDS)
        error = within_its_bound(lambda: folder.read(table[0]))
    assert isinstance(error, RowError) and error.kind == "shard"
    assert "000000.tar, record 0: the file cannot be fetched: " in str(error)
    # aiohttp asks once more by itself where a line is dropped.
    assert server.asked[SHARD] in (FETCH_ATTEMPTS, 2 * FETCH_ATTEMPTS)
    # Nothing of it is kept, and what is whole is read as ever, from the same server.
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert folder.read(table[2]) == groups[2]
    del server.troubles[SHARD]
    assert folder.read(table[0]) == groups[0]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_manifest_is_one_error(server, tmp_path, trouble, monkeypatch):
    monkeypatch.setattr(fetch_module, "SECONDS", SECONDS)
    server.troubles[MANIFEST] = trouble
    error = within_its_bound(ShardFolder(server.url, tmp_path / "cache").read_manifest)
    assert isinstance(error, DataError) and str(error).startswith(f"{server.url}/manifest.json cannot be read: ")
    assert server.asked[MANIFEST] in (1, 2)


@pytest.mark.timeout(30)
def test_a_good_but_slow_server_is_waited_for(server, groups, tmp_path, monkeypatch):
    """Its pieces come well within the bound, all of them together do not."""
    monkeypatch.setattr(fetch_module, "SECONDS", 1.5)
    monkeypatch.setattr(fetch_module, "LOWEST_SPEED", 1)
    monkeypatch.setattr(fetch_module, "_CHUNK_BYTES", 64)

    def slow(handler: Handler, body: bytes):
        handler.head(len(body))
        for start in range(0, len(body), step := len(body) // 8 + 1):
            handler.wfile.write(body[start : start + step])
            handler.server.over.wait(0.2)

    server.troubles[SHARD] = slow
    folder = ShardFolder(server.url, tmp_path / "cache")
    table = ItemTable(folder.read_manifest(), ["a"], "train", 16)
    assert folder.read(table[0]) == groups[0] and server.asked[SHARD] == 1


class HangingFileSystem(MemoryFileSystem):
    """A bucket's, without any time-out of its own."""

    protocol = "hanging"
    cachable = False
    over = threading.Event()

    def _open(self, path, *args, **kwargs):
        self.over.wait(20)
        return super()._open(path, *args, **kwargs)


@pytest.mark.timeout(30)
def test_file_systems_without_time_outs(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "SECONDS", SECONDS)
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    error = within_its_bound(ShardFolder("hanging://bucket/shards", tmp_path).read_manifest)
    HangingFileSystem.over.set()
    assert "manifest.json cannot be read: TimeoutError: no answer within 0.2 s" in str(error)
