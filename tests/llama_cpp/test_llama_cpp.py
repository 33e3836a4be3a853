"""Models in llama.cpp compute what torch computes, or are refused with the reason."""

# ruff: noqa: E402

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

for package in ("gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
    pytest.importorskip(package, reason="pip install 'gitllm-plugin[llama-cpp]'")

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.inference.asking import Decoding, Question
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.llama_cpp import folder as of_folder
from gitllm_plugin.llama_cpp.decoder import LlamaCpp
from gitllm_plugin.llama_cpp.engine import Engine
from gitllm_plugin.llama_cpp.export import (
    check_family,
    choose_tokenizer,
    describe_prompts,
    write_gguf,
    write_llama_folder,
)
from gitllm_plugin.llama_cpp.weights import ARCHITECTURES, REFUSED, check_known
from gitllm_plugin.modeling import Decoder, TextEncoder
from gitllm_plugin.modeling.families import FAMILIES
from gitllm_plugin.modeling.tiny import sharpen, tiny_language_model
from gitllm_plugin.processors.image_transform import ImageTransform
from tests.modeling.tokenizers_of_all_kinds import KINDS, make_tokenizer
from tests.tiny_folder import write_tiny_folder

KNOWN = [
    (kind, variant)
    for kind in ARCHITECTURES
    if kind != "smollm3"  # its tiny form leaves positions out in other layers than llama.cpp does
    for variant in (None, *FAMILIES[kind].variants)
]
QUESTIONS = ("what color is the shape?", "", "is there a red circle? </s> <s>")


def in_llama_cpp(model, folder, quantize=None):
    path = folder / "model.gguf"
    write_gguf(model, path, lambda writer, size: writer.add_tokenizer_model("none"), quantize)
    return LlamaCpp(path, 128, exact=quantize is None)


def picture(color, size=(40, 30)):
    return Image.new("RGB", size, color)


@pytest.mark.parametrize(("kind", "variant"), KNOWN)
def test_logits_are_torchs(kind, variant, tmp_path):
    model = sharpen(tiny_language_model(kind, variant)).float()
    vectors, ids = torch.randn(1, 12, model.config.hidden_size), torch.randint(5, 300, (1, 60))
    with torch.no_grad():
        ours = Decoder(model, FAMILIES[kind]).forward(vectors, torch.ones(1, 12).bool(), ids).logits[0].numpy()
    theirs = in_llama_cpp(model, tmp_path)
    for _ in range(2):  # and again behind the image that is there
        theirs.see(vectors[0].numpy())
        assert np.abs(theirs.read(ids[0].tolist(), every=True) - ours).max() < 1e-4
        theirs.forget_text()
        assert np.abs(theirs.read(ids[0, :5].tolist()) - ours[4]).max() < 1e-4
        assert np.abs(theirs.read(ids[0, 5:6].tolist()) - ours[5]).max() < 1e-4


@pytest.mark.parametrize("kind", ["smollm3"])
def test_smollm3_with_its_usual_layers(kind, tmp_path):
    config = AutoConfig.for_model(
        kind,
        **{**FAMILIES[kind].tiny_config, "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4},
        vocab_size=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    check_known(config)
    model = sharpen(type(tiny_language_model(kind))(config).eval())
    vectors, ids = torch.randn(1, 12, 64), torch.randint(5, 128, (1, 60))
    with torch.no_grad():
        ours = Decoder(model, FAMILIES[kind]).forward(vectors, torch.ones(1, 12).bool(), ids).logits[0].numpy()
    theirs = in_llama_cpp(model, tmp_path)
    theirs.see(vectors[0].numpy())
    assert np.abs(theirs.read(ids[0].tolist(), every=True) - ours).max() < 1e-4


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_is_known_or_refused_by_name(kind):
    config = tiny_language_model(kind).config
    if (kind, None) in KNOWN:
        check_known(config)
        check_family(config, FAMILIES[kind])
        return
    with pytest.raises(ConfigError, match=REFUSED.get(kind, "no_rope_layers").partition("'")[0]):
        check_known(config)


@pytest.mark.parametrize("quantize", ["q8_0", "q4_k_m"])
def test_fewer_bits_are_near(quantize, tmp_path):
    model = sharpen(tiny_language_model("llama")).float()
    vectors, ids = torch.randn(1, 12, 64), torch.randint(5, 300, (1, 30))
    with torch.no_grad():
        ours = Decoder(model, FAMILIES["llama"]).forward(vectors, torch.ones(1, 12).bool(), ids).logits[0].numpy()
    theirs = in_llama_cpp(model, tmp_path, quantize)
    theirs.see(vectors[0].numpy())
    assert 1e-4 < np.abs(theirs.read(ids[0].tolist(), every=True) - ours).mean() < 0.2 * ours.std()


def test_answers_and_tokens_are_torchs(exported):
    pipeline, folder = exported
    engine = Engine(folder, threads=1)
    decoding = Decoding(max_new_tokens=8)
    for question in QUESTIONS:
        ids = pipeline.text_encoder.prompts([pipeline.prompt(question)]).input_ids[0].tolist()
        assert engine.prompt_ids(question) == ids
        for color in ("red", "green", "blue"):
            given = (picture(color), question, None, decoding)
            assert engine.answer(*given) == pipeline.answer(*given)
            *_, last = ["", *engine.stream(*given)]
            assert last == pipeline.answer(*given)
    asked = [Question((picture("red"),), question) for question in QUESTIONS]
    assert engine.answers(asked, decoding) == pipeline.answers(asked, decoding)


def test_the_commands_open_the_folder(exported, tmp_path, capsys):
    pipeline, folder = exported
    picture("red").save(tmp_path / "red.png")
    # Of a random model many tokens are about as likely.
    short = ["--max-new-tokens", "5"]
    assert main(["ask", str(tmp_path / "red.png"), "what is it?", "--model", str(folder), *short]) == 0
    expected = pipeline.answer(tmp_path / "red.png", "what is it?", decoding=Decoding(max_new_tokens=5))
    assert capsys.readouterr().out.strip() == expected
    assert main(["caption", str(tmp_path), "--model", str(folder), "--out", str(tmp_path / "out.jsonl"), *short]) == 0
    expected = pipeline.answer(tmp_path / "red.png", decoding=Decoding(max_new_tokens=5))
    assert expected in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 32},
        {"image_size": 24, "resize": "shortest_edge", "shortest_edge": 29},
        {"image_size": 25, "resize": "shortest_edge", "round_centre": True, "resampling": "bilinear"},
        {"image_size": 31, "resampling": "lanczos"},
    ],
)
@pytest.mark.parametrize("size", [(40, 30), (17, 90), (64, 64)])
def test_pixels_are_within_a_grey_level(settings, size):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(pixels).resize((size[1] // 4, size[0] // 4)).resize((size[1], size[0])))
    transform = ImageTransform(mean=(0.5,) * 3, std=(0.25,) * 3, **settings)
    squash = transform.resize == "squash"
    edge = None if squash else transform.shortest_edge or transform.image_size
    rest = (transform.resampling, transform.round_centre, [0.5] * 3, [0.25] * 3)
    found = of_folder.fit(smooth, transform.image_size, edge, *rest)
    assert np.abs(found - transform(smooth).numpy()).max() * 0.25 * 255 < 1.01


@pytest.mark.parametrize("name", KINDS)
def test_a_tokenizer_has_the_same_ids_or_is_refused(name):
    tokenizer = make_tokenizer(name)
    model = tiny_language_model("llama")
    model.config.vocab_size = len(tokenizer)
    encoder = TextEncoder(tokenizer)
    try:
        prompt = {"template": "plain", "instruction": None, **describe_prompts(encoder)}
        choose_tokenizer(model, encoder, prompt)
    except ConfigError as error:
        assert "llama.cpp" in str(error) or "GGUF" in str(error)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"decoding": Decoding(num_beams=2)}, "greedily"),
        ({"decoding": Decoding(temperature=0.5)}, "greedily"),
        ({"question": "why? " * 3000}, "ask shorter"),
        ({"pictures": [picture("red")] * 2}, "2 pictures; this model takes 1"),
    ],
)
def test_what_it_cannot_do_is_told(exported, wrong, told):
    given = {"pictures": picture("red"), "question": "what?", **wrong}
    with pytest.raises((ConfigError, DataError), match=told):
        Engine(exported[1], threads=1).answer(**given)


def test_the_engine_loads_neither_torch_nor_transformers(exported):
    import subprocess

    program = (
        "import sys\nfor name in ('torch', 'transformers', 'lavis'): sys.modules[name] = None\n"
        "from PIL import Image\nfrom gitllm_plugin.llama_cpp.engine import Engine\n"
        "print(Engine(sys.argv[1], 1).answer(Image.new('RGB', (40, 30), 'red'), 'what?'))"
    )
    found = subprocess.run([sys.executable, "-c", program, str(exported[1])], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == exported[0].answer(picture("red"), "what?")


def test_refused_before_anything_is_written(tmp_path):
    write_tiny_folder(tmp_path / "model", "tiny:gpt_neox")
    pipeline = Pipeline.from_pretrained(tmp_path / "model", "float32", "cpu")
    with pytest.raises(ConfigError, match="GELU"):
        write_llama_folder(pipeline, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()
