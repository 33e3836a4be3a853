"""A causal language model that reads images as GIT does: as a prefix that all text sees and that sees no text.

transformers' model computes. Here is what makes a call of it a call of GIT's: rows, positions, rule, and what fits.
Images come as vectors of the language model's width, however they were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from gitllm_plugin.config.model import AttentionKind
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.modeling.attention import STREAM, PrefixRule, prefix_attention, use_streams
from gitllm_plugin.modeling.beginnings import Beginnings
from gitllm_plugin.modeling.contiguous import give_contiguous_input
from gitllm_plugin.modeling.families import Family, family_in_table
from gitllm_plugin.modeling.last_layer import compute_at, taken
from gitllm_plugin.modeling.layout import Layout, lay_out
from gitllm_plugin.modeling.learned_positions import image_behind_positions
from gitllm_plugin.modeling.loss import GitLLMOutput, Targets, mean_loss, prompt_lengths_of, targets_of
from gitllm_plugin.modeling.marks import Marks
from gitllm_plugin.modeling.stream_layout import lay_out_stream
from gitllm_plugin.modeling.transfer import to_device, to_host


class Decoder:
    """A language model under GIT's attention rule.

    The language model is used as transformers made it: the rule reaches it through transformers' own mask
    interface (:mod:`~gitllm_plugin.modeling.attention`) and positions through its own arguments.

    No :class:`~torch.nn.Module`, because a model that has both would list every weight twice, and checkpoints know
    them as ``language_model.*``.

    Args:
        language_model: a causal LM of transformers; LoRA, FSDP and compilation change it in place.
        family: facts about it; None: those of :data:`~gitllm_plugin.modeling.families.FAMILIES`.
        attention: what image tokens see: ``git``, their image; ``causal``, of it what stands before them; ``prompt``,
            image and prompt, and so do the prompt's tokens.

    Attributes:
        language_model, attention: as given.
        family: as given, or found.
        positions: see :class:`~gitllm_plugin.modeling.families.family.Family`.

    Raises:
        ConfigError: the language model's family is not in the table and none is given.
    """

    def __init__(
        self, language_model: PreTrainedModel, family: Family | None = None, attention: AttentionKind = "git"
    ) -> None:
        self.language_model = language_model
        self.attention: AttentionKind = attention
        self.family = family or family_in_table(language_model.config.model_type)
        self.positions = self.family.positions_of(language_model.config)
        if self.family.prepare is not None:
            self.family.prepare()
        # ALiBi from slots counts over the whole row, so that a stream of many texts would count on.
        if self.shares_rows:
            use_streams(language_model)
        # transformers hands the head the last position of each row: a slice.
        if (head := language_model.get_output_embeddings()) is not None:
            give_contiguous_input(head)

    @property
    def shares_rows(self) -> bool:
        """Whether several texts can stand in a row: positions must be free to restart."""
        return self.positions != "slots"

    @property
    def shares_images(self) -> bool:
        """Whether several texts can stand behind one image: its states must not be made of their prompts."""
        return self.shares_rows and self.attention != "prompt"

    @property
    def attention_path(self) -> Literal["stream", "mask", "flex_attention"]:
        """How :meth:`forward` attends: without a mask, with a dense one, or with FlexAttention's blocks of one.

        Decoders that take registered attention functions attend without a mask;
        ``language_model.set_attn_implementation("sdpa")`` gives them one, equal but slower.
        """
        # Asked at every call, because `set_attn_implementation` may be called at any time.
        implementation = self.language_model.config._attn_implementation
        if implementation == STREAM and self.shares_images:
            return "stream"
        return "flex_attention" if implementation == "flex_attention" else "mask"

    @property
    def context_length(self) -> int | None:
        """Most tokens, image and text, that the language model's positions allow; None where nothing limits them."""
        config = self.language_model.config
        return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)

    @property
    def sliding_window(self) -> int | None:
        """Most tokens that every layer attends to, where the decoder's attention is windowed."""
        config = self.language_model.config
        # Llama 4 attends in chunks, which bound a row as a window does.
        chunk = getattr(config, "attention_chunk_size", None)
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return min((size for size in (chunk, window) if size is not None), default=None)

    @property
    def longest_row(self) -> int | None:
        """Most positions of a row: the context, or a shorter window of attention; None where nothing limits it."""
        limits = [limit for limit in (self.context_length, self.sliding_window) if limit is not None]
        return min(limits, default=None)

    @property
    def is_checkpointed(self) -> bool:
        """Whether layers compute their activations again in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.language_model.modules())

    def blocks(self) -> list[nn.Module]:
        """List the layers: every batch, with images or without, passes through them one after another."""
        # transformers' list of what must not be cut, whatever a family calls its layers.
        names = set(self.language_model._no_split_modules or ())
        return [module for module in self.language_model.modules() if type(module).__name__ in names]

    def forward(
        self,
        image_embeds: Tensor,
        image_valid: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        weights: Tensor | None = None,
        logits: Literal["all", "none"] = "all",
        marks: Marks | None = None,
    ) -> GitLLMOutput:
        """Score texts about images.

        Args:
            image_embeds: float ``[U, P, D]``, D the language model's width; P = 0 for text alone.
            image_valid: bool ``[U, P]``, which of them are real; best on the host, as all that says who stands where.
            input_ids, attention_mask, labels, image_index, weights, logits: as for
                :meth:`~gitllm_plugin.modeling.model.GitLLM.forward`.
            marks: where in their texts images stand; None: in front.

        Raises:
            DataError: image and text are longer than the context.
        """
        image_valid, attention_mask, labels, image_index, weights = to_host(
            image_valid, attention_mask, labels, image_index, weights
        )
        text_valid = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
        if labels is not None and labels.shape != input_ids.shape:
            raise ConfigError(f"labels have shape {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}")
        prompt_lengths = None if labels is None else prompt_lengths_of(labels, text_valid)
        layout = self.lay_out(image_valid, text_valid, image_index, prompt_lengths, marks=marks)
        targets = None if labels is None else targets_of(labels, weights, layout)
        layout, targets, input_ids = to_device((layout, targets, input_ids), image_embeds.device)
        return self.score(image_embeds, input_ids, layout, targets, logits)

    def lay_out(
        self,
        image_valid: Tensor,
        text_valid: Tensor,
        image_index: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        beginnings: Beginnings | None = None,
        marks: Marks | None = None,
    ) -> Layout:
        """Lay out a batch as this decoder reads it best, on the host.

        Args:
            image_valid, text_valid, image_index, prompt_lengths, marks: see
                :func:`~gitllm_plugin.modeling.layout.lay_out`.
            beginnings: what texts have in common, which stands in streams once.

        Raises:
            DataError: image and text are longer than the context.
        """
        # Image rows that several texts share are not repeated, wherever the family can do without.
        if self.attention_path == "stream" and marks is None:
            ways: dict[str, Any] = {"keeps_copies": self.is_checkpointed, "causal_images": self.attention == "causal"}
            layout = lay_out_stream(image_valid, text_valid, image_index, beginnings=beginnings, **ways)
        else:
            ways = {"prompt_lengths": prompt_lengths, "marks": marks}
            share = image_index is not None and self.shares_images and marks is None
            layout = self.rows(image_valid, text_valid, image_index, share_rows=share, **ways)
        self.check_fits(layout)
        return layout

    def rows(self, image_valid: Tensor, text_valid: Tensor, image_index: Tensor | None = None, **kwargs: Any) -> Layout:
        """Lay out a batch in rows: :func:`~gitllm_plugin.modeling.layout.lay_out` with this decoder's attention."""
        return lay_out(image_valid, text_valid, image_index, attention=self.attention, **kwargs)

    def score(
        self,
        image_embeds: Tensor,
        input_ids: Tensor,
        layout: Layout,
        targets: Targets | None = None,
        logits: Literal["all", "none"] = "all",
    ) -> GitLLMOutput:
        """Score texts that are laid out; all of it is on the device, and no value is read from there.

        Args:
            image_embeds: float ``[U, P, D]``.
            input_ids: long ``[N, T]``.
            layout: what :meth:`lay_out` gave.
            targets: what is learnt of it; None: nothing.
            logits: as for :meth:`forward`.
        """
        with self.head_on(targets.slots if targets is not None and logits == "none" else None):
            out = self.read(layout, image_embeds, input_ids, use_cache=False).logits
        text_logits = layout.logits_of(out) if logits == "all" else None
        if targets is None:
            return GitLLMOutput(logits=text_logits)
        scored = out if logits == "none" else taken(out, targets.slots)
        loss = mean_loss(scored, targets.tokens, targets.weights, targets.divisor)
        return GitLLMOutput(loss, text_logits, len(targets.tokens), targets.weight)

    def generate(
        self,
        image_embeds: Tensor,
        image_valid: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        marks: Marks | None = None,
        cache: Cache | None = None,
        **generation_kwargs: Any,
    ) -> Any:
        """Continue prompts about images, through the language model's own ``generate``.

        Args:
            image_embeds, image_valid: as for :meth:`forward`.
            input_ids, attention_mask, image_index, **generation_kwargs: as for
                :meth:`~gitllm_plugin.modeling.model.GitLLM.generate`, as is what it gives.
            marks: as for :meth:`forward`.
            cache: of one row without padding, what was read of its beginning: the image at least.

        Raises:
            DataError: image and prompt are longer than the context.
        """
        image_valid, attention_mask, image_index = to_host(image_valid, attention_mask, image_index)
        text_valid = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
        device = image_embeds.device
        if (
            cache is None
            and marks is None
            and image_index is not None
            and self._can_share_prefill(image_index, image_valid, generation_kwargs)
        ):
            cache = self.prefill(image_embeds, image_valid)
            # `generate` repeats its inputs for beams and samples, but not a cache that it is given.
            repeats = max(generation_kwargs.get("num_beams") or 1, generation_kwargs.get("num_return_sequences") or 1)
            cache.batch_select_indices(to_device(image_index.repeat_interleave(repeats), device))
        align = "right" if cache is None else "blocks"
        layout = self.rows(image_valid, text_valid, image_index, align=align, marks=marks)
        # The last new token is not read again.
        self.check_fits(layout, max((generation_kwargs.get("max_new_tokens") or 1) - 1, 0))
        layout, input_ids = to_device((layout, input_ids), device)
        with self._under_rule(layout, image_embeds):
            return cast(Any, self.language_model).generate(
                **self._inputs(layout, image_embeds, input_ids),
                **({} if cache is None else {"past_key_values": cache}),
                **generation_kwargs,
            )

    def prefill(self, image_embeds: Tensor, image_valid: Tensor) -> Cache:
        """Compute keys and values of each image alone; exact where image states never see text (`shares_images`).

        Args:
            image_embeds, image_valid: as for :meth:`forward`, U images.

        Returns:
            A cache of U rows, with padding in front of the shorter images.
        """
        no_text = torch.zeros(len(image_valid), 0, dtype=torch.long)
        layout, no_text = to_device((self.rows(image_valid, no_text, align="right"), no_text), image_embeds.device)
        cache = DynamicCache(config=self.language_model.config)
        self.read(layout, image_embeds, no_text, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def check_fits(self, layout: Layout, new_tokens: int = 0) -> None:
        """Refuse what the decoder's positions, or its window, cannot hold.

        Args:
            layout: of image and text.
            new_tokens: how many more will be read behind each row.

        Raises:
            DataError: too long; the message says by how much.
        """
        if self.positions == "slots":
            needed = layout.attention_mask.shape[1]
        else:
            needed = layout.longest_text if self.positions == "text" else layout.longest_row
        limit = self.longest_row
        if limit is not None and needed + new_tokens > limit:
            raise DataError(
                f"image, text and answer take {needed + new_tokens} positions, but the language model's context is "
                f"{limit}: shorten the prompt or ask for a shorter answer"
            )

    def read(self, layout: Layout, image_embeds: Tensor, input_ids: Tensor, **kwargs: Any) -> Any:
        """Run the language model over laid out images and texts, as GIT.

        Args:
            layout: where they stand.
            image_embeds: float ``[U, P, D]``.
            input_ids: long ``[N, T]``.
            **kwargs: further arguments of transformers' model (``use_cache``, ``output_attentions``, ...).

        Returns:
            transformers' output; ``logits`` are ``[R, S, V]``, see :meth:`Layout.text_of`.
        """
        with self._under_rule(layout, image_embeds):
            return self.language_model(**self._inputs(layout, image_embeds, input_ids), **kwargs)

    def read_behind(
        self,
        cache: Cache,
        rule: PrefixRule,
        input_ids: Tensor,
        attention_mask: Tensor,
        order: Tensor,
        before: Tensor,
        **kwargs: Any,
    ) -> Any:
        """Run the language model over more text behind cached rows.

        Args:
            cache: of R rows of C slots; the new ones are appended to it.
            rule: who sees whom, for the cached slots and the new ones.
            input_ids: long ``[R, Q]``.
            attention_mask: long ``[R, C + Q]``, 1 on real tokens.
            order: long ``[R, Q]``, the place of each new token in its own text, from 0.
            before: long ``[R]``, see :meth:`end_of`.
            **kwargs: as for :meth:`read`.
        """
        if self.positions != "slots":
            kwargs["position_ids"] = before[:, None] + order
        with prefix_attention(self.language_model.config, rule):
            return self.language_model(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **kwargs
            )

    def end_of(self, layout: Layout) -> Tensor:
        """Give the position behind each row of one text, long ``[R]``: of text alone, or of image and text."""
        return layout.text_lengths if self.positions == "text" else layout.attention_mask.sum(1)

    @contextmanager
    def head_on(self, slots: Tensor | None) -> Iterator[None]:
        """Compute logits ``[n, V]``, and what they alone read, at some slots inside the block.

        Args:
            slots: long ``[n]``, counted through all rows; None: at all slots, as always.
        """
        # Checkpointed layers are computed again in the backward pass, when these hooks are gone.
        with compute_at(self.language_model, slots, in_last_layer=not self.is_checkpointed):
            yield

    def _can_share_prefill(self, image_index: Tensor, image_valid: Tensor, generation_kwargs: dict[str, Any]) -> bool:
        # Asked for a cache of a certain kind, `generate` wants to make it itself.
        usual = getattr(self.language_model.generation_config, "cache_implementation", None)
        makes_own_cache = generation_kwargs.get("cache_implementation", usual) is not None
        is_shared = len(image_index) > len(image_valid) and bool(image_valid.any())
        return self.shares_images and is_shared and not makes_own_cache

    def _inputs(self, layout: Layout, image_embeds: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        """Make the language model's arguments: ``inputs_embeds [R, S, D]``, mask and positions."""
        text_embeds = self.language_model.get_input_embeddings()(input_ids)
        # Zeros in slots of padding, and of images where they enter behind positions.
        rows = text_embeds.new_zeros(*layout.attention_mask.shape, text_embeds.shape[-1])
        if self.positions != "text":
            rows = layout.place_image(rows, image_embeds)
        rows = layout.place_text(rows, text_embeds)
        return {"inputs_embeds": rows, "attention_mask": layout.attention_mask, **self._positions_of(layout)}

    def _positions_of(self, layout: Layout) -> dict[str, Tensor]:
        if self.positions == "slots":
            return {}
        return {"position_ids": layout.text_position_ids if self.positions == "text" else layout.position_ids}

    @contextmanager
    def _under_rule(self, layout: Layout, image_embeds: Tensor) -> Iterator[None]:
        """Set, inside the block, everything but arguments that makes a call of the language model a call of GIT's."""
        with prefix_attention(self.language_model.config, layout.rule):
            if self.positions != "text":
                yield
                return
            with image_behind_positions(self.language_model, self.family.position_module, layout, image_embeds):
                yield
