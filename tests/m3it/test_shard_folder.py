"""Reading shards from a folder, from a server and through a cache, whole and damaged."""

import dataclasses
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards import folder as folder_module
from gitllm_plugin.m3it.shards.folder import ShardFolder, default_cache
from gitllm_plugin.m3it.shards.mixture import ItemTable
from tests.m3it_shards import make_groups, write_shards


@pytest.fixture
def groups(tmp_path):
    return make_groups(tmp_path / "a.jsonl", "a", "train", rows=10, texts_per_image=2, images_per_row=2)


@pytest.fixture
def shards(tmp_path, groups):
    write_shards(tmp_path / "shards", groups, records_per_shard=3)
    return tmp_path / "shards"


def read_all(folder: ShardFolder) -> list:
    table = ItemTable(folder.read_manifest(), ["a"], "train", 16)
    return [folder.read(table[number]) for number in range(len(table))]


class CountingHandler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(shards):
    handler = partial(CountingHandler, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = Counter()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def url_of(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_folder(shards, groups, monkeypatch):
    monkeypatch.setattr(folder_module, "MAX_OPEN_FILES", 1)
    folder = ShardFolder(str(shards))
    assert read_all(folder) == groups
    assert read_all(pickle.loads(pickle.dumps(folder))) == groups
    assert len(folder._files) == 1


def test_texts_are_read_without_images(shards, groups):
    folder = ShardFolder(str(shards))
    table = ItemTable(folder.read_manifest(), ["a"], "train", 16)
    read = [folder.read_texts(table[number]) for number in range(len(table))]
    assert read == [dataclasses.replace(group, images=()) for group in groups]
    path = shards / "a" / "train" / "000000.tar"
    whole = path.read_bytes()
    path.write_bytes(b"x" * 512 + whole[512:])
    with pytest.raises(RowError, match="record 0: not a record"):
        folder.read_texts(table[0])
    path.write_bytes(whole[:512])
    with pytest.raises(RowError, match="record 0: the file ends before the record does"):
        folder.read_texts(table[0])


def test_a_server_is_asked_once_for_each_shard(server, groups, tmp_path):
    for _ in range(2):
        assert read_all(ShardFolder(url_of(server) + "/", tmp_path / "cache")) == groups
    assert server.requests == {"/manifest.json": 2, "/a/train/000000.tar": 1, "/a/train/000001.tar": 1}
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock", ".lock", ".tar", ".tar"]


def test_forked_processes_share_the_cache(server, groups, tmp_path):
    folder = ShardFolder(url_of(server), tmp_path / "cache")
    table = ItemTable(folder.read_manifest(), ["a"], "train", 16)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def read(results) -> None:
        results.put([folder.read(table[number]) for number in range(len(table))] == groups)

    children = [context.Process(target=read, args=(results,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [results.get() for _ in children] == [True] * 3
    assert server.requests["/a/train/000001.tar"] == 1


def test_any_file_system_of_fsspec(shards, groups, tmp_path):
    bucket = fsspec.filesystem("memory")
    bucket.put(str(shards), "/bucket", recursive=True)
    assert read_all(ShardFolder("memory://bucket", tmp_path / "cache")) == groups
    bucket.rm("/bucket", recursive=True)


def test_shards_of_a_slow_disk_are_copied_when_asked(shards, groups, tmp_path):
    assert read_all(ShardFolder(str(shards), tmp_path / "cache")) == groups
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ShardFolder("s3://bucket/x").cache_dir == default_cache() == tmp_path / "gitllm" / "shards"
    assert ShardFolder(str(tmp_path)).cache_dir is None


def test_a_fetch_that_was_killed_leaves_nothing(server, groups, tmp_path):
    name = ItemTable(ShardFolder(url_of(server)).read_manifest(), ["a"], "train", 1).shards[0].sha256
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f".{name}.tar.123.partial").write_bytes(b"half")
    assert read_all(ShardFolder(url_of(server), tmp_path / "cache")) == groups
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_fetched_shard_is_what_the_manifest_says(server, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module.time, "sleep", lambda seconds: None)
    path = shards / "a" / "train" / "000001.tar"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(
        RowError, match="000001.tar, record 0: the file cannot be fetched: .* the manifest says"
    ) as caught:
        read_all(ShardFolder(url_of(server), tmp_path / "cache"))
    assert caught.value.kind == "shard"
    assert server.requests["/a/train/000001.tar"] == 3
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_a_server_without_shards(server, tmp_path):
    with pytest.raises(DataError, match="nowhere/manifest.json cannot be read: FileNotFoundError"):
        ShardFolder(url_of(server) + "/nowhere", tmp_path).read_manifest()


def test_sizes_are_compared_without_reading(shards):
    folder = ShardFolder(str(shards))
    files = ItemTable(folder.read_manifest(), ["a"], "train", 1).shards
    assert folder.find_missing(files) == []
    os.truncate(shards / files[0].file, 1000)
    (shards / files[1].file).unlink()
    first, second = folder.find_missing(files)
    assert first.endswith(f"000000.tar has 1000 of {files[0].bytes} bytes")
    assert second.endswith("000001.tar is missing")


def test_damaged_shards_and_records(shards, groups):
    folder = ShardFolder(str(shards))
    table = ItemTable(folder.read_manifest(), ["a"], "train", 16)
    path = shards / "a" / "train" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[table[1].offset] ^= 1  # a member's name: its header's sum is wrong then
    end = table[2].offset + table[2].size - 512  # the JSON of the third record
    path.write_bytes(data[:end])
    assert folder.read(table[0]) == groups[0]
    assert folder.read(table[3]) == groups[3]
    for number, kind, message in [
        (1, "record", "000000.tar, record 1: not a record .bad checksum"),
        (2, "shard", "record 2: the file ends before the record does; copy the file again"),
    ]:
        with pytest.raises(RowError, match=message) as caught:
            folder.read(table[number])
        assert caught.value.kind == kind
    (shards / "a" / "train" / "000001.tar").unlink()
    with pytest.raises(RowError, match="000001.tar, record 0: the file cannot be opened .*No such file"):
        ShardFolder(str(shards)).read(table[3])


def test_a_record_that_is_a_tar_but_not_ours(shards):
    folder = ShardFolder(str(shards))
    item = ItemTable(folder.read_manifest(), ["a"], "train", 16)[0]
    path = shards / "a" / "train" / "000000.tar"
    path.write_bytes(path.read_bytes().replace(b'"texts":', b'"tests":'))
    with pytest.raises(RowError, match="record 0: not a record of this format .KeyError: 'texts'") as caught:
        folder.read(item)
    assert caught.value.kind == "record"
