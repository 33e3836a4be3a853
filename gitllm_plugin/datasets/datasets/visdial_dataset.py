"""VisDial for LAVIS: dialogues about images, a turn an example."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavis.datasets.datasets.base_dataset import BaseDataset

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.pictures import open_picture

_NUMBER = re.compile(r"(\d+)\.(?:jpg|jpeg|png)$", re.IGNORECASE)


class VisDialDataset(BaseDataset):
    """One split.

    LAVIS's own data sets of dialogues give either no text at all or tokens of GPT-2.

    Args:
        vis_processor: PIL image -> float [3, H, W].
        text_processor: question -> prompt.
        vis_root: the folder of the images.
        ann_paths: files of VisDial 1.0, or in LAVIS's form.

    Raises:
        DataError: if a file has another form, or an image is not there.
    """

    def __init__(self, vis_processor: Callable, text_processor: Callable, vis_root: str, ann_paths: Sequence[str]):
        # Without files: LAVIS would read them as a list of examples.
        super().__init__(vis_processor, text_processor, vis_root, [])
        self.root = Path(vis_root)
        self.annotation = [turn for path in ann_paths for turn in _read_turns(Path(path))]
        self._find_images()
        self._add_instance_ids()

    def __getitem__(self: Any, index: int) -> dict[str, Any]:
        """Read the image and the texts of one turn."""
        turn = self.annotation[index]
        image = self.vis_processor(open_picture(self.root / turn["image"]))
        return {
            "image": image,
            "text_input": self.text_processor(turn["question"]),
            "text_output": turn["answer"],
            "question": turn["question"],
            "instance_id": turn["instance_id"],
        }

    def displ_item(self, index: int) -> dict[str, Any]:
        """Give a turn as people read it, for LAVIS's dataset browser."""
        turn = self.annotation[index]
        texts = {"file": turn["image"], "question": turn["question"], "answer": turn["answer"]}
        return {**texts, "image": open_picture(self.root / turn["image"])}

    def _find_images(self) -> None:
        """Give turns that name an image by its number alone the file with that number."""
        if all("image" in turn for turn in self.annotation):
            return
        by_number = {
            int(found[1]): path for path in sorted(self.root.rglob("*")) if (found := _NUMBER.search(path.name))
        }
        by_id = [turn for turn in self.annotation if "image" not in turn]
        missing = {turn["image_id"] for turn in by_id if turn["image_id"] not in by_number}
        if missing:
            raise DataError(
                f"{self.root} lacks {len(missing)} images of the dialogues, {min(missing)} among them; expected are "
                "files that end in the image's number, such as COCO_train2014_000000000009.jpg, at any depth"
            )
        for turn in by_id:
            turn["image"] = str(by_number[turn["image_id"]].relative_to(self.root))


def _read_turns(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("data", content)
        for dialogue in content["dialogs"]:
            yield from _turns(dialogue, content.get("questions"), content.get("answers"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(f"{path} is not a file of dialogues as VisDial 1.0 has them: {error!r}") from error


def _image_of(dialogue: Mapping[str, Any]) -> dict[str, Any]:
    """Read the image's file, or its number."""
    if "image" not in dialogue:
        return {"image_id": int(dialogue["image_id"])}
    if not isinstance(dialogue["image"], str):
        raise TypeError(f"an image is {dialogue['image']!r:.60}")
    return {key: dialogue[key] for key in ("image", "image_id") if key in dialogue}


def _turns(dialogue: Mapping[str, Any], questions: Any, answers: Any) -> Iterator[dict[str, Any]]:
    """Read each turn with what was said before it, up to the first without an answer; texts may be numbers."""
    said = [dialogue["caption"].rstrip(".") + "."] if dialogue.get("caption") else []
    for turn in dialogue["dialog"]:
        question = (questions[turn["question"]] if questions else turn["question"]).rstrip("?") + "?"
        # In the test split the last turn's answer is withheld, and nothing follows it.
        if "answer" not in turn:
            return
        answer = answers[turn["answer"]] if answers else turn["answer"]
        known = _image_of(dialogue)
        told = answer.rstrip(".") + "."
        yield {**known, "question": " ".join([*said, question]), "answer": answer}
        said += [question, told]
