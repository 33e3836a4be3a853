"""What is computed depends on shapes and not on values: it is exported, compiled and allocated as one graph."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gitllm_plugin.modeling.attention import PrefixRule
from gitllm_plugin.modeling.layout import Layout
from gitllm_plugin.modeling.loss import Targets, mean_loss, targets_of
from gitllm_plugin.modeling.projection import Projection
from gitllm_plugin.modeling.stream import Group, Stream
from tests.modeling.batches import FAMILY_NAMES, TEXTS, pixels, tiny_model

for _kind in (Layout, Targets, PrefixRule, Stream, Group):
    torch.export.register_dataclass(_kind, serialized_type_name=f"gitllm_plugin.{_kind.__name__}")

FEW = ["opt", "llama", "mpt"]
BY_VALUES = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "repeat_interleave.Tensor", "bincount")
INDEX = torch.tensor([1, 0, 1, 1])


class Step(nn.Module):
    """Pixels, ids and who stands where, to a loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, input_ids, layout, targets):
        embeds, _ = self.model.encode_images(images)
        return self.model.decoder.score(embeds, input_ids, layout, targets, logits="none").loss


def inputs_of(model, text_encoder, numbers=(0, 1, 2, 1), seed=0):
    """What a step is given; other seeds give other values, of the same lengths."""
    text = text_encoder.prompts_and_answers([TEXTS[n][0] for n in numbers], [TEXTS[n][1] for n in numbers])
    layout = model.decoder.lay_out(torch.ones(2, 17, dtype=torch.bool), text.attention_mask, INDEX)
    targets = targets_of(text.labels, torch.tensor([1.0, 0.5, 2.0, 1.0]), layout)
    ids, images = text.input_ids, pixels(2)
    if seed:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, 100, ids.shape, generator=generator)
        images = torch.randn(images.shape, generator=generator)
        changes = {
            "tokens": (targets.tokens + seed) % 100,
            "weights": targets.weights + 1,
            "divisor": targets.divisor + 2,
        }
        targets = replace(targets, **changes)
    return images, ids, layout, targets


def check_export(family):
    model, text_encoder = tiny_model(family)
    step = Step(model.train())
    exported = torch.export.export(step, inputs_of(model, text_encoder))
    operations = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert operations and not [name for name in operations if any(part in name for part in BY_VALUES)]
    for seed in (0, 7):
        given = inputs_of(model, text_encoder, seed=seed)
        torch.testing.assert_close(exported.module()(*given), step(*given), atol=1e-6, rtol=1e-6)
    exported.module()(*given).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FEW)
def test_a_training_step_is_exported_whole(family):
    check_export(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name not in FEW])
def test_a_training_step_of_every_family_is_exported_whole(family):
    check_export(family)


class Sizes(TorchDispatchMode):
    """Notes every operation with the shapes of what it gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        shapes = [tuple(part.shape) for part in tree_leaves(out) if isinstance(part, torch.Tensor)]
        self.seen.append((str(operation), shapes))
        return out


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_nothing_is_allocated_by_values(family):
    """Two batches of the same lengths: the same operations, forward and backward, and tensors of the same sizes."""
    model, text_encoder = tiny_model(family)
    step, seen = Step(model.train()), []
    for seed in (0, 3):
        model.zero_grad()
        given = inputs_of(model, text_encoder, seed=seed)
        with Sizes() as sizes:
            step(*given).backward()
        seen.append(sizes.seen)
    assert len(seen[0]) > 100 and seen[0] == seen[1]


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture
def compiler():
    """A compiler that has seen nothing yet."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_compiled_without_a_break_for_all_shapes(compiler, weighted):
    compiled = torch.compile(mean_loss, backend="aot_eager", fullgraph=True)
    for count in (3, 7, 1, 20, 33):
        logits, tokens = torch.randn(count, 50, requires_grad=True), torch.arange(count) % 50
        weights = torch.rand(count) if weighted else None
        divisor = torch.tensor(float(count)) if weights is None else weights.sum()
        found, expected = (loss(logits, tokens, weights, divisor) for loss in (compiled, mean_loss))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))
    assert graphs() <= 3


@pytest.mark.parametrize("kind", ["linear_norm", "linear", "mlp"])
def test_the_projection_is_compiled_without_a_break_for_all_batches(compiler, kind):
    projection = Projection(12, 16, kind=kind)
    compiled = copy.deepcopy(projection)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for images in (2, 3, 7, 1):
        features = torch.randn(images, 1, 5, 12)
        torch.testing.assert_close(compiled(features), projection(features))
    assert graphs() <= 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "llama", "qwen2"])
def test_layers_are_compiled_three_times_each_for_all_batches_of_training(compiler, family):
    """The last one apart, which computes supervised slots alone; other slots each time are no other graph."""
    model, text_encoder = tiny_model(family)
    compiled = copy.deepcopy(model)
    for layer in compiled.decoder.blocks():
        layer.compile(backend="aot_eager", fullgraph=True)
    for images, texts in ((2, 1), (3, 2), (4, 1), (2, 3), (3, 1), (4, 2), (3, 3)):
        numbers = [place % 3 for place in range(images * texts)]
        text = text_encoder.prompts_and_answers([TEXTS[n][0] for n in numbers], [TEXTS[n][1] for n in numbers])
        index = torch.arange(images).repeat_interleave(texts)
        given = (text.input_ids, text.attention_mask, pixels(images), text.labels)
        losses = []
        for each in (compiled, model):
            each.zero_grad()
            losses.append(each(*given, image_index=index, logits="none").loss)
            losses[-1].backward()
        torch.testing.assert_close(*losses)
        for one, other in zip(compiled.parameters(), model.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    assert graphs() <= 3 * len(model.decoder.blocks())
