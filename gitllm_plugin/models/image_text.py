"""What LAVIS's runners and tasks call on a model that continues prompts about images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lavis.models.base_model import BaseModel
from torch import Tensor

from gitllm_plugin.common.weights import read_checkpoint, without_known
from gitllm_plugin.config import read
from gitllm_plugin.config.model import ImageTextSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.m3it.shards.features import other_encoder_error
from gitllm_plugin.modeling import (
    GitLLM,
    ImageEncoder,
    TextBatch,
    TextEncoder,
    load_trainable_state_dict,
    trainable_state_dict,
)
from gitllm_plugin.modeling.git import Git
from gitllm_plugin.modeling.pixels import are_features
from gitllm_plugin.modeling.ranking import CandidateScores
from gitllm_plugin.models.comparing import ComparesTexts
from gitllm_plugin.models.generation import TOP_P, lemmatized, refuse_unknown, search_arguments
from gitllm_plugin.models.prompts import with_context, with_filled_prompts
from gitllm_plugin.models.samples import (
    HOST_KEYS,
    as_numbers,
    candidates_of,
    normalized_pixels,
    prompts_of,
    with_one_answer_each,
    words_of,
)
from gitllm_plugin.models.text_rule import ReadsTexts


class ImageTextModel(ComparesTexts, ReadsTexts, BaseModel):
    """Batches of samples in, losses and answers out; a registered model adds how it is built.

    Args:
        model: the composition, which scores and continues token ids.
        text_encoder: prompts and answers to ids and labels.
        prompt: for samples that bring no prompt of their own (LAVIS's captioning data sets).
        rank_by: whether answers are ranked by the ``sum`` of their tokens' log-probabilities or by the ``mean``.
        class_names: what the classes of a classification data set are called; None: as the data set calls them.
    """

    Settings: ClassVar[type[ImageTextSettings]] = ImageTextSettings

    def __init__(
        self,
        model: GitLLM | Git,
        text_encoder: TextEncoder,
        prompt: str = "",
        rank_by: str = "sum",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if rank_by not in ("sum", "mean"):
            raise ConfigError(f"model.rank_by is {rank_by!r}, expected one of sum, mean")
        self.model = model
        self.text_encoder = text_encoder
        self.prompt = prompt
        self.rank_by = rank_by
        self.class_names = None if class_names is None else list(class_names)
        self.num_truncated_prompts = 0
        self._encoder_fingerprint: str | None = None
        self._classes_of_data: list[str] | None = None

    @classmethod
    def read_config(cls, cfg: Mapping[str, Any]) -> Any:
        """Read the ``model`` node of a configuration; gives an object of ``Settings``.

        Raises:
            ConfigError: naming everything in it that is wrong.
        """
        return read(cls.Settings, "model", cfg)

    @staticmethod
    def answer_settings(settings: ImageTextSettings) -> dict[str, Any]:
        """What of a ``model`` node says how the model is asked, as arguments of this class."""
        return {name: getattr(settings, name) for name in ("prompt", "rank_by", "class_names")}

    def load_finetuned(self, settings: ImageTextSettings) -> None:
        """Load the checkpoint that the ``model`` node names, where ``load_finetuned`` is true.

        Raises:
            ConfigError: see :meth:`load_checkpoint`.
        """
        if settings.load_finetuned and settings.finetuned:
            self.load_checkpoint(settings.finetuned)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def forward(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Loss of a batch.

        Args:
            samples: ``image`` (``[U, 3, H, W]``, ``[U, F, 3, H, W]`` or None), ``text_input`` (N prompts) and
                ``text_output`` (N answers), optionally ``image_index [N]`` and ``num_images [U]``. In the place of
                ``text_output``, LAVIS's data sets may give several weighted answers a question (``answer``,
                ``n_answers``, ``weight``), or the number of a class (``label``). With none of them, ``text_input``
                is what is learnt, behind the model's ``prompt``.

        Returns:
            ``loss``, the (weighted) mean over supervised tokens, ``num_supervised_tokens`` and ``supervised_weight``.
        """
        if "label" in samples and "text_output" not in samples:
            samples = with_filled_prompts(samples, self.prompt)
        samples = with_one_answer_each(samples, self.prompt, self._known_classes)
        answers = samples.get("text_output")
        prompts = samples.get("text_input", [])
        if answers is None:
            prompts, answers = [self.prompt] * len(prompts), words_of(prompts)
        text = self.encode_texts(samples, list(prompts), list(answers))
        weights = as_numbers(samples.get("weight"))
        output = self.model(**self._inputs(text, samples), labels=text.labels, weights=weights, logits="none")
        return {name: getattr(output, name) for name in ("loss", "num_supervised_tokens", "supervised_weight")}

    @torch.no_grad()
    def generate(
        self,
        samples: Mapping[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 1,
        max_length: int = 30,
        min_length: int = 0,
        top_p: float = TOP_P,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> list[str]:
        """Answers or captions, with the arguments of LAVIS's other models.

        Args:
            samples: ``image``, and a prompt a text as ``prompt`` or ``text_input``; else the model's own. ``{}`` in a
                prompt takes the text, or ``ocr_tokens``: :func:`~gitllm_plugin.models.prompts.with_filled_prompts`.
            use_nucleus_sampling: draw tokens from the ``top_p`` nucleus; with several beams, each beam's.
            num_beams: beams of the search.
            max_length: most new tokens; the prompt does not count.
            min_length: least new tokens in front of the one that ends an answer.
            top_p: mass of the nucleus.
            repetition_penalty: above 1 discourages repeated tokens.
            length_penalty: exponent on a beam's length.
            num_captions: answers per text; they stand one after another.
            temperature: divides the logits before sampling.
            top_k: draw from so many of the likeliest tokens; None: from all.

        Returns:
            N * ``num_captions`` texts.

        Raises:
            ConfigError: a value out of its bounds, or one that has no effect beside the others.
        """
        search = search_arguments(
            use_nucleus_sampling,
            num_beams,
            max_length,
            min_length,
            top_p,
            repetition_penalty,
            length_penalty,
            num_captions,
            temperature,
            top_k,
        )
        samples = with_filled_prompts(samples, self.prompt)
        # The last new token is not read.
        text = self.encode_prompts(samples, self._prompts(samples), max(max_length - 1, 0))
        token_ids = self.model.generate(
            **self._inputs(text, samples),
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
        answer_list: Sequence[str] | Sequence[Sequence[str]] | None = None,
        num_ans_candidates: int | None = None,
        length_penalty: float = 1.0,
        **kwargs: Any,
    ) -> list[str]:
        """Short answers to questions, as LAVIS's question-answering tasks ask for them.

        Args:
            samples: as in :meth:`generate`.
            num_beams: beams of the search.
            inference_method: ``generate``, or ``rank``: the most likely answer of ``answer_list``.
            max_len: most new tokens.
            min_len: least new tokens in front of the one that ends an answer.
            prompt: ``run.prompt`` of LAVIS: a template with ``{}`` for the question, or two, for OCR tokens and
                question or for question and choices; empty: the text as it is.
            answer_list: what may be answered, the same for all samples or one list each.
            num_ans_candidates: rank only so many answers, those whose first differing tokens are likeliest; 0: all.
            length_penalty: exponent on a beam's length, where answers are generated.
            **kwargs: arguments of LAVIS's other models, which may be None.

        Raises:
            ConfigError: another method, ranking without answers, or an argument that this model does not have.
        """
        refuse_unknown(kwargs, [name for name in signature(self.predict_answers).parameters if name != "kwargs"])
        if prompt:
            samples = with_filled_prompts(samples, self.prompt, prompt)
        if inference_method == "generate":
            answers = self.generate(
                samples, num_beams=num_beams, max_length=max_len, min_length=min_len, length_penalty=length_penalty
            )
            return lemmatized(answers) if samples.get("apply_lemmatizer") else answers
        if inference_method != "rank":
            raise ConfigError(f"run.inference_method is {inference_method!r}; it may be 'generate' or 'rank'")
        if not answer_list:
            raise ConfigError(
                "run.inference_method is 'rank', which needs answers to choose from, and the data set has none: name "
                "its answer_list.json behind the questions in build_info.annotations, or set it to 'generate'"
            )
        candidates = candidates_of(self._prompts(samples), answer_list)
        best = self.score_answers(samples, candidates, num_ans_candidates or None).best()
        return [answers[place] for answers, place in zip(candidates, best, strict=True)]

    @torch.no_grad()
    def predict_class(
        self, samples: Mapping[str, Any], candidates: Sequence[str] | Sequence[Sequence[str]], n_segments: int = 1
    ) -> Tensor | list[list[int]]:
        """Candidates from the most to the least likely, as LAVIS's instruction-tuned models give them.

        Args:
            samples: as in :meth:`generate`; ``prompt`` may hold ``{}`` for the sample's ``text_input``.
            candidates: class names, the same for all samples or one list each.
            n_segments: LAVIS's; memory is bounded without it.

        Returns:
            Places in the list, long ``[N, C]``; a list of lists where samples have different numbers of candidates.
        """
        lists = candidates_of(self._prompts(samples), candidates)
        samples = with_context(with_filled_prompts(samples, self.prompt), self.prompt)
        scores = self.score_answers(samples, lists).log_likelihood
        ranks = [values.argsort(descending=True, stable=True) for values in scores]
        return torch.stack(ranks) if len({len(rank) for rank in ranks}) == 1 else [rank.tolist() for rank in ranks]

    @torch.no_grad()
    def predict(self, samples: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scores of all classes, as LAVIS's classification task asks for them.

        Args:
            samples: as in :meth:`generate`, and ``label [N]``.

        Returns:
            ``predictions``, log-likelihoods ``[N, classes]``, and ``targets``, the labels.

        Raises:
            ConfigError: the classes have no names.
        """
        samples = with_filled_prompts(samples, self.prompt)
        lists = candidates_of(self._prompts(samples), self._known_classes())
        scores = self.score_answers(samples, lists).log_likelihood
        return {"predictions": torch.stack(scores), "targets": torch.as_tensor(samples["label"])}

    @torch.no_grad()
    def score_answers(
        self, samples: Mapping[str, Any], candidates: Sequence[Sequence[str]], shortlist: int | None = None
    ) -> CandidateScores:
        """How likely answers are; image and prompt are read once for all of them.

        Args:
            samples: N prompts about images, as in :meth:`generate`.
            candidates: N lists of answers.
            shortlist: score only so many of each list, those whose first differing tokens are likeliest; None: all.

        Raises:
            DataError: a list is empty.
        """
        prompts = self._prompts(samples)
        # A list that several prompts share is encoded once.
        words = {id(members): words_of(members) for members in candidates}
        token_ids = self.text_encoder.candidates(prompts, [words[id(members)] for members in candidates])
        longest = max((len(ids) for members in token_ids for ids in members), default=1)
        text = self.encode_prompts(samples, prompts, longest - 1)  # the last token of an answer is not read
        return self.model.score_candidates(
            **cast(Any, self._inputs(text, samples)),
            candidates=token_ids,
            mean=self.rank_by == "mean",
            shortlist=shortlist,
        )

    def before_evaluation(self, dataset: Any = None, **kwargs: Any) -> None:
        """Take the names of classes from LAVIS's data set, unless the configuration gives others."""
        self.name_classes(dataset)

    def name_classes(self, dataset: Any) -> None:
        """See :class:`~gitllm_plugin.protocols.ClassNamingModel`."""
        labels = getattr(dataset, "class_labels", None)
        names = sorted(labels, key=labels.__getitem__) if labels else getattr(dataset, "classnames", None)
        self._classes_of_data = list(names) if names else None

    def inference(self) -> AbstractContextManager[None]:
        """A context for many batches without training between them; a model may compute in a faster way there."""
        return nullcontext()

    def encoder_fingerprint(self) -> str:
        """What features of images that were computed before have to be made by.

        Computed at the first call, which reads all weights of the encoder: before they are shared out among processes.

        Raises:
            ConfigError: this model takes no features, or trains its image encoder.
        """
        if self._encoder_fingerprint is None:
            encoder = getattr(self.model, "image_encoder", None)
            if not isinstance(encoder, ImageEncoder):
                raise ConfigError("the data brings features of images, which this model does not take: give it pixels")
            encoder.check_frozen()
            self._encoder_fingerprint = encoder.fingerprint()
        return self._encoder_fingerprint

    def host_keys(self) -> tuple[str, ...]:
        """What of a batch is read on the host, see :class:`~gitllm_plugin.protocols.HostReadingModel`."""
        return HOST_KEYS

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
        weights = without_known(self, self.trainable_state_dict().keys(), read_checkpoint(path)["model"])
        self.load_trainable_state_dict(weights, str(path))

    def _prompts(self, samples: Mapping[str, Any]) -> list[str]:
        return prompts_of(samples, self.prompt)

    def _normalized(self, pixels: Tensor | None, samples: Mapping[str, Any]) -> Tensor | None:
        """Normalise what the loader left in uint8, and refuse features that another encoder made."""
        if pixels is not None and are_features(pixels):
            own = self.encoder_fingerprint()
            if samples.get("image_encoder") != own:
                raise other_encoder_error([str(samples.get("image_encoder"))], own)
        return normalized_pixels(pixels, samples)

    def _known_classes(self) -> list[str]:
        names = self.class_names or self._classes_of_data
        if names is None:
            raise ConfigError(
                "the classes have no names: give them as model.class_names, a list in the order of the labels, "
                "for example ['no', 'maybe', 'yes'] for snli_ve"
            )
        return names

    def _inputs(self, text: TextBatch, samples: Mapping[str, Any]) -> dict[str, Tensor | None]:
        inputs = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, **self._images(samples)}
        marks = self.image_marks(samples, text)
        return inputs if marks is None else {**inputs, "image_marks": marks}

    def _images(self, samples: Mapping[str, Any]) -> dict[str, Tensor | None]:
        """Give the part of a model's arguments that is about images."""
        pixels = self._pixels(samples)
        return {
            "pixel_values": self._normalized(None if pixels is None else pixels.to(self.device), samples),
            "image_index": None if pixels is None else as_numbers(samples.get("image_index")),
            "num_images": as_numbers(samples.get("num_images")),
        }
