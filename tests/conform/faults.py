"""Faults that are planted in the torch engine, and the check that is named for each."""

import torch
from transformers import DynamicCache
from transformers.masking_utils import or_masks

from gitllm_plugin.modeling import Decoder, GitLLM
from gitllm_plugin.modeling.attention import PrefixRule


def image_causal(patch):
    patch.setattr(PrefixRule, "apply", lambda rule, causal: causal)


def image_sees_text(patch):
    def apply(rule, causal):
        def query_is_image(batch, head, query, key):
            return query < rule.prefix_end[batch]

        return or_masks(right(rule, causal), query_is_image)

    right = PrefixRule.apply
    patch.setattr(PrefixRule, "apply", apply)


def one_prefix(patch):
    def everything(batch, head, query, key):
        return query < 10_000

    patch.setattr(PrefixRule, "apply", lambda rule, causal: or_masks(causal, everything))


def text_moved(patch):
    right = Decoder._positions_of

    def positions(decoder, layout):
        found = right(decoder, layout)["position_ids"].clone()
        found.view(-1)[layout.text_slots] += 1
        return {"position_ids": found}

    patch.setattr(Decoder, "_positions_of", positions)


def padding_seen(patch):
    right = Decoder._inputs

    def inputs(decoder, *args):
        found = right(decoder, *args)
        return {**found, "attention_mask": torch.ones_like(found["attention_mask"])}

    patch.setattr(Decoder, "_inputs", inputs)


def first_picture_kept(patch):
    right, kept = GitLLM.encode_images, {}

    def encode(model, pixels, *args):
        return kept.setdefault(pixels.shape, right(model, pixels, *args))

    patch.setattr(GitLLM, "encode_images", encode)


def caches_of_others(patch):
    right = DynamicCache.batch_select_indices
    patch.setattr(DynamicCache, "batch_select_indices", lambda cache, index: right(cache, index.flip(0)))


def beams_not_reordered(patch):
    patch.setattr(DynamicCache, "reorder_cache", lambda cache, index: None)


FAULTS = {
    image_causal: "mask: an image sees all of itself",
    image_sees_text: "mask: an image sees no text",
    one_prefix: "mask: an image sees no text",
    text_moved: "positions",
    padding_seen: "padding",
    first_picture_kept: "cache: another picture",
    caches_of_others: "batch: one picture",
    beams_not_reordered: "beams",
}
