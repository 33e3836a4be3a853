"""Shards that somebody else wrote: nothing outside their folder is named, deleted or waited for, and no record lies."""

import contextlib
import copy
import json
import os
import random
import tarfile

import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards.folder import ShardFolder
from gitllm_plugin.m3it.shards.format import read_manifest
from gitllm_plugin.m3it.shards.make import make_shards, merge
from gitllm_plugin.m3it.shards.mixture import ItemTable
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.shards.work import drop_finished
from gitllm_plugin.m3it.tree import find_tree
from tests.m3it_files import write_m3it_jsonl
from tests.m3it_shards import make_groups, write_shards

NO_NAMES = ["..", ".", ".work", "", "a/b", "/tmp", "a\\b", "a\0b", "~", "-x", "a\n", "ü", "x" * 61, "C:a"]


@pytest.fixture
def shards(tmp_path):
    groups = make_groups(tmp_path / "a.jsonl", "birds", "train", rows=6, texts_per_image=2)
    write_shards(tmp_path / "shards", groups, records_per_shard=2)
    return tmp_path / "shards"


def content_of(shards) -> dict:
    return json.loads((shards / "manifest.json").read_text())


# ---------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("what", ["configuration", "split"])
def test_names_that_lead_elsewhere_are_refused(shards, name, what):
    content = content_of(shards)
    splits = content["configs"].pop("birds")
    content["configs"] = {name: splits} if what == "configuration" else {"birds": {name: splits["train"]}}
    with pytest.raises(DataError, match="names have up to 60 letters"):
        read_manifest(content)


@pytest.mark.parametrize(
    "file", ["/etc/a.tar", "../a.tar", "birds/../../a.tar", "a//b.tar", "a\\..\\b.tar", "", ".a", 7]
)
def test_files_that_lead_elsewhere_are_refused(shards, file):
    content = content_of(shards)
    content["configs"]["birds"]["train"]["shards"][0]["file"] = file
    with pytest.raises(DataError, match=r"shards\[0\] lacks or has a wrong file"):
        read_manifest(content)


@pytest.mark.parametrize(
    "change",
    [
        {"record_texts": "2000000000 1", "texts": 2000000001},  # would be 12 GB of numbers
        {"record_blocks": "900000000000 1"},
        {"record_blocks": "9" * 5000 + " 1"},
        {"record_texts": "2  2"},
        {"bytes": 2**70},
    ],
)
def test_numbers_that_no_file_can_have_are_refused(shards, change):
    content = content_of(shards)
    content["configs"]["birds"]["train"]["shards"][0].update(change)
    with pytest.raises(DataError, match="is not as `gitllm m3it shard` writes it"):
        read_manifest(content)


def test_a_manifest_changed_anywhere_is_read_or_refused(shards):
    """Any value of it may be another one, of any kind."""
    generator = random.Random(1)
    values = [None, -1, 0, 2**80, 1.5, True, "", "..", "1 1", [], {}, [[]], {"..": {}}, "\0", [None]]
    whole = content_of(shards)
    for _ in range(300):
        content = copy.deepcopy(whole)
        for _ in range(generator.randint(1, 3)):
            place = content
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = generator.choice(list(keys) or [None])
                if key is None or not isinstance(place[key], (dict, list)) or generator.random() < 0.2:
                    break
                place = place[key]
            if key is not None:
                place[key] = generator.choice(values)
        with contextlib.suppress(DataError):
            read_manifest(content)


# ---------------------------------------------------------------------------------------------- what is deleted


@pytest.fixture
def treasure(tmp_path):
    """What must not be deleted, with the names that a work folder has."""
    folder = tmp_path / "treasure" / "train"
    folder.mkdir(parents=True)
    for name in ("plan.json", "000000.json", "000000.000.tar", "photo.jpg"):
        (folder / name).write_text("{}")
    return folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("linked", [".work", ".work/birds", ".work/birds/train"])
@pytest.mark.parametrize("command", ["merge", "shard"])
def test_nothing_is_deleted_behind_a_link(shards, treasure, tmp_path, linked, command, capsys):
    link = shards / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    target = {1: tmp_path / "birds_parent", 2: treasure.parent, 3: treasure}[len(linked.split("/"))]
    if linked == ".work":
        target.mkdir()
        treasure.parent.rename(target / "birds")
        treasure = target / "birds" / "train"
    link.symlink_to(target)
    tree = tmp_path / "tree"
    write_m3it_jsonl(tree / "data" / "fish" / "train.jsonl", rows=2)
    arguments = [str(shards)] if command == "merge" else [str(tree), str(shards), "--configs", "fish"]
    main(["m3it", command, *arguments])
    assert names(treasure) == ["000000.000.tar", "000000.json", "photo.jpg", "plan.json"]
    assert "Traceback" not in capsys.readouterr().err


def test_only_files_that_making_shards_writes_are_deleted(shards):
    work = shards / ".work" / "birds" / "train"
    (work / "000007.json").mkdir(parents=True)  # a folder of that name is nobody's file
    kept = ["notes.txt", "7.json", "000001.tar.bak", ".hidden"]
    ours = ["plan.json", "000001.json", "000001.000.tar", ".000002.000.tar.host.12.partial"]
    for name in [*kept, *ours]:
        (work / name).write_text("{}")
    drop_finished(shards)
    assert names(work) == sorted([*kept, "000007.json"])


def test_a_folder_without_a_plan_is_nobodys(shards):
    work = shards / ".work" / "birds" / "train"
    work.mkdir(parents=True)
    (work / "000001.json").write_text("{}")
    drop_finished(shards)
    assert names(work) == ["000001.json"]


@pytest.mark.parametrize("plan", ["", "[]", '{"parts": 3, "sources": [], "settings": {}}', '{"parts": []'])
def test_a_plan_that_is_none_is_named(tmp_path, plan):
    work = tmp_path / "out" / ".work" / "birds" / "train"
    work.mkdir(parents=True)
    (work / "plan.json").write_text(plan)
    with pytest.raises(DataError, match=r"plan\.json is not what `gitllm m3it shard` writes. Delete"):
        merge(tmp_path / "out")


@pytest.mark.parametrize("note", ["", "{}", '{"shards": {}, "skips": {}, "problems": [], "ids": []}'])
def test_a_note_that_is_none_is_named(tmp_path, note):
    write_m3it_jsonl(tmp_path / "tree" / "birds" / "train.jsonl", rows=4)
    tree = find_tree(tmp_path / "tree", ["birds"], ["train"])
    make_shards(tree, tmp_path / "out", Settings(60_000), share=(0, 2))
    make_shards(tree, tmp_path / "out", Settings(60_000), share=(1, 2))
    (tmp_path / "out" / ".work" / "birds" / "train" / "000000.json").write_text(note)
    with pytest.raises(DataError, match=r"000000\.json is not what"):
        merge(tmp_path / "out")


# ---------------------------------------------------------------------------------------------- members


def signed(header: bytearray) -> bytes:
    """A tar header with its sum mended."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def read_both(shards):
    """Both ways of reading the first record, each of which gives a record or says why not."""
    folder = ShardFolder(str(shards))
    item = ItemTable(folder.read_manifest(), ["birds"], "train", 16)[0]
    outcomes = []
    for read in (folder.read, folder.read_texts):
        try:
            outcomes.append(read(item))
        except RowError as error:
            outcomes.append(error.kind)
            str(error).encode()  # can be printed
    return outcomes


def size_of(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11, "big") if number >= 0 else (256**12 + number).to_bytes(12, "big")


@pytest.mark.parametrize("size", [-1, -513, -(2**40), 2**33, 2**50, 2**87, b"777777777777", b"   -1 \0", b"8 9\0"])
@pytest.mark.parametrize("member", [0, 1])
def test_sizes_that_lie(shards, size, member):
    path = shards / "birds" / "train" / "000000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        place = tar.getmembers()[member].offset
    header = data[place : place + 512]
    header[124:136] = (size_of(size) if isinstance(size, int) else size).ljust(12, b"\0")
    data[place : place + 512] = signed(header)
    path.write_bytes(data)
    assert read_both(shards) == ["record", "record"]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"S", b"L", b"K", b"x", b"g", b"X"])
def test_members_that_are_no_plain_files(shards, kind):
    path = shards / "birds" / "train" / "000000.tar"
    data = bytearray(path.read_bytes())
    header = data[:512]
    header[156:157] = kind
    data[:512] = signed(header)
    path.write_bytes(data)
    assert read_both(shards) == ["record", "record"]


def test_headers_changed_anywhere(shards):
    path = shards / "birds" / "train" / "000000.tar"
    whole = path.read_bytes()
    generator = random.Random(2)
    for _ in range(200):
        data = bytearray(whole)
        header = data[:512]
        for _ in range(generator.randint(1, 4)):
            header[generator.randrange(512)] = generator.randrange(256)
        data[:512] = signed(header)
        path.write_bytes(data)
        assert all(outcome == "record" or outcome.config == "birds" for outcome in read_both(shards))


@pytest.mark.parametrize("texts", ['"ab"', "[3]", '[{"answers": "ab", "id": "", "instruction": "", "question": ""}]'])
def test_texts_that_are_none(shards, texts):
    path = shards / "birds" / "train" / "000000.tar"
    with tarfile.open(path) as tar:
        member = next(each for each in tar.getmembers() if each.name.endswith(".json"))
    data = bytearray(path.read_bytes())
    record = b'{"config":"birds","split":"train","number":0,"images":1,"texts":%s}' % texts.encode()
    assert len(record) <= member.size
    data[member.offset_data : member.offset_data + member.size] = record.ljust(member.size)
    path.write_bytes(data)
    assert read_both(shards) == ["record", "record"]


@pytest.mark.parametrize("what", ["pipe", "folder", "link to nothing", "empty"])
def test_a_shard_that_is_no_file(shards, what):
    path = shards / "birds" / "train" / "000000.tar"
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "empty": path.touch,
    }[what]()
    assert read_both(shards) == ["shard", "shard"]
