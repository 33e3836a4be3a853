"""A folder's GIT-LLM behind the methods that lmms-eval calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from torch import Tensor
from tqdm import tqdm

from gitllm_plugin.common.device import default_device
from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.m3it.images import SUFFIXES
from gitllm_plugin.m3it.pictures import read_pixels
from gitllm_plugin.m3it.prompts import build_prompt, check_template, find_shortenable
from gitllm_plugin.modeling import TextBatch
from gitllm_plugin.modeling.places import stack_images
from gitllm_plugin.modeling.ranking import CandidateScores

_IMAGE_TAG = "<image>"  # stands in the prompts of many tasks; the image has its own place here
_DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class _Request:
    """One request of lmms-eval.

    Attributes:
        place: its number among all.
        prompt: with instruction, question and what stands around them.
        question: the place of the part of the prompt that may be shortened; None: not known.
        pictures: in order, uint8 ``[height, width, 3]``; none for text alone.
        given: generation settings, or the continuation.
        is_choice: whether the continuation is one of several choices.
    """

    place: int
    prompt: str
    question: slice | None
    pictures: list[np.ndarray]
    given: Any
    is_choice: bool


class GitLLMForLmmsEval(lmms):
    """A GIT-LLM.

    Args:
        pretrained: a folder that ``gitllm export`` or ``gitllm convert-checkpoint`` wrote.
        batch_size: requests a batch.
        device: None: a GPU if there is one.
        dtype: of language model and image encoder, see ``gitllm_plugin.modeling.load_folder``.
        template: of prompts; None: the one that the model was trained with.
        instruction: stands in every prompt; None: the folder's own, else the usual one for questions and for none.
        max_batch_size: lmms-eval's; not used.

    Raises:
        ConfigError: not such a folder, or one without tokenizer or image processor.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        template: str | None = None,
        instruction: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1
        self._join_processes(device)
        pipeline = Pipeline.from_pretrained(pretrained, dtype, self.device)
        self.model, self.text_encoder, self.transform = pipeline.model, pipeline.text_encoder, pipeline.transform
        self.template = template or pipeline.template
        self.instruction = pipeline.instruction if instruction is None else instruction
        check_template(self.template)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests; those of equal settings share a batch, long prompts first.

        Raises:
            DataError: more pictures than the model takes, a video, or a prompt that does not fit.
        """
        read = [self._read(place, request) for place, request in enumerate(requests)]
        read.sort(key=lambda request: (repr(sorted(request.given.items(), key=str)), -len(request.prompt)))
        answers = [""] * len(read)
        for batch in self._batches(read, lambda request: repr(request.given)):
            until, arguments = _as_arguments(batch[0].given)
            new_tokens = arguments["max_new_tokens"]
            text, pixels, num_images = self._inputs(batch, new_tokens - 1)  # the last new token is not read
            with torch.inference_mode():
                tokens = self.model.generate(
                    text.input_ids.to(self.device),
                    text.attention_mask.to(self.device),
                    pixels,
                    num_images=num_images,
                    **arguments,
                    **cast(Any, self.text_encoder.special_tokens),
                )
            for request, answer in zip(batch, self.text_encoder.decode(tokens), strict=True):
                answers[request.place] = _cut(answer, until)
                self.cache_hook.add_partial("generate_until", (request.prompt, request.given), answers[request.place])
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Say how likely continuations are, without an end token, and whether greedy decoding would give them.

        What is asked about one prompt and its pictures is scored together: both are read once.

        Returns:
            Each a pair in the place of a text, because lmms-eval makes texts of pairs that are not wrapped. Its number
            is the log-likelihood; of choices the negative log-likelihood, for lmms-eval takes the least.

        Raises:
            DataError: as for :meth:`generate_until`.
        """
        groups: dict[Any, list[_Request]] = {}
        for place, request in enumerate(requests):
            read = self._read(place, request)
            groups.setdefault((*map(str, request.args[3:]), read.prompt), []).append(read)
        found: list[Any] = [None] * len(requests)
        for batch in self._batches(list(groups.values()), lambda group: ""):
            scores = self._score([group[0] for group in batch], [[one.given for one in group] for group in batch])
            for group, values, greedy in zip(batch, scores.log_likelihood, scores.is_greedy, strict=True):
                for request, value, is_greedy in zip(group, values.tolist(), greedy.tolist(), strict=True):
                    pair = (-value if request.is_choice else value, is_greedy)
                    found[request.place] = GenerationResult(text=pair)  # type: ignore[arg-type]
                    self.cache_hook.add_partial("loglikelihood", (request.prompt, request.given), pair)
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: a GIT-LLM answers one question at a time."""
        raise NotImplementedError("git_llm answers one question at a time; choose tasks with a single round")

    def _join_processes(self, device: str | None) -> None:
        """Take this process's share of the requests, where ``accelerate launch`` started several."""
        from accelerate import Accelerator

        accelerator = Accelerator()
        self.device = torch.device(device) if device else default_device()
        if accelerator.num_processes > 1:
            self.accelerator = accelerator
            self.device = accelerator.device
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _read(self, place: int, request: Any) -> _Request:
        context, given, *where = request.args
        is_choice = isinstance(given, str)
        question = str(context[0] if isinstance(context, list) else context).replace(_IMAGE_TAG, "").strip()
        pictures: list[np.ndarray] = []
        if where:
            doc_to_visual, doc_id, task, split = where
            document = self.task_dict[task][split][doc_id]
            given = given(document) if callable(given) else given
            pictures = [_as_picture(visual, task) for visual in doc_to_visual(document) or []]
        if len(pictures) > self.model.max_images:
            raise DataError(
                f"a document of {where[2]} has {len(pictures)} pictures, but this model reads {self.model.max_images}: "
                "train one with model.max_images as large, or choose another task"
            )
        prompt = build_prompt(self.template, self.instruction, question)
        return _Request(place, prompt, find_shortenable(prompt, question), pictures, given, is_choice)

    def _score(self, heads: Sequence[_Request], continuations: Sequence[Sequence[str]]) -> CandidateScores:
        """Score each prompt's continuations."""
        candidates = self.text_encoder.candidates([head.prompt for head in heads], continuations, end=False)
        longest = max(len(ids) for members in candidates for ids in members)
        text, pixels, num_images = self._inputs(heads, longest - 1)  # the last token is not read
        return self.model.score_candidates(
            text.input_ids.to(self.device),
            text.attention_mask.to(self.device),
            pixels,
            candidates=candidates,
            num_images=num_images,
        )

    def _batches(self, requests: Sequence[Any], key: Callable[[Any], str]) -> Iterator[list[Any]]:
        """Group requests in their order, up to ``batch_size`` of equal key a batch."""
        batch: list[Any] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="git_llm") as progress:
            for request in requests:
                if batch and (len(batch) == self.batch_size or key(request) != key(batch[0])):
                    yield batch
                    progress.update(len(batch))
                    batch = []
                batch.append(request)
            if batch:
                yield batch
                progress.update(len(batch))

    def _inputs(self, batch: Sequence[_Request], answer: int) -> tuple[TextBatch, Tensor | None, Tensor | None]:
        """Make prompts, pixel values ``[N, F, 3, H, W]`` (None for text alone) and how many pictures each has."""
        pixels, num_images = self._pixels([request.pictures for request in batch])
        room = self.model.max_text_tokens(pixels)
        text = self.text_encoder.prompts(
            [request.prompt for request in batch],
            questions=[request.question for request in batch],
            max_tokens=None if room is None else room - answer,
        )
        return text, pixels, num_images

    def _pixels(self, pictures: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor | None, Tensor | None]:
        images = [self.transform.images(row) if row else (None, None) for row in pictures]
        pixels, num_images = stack_images(*zip(*images, strict=True))
        if pixels is None:
            return None, None
        return pixels.to(self.device, self.model.image_encoder.dtype), num_images


def _as_picture(visual: Any, task: str) -> np.ndarray:
    """Decode at once: what is read lazily would keep a file open each."""
    if isinstance(visual, (str, Path)) and Path(visual).suffix.lower() not in SUFFIXES:
        raise DataError(f"task {task} shows {visual!r}; git_llm reads pictures, not videos or sounds")
    return read_pixels(visual, f"task {task}")


def _as_arguments(given: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Read, of lmms-eval's generation settings, where an answer ends, and transformers' arguments."""
    until = given.get("until") or []
    sampling = float(given.get("temperature") or 0) > 0
    arguments = {
        "max_new_tokens": int(given.get("max_new_tokens") or _DEFAULT_NEW_TOKENS),
        "num_beams": int(given.get("num_beams") or 1),
        "do_sample": sampling,
    }
    if sampling:
        arguments |= {"temperature": float(given["temperature"]), "top_p": float(given.get("top_p") or 1.0)}
    return [until] if isinstance(until, str) else list(until), arguments


def _cut(answer: str, until: Sequence[str]) -> str:
    """Cut the answer at the first of the texts that end one."""
    for end in until:
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
