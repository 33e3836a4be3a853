"""A real photograph for tests, of those that come with matplotlib."""

from pathlib import Path

import matplotlib
from PIL import Image


def open_photo(width: int = 512, height: int = 600) -> Image.Image:
    """A portrait, in the size that is asked for."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return photo.resize((width, height), Image.Resampling.LANCZOS)
