"""Files in COCO's form become rows: captions, VQA's questions and answers, LAVIS's lists."""

import json
import re

import pytest
from PIL import Image

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.from_table import FromTable, convert_table
from gitllm_plugin.m3it.tree import find_sources


def paint(path, *colors):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), tuple(colors)).save(path)
    return path.read_bytes()


@pytest.fixture
def coco(tmp_path):
    """COCO's folders: three pictures for training, two to validate on, of the same numbers; and a file of each kind."""
    sizes = {"train": 3, "val": 2}
    for split, count in sizes.items():
        images, captions, questions, answers = [], [], [], []
        for number in range(1, count + 1):
            name = f"COCO_{split}2030_{number:012d}.png"
            paint(tmp_path / f"{split}2030" / name, 40 * number, 10, 200 if split == "val" else 0)
            images.append({"id": number, "file_name": name, "license": 3, "height": 6, "width": 8})
            captions += [
                {"image_id": number, "id": 10 * number + n, "caption": f"a {split} sign, {n} of {number}"}
                for n in range(2)
            ]
            asked = number if split == "train" else 50 + number
            questions.append({"image_id": number, "question_id": asked, "question": f"which sign is {number}?"})
            said = ["the red", "a red one", "a red one", "none"]
            answers.append(
                {
                    "image_id": number,
                    "question_id": asked,
                    "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(said)],
                }
            )
        write(tmp_path / "annotations" / f"captions_{split}2030.json", images=images, annotations=captions, info={})
        write(tmp_path / "annotations" / f"OpenEnded_{split}2030_questions.json", questions=questions, license={})
        write(tmp_path / "annotations" / f"{split}2030_annotations.json", annotations=answers)
    return tmp_path


def write(path, whole=None, **keys):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(keys if whole is None else whole))
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def convert(coco, *names, **settings):
    notes = []
    files = [coco / "annotations" / name for name in names]
    counts = convert_table(files, coco / "out", FromTable(**settings), tell=notes.append)
    return counts, notes


def test_captions_of_two_files(coco):
    counts, notes = convert(coco, "captions_train2030.json", "captions_val2030.json")
    assert counts == {"train": 6, "val": 2} and not notes
    trained, held = rows(coco / "out" / "train.jsonl"), rows(coco / "out" / "val.jsonl")
    assert [row["outputs"] for row in trained[:3]] == [
        "a train sign, 0 of 1",
        "a train sign, 1 of 1",
        "a train sign, 0 of 2",
    ]
    assert held[1]["outputs"] == ["a val sign, 0 of 2", "a val sign, 1 of 2"]
    assert len({row["id"] for row in trained + held}) == 8 and {row["config"] for row in held} == {"captions"}
    examples = JsonlExamples(find_sources(str(coco / "out" / "val.jsonl")))
    # Of two pictures of one number, each split has its own.
    assert examples[0].images == ((coco / "val2030" / "COCO_val2030_000000000001.png").read_bytes(),)


def test_one_file_is_dealt_by_its_pictures(coco):
    counts, _ = convert(coco, "captions_val2030.json", val=0.4, test=0.4)
    made = {split: rows(coco / "out" / f"{split}.jsonl") for split in counts}
    texts = [
        text
        for split in made.values()
        for row in split
        for text in ([row["outputs"]] if isinstance(row["outputs"], str) else row["outputs"])
    ]
    assert sorted(texts) == sorted(f"a val sign, {n} of {number}" for n in (0, 1) for number in (1, 2))


def test_questions_find_their_answers_and_pictures_by_number(coco):
    names = [
        f"{name}.json" for s in ("train2030", "val2030") for name in (f"OpenEnded_{s}_questions", f"{s}_annotations")
    ]
    counts, _ = convert(coco, *names)
    assert counts == {"train": 3, "val": 2}
    first = rows(coco / "out" / "train.jsonl")[0]
    assert (first["inputs"], first["outputs"]) == ("which sign is 1?", ["a red one", "a red one", "the red", "none"])


def test_the_challenges_own_choice_of_answers_comes_first(coco):
    questions = [{"image_id": "1", "question_id": 7, "question": "why?"}]
    answers = [{"question_id": "7", "multiple_choice_answer": "b", "answers": [{"answer": "a"}, {"answer": "b"}]}]
    write(coco / "annotations" / "q.json", questions=questions)
    write(coco / "annotations" / "a.json", annotations=answers)
    convert(coco, "q.json", "a.json", images=coco / "train2030")
    assert rows(coco / "out" / "train.jsonl")[0]["outputs"] == ["b", "a"]


def test_ones_own_file_may_have_question_and_answer_in_one(coco):
    said = [{"image_id": 2, "question_id": 1, "question": "how many?", "answer": "two"}]
    write(
        coco / "annotations" / "mine.json",
        annotations=said,
        images=[{"id": 2, "file_name": "train2030/COCO_train2030_000000000002.png"}],
    )
    convert(coco, "mine.json")
    assert rows(coco / "out" / "train.jsonl")[0]["outputs"] == "two"


def test_lists_of_lavis(coco):
    picture = "train2030/COCO_train2030_000000000001.png"
    train = [{"image": picture, "caption": text, "image_id": "coco_1"} for text in ("one", "two", "three")]
    write(coco / "karpathy_train.json", train)
    held = "val2030/COCO_val2030_000000000001.png"
    write(coco / "karpathy_val.json", [{"image": held, "caption": ["four", "five"]}])
    files = [coco / "karpathy_train.json", coco / "karpathy_val.json"]
    assert convert_table(files, coco / "out", FromTable(), tell=print) == {"train": 3, "val": 1}
    assert rows(coco / "out" / "val.jsonl")[0]["outputs"] == ["four", "five"]
    # Dealt to training, a list of captions is as many texts.
    assert convert_table(files[1], coco / "out2", FromTable()) == {"train": 2}


@pytest.mark.parametrize(
    ("answers", "first"),
    [(["no", "yes", "yes"], "yes"), (["b", "a"], "b"), (["x", "y", "y", "x", "z"], "x")],
)
def test_of_several_answers_the_most_frequent_is_trained_on(coco, answers, first):
    picture = "train2030/COCO_train2030_000000000001.png"
    write(coco / "vqa.json", [{"image": picture, "question": "is it?", "answer": answers}])
    convert_table(coco / "vqa.json", coco / "out", FromTable())
    made = rows(coco / "out" / "train.jsonl")[0]["outputs"]
    assert made[0] == first and sorted(made) == sorted(answers)


@pytest.mark.parametrize("images", ["", "train2030"])
def test_pictures_lie_in_or_below_the_folder(coco, images):
    counts, _ = convert(coco, "captions_train2030.json", images=coco / images)
    assert counts == {"train": 6}


BOXES = [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "segmentation": {"counts": "a0", "size": [6, 8]}}]
IMAGES = [{"id": 1, "file_name": "COCO_train2030_000000000001.png"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": IMAGES, "annotations": BOXES}, "are of objects (bbox, category_id, segmentation), without a text"),
        ({"images": IMAGES, "annotations": [{"image_id": 1, "text": "x"}]}, "its annotations have image_id, text; of"),
        ({"images": IMAGES, "annotations": []}, "has no annotations: the list is empty"),
        (
            {"images": IMAGES, "annotations": [{"image_id": 9, "caption": "x"}]},
            "image_id 9 is none of those in 'images'",
        ),
        ({"images": IMAGES, "annotations": [{"caption": "x"}]}, "annotations, entry 1: it has no 'image_id'"),
        ({"images": IMAGES, "annotations": [{"image_id": 1, "caption": " "}]}, "image 1: the column 'answer' is empty"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]}, "has 'id' and 'file_name'"),
        (
            {"images": [*IMAGES, {"id": 1, "file_name": "b.png"}], "annotations": [{"image_id": 1, "caption": "x"}]},
            "the id 1 is that of COCO_train2030_000000000001.png too",
        ),
        (
            {"images": [{"id": 1, "file_name": "lost.png"}], "annotations": [{"image_id": 1, "caption": "x"}]},
            "image 1 (lost.png): its picture is not in",
        ),
        ({"questions": [{"image_id": 1, "question_id": 4, "question": "?"}]}, "give the file of the answers too"),
        ({"annotations": [{"question_id": 4, "answers": [{"answer": "x"}]}]}, "give the file of the questions too"),
        ({"annotations": [{"image_id": 1, "caption": "x"}]}, "2 pictures may be meant"),
        ({"annotations": [3], "images": {}}, "'images' is an empty dict, expected a list"),
    ],
)
def test_what_is_wrong_is_said(coco, content, message):
    write(coco / "annotations" / "wrong.json", content)
    with pytest.raises(DataError, match=re.escape(message)):
        convert(coco, "wrong.json")
    assert not (coco / "out" / "train.jsonl").exists()


def test_captions_under_another_key(coco):
    write(coco / "annotations" / "mine.json", images=IMAGES, annotations=[{"image_id": 1, "text": "a lamp"}])
    convert(coco, "mine.json", columns={"answer": "text"})
    assert rows(coco / "out" / "train.jsonl")[0]["outputs"] == "a lamp"
    with pytest.raises(ConfigError, match="only answer=NAME"):
        convert(coco, "mine.json", columns={"image": "file_name"})


def test_images_that_nothing_is_said_of_are_counted(coco):
    write(
        coco / "annotations" / "few.json",
        images=[*IMAGES, {"id": 5, "file_name": "b.png"}, {"id": 6, "file_name": "c.png"}],
        annotations=[{"image_id": 1, "caption": "x"}],
    )
    counts, notes = convert(coco, "few.json")
    assert counts == {"train": 1} and notes == ["images without a text, which are left out: 2, the first: b.png"]


@pytest.mark.parametrize("names", [("train.csv", "val.csv"), ("mine_train.tsv", "mine_dev.jsonl"), ("a.csv", "b.csv")])
def test_several_tables_of_any_kind(coco, names):
    for number, name in enumerate(names, start=1):
        picture = f"train2030/COCO_train2030_{number:012d}.png"
        mark = "\t" if name.endswith(".tsv") else ","
        text = (
            json.dumps({"image": picture, "answer": "x"})
            if name.endswith("l")
            else f"image{mark}answer\n{picture}{mark}x"
        )
        (coco / name).write_text(text + "\n")
    counts = convert_table([coco / name for name in names], coco / "out", FromTable(), tell=print)
    assert counts == ({"train": 2} if names[0] == "a.csv" else {"train": 1, "val": 1})


@pytest.mark.parametrize(
    ("picture", "advice"),
    [
        ("COCO_val2030_000000000002.png", "is there with --images val2030"),
        ("val2030/COCO_val2030_000000000002.png", "is there with --images ."),
        ("nowhere.png", "another folder is given as --images"),
    ],
)
def test_a_forgotten_folder_of_pictures_is_named(coco, picture, advice, capsys, monkeypatch):
    monkeypatch.chdir(coco)
    (coco / "annotations" / "mine.csv").write_text(f"image,answer\n{picture},x\n")
    assert main(["m3it", "from-csv", "annotations/mine.csv", "out"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(advice)


def test_the_command(coco, capsys, monkeypatch):
    monkeypatch.chdir(coco)
    files = ["annotations/captions_train2030.json", "annotations/captions_val2030.json"]
    assert main(["m3it", "from-coco", *files, "out"]) == 0
    assert "train: 6 rows in out/train.jsonl\nval: 2 rows" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["m3it", "from-coco", "train2030", "out"])
    assert "tables and folders are for from-csv" in capsys.readouterr().err
