"""The functions supplied to transformers compute what those of transformers 4.26 computed."""

import pytest
import torch

from gitllm_plugin.host import transformers_compat as compat
from gitllm_plugin.host.locate import prepare_libraries


def test_pruning_heads_keeps_the_other_heads_rows():
    heads, index = compat.find_pruneable_heads_and_indices([0, 2], n_heads=4, head_size=2, already_pruned_heads=set())
    assert heads == {0, 2}
    assert index.tolist() == [2, 3, 6, 7]


def test_heads_are_numbered_as_before_any_pruning():
    heads, index = compat.find_pruneable_heads_and_indices([0, 2], n_heads=3, head_size=2, already_pruned_heads={0})
    assert heads == {2}
    assert index.tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("dim", [0, 1])
def test_pruned_layer_computes_the_chosen_part(dim):
    layer, index = torch.nn.Linear(4, 4), torch.tensor([1, 3])
    pruned = compat.prune_linear_layer(layer, index, dim=dim)
    inputs = torch.randn(2, 4)
    if dim == 0:
        torch.testing.assert_close(pruned(inputs), layer(inputs)[:, index])
    else:
        kept = torch.zeros_like(inputs)
        kept[:, index] = inputs[:, index]
        torch.testing.assert_close(pruned(inputs[:, index]), layer(kept))
    assert pruned.weight.requires_grad


def test_chunks_give_the_whole():
    inputs = torch.randn(2, 6, 3)
    whole = compat.apply_chunking_to_forward(torch.exp, 0, 1, inputs)
    torch.testing.assert_close(compat.apply_chunking_to_forward(torch.exp, 2, 1, inputs), whole)
    with pytest.raises(ValueError, match="not a multiple of chunk size 4"):
        compat.apply_chunking_to_forward(torch.exp, 4, 1, inputs)
    with pytest.raises(ValueError, match="differ in length"):
        compat.apply_chunking_to_forward(torch.add, 2, 1, inputs, inputs[:, :4])


def test_device_map_places_every_layer_once():
    device_map = compat.get_device_map(5, [0, 1])
    assert device_map == {0: [0, 1, 2], 1: [3, 4]}
    compat.assert_device_map(device_map, 5)
    with pytest.raises(ValueError, match=r"placed twice \[1\], missing \[4\], unknown \[7\]"):
        compat.assert_device_map({0: [0, 1], 1: [1, 2, 3, 7]}, 5)


def test_expanded_mask_hides_padding():
    mask = compat.expand_mask(torch.tensor([[1, 1, 0]]), torch.float32, tgt_len=2)
    lowest = torch.finfo(torch.float32).min
    assert mask.tolist() == [[[[0, 0, lowest], [0, 0, lowest]]]]


def test_names_are_supplied_only_where_missing(monkeypatch):
    prepare_libraries()
    import transformers.modeling_utils as modeling_utils
    from transformers.utils.model_parallel_utils import get_device_map  # noqa: F401

    original = object()
    monkeypatch.setattr(modeling_utils, "prune_linear_layer", original)
    assert compat.supply_missing_names() == []
    assert modeling_utils.prune_linear_layer is original
