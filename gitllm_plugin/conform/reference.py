"""What is to be computed: one example alone, in float32, without cache, padding or batch, each slot written out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gitllm_plugin.conform.asked import Asked, Asking
from gitllm_plugin.conform.readings import Fault, Reading, TextBefore, VectorsBefore, read_right
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.pipeline import Pipeline


class Reference:
    """A model computed by brute force. It shares the weights with the model, and none of the ways in which it computes.

    Args:
        model: a folder of ``gitllm export``, or a pipeline in float32 on the CPU, which is the reference's own from
            now on.

    Attributes:
        asking: makes questions for this model.
        max_images: most images of a question.

    Raises:
        ConfigError: no such folder, or a model that reads by another rule than GIT's, or pictures in tiles.
    """

    def __init__(self, model: str | Path | Pipeline) -> None:
        pipeline = model if isinstance(model, Pipeline) else Pipeline.from_pretrained(model, "float32", "cpu")
        if (attention := pipeline.model.decoder.attention) != "git":
            raise ConfigError(f"the model reads by model.attention={attention}, and what is asked here is GIT's rule")
        if pipeline.transform.max_tiles > 1:
            raise ConfigError(
                f"the model reads pictures in tiles (max_tiles={pipeline.transform.max_tiles}), and what is asked here "
                "are whole ones"
            )
        self.asking = Asking(pipeline)
        self.max_images = pipeline.model.max_images
        self._pipeline = pipeline
        self._model = pipeline.model.cpu().float().eval()
        # The plainest there is: no attention without masks, and scores as they are written. Falcon refuses to be told,
        # though it reads its configuration in each call.
        cast(Any, self._model.language_model.config)._attn_implementation = "eager"
        self._images: dict[int, tuple[Asked, Tensor, Tensor]] = {}
        self._padding: dict[int, list[Fault]] = {}
        self._logits: dict[tuple[Any, ...], np.ndarray] = {}

    @torch.no_grad()
    def padding_seen(self, number: int) -> list[Fault]:
        """Give what becomes of so much padding that is seen: behind the image, or in front as a token or as zeros."""
        if number not in self._padding:
            token = int(self._pipeline.text_encoder.special_tokens["pad_token_id"])
            vectors = self._embed(torch.tensor([token] * number, dtype=torch.long))
            zeros = vectors.new_zeros(number, self._model.language_model.config.hidden_size)
            self._padding[number] = [TextBefore((token,) * number), VectorsBefore(zeros)]
            if vectors.shape == zeros.shape:
                self._padding[number].append(VectorsBefore(vectors))
        return self._padding[number]

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        return self._pipeline.text_encoder.ends

    def logits(self, asked: Asked, fault: Fault | None = None, every: bool = False) -> np.ndarray:
        """Compute logits behind the prompt and behind each token of ``then``; or behind each token of the text.

        Args:
            asked: a question.
            fault: what goes wrong in reading it; None: nothing.
            every: the text is read at once, ``then`` being part of the prompt.

        Returns:
            float32 ``[1 + len(then), V]`` or ``[T, V]``.
        """
        key = (id(asked.pixels), asked.ids, asked.then, fault, every)
        if key not in self._logits:
            ids = torch.tensor(asked.ids + asked.then)
            prompt = len(ids) if every else len(asked.ids)
            image, images = self._image_of(asked)
            reading = read_right(image, images, ids, prompt)
            reading = reading if fault is None else fault(reading)
            text = len(asked.ids) + len(asked.then) if every else 1 + len(asked.then)
            # A fault may have put more text in front.
            self._logits[key] = self.compute(reading)[-text:].numpy()
        return self._logits[key]

    def answer(self, asked: Asked, new_tokens: int, fault: Fault | None = None) -> str:
        """Answer greedily, reading everything anew for each token."""
        tokens = self.tokens(asked, new_tokens, fault)
        return self._pipeline.text_encoder.decode(torch.tensor([tokens]).reshape(1, -1))[0]

    def tokens(self, asked: Asked, new_tokens: int, fault: Fault | None = None, ends: bool = True) -> list[int]:
        """Give an answer's tokens, greedily; an end token is left out, or with ``ends=False`` none is an end."""
        found: list[int] = []
        for _ in range(new_tokens):
            token = int(self.logits(asked.followed_by(tuple(found)), fault)[-1].argmax())
            if ends and token in self.ends:
                break
            found.append(token)
        return found

    def margin(self, asked: Asked, new_tokens: int) -> float:
        """Tell by how much the likeliest tokens of an answer lead, at least, as a share of the largest logit."""
        tokens = self.tokens(asked, new_tokens)
        logits = self.logits(asked.followed_by(tuple(tokens)))[:new_tokens]
        best = np.sort(logits, 1)[:, -2:]
        return float(((best[:, 1] - best[:, 0]) / np.abs(logits).max(1)).min())

    def likelihood(self, asked: Asked, tokens: Sequence[int]) -> float:
        """Give the logarithm of an answer's likelihood, a token, as a share of the largest logit."""
        logits = self.logits(asked.followed_by(tuple(tokens)))[:-1]
        logs = torch.from_numpy(logits).log_softmax(1)
        return self.share(asked, tokens, float(logs[range(len(tokens)), list(tokens)].sum()))

    def share(self, asked: Asked, tokens: Sequence[int], likelihood: float) -> float:
        """Give a likelihood, a sum of logarithms over an answer's tokens, as :meth:`likelihood` does."""
        largest = float(np.abs(self.logits(asked.followed_by(tuple(tokens)))[:-1]).max())
        return likelihood / len(tokens) / largest

    def beams(self, asked: Asked, num_beams: int, new_tokens: int) -> list[int]:
        """Search with beams for the likeliest answer of so many tokens, of which none is an end."""
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        for _ in range(new_tokens):
            grown = []
            for score, tokens in beams:
                row = torch.from_numpy(self.logits(asked.followed_by(tokens))[-1]).log_softmax(0)
                best = row.topk(num_beams)
                grown += [(score + float(p), (*tokens, int(t))) for p, t in zip(*best, strict=True)]
            beams = sorted(grown, reverse=True)[:num_beams]
        return list(beams[0][1])

    @torch.no_grad()
    def compute(self, reading: Reading) -> Tensor:
        """Compute logits ``[T, V]`` at the text of a reading."""
        decoder = self._model.decoder
        text = self._embed(reading.ids)
        image = reading.image
        if decoder.positions == "text":
            # There the image enters behind the positions, which are the text's alone.
            return self._compute_behind_positions(reading, text)
        rows = torch.cat([image, text])
        if decoder.positions != "slots":
            return self._call(rows, reading.sees, position_ids=reading.places[None])[reading.image_end :]
        slots = _slots_of(reading.places)
        return self._call(*_spread(rows, reading.sees, slots))[slots[reading.image_end :]]

    def _embed(self, ids: Tensor) -> Tensor:
        return cast(Any, self._model.language_model).get_input_embeddings()(ids)

    def _compute_behind_positions(self, reading: Reading, text: Tensor) -> Tensor:
        end = reading.image_end
        places = (reading.places - end).clamp(min=0)
        rows = torch.cat([text.new_zeros(end, text.shape[1]), text])
        with self._positions_replaced(reading.image):
            return self._call(rows, reading.sees, position_ids=places[None])[end:]

    @contextmanager
    def _positions_replaced(self, image: Tensor) -> Any:
        name = self._model.decoder.family.position_module
        modules = dict(self._model.language_model.named_modules())
        module = next(modules[path] for path in modules if path == name or path.endswith(f".{name}"))

        def replace(module: Any, args: Any, positions: Tensor) -> Tensor:
            rest = positions[0, len(image) :] if positions.ndim == 3 else positions[len(image) :]
            return torch.cat([image, rest])[None]

        handle = module.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def _call(self, rows: Tensor, sees: Tensor, **kwargs: Tensor) -> Tensor:
        # An additive mask of four axes is taken as it is.
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        model = cast(Any, self._model.language_model)
        inputs = {"inputs_embeds": rows[None], "attention_mask": mask[None, None], "use_cache": False, **kwargs}
        try:
            return model(**inputs).logits[0]
        except (ValueError, TypeError, RuntimeError) as error:
            kind = model.config.model_type
            raise ConfigError(
                f"a language model of type {kind!r} has no reference here: it takes no mask that is "
                f"written out ({error})"
            ) from error

    @torch.no_grad()
    def _image_of(self, asked: Asked) -> tuple[Tensor, Tensor]:
        key = id(asked.pixels)
        if key not in self._images:
            pixels = torch.from_numpy(asked.pixels)
            given = pixels[None] if self.max_images > 1 else pixels
            vectors = self._model.encode_images(given)[0][0]
            images = torch.arange(len(pixels)).repeat_interleave(len(vectors) // len(pixels))
            self._images[key] = asked, vectors, images  # the question too, so that nothing else has its number
        return self._images[key][1:]


def _slots_of(places: Tensor) -> Tensor:
    """Give slots with the gaps that places have, for decoders that count slots; places that go back stay together."""
    return F.pad(places.diff().clamp(min=1).cumsum(0), (1, 0))


def _spread(rows: Tensor, sees: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Put rows into slots; the slots between them are seen by themselves alone."""
    size = int(slots[-1]) + 1
    spread, wider = rows.new_zeros(size, rows.shape[1]), torch.eye(size, dtype=torch.bool)
    spread[slots] = rows
    wider[slots[:, None], slots[None, :]] = sees
    return spread, wider
