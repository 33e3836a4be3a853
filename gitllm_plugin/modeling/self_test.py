"""Whether a decoder, as GIT-LLM uses it, keeps GIT's promises: asked of a tiny random copy, in a second.

A decoder of transformers may ignore the mask that it is given, keep a causal buffer of its own, carry a
recurrent state past it, or apply it in training and not with a cache.  Each property below is a way in
which that shows.  The same functions are the contract tests of every family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.attention import STREAM
from gitllm_plugin.modeling.families import FAMILIES, Family, default_family
from gitllm_plugin.modeling.layout import Layout, lay_out
from gitllm_plugin.modeling.tiny import sharpen, tiny_copy, tiny_image_encoder
from gitllm_plugin.modeling.tokens import IGNORED

TOLERANCE = 1e-4
"""What may differ, as a share of the largest value compared; float32 sums in another order differ by 1e-6."""

_LENGTHS = (9, 6, 3)
_NEW_TOKENS = 4


class PropertyError(AssertionError):
    """A decoder does not have a property; the message says by how much."""


@dataclass(frozen=True)
class Probe:
    """A model and a batch to question it with.

    Attributes:
        model: a :class:`~gitllm_plugin.modeling.model.GitLLM` in evaluation mode.
        input_ids: long ``[3, T]``, of different lengths, padded on the right.
        attention_mask: long ``[3, T]``.
        pixel_values: float ``[3, 3, H, W]``.
    """

    model: Any
    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each text."""
        return self.attention_mask.sum(1).tolist()

    def logits(self, input_ids: Tensor | None = None, **changes: Tensor) -> Tensor:
        """Compute logits ``[3, T, V]`` of the batch, with what is given in the place of its own."""
        ids = self.input_ids if input_ids is None else input_ids
        inputs = {"attention_mask": self.attention_mask, "pixel_values": self.pixel_values, **changes}
        return self.model(ids, **inputs).logits

    def image_states(self, image_embeds: Tensor, input_ids: Tensor) -> list[Tensor]:
        """Compute every layer's states ``[3, P, D]`` at the image's slots."""
        layout = self.layout()
        hidden = self.model.decoder.read(layout, image_embeds, input_ids, output_hidden_states=True).hidden_states
        shape = image_embeds.shape[:2]
        return [layout.image_of(states).unflatten(0, shape) for states in hidden]

    def layout(self) -> Layout:
        """Lay out the batch, a text a row."""
        _, image_valid = self.model.encode_images(self.pixel_values)
        return lay_out(image_valid, self.attention_mask)


def make_probe(model: Any, image_size: int = 32) -> Probe:
    """Make a random batch for ``model``; always the same one."""
    generator = torch.Generator().manual_seed(1)
    device = model.projection.weight.device
    longest = max(_LENGTHS)
    vocabulary = len(cast(Any, model.language_model.get_input_embeddings()).weight)
    attention_mask = torch.tensor([[1] * length + [0] * (longest - length) for length in _LENGTHS])
    return Probe(
        model=model,
        input_ids=torch.randint(3, vocabulary, attention_mask.shape, generator=generator).to(device),
        attention_mask=attention_mask.to(device),
        pixel_values=torch.randn(len(_LENGTHS), 3, image_size, image_size, generator=generator).to(device),
    )


def a_later_token_never_changes_an_earlier_logit(probe: Probe) -> None:
    """Text is causal."""
    # Each text takes over another one's tokens, so that every change is to a token that occurs.
    changed, cut = probe.input_ids.clone(), 2
    changed[:, cut:] = changed[:, cut:].roll(1, 0)
    before, after = probe.logits(), probe.logits(changed)
    _same(before[:, :cut], after[:, :cut], "logits before a token that was changed")
    _different(before[:2, cut], after[:2, cut], "logits at a token that was changed")


def text_never_changes_image_states(probe: Probe) -> None:
    """Image tokens see no text."""
    image, _ = probe.model.encode_images(probe.pixel_values)
    pairs = zip(
        probe.image_states(image, probe.input_ids), probe.image_states(image, probe.input_ids.roll(1, 0)), strict=True
    )
    for one, other in pairs:
        _same(one, other, "image states beside another text")


def an_image_token_sees_the_whole_image(probe: Probe) -> None:
    """The last image token reaches the first one: attention within the image is not causal."""
    image, _ = probe.model.encode_images(probe.pixel_values)
    changed = image.clone()
    changed[:, -1] = changed[:, -1].roll(1, 0)
    before = probe.image_states(image, probe.input_ids)[-1]
    after = probe.image_states(changed, probe.input_ids)[-1]
    _different(before[:, 0], after[:, 0], "states of the first image token after the last one was changed")


def an_image_changes_every_text_logit(probe: Probe) -> None:
    """Each text token sees the image."""
    before, after = probe.logits(), probe.logits(pixel_values=probe.pixel_values.roll(1, 0))
    for row, length in enumerate(probe.lengths):
        for position in range(length):
            _different(before[row, position], after[row, position], f"logits of text token {position}")


def padding_changes_nothing(probe: Probe) -> None:
    """Padded on the right, on the left, or alone without padding: the same logits."""
    longest, right = max(probe.lengths), probe.logits()
    shifts = [longest - length for length in probe.lengths]
    left = probe.logits(_shift(probe.input_ids, shifts), attention_mask=_shift(probe.attention_mask, shifts))
    for row, (length, shift) in enumerate(zip(probe.lengths, shifts, strict=True)):
        alone = probe.model(probe.input_ids[row : row + 1, :length], None, probe.pixel_values[row : row + 1]).logits[0]
        _same(alone, right[row, :length], "logits of a text alone and padded on the right")
        _same(alone, left[row, shift:], "logits of a text alone and padded on the left")


def cached_decoding_equals_uncached(probe: Probe) -> None:
    """A batch of prompts of different lengths, decoded with a cache, gives each alone without one."""
    out = probe.model.generate(
        probe.input_ids,
        probe.attention_mask,
        probe.pixel_values,
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    for row, length in enumerate(probe.lengths):
        text = torch.cat([probe.input_ids[row, :length], out.sequences[row]])[None]
        uncached = probe.model(text, None, probe.pixel_values[row : row + 1]).logits[0, length - 1 : -1]
        _same(uncached, torch.stack([step[row] for step in out.logits]), "logits with a cache and without")


def texts_of_one_image_share_it(probe: Probe) -> None:
    """Two texts behind one copy of their image give what two copies give."""
    # Not in order, so that a text that reads its neighbour's image is found out.
    index = torch.tensor([0, 1, 0], device=probe.input_ids.device)
    shared = probe.logits(pixel_values=probe.pixel_values[:2], image_index=index)
    _same(shared, probe.logits(pixel_values=probe.pixel_values[:2][index]), "logits behind a shared image")


def attending_without_a_mask_changes_nothing(probe: Probe) -> None:
    """Streams give what a dense mask gives, which generation goes on to use."""
    if probe.model.decoder.attention_path != "stream":
        return
    decoder, without = probe.model.language_model, probe.logits()
    decoder.set_attn_implementation("sdpa")
    try:
        _same(without, probe.logits(), "logits without a mask and with one")
    finally:
        decoder.set_attn_implementation(STREAM)


def logits_that_are_not_read_change_no_loss(probe: Probe) -> None:
    """Head and last layer at supervised slots alone, as training computes them, give the same loss."""
    labels = probe.input_ids.masked_fill(~probe.attention_mask.bool(), IGNORED)
    # Fewer slots than there are, or nothing would be left out.
    labels[:, :2] = IGNORED
    inputs = (probe.input_ids, probe.attention_mask, probe.pixel_values, labels)
    of_all, of_few = (cast(Tensor, probe.model(*inputs, logits=logits).loss) for logits in ("all", "none"))
    _same(of_all, of_few, "the loss with all logits and with those that it reads")


PROPERTIES: tuple[Callable[[Probe], None], ...] = (
    a_later_token_never_changes_an_earlier_logit,
    text_never_changes_image_states,
    an_image_token_sees_the_whole_image,
    an_image_changes_every_text_logit,
    padding_changes_nothing,
    cached_decoding_equals_uncached,
    texts_of_one_image_share_it,
    attending_without_a_mask_changes_nothing,
    logits_that_are_not_read_change_no_loss,
)
"""What must hold of every decoder; each raises :class:`PropertyError`."""


@dataclass
class Verdict:
    """What a decoder's tiny copy does not do.

    Attributes:
        faults: property -> what was found.
    """

    faults: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def examine(model: Any, properties: Sequence[Callable[[Probe], None]] = PROPERTIES) -> Verdict:
    """Ask a model for its properties."""
    probe, verdict = make_probe(model), Verdict()
    for has in properties:
        try:
            has(probe)
        except PropertyError as error:
            verdict.faults[has.__name__.replace("_", " ")] = str(error)
        except Exception as error:  # noqa: BLE001 - decoders fail in their own ways, and each is a "no"
            verdict.faults[has.__name__.replace("_", " ")] = f"{type(error).__name__}: {error}"
    return verdict


def confirm_family(config: PreTrainedConfig, model_class: Callable[..., Any], self_test: bool = True) -> Family:
    """Find the facts about a decoder, confirmed on a tiny copy of it.

    Args:
        config: the decoder's configuration.
        model_class: :class:`~gitllm_plugin.modeling.model.GitLLM`, which is made of the copy.
        self_test: whether to ask the copy; without it an unknown decoder is taken at its word.

    Raises:
        ConfigError: the copy lacks a property, or cannot be made; the message says which.
    """
    family = FAMILIES.get(config.model_type) or default_family(config)
    # Once a configuration and process: a run builds, resumes and evaluates, and asks each time.
    if self_test:
        _test_once(json.dumps(config.to_dict(), default=str, sort_keys=True), _Hidden(config, family, model_class))
    return family


@dataclass(frozen=True)
class _Hidden:
    """What the cache of :func:`_test_once` does not compare."""

    config: PreTrainedConfig = field(compare=False)
    family: Family = field(compare=False)
    model_class: Callable[..., Any] = field(compare=False)


@lru_cache(maxsize=32)
@torch.no_grad()
def _test_once(key: str, subject: _Hidden) -> None:
    config, family = subject.config, subject.family
    try:
        decoder = sharpen(tiny_copy(config, family))
        model = subject.model_class(tiny_image_encoder("clip"), decoder, family=family).eval()
        make_probe(model).logits()
    except Exception as error:  # noqa: BLE001 - decoders fail in their own ways
        raise ConfigError(
            f"language model of type {config.model_type!r}: no tiny copy can be made to test GIT's attention on "
            f"({type(error).__name__}: {error}). If you know that it fits, set model.self_test: false"
        ) from error
    faults = examine(model).faults
    if faults:
        listed = "\n".join(f"  - {name}: {found}" for name, found in faults.items())
        raise ConfigError(
            f"language model of type {config.model_type!r} cannot be a GIT-LLM here: its tiny copy fails\n{listed}\n"
            f"Families that are known to work: {', '.join(sorted(FAMILIES))}"
        )


def _shift(rows: Tensor, shifts: Sequence[int]) -> Tensor:
    return torch.stack([row.roll(shift, 0) for row, shift in zip(rows, shifts, strict=True)])


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / torch.maximum(one.abs().max(), other.abs().max()))


def _same(one: Tensor, other: Tensor, what: str) -> None:
    difference = _difference(one, other)
    if not difference <= TOLERANCE:
        raise PropertyError(f"{what} differ by {difference:.1e} of the largest (allowed {TOLERANCE:.0e})")


def _different(one: Tensor, other: Tensor, what: str) -> None:
    difference = _difference(one, other)
    if not difference > TOLERANCE:
        raise PropertyError(f"{what} are the same (within {difference:.1e} of the largest)")
