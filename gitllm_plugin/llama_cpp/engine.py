"""Answers by llama.cpp, from a folder of ``gitllm export --to llama.cpp``: needs neither torch nor transformers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.asking import Turns
from gitllm_plugin.llama_cpp.decoder import LlamaCpp
from gitllm_plugin.llama_cpp.folder import ENCODER, WEIGHTS, fit, greedy_tokens, read_description
from gitllm_plugin.llama_cpp.library import usual_threads
from gitllm_plugin.m3it.pictures import Picture, as_pictures, read_pixels
from gitllm_plugin.m3it.prompts import build_prompt


def turn_ids(about: dict[str, Any], prompt: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Encode a prompt with what stands around it by the description; a special token in it is text."""
    prompt = normalize(about["normalizer"], prompt) if about["normalizer"] else prompt
    turn = [piece if isinstance(piece, int) else piece.replace("{prompt}", prompt) for piece in about["turn"]]
    return [n for piece in turn for n in ([piece] if isinstance(piece, int) else encode(piece))] or [about["start"]]


class Engine:
    """Answers as the class ``Pipeline`` does, but one by one; who asks about the same pictures again finds them
    read, and as much of the prompt as is the same.

    Args:
        folder: what ``gitllm export --to llama.cpp`` wrote.
        threads: of the processor; None: :func:`~gitllm_plugin.llama_cpp.library.usual_threads`.

    Attributes:
        about: the description of the folder; ``instruction``: see ``Answering``, a protocol of which this is one.
        conversations: False: earlier turns are not read.
        decoder: the language model, for who calls neither :meth:`answer` nor :meth:`stream` meanwhile.

    Raises:
        ConfigError: not such a folder, or llama.cpp or onnxruntime is not installed.
    """

    conversations = places_pictures = False

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError("onnxruntime is not installed: pip install onnxruntime") from error
        folder, threads = Path(folder).expanduser(), threads or usual_threads()
        self.about = read_description(folder)
        self.instruction: str | None = self.about["prompt"]["instruction"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._encoder = onnxruntime.InferenceSession(folder / ENCODER, options, ["CPUExecutionProvider"])
        tokens, exact = self.about["image_tokens"] * self.about["max_images"], self.about["weights"] == "f32"
        self.decoder = LlamaCpp(folder / WEIGHTS, self.about["context"], tokens, threads, exact)
        self._seen, self._lock = np.zeros(0), threading.Lock()

    @property
    def max_images(self) -> int:
        """Most pictures of one question."""
        return self.about["max_images"]

    def answer(
        self,
        pictures: Any,
        question: str = "",
        instruction: str | None = None,
        decoding: Any = None,
        turns: Turns = (),
    ) -> str:
        """Answer one question: the last of what :meth:`stream` gives."""
        return ["", *self.stream(pictures, question, instruction, decoding, turns)][-1]

    def answers(self, questions: Sequence[Any], decoding: Any = None) -> list[str]:
        """Answer several ``Question``, one after another."""
        return [
            self.answer(list(each.pictures), each.text, each.instruction, decoding, each.turns) for each in questions
        ]

    def stream(
        self,
        pictures: Any,
        question: str = "",
        instruction: str | None = None,
        decoding: Any = None,
        turns: Turns = (),
    ) -> Iterator[str]:
        """Answer one question greedily: gives the answer so far, each time that it has grown.

        Args:
            pictures: one or a list of several, see :data:`~gitllm_plugin.m3it.pictures.Picture`.
            question, instruction: as for ``Pipeline.answer``; they are not shortened.
            turns: none: earlier turns of a conversation are not read here.
            decoding: None or a ``Decoding``, of which ``max_new_tokens`` and ``max_seconds`` may be other than usual.

        Raises:
            DataError: too many pictures, one that cannot be read, or a prompt that does not fit; ConfigError: decoding.
        """
        if turns:
            raise DataError(f"{len(turns)} turns before the question; llama.cpp is asked single questions here")
        most, pixels, ids = greedy_tokens(decoding), self.pixels(pictures), self.prompt_ids(question, instruction)
        room = self.about["context"] - len(pixels) * self.about["image_tokens"] - most + 1
        if len(ids) > room:
            raise DataError(f"the prompt has {len(ids)} tokens, but beside pictures and answer {room} fit: ask shorter")
        until = time.monotonic() + (getattr(decoding, "max_seconds", None) or float("inf"))
        written, told = b"", ""
        for _ in range(most):
            with self._lock:  # no longer: who reads an answer slowly holds nobody up
                self.see(pixels)
                token = int(self.decoder.read_whole(ids).argmax())
            if token in self.about["ends"]:
                break
            ids, written = [*ids, token], written + self.decoder.piece(token)
            text = written.decode("utf-8", "replace").strip()
            if text not in ("", told) and not text.endswith("\ufffd"):  # a letter of several bytes may be cut in two
                yield (told := text)
            if time.monotonic() > until:
                break
        if (text := written.decode("utf-8", "replace").strip()) != told:
            yield text

    def pixels(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """Turn one question's pictures into pixels, float32 ``[n, 3, S, S]``."""
        pictures, most = as_pictures(pictures), self.max_images
        if not 1 <= len(pictures) <= most:
            raise DataError(f"{len(pictures)} pictures; this model takes 1 to {most}")
        return np.stack([fit(read_pixels(picture), **self.about["image"]) for picture in pictures])

    def prompt_ids(self, question: str, instruction: str | None = None) -> list[int]:
        """Make a prompt's tokens as in training; what looks like a special token in a question is text."""
        about, usual = self.about["prompt"], self.instruction if instruction is None else instruction
        return turn_ids(about, build_prompt(about["template"], usual, question), self.decoder.ids)

    def seen(self, picture: Picture) -> Image.Image:
        """Show what the image encoder sees of a picture, before it is normalised."""
        settings = {**self.about["image"], "mean": [0.0] * 3, "std": [1 / 255] * 3}
        return Image.fromarray(fit(read_pixels(picture), **settings).round().astype(np.uint8).transpose(1, 2, 0))

    def is_cut(self, answer: str, decoding: Any) -> bool:
        """Tell whether an answer ended because it had as many tokens as it may have."""
        return len(self.decoder.ids(answer)) >= decoding.max_new_tokens

    def describe(self) -> dict[str, str]:
        """Say what answers: names of the parts where they are known, or else their kinds."""
        return {**self.about["model"], "runs_on": f"llama.cpp, {self.about['weights']}"}

    def see(self, pixels: np.ndarray) -> None:
        """Read pictures, as :meth:`pixels` gives them, unless they are those that were read last."""
        if self._seen is not pixels and not np.array_equal(self._seen, pixels):
            self.forget()
            self.decoder.see(np.concatenate([self._encode(each, place) for place, each in enumerate(pixels)]))
        self._seen = pixels

    def forget(self) -> None:
        """Let the pictures that were read last be read again."""
        self._seen = np.zeros(0)

    def _encode(self, pixels: np.ndarray, place: int) -> np.ndarray:
        places = {"place": np.array([place])} if self.about["max_images"] > 1 else {}
        return np.asarray(self._encoder.run(None, {"pixels": pixels[None], **places})[0])
