"""GIT-LLM: image encoder, one projection, and a causal language model that reads the image as a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, PreTrainedModel

from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.attention import STREAM, prefix_attention, use_streams
from gitllm_plugin.modeling.contiguous import give_contiguous_input
from gitllm_plugin.modeling.families import FAMILIES, Family
from gitllm_plugin.modeling.last_layer import at_slots, feed_forward
from gitllm_plugin.modeling.layout import Layout, lay_out, lay_out_stream
from gitllm_plugin.modeling.pixels import are_features
from gitllm_plugin.modeling.projection import Projection
from gitllm_plugin.modeling.ranking import CandidateScores, score_candidates
from gitllm_plugin.modeling.tokens import IGNORED
from gitllm_plugin.modeling.vision import ImageEncoder


@dataclass
class GitLLMOutput:
    """What :meth:`GitLLM.forward` gives.

    Attributes:
        loss: mean cross-entropy over supervised tokens, float32 scalar; None without labels.
        logits: ``[N, T, V]`` at the text positions, zeros on padding; None with ``logits="none"``.
        num_supervised_tokens: how many tokens the loss is the mean of.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    num_supervised_tokens: int = 0


class GitLLM(nn.Module):
    """Image encoder + projection + causal LLM under GIT's attention rule.

    The language model is used as transformers made it: the rule reaches it through transformers' own mask
    interface (:mod:`~gitllm_plugin.modeling.attention`) and positions through its own arguments.

    Args:
        image_encoder: gives ``[n, P, vision_dim]``.
        language_model: a causal LM of transformers.
        max_images: most images (or video frames) of one text. Above 1, each place has a learned temporal
            embedding, zero at the start, added before the projection (GIT, section 3.1); an image that comes
            without a place (``[U, 3, H, W]``) gets none.
        family: facts about the language model; None: those of
            :data:`~gitllm_plugin.modeling.families.FAMILIES`.

    Attributes:
        sources: the names that ``language_model`` and ``image_encoder`` were loaded by, as far as they are known.

    Raises:
        ConfigError: the language model's family is not in the table and none is given.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        language_model: PreTrainedModel,
        max_images: int = 1,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        self.family = family or _family_in_table(language_model.config.model_type)
        self.positions = self.family.positions_of(language_model.config)
        self.sources: dict[str, str] = {}
        self.image_encoder = image_encoder
        self.language_model = language_model
        if self.shares_rows:
            use_streams(language_model)
        # transformers hands the head the last positions, a slice.
        give_contiguous_input(cast(nn.Module, language_model.get_output_embeddings()))
        self.projection = Projection(
            image_encoder.vision_dim, language_model.config.hidden_size, image_encoder.layer_norm_eps
        )
        self.temporal_embedding = (
            nn.Parameter(torch.zeros(max_images, 1, image_encoder.vision_dim)) if max_images > 1 else None
        )

    @property
    def shares_rows(self) -> bool:
        """Whether several texts can stand behind one image: positions must be free to restart."""
        return self.positions != "slots"

    @property
    def attention_path(self) -> Literal["stream", "mask", "flex_attention"]:
        """How training and scoring attend: without a mask, with a dense one, or with FlexAttention's blocks of one.

        Decoders that take registered attention functions attend without a mask;
        ``language_model.set_attn_implementation("sdpa")`` gives them one, equal but slower.
        """
        implementation = self.language_model.config._attn_implementation
        if implementation == STREAM and self.shares_rows:
            return "stream"
        return "flex_attention" if implementation == "flex_attention" else "mask"

    @property
    def max_images(self) -> int:
        """Most images of one text."""
        return 1 if self.temporal_embedding is None else self.temporal_embedding.shape[0]

    @property
    def context_length(self) -> int | None:
        """Most tokens, image and text, that the language model's positions allow."""
        config = self.language_model.config
        return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)

    @property
    def sliding_window(self) -> int | None:
        """Most tokens that every layer attends to, where the decoder's attention is windowed."""
        config = self.language_model.config
        chunk = getattr(config, "attention_chunk_size", None)  # Llama 4's
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return min((size for size in (chunk, window) if size is not None), default=None)

    @property
    def longest_row(self) -> int | None:
        """Most positions of a row: the context, or a shorter window of attention; None where nothing limits it."""
        limits = [limit for limit in (self.context_length, self.sliding_window) if limit is not None]
        return min(limits, default=None)

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers: every batch, with images or without, passes through them one after another."""
        names = set(self.language_model._no_split_modules or ())
        return [module for module in self.language_model.modules() if type(module).__name__ in names]

    @property
    def _is_checkpointed(self) -> bool:
        return any(getattr(module, "gradient_checkpointing", False) for module in self.language_model.modules())

    def max_text_tokens(self, pixel_values: Tensor | None) -> int | None:
        """Most tokens of a text behind images of this shape, answer included; None where nothing limits it.

        Args:
            pixel_values: as for :meth:`encode_images`, or None for text alone.
        """
        if self.longest_row is None or pixel_values is None or self.positions == "text":
            return self.longest_row
        frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        height, width = pixel_values.shape[-2:]
        tokens = height if are_features(pixel_values) else self.image_encoder.num_tokens(height, width)
        return self.longest_row - frames * tokens

    def encode_images(self, pixel_values: Tensor, num_images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images to vectors of the language model's width.

        Args:
            pixel_values: ``[U, 3, H, W]``, or ``[U, F, 3, H, W]`` for images that have places; features that were
                computed before as images of one channel, see :mod:`~gitllm_plugin.modeling.pixels`.
            num_images: long ``[U]``, how many of the F images of each entry are real; None: all.

        Returns:
            ``image_embeds [U, F*P, llm_dim]`` and ``image_valid`` bool ``[U, F*P]``.

        Raises:
            DataError: more images than the model was built for.
        """
        have_places = pixel_values.ndim == 5
        if not have_places:
            pixel_values = pixel_values[:, None]
        entries, frames = pixel_values.shape[:2]
        if frames > self.max_images:
            raise DataError(
                f"{frames} images (or frames) for one text, but this model was built for {self.max_images}: "
                f"set model.max_images to {frames} or more, or give fewer"
            )
        features = self.image_encoder(pixel_values.flatten(0, 1))
        features = features.unflatten(0, (entries, frames))
        if have_places and self.temporal_embedding is not None:
            features = features + self.temporal_embedding[:frames].to(features.dtype)
        tokens = features.shape[2]
        image_embeds = self.projection(features.flatten(1, 2))
        frame = torch.arange(frames * tokens, device=pixel_values.device) // tokens
        if num_images is None:
            num_images = torch.full((entries,), frames, device=pixel_values.device)
        return image_embeds, frame[None, :] < num_images[:, None]

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
            input_ids: long ``[N, T]``, padded on either side.
            attention_mask: ``[N, T]``, 1 on real tokens; None: all are.
            pixel_values: ``[U, 3, H, W]``, ``[U, F, 3, H, W]``, or None for text alone.
            labels: long ``[N, T]``, token ids, ``-100`` where a token is not trained on. The first text token
                is never predicted from the image.
            image_index: long ``[N]``, the image that each text reads; None: text n reads image n (U = N).
                Texts of one image share its encoding and, where the family allows, its prefix; loss and
                gradients are those of separate rows.
            num_images: long ``[U]``, see :meth:`encode_images`.
            weights: float ``[N]``, how much each text's tokens count in the loss; None: all the same.
            logits: "none" computes logits at supervised positions only, for the loss.

        Returns:
            Loss (with labels) and logits.

        Raises:
            DataError: image and text are longer than the context.
        """
        text_valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        image_embeds, image_valid = self._image_or_nothing(input_ids, pixel_values, num_images)
        if self.attention_path == "stream":
            layout = lay_out_stream(image_valid, text_valid, image_index, keeps_copies=self._is_checkpointed)
        else:
            shared = image_index is not None and self.shares_rows
            layout = lay_out(image_valid, text_valid, image_index, share_rows=shared)
            if image_index is not None and not shared:
                image_embeds = image_embeds[image_index]
        self._check_context(layout)
        keep, targets, texts = (None, None, None) if labels is None else _supervised(layout, labels)
        rows = self._rows(layout, image_embeds, input_ids)
        with self._head_on(keep if logits == "none" else None):
            out = self._decode(layout, rows, image_embeds, use_cache=False).logits
        loss, count = None, 0
        if keep is not None and targets is not None:
            count = int(keep.sum())
            scored = out if logits == "none" else out[keep]
            loss = mean_loss(scored, targets, None if weights is None else weights[texts])
        return GitLLMOutput(loss, layout.text_of(out) if logits == "all" else None, count)

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
    ) -> Any:
        """Continue prompts about images, through the language model's own ``generate``.

        Args:
            input_ids, attention_mask, pixel_values, image_index, num_images: as in :meth:`forward`. An image
                that several prompts read is encoded once and, where the family allows, prefilled once.
            **generation_kwargs: arguments of transformers' ``generate`` by name (``max_new_tokens``,
                ``num_beams``, ``do_sample``, ``return_dict_in_generate``, ...). With
                ``cache_implementation="static"``, which transformers compiles on a GPU, each prompt is prefilled
                with its image, and the image encoded once.

        Returns:
            New token ids ``[N, L]`` (the prompt is not repeated), or transformers' output object.

        Raises:
            DataError: image and prompt are longer than the context.
        """
        text_valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        image_embeds, image_valid = self._image_or_nothing(input_ids, pixel_values, num_images)
        cache = None
        if (
            image_index is not None
            and len(image_index) > len(image_valid)
            and self._can_share(image_valid)
            and not self._makes_own_cache(generation_kwargs)
        ):
            cache = self._prefill_images(image_embeds, image_valid)
            # `generate` repeats its inputs for beams and samples, but not a cache that it is given.
            repeats = max(generation_kwargs.get("num_beams") or 1, generation_kwargs.get("num_return_sequences") or 1)
            cache.batch_select_indices(image_index.repeat_interleave(repeats))
        align = "right" if cache is None else "blocks"
        layout = lay_out(image_valid, text_valid.bool(), image_index, align=align)
        if image_index is not None:
            image_embeds = image_embeds[image_index]
        self._check_context(layout, max((generation_kwargs.get("max_new_tokens") or 1) - 1, 0))  # the last is not read
        rows = self._rows(layout, image_embeds, input_ids)
        with self._git_prefix(layout, image_embeds):
            return cast(Any, self.language_model).generate(
                inputs_embeds=rows,
                attention_mask=layout.attention_mask,
                **self._positions(layout),
                **({} if cache is None else {"past_key_values": cache}),
                **generation_kwargs,
            )

    def score_candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> CandidateScores:
        """How likely answers are, see :func:`gitllm_plugin.modeling.ranking.score_candidates`."""
        return score_candidates(self, input_ids, attention_mask, pixel_values, **kwargs)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write a folder, see :func:`gitllm_plugin.modeling.folder.save_folder`."""
        from gitllm_plugin.modeling.folder import save_folder  # it needs this class

        save_folder(self, folder, **kwargs)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> GitLLM:
        """Read a folder, see :func:`gitllm_plugin.modeling.folder.load_folder`, which also gives the tokenizer."""
        from gitllm_plugin.modeling.folder import load_folder

        return load_folder(folder, **kwargs).model

    def _image_or_nothing(
        self, input_ids: Tensor, pixel_values: Tensor | None, num_images: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if pixel_values is not None:
            return self.encode_images(pixel_values, num_images)
        width = self.language_model.config.hidden_size
        embeds = torch.zeros(len(input_ids), 0, width, device=input_ids.device)
        return embeds, torch.zeros(len(input_ids), 0, dtype=torch.bool, device=input_ids.device)

    def _can_share(self, image_valid: Tensor) -> bool:
        return self.shares_rows and bool(image_valid.any())

    def _makes_own_cache(self, generation_kwargs: dict[str, Any]) -> bool:
        """Whether ``generate`` was asked for a cache of a certain kind, which it then wants to make itself."""
        usual = getattr(self.language_model.generation_config, "cache_implementation", None)
        return generation_kwargs.get("cache_implementation", usual) is not None

    def _prefill_images(self, image_embeds: Tensor, image_valid: Tensor) -> Cache:
        """Keys and values of each image alone; exact, because image states never see text."""
        no_text = torch.zeros(len(image_valid), 0, dtype=torch.bool, device=image_valid.device)
        layout = lay_out(image_valid, no_text, align="right")
        rows = self._rows(layout, image_embeds, no_text.long())
        cache = DynamicCache(config=self.language_model.config)
        self._decode(layout, rows, image_embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _rows(self, layout: Layout, image_embeds: Tensor, input_ids: Tensor) -> Tensor:
        """The decoder's ``inputs_embeds [R, S, D]``."""
        text_embeds = self.language_model.get_input_embeddings()(input_ids)
        rows = text_embeds.new_zeros(*layout.attention_mask.shape, text_embeds.shape[-1])
        if self.positions != "text":
            rows = layout.place_image(rows, image_embeds)
        return layout.place_text(rows, text_embeds)

    def _check_context(self, layout: Layout, new_tokens: int = 0) -> None:
        """Refuse what the decoder's positions, or its window, cannot hold.

        Raises:
            DataError: too long; the message says by how much.
        """
        if self.positions == "slots":
            needed = layout.attention_mask.shape[1]
        else:
            needed = int(self._positions(layout)["position_ids"].max()) + 1
        limit = self.longest_row
        if limit is not None and needed + new_tokens > limit:
            raise DataError(
                f"image, text and answer take {needed + new_tokens} positions, but the language model's context is "
                f"{limit}: shorten the prompt or ask for a shorter answer"
            )

    def _positions(self, layout: Layout) -> dict[str, Tensor]:
        if self.positions == "slots":
            return {}
        return {"position_ids": layout.text_position_ids if self.positions == "text" else layout.position_ids}

    def _decode(self, layout: Layout, rows: Tensor, image_embeds: Tensor, **kwargs: Any) -> Any:
        with self._git_prefix(layout, image_embeds):
            return self.language_model(
                inputs_embeds=rows, attention_mask=layout.attention_mask, **self._positions(layout), **kwargs
            )

    @contextmanager
    def _git_prefix(self, layout: Layout, image_embeds: Tensor) -> Iterator[None]:
        """Everything that makes a call of the language model a call of GIT-LLM."""
        decoder_config = self.language_model.config
        with prefix_attention(decoder_config, layout.rule):
            if self.positions != "text":
                yield
                return
            with self._image_behind_positions(layout, image_embeds):
                yield

    @contextmanager
    def _head_on(self, keep: Tensor | None) -> Iterator[None]:
        """Compute logits ``[n, V]``, and what they alone read, at the slots ``keep`` (bool ``[R, S]``); None: at all.

        transformers' own ``logits_to_keep`` takes such a mask only in its newest releases.
        """
        if keep is None:
            yield
            return
        # Checkpointed layers are computed again when these hooks are gone.
        part = None if self._is_checkpointed else feed_forward(self.language_model)
        head = cast(nn.Module, self.language_model.get_output_embeddings())
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][keep],))
        try:
            with nullcontext() if part is None else at_slots(part, keep):
                yield
        finally:
            handle.remove()

    @contextmanager
    def _image_behind_positions(self, layout: Layout, image_embeds: Tensor) -> Iterator[None]:
        """Put image features where learned positions come out, instead of a position.

        The decoder adds that module's output to (projected) token embeddings, which are zero on image
        slots; so the sum is the image feature there, and token + position on text.
        """
        assert self.family.position_module is not None
        module = self.language_model.get_submodule(self.family.position_module)
        is_image = torch.zeros_like(layout.attention_mask, dtype=torch.bool)
        is_image[layout.image_row, layout.image_slot] = True
        rows = image_embeds.new_zeros(*is_image.shape, image_embeds.shape[-1])
        rows = layout.place_image(rows, image_embeds)

        def replace(module: nn.Module, args: Any, positions: Tensor) -> Tensor:
            repeats = positions.shape[0] // is_image.shape[0]  # beams
            length = positions.shape[1]  # of a row's end: what is in the cache already is not asked again
            mask = is_image[:, -length:].repeat_interleave(repeats, dim=0)
            image = rows[:, -length:].repeat_interleave(repeats, dim=0)
            return torch.where(mask[..., None], image.to(positions.dtype), positions)

        handle = module.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def _family_in_table(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise ConfigError(
            f"language model of type {model_type!r} is in no family of the table ({', '.join(sorted(FAMILIES))}); "
            "build_git_llm tests whether it fits, or give `family`"
        )
    return FAMILIES[model_type]


def mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of tokens, in float32; 0 where there is none.

    Args:
        logits: ``[n, V]``.
        targets: long ``[n]``.
        weights: float ``[n]``, for a weighted mean.
    """
    if weights is None:
        return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _supervised(layout: Layout, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slots whose logits are trained, bool ``[R, S]``, and their targets and texts, ``[n]``, in the same order."""
    if labels.shape != layout.text_valid.shape:
        raise ConfigError(f"labels have shape {tuple(labels.shape)}, input_ids {tuple(layout.text_valid.shape)}")
    # Token t is predicted at token t - 1 of its own text.
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    rows, texts = torch.full_like(layout.attention_mask, IGNORED), torch.zeros_like(layout.attention_mask)
    rows[layout.text_row, layout.text_slot] = targets[layout.text_valid]
    texts[layout.text_row, layout.text_slot] = layout.text_valid.nonzero()[:, 0]
    keep = rows != IGNORED
    return keep, rows[keep], texts[keep]
