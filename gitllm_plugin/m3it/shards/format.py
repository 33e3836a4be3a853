"""What a folder of shards looks like: tar members, and the manifest beside them.

::

    OUT/manifest.json
    OUT/<config>/<split>/000000.tar, 000001.tar, ...
    OUT/<config>/<split>/skips.jsonl

A record of a tar file is one image, or list of images, with all texts about it. Its members stand together, the JSON
last, so that a record that breaks off has none::

    {key}.0.jpg, {key}.1.png, ...   image files, with their true extensions
    {key}.json                      {"config", "images", "number", "split",
                                     "texts": [{"answers", "id", "instruction", "question"}, ...]}

where a text within a conversation has ``turns`` too, and one with a worse answer ``rejected``; ``images`` is how many
there are and ``key`` is ``{config}-{split}-{number:08d}``, without dots. A record without images has the JSON alone.
Equal records give equal bytes: owner, time and mode of members are constant."""

import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.group import Group, Text
from gitllm_plugin.m3it.problems import KINDS

FORMAT = 1
MANIFEST_NAME = "manifest.json"
SKIPS_NAME = "skips.jsonl"

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
_TEXT_KEYS = ("answers", "id", "instruction", "question")
_MORE_KEYS = ("turns", "rejected", "images")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_BLOCK = tarfile.BLOCKSIZE
_SMALLEST_TEXT = 52
"""Bytes of a text without a word in it, in a record's JSON."""
_IMAGE_NAME = re.compile(r"(?:^|\.)(\d+)\.\w+$")  # with or without the key in front


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        file: its path, relative to the manifest, with forward slashes.
        sha256: of the file, in hexadecimal.
        groups: number of records.
        texts: number of texts in them, which is the number of examples.
        images: number of image files.
        bytes: size of the file.
        record_blocks: the size of each record in tar blocks of 512 bytes, in order, as numbers with spaces between
            them: where a record begins is known without reading the file.
        record_texts: how many texts each record has, likewise.
        text_bytes: the bytes of the longest instruction and answer in it; None in shards made before that was noted.
        most_images: how many images its record with the most of them has, likewise.
    """

    file: str
    sha256: str
    groups: int
    texts: int
    images: int
    bytes: int
    record_blocks: str = field(repr=False)
    record_texts: str = field(repr=False)
    text_bytes: int | None = None
    most_images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Make what stands in the manifest."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class SplitManifest:
    """The shards of one split of one configuration.

    Attributes:
        shards: in order.
        skips: how many rows of the source were left out, by kind
            (:data:`gitllm_plugin.m3it.problems.KINDS`); ``skips.jsonl`` beside the shards lists them.
        sources: the files that the shards were made of: ``file`` (relative to the root) and ``bytes`` of each.
        settings: what changes the bytes of shards.
    """

    shards: tuple[Shard, ...]
    skips: dict[str, int] = field(default_factory=dict)
    sources: tuple[dict[str, Any], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Number of records."""
        return sum(shard.groups for shard in self.shards)

    @property
    def texts(self) -> int:
        """Number of examples."""
        return sum(shard.texts for shard in self.shards)

    @property
    def images(self) -> int:
        """Number of image files."""
        return sum(shard.images for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """All that a folder of shards holds: configuration -> split -> its shards."""

    configs: dict[str, dict[str, SplitManifest]]

    def to_json(self) -> dict[str, Any]:
        """Make what the manifest's file holds, with the sums that make it readable."""
        return {
            "format": FORMAT,
            "configs": {
                config: {
                    split: {
                        **vars(made),
                        "shards": [shard.to_json() for shard in made.shards],
                        **{name: getattr(made, name) for name in _SUMS},
                    }
                    for split, made in sorted(splits.items())
                }
                for config, splits in sorted(self.configs.items())
            },
        }


_SUMS = ("groups", "texts", "images", "bytes")


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into a folder, whole or not at all, always the same bytes for the same manifest."""
    # Sorted and indented, so that two manifests can be compared as text.
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    write_atomically(folder / MANIFEST_NAME, orjson.dumps(manifest.to_json(), option=options))


def read_manifest(source: str | Path | Mapping[str, Any]) -> Manifest:
    """Read and check a manifest.

    Args:
        source: its path, the path of its folder, or what its JSON holds, for one that was fetched.

    Raises:
        DataError: if there is none, or it is not one of this format; all that is wrong is named.
    """
    if isinstance(source, Mapping):
        return _parse_manifest(source, "the manifest")
    path = Path(source)
    if path.is_dir():
        path = path / MANIFEST_NAME
    try:
        content = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"there is no {path}. `gitllm m3it shard` writes one when it has finished; "
            "after `--part`, `gitllm m3it merge` does."
        ) from error
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}). Make the shards again or restore the file.") from error
    return _parse_manifest(content, str(path))


def is_name(name: Any) -> bool:
    """Tell whether a configuration or split may be called so: it becomes a folder's name and begins names in tars."""
    # A manifest may come from anybody: nothing in it may lead out of its folder.
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def group_key(config: str, split: str, number: int) -> str:
    """Make the key of a record. A dot would end it: webdataset takes all behind the first one as the member's kind."""
    return f"{config}-{split}-{number:08d}".replace(".", "_")


def write_group(group: Group) -> list[tuple[str, bytes]]:
    """Make names and contents of a record's members, in order."""
    key = group_key(group.config, group.split, group.number)
    # The texts do not repeat the configuration, which is that of the record.
    content = {
        "config": group.config,
        "split": group.split,
        "number": group.number,
        "images": len(group.images),
        "texts": [
            {
                name: getattr(text, name)
                for name in (*_TEXT_KEYS, *(key for key in _MORE_KEYS if getattr(text, key) not in (None, ())))
            }
            for text in group.texts
        ],
    }
    members = [(f"{key}.{place}.{image_extension(image)}", image) for place, image in enumerate(group.images)]
    return [*members, (f"{key}.json", orjson.dumps(content, option=orjson.OPT_SORT_KEYS))]


def read_group(members: Mapping[str, Any], place: str, with_images: bool = True) -> Group:
    """Read a record.

    Args:
        members: contents by name: whole names, or what webdataset leaves of them behind the key (``0.jpg``,
            ``json``). Names that begin with ``__`` (``__key__``, ``__url__``) are passed over.
        place: which record it is, for messages.
        with_images: False leaves them out of the group, and they may be missing.

    Raises:
        DataError: if a member is missing or is not what ``write_group`` writes.
    """
    # By the number in the name, not by place: webdataset hands members over in a mapping.
    images, text = {}, None
    for name, data in members.items():
        number = _IMAGE_NAME.search(name)
        if number:
            images[int(number[1])] = data
        elif name == "json" or (name.endswith(".json") and not name.startswith("__")):
            text = data
    if text is None:
        raise DataError(f"{place}: the record has no JSON, so it breaks off; make the shard again.")
    try:
        content = orjson.loads(text)
        group = Group(
            config=content["config"],
            split=content["split"],
            number=content["number"],
            images=tuple(images[index] for index in range(content["images"] if with_images else 0)),
            texts=tuple(_read_text(item, content["config"]) for item in content["texts"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{place}: not a record of this format ({type(error).__name__}: {error}); its members are "
            f"{', '.join(members)}. Make the shard again."
        ) from error
    # More images than the JSON says would be another record's, whose own JSON was lost.
    if len(images) != len(group.images) or not group.texts:
        raise DataError(
            f"{place}: {len(images)} image files where the JSON says {len(group.images)}, and {len(group.texts)} "
            "texts. Make the shard again."
        )
    return group


def add_to_tar(tar: tarfile.TarFile, members: Sequence[tuple[str, bytes]]) -> int:
    """Add a record, with headers that depend on names and sizes alone. Return how many tar blocks it takes."""
    before = tar.offset
    # TarInfo's defaults stay, time 0, user 0, mode 0644: bytes that say when and by whom would differ at each making.
    for name, data in members:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return (tar.offset - before) // tarfile.BLOCKSIZE


def image_extension(data: bytes) -> str:
    """Choose the extension of an encoded image by its first bytes; ``bin`` where they are not known."""
    # By content: rows of M3IT have no names of files.
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((extension for start, extension in _SIGNATURES if data.startswith(start)), "bin")


def _read_text(item: Mapping[str, Any], config: str) -> Text:
    words, answers = [item[name] for name in ("id", "instruction", "question")], item["answers"]
    if not isinstance(answers, list) or not all(isinstance(word, str) for word in (config, *words, *answers)):
        raise TypeError("texts that are no texts")
    turns = tuple((question, answer) for question, answer in item.get("turns", ()))
    if not all(isinstance(said, str) for turn in turns for said in turn):
        raise TypeError("turns that are no texts")
    rejected = item.get("rejected")
    if rejected is not None and not isinstance(rejected, str):
        raise TypeError("a rejected answer that is no text")
    images = item.get("images")
    if images is not None and type(images) is not int:
        raise TypeError("a number of images that is no number")
    return Text(words[0], config, words[1], words[2], tuple(answers), turns, rejected, images)


def _parse_manifest(content: Any, place: str) -> Manifest:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        given = content.get("format") if isinstance(content, Mapping) else type(content).__name__
        raise DataError(
            f"{place}: format {given!r}, this version reads {FORMAT}. Name the manifest.json of a folder that "
            "`gitllm m3it shard` wrote, or make the shards again."
        )
    problems: list[str] = []
    configs: dict[str, dict[str, SplitManifest]] = {}
    for config, splits in _items(content.get("configs"), "configs", problems):
        for split, content_of_split in _items(splits, f"configs.{config}", problems):
            if not is_name(config) or not is_name(split):
                problems.append(
                    f"configs has {config!r:.80} with {split!r:.80}; names have up to 60 letters (a-z), digits, '.', "
                    "'-' and '_', and begin with a letter or digit"
                )
                continue
            where = f"configs.{config}.{split}"
            configs.setdefault(config, {})[split] = _parse_split(content_of_split, where, problems)
    if problems:
        raise DataError(f"{place} is not as `gitllm m3it shard` writes it:\n  " + "\n  ".join(problems))
    return Manifest(configs)


def _items(value: Any, where: str, problems: list[str]) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    problems.append(f"{where} is {value!r:.80}, expected an object")
    return []


def _parse_split(given: Any, where: str, problems: list[str]) -> SplitManifest:
    given = dict(_items(given, where, problems))
    shards = _parse_shards(given.get("shards"), f"{where}.shards", problems)
    skips = dict(_items(given.get("skips", {}), f"{where}.skips", problems))
    unknown = sorted(set(skips) - set(KINDS))
    if unknown:
        problems.append(f"{where}.skips names {', '.join(unknown)}; the kinds are {', '.join(KINDS)}")
    settings = dict(_items(given.get("settings", {}), f"{where}.settings", problems))
    # Sums say nothing that the shards do not; where they disagree somebody has edited the file.
    sources = given.get("sources", [])
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        problems.append(f"{where}.sources is {sources!r:.80}, expected a list")
        sources = ()
    result = SplitManifest(shards, skips, tuple(sources), settings)
    problems += [
        f"{where}.{name} is {given[name]!r}, but its shards have {getattr(result, name)} together"
        for name in _SUMS
        if name in given and given[name] != getattr(result, name)
    ]
    return result


def _parse_shards(shards: Any, where: str, problems: list[str]) -> tuple[Shard, ...]:
    if not isinstance(shards, Sequence) or isinstance(shards, str):
        problems.append(f"{where} is {shards!r:.80}, expected a list")
        return ()
    parsed = []
    for number, item in enumerate(shards):
        values = dict(_items(item, f"{where}[{number}]", problems))
        wrong = [each.name for each in fields(Shard) if not _is_good(each.name, values.get(each.name))]
        if wrong:
            problems.append(f"{where}[{number}] lacks or has a wrong {', '.join(wrong)}")
            continue
        shard = Shard(**{each.name: values[each.name] for each in fields(Shard) if each.name in values})
        # Records are found by these numbers alone, so a wrong one would be read as another record.
        texts = [int(count) for count in shard.record_texts.split()]
        blocks = [int(count) for count in shard.record_blocks.split()]
        if not len(texts) == len(blocks) == shard.groups or sum(texts) != shard.texts:
            problems.append(f"{where}[{number}] lists other records than its {shard.groups} with {shard.texts} texts")
        # What is kept in memory of a shard is in proportion to these, and must be to its file.
        elif _BLOCK * sum(blocks) > shard.bytes or any(
            _SMALLEST_TEXT * count > _BLOCK * size for count, size in zip(texts, blocks, strict=True)
        ):
            problems.append(f"{where}[{number}] lists more records or texts than a file of {shard.bytes} bytes holds")
        parsed.append(shard)
    return tuple(parsed)


def _is_good(name: str, value: Any) -> bool:
    if name in ("text_bytes", "most_images") and value is None:
        return True
    if name == "sha256":
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    if name in ("record_blocks", "record_texts"):
        return isinstance(value, str) and re.fullmatch("([0-9]{1,15}( |$))*", value) is not None
    if name == "file":  # never outside of the folder
        return isinstance(value, str) and all(map(is_name, value.split("/")))
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
