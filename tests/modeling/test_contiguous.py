"""No linear layer, of any family or encoder, is handed a slice where torch would multiply it row by row."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

from gitllm_plugin.modeling import GitLLM, LoraSettings
from gitllm_plugin.modeling.contiguous import give_contiguous_input
from gitllm_plugin.modeling.git import Git
from gitllm_plugin.modeling.lora import inject_lora, lora_merged, merge_lora
from gitllm_plugin.modeling.tiny import IMAGE_ENCODERS, tiny_image_encoder, tiny_language_model
from tests.modeling.batches import MEMBERS, pixels

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9], [6, 7, 8, 9], [9, 8, 7, 6]])
SHARED = torch.tensor([0, 0, 1, 1])
GENERATION = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


class LinearInputs(TorchFunctionMode):
    """Notes every product of a parameter of ``model``: its name, and whether the other factor is contiguous."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
        self.seen: list[tuple[str, bool]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.nn.functional.linear, torch.addmm, torch.matmul):
            states = args[1] if function is torch.addmm else args[0]
            names = [self.names[id(value)] for value in args if id(value) in self.names]
            self.seen += [(name, states.is_contiguous()) for name in names]
        return function(*args, **(kwargs or {}))

    @property
    def sliced(self) -> set[str]:
        return {name for name, is_contiguous in self.seen if not is_contiguous}


def use(model: nn.Module, images: torch.Tensor, image_index: torch.Tensor | None) -> LinearInputs:
    """Everything that a model is asked for, with weights that are frozen."""
    given = {"pixel_values": images, "image_index": image_index}
    labels = IDS.clone()
    labels[:, :2] = -100
    with LinearInputs(model) as inputs:
        model(IDS, **given)
        model(IDS, labels=labels, logits="none", **given)
        with torch.no_grad():
            model(IDS, **given)
        model.generate(IDS, **given, **GENERATION)
        model.generate(IDS, **given, num_beams=2, **GENERATION)
        model.score_candidates(IDS, **given, candidates=[[[5, 6, 2], [7, 2], [4]]] * len(IDS))
    assert len({name for name, _ in inputs.seen}) > 5
    return inputs


def frozen_model(family="llama", variant=None, encoder="clip") -> GitLLM:
    return GitLLM(tiny_image_encoder(encoder), tiny_language_model(family, variant)).eval().requires_grad_(False)


def images_for(image_index):
    return pixels(len(IDS) if image_index is None else 2)


@pytest.mark.parametrize("image_index", [None, SHARED], ids=["apart", "shared"])
@pytest.mark.parametrize(("family", "variant"), MEMBERS)
def test_every_family(family, variant, image_index):
    inputs = use(frozen_model(family, variant), images_for(image_index), image_index)
    assert inputs.sliced == set()
    head = {name for name, _ in inputs.seen if name.startswith("language_model.") and "head" in name}
    assert head, "the head was not watched"


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_every_image_encoder(kind):
    inputs = use(frozen_model(encoder=kind), images_for(SHARED), SHARED)
    assert inputs.sliced == set()
    assert any(name.startswith("projection.") for name, _ in inputs.seen)


def test_an_earlier_layer_of_the_encoder():
    model = GitLLM(tiny_image_encoder("vit", layer=-2), tiny_language_model("llama")).eval().requires_grad_(False)
    assert use(model, images_for(None), None).sliced == set()


@pytest.mark.parametrize("image_index", [None, SHARED], ids=["apart", "shared"])
@pytest.mark.parametrize("frames", [None, 2])
def test_plain_git(frames, image_index):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.GitConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        **sizes,
        vocab_size=40,
        num_image_with_embedding=frames,
        pad_token_id=0,
    )
    model = Git(transformers.GitForCausalLM(config)).eval().requires_grad_(False)
    images = pixels(len(IDS) if image_index is None else 2, frames)
    assert use(model, images, image_index).sliced == set()


def adapted() -> GitLLM:
    model = frozen_model()
    inject_lora(model.language_model, LoraSettings(targets=("all-linear",)), ())
    return model.eval().requires_grad_(False)


def merged() -> GitLLM:
    model = adapted()
    merge_lora(model.language_model)
    return model


WAYS = {
    "deep copy": lambda: copy.deepcopy(frozen_model()),
    "pickled": lambda: pickle.loads(pickle.dumps(frozen_model())),
    "LoRA in it": adapted,
    "LoRA merged": merged,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_becomes_of_a_model(way):
    model = WAYS[way]()
    with lora_merged(model.language_model):
        assert use(model, images_for(SHARED), SHARED).sliced == set()


def test_what_the_compiler_sees():
    layer = nn.Linear(8, 16).requires_grad_(False)
    give_contiguous_input(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    states = torch.randn(2, 5, 8)[:, -1:]
    torch.testing.assert_close(compiled(states), nn.functional.linear(states.contiguous(), layer.weight, layer.bias))


def test_training_computes_what_it_did():
    """The input of a weight that is trained stays as it is: torch copies it, and another way rounds differently."""
    layer = nn.Linear(8, 16)
    given = []
    give_contiguous_input(layer)
    layer.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    states = torch.randn(2, 5, 8)[:, -1:]
    layer(states)
    with torch.no_grad():
        layer(states)
    assert given[0] is states and given[1].is_contiguous() and torch.equal(given[1], states)
