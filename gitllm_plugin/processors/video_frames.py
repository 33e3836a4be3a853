"""Frames of a video file, evenly spread over its length."""

import itertools
from pathlib import Path

import numpy as np

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.images import MAX_PIXELS
from gitllm_plugin.m3it.pictures import read_pixels


def spread_evenly(count: int, wanted: int) -> list[int]:
    """Find the middles of ``wanted`` equal stretches of ``range(count)``; all of it where ``count`` is not more."""
    if count <= wanted:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def read_frames(
    path: str | Path, num_frames: int, max_pixels: int = MAX_PIXELS, max_frames: int | None = None
) -> list[np.ndarray]:
    """Decode a video with PyAV; frames are turned and mirrored as its display matrix says.

    Args:
        path: a file of any format that FFmpeg reads.
        num_frames: how many frames, or as many as it has.
        max_pixels: refuse frames with more pixels than this.
        max_frames: refuse videos with more frames than this, of which almost all are decoded; None: none.

    Returns:
        uint8 ``[height, width, 3]`` each.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: the file cannot be decoded, has no frames, or larger ones than a picture may be.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"{path}: reading videos needs PyAV: pip install av (or give frames)") from error
    try:
        # A video's header is not always right about its length: packets are counted, which decodes nothing.
        with av.open(str(path)) as container:
            count = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
        if max_frames is not None and count > max_frames:
            raise DataError(f"{path}: {count:,} frames; at most {max_frames:,} are decoded. Cut the video shorter.")
        wanted = set(spread_evenly(count, num_frames))
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            _check_size(path, stream.width, stream.height, max_pixels)
            stream.thread_type = "NONE"  # data loaders have a process each
            # Frames may be of another size than the header's: the decoder refuses those.
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            decoded = itertools.islice(container.decode(stream), max(wanted, default=-1) + 1)
            frames = [read_pixels(frame, str(path)) for index, frame in enumerate(decoded) if index in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: the video cannot be decoded ({error}). Replace it or leave it out.") from error
    if not frames:
        raise DataError(f"{path}: the video has no frames. Replace it or leave it out.")
    return frames


def _check_size(path: str | Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse what would fill the memory, before anything is decoded."""
    if width * height > max_pixels:
        raise DataError(
            f"{path}: frames of {width}x{height} pixels; at most {max_pixels} are decoded. Scale the video down or "
            "leave it out."
        )
