"""Damage to files of weights is seen, wherever it is: one bit, a piece that is missing, another file in its place."""

import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gitllm_plugin.common.checksums import sum_of_weights
from gitllm_plugin.common.weights import is_readable, read_checkpoint, write_checkpoint, write_weights
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.host.open_model import open_pipeline
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards.features import FeatureReader, Maker, write_features
from gitllm_plugin.m3it.shards.mixture import records_of
from gitllm_plugin.modeling import GitLLM, build_git_llm, load_folder
from gitllm_plugin.modeling.build import merge_folder
from gitllm_plugin.modeling.lora import LoraSettings
from tests.m3it_shards import write_shards

WEIGHTS = {
    "a.weight": torch.linspace(-1, 1, 700).reshape(7, 100),
    "b": torch.arange(300, dtype=torch.float32).to(torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "none": torch.empty(0, 4),
}
CONTENT = {"model": WEIGHTS, "steps": 7, "config": {"run": {"seed": 1}}, "random": [None, ["a", torch.ones(3)]]}


def flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def outcome_of(path: Path) -> str:
    try:
        found = read_checkpoint(path)["model"]
    except ConfigError as error:
        assert str(path) in str(error)
        assert not is_readable(path)
        return "refused"
    same = found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    return "same" if same else "others"


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("where", ["anywhere", "at its ends"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, ending, where):
    """The ends are where a zip file and a safetensors file say what is in them."""
    path = tmp_path / f"a{ending}"
    if ending == ".pth":
        write_checkpoint(path, CONTENT)
    else:
        write_weights(path, WEIGHTS, steps=7)
    data, generator = path.read_bytes(), random.Random(3)
    at_ends = [*range(400), *range(len(data) - 1500, len(data))]
    found = []
    for _ in range(200):
        place = generator.randrange(len(data)) if where == "anywhere" else generator.choice(at_ends)
        path.write_bytes(flipped(data, place, generator.randrange(8)))
        found.append(outcome_of(path))
    assert "others" not in found and found.count("refused") > 50


def test_the_middle_of_each_record_of_a_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(CONTENT, path)  # as LAVIS writes it
    data = path.read_bytes()
    assert outcome_of(path) == "same"
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    for entry in entries:
        name_length, extra_length = (int.from_bytes(data[entry.header_offset + at :][:2], "little") for at in (26, 28))
        middle = entry.header_offset + 30 + name_length + extra_length + entry.file_size // 2
        path.write_bytes(flipped(data, middle, 0))
        assert outcome_of(path) == "refused", entry.filename


def test_an_entry_that_is_marked_as_a_folder(tmp_path):
    """One bit of the directory at a zip file's end, for which torch reads nothing and zipfile all."""
    path = tmp_path / "a.pth"
    write_checkpoint(path, CONTENT)
    data = path.read_bytes()
    place = data.index(b"PK\1\2")
    while place >= 0:
        path.write_bytes(flipped(data, place + 38, 4))
        assert outcome_of(path) in ("refused", "same")
        place = data.find(b"PK\1\2", place + 1)
    assert outcome_of(path) == "same" or "folder" in str(pytest.raises(ConfigError, read_checkpoint, path).value)


@pytest.mark.slow
def test_every_bit_of_a_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint(path, {"model": WEIGHTS, "steps": 7})
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(flipped(data, place, bit))
            assert outcome_of(path) != "others", (place, bit)


@pytest.mark.parametrize("damage", ["cut", "a hole", "another's end", "nothing"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_pieces_that_are_missing(tmp_path, damage, ending):
    path, other = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    for file, factor in ((path, 1), (other, 2)):
        weights = {name: value * factor for name, value in WEIGHTS.items()}
        write_checkpoint(file, {**CONTENT, "model": weights}) if ending == ".pth" else write_weights(file, weights)
    data, half = path.read_bytes(), path.stat().st_size // 2
    changed = {
        "cut": data[:half],
        "a hole": data[: half - 64] + bytes(128) + data[half + 64 :],
        "another's end": data[:half] + other.read_bytes()[half:],
        "nothing": b"",
    }[damage]
    path.write_bytes(changed)
    assert outcome_of(path) == "refused"


def test_files_without_checksums_are_read(tmp_path):
    """As other programs and version 0.1.0 write them."""
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert outcome_of(tmp_path / "a.safetensors") == "same"
    torch.save(CONTENT, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    assert outcome_of(tmp_path / "b.pth") == "same"


@pytest.mark.parametrize(
    "other",
    [
        {**WEIGHTS, "b": WEIGHTS["b"].float()},
        {**WEIGHTS, "a.weight": WEIGHTS["a.weight"].reshape(70, 10)},
        {("a" if name == "b" else name): value for name, value in WEIGHTS.items()},
        {**WEIGHTS, "more": torch.empty(0)},
        {**WEIGHTS, "scalar": torch.tensor(4)},
    ],
)
def test_a_sum_is_of_names_formats_shapes_and_values(other):
    assert sum_of_weights(other) != sum_of_weights(WEIGHTS)
    backwards = {name: WEIGHTS[name].t().contiguous().t() if name == "a.weight" else WEIGHTS[name] for name in WEIGHTS}
    assert sum_of_weights(dict(reversed(backwards.items()))) == sum_of_weights(WEIGHTS)


# ---------------------------------------------------------------------------------------------- an exported folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        model, tokenizer = build_git_llm("tiny:llama", "tiny:clip", lora=LoraSettings(dropout=0.0))
        model.save_pretrained(folder / name, tokenizer=tokenizer)
    return folder


def files_of_weights(folder: Path) -> list[Path]:
    names = ("config.json", "adapter_config.json")
    return sorted(path for path in folder.rglob("*") if path.suffix == ".safetensors" or path.name in names)


def test_flipped_bits_in_a_folder_are_named(exported, tmp_path):
    shutil.copytree(exported / "one", tmp_path / "copy")
    files, generator = files_of_weights(tmp_path / "copy"), random.Random(5)
    assert len(files) == 8
    for number in range(200):
        path = files[number % len(files)]
        data = path.read_bytes()
        path.write_bytes(flipped(data, generator.randrange(len(data)), generator.randrange(8)))
        with pytest.raises(ConfigError) as raised:
            load_folder(tmp_path / "copy")
        assert str(raised.value).startswith(f"{path} ")
        path.write_bytes(data)
    assert load_folder(tmp_path / "copy").model


@pytest.mark.parametrize(
    "name", ["projection.safetensors", "adapter/adapter_model.safetensors", "adapter", "language_model"]
)
def test_what_did_not_arrive_is_named(exported, tmp_path, name):
    shutil.copytree(exported / "one", tmp_path / "copy")
    path = tmp_path / "copy" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ConfigError, match=f"{name}.* is missing"):
        GitLLM.from_pretrained(tmp_path / "copy")
    with pytest.raises(ConfigError, match=f"{name}.* is missing"):
        merge_folder(tmp_path / "copy", tmp_path / "merged")


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("language_model/tokenizer.json", Path.unlink, "is missing"),
        ("language_model/tokenizer_config.json", Path.unlink, "is missing"),
        ("language_model/generation_config.json", Path.unlink, "is missing"),
        ("language_model/chat_template.jinja", Path.unlink, "is missing"),
        ("language_model/chat_template.jinja", lambda path: path.write_text("{{ 1 }}"), "has not the bytes"),
        ("language_model/generation_config.json", lambda path: path.write_text("{}"), "has not the bytes"),
        ("projection.safetensors", Path.unlink, "is missing"),
        ("projection.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100]), "was cut off"),
    ],
)
def test_any_file_that_is_read_is_checked_and_its_fault_told_once(exported, tmp_path, name, change, fault):
    tokenizer = load_folder(exported / "one").tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model = GitLLM.from_pretrained(exported / "one")
    model.save_pretrained(tmp_path / "copy", tokenizer=tokenizer)
    change(tmp_path / "copy" / name)
    with pytest.raises(ConfigError, match=f"{name}.*{fault}") as raised:
        load_folder(tmp_path / "copy")
    assert str(raised.value).count(name) == 1 and "Copy the folder again" in str(raised.value)


@pytest.mark.parametrize("left", ["language_model", "image_encoder", "projection.safetensors"])
def test_an_export_without_its_description_is_called_so(exported, tmp_path, left):
    (tmp_path / "copy").mkdir()
    whole = exported / "one" / left
    (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, tmp_path / "copy" / left)
    with pytest.raises(ConfigError, match=f"not copied whole: it has {left} and no git_llm.json. Copy the folder"):
        open_pipeline(tmp_path / "copy")


@pytest.mark.parametrize("name", ["projection.safetensors", "adapter/adapter_model.safetensors"])
def test_files_of_another_folder_of_the_same_shapes_are_named(exported, tmp_path, name):
    shutil.copytree(exported / "one", tmp_path / "copy")
    shutil.copyfile(exported / "two" / name, tmp_path / "copy" / name)
    with pytest.raises(
        ConfigError, match=f"(?s){name} has not the bytes .*If you changed a file yourself, take its line"
    ):
        load_folder(tmp_path / "copy")


# ---------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("bit", range(0, 16, 5))
def test_damaged_features_are_a_problem_of_their_record(tmp_path, bit):
    texts = (Text("1", "a", "i", "q", ("x",)),)
    groups = [Group("a", "train", number, (b"an image",), texts) for number in range(4)]
    shard = write_shards(tmp_path, groups).configs["a"]["train"].shards[0]
    maker = Maker("an encoder", "a processor")
    arrays = [np.full((1, 3, 8), number, np.uint16) for number in range(4)]
    write_features(tmp_path, shard, maker, "float32", arrays)
    (path,) = tmp_path.rglob("*.features")
    data = path.read_bytes()
    path.write_bytes(flipped(data, len(data) // 2 + bit, bit % 8))  # the first of the third record
    reader = FeatureReader(tmp_path, [shard], "a processor")
    items = list(records_of(shard))
    assert [int(reader.read(item).max()) for number, item in enumerate(items) if number != 2] == [0, 1, 3]
    with pytest.raises(RowError, match="the features of record 2 are damaged; delete its .features file") as raised:
        reader.read(items[2])
    assert raised.value.kind == "shard"


@pytest.mark.parametrize(
    "change",
    [
        {"first_image": [0, 2, 1]},
        {"first_image": []},
        {"first_image": [0, "1"]},
        {"tokens": -3},
        {"width": "8"},
        {"checksums": [1, 2]},
        {"checksums": 7},
        {"unreadable": [[1]]},
        {"unreadable": [[1, "unheard of", ""]]},
        {"shard": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_description_of_features_that_is_none_is_named(tmp_path, change):
    texts = (Text("1", "a", "i", "q", ("x",)),)
    shard = write_shards(tmp_path, [Group("a", "train", 0, (b"an image",), texts)]).configs["a"]["train"].shards[0]
    write_features(tmp_path, shard, Maker("e", "p"), "float32", [np.zeros((1, 3, 8), np.uint16)])
    (path,) = tmp_path.rglob("*.features.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="000000"):
        FeatureReader(tmp_path, [shard], "p")
