"""Features of the images of shards, computed once for a frozen encoder, in files of their own.

::

    OUT/features-<hash>/maker.json                                 which encoder and image processor made them
    OUT/features-<hash>/<config>/<split>/000000.features           bfloat16 [images, tokens, width], as in the shard
    OUT/features-<hash>/<config>/<split>/000000.features.json      of which shard, and what could not be read

OUT may be the folder of the shards. The hash is of the maker, so that several encoders can share a folder. A file's
JSON is removed before and written after it takes its name: features without one are not finished.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from filelock import FileLock

from gitllm_plugin.common.files import atomic_file, remove_unfinished, tidy_once, write_atomically
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.problems import KINDS, RowError
from gitllm_plugin.m3it.shards.folder import OpenFiles
from gitllm_plugin.m3it.shards.format import Shard
from gitllm_plugin.m3it.shards.mixture import Item

_BYTES = 2  # of a bfloat16, which numpy does not have: arrays are of its bits, uint16
_MAKER_NAME = "maker.json"


@dataclass(frozen=True)
class Maker:
    """What tells features from others of the same images.

    Attributes:
        image_encoder: the encoder's fingerprint.
        image_processor: what makes pixels of an image file.
    """

    image_encoder: str
    image_processor: str

    @property
    def folder_name(self) -> str:
        """Of its features."""
        digest = hashlib.sha256(f"{self.image_encoder}\n{self.image_processor}".encode())
        return f"features-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class FeatureFile:
    """The features of one shard.

    Attributes:
        shard: SHA-256 of the tar file.
        dtype: that the encoder computed in, before its features were rounded to bfloat16.
        tokens, width: of the features of each image; 0 where no image could be read.
        first_image: of each record, and behind the last one the number of images.
        unreadable: records without features because their images could not be read: number, kind and message.
        checksums: CRC-32 of each record's features; empty where version 0.1.0 wrote them.
    """

    shard: str
    dtype: str
    tokens: int
    width: int
    first_image: tuple[int, ...]
    unreadable: tuple[tuple[int, str, str], ...]
    checksums: tuple[int, ...] = ()


def lock_features(folder: Path, shard: Shard, maker: Maker) -> FileLock:
    """Make what is to be held while :func:`write_features` works."""
    path = _path(folder, shard, maker)
    path.parent.mkdir(parents=True, exist_ok=True)
    for written in (folder / maker.folder_name, path.parent):
        tidy_once(written.absolute())
    return FileLock(path.with_name(f".{path.name}.lock"))


def write_features(
    folder: Path, shard: Shard, maker: Maker, dtype: str, records: Iterable[np.ndarray | RowError]
) -> FeatureFile:
    """Write the features of one shard, whole or not at all; the caller holds its lock.

    Args:
        folder: of all features.
        shard: whose images they are of.
        maker: what made them.
        dtype: that the encoder computed in.
        records: uint16 [images, tokens, width] of each record, in order; or why its images could not be read.
    """
    path = _path(folder, shard, maker)
    # What a process that was killed has left, gigabytes at worst; the lock says that no other writes it now.
    remove_unfinished(path.parent, path.name)
    write_atomically(folder / maker.folder_name / _MAKER_NAME, orjson.dumps(asdict(maker), option=orjson.OPT_INDENT_2))
    tokens = width = 0
    first_image, unreadable, checksums = [0], [], []
    with atomic_file(path) as file:
        for number, features in enumerate(records):
            count, data = 0, b""
            if isinstance(features, RowError):
                unreadable.append((number, features.kind, features.message))
            elif len(features):
                count, tokens, width = features.shape
                data = np.ascontiguousarray(features).data
                file.write(data)
            checksums.append(zlib.crc32(data))
            first_image.append(first_image[-1] + count)
        # Before the file takes its name: killed between, the old description would vouch for new features.
        _description(path).unlink(missing_ok=True)
    images = tuple(first_image)
    written = FeatureFile(shard.sha256, dtype, tokens, width, images, tuple(unreadable), tuple(checksums))
    write_atomically(_description(path), orjson.dumps(asdict(written)))
    return written


def find_features(folder: Path, shard: Shard, maker: Maker) -> FeatureFile:
    """Read the description of a shard's features.

    Raises:
        DataError: there are none, the description is not one, the file is not as long as it says, or is of another
            shard.
    """
    path = _path(folder, shard, maker)
    try:
        content: dict[str, Any] = orjson.loads(_description(path).read_bytes())
        content["first_image"] = tuple(content["first_image"])
        content["unreadable"] = tuple(map(tuple, content["unreadable"]))
        content["checksums"] = tuple(content.get("checksums", ()))
        found = FeatureFile(**content)
        _check_description(found)
    except FileNotFoundError as error:
        raise DataError(f"{shard.file} has no features in {path.parent}; {_ADVICE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{_description(path)} does not describe features ({error}); {_ADVICE}") from error
    if found.shard != shard.sha256:
        raise DataError(f"{shard.file} is another file than the one that {path} was made of; {_ADVICE}")
    # Their bytes are looked at when they are read: hashing terabytes at every start would take longer than encoding.
    expected = found.first_image[-1] * found.tokens * found.width * _BYTES
    if not path.is_file() or path.stat().st_size != expected:
        raise DataError(f"{path} is missing or has not {expected:,} bytes; {_ADVICE}")
    return found


def _check_description(found: FeatureFile) -> None:
    """Refuse numbers by which nothing could be read.

    Raises:
        ValueError: there are some.
    """
    numbers = (found.tokens, found.width, *found.first_image, *found.checksums)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a number is none, or below zero")
    if found.first_image[:1] != (0,) or list(found.first_image) != sorted(found.first_image):
        raise ValueError("first_image is no list of places in order")
    if len(found.checksums) not in (0, len(found.first_image) - 1):
        raise ValueError("there is not a checksum for each record")
    if not all(len(entry) == 3 and entry[1] in KINDS for entry in found.unreadable):
        raise ValueError("unreadable is no list of records with what is wrong")


def find_makers(folder: Path) -> list[Maker]:
    """Read what made the features in a folder, one for each sort of them.

    Raises:
        DataError: a file does not say it.
    """
    makers = []
    for path in sorted(folder.glob(f"features-*/{_MAKER_NAME}")):
        try:
            makers.append(Maker(**orjson.loads(path.read_bytes())))
        except (orjson.JSONDecodeError, TypeError) as error:
            raise DataError(f"{path} does not say what made features ({error}); {_ADVICE}") from error
    return makers


def other_encoder_error(made_by: Iterable[str], own: str) -> ConfigError:
    """Make the error for features of which none are of this model's image encoder.

    Args:
        made_by: fingerprints of the encoders that made those that there are.
        own: the fingerprint of the model's.
    """
    return ConfigError(
        "the data brings features that another image encoder made than this model's:\n  "
        + "\n  ".join(f"theirs: {encoder}" for encoder in made_by)
        + f"\n  this model's: {own}\n(weights kept in float16 are others than in float32 or bfloat16). Run "
        "`gitllm m3it features` with this configuration, or leave datasets.m3it_wds.build_info.features out"
    )


class FeatureReader:
    """Features of records, read at random.

    Objects can be forked or pickled into the workers of a data loader: each process opens files for itself. Where the
    folder has features of several encoders, :meth:`choose` says which.

    Args:
        folder: of all features.
        shards: those that are read; those without images need no features.
        image_processor: what the features must have been made with.

    Raises:
        DataError: there are none, of a shard or at all, or they were made of another shard or with another processor.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], image_processor: str):
        self.folder = folder
        self._shards = [shard for shard in shards if shard.images]
        self._makers: list[Maker] = []
        self._maker: Maker | None = None
        self._described: dict[str, FeatureFile] = {}
        self._unreadable: dict[tuple[str, int], tuple[str, str]] = {}
        self._files = OpenFiles()
        if not self._shards:
            return
        found = find_makers(folder)
        self._makers = [maker for maker in found if maker.image_processor == image_processor]
        if found and not self._makers:
            raise DataError(
                f"the features in {folder} were made with the image processor "
                f"{' or '.join(sorted({maker.image_processor for maker in found}))}, but this run has "
                f"{image_processor}; {_ADVICE}"
            )
        if not found:
            raise DataError(f"{self._shards[0].file} has no features in {folder}; {_ADVICE}")
        # With several, only the model can say which of them is its own; it calls `choose`.
        if len(self._makers) == 1:
            self._take(self._makers[0])

    @property
    def image_encoder(self) -> str | None:
        """The fingerprint of the encoder that made what is read; None while there are several, or nothing to read."""
        return None if self._maker is None else self._maker.image_encoder

    def choose(self, image_encoder: str) -> None:
        """Read the features that this encoder made from now on.

        Raises:
            ConfigError: there are none.
            DataError: some shards have none.
        """
        mine = [maker for maker in self._makers if maker.image_encoder == image_encoder]
        if self._shards and not mine:
            raise other_encoder_error((maker.image_encoder for maker in self._makers), image_encoder)
        if mine and mine[0] != self._maker:
            self._take(mine[0])

    def read(self, item: Item) -> np.ndarray:
        """Read the features of an item's images: the bits of bfloat16, uint16 [images, tokens, width].

        Raises:
            RowError: of kind ``shard`` if the file is gone, was shortened or has other bytes than were written; if
                there are none because the images could not be read, what was wrong with them.
            ConfigError: the folder has features of several encoders, and none was chosen.
        """
        if not item.shard.images:
            return np.empty((0, 0, 0), np.uint16)
        maker = self._maker
        if maker is None:
            raise ConfigError(
                f"{self.folder} has features of several image encoders, and this run's runner does not choose: use "
                "run.runner: git_llm, or name a folder that has those of one, in datasets.m3it_wds.build_info.features"
            )
        if problem := self._unreadable.get((item.shard.file, item.record)):
            raise RowError(*problem, f"{item.shard.file}, record {item.record}, when its features were made")
        found = self._described[item.shard.file]
        first, end = found.first_image[item.record : item.record + 2]
        features = np.empty((end - first, found.tokens, found.width), np.uint16)
        start = first * found.tokens * found.width * _BYTES
        try:
            file = self._files.get(item.shard.file, lambda: _path(self.folder, item.shard, maker))
        except OSError as error:
            raise RowError("shard", f"its features cannot be opened ({error}); {_ADVICE}", item.shard.file) from error
        # Straight into the array: features of a batch are tens of megabytes.
        if os.preadv(file, [features.data], start) < features.nbytes:
            raise RowError("shard", f"its features end before they should; {_ADVICE}", item.shard.file)
        if found.checksums and zlib.crc32(features.data) != found.checksums[item.record]:
            raise RowError("shard", f"the features of record {item.record} are damaged; {_REPLACE}", item.shard.file)
        return features

    def count_images(self, item: Item) -> int:
        """Count the images of an item's record, without reading their features."""
        if item.shard.file not in self._described:
            return 0
        first, end = self._described[item.shard.file].first_image[item.record : item.record + 2]
        return end - first

    def _take(self, maker: Maker) -> None:
        self._described = {shard.file: find_features(self.folder, shard, maker) for shard in self._shards}
        self._unreadable = {
            (shard, record): (kind, message)
            for shard, found in self._described.items()
            for record, kind, message in found.unreadable
        }
        self._maker = maker
        self._files = OpenFiles()  # the others' files are known by the same names


_REPLACE = "delete its .features file and run `gitllm m3it features` again with this configuration"
_ADVICE = "run `gitllm m3it features` with this configuration"


def _path(folder: Path, shard: Shard, maker: Maker) -> Path:
    return folder / maker.folder_name / Path(shard.file).with_suffix(".features")


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")
