"""Products with frozen weights by oneDNN: torch's numbers, and torch's own path wherever something is different."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from gitllm_plugin.common import device
from gitllm_plugin.config.model import LoraSettings
from gitllm_plugin.modeling import frozen_linear
from gitllm_plugin.modeling.frozen_linear import FrozenLinear, use_fast_products
from gitllm_plugin.modeling.lora import inject_lora, lora_merged, merge_lora
from gitllm_plugin.modeling.model import GitLLM
from gitllm_plugin.modeling.tiny import tiny_image_encoder
from tests.modeling.batches import pixels

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """A processor on which MKL is slow, and what is multiplied by oneDNN there."""
    made, multiply = [], frozen_linear._multiply
    monkeypatch.setattr(frozen_linear, "has_slow_mkl", lambda: True)
    monkeypatch.setattr(frozen_linear, "_multiply", lambda *given: made.append(given[0].shape) or multiply(*given))
    return made


def layer(inputs=256, outputs=320, bias=True, frozen=True):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(inputs, outputs, bias=bias)).requires_grad_(not frozen)
    use_fast_products(made)
    return made


def states(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


INPUTS = {
    "rows": lambda: states(40, 256),
    "a batch": lambda: states(3, 17, 256),
    "a slice of rows": lambda: states(2, 50, 256)[:, 5:],
    "a transposed view": lambda: states(256, 64).t(),
    "every second column": lambda: states(33, 512)[:, ::2],
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", INPUTS)
def test_results_and_gradients_are_those_of_float64(calls, given, bias):
    module, inputs = layer(bias=bias), INPUTS[given]().requires_grad_()
    out = module(inputs)
    direction = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, inputs, direction)
    weight = module[0].weight.double()
    exact = inputs.detach().double() @ weight.t() + (module[0].bias.double() if bias else 0)
    torch.testing.assert_close(out.double(), exact, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(gradient.double(), direction.double() @ weight, atol=2e-6, rtol=2e-6)
    assert len(calls) == 2


def test_a_gradient_of_one_number_for_all_is_taken(calls):
    module, inputs = layer(), states(40, 256).requires_grad_()
    module(inputs).sum().backward()  # an expanded scalar
    torch.testing.assert_close(inputs.grad, module[0].weight.sum(0).expand(40, -1), atol=1e-5, rtol=1e-5)


LEFT_TO_TORCH = {
    "few rows": (lambda: layer(), lambda: states(31, 256)),
    "few weights": (lambda: layer(64, 64), lambda: states(400, 64)),
    "a trained weight": (lambda: layer(frozen=False), lambda: states(40, 256)),
    "bfloat16": (lambda: layer().bfloat16(), lambda: states(40, 256, dtype=torch.bfloat16)),
    "float64": (lambda: layer().double(), lambda: states(40, 256, dtype=torch.float64)),
}


@pytest.mark.parametrize("case", LEFT_TO_TORCH)
def test_what_oneDNN_does_not_do_faster_or_at_all_is_left_to_torch(calls, case):
    module, inputs = (make() for make in LEFT_TO_TORCH[case])
    assert torch.equal(module(inputs), F.linear(inputs, module[0].weight, module[0].bias))
    assert calls == []


def test_a_trained_bias_keeps_its_gradient(calls):
    module = layer()
    module[0].bias.requires_grad_()
    module(states(40, 256)).sum().backward()
    assert torch.equal(module[0].bias.grad, torch.full((320,), 40.0)) and calls == []


def test_what_is_trained_is_multiplied_faster_where_nothing_is_kept(calls):
    module = layer(frozen=False)
    with torch.no_grad():
        module(states(40, 256))
    assert len(calls) == 1


def test_autocast_torchs_switch_and_the_compiler_are_obeyed(calls):
    module, inputs = layer(), states(40, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(inputs).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        module(inputs)
    torch.compile(module, backend="eager", fullgraph=True)(inputs)
    with torch.device("meta"):
        assert layer()(torch.empty(40, 256, device="meta")).shape == (40, 320)
    assert calls == []
    torch._dynamo.reset()


def test_layers_stay_linear_layers_with_the_same_weights(calls):
    module = layer()
    use_fast_products(module)
    assert type(module[0]) is FrozenLinear and isinstance(module[0], nn.Linear)
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
    inputs = states(40, 256)
    other = copy.deepcopy(module)
    assert torch.equal(other(inputs), module(inputs))
    with torch.no_grad():
        other[0].weight.zero_()
    assert len(calls) == 2 and module[0].weight.abs().sum() > 0


def test_nothing_is_changed_where_mkl_is_fast_or_layers_are_others(monkeypatch):
    class Own(nn.Linear):
        pass

    module = nn.Sequential(Own(4, 4), nn.Conv2d(1, 1, 1))
    use_fast_products(module)
    assert type(module[0]) is Own
    monkeypatch.setattr(frozen_linear, "has_slow_mkl", lambda: False)
    assert type(layer()[0]) is nn.Linear


@pytest.mark.parametrize(
    ("name", "capability", "slow"),
    [
        ("AMD EPYC 9654 96-Core Processor", "AVX512", True),
        ("AMD Ryzen 9 7950X", "AVX512", True),
        ("AMD EPYC 7742", "AVX2", False),
        ("Intel(R) Xeon(R) Platinum 8488C", "AVX512", False),
        ("Intel(R) Core(TM) i7", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_mkl_is_slow_on_other_makers_processors_with_wide_instructions(monkeypatch, name, capability, slow):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {} if name is None else {"cpu_name": name}, raising=False
    )
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert device.has_slow_mkl.__wrapped__() == slow
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not device.has_slow_mkl.__wrapped__()


def wide_model(family, checkpointed=False):
    """A decoder whose layers are large enough, with LoRA."""
    sizes = {"vocab_size": 300, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= (
        {"ffn_dim": 512, "word_embed_proj_dim": 256, "dropout": 0.0} if family == "opt" else {"intermediate_size": 512}
    )
    torch.manual_seed(4)
    model = GitLLM(tiny_image_encoder("clip"), AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)))
    model.requires_grad_(False)
    model.projection.requires_grad_()
    torch.manual_seed(2)
    inject_lora(model.language_model, LoraSettings(rank=4, dropout=0.0), ("q_proj", "v_proj"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    if checkpointed:
        model.language_model.gradient_checkpointing_enable()
    return model.train()


@pytest.mark.parametrize(("family", "checkpointed"), [("opt", False), ("llama", False), ("llama", True)])
def test_a_model_learns_the_same_with_lora_and_checkpointing(calls, family, checkpointed):
    model = wide_model(family, checkpointed)
    ids = torch.randint(4, 200, (3, 24), generator=torch.Generator().manual_seed(3))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "pixel_values": pixels(3)}

    def loss_and_gradients():
        model.zero_grad()
        loss = model(**given).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, gradients = loss_and_gradients()
    assert len(calls) > 8
    calls.clear()
    with torch.backends.mkldnn.flags(enabled=False):
        expected, expected_gradients = loss_and_gradients()
    assert calls == [] and gradients.keys() == expected_gradients.keys()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_merged_lora_is_multiplied_faster_too_and_comes_out_again(calls):
    model = wide_model("llama").eval()
    ids = torch.randint(4, 200, (2, 30), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        beside = model(ids, None, pixels(2)).logits
        with lora_merged(model.language_model):
            merged = model(ids, None, pixels(2)).logits
        calls.clear()
        merge_lora(model.language_model)
        out = model(ids, None, pixels(2)).logits
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)
    assert torch.equal(out, merged) and calls
    assert not any("lora" in name for name, _ in model.named_parameters())
