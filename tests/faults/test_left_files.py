"""What a command leaves for the next one, damaged: it is told or made anew, and never taken as it is."""

import json
import random

import pytest

import gitllm_plugin
from gitllm_plugin.common.run_files import read_records
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.experiments.record import StepRecord
from gitllm_plugin.m3it.catalog import BY_NAME
from gitllm_plugin.m3it.shards.make import make_shards, merge
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.tree import find_tree
from gitllm_plugin.words.collection import read_collection
from tests.faults.kit import damage
from tests.faults.run_formats import RUN_FORMATS
from tests.faults.table_formats import TABLE_FORMATS
from tests.m3it_files import make_square
from tests.m3it_tree import write_entry


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00\x04\x00abcd"])
def test_an_index_that_is_none_is_not_there(tmp_path, content):
    (tmp_path / "whole").mkdir()
    index = TABLE_FORMATS["index"]
    index.make(tmp_path / "whole")
    assert index.read(tmp_path / "whole")[1] == 0
    next((tmp_path / "whole").glob("*.npz")).write_bytes(content)
    assert index.read(tmp_path / "whole") == ([], 1)


@pytest.mark.parametrize(
    "change", [("sha256", "0" * 64), ("groups", 3), ("record_texts", "5 5 5"), ("images", None), ("", "")]
)
def test_a_note_of_a_part_that_says_something_else_is_refused(tmp_path, change):
    write_entry(tmp_path / "tree", BY_NAME["coco"], rows=4)
    tree, out = find_tree(tmp_path / "tree", ["coco"], ["train"]), tmp_path / "out"
    make_shards(tree, out, Settings(max_size=3_000), share=(0, 2))
    make_shards(tree, out, Settings(max_size=3_000), share=(1, 2))
    note = out / ".work" / "coco" / "train" / "000000.json"
    content = json.loads(note.read_text())
    content["shards"][0][change[0]] = change[1]
    note.write_text(json.dumps(content))
    with pytest.raises(DataError, match="is not what `gitllm m3it shard` writes"):
        merge(out)
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"step": "2", "loss": 1.0}', '{"loss": 1.0}', '{"step": 2, "loss": "x"}']
)
def test_lines_that_are_no_records_are_counted(tmp_path, line):
    records = [json.dumps({"step": number, "loss": 1.0}) for number in range(3)]
    (tmp_path / "records").write_text("\n".join([*records[:2], line, records[2]]) + "\n")
    with pytest.warns(UserWarning, match="1 line is no record"):
        assert [record["step"] for _, record in read_records(tmp_path / "records")] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"[" * 100_000, b"\xff"])
def test_a_record_of_steps_that_is_none_is_told(tmp_path, content):
    (tmp_path / "steps.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"steps\.json does not say which steps are finished"):
        StepRecord(tmp_path / "steps.json")


@pytest.mark.parametrize("content", [b"gr\xfcn", b"\xff\xfea\0", b"ok \x80"])
def test_texts_beside_pictures_and_classes_that_are_not_utf8_are_told(tmp_path, content):
    make_square("red", random.Random(0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        list(read_collection(str(tmp_path), 10))
    write_entry(tmp_path / "tree", BY_NAME["imagenet"], rows=1)
    next((tmp_path / "tree").rglob("mapping.txt")).write_bytes(content)
    with pytest.raises(DataError, match=r"mapping\.txt is not UTF-8"):
        find_tree(tmp_path / "tree", ["imagenet"])


@pytest.mark.parametrize(
    "dialogue",
    [{"image_id": [1]}, {"image_id": "x"}, {}, {"image": 7}, {"image_id": 1, "dialog": [{"question": 1}]}],
)
def test_dialogues_of_another_form_are_told(tmp_path, dialogue):
    gitllm_plugin.register()
    from gitllm_plugin.datasets.datasets.visdial_dataset import VisDialDataset

    path = tmp_path / "dialogues.json"
    turns = [{"question": "what", "answer": "that"}]
    path.write_text(json.dumps({"dialogs": [{"caption": "a cat.", "dialog": turns, **dialogue}]}))
    with pytest.raises(DataError, match=r"dialogues\.json is not a file of dialogues"):
        VisDialDataset(str, str, str(tmp_path), [str(path)])


def test_damage_is_the_same_for_the_same_seed():
    data = bytes(range(256)) * 4
    first, again = ([damage(data, random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == again != [data] * 50


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 90_000_000},
        {"num_hidden_layers": 5_000_000},
        {"hidden_size": -16},
        {"vocab_size": 0},
        {"ffn_dim": 1e99},
    ],
)
def test_published_sizes_that_are_not_those_of_the_weights_take_no_memory(tmp_path, change):
    RUN_FORMATS["published"].make(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ConfigError, match=r"as its configuration says|configuration is none|it is damaged"):
        RUN_FORMATS["published"].read(tmp_path)
