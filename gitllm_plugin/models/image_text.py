"""What LAVIS's runners and tasks call on a model that continues prompts about images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lavis.models.base_model import BaseModel
from omegaconf import OmegaConf
from torch import Tensor

from gitllm_plugin.config_keys import check_keys
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling import GitLLM, TextBatch, TextEncoder, load_trainable_state_dict, trainable_state_dict
from gitllm_plugin.modeling.checkpoint import read_checkpoint
from gitllm_plugin.modeling.git import Git
from gitllm_plugin.modeling.pixels import normalize_pixels


class ImageTextModel(BaseModel):
    """Batches of samples in, losses and answers out; a registered model adds how it is built.

    Args:
        model: the composition, which scores and continues token ids.
        text_encoder: prompts and answers to ids and labels.
        prompt: for samples that bring no prompt of their own (LAVIS's captioning data sets).

    Attributes:
        num_truncated_prompts: how many prompts did not fit into the context and lost the end of their question.
    """

    CONFIG_KEYS: ClassVar[frozenset[str]] = frozenset({"load_finetuned", "finetuned"})

    def __init__(self, model: GitLLM | Git, text_encoder: TextEncoder, prompt: str = "") -> None:
        super().__init__()
        self.model = model
        self.text_encoder = text_encoder
        self.prompt = prompt
        self.num_truncated_prompts = 0

    @classmethod
    def read_config(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """The ``model`` node of a configuration as a plain dictionary.

        Raises:
            ConfigError: a key that this model does not read.
        """
        cfg = cast(dict, OmegaConf.to_container(cfg, resolve=True)) if OmegaConf.is_config(cfg) else dict(cfg)
        check_keys("model", cfg, cls.CONFIG_KEYS | {"arch", "model_type"})
        return cfg

    def load_finetuned(self, cfg: Mapping[str, Any]) -> None:
        """Load the checkpoint that the ``model`` node names, where ``load_finetuned`` is true.

        Raises:
            ConfigError: it names none, or see :meth:`load_checkpoint`.
        """
        if cfg.get("load_finetuned", False):
            if not cfg.get("finetuned"):
                raise ConfigError("model.load_finetuned is true, but model.finetuned names no checkpoint")
            self.load_checkpoint(cfg["finetuned"])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def forward(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Loss of a batch.

        Args:
            samples: ``image`` (``[U, 3, H, W]``, ``[U, F, 3, H, W]`` or None), ``text_input`` (N prompts) and
                ``text_output`` (N answers), optionally ``image_index [N]`` and ``num_images [U]``. Without
                ``text_output``, ``text_input`` is what is learnt, behind the model's ``prompt``.

        Returns:
            ``loss``, the mean over supervised tokens, and ``num_supervised_tokens``.
        """
        answers = samples.get("text_output")
        prompts = samples["text_input"]
        if answers is None and "answer" in samples:
            raise DataError(
                "the batch has questions with weighted answers (`answer`, `n_answers`), as LAVIS's VQA training sets "
                "give them, which this model does not train on; use the data set m3it"
            )
        if answers is None:
            prompts, answers = [self.prompt] * len(prompts), prompts
        text = self.text_encoder.prompts_and_answers(
            list(prompts),
            list(answers),
            questions=samples.get("question"),
            max_tokens=self.model.max_text_tokens(self._pixels(samples)),
        )
        self._count_truncated(text)
        output = self.model(
            **self._inputs(text, samples), labels=cast(Tensor, text.labels).to(self.device), logits="none"
        )
        return {"loss": output.loss, "num_supervised_tokens": output.num_supervised_tokens}

    @torch.no_grad()
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 1,
        max_length: int = 30,
        min_length: int = 1,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
    ) -> list[str]:
        """Answers or captions, with the arguments of LAVIS's other models.

        Args:
            samples: ``image``, and a prompt a text as ``prompt`` or ``text_input``; else the model's own.
            use_nucleus_sampling: sample from the ``top_p`` nucleus instead of searching.
            num_beams: beams of the search.
            max_length: most new tokens; the prompt does not count.
            min_length: least new tokens.
            top_p: mass of the nucleus.
            repetition_penalty: above 1 discourages repeated tokens.
            length_penalty: exponent on a beam's length.
            num_captions: answers per text; they stand one after another.
            temperature: divides the logits before sampling.

        Returns:
            N * ``num_captions`` texts.
        """
        room = self.model.max_text_tokens(self._pixels(samples))
        text = self.text_encoder.prompts(
            self._prompts(samples),
            questions=None if "prompt" in samples else samples.get("question"),
            max_tokens=None if room is None else room - max(max_length - 1, 0),  # the last new token is not read
        )
        self._count_truncated(text)
        beams = 1 if use_nucleus_sampling else num_beams
        search: dict[str, Any] = {"do_sample": False}
        if use_nucleus_sampling:
            search = {"do_sample": True, "top_p": top_p, "temperature": temperature}
        elif beams > 1:
            search["length_penalty"] = length_penalty
        token_ids = self.model.generate(
            **self._inputs(text, samples),
            max_new_tokens=max_length,
            min_new_tokens=min_length,
            num_beams=beams,
            num_return_sequences=num_captions,
            repetition_penalty=repetition_penalty,
            **search,
            **cast(Any, self.text_encoder.special_tokens),
        )
        return self.text_encoder.decode(token_ids)

    @torch.no_grad()
    def predict_answers(
        self,
        samples: Mapping[str, Any],
        num_beams: int = 1,
        inference_method: str = "generate",
        max_len: int = 30,
        min_len: int = 1,
        prompt: str = "",
        **kwargs: Any,
    ) -> list[str]:
        """Short answers to questions, as LAVIS's question-answering tasks ask for them.

        Args:
            samples: as in :meth:`generate`.
            num_beams: beams of the search.
            inference_method: ``generate``.
            max_len: most new tokens.
            min_len: least new tokens.
            prompt: ``run.prompt`` of LAVIS: a template with ``{}`` for the question; empty: the text as it is.
            **kwargs: LAVIS's further arguments (``answer_list``, ...), which generation does not use.

        Raises:
            ConfigError: another method than ``generate``.
        """
        if inference_method != "generate":
            raise ConfigError(f"run.inference_method is {inference_method!r}; this model has 'generate' alone")
        if prompt:
            samples = {**samples, "prompt": [prompt.format(text) for text in self._prompts(samples)]}
        return self.generate(samples, num_beams=num_beams, max_length=max_len, min_length=min_len)

    def inference(self) -> AbstractContextManager[None]:
        """A context for many batches without training between them; a model may compute in a faster way there."""
        return nullcontext()

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the trained parameters, by name."""
        return {f"model.{name}": value for name, value in trainable_state_dict(self.model).items()}

    def load_trainable_state_dict(self, state_dict: Mapping[str, Tensor], source: str = "the state dict") -> None:
        """Load what :meth:`trainable_state_dict` gave; ``source`` names it in errors.

        Raises:
            ConfigError: keys or shapes are not those of this model.
        """
        weights = {name.removeprefix("model."): value for name, value in state_dict.items()}
        load_trainable_state_dict(self.model, weights, source)

    def load_checkpoint(self, url_or_filename: str) -> None:
        """Load the trained weights of a run's ``checkpoint_*.pth``; all of them, or an error.

        Raises:
            ConfigError: no such file, no checkpoint, or one of another model.
        """
        path = Path(url_or_filename).expanduser()
        self.load_trainable_state_dict(read_checkpoint(path)["model"], str(path))

    def _pixels(self, samples: Mapping[str, Any]) -> Tensor | None:
        """Pixel values as the model takes them."""
        return samples.get("image")

    def _normalized(self, pixels: Tensor | None, samples: Mapping[str, Any]) -> Tensor | None:
        """Normalises what the loader left in uint8.

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
        return normalize_pixels(pixels, samples["image_mean"].to(self.device), samples["image_std"].to(self.device))

    def _count_truncated(self, text: TextBatch) -> None:
        """Count prompts that were shortened; say so at the first, the tenth, the hundredth, ..."""
        before = self.num_truncated_prompts
        self.num_truncated_prompts += text.num_truncated
        if len(str(self.num_truncated_prompts)) > len(str(before)) or (not before and text.num_truncated):
            logging.warning(
                "%d prompts so far were longer than the context: the end of their question was cut off",
                self.num_truncated_prompts,
            )

    def _prompts(self, samples: Mapping[str, Any]) -> list[str]:
        prompts = samples.get("prompt", samples.get("text_input"))
        if prompts is None or isinstance(prompts, str):
            count = len(samples["image_index"] if "image_index" in samples else samples["image"])
            return [self.prompt if prompts is None else prompts] * count
        return list(prompts)

    def _inputs(self, text: TextBatch, samples: Mapping[str, Any]) -> dict[str, Tensor | None]:
        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(self.device)

        return {
            "input_ids": move(text.input_ids),
            "attention_mask": move(text.attention_mask),
            "pixel_values": self._normalized(move(self._pixels(samples)), samples),
            "image_index": move(samples.get("image_index")) if samples.get("image") is not None else None,
            "num_images": move(samples.get("num_images")),
        }
