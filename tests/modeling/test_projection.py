"""The ways from image features to the language model's width, each for every kind of image encoder and family."""

from typing import get_args

import pytest
import torch
from torch import nn

from gitllm_plugin.config.model import MERGING, ProjectionKind
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import launch
from gitllm_plugin.modeling import GitLLM
from gitllm_plugin.modeling.build import BuildSettings, build_git_llm, load_folder
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.projection import KINDS, Projection
from gitllm_plugin.modeling.self_test import examine
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, tiny_image_encoder, tiny_language_model
from tests.small_run import write_small_run

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MERGED = sorted(MERGING)
TIMM_SIZE = 64
"""At which a convolutional backbone of timm gives 2x2 features."""


def make(kind: str, encoder: str = "clip", family: str = "llama", **settings) -> GitLLM:
    torch.manual_seed(0)
    encoder = tiny_image_encoder(encoder, final_norm=not KINDS[kind].has_norm).requires_grad_(False)
    return GitLLM(encoder, tiny_language_model(family), projection=kind, **settings).eval()


def by_hand(projection: Projection, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """One image's tokens, each from its patches one after another."""
    linear, *others = projection
    if projection.kind in MERGED:
        patches, factor, tokens = features[-rows * columns :], projection.factor, []
        for top in range(0, rows, factor):
            for left in range(0, columns, factor):
                square = [patches[(top + y) * columns + left + x] for y in range(factor) for x in range(factor)]
                tokens.append(torch.cat(square) if projection.kind == "pixel_shuffle" else sum(square) / len(square))
        features = torch.stack(tokens)
    hidden = features @ linear.weight.T + linear.bias
    for module in others:
        if isinstance(module, nn.LayerNorm):
            hidden = (hidden - hidden.mean(-1, keepdim=True)) / (
                hidden.var(-1, False, keepdim=True) + module.eps
            ).sqrt()
            hidden = hidden * module.weight + module.bias
        elif isinstance(module, nn.Linear):
            hidden = hidden @ module.weight.T + module.bias
        else:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return hidden


def test_every_kind_is_told_of():
    assert set(KINDS) == set(get_args(ProjectionKind))
    assert {kind for kind, facts in KINDS.items() if facts.merge is not None} == set(MERGING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns", "factor"), [(4, 4, 2), (6, 4, 2), (3, 6, 3), (4, 4, 4)])
def test_tokens_are_those_made_by_hand(kind, rows, columns, factor):
    projection = Projection(5, 7, kind=kind, factor=factor).double()
    nn.init.normal_(projection[-1].bias)
    features = torch.randn(2, 3, rows * columns + 1, 5, dtype=torch.float64)
    found = projection(features, (rows, columns))
    wanted = [[by_hand(projection, image, rows, columns) for image in images] for images in features]
    assert torch.allclose(found, torch.stack([torch.stack(images) for images in wanted]), atol=1e-12)
    assert found.shape[2] == projection.num_tokens(features.shape[2], (rows, columns))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_keeps_its_promises_behind_every_kind(kind, family):
    assert not examine(make(kind, family=family)).faults


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_encoder_is_read_by_every_kind(kind, encoder, dtype):
    model = make(kind, encoder)
    model.image_encoder.to(dtype)
    size = TIMM_SIZE if encoder == "timm" else 32
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        embeds, valid = model.encode_images(pixels)
        features = model.image_encoder(pixels)
        given, _ = model.encode_images(features[:, None])
    assert embeds.shape == (2, model.num_image_tokens(size, size), model.language_model.config.hidden_size)
    assert valid.all() and torch.equal(given, embeds)
    assert embeds.dtype == torch.float32
    rows, columns = model.grid_shape(size, size)
    assert embeds.shape[1] == rows * columns if kind in MERGED else embeds.shape[1] == features.shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_keeps_it(kind, tmp_path):
    settings = BuildSettings(projection=kind, projection_factor=4, max_images=2, dtype="float32", trainable="proj")
    model, tokenizer = build_git_llm("tiny:llama", "tiny:siglip", settings)
    model.save_pretrained(tmp_path / "folder", tokenizer=tokenizer)
    loaded = load_folder(tmp_path / "folder", dtype="float32").model
    assert (loaded.projection.kind, loaded.projection.factor) == (kind, 4 if kind in MERGED else 1)
    videos = PIXELS[None]
    with torch.no_grad():
        assert torch.equal(loaded.encode_images(videos)[0], model.encode_images(videos)[0])


@pytest.mark.parametrize("kind", MERGED)
@pytest.mark.parametrize("factor", [3, 5, 8])
def test_patches_that_make_no_whole_tokens_are_refused(kind, factor):
    model = make(kind, projection_factor=factor)
    with pytest.raises(ConfigError, match=f"{factor}x{factor} patches, and an image has 4x4: .* to one of 2, 4"):
        model.check_size(32, 32)
    with pytest.raises(ConfigError, match="4x4"):
        model.encode_images(PIXELS)


@pytest.mark.parametrize("kind", MERGED)
@pytest.mark.parametrize("tokens", [6, 12, 18])
def test_features_of_images_that_are_not_square_are_refused_where_patches_merge(kind, tokens):
    model = make(kind, "siglip")
    features = torch.randn(1, 1, tokens, model.image_encoder.vision_dim)
    with pytest.raises(ConfigError, match=f"features of {tokens} tokens are not those of a square image"):
        model.encode_images(features)
    assert make("linear", "siglip").encode_images(features)[0].shape[1] == tokens


@pytest.mark.parametrize("encoder", ["siglip", "dinov2_with_registers", "timm"])
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_it(kind, encoder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export = pytest.importorskip("gitllm_plugin.llama_cpp.export")
    model, size = make(kind, encoder), TIMM_SIZE if encoder == "timm" else 32
    with torch.no_grad():
        export.write_encoder(model, size, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, {"pixels": torch.randn(1, 3, size, size).numpy()})
    assert vectors.shape[-2] == model.num_image_tokens(size, size)


@pytest.mark.parametrize("kind", ["mlp", "pixel_shuffle", "pool"])
def test_it_is_trained_and_gone_on_with(kind, tmp_path):
    node = {"model_type": "tiny_opt", "projection": kind}
    config, auto = write_small_run(tmp_path, node, lr_sched="constant"), ["run.resume_ckpt_path=auto"]
    launch.train(config, [*auto, "run.max_epoch=1"])
    resumed = launch.train(config, auto)
    whole = launch.train(config, [f"run.output_dir={tmp_path / 'whole'}"])
    for name, value in whole.model.trainable_state_dict().items():
        assert torch.equal(value, resumed.model.trainable_state_dict()[name]), name
