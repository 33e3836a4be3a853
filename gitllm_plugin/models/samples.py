"""Batches in the forms that LAVIS's data sets give them: what of them a model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.prompts import Prompt, find_shortenable
from gitllm_plugin.modeling.pixels import normalize_pixels

Samples = Mapping[str, Any]

HOST_KEYS = ("image_index", "num_images", "n_answers", "weight", "label")
"""Numbers of a batch that say who stands where and what it weighs, which is found out on the host."""


def pixels_of(samples: Samples) -> Tensor | None:
    """Give the images ``[U, 3, H, W]`` or ``[U, F, 3, H, W]`` of a batch; None where it has none.

    LAVIS's NLVR2 gives a pair of images apart, which become the two frames of one entry; its videos have their channels
    in front of their frames.
    """
    if "image0" in samples and "image1" in samples:
        return torch.stack([samples["image0"], samples["image1"]], 1)
    if samples.get("image") is None and samples.get("video") is not None:
        return _of_video(samples["video"])
    pixels = samples.get("image")
    if pixels is not None and pixels.ndim == 5 and pixels.shape[1] == 3 and pixels.shape[2] not in (1, 3):
        return pixels.transpose(1, 2)  # a video of LAVIS's
    return pixels


def _of_video(pixels: Tensor) -> Tensor:
    """Give videos as ``[U, F, 3, H, W]``: LAVIS's are ``[U, 3, F, H, W]``, or ``[U, 3, H, W]`` for one frame.

    Raises:
        DataError: the shape is neither, or says nothing of which it is.
    """
    if pixels.ndim == 5 and (pixels.shape[1] == 3) != (pixels.shape[2] == 3):
        return pixels.transpose(1, 2) if pixels.shape[1] == 3 else pixels
    if pixels.ndim == 4:
        return pixels
    either = "both" if pixels.ndim == 5 and pixels.shape[1] == 3 else "none"
    raise DataError(
        f"the batch has a video of shape {list(pixels.shape)}; it may be [U, F, 3, H, W], or LAVIS's [U, 3, F, H, W], "
        f"and this may be {either} of the two: take another number of frames than three, or give it as image "
        "[U, F, 3, H, W]"
    )


def normalized_pixels(pixels: Tensor | None, samples: Samples) -> Tensor | None:
    """Normalise images that the loader left in uint8; give all others as they are.

    Args:
        pixels: the batch's images, on the device where they are computed with.
        samples: the batch, whose ``image_mean`` and ``image_std`` say how.

    Raises:
        DataError: the batch does not say how.
    """
    if pixels is None or pixels.dtype != torch.uint8:
        return pixels
    if "image_mean" not in samples:
        raise DataError(
            "the batch has images in uint8 but neither image_mean nor image_std to normalise them with; "
            "collate its items with gitllm_plugin.datasets.collate, or give normalised floats"
        )
    mean, std = (samples[key].to(pixels.device) for key in ("image_mean", "image_std"))
    return normalize_pixels(pixels, mean, std)


def as_numbers(value: Any) -> Tensor | None:
    """Give numbers of a batch, a list or a tensor, as a tensor; lists are on the host, and None stays None."""
    return None if value is None else torch.as_tensor(value)


def prompts_of(samples: Samples, default: str) -> list[str]:
    """Give a prompt a text: ``prompt``, else ``text_input``, else ``default`` for each image.

    Args:
        samples: the batch; its ``prompt`` may be one text for all.
        default: the prompt of samples that bring none.
    """
    prompts = samples.get("prompt", samples.get("text_input"))
    if prompts is None or isinstance(prompts, str):
        count = len(cast(Tensor, samples["image_index"] if "image_index" in samples else pixels_of(samples)))
        return [default if prompts is None else prompts] * count
    return list(prompts)


def words_of(texts: Sequence[str]) -> list[str]:
    """Give texts that are answers or captions as they were before a processor made prompts of them.

    Some of LAVIS's data sets call one processor for both questions and answers.
    """
    return [text.question if isinstance(text, Prompt) else text for text in texts]


def candidates_of(prompts: Sequence[str], candidates: Sequence[str] | Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Give a list of candidates for each prompt, where all may share one list."""
    if candidates and isinstance(candidates[0], str):
        return [cast(Sequence[str], candidates)] * len(prompts)
    return list(cast(Sequence[Sequence[str]], candidates))


def shortenable_of(samples: Samples, prompts: Sequence[str]) -> list[slice | None]:
    """Find the part of each prompt that may be shortened; None where it is not known.

    Args:
        samples: the batch, whose ``question`` is what was asked in each ``text_input``.
        prompts: the prompts that are made of it.
    """
    if "shortenable" in samples:
        return list(samples["shortenable"])
    questions = samples.get("question")
    if questions is None or list(prompts) != list(samples.get("text_input", ())):
        questions = [None] * len(prompts)
    return [find_shortenable(prompt, question) for prompt, question in zip(prompts, questions, strict=True)]


def with_one_answer_each(samples: Samples, prompt: str, class_names: Callable[[], list[str]]) -> Samples:
    """Give a batch in which every text has one answer; texts of one question share its image.

    Args:
        samples: with ``text_output``; with several weighted answers a question (``answer``, ``n_answers``); with the
            number of a class (``label``); or with none of them, and then given back as it is.
        prompt: of samples with a class that bring none.
        class_names: asked for only where there are labels.

    Raises:
        DataError: there are more or fewer answers than the questions are said to have.
    """
    if "answer" in samples and "n_answers" in samples:
        counts = torch.as_tensor(samples["n_answers"]).cpu()
        index = torch.arange(len(counts)).repeat_interleave(counts)
        if len(samples["answer"]) != len(index):
            raise DataError(
                f"the batch has {len(samples['answer'])} answers, but n_answers says {len(index)}: "
                "answer lists those of the first question, then those of the second, and so on"
            )
        images = samples.get("image_index")  # of each question, where several are about one picture
        answers = {
            "text_input": [samples["text_input"][question] for question in index],
            "text_output": words_of(samples["answer"]),
            "image_index": index if images is None else torch.as_tensor(images).cpu()[index],
        }
        if "weight" in samples:
            answers["weight"] = torch.as_tensor(samples["weight"])
        if "question" in samples:
            answers["question"] = [samples["question"][question] for question in index]
        return {**samples, **answers}
    if "text_output" in samples:
        return {**samples, "text_output": words_of(samples["text_output"])}
    if "label" in samples:
        names = [] if isinstance(samples["label"][0], str) else class_names()
        # git main's SNLI-VE gives the names themselves.
        outputs = [number if isinstance(number, str) else names[number] for number in samples["label"]]
        return {**samples, "text_input": prompts_of(samples, prompt), "text_output": outputs}
    return samples
