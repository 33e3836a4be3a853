"""The images of shards, encoded once, for training that does not change the encoder."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gitllm_plugin.common.loading import Loader, leave_signals_to_the_main_process
from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.shards.features import FeatureFile, Maker, find_features, lock_features, write_features
from gitllm_plugin.m3it.shards.format import Shard
from gitllm_plugin.m3it.shards.mixture import Item, records_of
from gitllm_plugin.modeling import ImageEncoder
from gitllm_plugin.modeling.pixels import normalize_pixels
from gitllm_plugin.processors.picture_processor import PictureProcessor


def describe_processor(processor: Any) -> str:
    """Say what the pixels of an image file depend on.

    Raises:
        ConfigError: it is not one of this package's, or draws at random, so that an image has no one set of features;
            or it cuts pictures into tiles.
    """
    if not isinstance(processor, PictureProcessor) or processor.transform.is_random:
        raise ConfigError(
            "features of images are made once, so the image processor has to be git_llm_image_eval, or "
            "git_llm_image_train without random_resized_crop and horizontal_flip"
        )
    if processor.transform.max_tiles > 1:
        raise ConfigError(
            f"max_tiles is {processor.transform.max_tiles}: features are kept of whole pictures, not of tiles; leave "
            "max_tiles out of vis_processor, or features out of datasets.m3it_wds.build_info"
        )
    return f"{processor.transform}, scaled_decode={processor.scaled_decode}"


def features_folder(shards: str, features: str | bool | None) -> Path:
    """Find where features are.

    Args:
        shards: folder or URL of the shards.
        features: ``build_info.features``: a folder; true, or nothing, for that of the shards.

    Raises:
        ConfigError: the shards are not in a folder, so features need one.
    """
    place = features if isinstance(features, str) else shards
    if "://" in place:
        raise ConfigError(
            f"datasets.m3it_wds.build_info.features: features are read from a folder of this machine, "
            f"not from {place}; name one"
        )
    return Path(place).expanduser()


@dataclass
class Encoded:
    """What became of the shards of a split.

    Attributes:
        written: were encoded.
        found: had features.
        without_images: have nothing to encode.
        unreadable: records of those that were encoded, left out because their images could not be read.
    """

    written: int = 0
    found: int = 0
    without_images: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        left_out = f"; LEFT OUT: {self.unreadable} records that could not be read" if self.unreadable else ""
        return (
            f"{self.written} shards encoded, {self.found} had features of this encoder, "
            f"{self.without_images} have no images{left_out}"
        )


@torch.no_grad()
def encode_shards(
    encoder: ImageEncoder,
    stream: M3ITShards,
    folder: Path,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
    batch_size: int = 32,
    on_progress: Callable[[int], Any] = lambda images: None,
) -> Encoded:
    """Write the features of all shards of a split that have none of this encoder; killed, it goes on where it was.

    Args:
        encoder: on the device that is to compute.
        stream: the split; its ``on_error`` says whether what cannot be read is left out.
        folder: where features go.
        num_workers: processes that decode; 0: this one.
        share: which of how many processes this is, from 0: each takes every n-th shard.
        batch_size: images that are encoded at a time, or a few more.
        on_progress: called with the number of images that are done.

    Raises:
        RowError: an image cannot be read, and nothing is to be left out.
    """
    maker = Maker(encoder.fingerprint(), describe_processor(stream.vis_processor))
    dtype = str(encoder.dtype).removeprefix("torch.")
    # Of the shard whose turn it is: one loader serves all shards, so that its workers start once.
    items: list[Item] = []
    loader = Loader(
        _Records(stream),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    encoded = Encoded()
    for shard in stream.table.shards[share[0] :: share[1]]:
        if not shard.images:
            encoded.without_images += 1
            continue
        # Several machines may work on one folder; each shard is encoded by whoever comes first.
        with lock_features(folder, shard, maker):
            if _is_done(folder, shard, maker, stream.on_error):
                encoded.found += 1
                on_progress(shard.images)
                continue
            items[:] = records_of(shard)
            records = loader if stream.on_error == "skip" else _stop_at_errors(loader)
            features = _encode(encoder, stream.vis_processor, records, batch_size, on_progress)
            encoded.unreadable += len(write_features(folder, shard, maker, dtype, features).unreadable)
            encoded.written += 1
    return encoded


def _is_done(folder: Path, shard: Shard, maker: Maker, on_error: str) -> bool:
    """Tell whether a shard has features; those of shards that were missing or damaged are made again."""
    try:
        found: FeatureFile = find_features(folder, shard, maker)
    except DataError:
        return False
    # A broken image stays broken, a shard that was missing may have come.
    kinds = {kind for _, kind, _ in found.unreadable}
    return not kinds or (on_error == "skip" and "shard" not in kinds)


class _Records(Dataset):
    """Pixels of the images of records, uint8 [images, 3, H, W]; or why they cannot be read."""

    def __init__(self, stream: M3ITShards):
        self.folder = stream.folder
        self.processor = stream.vis_processor
        self.unreadable: tuple[str, RowError] | None = None

    def __getitem__(self, item: Item) -> torch.Tensor | RowError:
        if self.unreadable is not None and self.unreadable[0] == item.shard.sha256:
            return self.unreadable[1]  # else a server would be asked for it again for every record
        try:
            images = self.folder.read(item).images
            place = f"{item.shard.file}, record {item.record}"
            pixels = [self.processor.load([image], place) for image in images]
        except RowError as error:
            if error.kind == "shard":
                self.unreadable = (item.shard.sha256, error)
            return error
        return torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8)


def _stop_at_errors(records: Iterable[torch.Tensor | RowError]) -> Iterator[torch.Tensor]:
    for record in records:
        if isinstance(record, RowError):
            raise record
        yield record


def _encode(
    encoder: ImageEncoder,
    processor: PictureProcessor,
    records: Iterable[torch.Tensor | RowError],
    batch_size: int,
    on_progress: Callable[[int], Any],
) -> Iterator[np.ndarray | RowError]:
    """Compute features of each record, uint16 [images, tokens, width], in batches; errors pass through."""
    device = next(encoder.tower.parameters()).device
    mean, std = (torch.tensor(values, device=device) for values in (processor.transform.mean, processor.transform.std))

    def encode(waiting: list[torch.Tensor | RowError]) -> Iterator[np.ndarray | RowError]:
        pixels = [record for record in waiting if isinstance(record, torch.Tensor) and len(record)]
        features: Iterator[np.ndarray] = iter(())
        if pixels:
            encoded = encoder(normalize_pixels(torch.cat(pixels).to(device), mean, std)).to(torch.bfloat16).cpu()
            # numpy has no bfloat16: what is written are its bits.
            bits = encoded.view(torch.int16).numpy().view(np.uint16)
            features = iter(np.split(bits, np.cumsum([len(images) for images in pixels])[:-1]))
            on_progress(len(bits))
        for record in waiting:
            if isinstance(record, RowError):
                yield record
            else:
                yield next(features) if len(record) else np.empty((0, 0, 0), np.uint16)

    waiting: list[torch.Tensor | RowError] = []
    images = 0
    for record in records:
        waiting.append(record)
        images += 0 if isinstance(record, RowError) else len(record)
        # A record is never cut, so that its features are written in one piece; a batch may be a few images larger.
        if images >= batch_size:
            yield from encode(waiting)
            waiting, images = [], 0
    yield from encode(waiting)
