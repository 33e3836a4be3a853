"""What can be wrong with rows: each is counted under its kind, with its line; none stops anything, none is silent."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.m3it.adapters import ADAPTERS, IMAGE
from gitllm_plugin.m3it.check import check_tree
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.m3it.problems import KINDS
from gitllm_plugin.m3it.rows import RowReader
from gitllm_plugin.m3it.scan import open_split
from gitllm_plugin.m3it.shards.format import read_manifest
from gitllm_plugin.m3it.shards.make import make_shards
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.tree import find_tree
from tests.m3it_files import encode, encode_png
from tests.m3it_tree import INSTRUCTIONS, to_base64, write_lines

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))


def vqa_row(image, **changes) -> dict:
    row = {"image_str": image, "question": "why?", "answer": "so"}
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(NOISE, "JPEG", exif=exif)


def header_of(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels, with none behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


# Rows that can be used: unusual images, decoded as they should be.
GOOD = {
    "16-bit PNG": (encode(Image.fromarray(np.full((9, 7), 0x4321, np.uint16))), (7, 9)),
    "palette PNG": (encode(NOISE.convert("P")), (48, 64)),
    "EXIF rotation": (exif_rotated(), (64, 48)),
    "CMYK JPEG": (encode(NOISE.convert("CMYK"), "JPEG"), (48, 64)),
    "grey JPEG": (encode(NOISE.convert("L"), "JPEG"), (48, 64)),
    "WEBP": (encode(NOISE, "WEBP"), (48, 64)),
    "2 MB of base64": (
        encode(Image.fromarray(np.random.default_rng(1).integers(0, 256, (720, 720, 3), dtype=np.uint8))),
        (720, 720),
    ),
}
PNG, JPEG = to_base64(encode(NOISE)), to_base64(encode(NOISE, "JPEG"))

# Rows that cannot, and their kind. What is marked is seen only when the pixels are decoded.
BAD = {
    "invalid UTF-8": (b'{"image_str": "", "question": "caf\xe9"}', "utf8", False),
    "not JSON": (b'{"image_str": ', "json", False),
    "a list": ([1], "json", False),
    "no question": (vqa_row(PNG, question=...), "missing_key", False),
    "question is null": (vqa_row(PNG, question=None), "wrong_value", False),
    "null image": (vqa_row(None), "no_image", False),
    "no image": (vqa_row([]), "no_image", False),
    "null among images": (vqa_row([PNG, None]), "no_image", False),
    "empty answer": (vqa_row(PNG, answer=" "), "empty_answer", False),
    "null answer": (vqa_row(PNG, answer=None), "empty_answer", False),
    "answer is an object": (vqa_row(PNG, answer={}), "wrong_value", False),
    "a path for an image": (vqa_row("train/1.jpg"), "base64", False),
    "line breaks in base64": (vqa_row(PNG[:76] + "\n" + PNG[76:]), "base64", False),
    "text for an image": (vqa_row(to_base64(b"<html>404</html>")), "image", False),
    "truncated JPEG": (vqa_row(to_base64(encode(NOISE, "JPEG")[:-700])), "image_truncated", True),
    "truncated PNG": (vqa_row(to_base64(encode(NOISE)[:-900])), "image_truncated", True),
    "damaged PNG": (vqa_row(to_base64(encode(NOISE)[:2000] + b"\0" * 60 + encode(NOISE)[2060:])), "image", True),
    "100-megapixel header": (vqa_row(to_base64(header_of(10_000, 10_000))), "image_too_large", False),
    "gigapixel header": (vqa_row(to_base64(header_of(40_000, 40_000))), "image_too_large", False),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tree with one configuration: good rows, bad ones, a blank line, and good ones again."""
    root = tmp_path_factory.mktemp("faults")
    rows = [vqa_row(to_base64(image)) for image, _ in GOOD.values()]
    rows += [row for row, _, _ in BAD.values()]
    folder = root / "data" / "vqa" / "docvqa"
    write_lines(folder / "train.jsonl", [*rows, b"", vqa_row(JPEG)])
    (folder / "instructions.json").write_text(json.dumps(INSTRUCTIONS))
    return root


def expected(decode: bool) -> dict[int, str]:
    """Kind by line."""
    kinds = enumerate(BAD.values(), start=len(GOOD) + 1)
    return {line: kind for line, (_, kind, hidden) in kinds if decode or not hidden}


def test_the_fixture_is_what_it_says():
    assert len(to_base64(GOOD["2 MB of base64"][0])) > 2 * 10**6
    assert {kind for _, kind, _ in BAD.values()} == set(KINDS) - {"duplicate_id", "shard", "record", "too_long"}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_images_are_read(name):
    data, size = GOOD[name]
    assert decode_image(data).size == size


@pytest.mark.parametrize("look", ["header", "pixel"])
@pytest.mark.parametrize("workers", [1, 2])
def test_check_finds_each_fault_on_its_line(root, look, workers):
    report = check_tree(find_tree(root, ["docvqa"], ["train"]), look=look, workers=workers)
    (split,) = report.splits
    assert {problem.line: problem.kind for problem in split.problems} == expected(look == "pixel")
    assert {problem.file for problem in split.problems} == {"data/vqa/docvqa/train.jsonl"}
    assert all(problem.message for problem in split.problems)
    assert split.rows == len(GOOD) + len(BAD) + 1
    assert split.examples == split.rows - len(expected(look == "pixel"))
    assert split.examples == split.images
    assert not report.is_good


@pytest.mark.parametrize("short_side", [None, 24])
def test_shards_hold_what_is_good_and_list_what_is_not(root, tmp_path, short_side):
    tree = find_tree(root, ["docvqa"], ["train"])
    (made,) = make_shards(tree, tmp_path, Settings(10**7, short_side)).values()
    listed = [json.loads(line) for line in (tmp_path / "docvqa" / "train" / "skips.jsonl").read_text().splitlines()]
    assert {each["line"]: each["kind"] for each in listed} == expected(True)
    assert made.skips == {kind: list(expected(True).values()).count(kind) for kind in set(expected(True).values())}
    assert made.texts == len(GOOD) + 1
    assert read_manifest(tmp_path).configs["docvqa"]["train"] == made


def test_training_from_the_tree_leaves_out_and_tells(root, tmp_path):
    tree = find_tree(root, ["docvqa"], ["train"])
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path))
    assert {problem.line: problem.kind for problem in examples.problems} == expected(False)
    (last,) = examples[len(examples) - 1].texts
    assert last.id == f"docvqa/train/{len(GOOD) + len(BAD) + 2}"  # the blank line counts as one
    # What a check has decoded is known from then on.
    check_tree(tree, look="pixel", index_folder=tmp_path)
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path))
    assert {problem.line: problem.kind for problem in examples.problems} == expected(True)
    for index in range(len(examples)):
        decode_image(examples[index].images[0])


def test_one_empty_caption_costs_one_example(tmp_path):
    folder = tmp_path / "data" / "captioning" / "coco"
    write_lines(folder / "val.jsonl", [{"image": PNG, "meta": {"targets": ["a", "", "c"]}}, {"image": PNG, "meta": {}}])
    (folder / "instructions.json").write_text(json.dumps(INSTRUCTIONS))
    tree = find_tree(tmp_path, ["coco"], ["val"])
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path))
    assert [examples[index].texts[0].id for index in range(2)] == ["coco/val/1/1", "coco/val/1/3"]
    assert [(problem.line, problem.kind) for problem in examples.problems] == [(1, "empty_answer"), (2, "missing_key")]


def test_science_qa_may_have_no_image(tmp_path):
    folder = tmp_path / "data" / "reasoning" / "science_qa"
    write_lines(folder / "science_qa_test.jsonl", [vqa_row(None), vqa_row(PNG)])
    (folder / "instructions.json").write_text(json.dumps(INSTRUCTIONS))
    tree = find_tree(tmp_path, ["science-qa"], ["test"])
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path))
    assert [len(examples[index].images) for index in range(2)] == [0, 1]
    (made,) = make_shards(tree, tmp_path / "out", Settings(10**6)).values()
    assert (made.groups, made.images, made.skips) == (2, 1, {})


def test_ids_of_ones_own_must_be_unique(tmp_path):
    row = {"instruction": "i", "inputs": "", "outputs": "o", "image_base64_str": PNG}
    write_lines(tmp_path / "mine" / "train.jsonl", [{**row, "id": name} for name in ("a", "b", "a")])
    tree = find_tree(tmp_path, ["mine"], ["train"])
    (split,) = check_tree(tree).splits
    assert [(problem.line, problem.kind) for problem in split.problems] == [(3, "duplicate_id")]
    assert split.examples == 2
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path / "index"))
    assert [group.texts[0].id for group in examples] == ["a", "b"]
    assert len(examples.problems) == 1


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own for the indexes."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_the_command_reports_and_its_status_says_so(root, tmp_path, capsys, home):
    report = tmp_path / "report.json"
    command = ["m3it", "check", str(root), "--configs", "docvqa", "--splits", "train", "--workers", "1"]
    assert main([*command, "--decode", "--report", str(report)]) == 1
    printed = capsys.readouterr().out
    for said in ("39,463 (!)", "2 image_truncated", "the image breaks off", "train.jsonl:8: not UTF-8", "more"):
        assert said in printed
    content = json.loads(report.read_text())
    assert content["good"] is False
    assert content["images_checked"] == "pixel"
    (split,) = content["splits"]
    assert {problem["line"]: problem["kind"] for problem in split["problems"]} == expected(True)
    assert split["kinds"]["utf8"] == 1
    assert main(command) == 1
    assert "by their headers only; --decode" in capsys.readouterr().out


def test_a_good_tree_is_status_0_and_a_missing_file_is_not(tmp_path, capsys, home):
    row = {"instruction": "i", "inputs": "", "outputs": "o", "image_base64_str": PNG}
    write_lines(tmp_path / "mine" / "train.jsonl", [row] * 3)
    command = ["m3it", "check", str(tmp_path), "--workers", "1", "--configs", "mine"]
    assert main(command) == 0
    assert "all is well" in capsys.readouterr().out
    assert main([*command, "iqa"]) == 1
    assert f"iqa/val: {tmp_path}/data/classification/iqa/val.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("value", [None, ["a"], {"text": "a"}, " ", float("nan")])
@pytest.mark.parametrize(
    ("form", "key"),
    [("vqa_v2", "original_answer"), ("paraphrased", "answer"), ("snli_ve", "hypothesis"), ("imagenet_open", "label")],
)
def test_what_says_nothing_is_not_put_into_a_sentence(form, key, value):
    image = encode_png(NOISE)
    row = {name: image if inner == IMAGE else inner for name, inner in ADAPTERS[form].example.items()}
    reader = RowReader("c", "train", form, "train", ("Say [HYPO].",), labels={0: "a cat"})
    assert reader.read(row, 1)[1] == []
    group, (problem,) = reader.read({**row, key: value}, 1)
    assert group is None and problem.kind == "wrong_value" and key in problem.message
