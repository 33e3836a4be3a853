"""Where an answer looks: the attention from its tokens to the patches of the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image
from torch import Tensor

from gitllm_plugin.inference.pipeline import Decoding, Pipeline

_MOST_TOKENS = 7
_COLUMNS = 4


@dataclass(frozen=True)
class AnswerAttention:
    """Attention of an answer.

    Attributes:
        tokens: T tokens of the answer, as they stand in it.
        maps: float32 ``[T, F, rows, columns]``: how much of its attention the position that predicts a token gives
            to each patch, averaged over heads and layers.
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
) -> AnswerAttention:
    """Read it from one pass over pictures, prompt and answer.

    Args:
        pipeline, pictures, question, instruction, decoding: that the answer was made with.
        answer: the answer.

    Raises:
        DataError: image, prompt and answer do not fit; ConfigError: the decoder gives no attention weights.
    """
    pixels = pipeline.pixels(pictures)
    text = pipeline.encode_answer(question, answer, instruction, pixels, decoding)
    # A token is predicted at the one before it; the last that is trained on is the end token.
    places = cast(Tensor, text.labels)[0].ne(-100).nonzero()[:-1, 0] - 1
    first = int(places[0]) if len(places) else text.input_ids.shape[1] - 1
    ids = text.input_ids.to(pipeline.device)
    with pipeline.exclusive() as model:
        weights = model.attention_to_image(ids, pixels, last=ids.shape[1] - first).mean(0)  # [last, F*P]
    rows, columns = pipeline.model.image_encoder.grid_shape(*pixels.shape[-2:])
    patches = weights.unflatten(1, (len(pictures), -1))[:, :, -rows * columns :].unflatten(2, (rows, columns))
    tokenizer = cast(Any, pipeline.text_encoder.tokenizer)
    tokens = [tokenizer.decode([token]) for token in text.input_ids[0, places + 1].tolist()]
    return AnswerAttention(tokens, patches[places - first])


def attention_figure(pictures: Sequence[Image.Image], attention: AnswerAttention) -> Any:
    """Draw a Matplotlib figure: the mean over the answer, then its first tokens, one row of panels a picture.

    Args:
        pictures: as the image encoder saw them.
        attention: of the answer about them.
    """
    from matplotlib.figure import Figure

    maps, shown = attention.maps, min(len(attention.tokens), _MOST_TOKENS)
    panels = [("whole answer", maps.mean(0)), *zip(attention.tokens[:shown], maps[:shown], strict=True)]
    lines = -(-len(panels) // _COLUMNS) * len(pictures)
    figure = Figure(figsize=(2.3 * _COLUMNS, 2.6 * lines), layout="constrained")
    cast(Any, figure.get_layout_engine()).set(h_pad=0.1)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (name, frames) in enumerate(panels):
        for frame, picture in enumerate(pictures):
            axis = axes[number // _COLUMNS * len(pictures) + frame, number % _COLUMNS]
            rows, columns = frames[frame].shape
            extent = (0, columns, rows, 0)
            axis.imshow(picture, extent=extent)
            strength = (frames[frame] / frames.max()).numpy()
            axis.imshow(strength, extent=extent, cmap="autumn_r", vmin=0, vmax=1, alpha=0.85 * strength)
            axis.set_title(f"{name.strip()}: {float(frames.sum()):.0%}", fontsize=9, parse_math=False)
    return figure
