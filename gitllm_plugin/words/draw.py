"""The figure: a picture with the nearest word of each patch on it, frequent words coloured."""

from __future__ import annotations

from typing import Any, cast

from PIL import Image

from gitllm_plugin.words.nearest import Measure
from gitllm_plugin.words.picture import PictureWords

_COLORED = 8
_LONGEST = 10
TITLES: dict[Measure, str] = {"cosine": "by cosine similarity", "dot": "by dot product"}


def draw_words(axis: Any, picture: Image.Image, words: PictureWords, measure: Measure) -> None:
    """Draw on Matplotlib axes.

    Args:
        axis: where.
        picture: as the image encoder saw it: the part that was cut out, of any size.
        words: its words.
        measure: which of them.
    """
    import matplotlib

    rows, columns = words.grid
    palette = matplotlib.colormaps["tab10"].colors
    frequent = [token for token, count in words.counts(measure)[:_COLORED] if count > 1]
    color_of = dict(zip(frequent, palette, strict=False))
    axis.imshow(picture, extent=(0, columns, rows, 0), alpha=0.55, interpolation="bilinear")
    for entry in words.nearest(measure):
        token = entry.token.strip()
        shown = token if len(token) <= _LONGEST else token[: _LONGEST - 1] + "…"
        color = color_of.get(entry.token)
        axis.text(
            entry.column + 0.5,
            entry.row + 0.5,
            shown,
            ha="center",
            va="center",
            fontsize=max(4, min(11, 44 / columns)),
            parse_math=False,
            color="white" if color else "black",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": color or "white", "alpha": 0.85, "edgecolor": "none"},
        )
    axis.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0), title=TITLES[measure])


def words_figure(picture: Image.Image, words: PictureWords, measures: tuple[Measure, ...]) -> Any:
    """Draw a Matplotlib figure with the picture once for each measure; it needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(measures), 5.6), layout="constrained")
    cast(Any, figure.get_layout_engine()).set(h_pad=0.1)
    for axis, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        draw_words(axis, picture, words, measure)
    return figure
