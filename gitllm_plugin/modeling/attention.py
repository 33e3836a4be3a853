"""GIT's attention rule, given to transformers as a rule and not as a tensor.

In one row, ``i`` are image tokens and ``t`` text tokens (GIT, Wang et al. 2022, section 3.1)::

              keys:  i  i  i  t  t  t
    queries:  i      x  x  x  .  .  .       image sees all of its image, no text
              i      x  x  x  .  .  .
              i      x  x  x  .  .  .
              t      x  x  x  x  .  .       text sees the image and earlier text
              t      x  x  x  x  x  .
              t      x  x  x  x  x  x

That is the causal rule, OR "the key is an image slot".  Rows may also carry several texts about one
image, one after another, and several images, each in front of its texts; then a text key is seen by its own
text alone, and an image key by its own image and texts.

Two other rules are here to be compared with it: an image that is causal too, as in LLaVA, and a prompt that belongs to
the prefix, as in PaliGemma.

Every decoder of transformers asks one registry, ``AttentionMaskInterface``, for its mask and hands it
the causal rule as a function.  :func:`install` wraps the stock factories of that registry once; the
wrappers do nothing until a model's config carries a :class:`PrefixRule`, which :func:`prefix_attention`
puts there for the duration of one call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, or_masks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.stream import Stream, attend

STREAM = "gitllm"
"""Name of our attention in transformers' registries: streams without a mask, everything else as "sdpa" does."""
_RULE = "git_prefix_rule"
_MASKS = ("eager", "sdpa", "flex_attention")


@dataclass(frozen=True)
class PrefixRule:
    """Which slots of each row hold an image, and which text and image each slot belongs to.

    Attributes:
        prefix_end: LongTensor ``[R]``, for rows of one image and one text: in row ``r`` the slots before
            ``prefix_end[r]`` are seen by all (or padding, which the 2-D attention mask removes): GIT's image; image and
            prompt; or nothing, where images are causal. Or ``[R, S]``: slot ``q`` sees all before ``prefix_end[r, q]``,
            besides what stands in front of it: GIT's images where they stand between texts.
        shared: None, or for rows of several texts and images the numbers of each slot's text (-1 on image slots)
            and image, two LongTensors ``[R, S]``; ``prefix_end`` is not read then.
        stream: None, or for one row without padding who attends to whom in it, in the place of any mask.
        causal_images: whether the images of ``shared`` rows see only what of them stands before.
    """

    prefix_end: Tensor
    shared: tuple[Tensor, Tensor] | None = None
    stream: Stream | None = None
    causal_images: bool = False

    def for_batch(self, batch_size: int) -> PrefixRule:
        """Repeat the rule for ``batch_size`` rows, where beam search repeated each row ``batch_size / R`` times."""
        # Beams stand beside their row, in the order in which `generate` repeats its inputs.
        repeats = batch_size // self.prefix_end.shape[0]
        if repeats == 1 or self.shared is not None:
            return self
        return PrefixRule(self.prefix_end.repeat_interleave(repeats, dim=0))

    def apply(self, causal: Callable) -> Callable:
        """OR GIT's prefix to ``causal`` (a mask function of transformers), within one text and image."""
        if self.shared is not None:
            return _within_texts(causal, *self.shared, self.causal_images)
        prefix_end = self.prefix_end

        def key_is_image(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return key < (prefix_end[batch] if prefix_end.ndim == 1 else prefix_end[batch, query])

        return or_masks(causal, key_is_image)


def _within_texts(causal: Callable, text_ids: Tensor, image_ids: Tensor, causal_images: bool) -> Callable:
    def key_is_own_image(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (text_ids[batch, key] == -1) & (image_ids[batch, query] == image_ids[batch, key])
        # Texts stand behind their image, and see all of it either way.
        return own & causal(batch, head, query, key) if causal_images else own

    def causal_in_one_text(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        key_text = text_ids[batch, key]
        return causal(batch, head, query, key) & (key_text != -1) & (text_ids[batch, query] == key_text)

    return or_masks(causal_in_one_text, key_is_own_image)


def _with_prefix(factory: Callable) -> Callable:
    @functools.wraps(factory)
    def mask(*args: object, **kwargs: object) -> object:
        rule: PrefixRule | None = getattr(kwargs.get("config"), _RULE, None)
        # One query is a decoding step: it is text, which sees every key already.
        if rule is None or kwargs["q_length"] == 1:
            return factory(*args, **kwargs)
        if rule.stream is not None:
            return rule.stream
        rule = rule.for_batch(kwargs["batch_size"])  # type: ignore[arg-type]
        kwargs["mask_function"] = rule.apply(kwargs["mask_function"])  # type: ignore[arg-type]
        # "sdpa" would otherwise answer None ("use is_causal") and lose the prefix.
        kwargs["allow_is_causal_skip"] = False
        # Our functions go by index, for which broadcasting is enough, and faster.
        kwargs["use_vmap"] = False
        return factory(*args, **kwargs)

    mask.git_prefix = True  # type: ignore[attr-defined]
    return mask


def install() -> None:
    """Wrap transformers' mask factories and add our attention; idempotent, and inert for models without a rule."""
    ALL_ATTENTION_FUNCTIONS.register(STREAM, attend)
    for name in _MASKS:
        factory = ALL_MASK_ATTENTION_FUNCTIONS[name]
        if not getattr(factory, "git_prefix", False):
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, _with_prefix(factory))
    # Generation has a cache, rows and padding: there our attention is "sdpa", with the same masks.
    ALL_MASK_ATTENTION_FUNCTIONS.register(STREAM, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def use_streams(language_model: PreTrainedModel) -> bool:
    """Let a decoder attend without masks, in place, if it takes registered attention functions.

    A decoder that was given another attention than transformers' usual one ("sdpa") keeps it.

    Returns:
        Whether it does now.
    """
    takes_functions = language_model._supports_attention_backend and language_model._can_set_attn_implementation()
    # A person who chose eager or FlexAttention wants to see weights, or blocks; only the default is replaced.
    if takes_functions and language_model.config._attn_implementation == "sdpa":
        install()
        language_model.set_attn_implementation(STREAM)
    return language_model.config._attn_implementation == STREAM


@contextmanager
def prefix_attention(config: PreTrainedConfig, rule: PrefixRule) -> Iterator[None]:
    """Let the decoder of ``config`` attend by ``rule`` inside the block, and as always after it.

    Raises:
        ConfigError: the decoder uses an attention implementation that the rule cannot reach.
    """
    if config._attn_implementation not in (STREAM, *_MASKS):
        raise ConfigError(
            f"attention implementation {config._attn_implementation!r} cannot express GIT's mask; "
            f"use one of {', '.join((STREAM, *_MASKS))} (language_model.set_attn_implementation)"
        )
    install()
    setattr(config, _RULE, rule)
    try:
        yield
    finally:
        # A rule left behind would silently change text-only use of the same language model.
        delattr(config, _RULE)
