"""Pictures and questions to a model's inputs, as a processor of transformers; as in training and in ``Pipeline``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from gitllm_plugin.common.hub import local_folder
from gitllm_plugin.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gitllm_plugin.modeling.tokens import TextEncoder

_OF_LOADING = frozenset(
    ("_from_auto", "_from_pipeline", "trust_remote_code", "use_fast", "config", "dtype", "torch_dtype", "device_map")
)
"""Arguments of transformers' own calls, and of the model that is opened beside this."""
_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_OF_CHAT = frozenset(("add_generation_prompt", "padding"))


@dataclass
class Recipe:
    """How questions become inputs, as the folder says it; written again byte for byte.

    Attributes:
        config: content of ``config.json``.
        settings: that ``git_llm.json`` keeps, the run's own: ``text_processor`` and more.
        image_processor: content of ``preprocessor_config.json``.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    image_processor: dict[str, Any]


class GitLLMProcessor(ProcessorMixin):
    """Image processor and tokenizer of an exported folder, with its prompt template.

    Args:
        image_processor, tokenizer: as transformers reads them.
        transform: what the image processor does, which :func:`read_encoder` compared with it.
        recipe: the rest.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, transform: Any, recipe: Recipe) -> None:
        super().__init__(image_processor, tokenizer)
        prompts = recipe.settings.get("text_processor") or {}
        self._transform, self._recipe = transform, recipe
        self._template, self._instruction = prompts.get("template", "article"), prompts.get("instruction")
        self._text_encoder = _text_encoder(tokenizer, recipe)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Name the parts that transformers knows."""
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> GitLLMProcessor:
        """Read what stands around the model in a folder of ``gitllm export``, or what :meth:`save_pretrained` wrote.

        Raises:
            ConfigError: no such folder, or without tokenizer or image processor; or an argument is not known here.
        """
        from gitllm_plugin.modeling.description import IMAGE_ENCODER
        from gitllm_plugin.processors.transform_config import transform_of_folder

        hub = {name: value for name in _HUB if (value := kwargs.pop(name, None)) is not None}
        unknown = sorted(name for name in kwargs.keys() - _OF_LOADING if kwargs[name] is not None)
        if unknown:
            raise ConfigError(f"the processor of a GIT-LLM does not know {', '.join(unknown)}; it takes {_HUB}")
        folder = local_folder(pretrained_model_name_or_path, **hub)
        tokenizer, recipe = _read(folder)
        encoder = str(folder / IMAGE_ENCODER)
        from transformers import AutoImageProcessor

        transform = transform_of_folder(Path(encoder), recipe.settings)
        return cls(AutoImageProcessor.from_pretrained(encoder), tokenizer, transform, recipe)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write tokenizer, image processor and settings into a folder, which may hold the model or be given it later.

        Raises:
            ConfigError: an argument that is not known here.
        """
        from gitllm_plugin.hf.saving import PROCESSOR_CONFIG
        from gitllm_plugin.modeling.description import DESCRIPTION, TRANSFORMERS_CONFIG
        from gitllm_plugin.modeling.folder import save_processors

        if unknown := sorted(name for name in kwargs.keys() - {"max_shard_size"} if kwargs[name]):
            raise ConfigError(f"save_pretrained of this processor does not know {', '.join(unknown)}")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_processors(folder, self.tokenizer, self._recipe.image_processor, self._recipe.settings)
        if not (folder / DESCRIPTION).is_file():
            said = {"processor_class": type(self).__name__, "settings": self._recipe.settings}
            for name, content in ((TRANSFORMERS_CONFIG, self._recipe.config), (PROCESSOR_CONFIG, said)):
                (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        answers: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
    ) -> BatchFeature:
        """Make a model's inputs.

        Args:
            images: of one text its picture, or a list of them in their order; of several texts a list of such.
            text: whole prompts, as :meth:`apply_chat_template` gives them: no template is filled here. Of a
                conversation, the very objects that it gave, which know what was said before.
            answers: of the texts, for a loss: behind each prompt, and marked by ``labels``.
            return_tensors: ``pt``, there is no other.
            padding: of texts of several lengths: in front of prompts, and behind answers.

        Returns:
            ``input_ids``, ``attention_mask``, ``pixel_values``, with answers ``labels``, ``num_images`` where texts
            have different numbers of pictures, or pictures are in tiles (:mod:`gitllm_plugin.modeling.places`), and
            ``image_marks`` where texts say where their pictures stand (:mod:`gitllm_plugin.modeling.marks`).

        Raises:
            DataError: no picture, too many, one that cannot be read, or not as many as texts.
        """
        if return_tensors != "pt" or padding not in (True, False, "longest", None):
            raise ConfigError(
                f"return_tensors is {return_tensors!r} and padding {padding!r}; they may be 'pt', and True or 'longest'"
            )
        if isinstance(text, str):
            texts, pictures = [text], [images]
            answers = [answers] if isinstance(answers, str) else answers
        else:
            texts, pictures = list(text or []), images
        if not texts or not isinstance(pictures, (list, tuple)) or len(pictures) != len(texts):
            count = len(pictures) if isinstance(pictures, (list, tuple)) else "no list of"
            raise DataError(f"{len(texts)} texts and {count} pictures; give a list with the pictures of each text")
        from gitllm_plugin.m3it.pictures import as_pictures
        from gitllm_plugin.modeling.marks import place_pictures

        if answers is None:
            batch = self._text_encoder.prompts(texts)
            inputs = _padded_in_front(batch)
        else:
            batch = self._text_encoder.prompts_and_answers(texts, list(answers))
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        groups = [list(as_pictures([] if of_text is None else of_text)) for of_text in pictures]
        marks = place_pictures(batch.marks, list(map(len, groups))) if batch.marks else None
        return BatchFeature({**inputs, **self._pixels(groups), **({} if marks is None else {"image_marks": marks})})

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str = "pt",
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Fill the prompt template of training with what a conversation asks, see :mod:`gitllm_plugin.hf.messages`.

        Args:
            conversation: messages of one question and what was said before it, or several such lists.
            tokenize: whether inputs are made, with the pictures; else prompts are given.
            return_dict: with ``tokenize``: all inputs, and not ``input_ids`` alone.
            return_tensors, processor_kwargs: as for :meth:`__call__`.
            continue_final_message: cannot be: an answer is begun by the model.
            **kwargs: ``add_generation_prompt``, which is so always; others are refused.

        Raises:
            DataError: the conversation asks for what the model has not. ConfigError: an argument is not known here.
        """
        from gitllm_plugin.hf.messages import is_batch, read_question
        from gitllm_plugin.m3it.prompts import build_prompt, prompt_behind

        unknown = sorted(name for name in kwargs.keys() - _OF_CHAT if kwargs[name] is not None)
        if unknown or continue_final_message:
            named = ", ".join([*unknown, *(["continue_final_message"] if continue_final_message else [])])
            raise ConfigError(f"apply_chat_template of a GIT-LLM does not know {named}: its prompt is that of training")
        batch = is_batch(conversation)
        questions = [read_question(each, self.places_pictures) for each in (conversation if batch else [conversation])]

        def make(question: str, instruction: str | None) -> str:
            return build_prompt(self._template, self._instruction if instruction is None else instruction, question)

        # Prompts know what was said before: so they go on to __call__, which encodes it in front of them.
        prompts = [prompt_behind(each.turns, each.text, each.instruction, make) for each in questions]
        if not tokenize:
            return prompts if batch else prompts[0]
        pictures = [list(question.pictures) for question in questions]
        inputs = self(pictures, prompts, return_tensors=return_tensors, **(processor_kwargs or {}))
        return inputs if return_dict else inputs["input_ids"]

    def post_process_image_text_to_text(self, generated_outputs: Tensor, **kwargs: Any) -> list[str]:
        """Turn ids into texts; spaces are left as they are."""
        return self.batch_decode(generated_outputs, **{"skip_special_tokens": True, **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """Say what this is made of, in plain values."""
        return {"processor_class": type(self).__name__, **asdict(self._recipe)}

    @property
    def places_pictures(self) -> bool:
        """Whether pictures stand in the texts where messages have them."""
        return self._text_encoder.image_places == "text"

    @property
    def model_input_names(self) -> list[str]:
        """Name what :meth:`__call__` makes."""
        return ["input_ids", "attention_mask", "pixel_values", "num_images", "image_marks"]

    def _pixels(self, groups: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        from gitllm_plugin.modeling.places import stack_images

        most = self._recipe.config.get("max_images", 1)
        if wrong := [len(group) for group in groups if not 1 <= len(group) <= most]:
            raise DataError(f"{wrong[0]} pictures of a text; this model takes 1 to {most}")
        pixels, num_images = stack_images(*zip(*map(self._transform.images, groups), strict=True))
        assert pixels is not None, "each text has a picture"
        if most == 1 and num_images is None:
            pixels = pixels[:, 0]
        return {"pixel_values": pixels, **({} if num_images is None else {"num_images": num_images})}


def _read(folder: Path) -> tuple[Any, Recipe]:
    """Read tokenizer and recipe of a folder with a model, or of a processor alone.

    Raises:
        ConfigError: something is missing or damaged.
    """
    from gitllm_plugin.common.file_faults import read_json
    from gitllm_plugin.hf.saving import PROCESSOR_CONFIG
    from gitllm_plugin.modeling.description import (
        DESCRIPTION,
        IMAGE_ENCODER,
        LANGUAGE_MODEL,
        TRANSFORMERS_CONFIG,
        read_description,
    )
    from gitllm_plugin.modeling.folder import PREPROCESSOR, check_folder, read_tokenizer
    from gitllm_plugin.modeling.pretrained import load_tokenizer

    if not (folder / DESCRIPTION).is_file() and (folder / PROCESSOR_CONFIG).is_file():
        settings = read_json(folder / PROCESSOR_CONFIG).get("settings") or {}
        tokenizer = load_tokenizer(str(folder / LANGUAGE_MODEL), "language model")
    else:
        check_folder(folder, weights=False)
        settings, tokenizer = read_description(folder)["settings"], read_tokenizer(folder)
    if not (folder / TRANSFORMERS_CONFIG).is_file():
        raise ConfigError(
            f"{folder} has no {TRANSFORMERS_CONFIG}: an earlier version wrote it. Export the run again, or open the "
            "folder with gitllm_plugin.Pipeline"
        )
    pictures = folder / IMAGE_ENCODER / PREPROCESSOR
    if tokenizer is None or not pictures.is_file():
        lacks = "tokenizer" if tokenizer is None else f"{IMAGE_ENCODER}/{PREPROCESSOR}"
        raise ConfigError(f"{folder} has no {lacks}; `gitllm export` writes both")
    return tokenizer, Recipe(read_json(folder / TRANSFORMERS_CONFIG), settings, read_json(pictures))


def _text_encoder(tokenizer: Any, recipe: Recipe) -> TextEncoder:
    """Make what `Pipeline` has, with the tokenizer fitted to the language model, whose weights need not be read."""
    from transformers import AutoConfig

    from gitllm_plugin.modeling.build import make_text_encoder, resolve_family
    from gitllm_plugin.modeling.vocabulary import fit_tokenizer

    config = AutoConfig.for_model(**recipe.config["text_config"])
    embeddings = torch.nn.Embedding(config.get_text_config().vocab_size, 1, device="meta")
    ends = SimpleNamespace(eos_token_id=recipe.config.get("end_tokens"))
    model: Any = SimpleNamespace(config=config, generation_config=ends, get_input_embeddings=lambda: embeddings)
    fit_tokenizer(tokenizer, model, "the processor")
    return make_text_encoder(
        model,
        tokenizer,
        conversation=resolve_family(config, self_test=False) if recipe.settings.get("chat_template") else None,
        loss_on=recipe.settings.get("loss_on", "answer"),
        image_places=recipe.settings.get("image_places", "front"),
    )


def _padded_in_front(batch: Any) -> dict[str, Tensor]:
    """Move padding in front of texts, where transformers has it for what is continued."""
    order = batch.attention_mask.argsort(dim=1, stable=True)
    return {name: getattr(batch, name).gather(1, order) for name in ("input_ids", "attention_mask")}
