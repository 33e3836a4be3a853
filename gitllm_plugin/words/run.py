"""``gitllm words``: a picture, or many, in words, as files in a folder."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from gitllm_plugin.common.files import atomic_path
from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.tables import Block
from gitllm_plugin.words.collection import read_collection
from gitllm_plugin.words.draw import words_figure
from gitllm_plugin.words.nearest import MEASURES
from gitllm_plugin.words.picture import PictureWords, picture_words, write_csv, write_json
from gitllm_plugin.words.report import statistics_blocks, write_statistics
from gitllm_plugin.words.statistics import word_statistics
from gitllm_plugin.words.vectors import patch_vectors
from gitllm_plugin.words.vocabulary import read_vocabulary, words_of


def explain_picture(
    pipeline: Pipeline, picture: Image.Image, name: str, output: Path, k: int = 5
) -> tuple[PictureWords, list[Path]]:
    """Explain one picture: figure, CSV and JSON.

    Args:
        pipeline: the model.
        picture: as it was opened.
        name: of the files, without an ending.
        output: a folder, made where it is missing.
        k: tokens a patch.

    Returns:
        What was found, and the files written.
    """
    vectors = patch_vectors(pipeline.model, pipeline.pixels([picture]))[0, 0]
    vocabulary = read_vocabulary(pipeline.model.language_model, pipeline.text_encoder.tokenizer)
    words = picture_words(vectors, vocabulary, k)
    figure, table, data = (output / f"{name}.{suffix}" for suffix in ("png", "csv", "json"))
    with atomic_path(figure) as partial:
        words_figure(pipeline.seen(picture), words, MEASURES).savefig(partial, dpi=110, format="png")
    write_csv(words, table)
    write_json(words, data)
    return words, [figure, table, data]


def explain_pictures(
    pipeline: Pipeline, storage: str, output: Path, limit: int = 200
) -> tuple[list[Block], list[Path]]:
    """Explain many pictures: statistics as tables, a figure and JSON.

    Args:
        pipeline: the model.
        storage: see :func:`~gitllm_plugin.words.collection.read_collection`.
        output: a folder, made where it is missing.
        limit: most pictures.

    Returns:
        Tables, with a line in words, and the files written.

    Raises:
        DataError: no pictures, or captions for some of them only.
    """
    tokenizer = pipeline.text_encoder.tokenizer
    vectors, captions, without = [], [], []
    for entry in read_collection(storage, limit):
        vectors.append(patch_vectors(pipeline.model, pipeline.pixels([entry.picture]))[0, 0].flatten(0, 1))
        captions.append(set().union(*(words_of(caption, tokenizer) for caption in entry.captions)))
        if not entry.captions:
            without.append(entry.name)
    if without and len(without) < len(captions):
        raise DataError(
            f"{len(without)} of {len(captions)} pictures have no caption, such as {without[0]}; add what is missing "
            "or remove those pictures"
        )
    vocabulary = read_vocabulary(pipeline.model.language_model, tokenizer)
    statistics = word_statistics(vectors, vocabulary, None if without else captions)
    return statistics_blocks(statistics), write_statistics(statistics, output)
