"""Models' folders whose configurations have sizes that cannot be: one error that names the folder, in little memory."""

import json
import math
import resource
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.modeling.pretrained import load_config, load_model
from gitllm_plugin.modeling.sizes import check_numbers
from gitllm_plugin.modeling.tiny import tiny_image_encoder, tiny_language_model
from gitllm_plugin.modeling.vision import ImageEncoder

SIZES = (  # as families call them
    *("hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "max_position_embeddings", "num_labels"),
    *("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads"),
    *("image_size", "patch_size", "num_channels"),
)
VALUES = {
    "a thousand millions": 10**9,
    "a million": 10**6,
    "2^40": 2**40,
    "10^30": 10**30,
    "below zero": -8,
    "zero": 0,
    "a text": "wide",
    "not a number": math.nan,
    "infinite": math.inf,
    "a list": [8, 8],
}
MORE_MEMORY = 2**30


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of model, made when it is asked for."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind
            part = tiny_image_encoder(kind).tower if kind in ENCODERS else tiny_language_model(kind)
            part.save_pretrained(made[kind])
        return made[kind]

    return folder


ENCODERS = ("clip", "siglip", "dinov2", "vit")
DECODERS = ("opt", "llama", "gpt_neox", "mpt", "gpt2")
FAST = ("clip", "dinov2", "llama", "gpt2")


@pytest.fixture
def little_memory():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MORE_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def load(kind: str, folder: Path) -> None:
    if kind in ENCODERS:
        ImageEncoder.from_pretrained(str(folder))
    else:
        load_config(str(folder), "language model")
        load_model(str(folder), "language model", AutoModelForCausalLM)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow]) for kind in (*ENCODERS, *DECODERS)],
)
def test_a_size_that_cannot_be(kind, value, folders, tmp_path, little_memory):
    whole = folders(kind)
    config = json.loads((whole / "config.json").read_text())
    shutil.copytree(whole, tmp_path / "model")
    for name in [name for name in SIZES if name in config]:
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {name: VALUES[value]}))
        try:
            load(kind, tmp_path / "model")
        except ConfigError as error:
            assert str(tmp_path / "model") in str(error) or "has 0 layers" in str(error)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_whole_one_is_loaded(kind, folders):
    load(kind, folders(kind))


@pytest.mark.parametrize(
    "content", [{"hidden_size": 10**400}, {"n_layers": -(10**309)}, {"text": {"depths": [2, 7**900]}}]
)
def test_a_number_larger_than_any_float_is_told_too(content):
    with pytest.raises(ConfigError, match="a number of hundreds of digits"):
        check_numbers(content, "config.json", 10)
