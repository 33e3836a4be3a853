"""A model with everything around it: pixels from pictures, prompts from questions, texts from tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from gitllm_plugin.common.device import default_device
from gitllm_plugin.common.hub import local_folder
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.asking import Decoding, Question, Turns
from gitllm_plugin.m3it.pictures import Picture, as_pictures, read_pixels
from gitllm_plugin.m3it.prompts import Prompt, build_prompt, check_template, find_shortenable, prompt_behind
from gitllm_plugin.modeling import GitLLM, TextBatch, TextEncoder, load_folder, make_text_encoder
from gitllm_plugin.modeling.conversation import turns_of
from gitllm_plugin.modeling.folder import IMAGE_ENCODER, has_lora
from gitllm_plugin.modeling.marks import place_pictures
from gitllm_plugin.modeling.places import stack_images
from gitllm_plugin.modeling.remembered import Remembered
from gitllm_plugin.processors.image_transform import ImageTransform
from gitllm_plugin.processors.transform_config import transform_of_folder


@dataclass
class Pipeline:
    """Answers questions about pictures. Calls from several threads wait for each other, see :meth:`exclusive`.

    Attributes:
        model: in evaluation mode.
        text_encoder: with the language model's tokenizer.
        transform: from a picture to pixel values, as in training.
        template: of prompts, a name of :data:`gitllm_plugin.m3it.prompts.TEMPLATES`.
        instruction: stands in a prompt where none is given; None: one for questions and one for no question, see
            :func:`gitllm_plugin.m3it.prompts.default_instruction`.
        conversations: whether it was trained on conversations. Turns that are given are read in any case.
    """

    model: GitLLM
    text_encoder: TextEncoder
    transform: ImageTransform
    template: str = "article"
    instruction: str | None = None
    conversations: bool = False
    remembered: Remembered = field(default_factory=Remembered, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        check_template(self.template)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, dtype: str = "auto", device: str | torch.device | None = None
    ) -> Pipeline:
        """Read a folder that ``gitllm export`` wrote.

        Args:
            name: the folder, with tokenizer and image processor; or ``user/name`` on the model hub.
            dtype: see :func:`~gitllm_plugin.modeling.load_folder`.
            device: None: a GPU if there is one.

        Raises:
            ConfigError: not such a folder, or without tokenizer or image processor.
        """
        folder = local_folder(name)
        loaded = load_folder(folder, dtype)
        if loaded.tokenizer is None or loaded.image_processor is None:
            part = (
                "tokenizer" if loaded.tokenizer is None else "image processor (image_encoder/preprocessor_config.json)"
            )
            raise ConfigError(f"{folder} has no {part}; `gitllm export` writes both")
        settings = loaded.settings
        prompts = settings.get("text_processor") or {}
        family = loaded.model.decoder.family
        return cls(
            model=loaded.model.to(device or default_device()),
            text_encoder=make_text_encoder(
                loaded.model.language_model,
                loaded.tokenizer,
                conversation=family if settings.get("chat_template") else None,
                image_places=settings.get("image_places", "front"),
            ),
            transform=transform_of_folder(folder / IMAGE_ENCODER, settings),
            conversations=bool(settings.get("conversations")),
            **{name: prompts[name] for name in ("template", "instruction") if name in prompts},
        )

    def seen(self, picture: Picture) -> Image.Image:
        """Show what the image encoder sees of a picture, before it is normalised."""
        return Image.fromarray(self.transform.fit(read_pixels(picture)).permute(1, 2, 0).numpy())

    @property
    def max_images(self) -> int:
        """Most pictures of one question."""
        return self.model.max_images

    @property
    def places_pictures(self) -> bool:
        """Whether ``<image>`` in a question, or in one before it, is where its next picture stands."""
        return self.text_encoder.image_places == "text"

    def is_cut(self, answer: str, decoding: Decoding) -> bool:
        """Tell whether an answer ended because it had as many tokens as it may have."""
        ids = self.text_encoder.tokenizer(answer, add_special_tokens=False).input_ids
        return len(ids) >= decoding.max_new_tokens

    def describe(self) -> dict[str, str]:
        """Say what answers: names of the parts where they are known, or else their kinds."""
        kinds = {
            "image_encoder": self.model.image_encoder.tower.config.model_type,
            "language_model": self.model.language_model.config.model_type,
        }
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        names = {part: _shown(self.model.sources.get(part, kind)) for part, kind in kinds.items()}
        if has_lora(self.model):
            names["language_model"] += " with LoRA"
        return {
            **names,
            "parameters": f"{parameters / 1e6:,.1f} M",
            "runs_on": str(self.device),
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def pixels(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Turn one question's pictures into pixels: ``[1, 3, H, W]``, or ``[1, F, 3, H, W]`` for a model of several.

        Each is given as a whole, also where the model reads it in tiles, see :meth:`images`.

        Args:
            pictures: one (see :data:`~gitllm_plugin.m3it.pictures.Picture`), or a list of several in their order.

        Raises:
            DataError: no picture, more than the model takes, or one that cannot be read.
        """
        pixels = torch.stack([self.transform(picture) for picture in self._checked(pictures)]).to(self.device)
        return pixels[None] if self.model.max_images > 1 else pixels

    def images(self, pictures: Picture | Sequence[Picture]) -> tuple[Tensor, Tensor | None]:
        """Make what the model reads of one question's pictures.

        Args:
            pictures: as for :meth:`pixels`.

        Returns:
            What :meth:`pixels` gives and None; or of a model that reads tiles all images ``[F, 3, H, W]`` and their
            places, long ``[F, 3]``, see :mod:`gitllm_plugin.modeling.places`.

        Raises:
            DataError: as :meth:`pixels`.
        """
        if self.transform.max_tiles == 1:
            return self.pixels(pictures), None
        pixels, places = self.transform.images(self._checked(pictures))
        return pixels.to(self.device), places

    def _checked(self, pictures: Picture | Sequence[Picture]) -> Sequence[Picture]:
        pictures = as_pictures(pictures)
        if not 1 <= len(pictures) <= self.model.max_images:
            given = len(pictures)
            more = f"; ask about each apart, or train a model with model.max_images: {given}" if pictures else ""
            raise DataError(f"{given} pictures; this model takes 1 to {self.model.max_images}{more}")
        return pictures

    def prompt(self, question: str, instruction: str | None = None, turns: Turns = ()) -> str:
        """Make the prompt of a question; an empty one asks for what the instruction says, by default a description."""

        def make(question: str, instruction: str | None) -> str:
            return build_prompt(self.template, self.instruction if instruction is None else instruction, question)

        return prompt_behind(turns, question, instruction, make)

    @contextmanager
    def exclusive(self) -> Iterator[GitLLM]:
        """Lend the model to a caller of its methods; other threads wait until the block ends."""
        with self._lock:
            yield self.model

    def answer(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        instruction: str | None = None,
        decoding: Decoding | None = None,
        turns: Turns = (),
    ) -> str:
        """Answer one question.

        Args:
            pictures: one (a path, bytes, an image of Pillow, an array, ...), or a list of several in their order, see
                :meth:`pixels`.
            question: one; it may be empty.
            instruction: in the place of the model's usual one.
            decoding: how the answer is searched for; None: greedily.
            turns: of a conversation, questions and answers before this one; the instruction stands in front of the
                first. What the last call read of it is not read again.

        Raises:
            DataError: too many pictures, one that cannot be read, several questions, or a prompt that does not fit.
        """
        return self.answers([Question(tuple(as_pictures(pictures)), question, instruction, turns)], decoding)[0]

    def answers(self, questions: Sequence[Question], decoding: Decoding | None = None) -> list[str]:
        """Answer several questions in one batch; pictures that several of them ask about are read once.

        In float32 each answer is that of :meth:`answer`; in bfloat16 a batch rounds otherwise, and where two words are
        about as likely another may be chosen.

        Args:
            questions: any number; the memory of all pictures and texts is taken at once.
            decoding: how the answers are searched for; None: greedily.

        Raises:
            DataError: as :meth:`answer`, for any of them.
        """
        answers = [""] * len(questions)
        by_count: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            by_count.setdefault(len(question.pictures), []).append(place)
        # Questions of one number of pictures need no padding.
        for places in by_count.values():
            inputs = self._inputs([questions[place] for place in places], decoding or Decoding())
            with self.exclusive() as model:
                tokens = self._generate(model, inputs, any(questions[place].turns for place in places))
            for place, answer in zip(places, self.text_encoder.decode(tokens), strict=True):
                answers[place] = answer
        return answers

    def stream(
        self,
        pictures: Picture | Sequence[Picture],
        question: str = "",
        instruction: str | None = None,
        decoding: Decoding | None = None,
        turns: Turns = (),
    ) -> Iterator[str]:
        """Answer as :meth:`answer`, but give the answer so far, each time that it has grown. Beams have none so far.

        Who stops reading stops the model at its next token.

        Raises:
            DataError: as :meth:`answer`; ConfigError: beams.
        """
        decoding = decoding or Decoding()
        if decoding.num_beams > 1:
            raise ConfigError("a search with beams gives its answer at the end: call answer, or num_beams=1")
        inputs = self._inputs([Question(tuple(as_pictures(pictures)), question, instruction, turns)], decoding)
        streamer = _Answer(self.text_encoder)
        failure: list[BaseException] = []
        stop = _StopWhenAsked()

        def generate() -> None:
            try:
                watched = {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([stop])}
                with self.exclusive() as model:
                    self._generate(model, {**inputs, **watched}, bool(turns))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        answer = ""
        try:
            for piece in streamer:
                answer += piece
                if piece:
                    yield answer.strip()
        finally:
            stop.asked.set()
            thread.join()
        if failure:
            raise failure[0]

    def encode_answer(
        self,
        question: str,
        answer: str,
        instruction: str | None = None,
        pixels: Tensor | None = None,
        decoding: Decoding | None = None,
        turns: Turns = (),
    ) -> TextBatch:
        """Encode prompt and answer; labels mark the answer and the end token.

        Args:
            question, instruction, turns: as for :meth:`answer`.
            answer: what was answered, or another text.
            pixels: of :meth:`pixels`, beside which the text is to fit: the prompt is shortened as for :meth:`answer`.
            decoding: as for :meth:`answer`.

        Raises:
            DataError: prompt and answer do not fit beside the pictures.
        """
        prompt = self.prompt(question, instruction, turns)
        place = find_shortenable(prompt, question)
        room = None if pixels is None else self.model.max_text_tokens(pixels)
        asked = self.text_encoder.shortened(prompt, place, _room_for_prompt(room, decoding or Decoding()))
        asked = Prompt(asked, turns=turns_of(prompt))
        if place is not None:
            place = slice(place.start, place.stop - (len(prompt) - len(asked)))
        return self.text_encoder.prompts_and_answers([asked], [answer], [place], room)

    def _generate(self, model: GitLLM, inputs: dict[str, Any], has_turns: bool) -> Tensor:
        """Continue prompts; one of a conversation behind what was read of it."""
        # What is remembered begins with the pictures.
        if len(inputs["input_ids"]) > 1 or not (has_turns or self.conversations) or "image_marks" in inputs:
            return model.generate(**inputs)
        given = {name: value for name, value in inputs.items() if name not in ("attention_mask", "image_index")}
        return self.remembered.generate(model, **given)

    def _inputs(self, questions: Sequence[Question], decoding: Decoding) -> dict[str, Any]:
        """Make the arguments of ``generate`` for questions of one number of pictures."""
        for question in questions:
            if not isinstance(question.text, str):
                raise DataError(
                    f"the question is {question.text!r:.200}; give one text, and of several questions each in a call "
                    "of its own: [pipeline.answer(picture, question) for question in questions]"
                )
        groups = {question.same_pictures(): question.pictures for question in questions}
        pixels, num_images = self._batch([self.images(pictures) for pictures in groups.values()])
        numbers = {key: number for number, key in enumerate(groups)}
        prompts = [self.prompt(question.text, question.instruction, question.turns) for question in questions]
        text = self.text_encoder.prompts(
            prompts,
            questions=[find_shortenable(p, q.text) for p, q in zip(prompts, questions, strict=True)],
            max_tokens=_room_for_prompt(self.model.max_text_tokens(pixels), decoding),
        )
        index = [numbers[question.same_pictures()] for question in questions]
        counts = [len(question.pictures) for question in questions]
        marks = place_pictures(text.marks or [()] * len(counts), counts) if self.places_pictures else None
        return {
            **({} if marks is None else {"image_marks": marks}),
            "pixel_values": pixels,
            "num_images": num_images,
            "image_index": torch.tensor(index) if len(groups) < len(questions) else None,
            "input_ids": text.input_ids.to(self.device),
            "attention_mask": text.attention_mask.to(self.device),
            **decoding.as_arguments(),
            **self.text_encoder.special_tokens,
        }

    def _batch(self, images: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        """Put what :meth:`images` gives of several questions with equally many pictures together."""
        if self.transform.max_tiles == 1:
            return torch.cat([pixels for pixels, _ in images]), None
        pixels, places = stack_images(*zip(*images, strict=True))
        return cast(Tensor, pixels), places


class _Answer(TextIteratorStreamer):
    """Gives an answer as it grows, without what ends it."""

    def __init__(self, text_encoder: TextEncoder) -> None:
        # Left as they are: some tokenizers would take the spaces before punctuation away.
        settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        super().__init__(cast(Any, text_encoder.tokenizer), **settings)
        self._ends = set(text_encoder.ends)

    def put(self, value: Tensor) -> None:
        """Take the next token."""
        if value.numel() != 1 or int(value) not in self._ends:
            super().put(value)


class _StopWhenAsked(StoppingCriteria):
    """Ends a generation in another thread."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), dtype=torch.bool, device=input_ids.device)


def _shown(name: str) -> str:
    """Shorten a folder of this machine to its name."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name


def _room_for_prompt(room: int | None, decoding: Decoding) -> int | None:
    """Tell how many of a text's tokens may be the prompt's."""
    return None if room is None else room - decoding.max_new_tokens + 1  # the last new token is not read
