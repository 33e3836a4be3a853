"""Models as transformers' own class: the same logits and greedy answers, or a reason why not."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling import GitLLM, LoraSettings, build_git_llm, load_folder
from gitllm_plugin.modeling.families import FAMILIES, default_family
from gitllm_plugin.modeling.projection import Projection
from gitllm_plugin.modeling.stock import check_stock, save_stock, stock_inputs
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, sharpen, tiny_image_encoder, tiny_language_model

LEARNED = {name for name, family in FAMILIES.items() if family.positions == "text"}
VARIANTS = [(name, variant) for name, family in FAMILIES.items() for variant in (None, *family.variants)]
READ = {"clip", "siglip", "dinov2", "dinov2_with_registers", "vit"}


def build(language_model="llama", image_encoder="clip", variant=None, **changes):
    """A model without a norm behind its projection."""
    encoder = tiny_image_encoder(image_encoder, final_norm=True)
    model = GitLLM(encoder, tiny_language_model(language_model, variant), projection="linear", **changes)
    return model.eval().requires_grad_(False)


def opened(folder, **kwargs):
    # Not at the top: beside a CPU-only torch it needs torchvision's repair first.
    from transformers import PaliGemmaForConditionalGeneration

    return PaliGemmaForConditionalGeneration.from_pretrained(folder, **kwargs)


def written(model, folder, **kwargs):
    folder.mkdir()
    save_stock(model, folder)
    return opened(folder, **kwargs)


@torch.no_grad()
def both_logits(model, stock, length=40):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, model.language_model.config.vocab_size, (2, length), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    tokens = model.image_encoder.num_tokens(32, 32)
    found = stock(pixel_values=pixels, **stock_inputs(stock, ids, tokens)).logits[:, tokens:]
    return model(ids, None, pixels).logits, found


@torch.no_grad()
def both_answers(model, stock, length=9):
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, model.language_model.config.vocab_size, (3, length), generator=generator)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = model.image_encoder.num_tokens(32, 32)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    found = stock.generate(pixel_values=pixels, **stock_inputs(stock, ids, tokens), **settings)
    return model.generate(ids, None, pixels, **settings), found[:, tokens + length :]


def check_same(model, stock):
    wanted, found = both_logits(model, stock)
    assert float((wanted - found).abs().max()) <= 1e-6 * max(1.0, float(wanted.abs().max()))
    assert torch.equal(*both_answers(model, stock))


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_every_family_is_the_same_or_refused(family, variant, tmp_path):
    model = build(family, variant=variant)
    if family in LEARNED or variant == "alibi":
        # Falcon-RW takes no mask of four axes.
        with pytest.raises(ConfigError, match="learned and belong to text alone|it fails on .* type 'falcon'"):
            save_stock(model, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    check_same(model, written(model, tmp_path / "stock"))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - LEARNED))
def test_it_is_the_same_where_attention_matters(family, tmp_path):
    model = build(family)
    sharpen(model.language_model)
    stock = written(model, tmp_path / "stock")
    wanted, found = both_logits(model, stock)
    assert float((wanted - found).abs().max()) <= 5e-6 * float(wanted.abs().max())
    assert torch.equal(*both_answers(model, stock))
    _, causal = both_logits(model, WithoutTypes(stock))
    assert float((wanted - causal).abs().max()) > 1e-4


class WithoutTypes:
    """The class as it reads a picture causally."""

    def __init__(self, stock):
        self.stock, self.config = stock, stock.config

    def __call__(self, token_type_ids, **inputs):
        return self.stock(**inputs)


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_every_image_encoder_is_the_same_or_refused(kind, tmp_path):
    model = build(image_encoder=kind)
    if kind in READ:
        check_same(model, written(model, tmp_path / "stock"))
        return
    with pytest.raises(ConfigError, match=f"{IMAGE_ENCODERS[kind][0]}|kind '{kind}'"):
        save_stock(model, tmp_path)


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "vit"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_the_final_norm_is_read_written_and_fingerprinted(kind, layer, tmp_path):
    with_norm = build_git_llm(
        "tiny:llama", f"tiny:{kind}", projection="linear", vision_layer=layer, dtype="float32", trainable="proj"
    )[0]
    without = build_git_llm("tiny:llama", f"tiny:{kind}", vision_layer=layer, dtype="float32", trainable="proj")[0]
    pixels = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(with_norm.image_encoder(pixels), without.image_encoder(pixels), atol=1e-2)
    assert with_norm.image_encoder.fingerprint() != without.image_encoder.fingerprint()
    check_same(with_norm.requires_grad_(False), written(with_norm, tmp_path / "stock"))
    with_norm.save_pretrained(tmp_path / "folder")
    loaded = load_folder(tmp_path / "folder", dtype="float32").model
    assert torch.equal(loaded.encode_images(pixels)[0], with_norm.encode_images(pixels)[0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"projection": "linear_norm"}, "projection is linear_norm, .*train with model.projection=linear"),
        ({"projection": "mlp"}, "projection is mlp, .*train with model.projection=linear"),
        ({"projection": "pixel_shuffle"}, "projection is pixel_shuffle"),
        ({"projection": "linear", "max_images": 2}, "up to 2 images.*train with model.max_images=1"),
        ({"projection": "linear_norm", "max_images": 3}, "projection is linear_norm"),
    ],
)
def test_other_models_are_refused(changes, reason):
    model = GitLLM(tiny_image_encoder("clip"), tiny_language_model("qwen2"), **changes)
    with pytest.raises(ConfigError, match=reason):
        check_stock(model)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("phi", "head of a language model of type 'phi' has a bias"),
        ("gptj", "head of a language model of type 'gptj' has a bias"),
        ("granite", "other logits"),
        ("cohere", "other logits"),
    ],
)
def test_heads_that_the_class_does_not_have_are_refused(model_type, reason):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    scaled = {"granite": {"logits_scaling": 3.0}, "gptj": {"rotary_dim": 8}}.get(model_type, {})
    # The padding token of some defaults lies behind so small a vocabulary.
    config = AutoConfig.for_model(
        model_type, **sizes, vocab_size=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, **scaled
    )
    decoder = AutoModelForCausalLM.from_config(config)
    model = GitLLM(tiny_image_encoder("clip"), decoder, family=default_family(config), projection="linear")
    with pytest.raises(ConfigError, match=reason):
        check_stock(model)


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen2", "gemma2"])
def test_a_window_that_no_row_exceeds_changes_nothing(family, tmp_path):
    settings = {"sliding_window": 64, "use_sliding_window": True} if family == "qwen2" else {"sliding_window": 64}
    config = tiny_language_model(family).config
    config = type(config).from_dict({**config.to_dict(), **settings})
    decoder = sharpen(AutoModelForCausalLM.from_config(config))
    model = GitLLM(tiny_image_encoder("clip"), decoder, projection="linear").eval().requires_grad_(False)
    stock = written(model, tmp_path / "stock")
    wanted, found = both_logits(model, stock, length=40)
    assert float((wanted - found).abs().max()) <= 5e-6 * float(wanted.abs().max())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "smollm3"])
def test_lora_is_merged(family, tmp_path):
    model, _ = build_git_llm(
        f"tiny:{family}", "tiny:clip", projection="linear", lora=LoraSettings(dropout=0.0), dtype="float32"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    before, _ = both_logits(model, WithoutTypes(written(build(), tmp_path / "other")))
    stock = written(model, tmp_path / "stock")
    _, found = both_logits(model, stock)
    torch.testing.assert_close(found, before, atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma", "falcon"])
def test_dtypes_are_kept_and_the_file_says_the_language_models(family, tmp_path):
    model, _ = build_git_llm(f"tiny:{family}", "tiny:clip", projection="linear", dtype="bfloat16", trainable="proj")
    stock = written(model, tmp_path / "stock")
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {parameter.dtype for parameter in stock.parameters()} == {torch.bfloat16}
    exact = opened(tmp_path / "stock", dtype=torch.float32)
    # As they were trained, in float32, and not rounded.
    assert torch.equal(exact.model.multi_modal_projector.linear.weight, model.projection.weight)
    model.save_pretrained(tmp_path / "folder")
    check_same(load_folder(tmp_path / "folder", dtype="float32").model, exact)


@pytest.mark.parametrize("family", ["llama", "mpt", "gemma3_text", "stablelm"])
def test_padding_on_the_left_changes_nothing(family, tmp_path):
    model = build(family)
    sharpen(model.language_model)
    stock = written(model, tmp_path / "stock")
    ids, pixels, tokens = (
        torch.tensor([[5, 6, 7, 8]]),
        torch.randn(1, 3, 32, 32),
        model.image_encoder.num_tokens(32, 32),
    )
    inputs = stock_inputs(stock, ids, tokens)
    fill = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 1}
    padded = {name: torch.cat([torch.full((1, 3), fill[name]), values], 1) for name, values in inputs.items()}
    with torch.no_grad():
        alone, beside = (stock(pixel_values=pixels, **each).logits[:, -4:] for each in (inputs, padded))
    torch.testing.assert_close(beside, alone, atol=2e-5, rtol=0)


def test_the_projections_of_both_kinds():
    assert [name for name, _ in Projection(4, 6).named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [name for name, _ in Projection(4, 6, kind="linear").named_parameters()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("said", [None, "linear_norm", "linear", "cubic", 1])
def test_what_a_folder_says_of_its_projection(said, tmp_path):
    model, _ = build_git_llm("tiny:llama", "tiny:clip", dtype="float32", trainable="proj")
    model.save_pretrained(tmp_path / "folder")
    file = tmp_path / "folder" / "git_llm.json"
    description = json.loads(file.read_text())
    assert description.pop("projection") == "linear_norm"
    file.write_text(json.dumps(description if said is None else {**description, "projection": said}))
    if said in (None, "linear_norm"):  # folders of before there was another say nothing
        assert load_folder(tmp_path / "folder", dtype="float32").model.projection.kind == "linear_norm"
        return
    with pytest.raises(ConfigError, match="projection"):
        load_folder(tmp_path / "folder", dtype="float32")
