"""Video processors: frames spread evenly, treated alike, from files, pictures and arrays."""

import builtins
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from lavis.common.registry import registry
from omegaconf import OmegaConf
from PIL import Image

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.pictures import read_pixels
from gitllm_plugin.processors import video_frames
from gitllm_plugin.processors.git_llm_video import GitLLMVideoEvalProcessor, GitLLMVideoTrainProcessor
from gitllm_plugin.processors.video_frames import spread_evenly
from tests.m3it_files import encode
from tests.photos import open_photo

PLAIN = {"image_size": 16, "mean": [0, 0, 0], "std": [1, 1, 1]}


def make(processor_class=GitLLMVideoEvalProcessor, **cfg):
    return processor_class.from_config(OmegaConf.create({**PLAIN, **cfg}))


def grey_frames(count: int) -> np.ndarray:
    """Frame i is grey of level 10 * i."""
    levels = np.arange(count, dtype=np.uint8) * 10
    return np.broadcast_to(levels[:, None, None, None], (count, 48, 64, 3)).copy()


def levels_of(pixels: torch.Tensor) -> list[int]:
    return (pixels[:, 0, 8, 8] * 25.5).round().int().tolist()


def test_registered_names():
    assert registry.get_processor_class("git_llm_video_eval") is GitLLMVideoEvalProcessor
    assert registry.get_processor_class("git_llm_video_train") is GitLLMVideoTrainProcessor


@pytest.mark.parametrize(
    "count, wanted, expected",
    [(3, 8, [0, 1, 2]), (8, 8, list(range(8))), (9, 3, [1, 4, 7]), (10, 1, [5]), (100, 4, [12, 37, 62, 87])],
)
def test_frames_are_spread_evenly(count, wanted, expected):
    assert spread_evenly(count, wanted) == expected


@pytest.mark.parametrize("kind", ["array", "tensor", "pictures"])
def test_frames_that_are_at_hand(kind):
    frames = grey_frames(9)
    given = {"array": frames, "tensor": torch.from_numpy(frames), "pictures": [Image.fromarray(f) for f in frames]}
    pixels = make(num_frames=3)(given[kind])
    assert (pixels.shape, pixels.dtype) == ((3, 3, 16, 16), torch.float32)
    assert levels_of(pixels) == [1, 4, 7]


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "video.mkv", "mjpeg", "yuvj420p")


def write_video(path: Path, codec: str, pix_fmt: str) -> Path:
    """A second of video at 20 frames, whose header says nothing of its length."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for frame in grey_frames(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_file(video):
    assert levels_of(make(num_frames=4)(video)) == pytest.approx([2, 7, 12, 17], abs=0.2)
    assert make(num_frames=99)(str(video)).shape == (20, 3, 16, 16)


def test_nothing_is_decoded_behind_the_last_wanted_frame(tmp_path):
    """What is broken there does no harm."""
    video = write_video(tmp_path / "video.avi", "png", "rgb24")
    *whole, last = video.read_bytes().split(signature := b"\x89PNG")
    video.write_bytes(signature.join(whole) + b"gone" + last)
    assert levels_of(make(num_frames=1)(video)) == [10]
    with pytest.raises(DataError, match="cannot be decoded"):
        make(num_frames=99)(video)


def test_frames_that_are_too_large(video, monkeypatch):
    with pytest.raises(DataError, match="frames of 64x48 pixels; at most 3071 are decoded"):
        video_frames.read_frames(video, 1, max_pixels=64 * 48 - 1)
    monkeypatch.setattr(video_frames, "_check_size", lambda *size: None)
    with pytest.raises(DataError, match="cannot be decoded"):
        video_frames.read_frames(video, 1, max_pixels=64 * 48 - 1)


def test_more_frames_than_are_decoded(video):
    with pytest.raises(DataError, match="frames; at most 2 are decoded"):
        video_frames.read_frames(video, 1, max_frames=2)


def test_a_video_that_cannot_be_decoded(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for path in (tmp_path / "broken.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(DataError, match=f"{path.name}: the video cannot be decoded"):
            make()(path)


def test_without_pyav(monkeypatch):
    imported = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError("no av")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(ConfigError, match="a.mp4: reading videos needs PyAV: pip install av"):
        make()("a.mp4")


def test_rows_of_many_frames_are_thinned_before_they_are_decoded():
    whole = encode(open_photo(64, 48), "JPEG")
    frames = [whole if index in (1, 4, 7) else b"not looked at" for index in range(9)]
    pixels = make(num_frames=3).load(frames, "x")
    assert (pixels.shape, pixels.dtype) == ((3, 3, 16, 16), torch.uint8)
    assert make(num_frames=3).load([whole], "x").shape == (3, 16, 16)


def test_all_frames_are_cut_and_mirrored_alike():
    photo = open_photo(64, 48)
    processor = make(GitLLMVideoTrainProcessor, random_resized_crop=[0.3, 0.6], horizontal_flip=True)
    for seed in range(5):
        pixels = processor.load([encode(photo)] * 4, "x", seed)
        assert all(torch.equal(frame, pixels[0]) for frame in pixels)
    torch.manual_seed(0)
    videos = [processor([photo] * 2) for _ in range(4)]
    assert all(torch.equal(video[0], video[1]) for video in videos)
    assert not all(torch.equal(video, videos[0]) for video in videos)


@pytest.mark.parametrize("item", [[], None, np.zeros((4, 4, 3), np.uint8), Image.new("RGB", (4, 4))])
def test_refuses_what_is_no_video(item):
    with pytest.raises(DataError, match="takes a video's path, a list of pictures, or an array .F, H, W, 3."):
        make()(item)


MATRICES = {  # a b c d: the pixel at (x, y) is shown at (a x + c y, b x + d y); and where the first pixel is shown
    "as it is": ((1, 0, 0, 1), (0, 0)),
    "a quarter to the right": ((0, 1, -1, 0), (0, -1)),
    "a quarter to the left": ((0, -1, 1, 0), (-1, 0)),
    "upside down": ((-1, 0, 0, -1), (-1, -1)),
    "mirrored": ((-1, 0, 0, 1), (0, -1)),
    "flipped": ((1, 0, 0, -1), (-1, 0)),
    "transposed": ((0, 1, 1, 0), (0, 0)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_as_the_video_says(name, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "video.mp4"
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :16] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        container.mux(stream.encode())
    (a, b, c, d), (row, column) = MATRICES[name]

    def matrix(*parts: int) -> bytes:
        return struct.pack(">8i", *(part * 65536 for part in (*parts[:2], 0, *parts[2:], 0, 0, 0)))

    video = path.read_bytes()
    at = video.index(matrix(1, 0, 0, 1), video.index(b"tkhd"))
    path.write_bytes(video[:at] + matrix(a, b, c, d) + video[at + 32 :])
    frames = video_frames.read_frames(path, 2)
    with av.open(str(path)) as container:
        frames += [read_pixels(frame) for frame in container.decode(video=0)]
    for frame in frames:
        assert frame.shape == ((64, 48, 3) if a == 0 else (48, 64, 3))
        assert frame.flags.c_contiguous
        bright = frame[..., 0] > 128
        assert bright[row, column] and bright.sum() == pytest.approx(256, abs=40)
    assert make(num_frames=1)(path).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("kind", ["tensor", "floats", "files", "bytes", "channels first"])
def test_frames_in_other_forms(kind, tmp_path):
    frames = grey_frames(5)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    given = {
        "tensor": torch.from_numpy(frames).permute(0, 3, 1, 2),
        "floats": frames / 255,
        "files": [tmp_path / f"{number}.png" for number in range(5)],
        "bytes": [(tmp_path / f"{number}.png").read_bytes() for number in range(5)],
        "channels first": frames.transpose(0, 3, 1, 2),
    }
    assert levels_of(make(num_frames=5)(given[kind])) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_frames", [0, "eight", 2.5])
def test_wrong_number_of_frames(num_frames):
    with pytest.raises(ConfigError, match="num_frames is .*, expected 1 to 1024 frames"):
        make(num_frames=num_frames)
