"""LAVIS's hard-coded sizes made tiny, and its downloads left out: what a configuration file cannot say."""

import contextlib
import importlib
from unittest import mock

from torch import nn

from tests.lavis_models.folders import HIDDEN


@contextlib.contextmanager
def tiny():
    """While entered, LAVIS's image encoders are a few layers wide and are made of random numbers."""
    with contextlib.ExitStack() as stack:
        for place, replacement in _replacements():
            module, _, name = place.partition(":")
            owner = importlib.import_module(module)
            *classes, name = name.split(".")
            for inner in classes:
                owner = getattr(owner, inner)
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _replacements():
    from lavis.models.clip_models import model as clip
    from lavis.models.timesformer import vit as timesformer

    yield "lavis.models.vit:VisionTransformerEncoder.from_config", classmethod(_vit)
    yield "lavis.models.blip2_models.blip2:create_eva_vit_g", _eva_vit
    yield "lavis.models.blip2_models.blip2:create_clip_vit_L", _clip_vit
    yield "lavis.models.img2prompt_models.img2prompt_vqa:download_cached_file", _weights_of_questions
    yield "lavis.models.timesformer.vit:VisionTransformer", _small(timesformer.VisionTransformer, depth=2)
    initialize = importlib.import_module("lavis.models.alpro_models.alpro_retrieval").AlproRetrieval.__init__

    def with_tiny_width(self, *args, **kwargs):
        initialize(self, *args, vision_width=HIDDEN, text_width=HIDDEN, **kwargs)

    yield "lavis.models.alpro_models.alpro_retrieval:AlproRetrieval.__init__", with_tiny_width
    sizes = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": HIDDEN, "heads": 4, "layers": 2},
    }
    yield "lavis.models.clip_models.model:_MODEL_CONFIGS", clip._MODEL_CONFIGS | {"tiny": sizes}


def _small(original, **sizes):
    def make(**given):
        return original(**{**given, "embed_dim": HIDDEN, "num_heads": 4, **sizes})

    return make


def _vit(cls, cfg, from_pretrained=False):
    encoder = cls(
        img_size=cfg.get("image_size", 384),
        patch_size=16,
        embed_dim=HIDDEN,
        depth=2,
        num_heads=4,
        use_grad_checkpointing=cfg.get("vit_grad_ckpt", False),
        ckpt_layer=cfg.get("vit_ckpt_layer", 0),
        drop_path_rate=0,
    )
    encoder.vision_width = HIDDEN
    return encoder


def _eva_vit(img_size=224, drop_path_rate=0.4, use_checkpoint=False, precision="fp16"):
    from functools import partial

    from lavis.models.eva_vit import VisionTransformer

    return VisionTransformer(
        img_size=img_size,
        patch_size=14,
        use_mean_pooling=False,
        embed_dim=HIDDEN,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        qkv_bias=True,
        drop_path_rate=drop_path_rate,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_checkpoint=use_checkpoint,
    )


def _clip_vit(img_size=224, use_checkpoint=False, precision="fp16"):
    from lavis.models.clip_vit import VisionTransformer

    return VisionTransformer(
        input_resolution=img_size, patch_size=14, width=HIDDEN, layers=2, heads=4, use_grad_checkpointing=use_checkpoint
    )


def _weights_of_questions(*_, **__):
    import torch
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained("google/t5-large-lm-adapt")
    torch.save({"model": model.state_dict()}, "questions.pth")
    return "questions.pth"
