"""Making shards: the same bytes whoever makes them, however often they were killed, on however many machines."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.group import MAX_TEXTS, Group, Text, join_groups
from gitllm_plugin.m3it.images import prepare_image
from gitllm_plugin.m3it.report import format_size
from gitllm_plugin.m3it.shards import make as making
from gitllm_plugin.m3it.shards.format import read_group, read_manifest
from gitllm_plugin.m3it.shards.make import make_shards, merge
from gitllm_plugin.m3it.shards.plan import Settings, choose_share, find_revision, make_plan, parse_share, parse_size
from gitllm_plugin.m3it.tree import find_tree
from tests.m3it_files import encode
from tests.m3it_tree import INSTRUCTIONS, to_base64, write_lines
from tests.photos import open_photo

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = Settings(max_size=60_000)


def noise(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_tree(root: Path, coco_rows: int = 60, vqa_rows: int = 90) -> None:
    """coco with five captions an image, docvqa with three questions an image, some rows broken."""
    coco, docvqa = root / "data" / "captioning" / "coco", root / "data" / "vqa" / "docvqa"
    rows = [
        {"image": to_base64(encode(noise(number))), "meta": {"targets": [f"{number} {place}" for place in range(5)]}}
        for number in range(coco_rows)
    ]
    write_lines(coco / "train.jsonl", [*rows[:7], b"{broken", *rows[7:]])
    rows = [
        {"image_str": to_base64(encode(noise(number // 3), "JPEG")), "question": f"q{number}", "answer": f"a{number}"}
        for number in range(vqa_rows)
    ]
    rows[20]["answer"] = ""
    write_lines(docvqa / "val.jsonl", rows)
    for folder in (coco, docvqa):
        (folder / "instructions.json").write_text(json.dumps(INSTRUCTIONS))


def find(root: Path):
    return dataclasses.replace(find_tree(root, ["coco", "docvqa"]), missing=())


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_tar(path: Path) -> list[Group]:
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            members.setdefault(member.name.split(".")[0], {})[member.name] = tar.extractfile(member).read()
    return [read_group(record, key) for key, record in members.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_tree(root)
    return root


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """The shards of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("shards")
    make_shards(find(root), out, SETTINGS)
    return out


def test_every_example_is_in_one_shard_and_the_manifest_tells_the_truth(made):
    manifest = read_manifest(made)
    assert {(config, split) for config, splits in manifest.configs.items() for split in splits} == {
        ("coco", "train"),
        ("docvqa", "val"),
    }
    for config, splits in manifest.configs.items():
        for split, part in splits.items():
            assert [shard.file for shard in part.shards] == [
                f"{config}/{split}/{number:06d}.tar" for number in range(len(part.shards))
            ]
            assert len(part.shards) >= 3
            for shard in part.shards:
                groups = read_tar(made / shard.file)
                data = (made / shard.file).read_bytes()
                assert hashlib.sha256(data).hexdigest() == shard.sha256
                assert shard.bytes == len(data) <= SETTINGS.max_size
                assert shard.groups == len(groups)
                assert shard.texts == sum(len(group.texts) for group in groups)
                assert shard.images == sum(len(group.images) for group in groups)
                assert shard.record_texts == " ".join(str(len(group.texts)) for group in groups)
            assert part.sources[0]["file"].endswith(f"{split}.jsonl")
    coco, docvqa = manifest.configs["coco"]["train"], manifest.configs["docvqa"]["val"]
    assert (coco.groups, coco.texts, coco.skips) == (60, 300, {"json": 1})
    assert (docvqa.texts, docvqa.skips) == (89, {"empty_answer": 1})
    assert 30 <= docvqa.groups < 40  # three questions an image, but where a part ends between them
    ids = [text.id for shard in coco.shards for group in read_tar(made / shard.file) for text in group.texts]
    lines = [*range(1, 8), *range(9, 62)]
    assert ids == [f"coco/train/{line}/{number}" for line in lines for number in range(1, 6)]
    assert sorted(path.name for path in made.iterdir()) == ["coco", "docvqa", "manifest.json"]


def test_the_number_of_processes_changes_no_byte(root, made, tmp_path):
    make_shards(find(root), tmp_path, SETTINGS, workers=2)
    assert all_bytes(tmp_path) == all_bytes(made)


def test_made_again_nothing_is_done(root, made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
    assert make_shards(find(root), tmp_path / "out", SETTINGS) == {}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")} == before
    assert all_bytes(tmp_path / "out") == all_bytes(made)


def test_a_further_configuration_is_added(root, made, tmp_path):
    make_shards(find_tree(root, ["docvqa"], ["val"]), tmp_path, SETTINGS)
    assert list(read_manifest(tmp_path).configs) == ["docvqa"]
    make_shards(find(root), tmp_path, SETTINGS)
    assert all_bytes(tmp_path) == all_bytes(made)


@pytest.mark.parametrize("shares", [2, 5, 40])
def test_shares_of_several_machines_give_the_same_bytes(root, made, tmp_path, shares):
    for index in reversed(range(shares)):  # in any order
        assert make_shards(find(root), tmp_path, SETTINGS, share=(index, shares)) == {}
    assert not (tmp_path / "manifest.json").exists()
    assert len(merge(tmp_path)) == 2
    assert all_bytes(tmp_path) == all_bytes(made)
    assert merge(tmp_path) == {}


def test_shares_are_alike_and_hold_each_part_once(root, tmp_path):
    plans = make_plan(find(root), tmp_path, SETTINGS)
    parts = [(plan.files.config, number) for plan in plans for number in range(len(plan.ranges))]
    for shares in (1, 3, 8):
        chosen = [choose_share(plans, (index, shares)) for index in range(shares)]
        assert [(plan.files.config, number) for share in chosen for plan, number in share] == parts
        sizes = [sum(plan.weights[number] for plan, number in share) for share in chosen]
        assert max(sizes) - min(sizes) <= 2 * SETTINGS.max_size * 5 / 4


def test_a_merge_without_all_shares_names_what_is_missing(root, made, tmp_path, capsys):
    for index in (0, 2):
        make_shards(find(root), tmp_path, SETTINGS, share=(index, 3))
    with pytest.raises(DataError, match=r"coco/train: \d+ of \d+ parts are not made yet .*--part i/n.* merge again"):
        merge(tmp_path)
    make_shards(find(root), tmp_path, SETTINGS, share=(1, 3))
    assert main(["m3it", "merge", str(tmp_path)]) == 0
    assert "coco" in capsys.readouterr().out
    assert all_bytes(tmp_path) == all_bytes(made)
    with pytest.raises(DataError, match="there are no shards below"):
        merge(tmp_path / "other")


@pytest.mark.parametrize("victim", ["os.replace", "write_manifest", "clear_split"])
def test_stopped_while_a_split_is_finished(root, made, tmp_path, monkeypatch, victim):
    """At every step of finishing, what is there goes on to the same result."""
    for index in range(2):
        make_shards(find(root), tmp_path, SETTINGS, share=(index, 2))
    calls = {"n": 0}
    module, _, name = victim.rpartition(".")
    owner = getattr(making, module) if module else making
    real = getattr(owner, name)

    def stop(*args, **kwargs):
        if Path(args[-1] if name == "replace" else "x.tar").suffix != ".tar":  # only renames of shards
            return real(*args, **kwargs)
        calls["n"] += 1
        if calls["n"] == 2 or (name != "replace" and calls["n"] == 1):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, stop)
        merge(tmp_path)
    assert calls["n"] > 0
    make_shards(find(root), tmp_path, SETTINGS)
    assert all_bytes(tmp_path) == all_bytes(made)


def test_killed_in_the_middle_and_run_again_the_bytes_are_the_same(tmp_path):
    """The command itself, with its worker processes, killed by signal 9 as soon as some parts are done."""
    write_tree(tmp_path / "tree", coco_rows=150, vqa_rows=200)
    options = ["--configs", "coco", "docvqa", "--max-size", "60KB", "--resize-short-side", "24", "--allow-missing"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def command(out: str) -> list[str]:
        return [
            sys.executable, "-m", "gitllm_plugin", "m3it", "shard", str(tmp_path / "tree"), str(tmp_path / out),
            *options, "--workers", "2",
        ]  # fmt: skip

    process = subprocess.Popen(command("killed"), env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    work = tmp_path / "killed" / ".work"
    deadline = time.monotonic() + 60
    while len(list(work.glob("*/*/0*.json"))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    first = (work / "coco" / "train" / "000000.000.tar").stat()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    subprocess.run(command("killed"), env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    # What was done was kept: the first shard is the file that was there before.
    assert (tmp_path / "killed" / "coco" / "train" / "000000.tar").stat().st_mtime_ns == first.st_mtime_ns
    make_shards(find(tmp_path / "tree"), tmp_path / "whole", Settings(60_000, 24))
    assert all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "whole")
    assert len(list((tmp_path / "whole").rglob("*.tar"))) > 10


def test_other_settings_or_files_are_refused(root, made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    with pytest.raises(ConfigError, match="coco/train: max_size was 60000 and is 70000"):
        make_shards(find(root), tmp_path / "out", Settings(70_000))
    with pytest.raises(ConfigError, match="docvqa/val: seed was 0 and is 1"):
        make_shards(find_tree(root, ["docvqa"], ["val"], seed=1), tmp_path / "out", SETTINGS)
    shutil.copytree(root, tmp_path / "tree")
    with open(tmp_path / "tree" / "data" / "vqa" / "docvqa" / "val.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match="docvqa/val: the files have other names or sizes"):
        make_shards(find(tmp_path / "tree"), tmp_path / "out", SETTINGS)
    # The same while it is under way.
    make_shards(find(root), tmp_path / "half", SETTINGS, share=(0, 2))
    with pytest.raises(ConfigError, match="resize_short_side was None and is 8"):
        make_shards(find(root), tmp_path / "half", Settings(60_000, 8), share=(1, 2))


def test_ids_of_ones_own_must_be_unique(tmp_path):
    row = {"instruction": "i", "inputs": "", "outputs": "o", "image_base64_str": to_base64(encode(noise(0)))}
    write_lines(tmp_path / "mine" / "train.jsonl", [{**row, "id": name} for name in ("a", "b", "a")])
    with pytest.raises(DataError, match="mine/train: id 'a' of line 3 is also that of line 1"):
        make_shards(find_tree(tmp_path, ["mine"], ["train"]), tmp_path / "out", SETTINGS)


def test_names_that_shards_cannot_have(tmp_path):
    write_lines(tmp_path / "a b" / "train.jsonl", [{}])
    with pytest.raises(ConfigError, match="the configuration's name is 'a b'; in shards a name has"):
        make_shards(find_tree(tmp_path, ["a b"], ["train"]), tmp_path / "out", SETTINGS)


def test_a_record_that_is_too_large_has_a_shard_of_its_own(tmp_path):
    rows = [
        {
            "instruction": "i",
            "inputs": "",
            "outputs": "o",
            "image_base64_str": to_base64(encode(noise(seed, side, side))),
        }
        for seed, side in enumerate([40, 40, 200, 40])
    ]
    write_lines(tmp_path / "mine" / "train.jsonl", rows)
    (made,) = make_shards(find_tree(tmp_path, ["mine"], ["train"]), tmp_path / "out", Settings(30_000)).values()
    assert [shard.groups for shard in made.shards if shard.bytes > 30_000] == [1]
    assert made.groups == 4


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_images_are_made_smaller_and_never_larger(file_format):
    data = encode(noise(0, width=90, height=60), file_format, **({"quality": 90} if file_format == "JPEG" else {}))
    for short_side in (None, 60, 61):
        assert prepare_image(data, short_side=short_side) == data
    smaller = Image.open(io.BytesIO(prepare_image(data, short_side=30)))
    assert (smaller.format, smaller.size) == ("JPEG", (45, 30))
    original = Image.open(io.BytesIO(data)).convert("RGB").resize((45, 30), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(smaller, float) - np.asarray(original, float)).mean() < 4  # JPEG of noise
    assert prepare_image(data, short_side=30) == prepare_image(data, short_side=30)


def test_a_large_photograph_made_smaller_is_what_pillow_makes_of_it():
    photo = open_photo(1500, 1800)
    smaller = Image.open(io.BytesIO(prepare_image(encode(photo, "JPEG", quality=95), short_side=100)))
    assert smaller.size == (100, 120)
    expected = photo.resize((100, 120), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(smaller, float) - np.asarray(expected, float))
    assert difference.mean() < 2.5  # JPEG alone makes 1.8


def test_what_is_made_smaller_is_turned_as_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(noise(0, width=90, height=60), "JPEG", exif=exif)
    smaller = Image.open(io.BytesIO(prepare_image(data, short_side=30)))
    assert smaller.size == (30, 45)
    assert 0x0112 not in smaller.getexif()


def group(number: int, image: bytes, texts: int = 1) -> Group:
    return Group(
        "c",
        "train",
        number,
        (image,) if image else (),
        tuple(Text(f"{number}/{n}", "c", "", "", ("",)) for n in range(texts)),
    )


def numbers(groups) -> list[tuple[int, list[str]]]:
    return [(each.number, [text.id for text in each.texts]) for each in groups]


def test_texts_about_one_image_come_together():
    groups = [group(1, b"a"), group(2, b"b"), group(3, b"a", 2), group(4, b""), group(5, b""), group(6, b"b")]
    assert numbers(join_groups(groups)) == [
        (1, ["1/0", "3/0", "3/1"]),
        (2, ["2/0", "6/0"]),
        (4, ["4/0"]),
        (5, ["5/0"]),
    ]
    # Not when too much lies between them, nor more than so many.
    far = [group(1, b"a"), *(group(number, b"%05d" % number * 1000) for number in range(2, 9)), group(9, b"a")]
    assert [each[0] for each in numbers(join_groups(far, window_bytes=20_000))] == list(range(1, 10))
    many = list(join_groups(group(number, b"a") for number in range(2 * MAX_TEXTS + 3)))
    assert [len(each.texts) for each in many] == [MAX_TEXTS, MAX_TEXTS, 3]


def test_the_window_is_bounded():
    taken = 0

    def stream():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield group(number, b"%09d" % number * 1000)

    groups = join_groups(stream(), window_bytes=100_000)
    for count, _ in enumerate(groups, start=1):
        assert taken - count <= 12


def test_the_hubs_revision_is_noted(tmp_path):
    path = tmp_path / "data" / "vqa" / "train.jsonl"
    path.parent.mkdir(parents=True)
    assert find_revision(tmp_path, path) is None
    note = tmp_path / ".cache" / "huggingface" / "download" / "data" / "vqa" / "train.jsonl.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("2256415" + "0" * 33 + "\netag\n1700000000.0\n")
    assert find_revision(tmp_path, path) == "2256415" + "0" * 33
    cached = Path("/x/hub/datasets--MMInstruction--M3IT/snapshots") / ("ab" * 20) / "data" / "a.jsonl"
    assert find_revision(cached.parents[1], cached) == "ab" * 20


@pytest.mark.parametrize(
    "text, size", [("512MB", 512 * 10**6), ("1gb", 10**9), ("256 MiB", 2**28), ("1.5K", 1500), ("99", 99)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "12 parsecs", "-1MB", "0"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="expected a number with a unit such as 512MB"):
        parse_size(text)


def test_sizes_are_shown_in_a_unit_that_suits():
    assert [format_size(size) for size in (999, 8_778, 8_777_963_958)] == ["999 bytes", "8.8 kB", "8.8 GB"]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_shares_that_are_none(text):
    with pytest.raises(ConfigError, match="from 1/n to n/n"):
        parse_share(text)
    assert parse_share("3/16") == (2, 16)


def test_the_command_refuses_what_is_missing_and_tells_the_next_step(root, tmp_path, capsys):
    command = ["m3it", "shard", str(root), str(tmp_path), "--configs", "coco", "docvqa", "--workers", "1"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "coco/val: " in error
    assert "--allow-missing" in error
    assert main([*command, "--splits", "train", "--allow-missing", "--part", "1/2", "--max-size", "60KB"]) == 0
    printed = capsys.readouterr().out
    assert f"part 1/2 is done; when all are: gitllm m3it merge {tmp_path}" in printed
    assert "without docvqa/train" in printed
