"""Features of the images of shards, computed once for a frozen encoder, in files of their own.

::

    OUT/<config>/<split>/000000.features         bfloat16 [images, tokens, width], in the order of the shard
    OUT/<config>/<split>/000000.features.json    of which shard, and what made them

OUT may be the folder of the shards. The JSON is written last: features without one are not finished.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.atomic import atomic_file, write_atomically
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards.format import Shard
from gitllm_plugin.m3it.shards.table import Item

_BYTES = 2  # of a bfloat16, which numpy does not have: arrays are of its bits, uint16
MAX_OPEN_FILES = 256


@dataclass(frozen=True)
class Maker:
    """What features depend on.

    Attributes:
        image_encoder: the encoder's fingerprint.
        image_processor: what makes pixels of an image file.
    """

    image_encoder: str
    image_processor: str


@dataclass(frozen=True)
class FeatureFile:
    """The features of one shard.

    Attributes:
        shard: SHA-256 of the tar file.
        maker: what they depend on.
        tokens, width: of the features of each image.
        first_image: of each record, and behind the last one the number of images.
    """

    shard: str
    maker: Maker
    tokens: int
    width: int
    first_image: tuple[int, ...]


def write_features(
    folder: Path, shard: Shard, maker: Maker, images_of_records: Iterable[int], features: Iterable[np.ndarray]
) -> FeatureFile:
    """Writes the features of one shard, whole or not at all.

    Args:
        folder: of all features.
        shard: whose images they are of.
        maker: what made them.
        images_of_records: how many images each record has; read when all features are written.
        features: uint16 [n, tokens, width], one batch after another; all of one size. At least one image.
    """
    path = _path(folder, shard)
    tokens = width = 0
    with atomic_file(path) as file:
        for batch in features:
            _, tokens, width = batch.shape
            file.write(np.ascontiguousarray(batch).data)
    counts = list(images_of_records)
    first_image = tuple(int(number) for number in np.cumsum([0, *counts]))
    written = FeatureFile(shard.sha256, maker, tokens, width, first_image)
    write_atomically(_description(path), orjson.dumps(asdict(written)))
    return written


def find_features(folder: Path, shard: Shard) -> FeatureFile | None:
    """The description of a shard's features; None where there are none.

    Raises:
        DataError: the description is not one, or the file is not as long as it says.
    """
    path = _path(folder, shard)
    try:
        content: dict[str, Any] = orjson.loads(_description(path).read_bytes())
        found = FeatureFile(
            content["shard"],
            Maker(**content["maker"]),
            content["tokens"],
            content["width"],
            tuple(content["first_image"]),
        )
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{_description(path)} does not describe features ({error}); {_ADVICE}") from error
    expected = found.first_image[-1] * found.tokens * found.width * _BYTES
    if not path.is_file() or path.stat().st_size != expected:
        raise DataError(f"{path} is missing or has not {expected:,} bytes; {_ADVICE}")
    return found


class FeatureReader:
    """Reads features of records.

    Objects can be forked or pickled into the workers of a data loader: each process opens files for itself.

    Args:
        folder: of all features.
        shards: those that are read.
        image_processor: what the features must have been made with.

    Attributes:
        image_encoder: the fingerprint of the encoder that made them.

    Raises:
        DataError: features of a shard are missing, of another shard, or made with another encoder or processor than
            the others.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], image_processor: str):
        self.folder = folder
        self._described: dict[str, FeatureFile] = {}
        self._files: dict[str, int] = {}
        for shard in shards:
            found = find_features(folder, shard)
            if found is None or found.shard != shard.sha256:
                state = "has no features" if found is None else "has features that were made of another file"
                raise DataError(f"{shard.file} {state} in {folder}; {_ADVICE}")
            if found.maker.image_processor != image_processor:
                raise DataError(
                    f"the features of {shard.file} were made with the image processor {found.maker.image_processor}, "
                    f"but this run has {image_processor}; {_ADVICE}"
                )
            self._described[shard.file] = found
        makers = {found.maker.image_encoder for found in self._described.values()}
        if len(makers) > 1:
            raise DataError(f"the features in {folder} are of {len(makers)} image encoders; {_ADVICE}")
        (self.image_encoder,) = makers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def read(self, item: Item) -> np.ndarray:
        """Features of an item's images: the bits of bfloat16, uint16 [images, tokens, width].

        Raises:
            RowError: of kind ``shard`` if the file is gone or was shortened.
        """
        found = self._described[item.shard.file]
        first, end = found.first_image[item.record : item.record + 2]
        size = found.tokens * found.width * _BYTES
        data = os.pread(self._open(item.shard), (end - first) * size, first * size)
        if len(data) < (end - first) * size:
            raise RowError("shard", f"its features end before they should; {_ADVICE}", item.shard.file)
        return np.frombuffer(bytearray(data), np.uint16).reshape(end - first, found.tokens, found.width)

    def _open(self, shard: Shard) -> int:
        if shard.file not in self._files:
            if len(self._files) >= MAX_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))  # the one that was opened first
            try:
                self._files[shard.file] = os.open(_path(self.folder, shard), os.O_RDONLY)
            except OSError as error:
                raise RowError("shard", f"its features cannot be opened ({error}); {_ADVICE}", shard.file) from error
        return self._files[shard.file]


_ADVICE = "run `gitllm m3it features` with this configuration"


def _path(folder: Path, shard: Shard) -> Path:
    return folder / Path(shard.file).with_suffix(".features")


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")
