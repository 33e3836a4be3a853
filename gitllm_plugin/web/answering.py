"""What happens when a button of the page is pressed; nothing here knows of Gradio, and nothing needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.asking import Answering, Decoding, Question
from gitllm_plugin.m3it.pictures import read_pixels
from gitllm_plugin.web.limits import MOST_FRAMES, MOST_PIXELS, check_pixels

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".mkv")


@dataclass(frozen=True)
class Turn:
    """A question of a conversation, and its answer so far."""

    question: str
    answer: str


def read_pictures(files: Sequence[str], most: int) -> list[Image.Image]:
    """Read pictures from uploaded files; of a video as many frames as the model takes.

    Args:
        files: uploaded.
        most: pictures that the model takes.

    Raises:
        DataError: none, too many, or one that cannot be read.
    """
    if not files:
        raise DataError("There is no picture yet: drop one in, or choose an example.")
    pictures: list[Image.Image] = []
    for file in files:
        check_pixels([picture.size for picture in pictures])
        if Path(file).suffix.lower() in VIDEO_SUFFIXES:
            from gitllm_plugin.processors.video_frames import read_frames

            frames = read_frames(file, most, MOST_PIXELS, MOST_FRAMES)
            pictures += [Image.fromarray(frame) for frame in frames]
        else:
            pictures.append(Image.fromarray(read_pixels(file, Path(file).name, MOST_PIXELS)))
    if len(pictures) > most:
        raise DataError(f"{len(pictures)} pictures, but this model takes {most} at most: remove some.")
    check_pixels([picture.size for picture in pictures])
    return pictures


def answer(engine: Answering, pictures: Sequence[Image.Image], asked: Question, decoding: Decoding) -> Iterator[str]:
    """Give the answer so far, as often as it grows; a search with beams gives it once."""
    given = (pictures, asked.text, asked.instruction, decoding, asked.turns)
    if decoding.num_beams > 1:
        yield engine.answer(*given)
    else:
        yield from engine.stream(*given)


def describe(engine: Answering, name: str) -> str:
    """Say which model it is, by the names of its parts; of a folder on this machine its last part."""
    about = engine.describe()
    encoder, decoder = (Path(about.get(part, "?")).name for part in ("image_encoder", "language_model"))
    size = f", {about['parameters']} parameters" if about.get("parameters") else ""
    return f"**{Path(name).resolve().name}**: {encoder} and {decoder}{size}, on this machine ({about['runs_on']})"
