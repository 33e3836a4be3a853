import pytest
import torch

from examples.easyvqa.errors import DemoError
from examples.easyvqa.paths import Cache
from examples.easyvqa.weights import convert_weights, match_in_order

WANTED = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2)}


def test_tensors_get_the_names_in_their_order():
    first, second = torch.ones(2, 3), torch.ones(2)
    matched = match_in_order({"a": first, "b": second}, WANTED)
    assert list(matched) == ["conv.weight", "conv.bias"]
    assert matched["conv.weight"] is first and matched["conv.bias"] is second


def test_another_shape_or_number_is_refused():
    with pytest.raises(DemoError, match=r"b of the checkpoint and conv.bias .* \(3,\) and \(2,\)"):
        match_in_order({"a": torch.ones(2, 3), "b": torch.ones(3)}, WANTED)
    with pytest.raises(DemoError, match="has 1 tensors, .* has 2"):
        match_in_order({"a": torch.ones(2, 3)}, WANTED)


def test_folders_that_exist_are_left_as_they_are(tmp_path, capsys):
    cache = Cache(tmp_path)
    for folder in (cache.language_model, cache.image_encoder):
        folder.mkdir(parents=True)
    convert_weights(cache)
    assert capsys.readouterr().out.count("already converted") == 2
