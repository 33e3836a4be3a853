"""Writes small copies of LAVIS's benchmarks, in the forms and at the places of the real ones."""

import json
import random
from pathlib import Path

from tests.m3it_files import COLORS, make_square

NAMES = sorted(COLORS)


def write_benchmarks(root: Path) -> None:
    """All benchmarks below ``root``, as ``$LAVIS_DATA`` has them."""
    generator = random.Random(0)
    for write in (_coco_images, _captions, _vqa, _gqa, _aok_vqa, _imagenet, _pairs, _visdial):
        write(root, generator)


def _save(root: Path, place: str, color: str, generator: random.Random) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make_square(color, generator).save(path, format="JPEG")


def _write(root: Path, place: str, content) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _coco(number: int) -> str:
    return f"val2014/COCO_val2014_{number:012d}.jpg"


def _coco_images(root, generator):
    for number in range(1, 6):
        _save(root, f"coco/images/{_coco(number)}", NAMES[number % 4], generator)


def _sentences(color: str) -> list[str]:
    return [f"A {color} square on a gray ground.", f"a {color} box", f"The square is {color}, isn't it?"]


def _captions(root, generator):
    rows = [{"image": _coco(n), "caption": _sentences(NAMES[n % 4])} for n in range(1, 6)]
    _write(root, "coco/annotations/coco_karpathy_test.json", rows)
    train = [
        {"image": row["image"], "caption": text, "image_id": f"coco_{n}"}
        for n, row in enumerate(rows)
        for text in row["caption"]
    ]
    _write(root, "coco/annotations/coco_karpathy_train.json", train)
    _write(
        root,
        "conceptual_caption/annotations/cc3m.json",
        [{"image": r["image"], "caption": r["caption"]} for r in train],
    )

    for n in range(3):
        _save(root, f"nocaps/images/val/00{n}e2087.jpg", NAMES[n], generator)
        _save(root, f"flickr30k/images/flickr30k-images/100712981{n}.jpg", NAMES[n], generator)
    nocaps = [{"image": f"val/00{n}e2087.jpg", "img_id": n, "caption": _sentences(NAMES[n])} for n in range(3)]
    _write(root, "nocaps/annotations/nocaps_val.json", nocaps)
    flickr = [{"image": f"flickr30k-images/100712981{n}.jpg", "caption": _sentences(NAMES[n])} for n in range(3)]
    _write(root, "flickr30k/annotations/test.json", flickr)
    annotations = [
        {"image_id": n, "id": 10 * n + k, "caption": t} for n in range(3) for k, t in enumerate(_sentences(NAMES[n]))
    ]
    coco_format = {"images": [{"id": n} for n in range(3)], "annotations": annotations}
    _write(root, "nocaps/annotations/coco_format.json", coco_format)


def _vqa(root, generator):
    questions, annotations, rows, train = [], [], [], []
    for n in range(1, 6):
        for k, (text, answer, kind) in enumerate(
            [("What color is the square?", NAMES[n % 4], "other"), ("Is it red?", "no", "yes/no")]
        ):
            number, answers = 1000 * n + k, [answer] * 7 + ["gray"] * 3
            questions.append({"image_id": n, "question": text, "question_id": number})
            annotations.append(
                {
                    "image_id": n,
                    "question_id": number,
                    "question_type": " ".join(text.split()[:2]).lower(),
                    "answer_type": kind,
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer": given, "answer_confidence": "yes", "answer_id": place + 1}
                        for place, given in enumerate(answers)
                    ],
                }
            )
            rows.append({"question_id": number, "question": text, "image": _coco(n), "dataset": "vqa"})
            train.append({**rows[-1], "answer": answers})
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    for folder, prefix in (("coco", "v2_"), ("okvqa", "")):
        place = f"{folder}/annotations"
        _write(root, f"{place}/vqa_val_eval.json", rows)
        _write(root, f"{place}/vqa_train.json", train)
        _write(root, f"{place}/answer_list.json", [*NAMES, "no", "yes", "gray", "a tall giraffe"])
        task = {**about, "task_type": "Open-Ended", "questions": questions}
        _write(root, f"{place}/{prefix}OpenEnded_mscoco_val2014_questions.json", task)
        _write(root, f"{place}/{prefix}mscoco_val2014_annotations.json", {**about, "annotations": annotations})


def _gqa(root, generator):
    rows = []
    for n in range(5):
        _save(root, f"gqa/images/n{n}.jpg", NAMES[n % 4], generator)
        full = {"answer": NAMES[n % 4], "fullAnswer": f"It is {NAMES[n % 4]}."}
        rows.append({"image": f"n{n}.jpg", "question": "What color is it?", "question_id": f"2{n:07d}", **full})
    _write(root, "gqa/annotations/testdev_balanced_questions.json", rows)
    _write(
        root,
        "gqa/annotations/test_balanced_questions.json",
        [{key: value for key, value in row.items() if "nswer" not in key} for row in rows],
    )


def _aok_vqa(root, generator):
    rows = [
        {
            "split": "val",
            "image": _coco(n),
            "image_id": n,
            "question_id": f"22MexNkBPpdZGX6sxbxVB{n}",
            "question": "What color is the square?",
            "choices": NAMES,
            "correct_choice_idx": n % 4,
            "direct_answers": [NAMES[n % 4]] * 8 + ["gray", "colorful"],
            "difficult_direct_answer": False,
            "rationales": ["It looks so."] * 3,
        }
        for n in range(1, 6)
    ]
    _write(root, "aokvqa/annotations/aokvqa_v1p0_val.json", rows)
    hidden = ("correct_choice_idx", "direct_answers", "rationales")
    _write(
        root,
        "aokvqa/annotations/aokvqa_v1p0_test.json",
        [{key: value for key, value in row.items() if key not in hidden} for row in rows],
    )
    _write(root, "aokvqa/annotations/specialized_vocab_train_lavis.json", [*NAMES, "gray"])


def _imagenet(root, generator):
    for folder, color in zip(("n01440764", "n01443537", "n01484850"), NAMES, strict=False):
        _save(root, f"imagenet/val/{folder}/ILSVRC2012_val_00000293.JPEG", color, generator)


def _pairs(root, generator):
    labels = ("contradiction", "neutral", "entailment")
    rows = [{"sentence": f"A {NAMES[n]} square.", "label": labels[n], "image": f"100712981{n}"} for n in range(3)]
    _write(root, "snli/annotations/ve_test.json", rows)
    for n in range(3):
        for side in (0, 1):
            _save(root, f"nlvr2/images/dev/dev-{n}-0-img{side}.png", NAMES[n + side], generator)
    rows = [
        {
            "sentence": "Both squares are red.",
            "label": "False",
            "images": [f"dev/dev-{n}-0-img{side}.png" for side in (0, 1)],
        }
        for n in range(3)
    ]
    _write(root, "nlvr/annotations/dev.json", rows)


def _visdial(root, generator):
    for n in (7, 8):
        _save(root, f"visdial/images/VisualDialog_val2018/VisualDialog_val2018_{n:012d}.jpg", NAMES[n % 4], generator)
    turns = [{"question": k, "answer": k, "answer_options": [0, 1, 2], "gt_index": k} for k in range(3)]
    dialogs = [{"image_id": n, "caption": "a square on a ground", "dialog": turns} for n in (7, 8)]
    data = {
        "questions": ["is it in color", "what color", "is it big"],
        "answers": ["yes", "green", "no"],
        "dialogs": dialogs,
    }
    _write(root, "visdial/annotations/visdial_1.0_val.json", {"version": "1.0", "split": "val2018", "data": data})
