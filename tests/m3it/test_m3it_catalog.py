"""The catalog: its numbers, its files, and that every entry can be read from a tree in its own form."""

import os
import tarfile
from collections import defaultdict

import pytest

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it import catalog
from gitllm_plugin.m3it.adapters import ADAPTERS, IMAGE, NUM_OPTIONS, Draft, Parsed, adapter, get
from gitllm_plugin.m3it.catalog import CATALOG, PRESETS, SPLITS, check_names, get_preset
from gitllm_plugin.m3it.check import check_tree
from gitllm_plugin.m3it.examples import IndexedExamples
from gitllm_plugin.m3it.rows import choose_instruction
from gitllm_plugin.m3it.scan import open_split
from gitllm_plugin.m3it.shards.format import read_group, read_manifest
from gitllm_plugin.m3it.shards.make import make_shards
from gitllm_plugin.m3it.shards.plan import Settings
from gitllm_plugin.m3it.tree import find_tree
from tests.m3it_tree import (
    CLASSES,
    HYPOTHESIS_INSTRUCTIONS,
    INSTRUCTIONS,
    accepted,
    make_example,
    make_row,
    read_drafts,
    write_entry,
    write_lines,
)

NAMES = [entry.name for entry in CATALOG]


def count(preset: str, split: str) -> int:
    return sum(entry.rows(split) or 0 for entry in get_preset(preset))


def test_the_articles_third_experiment():
    entries = get_preset("article_exp3")
    assert len(entries) == 26
    assert (count("article_exp3", "train"), count("article_exp3", "val")) == (1_361_650, 213_786)
    assert {"science-qa", "vist", "winoground"}.isdisjoint(entry.name for entry in entries)
    assert count("english", "train") == 1_379_376


@pytest.mark.parametrize(
    "category, sums",
    [  # the data card's own sums
        ("captioning", (679_087, 41_462, 27_499)),
        ("classification", (238_303, 100_069, 21_206)),
        ("vqa", (177_633, 46_314, 10_828)),
        ("kvqa", (39_981, 11_682, 5_477)),
        ("reasoning", (99_372, 11_500, 10_000 + 800)),  # the card leaves out winoground
        ("generation", (145_000, 11_315, 17_350)),
        ("chinese", (192_076, 77_306 + 900, 4_100)),  # the card's sum is not that of its rows
        ("video", (20_868, 7_542, 9_294)),
    ],
)
def test_sums_of_the_data_card(category, sums):
    assert tuple(count(category, split) for split in SPLITS) == sums


def test_presets_divide_the_papers_40():
    assert len(get_preset("core")) == 40
    train, heldout = ({entry.name for entry in get_preset(name)} for name in ("paper_train", "paper_heldout"))
    assert train | heldout == {entry.name for entry in get_preset("core")}
    assert not train & heldout
    assert {"winoground", "viquae", "coco-cn", "ivqa"} <= heldout
    assert all(get_preset(name) for name in PRESETS)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ConfigError, match="unknown preset 'exp3'; there are: all, article_exp3, .*`gitllm m3it list`"):
        get_preset("exp3")
    with pytest.raises(ConfigError, match="unknown M3IT configurations 'cocoo', 'x'; there are: .*coco, "):
        check_names(["cocoo", "coco", "x"], NAMES, "M3IT configuration")


def test_entries_are_consistent():
    assert len(set(NAMES)) == len(NAMES)
    files = defaultdict(list)
    for entry in CATALOG:
        assert entry.adapter in ADAPTERS
        for split in entry.splits:
            files[entry.folder, entry.file_names(split)[0]].append(entry.name)
    shared = {tuple(names) for names in files.values() if len(names) > 1}
    assert shared == {("imagenet", "imagenet-open-ended"), ("visual-dialog", "visual-dialog-turns")}


@pytest.mark.parametrize(
    "name, split, file",
    [
        ("coco", "train", "captioning/coco/train.jsonl"),
        ("coco-itm", "test", "classification/itm/test.jsonl"),
        ("vqa-v2", "val", "vqa/vqav2/val.jsonl"),
        ("shapes", "train", "vqa/shapes/train.large.jsonl"),
        ("shapes", "val", "vqa/shapes/val.jsonl"),
        ("snli-ve", "val", "classification/snli-ve/esnlive_val.jsonl"),
        ("mocheg", "train", "classification/mocheg/mocheg_train.jsonl"),
        ("science-qa", "val", "reasoning/science_qa/science_qa_validation.jsonl"),
        ("image-paragraph-captioning", "test", "captioning/image_paragraph_captioning/any_test.jsonl"),
        ("viquae", "val", "vqa/viquae/validation.jsonl"),
        ("viquae", "val", "vqa/viquae/validation_v2.jsonl"),
        ("mmchat", "val", "generation/mmchat/validation.jsonl"),
        ("okvqa", "train", "vqa/okvqa/train_v2.jsonl"),
        ("winoground", "test", "classification/winoground/winoground_test.jsonl"),
        ("clevr-rephrased", "train", "reasoning/clevr/train_2023-10-08.jsonl"),
    ],
)
@pytest.mark.parametrize("base", ["data", "."])
def test_irregular_file_names_are_found(tmp_path, name, split, file, base):
    path = tmp_path / base / file
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    (path.parent / "instruction.json").write_text('["Do it."]')
    (files,) = find_tree(tmp_path, [name], [split]).splits
    assert [found.resolve() for found in files.paths] == [path.resolve()]
    assert (files.config, files.split) == (name, split)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The whole catalog as raw files, three rows a split, and its shards."""
    root = tmp_path_factory.mktemp("m3it")
    made = {entry.name: write_entry(root, entry) for entry in CATALOG}
    found = find_tree(root, NAMES, seed=5)
    assert not found.missing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # five hundred times, which takes a slow disk many seconds
        make_shards(found, root / "shards", Settings(max_size=10**6))
    return found, made


@pytest.fixture(scope="module")
def records(tree):
    return read_records(tree[0].root / "shards")


def read_records(root):
    """All records of the shards by configuration and split."""
    groups = defaultdict(list)
    for config, splits in read_manifest(root).configs.items():
        for split, made in splits.items():
            for shard in made.shards:
                with tarfile.open(root / shard.file) as tar:
                    members = defaultdict(dict)
                    for member in tar:
                        members[member.name.split(".")[0]][member.name] = tar.extractfile(member).read()
                groups[config, split] += [read_group(record, key) for key, record in members.items()]
    return groups


@pytest.mark.parametrize("entry", CATALOG, ids=NAMES)
def test_every_entry_is_read_from_its_own_form(tree, records, tmp_path, entry):
    check_entry(*tree, records, tmp_path, entry)


def check_entry(found, made, records, folder, entry) -> None:
    assert entry.splits
    completes = read_drafts(entry.adapter)[0].complete is not None
    for split in entry.splits:
        (files,) = [files for files in found.splits if (files.config, files.split) == (entry.name, split)]
        examples = IndexedExamples(open_split(found, files, folder))
        assert examples.problems == []
        rows = made[entry.name][split]
        expected = [(row, text) for row in rows for text in row.texts]
        assert len(examples) == len(expected)
        for index, (row, (question, answers)) in enumerate(expected):
            (example,) = examples[index].texts
            assert example.config == entry.name
            assert list(examples[index].images) == row.images
            assert question is None or example.question == question
            assert answers is None or example.answers == answers
            assert all(answer.strip() for answer in example.answers)
            if row.instruction is not None:
                assert example.instruction == row.instruction
            elif not completes:
                assert example.instruction == choose_instruction(example.id, 5, INSTRUCTIONS)
        ids = [group.texts[0].id for group in examples]
        assert len(set(ids)) == len(ids)
        assert ids[0].startswith(f"{entry.name}/{split}/1")
        # The shards hold the very same examples.
        groups = records[entry.name, split]
        assert [(group.images, text) for group in groups for text in group.texts] == [
            (group.images, *group.texts) for group in examples
        ]
        assert len(groups) == len(rows)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_reads_its_own_example(name):
    made = make_example(name, [b"one", b"two", b"three"])
    assert made.images
    question, answers = made.texts[0]
    drafts = read_drafts(name)
    assert question is None or (drafts[0].question, accepted(drafts[0].answers)) == (question, answers)
    assert ADAPTERS[name].has_instructions == (drafts[0].instruction is not None)


@pytest.mark.parametrize("says", [["Stop.", "Halt."], [["Stop.", "Stop!"], "Halt."]])
def test_a_new_data_set_is_a_line_and_a_function_which_bring_their_test(tmp_path, monkeypatch, says):
    def signs(row, beside):
        return Parsed(get(row, ("photo",)), [Draft("", text) for text in get(row, ("says",))])

    monkeypatch.setitem(ADAPTERS, "signs", None)  # taken out again behind the test
    adapter(example={"photo": IMAGE, "says": says}, gives=("", accepted(says[0])))(signs)
    entry = catalog.Entry("signs", "captioning", "captioning/signs", "signs", 3, 0, 3, "cider", "own")
    monkeypatch.setitem(catalog.BY_NAME, "signs", entry)
    made = {"signs": write_entry(tmp_path, entry)}
    found = find_tree(tmp_path, ["signs"], seed=5)
    assert not found.missing
    make_shards(found, tmp_path / "shards", Settings(max_size=10**6))
    check_entry(found, made, read_records(tmp_path / "shards"), tmp_path / "index", entry)


def test_captions_of_one_image_are_one_record(tree, records):
    assert [len(group.texts) for group in records["coco", "train"]] == [5, 6, 5]
    assert records["coco", "train"][1].texts[2].id == "coco/train/2/3"


def test_the_hypothesis_stands_in_the_instruction(records):
    for number, group in enumerate(records["snli-ve", "val"]):
        instruction = group.texts[0].instruction
        assert f"there is snli-ve val {number}" in instruction
        assert "[HYPO]" not in instruction
        hypothesis = f"there is snli-ve val {number}"
        assert instruction in [text.replace("[HYPO]", hypothesis) for text in HYPOTHESIS_INSTRUCTIONS]


def test_imagenet_asks_for_one_of_ten_classes(records):
    for number, group in enumerate(records["imagenet", "train"]):
        (text,) = group.texts
        options = dict(line.split(") ", 1) for line in text.question.splitlines())
        assert list(options) == [f"({letter}" for letter in "ABCDEFGHIJ"]
        assert len(set(options.values())) == NUM_OPTIONS
        letter, name = text.answers[0].split(") ", 1)
        assert options[letter] == name == CLASSES[number]
    places = {group.texts[0].answers[0][1] for split in ("train", "val") for group in records["imagenet", split]}
    assert len(places) > 1


def test_vsr_names_its_options(records):
    assert records["vsr", "train"][0].texts[0].instruction.endswith("o it. Options: True or False.")


def test_frames_and_lists_of_images(records):
    for name, images in {"msrvtt": 3, "ss": 3, "ivqa": 3, "vist": 3, "nlvr": 2}.items():
        assert len(records[name, "train"][0].images) == images


def test_check_counts_against_the_catalog(tree):
    found, _ = tree
    report = check_tree(found, look="pixel")
    assert not report.is_good  # three rows are not 566,747
    for split in report.splits:
        assert split.problems == []
        assert split.agrees == (split.expected is None)
        assert split.rows == 3


def test_the_draw_of_instructions_is_even_and_depends_on_seed_and_text():
    ids = [f"coco/train/{line}/{number}" for line in range(400) for number in range(1, 6)]
    drawn = [choose_instruction(text_id, 0, INSTRUCTIONS) for text_id in ids]
    for instruction in INSTRUCTIONS:
        assert abs(drawn.count(instruction) / len(ids) - 1 / 3) < 0.04
    assert drawn != [choose_instruction(text_id, 1, INSTRUCTIONS) for text_id in ids]
    # Fixed for ever: shards that were made before must still equal the files.
    assert [choose_instruction(f"coco/train/{line}/1", 0, "abcdefgh") for line in range(1, 9)] == list("bafafbde")


@pytest.mark.parametrize(
    "lines",
    ["n01440764 tench, Tinca tinca\nn01443537 great white shark\n", "tench, Tinca tinca\n\ngreat white shark"],
)
@pytest.mark.parametrize("labels", [(0, 1), ("0", "1")])
def test_class_names_with_and_without_keys(tmp_path, lines, labels):
    entry = catalog.BY_NAME["imagenet-open-ended"]
    write_entry(tmp_path, entry)
    folder = tmp_path / "data" / "classification" / "imagenet"
    (folder / "mapping.txt").write_text(lines)
    image = make_row(entry, "train", 0).row["img_str"]
    write_lines(folder / "train.jsonl", [{"img_str": image, "label": label} for label in (*labels, 2)])
    tree = find_tree(tmp_path, ["imagenet-open-ended"], ["train"])
    examples = IndexedExamples(open_split(tree, tree.splits[0], tmp_path))
    assert [examples[index].texts[0].answers for index in range(2)] == [("tench, Tinca tinca",), ("great white shark",)]
    (problem,) = examples.problems
    assert problem.message.startswith("'label' is 2, none of the ")
