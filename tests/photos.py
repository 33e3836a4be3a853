"""A real photograph for tests, of those that come with matplotlib, and how files of it are made."""

import io
from pathlib import Path

import matplotlib
from PIL import Image


def open_photo(width: int = 512, height: int = 600) -> Image.Image:
    """A portrait, in the size that is asked for."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return photo.resize((width, height), Image.Resampling.LANCZOS)


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()
