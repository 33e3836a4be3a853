"""Frames of a video file, evenly spread over its length."""

from pathlib import Path

import numpy as np

from gitllm_plugin.errors import ConfigError, DataError


def spread_evenly(count: int, wanted: int) -> list[int]:
    """The middles of ``wanted`` equal parts of ``range(count)``; all of it where ``count`` is not more."""
    if count <= wanted:
        return list(range(count))
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def read_frames(path: str | Path, num_frames: int) -> list[np.ndarray]:
    """Decodes a video with PyAV.

    Args:
        path: a file of any format that FFmpeg reads.
        num_frames: how many frames, or as many as it has.

    Returns:
        uint8 [height, width, 3] each.

    Raises:
        ConfigError: if PyAV is not installed.
        DataError: if the file cannot be decoded or has no frames.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"{path}: reading videos needs PyAV: pip install av (or give frames)") from error
    try:
        # A video's header is not always right about its length: packets are counted, which decodes nothing.
        with av.open(str(path)) as container:
            count = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
        wanted = set(spread_evenly(count, num_frames))
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # data loaders have a process each
            frames = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(stream))
                if index in wanted
            ]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path}: the video cannot be decoded ({error}). Replace it or remove the row.") from error
    if not frames:
        raise DataError(f"{path}: the video has no frames. Replace it or remove the row.")
    return frames
