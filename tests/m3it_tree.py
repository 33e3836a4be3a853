"""Makes trees of M3IT's files, in the raw form that each configuration has, with real pictures."""

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitllm_plugin.m3it.adapters import ADAPTERS, IMAGE, Beside, Draft
from gitllm_plugin.m3it.catalog import Entry
from tests.m3it_files import encode, make_square

INSTRUCTIONS = ["Do it.", "Please do it.", "Now do it, briefly."]
HYPOTHESIS_INSTRUCTIONS = ["Does the image show that [HYPO]?", "Decide: [HYPO]"]
CLASSES = ["tench, Tinca tinca", "goldfish", "great white shark", "tiger shark", "hammerhead", "ray", "cock", "hen",
           "ostrich", "brambling", "goldfinch", "junco"]  # fmt: skip


@dataclass
class Made:
    """A row, and what must come out of it.

    Attributes:
        row: the JSON object.
        images: the encoded images in it, in order.
        texts: question and answers of each text; None for what a test looks at more closely.
        instruction: what each text's must be; None if it is one of those beside the file.
    """

    row: dict[str, Any]
    images: list[bytes]
    texts: list[tuple[str | None, tuple[str, ...] | None]]
    instruction: str | None = None


def to_base64(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


def make_image(seed: str) -> bytes:
    """A picture of its own for each seed: PNG or JPEG, as in M3IT."""
    generator = random.Random(seed)
    image = make_square(generator.choice(["red", "green", "blue", "yellow"]), generator)
    image.putpixel((0, 0), (generator.randrange(256), generator.randrange(256), generator.randrange(256)))
    return encode(image, generator.choice(["PNG", "JPEG"]))


def make_row(entry: Entry, split: str, number: int) -> Made:
    """A row in the form that an entry's files have."""
    images = [make_image(f"{entry.folder}/{split}/{number}/{place}") for place in range(3)]
    words = f"{entry.name} {split} {number}"
    make = _BY_NAME.get(entry.name) or _BY_ADAPTER.get(entry.adapter)
    return make(images, words, number) if make else make_example(entry.adapter, images)


def make_example(adapter: str, images: list[bytes]) -> Made:
    """The adapter's own example, with images in it."""
    form = ADAPTERS[adapter]
    used: list[bytes] = []

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        if isinstance(value, list):
            return [fill(each) for each in value]
        if value != IMAGE:
            return value
        used.append(images[len(used)])
        return to_base64(used[-1])

    row = fill(form.example)
    drafts = read_drafts(adapter)
    question, answer = form.gives or (None, None)
    first = (question, None if answer is None else accepted(answer))
    return Made(row, used, [first, *[(None, None)] * (len(drafts) - 1)], drafts[0].instruction)


def accepted(answers: Any) -> tuple[str, ...]:
    """The accepted answers of a draft or an example: one text, or several."""
    return (answers,) if isinstance(answers, str) else tuple(answers)


def read_drafts(adapter: str) -> list[Draft]:
    """What an adapter makes of its example."""
    form = ADAPTERS[adapter]
    return list(form.read(form.example, Beside(dict(enumerate(CLASSES)), random.Random(0))).drafts)


def _plain(image_key: str, question_key: str, answer_key: str, count: int = 1) -> Callable[..., Made]:
    def make(images: list[bytes], words: str, number: int) -> Made:
        used = images[:count]
        texts = [to_base64(image) for image in used]
        row = {
            image_key: texts if count > 1 else texts[0],
            question_key: f"what of {words}?",
            answer_key: f"so {words}",
            "meta": {"img_path": "x.jpg"},
        }
        return Made(row, used, [(f"what of {words}?", (f"so {words}",))])

    return make


def _caption(image_key: str, answer_key: str, count: int = 1) -> Callable[..., Made]:
    def make(images: list[bytes], words: str, number: int) -> Made:
        made = _plain(image_key, "question", answer_key, count)(images, words, number)
        del made.row["question"]
        return Made(made.row, made.images, [("", (f"so {words}",))])

    return make


def _coco(images: list[bytes], words: str, number: int) -> Made:
    captions = [f"caption {place} of {words}" for place in range(5 + number % 2)]
    row = {"image": to_base64(images[0]), "meta": {"targets": captions, "img_id": number}}
    return Made(row, images[:1], [("", (caption,)) for caption in captions])


def _vqa_v2(images: list[bytes], words: str, number: int) -> Made:
    paraphrase = "The question is Not Answerable." if number % 2 else f"It is {words}."
    row = {
        "img_str": to_base64(images[0]),
        "question": f"what of {words}?",
        "paraphrased_answer": paraphrase,
        "original_answer": words,
    }
    return Made(row, images[:1], [(row["question"], (f"The answer is {words}" if number % 2 else paraphrase,))])


def _paraphrased(images: list[bytes], words: str, number: int) -> Made:
    row = {"image_str": to_base64(images[0]), "question": f"what of {words}?", "answer": words}
    if number % 3 == 0:
        row["paraphrased_answer"] = answer = f"In other words, {words}."
    elif number % 3 == 1:
        row["rationale"], answer = "One sees it.", f"One sees it. So the answer is {words}."
    else:
        answer = f"The answer is {words}."
    return Made(row, images[:1], [(row["question"], (answer,))])


def _answer_sentence(images: list[bytes], words: str, number: int) -> Made:
    made = _plain("img_str", "input", "output")(images, words, number)
    made.row["output"] = words
    return Made(made.row, made.images, [(made.texts[0][0], (f"The answer is {words}.",))])


def _shapes(images: list[bytes], words: str, number: int) -> Made:
    made = _plain("img_str", "question", "answer")(images, words, number)
    made.row["answer"] = "true" if number % 2 else "false"
    return Made(made.row, made.images, [(made.texts[0][0], (f"The answer is {'yes' if number % 2 else 'no'}.",))])


def _snli_ve(images: list[bytes], words: str, number: int) -> Made:
    row = {"image_base64_str": to_base64(images[0]), "hypothesis": f"there is {words}", "rationale": "because"}
    if number % 2:
        row["label"] = "entailment"
    return Made(row, images[:1], [("", ("yes\nRationale: because" if number % 2 else "because",))])


def _imagenet(images: list[bytes], words: str, number: int) -> Made:
    return Made({"img_str": to_base64(images[0]), "label": number % len(CLASSES)}, images[:1], [(None, None)])


def _imagenet_open(images: list[bytes], words: str, number: int) -> Made:
    made = _imagenet(images, words, number)
    return Made(made.row, made.images, [("", (CLASSES[number % len(CLASSES)],))])


def _vist(images: list[bytes], words: str, number: int) -> Made:
    row = {"images": [to_base64(image) for image in images], "sentences": [f"one {words}.", "two.", "three."]}
    return Made(row, images, [("", (f"one {words}. two. three.",))])


def _rephrased(images: list[bytes], words: str, number: int) -> Made:
    used = images[: 1 + number % 2]
    texts = [to_base64(image) for image in used]
    meta = {"instruction": f"do {words}", "inputs": f"what of {words}?", "image_base64_str": texts}
    row = {"answer": f"so {words}", "meta": meta}
    return Made(row, used, [(f"what of {words}?", (f"so {words}",))], instruction=f"do {words}")


def _dialogue(images: list[bytes], words: str, number: int) -> Made:
    """A row of visual-dialog, whose file it is; questions with turns before them are in tests of their own."""
    return _BY_ADAPTER["plain"](images, words.replace("-turns", ""), number)


# Rows that tell more than the adapter's own example, which is used where there are none.
_BY_ADAPTER: dict[str, Callable[..., Made]] = {
    "plain": _plain("image_base64_str", "inputs", "outputs"),
    "caption": _caption("image_str", "answer"),
    "dialogue": _dialogue,
    "coco": _coco,
    "vqa_v2": _vqa_v2,
    "paraphrased": _paraphrased,
    "answer_sentence": _answer_sentence,
    "shapes": _shapes,
    "snli_ve": _snli_ve,
    "imagenet": _imagenet,
    "imagenet_open": _imagenet_open,
    "vist": _vist,
    "vsr": _plain("image_str", "question", "answer"),
    "rephrased": _rephrased,
}
# Where a configuration's own form is known to differ from the others of its adapter.
_BY_NAME: dict[str, Callable[..., Made]] = {
    "winoground": _plain("image_str", "input", "output"),
    "docvqa": _plain("image_str", "question", "answer"),
    "mocheg": _plain("image_str", "question", "answer"),
    "nlvr": _plain("image_base64_str", "inputs", "outputs", count=2),
    "fm-iqa": _plain("image_str", "question", "answer"),
    "mmchat": _plain("images", "history", "response", count=3),
    "msrvtt": _caption("image_str", "caption", count=3),
    "ss": _plain("image_str", "inputs", "output", count=3),
    "ivqa": _plain("image_str", "question", "paraphrased_answer", count=3),
    "activitynet-qa": _plain("image_str", "question", "answer", count=3),
    "msvd-qa": _plain("image_str", "question", "paraphrased_answer", count=3),
    "msrvtt-qa": _plain("image_str", "question", "paraphrased_answer", count=3),
}


def write_entry(root: Path, entry: Entry, rows: int = 3) -> dict[str, list[Made]]:
    """Writes all splits of an entry in its raw form, with what lies beside them. Returns the rows by split."""
    folder = root / "data" / entry.folder
    folder.mkdir(parents=True, exist_ok=True)
    instructions = HYPOTHESIS_INSTRUCTIONS if entry.adapter == "snli_ve" else INSTRUCTIONS
    name = "instruction.json" if entry.name == "image-paragraph-captioning" else "instructions.json"
    if not (folder / name).exists():  # a rephrased copy lies in the folder of what it was made from
        (folder / name).write_text(json.dumps(instructions))
    if ADAPTERS[entry.adapter].needs_labels:
        lines = [f"n{number:08d} {label}" for number, label in enumerate(CLASSES)]
        (folder / "mapping.txt").write_text("\n".join(lines) + "\n")
    made = {}
    for split in entry.splits:
        made[split] = [make_row(entry, split, number) for number in range(rows)]
        file = folder / entry.file_names(split)[0].replace("*", "23-10-08" if entry.adapter == "rephrased" else "made")
        write_lines(file, [each.row for each in made[split]])
    return made


def write_lines(path: Path, rows: list[Any]) -> None:
    """Writes JSON lines; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
