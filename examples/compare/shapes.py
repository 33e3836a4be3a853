"""What the four models are made of: folders with random weights, and LAVIS's hard-coded sizes made small."""

import contextlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn

from examples.compare.data import COLORS, SHAPES
from gitllm_plugin.modeling.tiny import tiny_tokenizer

_WORDS = ("a", "picture", "of", "left", *COLORS, *SHAPES)


def write_folders(folder: Path, sizes: Any) -> None:
    """Write what the models' configurations name.

    Args:
        folder: gets ``opt``, ``clip``, ``git``, ``bert-base-uncased`` (which LAVIS asks for by that name), BLIP's
            ``med.json``, and weights without any in ``nothing.pth``.
        sizes: section ``sizes`` of ``shared.yaml``.
    """
    torch.save({"model": {}}, folder / "nothing.pth")
    layers = {"num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "hidden_size": sizes.width}
    images = {"image_size": sizes.image, "patch_size": sizes.patch, "intermediate_size": 4 * sizes.width}
    tokenizer = tiny_tokenizer()
    special: dict[str, Any] = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    opt = transformers.OPTConfig(
        **layers,
        vocab_size=len(tokenizer),
        ffn_dim=4 * sizes.width,
        word_embed_proj_dim=sizes.width,
        max_position_embeddings=128,
        dropout=0.0,
        **special,
    )
    transformers.OPTForCausalLM(opt).save_pretrained(folder / "opt")
    tokenizer.save_pretrained(folder / "opt")
    clip = transformers.CLIPVisionConfig(**layers, **images)
    transformers.CLIPVisionModel(clip).save_pretrained(folder / "clip")

    words = _word_tokenizer(folder)
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    texts = {**layers, **without_dropout, "vocab_size": len(words), "intermediate_size": 4 * sizes.width}
    texts |= {"max_position_embeddings": 128, "pad_token_id": words.pad_token_id}
    ends = {"bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id}
    git = transformers.GitConfig(vision_config={**layers, **images}, **texts, **ends)
    transformers.GitForCausalLM(git).save_pretrained(folder / "git")
    words.save_pretrained(folder / "git")
    bert = transformers.BertConfig(**texts)
    transformers.BertForMaskedLM(bert).save_pretrained(folder / "bert-base-uncased")
    words.save_pretrained(folder / "bert-base-uncased")
    # LAVIS adds two tokens to BERT's: where a text begins, and where its encoder's does.
    blip = {**bert.to_dict(), "vocab_size": len(words) + 2, "encoder_width": sizes.width, "add_cross_attention": True}
    (folder / "med.json").write_text(json.dumps({**blip, "add_type_embeddings": False}))


def _word_tokenizer(folder: Path) -> transformers.BertTokenizerFast:
    path = folder / "words.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]) + "\n")
    return transformers.BertTokenizerFast(vocab=str(path))


@contextlib.contextmanager
def working_in(folder: str | Path) -> Iterator[None]:
    """While entered, this is the folder that is worked in: LAVIS asks for BERT by a name without a place."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def small_lavis(sizes: Any) -> Iterator[None]:
    """While entered, the image encoders of LAVIS's BLIP and BLIP-2 are of these sizes, which no setting can say."""
    from lavis.models.eva_vit import VisionTransformer
    from lavis.models.vit import VisionTransformerEncoder

    common = {"patch_size": sizes.patch, "embed_dim": sizes.width, "depth": sizes.layers, "num_heads": sizes.heads}

    def of_blip(cls: Any, cfg: Any, from_pretrained: bool = False) -> nn.Module:
        encoder = cls(img_size=cfg.image_size, drop_path_rate=0, **common)
        encoder.vision_width = sizes.width
        return encoder

    def of_blip2(img_size: int, *_: Any) -> nn.Module:
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        return VisionTransformer(
            img_size=img_size, mlp_ratio=4, qkv_bias=True, use_mean_pooling=False, norm_layer=norm, **common
        )

    with (
        mock.patch.object(VisionTransformerEncoder, "from_config", classmethod(of_blip)),
        mock.patch("lavis.models.blip2_models.blip2.create_eva_vit_g", of_blip2),
    ):
        yield


def build(config: Any, seed: int) -> nn.Module:
    """Make the registered model with random weights, float32, all of which learn.

    The folder of :func:`write_folders` must be the one that is worked in.
    """
    from lavis.common.registry import registry

    torch.manual_seed(seed)
    kind: Any = registry.get_model_class(config.arch)
    model = kind.from_config(config).float()
    return model.requires_grad_(True)
