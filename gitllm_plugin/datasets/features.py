"""Encodes the images of shards once, for training that does not change the encoder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gitllm_plugin.datasets.datasets.m3it_shards import M3ITShards
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.shards.features import Maker, find_features, write_features
from gitllm_plugin.m3it.shards.format import Shard
from gitllm_plugin.m3it.shards.table import records_of
from gitllm_plugin.modeling import ImageEncoder
from gitllm_plugin.modeling.pixels import normalize_pixels
from gitllm_plugin.processors.picture_processor import PictureProcessor


def describe_processor(processor: Any) -> str:
    """What pixels of an image file depend on, in words.

    Raises:
        ConfigError: it is not one of this package's, or draws at random, so that an image has no one set of features.
    """
    if not isinstance(processor, PictureProcessor) or processor.transform.is_random:
        raise ConfigError(
            "features of images are made once, so the image processor has to be git_llm_image_eval, or "
            "git_llm_image_train without random_resized_crop and horizontal_flip"
        )
    return f"{processor.transform}, scaled_decode={processor.scaled_decode}"


@torch.no_grad()
def encode_shards(
    encoder: ImageEncoder,
    stream: M3ITShards,
    folder: Path,
    batch_size: int = 32,
    on_progress: Callable[[int], Any] = lambda images: None,
) -> int:
    """Writes the features of all shards of a split that have none yet; killed, it goes on at the next shard.

    Args:
        encoder: on the device that is to compute.
        stream: the split.
        folder: where features go.
        batch_size: images that are encoded at a time.
        on_progress: called with the number of images that are done.

    Returns:
        How many shards were encoded.
    """
    maker = Maker(encoder.fingerprint(), describe_processor(stream.vis_processor))
    written = 0
    for shard in stream.table.shards:
        found = find_features(folder, shard)
        if shard.images and (found is None or (found.shard, found.maker) != (shard.sha256, maker)):
            counts: list[int] = []
            features = _encode(encoder, stream, shard, counts, batch_size, on_progress)
            write_features(folder, shard, maker, counts, features)
            written += 1
        else:
            on_progress(shard.images)
    return written


def _encode(
    encoder: ImageEncoder,
    stream: M3ITShards,
    shard: Shard,
    counts: list[int],
    batch_size: int,
    on_progress: Callable[[int], Any],
) -> Iterator[np.ndarray]:
    """The features of a shard's images, in batches; ``counts`` gets the number of images of each record."""
    device = next(encoder.tower.parameters()).device
    waiting: list[torch.Tensor] = []
    processor = stream.vis_processor
    mean, std = (torch.tensor(values, device=device) for values in (processor.transform.mean, processor.transform.std))

    def encode() -> np.ndarray:
        features = encoder(normalize_pixels(torch.stack(waiting).to(device), mean, std)).to(torch.bfloat16)
        on_progress(len(waiting))
        waiting.clear()
        return features.cpu().view(torch.int16).numpy().view(np.uint16)

    for item in records_of(shard):
        images = stream.folder.read(item).images
        counts.append(len(images))
        for image in images:
            waiting.append(processor.load([image], f"{shard.file}, record {item.record}"))
            if len(waiting) == batch_size:
                yield encode()
    if waiting:
        yield encode()
