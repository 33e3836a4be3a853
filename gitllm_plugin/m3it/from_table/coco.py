"""COCO's dictionaries: captions, and VQA's questions and answers.

In files of captions stand ``images`` and ``annotations``; questions and answers are joined by ``question_id``.

Form: https://cocodataset.org/#format-data and https://visualqa.org/download.html.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.from_table.picture_folder import PictureFolder
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.from_table.settings import FromTable
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.rows import describe

FOLDER = "annotations"
"""Where COCO's files lie, beside the folders of pictures."""

_OF_OBJECTS = {"bbox", "segmentation", "category_id", "keypoints", "segments_info"}


@dataclass(frozen=True)
class CocoFile:
    """One file.

    Attributes:
        path: its own.
        content: what it holds.
        split: by its name, where several splits are converted together; else empty.
    """

    path: Path
    content: Mapping[str, Any]
    split: str


@dataclass
class _Split:
    """What all files of one split hold together; numbers are those of the files, without zeros before them."""

    name: str
    images: dict[str, str] = field(default_factory=dict)  # file names
    captions: dict[str, tuple[Path, list[Any]]] = field(default_factory=dict)  # by image
    questions: dict[str, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)
    answers: dict[str, tuple[Path, Mapping[str, Any]]] = field(default_factory=dict)  # by question
    problems: list[RowError] = field(default_factory=list)


def is_coco(whole: Any) -> bool:
    """Tell whether what a JSON file holds is one of COCO's dictionaries."""
    return isinstance(whole, dict) and any(isinstance(whole.get(name), list) for name in ("annotations", "questions"))


def picture_root(path: Path) -> Path:
    """Give the folder in and below which a file's pictures are looked for: its own, or above that if it is COCO's."""
    folder = path.absolute().parent
    return folder.parent if folder.name == FOLDER else folder


def read_coco(files: Sequence[CocoFile], settings: FromTable, tell: Callable[[str], None]) -> Iterator[Read]:
    """Read captions, one record an image, and questions with their answers.

    Args:
        files: all of them; questions and answers of a split are joined by ``question_id``.
        settings: ``images``, the folder in and below which pictures lie; of ``columns``, what `caption` is called.
        tell: is told of images that nothing is said of.

    Raises:
        ConfigError: other columns are named.
        DataError: a file holds no texts.
    """
    if others := sorted(set(settings.columns or {}) - {"answer"}):
        raise ConfigError(
            f"columns: {', '.join(others)} of COCO's files have their names; only answer=NAME can be given"
        )
    caption = (settings.columns or {}).get("answer", "caption")
    splits: dict[str, _Split] = {}
    for file in files:
        _take(file, splits.setdefault(file.split, _Split(file.split)), caption)
    folders: dict[Path, PictureFolder] = {}

    def folder_of(path: Path) -> PictureFolder:
        root = settings.images or picture_root(path)
        return folders.setdefault(root, PictureFolder(root))

    for split in splits.values():
        yield from split.problems
        yield from _captions(split, folder_of)
        yield from _questions(split, folder_of)
        asked = {_number(question.get("image_id")) for _, question in split.questions.values()}
        if silent := [name for number, name in split.images.items() if number not in split.captions.keys() | asked]:
            tell(f"images without a text, which are left out: {len(silent):,}, the first: {silent[0]}")


def _take(file: CocoFile, split: _Split, caption: str) -> None:
    """Sort what a file holds into its split."""
    path, content = file.path, file.content
    for number, image in enumerate(_entries(content, "images", path, split), start=1):
        key, name = _number(image.get("id")), image.get("file_name")
        place = f"{path}: images, entry {number}"
        if not key or not isinstance(name, str) or not name:
            split.problems.append(RowError("missing_key", "an image has 'id' and 'file_name'", place))
        elif split.images.setdefault(key, name) != name:
            message = f"the id {key} is that of {split.images[key]} too; give each image its own"
            split.problems.append(RowError("duplicate_id", message, place))
    for question in _entries(content, "questions", path, split):
        _keep_once(split.questions, question, path, "questions", split)
    annotations = list(_entries(content, "annotations", path, split))
    keys = {key for annotation in annotations for key in annotation}
    if caption in keys:
        _take_captions(annotations, caption, path, split)
    elif "question_id" in keys:
        for annotation in annotations:
            # One's own file may have all in one place.
            if "question" in annotation:
                _keep_once(split.questions, annotation, path, "annotations", split)
            _keep_once(split.answers, annotation, path, "annotations", split)
    elif annotations and keys & _OF_OBJECTS:
        raise DataError(
            f"{path}: its annotations are of objects ({', '.join(sorted(keys & _OF_OBJECTS))}), without a text to "
            "learn; give a file of captions (captions_*.json), or VQA's questions and annotations"
        )
    elif annotations:
        raise DataError(
            f"{path}: its annotations have {', '.join(sorted(keys)) or 'no keys'}; of captions 'caption' is read (or "
            "what --columns answer=NAME names), of VQA's answers 'question_id' and 'answers'"
        )
    elif not content.get("questions") and not content.get("annotations"):
        raise DataError(f"{path} has no annotations: the list is empty")


def _entries(content: Mapping[str, Any], name: str, path: Path, split: _Split) -> Iterator[Mapping[str, Any]]:
    entries = content.get(name)
    entries = [] if entries is None else entries
    if not isinstance(entries, list):
        raise DataError(f"{path}: {name!r} is {describe(entries)}, expected a list")
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, dict):
            yield entry
        else:
            message = "it is no JSON object"
            split.problems.append(RowError("json", message, f"{path}: {name}, entry {number}"))


def _take_captions(annotations: Sequence[Mapping[str, Any]], caption: str, path: Path, split: _Split) -> None:
    for number, annotation in enumerate(annotations, start=1):
        key = _number(annotation.get("image_id"))
        missing = [name for name in ("image_id", caption) if annotation.get(name) is None]
        if missing or not key:
            message = f"it has no {missing[0] if missing else 'image_id'!r}; its keys are {', '.join(annotation)}"
            split.problems.append(RowError("missing_key", message, f"{path}: annotations, entry {number}"))
        else:
            split.captions.setdefault(key, (path, []))[1].append(annotation[caption])


def _keep_once(
    kept: dict[str, tuple[Path, Mapping[str, Any]]], entry: Mapping[str, Any], path: Path, name: str, split: _Split
) -> None:
    key = _number(entry.get("question_id"))
    if not key:
        split.problems.append(RowError("missing_key", f"an entry of {name!r} has no 'question_id'", str(path)))
    elif key in kept:
        message = f"the question_id {key} stands twice among {name!r}, first in {kept[key][0]}"
        split.problems.append(RowError("duplicate_id", message, str(path)))
    else:
        kept[key] = path, entry


def _captions(split: _Split, folder_of: Callable[[Path], PictureFolder]) -> Iterator[Read]:
    for key, (path, captions) in split.captions.items():
        image = _image(key, split, folder_of(path), f"{path}: image {key}")
        if isinstance(image, RowError):
            yield image
            continue
        cells = {"image": [image], "answer": captions, "split": split.name}
        yield Record(f"{path.stem}/{key}", f"{path}: image {key}", cells, each=True)


def _questions(split: _Split, folder_of: Callable[[Path], PictureFolder]) -> Iterator[Read]:
    for key, (path, question) in split.questions.items():
        place = f"{path}: question {key}"
        if key not in split.answers:
            message = "no answer has its question_id; give the file of the answers too, in the same command"
            yield RowError("empty_answer", message, place)
            continue
        image = _image(_number(question.get("image_id")), split, folder_of(path), place)
        if isinstance(image, RowError):
            yield image
            continue
        cells = {"question": question.get("question"), "answer": _answers(split.answers[key][1])}
        yield Record(f"{path.stem}/{key}", place, {"image": [image], "split": split.name, **cells})
    for key, (path, _) in split.answers.items():
        if key not in split.questions:
            message = "no question has its question_id; give the file of the questions too, in the same command"
            yield RowError("missing_key", message, f"{path}: the answer to question {key}")


def _answers(annotation: Mapping[str, Any]) -> list[Any]:
    """List all that annotators said, and first what most of them did."""
    said = annotation.get("answers", annotation.get("answer"))
    said = said if isinstance(said, list) else [said]
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in said if answer is not None]
    best = annotation.get("multiple_choice_answer")
    if best is None:
        return texts
    if best in texts:
        texts.remove(best)
    return [best, *texts]


def _image(key: str, split: _Split, folder: PictureFolder, place: str) -> str | RowError:
    """Find a picture by the file's name that ``images`` has for its number, else by the number in its own name."""
    try:
        if key in split.images:
            return str(folder.by_name(split.images[key], split.name, place))
        if split.images and key:
            raise RowError("missing_key", f"its image_id {key} is none of those in 'images'", place)
        return str(folder.by_number(key, split.name, place))
    except RowError as error:
        return error


def _number(value: Any) -> str:
    """Write a number as files of all kinds are found to be called by it: 42, "42" and "000042" are one."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    text = str(value).strip()
    return str(int(text)) if text.isascii() and text.isdigit() else text
