"""Image encoders, each compared with the model of transformers or timm that it holds."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, tiny_image_encoder
from gitllm_plugin.modeling.vision import TIMM, TOWERS, ImageEncoder, _class_of, _patchify

TRANSFORMERS = [kind for kind in IMAGE_ENCODERS if kind != "timm"]
TOKENS = {"siglip": 16, "siglip2": 16, "dinov2_with_registers": 21, "timm": 1}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain_tower(kind):
    """The tower as transformers makes it, with the weights of :func:`tiny_image_encoder`."""
    model_type, settings = IMAGE_ENCODERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _class_of(model_type)(CONFIG_MAPPING[model_type](**settings)).eval()


@torch.no_grad()
def hidden_states(kind):
    """The output of each layer, caught where it comes out."""
    tower, states = plain_tower(kind), []
    for layer in tower.get_submodule(TOWERS[IMAGE_ENCODERS[kind][0]].layers):
        layer.register_forward_hook(
            lambda module, args, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
    tower(**_patchify(PIXELS, 8)) if kind == "siglip2" else tower(pixel_values=PIXELS)
    return states


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_encoders_give_all_tokens(kind):
    encoder = tiny_image_encoder(kind)
    assert encoder(PIXELS).shape == (2, TOKENS.get(kind, 17), encoder.vision_dim)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_features_are_the_layer_s_output_without_a_final_norm(kind, layer):
    with torch.no_grad():
        features = tiny_image_encoder(kind, layer)(PIXELS)
    torch.testing.assert_close(features, hidden_states(kind)[layer], atol=1e-6, rtol=0)


def test_layers_that_are_not_read_are_not_kept():
    assert len(tiny_image_encoder("clip", -2).tower.encoder.layers) == 1
    for layer in (-3, 0):
        with pytest.raises(ConfigError, match=f"vision_layer is {layer}, but clip_vision_model has 2 layers: -1"):
            tiny_image_encoder("clip", layer)
    with pytest.raises(ConfigError, match="backbones of timm give their last features only"):
        tiny_image_encoder("timm", -2)


def test_a_grid_is_read_row_by_row():
    encoder = tiny_image_encoder("timm")
    pixels = torch.randn(1, 3, 64, 96)
    grid = encoder.tower.timm_model.forward_features(pixels)
    assert grid.shape[-2:] == (2, 3)
    torch.testing.assert_close(encoder(pixels)[0, 4], grid[0, :, 1, 1])


def test_siglip2_patches_are_those_of_its_own_processor():
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24, do_normalize=False)
    theirs = processor(picture, return_tensors="pt")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    ours = _patchify(pixels, 8)
    assert theirs["spatial_shapes"].tolist() == ours["spatial_shapes"].tolist() == [[4, 6]]
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="multiples of its patch size 8"):
        tiny_image_encoder("siglip2")(torch.zeros(1, 3, 30, 32))


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_encoders_load_from_a_folder(kind, tmp_path):
    if kind == "timm":
        tiny_image_encoder(kind).tower.save_pretrained(tmp_path)
    else:
        plain_tower(kind).save_pretrained(tmp_path)
    loaded = ImageEncoder.from_pretrained(str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(PIXELS), tiny_image_encoder(kind)(PIXELS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "git"])
def test_towers_are_found_inside_whole_models(kind, tmp_path):
    import transformers

    vision = {**IMAGE_ENCODERS[kind][1]}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CONFIG_MAPPING[kind](vision_config=vision, **(text if kind == "git" else {"text_config": text}))
    whole = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model", "git": "GitForCausalLM"}[kind]
    model = getattr(transformers, whole)(config).eval()
    model.save_pretrained(tmp_path)
    tower = model.git.image_encoder if kind == "git" else model.vision_model
    encoder = ImageEncoder.from_pretrained(str(tmp_path)).eval()
    wanted, found = tower.state_dict(), encoder.tower.state_dict()
    assert found and all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_an_unknown_kind_is_refused_with_those_that_exist():
    from transformers import BertConfig

    with pytest.raises(ConfigError, match=f"type 'bert' is not supported; supported: clip, .*{TIMM}"):
        ImageEncoder.from_config(BertConfig())


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)  # timm's has BatchNorm, whose counter is a scalar
def test_a_fingerprint_is_of_weights_and_settings_but_not_of_dtype_or_path(kind, tmp_path):
    encoder = tiny_image_encoder(kind)
    found = encoder.fingerprint()
    assert tiny_image_encoder(kind).to(torch.bfloat16).fingerprint() == found
    encoder.tower.save_pretrained(tmp_path)
    assert ImageEncoder.from_pretrained(str(tmp_path), dtype=torch.bfloat16).fingerprint() == found
    with torch.no_grad():
        next(encoder.tower.parameters()).mul_(1.01)
    before, _, after = found.rpartition(", ")
    assert encoder.fingerprint().rpartition(", ")[0] == before and not encoder.fingerprint().endswith(after)


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_a_fingerprint_says_whether_features_passed_a_final_norm(kind):
    without, behind = (tiny_image_encoder(kind, final_norm=norm) for norm in (False, True))
    pixels = torch.randn(1, 3, 32, 32)
    # CLIP's tower and timm's backbones have no norm that could be left out.
    assert torch.equal(without(pixels), behind(pixels)) == (kind in ("clip", "timm"))
    assert (without.fingerprint() == behind.fingerprint()) == (kind in ("clip", "timm"))
    assert ("behind its final norm" in behind.fingerprint()) == (kind not in ("clip", "timm"))


def test_a_fingerprint_is_of_the_activation_too():
    encoder = tiny_image_encoder("clip")
    found = encoder.fingerprint()
    encoder.tower.config.hidden_act = "gelu"
    assert encoder.fingerprint().split(", ")[::3] == found.split(", ")[::3] and encoder.fingerprint() != found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "siglip2"])
@pytest.mark.parametrize("size", [(16, 16), (48, 48), (40, 24)])
def test_encoders_that_fit_their_positions_take_any_whole_number_of_patches(kind, size, dtype):
    encoder = tiny_image_encoder(kind).to(dtype)
    rows, columns = size[0] // 8, size[1] // 8
    extra = {"dinov2": 1, "dinov2_with_registers": 5, "siglip2": 0}[kind]
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert encoder(pixels).shape == (2, extra + rows * columns, encoder.vision_dim)
    assert encoder.num_tokens(*size) == extra + rows * columns
    assert encoder.grid_shape(*size) == (rows, columns)
    encoder.check_size(*size)


def test_a_smaller_size_gives_dinov2_what_transformers_gives():
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    states = []
    tower = plain_tower("dinov2")
    tower.encoder.layer[-1].register_forward_hook(lambda module, args, output: states.append(output))
    with torch.no_grad():
        tower(pixel_values=pixels)
        torch.testing.assert_close(tiny_image_encoder("dinov2")(pixels), states[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "kind, size, said",
    [
        ("clip", (16, 16), "images of 16x16 pixels, but clip_vision_model takes 32x32: set image_size: 32"),
        ("siglip", (64, 64), "images of 64x64 pixels, but siglip_vision_model takes 32x32"),
        ("vit", (32, 40), "images of 32x40 pixels, but vit takes 32x32"),
        ("git", (31, 32), "images of 31x32 pixels, but git_vision_model takes 32x32"),
        ("dinov2", (30, 32), "images of 30x32 pixels, but dinov2 takes multiples of its patch size 8"),
        ("siglip2", (4, 8), "images of 4x8 pixels, but siglip2_vision_model takes multiples of its patch size 8"),
    ],
)
def test_sizes_that_an_encoder_does_not_take(kind, size, said):
    encoder = tiny_image_encoder(kind)
    for ask in (encoder.check_size, encoder.num_tokens, lambda *size: encoder(torch.zeros(1, 3, *size))):
        with pytest.raises(ConfigError, match=said):
            ask(*size)


@pytest.mark.parametrize("error", [AssertionError("Input height (33) doesn't match"), RuntimeError("too small")])
def test_what_timm_says_of_a_size_names_both(error, monkeypatch):
    encoder = tiny_image_encoder("timm")

    def fail(pixels):
        raise error

    monkeypatch.setattr(encoder.tower.timm_model, "forward_features", fail)
    with pytest.raises(ConfigError, match=f"images of 33x33 pixels, but test_efficientnet .*{error.args[0][:9]}"):
        encoder.check_size(33, 33)


def test_counting_tokens_leaves_no_trace_in_a_backbone_that_is_trained():
    encoder = tiny_image_encoder("timm").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = [module.training for module in encoder.tower.modules()]
    assert encoder.num_tokens(64, 64) == 4
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert any(modes) and modes == [module.training for module in encoder.tower.modules()]
