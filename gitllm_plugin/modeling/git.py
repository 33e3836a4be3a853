"""Plain GIT: transformers' own implementation behind the interface of GIT-LLM.

transformers computes. What is here loads checkpoints whole, encodes an image once however many texts and beams
read it, and lets texts of different lengths and videos of fewer frames share a batch. The article:
https://arxiv.org/abs/2205.14100.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import GitConfig, GitForCausalLM, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.contiguous import give_contiguous_input
from gitllm_plugin.modeling.hidden_states import Depth, at_depth
from gitllm_plugin.modeling.last_layer import taken
from gitllm_plugin.modeling.loss import GitLLMOutput, mean_loss, targets_of
from gitllm_plugin.modeling.pretrained import load_config, load_model, load_tokenizer
from gitllm_plugin.modeling.ranking import TOKENS_AT_ONCE, Candidates, CandidateScores, Tally, check_candidates
from gitllm_plugin.modeling.shortlist import Continuations, choose
from gitllm_plugin.modeling.transfer import to_device, to_host
from gitllm_plugin.modeling.vocabulary import fit_tokenizer

#: transformers corrected the spelling of a parameter, but not in the checkpoints: without this, the temporal
#: embeddings of the video checkpoints are whatever the memory held before.
_RENAMED = {"img_temperal_embedding": "img_temporal_embedding"}


def load_git(weights: str) -> tuple[Git, PreTrainedTokenizerBase]:
    """Load a GIT checkpoint, in float32 because all of it is trained.

    Args:
        weights: hub name (``microsoft/git-base-coco``), or a folder with model and tokenizer in it.

    Returns:
        The model, in evaluation mode on the CPU, and its tokenizer, which has [CLS] for BOS and [SEP] for EOS.

    Raises:
        ConfigError: the name cannot be loaded, is another kind of model, or lacks some of the weights.
    """
    config = load_config(weights, "GIT")
    if config.model_type != GitConfig.model_type:
        raise ConfigError(
            f"model.weights is {weights!r}, a model of type {config.model_type!r}, but arch 'git' takes GIT alone: "
            "microsoft/git-base, a fine-tuning of it, or a folder written by GitForCausalLM.save_pretrained"
        )
    tokenizer = _load_tokenizer(weights)
    causal_lm = load_model(weights, "GIT", GitForCausalLM, dtype=torch.float32, key_mapping=_RENAMED)
    fit_tokenizer(tokenizer, causal_lm, weights)
    return Git(causal_lm).eval(), tokenizer


def _load_tokenizer(weights: str) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(weights, "GIT")
    if tokenizer.cls_token is None or tokenizer.sep_token is None:
        raise ConfigError(
            f"the tokenizer of {weights!r} has no [CLS] or no [SEP], with which GIT begins and ends texts; "
            "save the tokenizer that the model was trained with (BERT's) in the same folder"
        )
    # GIT's texts are [CLS] prompt answer [SEP]: under these names, TextEncoder makes just that.
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    return tokenizer


class Git(nn.Module):
    """GIT with the methods of :class:`~gitllm_plugin.modeling.model.GitLLM`; results are transformers' own.

    Args:
        causal_lm: the model.
    """

    def __init__(self, causal_lm: GitForCausalLM) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        # The head reads text behind images, a slice of the states.
        give_contiguous_input(causal_lm.output)

    @property
    def max_images(self) -> int:
        """Most frames of one text; 1 where the checkpoint has no temporal embeddings."""
        return self.causal_lm.config.num_image_with_embedding or 1

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return cast(Any, self.causal_lm.config.vision_config).image_size

    @property
    def _device(self) -> torch.device:
        return self.causal_lm.output.weight.device

    @property
    def context_length(self) -> int:
        """Most text tokens; image tokens have no positions."""
        return self.causal_lm.config.max_position_embeddings

    def tokens_of_image(self, pixel_values: Tensor) -> int:
        """Count the tokens of each image or frame: a patch each, and [CLS]."""
        return (self.image_size // cast(Any, self.causal_lm.config.vision_config).patch_size) ** 2 + 1

    def max_text_tokens(self, pixel_values: Tensor | None) -> int:
        """Give the most tokens of a text; images take none of them."""
        return self.context_length

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        weights: Tensor | None = None,
        logits: Literal["all", "none"] = "all",
    ) -> GitLLMOutput:
        """Score texts about images.

        Args:
            input_ids: long ``[N, T]``, padded on the right.
            attention_mask: ``[N, T]``, 1 on real tokens; None: all are.
            pixel_values: float ``[U, 3, H, W]``, or ``[U, F, 3, H, W]`` for F frames of a video.
            labels: long ``[N, T]``, token ids, ``-100`` where a token is not trained on; best on the host.
            image_index: long ``[N]``, the image that each text reads; None: text n reads image n (U = N).
            num_images: long ``[U]``, how many frames are real: all of them, see :meth:`generate`.
            weights: float ``[N]``, how much each text's tokens count in the loss; None: all the same.
            logits: "none" computes logits at supervised positions only, for the loss.

        Returns:
            The loss is the (weighted) mean over supervised tokens; ``logits`` are ``[N, T, V]``.

        Raises:
            DataError, ConfigError: see :meth:`generate`.
        """
        self._check_context(input_ids.shape[1])
        targets = None if labels is None else targets_of(labels, weights)
        input_ids, attention_mask, targets = to_device((input_ids, attention_mask, targets), self._device)
        with self._images_by_number(pixel_values, num_images, image_index) as numbers:
            hidden = self.causal_lm.git(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=numbers, use_cache=False
            ).last_hidden_state
        # [N, T, D]: image tokens stand in front, and their logits nobody reads.
        hidden = hidden[:, -input_ids.shape[1] :]
        head = self.causal_lm.output
        text_logits = head(hidden) if logits == "all" else None
        if targets is None:
            return GitLLMOutput(logits=text_logits)
        scored = head(taken(hidden, targets.slots))
        loss = mean_loss(scored, targets.tokens, targets.weights, targets.divisor)
        return GitLLMOutput(loss, text_logits, len(targets.tokens), targets.weight)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        **generation_kwargs: Any,
    ) -> Tensor:
        """Continue prompts about images, through transformers' ``generate``.

        Args:
            input_ids: long ``[N, T]``, padded on the right: [CLS] and the prompt, without [SEP].
            attention_mask, pixel_values, image_index: as in :meth:`forward`.
            num_images: long ``[U]`` or None: how many of the F frames are real. GIT has no mask for images, so
                all must be.
            **generation_kwargs: arguments of transformers' ``generate`` by name (``max_new_tokens``, ...).

        Returns:
            New token ids ``[N, L]``; the prompt is not repeated.

        Raises:
            DataError: no image, too many frames or a different number of them in a batch, or a text longer than
                the model's positions.
            ConfigError: images of another size than the model's.
        """
        length = input_ids.shape[1]
        # The last new token is not read.
        self._check_context(length + max((generation_kwargs.get("max_new_tokens") or 1) - 1, 0))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        input_ids, attention_mask = to_device(pad_left(input_ids, attention_mask), self._device)
        with self._images_by_number(pixel_values, num_images, image_index) as numbers:
            token_ids = cast(Any, self.causal_lm).generate(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=numbers, **generation_kwargs
            )
        return token_ids[:, length:]

    @torch.no_grad()
    def score_candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        candidates: Sequence[Candidates],
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        mean: bool = False,
        shortlist: int | None = None,
        tokens_at_once: int = TOKENS_AT_ONCE,
    ) -> CandidateScores:
        """Compute log-likelihoods of candidates; see :func:`gitllm_plugin.modeling.ranking.score_candidates`.

        Images are encoded once. Each candidate is read behind its own copy of image and prompt, because
        transformers' GIT has no way to continue one cache in several directions.
        """
        check_candidates(candidates, len(input_ids))
        longest = max(len(ids) for members in candidates for ids in members)
        self._check_context(input_ids.shape[1] + longest - 1)
        input_ids, attention_mask = to_host(input_ids, attention_mask)
        lengths = [input_ids.shape[1]] * len(input_ids) if attention_mask is None else attention_mask.sum(1).tolist()
        prompts = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
        with self._images_by_number(pixel_values, num_images, image_index) as numbers:
            hidden = self._read(prompts, numbers)
            last = hidden[torch.arange(len(prompts)), [length - 1 for length in lengths]]
            first = self.causal_lm.output(last).float().log_softmax(-1)
            size = max(1, tokens_at_once // (max(lengths) + longest))

            def read(tally: Tally | Continuations) -> None:
                pairs = [
                    (n, c) for n, chosen in enumerate(tally.chosen) for c in chosen if len(tally.candidates[n][c]) > 1
                ]
                for start in range(0, len(pairs), size):
                    self._score(tally, prompts, numbers, pairs[start : start + size])

            tally = Tally(candidates, first, choose(candidates, first, shortlist, read))
            read(tally)
        return tally.scores(mean)

    def encode_images(self, pixel_values: Tensor, num_images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn images into the vectors that the text reads, float ``[U, F*P, D]``; all of them are real.

        Args:
            pixel_values, num_images: as in :meth:`generate`.
        """
        pixel_values = self._check_images(pixel_values, num_images)
        git = cast(Any, self.causal_lm.git)
        features = git.image_encoder(pixel_values.flatten(0, -4)).last_hidden_state
        features = features.unflatten(0, (len(pixel_values), -1))  # [U, F, P, vision_dim]
        if pixel_values.ndim == 5:
            features = features + torch.cat(list(git.img_temporal_embedding))[: features.shape[1]]  # [F, 1, vision_dim]
        embeds = git.visual_projection(features.flatten(1, 2))
        return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)

    @torch.no_grad()
    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        num_images: Tensor | None = None,
        depth: Depth = "last",
    ) -> tuple[Tensor, Tensor]:
        """Compute hidden states of images ``[N, P, D]`` and texts ``[N, T, D]``, see ``hidden_states.py``.

        Args:
            input_ids, attention_mask, pixel_values, image_index, num_images: as in :meth:`forward`.
            depth: which layer's.
        """
        input_ids, attention_mask = to_device((input_ids, attention_mask), self._device)
        images = self._images_by_number(pixel_values, num_images, image_index)
        with nullcontext() if pixel_values is None else images as numbers:
            output = self.causal_lm.git(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=numbers,
                use_cache=False,
                output_hidden_states=True,
            )
        states = at_depth(output.hidden_states, depth)
        image = states.shape[1] - input_ids.shape[1]
        return states[:, :image], states[:, image:]

    def _read(self, texts: Sequence[Sequence[int]], numbers: Tensor) -> Tensor:
        """Compute hidden states ``[N, T, D]`` of texts about the images ``numbers``."""
        width = max(map(len, texts))
        # Padding is on the right, where causality hides it; its value does not matter.
        rows = [[*ids, *[0] * (width - len(ids))] for ids in texts]
        mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]
        inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
        inputs = to_device(inputs, numbers.device)
        return self.causal_lm.git(**inputs, pixel_values=numbers, use_cache=False).last_hidden_state[:, -width:]

    def _score(
        self,
        tally: Tally | Continuations,
        prompts: Sequence[Sequence[int]],
        numbers: Tensor,
        pairs: Sequence[tuple[int, int]],
    ) -> None:
        """Count the tokens of some candidates, given as prompt and place in its list."""
        found = [tally.candidates[n][c] for n, c in pairs]
        texts = [[*prompts[n], *ids[:-1]] for (n, _), ids in zip(pairs, found, strict=True)]
        hidden = self._read(texts, numbers[[n for n, _ in pairs]])
        rows = [row for row, ids in enumerate(found) for _ in ids[1:]]
        columns = [
            len(prompts[n]) + place for (n, _), ids in zip(pairs, found, strict=True) for place in range(len(ids) - 1)
        ]
        owners = [tally.number(*pair) for pair, ids in zip(pairs, found, strict=True) for _ in ids[1:]]
        targets = [token for ids in found for token in ids[1:]]
        device = hidden.device
        logits = self.causal_lm.output(hidden[rows, columns])
        tally.add(torch.tensor(owners, device=device), logits, torch.tensor(targets, device=device))

    @contextmanager
    def _images_by_number(
        self, pixel_values: Tensor | None, num_images: Tensor | None, image_index: Tensor | None
    ) -> Iterator[Tensor]:
        """Encode images once, and let GIT look them up by number instead of encoding them.

        ``generate`` repeats ``pixel_values`` for each beam, and GIT encodes all copies; here the copies are of
        numbers.

        Yields:
            What GIT is to be given for ``pixel_values``: long ``[N, 1, 1, 1]``, or ``[N, F, 1, 1, 1]``.
        """
        pixel_values = self._check_images(pixel_values, num_images)
        git = self.causal_lm.git
        encoder, attention = cast(Any, git.image_encoder), cast(Any, git.encoder.layer[0]).attention.self
        features = encoder(pixel_values.flatten(0, -4)).last_hidden_state  # [U*F, P, vision_dim]
        numbers = torch.arange(len(features), device=features.device).view(*pixel_values.shape[:-3], 1, 1, 1)
        encoder.forward = lambda numbers, **unused: BaseModelOutput(last_hidden_state=features[numbers.flatten()])
        # GIT takes every cached video for one of all frames it could have, and so shifts the padding of prompts.
        stored, attention.image_patch_tokens = attention.image_patch_tokens, numbers[0].numel() * features.shape[1]
        try:
            yield numbers if image_index is None else numbers[to_device(image_index, features.device)]
        finally:
            del encoder.forward
            attention.image_patch_tokens = stored

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of another size than the checkpoint's.

        Raises:
            ConfigError: naming both sizes.
        """
        if (height, width) != (self.image_size, self.image_size):
            raise ConfigError(
                f"images of {height}x{width} pixels, but this GIT takes {self.image_size}x{self.image_size}: "
                f"set image_size: {self.image_size} in vis_processor"
            )

    def _check_images(self, pixel_values: Tensor | None, num_images: Tensor | None) -> Tensor:
        """Check the images; gives ``[U, 3, H, W]``, or ``[U, F, 3, H, W]`` where the checkpoint has frames."""
        if pixel_values is None:
            raise DataError(
                "the batch has no image, and GIT reads one with every text; the model git_llm also takes texts alone"
            )
        self.check_size(*pixel_values.shape[-2:])
        frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        if frames > self.max_images:
            raise DataError(
                f"{frames} images (or frames) for one text, but this GIT reads {self.max_images} at most: give fewer"
                + (", or use a video type such as base_vatex" if self.max_images == 1 else "")
            )
        (num_images,) = to_host(num_images)
        if num_images is not None and bool((num_images != frames).any()):
            raise DataError(
                f"the batch has texts with {sorted(set(num_images.tolist()))} images (or frames); GIT reads the same "
                "number for all texts of a batch: take as many frames of each video, or set the batch size to 1"
            )
        return pixel_values[:, 0] if pixel_values.ndim == 5 and self.max_images == 1 else pixel_values

    def _check_context(self, tokens: int) -> None:
        if tokens > self.context_length:
            raise DataError(
                f"text and answer take {tokens} positions, but GIT's context is {self.context_length}: "
                "shorten the prompt or ask for a shorter answer"
            )


def pad_left(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of prompts to the left, where ``generate`` continues them.

    The padding is each row's own first token: the mask hides it from the model, but a penalty on repetition,
    which sees ids without mask, must find nothing that the prompt alone does not have.

    Args:
        input_ids: long ``[N, T]``, padded on the right.
        attention_mask: ``[N, T]``, 1 on real tokens.

    Returns:
        Both with their padding on the left.
    """
    # Padding first, then tokens in their order.
    order = attention_mask.argsort(dim=1, stable=True)
    mask = attention_mask.gather(1, order)
    return torch.where(mask.bool(), input_ids.gather(1, order), input_ids[:, :1]), mask
