"""Where an answer looks: the attention from its tokens to the patches of the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.asking import Turns
from gitllm_plugin.inference.pipeline import Decoding, Pipeline

_MOST_TOKENS = 7
_COLUMNS = 4
_STRONGEST = 0.6
"""Opacity where attention is strongest: the picture is seen through it."""


@dataclass(frozen=True)
class AnswerAttention:
    """Attention of an answer.

    Attributes:
        tokens: T tokens of the answer, as they stand in it.
        maps: float32 ``[T, F, rows, columns]``: how much of its attention the position that predicts a token gives
            to each patch, averaged over heads and layers; of a picture in tiles to each part of it, by all its images.
    """

    tokens: list[str]
    maps: Tensor


def answer_attention(
    pipeline: Pipeline,
    pictures: Sequence[Image.Image],
    question: str,
    answer: str,
    instruction: str | None = None,
    decoding: Decoding | None = None,
    turns: Turns = (),
) -> AnswerAttention:
    """Read it from one pass over pictures, prompt and answer.

    Args:
        pipeline, pictures, question, instruction, decoding, turns: that the answer was made with.
        answer: the answer.

    Raises:
        DataError: image, prompt and answer do not fit; ConfigError: the decoder gives no attention weights.
    """
    pixels, places = pipeline.images(pictures)
    if places is not None:
        pixels, places = pixels[None], places[None]
    text = pipeline.encode_answer(question, answer, instruction, pixels, decoding, turns)
    if text.marks:
        raise ConfigError("there is no figure of a question with <image> in its text: ask with pictures in front of it")
    # A token is predicted at the one before it; the last that is trained on is the end token.
    before = cast(Tensor, text.labels)[0].ne(-100).nonzero()[:-1, 0] - 1
    first = int(before[0]) if len(before) else text.input_ids.shape[1] - 1
    ids = text.input_ids.to(pipeline.device)
    with pipeline.exclusive() as model:
        weights = model.attention_to_image(ids, pixels, ids.shape[1] - first, places).mean(0)  # [last, F*P]
    rows, columns = pipeline.model.grid_shape(*pixels.shape[-2:])
    images = pixels.shape[1] if pixels.ndim == 5 else 1
    patches = weights.unflatten(1, (images, -1))[:, :, -rows * columns :].unflatten(2, (rows, columns))
    tokenizer = cast(Any, pipeline.text_encoder.tokenizer)
    tokens = [tokenizer.decode([token]) for token in text.input_ids[0, before + 1].tolist()]
    maps = patches[before - first]
    return AnswerAttention(tokens, maps if places is None else _of_pictures(maps, places[0]))


def _of_pictures(maps: Tensor, places: Tensor) -> Tensor:
    """Put maps of tiles and thumbnails ``[T, F, rows, columns]`` together: one a picture, of as many parts."""
    rows, columns = maps.shape[2:]
    whole = []
    for picture in range(int(places[:, 0].max()) + 1):
        own, grid = maps[:, places[:, 0] == picture], places[places[:, 0] == picture, 1:]
        found, (down, across) = own[:, grid[:, 0] == 0].sum(1), grid.amax(0).tolist()
        if down:
            tiles = own[:, grid[:, 0] > 0].unflatten(1, (down, across)).transpose(2, 3).flatten(3).flatten(1, 2)
            found = found + tiles.unflatten(2, (columns, across)).unflatten(1, (rows, down)).sum((2, 4))
        whole.append(found)
    return torch.stack(whole, 1)


def attention_figure(pictures: Sequence[Image.Image], attention: AnswerAttention) -> Any:
    """Draw a Matplotlib figure: pictures alone, the mean over the answer, then its first tokens; a row a picture.

    All have one scale, which a bar shows, and let the picture be seen where attention is strongest.

    Args:
        pictures: as the image encoder saw them.
        attention: of the answer about them.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    maps, shown = attention.maps, min(len(attention.tokens), _MOST_TOKENS)
    panels = [("whole answer", maps.mean(0)), *zip(attention.tokens[:shown], maps[:shown], strict=True)]
    columns = min(_COLUMNS, len(panels) + 1)
    lines = -(-(len(panels) + 1) // columns) * len(pictures)
    most = max(float(frames.max()) for _, frames in panels) or 1.0
    figure = Figure(figsize=(2.3 * columns + 0.8, 2.6 * lines), layout="constrained")
    cast(Any, figure.get_layout_engine()).set(h_pad=0.1)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for frame, picture in enumerate(pictures):
        axes[frame, 0].imshow(picture)
        axes[frame, 0].set_title("picture", fontsize=9)
    for number, (name, frames) in enumerate(panels, start=1):
        for frame, picture in enumerate(pictures):
            axis = axes[number // columns * len(pictures) + frame, number % columns]
            rows, columns = frames[frame].shape
            extent = (0, columns, rows, 0)
            axis.imshow(picture, extent=extent)
            share = frames[frame].numpy()
            axis.imshow(share, extent=extent, cmap="autumn_r", vmin=0, vmax=most, alpha=_STRONGEST * share / most)
            axis.set_title(f"{name.strip()}: {float(frames.sum()):.0%}", fontsize=9, parse_math=False)
    scale = ScalarMappable(Normalize(0, most), "autumn_r")
    bar = figure.colorbar(scale, ax=list(axes.flat), shrink=0.7, format=PercentFormatter(1, decimals=1))
    bar.set_label("attention to a patch")
    return figure
